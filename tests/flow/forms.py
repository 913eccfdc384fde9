"""The RAG and the shopping workflow in both forms, and the prompt files that they name."""

from __future__ import annotations

from pathlib import Path

from tightrope.flow.builder import Workflow
from tightrope.model.slo import Slo

RAG = """\
workflow: rag
slo: {ttft: 1200ms, attain: 95%}
input: {question: {from: last_user_message}}
nodes:
  retrieve:
    {code: "rag.nodes:retrieve", inputs: {question: input.question}, timeout: 250ms, idempotent: true, retry: 1,
     on_error: {value: []}}
  rewrite:                     # first model: light work on what was fetched
    {llm: small, prompt: {file: prompts/rewrite.txt}, inputs: {question: input.question, passages: retrieve},
     out: {notes: [string]}, max_tokens: 96, timeout: 600ms, retry: 1}
  answer:                      # second model: heavy generation
    {llm: big, prompt: {file: prompts/answer.txt}, inputs: {question: input.question, notes: rewrite.notes},
     max_tokens: 400, fallback: small, stream: true}
output: answer
"""

SHOP = """\
workflow: shopping
slo: {ttft: 900ms, tpot: 60ms, attain: 95%}
input:
  question: {from: last_user_message}
  customer: {from: metadata.customer_id, default: ""}
switch:
  route:                       # cases are tried in this order; exactly one is taken
    order:  {when: 'intent.kind == "order" && input.customer != ""', p: 35%}
    browse: {when: 'intent.kind == "browse"', p: 45%}
    chat:   {else: true, p: 20%}
nodes:                         # a node without "prompt" uses prompts/<node>.txt beside this file
  intent:                      # call 1: the classifier
    {llm: tiny, inputs: {question: input.question},
     out: {kind: {enum: [order, browse, chat]}}, max_tokens: 8, timeout: {attempt: 150ms, total: 300ms},
     retry: {max: 1, for: [timeout, replica_lost, bad_output]}, on_error: {value: {kind: chat}}}
  orders:
    {case: route.order, code: "shop.nodes:lookup_orders", inputs: {customer: input.customer},
     timeout: 200ms, idempotent: true, retry: 1, on_error: skip}
  rewrite:                     # call 2
    {case: route.browse, llm: tiny, inputs: {question: input.question}, max_tokens: 24}
  search:
    {case: route.browse, code: "shop.nodes:search", inputs: {query: rewrite.text}, timeout: 250ms, idempotent: true}
  compare:                     # calls 3 and 4, in parallel
    {case: route.browse, llm: small, foreach: search.batches, max_items: 2,
     inputs: {batch: each, question: input.question}, max_tokens: 96}
  answer:                      # call 5; call 2 in the other two cases
    {llm: big, max_tokens: 500, fallback: small, stream: true, inputs: {question: input.question, orders: orders | null,
     notes: {gather: compare | null, min: 1, within: 300ms}}}
output: answer
"""

PROMPTS = {
    "rewrite": "Question: {{ question }}\n",
    "answer": "Answer {{ question }} from {{ notes }}.\n",
    "intent": "What does {{ question }} ask for?\n",
    "compare": "Compare {{ batch }} for {{ question }}.\n",
}


def write_prompts(base: Path) -> Path:
    """The prompt files under `base`."""
    (base / "prompts").mkdir()
    for name, text in PROMPTS.items():
        (base / "prompts" / f"{name}.txt").write_text(text)
    return base


def rag_in_python(base: Path) -> Workflow:
    wf = Workflow("rag", slo=Slo(ttft="1200ms", attain="95%"), base=base)
    question = wf.input("question", source="last_user_message")
    passages = wf.code(
        "retrieve",
        fn="rag.nodes:retrieve",
        inputs={"question": question},
        timeout="250ms",
        idempotent=True,
        retry=1,
        on_error={"value": []},
    )
    rewrite = wf.llm(
        "rewrite",
        model="small",
        prompt=wf.file("prompts/rewrite.txt"),
        max_tokens=96,
        timeout="600ms",
        retry=1,
        inputs={"question": question, "passages": passages},
        out={"notes": [str]},
    )
    answer = wf.llm(
        "answer",
        model="big",
        prompt=wf.file("prompts/answer.txt"),
        max_tokens=400,
        inputs={"question": question, "notes": rewrite.notes},
        fallback="small",
        stream=True,
    )
    wf.output(answer)
    return wf


def shop_in_python(base: Path) -> Workflow:
    wf = Workflow("shopping", slo=Slo(ttft="900ms", tpot="60ms", attain="95%"), base=base)
    question = wf.input("question", source="last_user_message")
    customer = wf.input("customer", source="metadata.customer_id", default="")
    wf.llm(
        "intent",
        model="tiny",
        inputs={"question": question},
        max_tokens=8,
        out={"kind": {"enum": ["order", "browse", "chat"]}},
        timeout={"attempt": "150ms", "total": "300ms"},
        retry={"max": 1, "for": ["timeout", "replica_lost", "bad_output"]},
        on_error={"value": {"kind": "chat"}},
    )
    route = wf.switch("route")
    with route.case("order", when='intent.kind == "order" && input.customer != ""', p="35%"):
        orders = wf.code(
            "orders",
            fn="shop.nodes:lookup_orders",
            inputs={"customer": customer},
            timeout="200ms",
            idempotent=True,
            retry=1,
            on_error="skip",
        )
    with route.case("browse", when='intent.kind == "browse"', p="45%"):
        rewrite = wf.llm("rewrite", model="tiny", inputs={"question": question}, max_tokens=24)
        search = wf.code(
            "search", fn="shop.nodes:search", inputs={"query": rewrite.text}, timeout="250ms", idempotent=True
        )
        compare = wf.llm(
            "compare",
            model="small",
            foreach=search.batches,
            max_items=2,
            inputs={"batch": wf.each, "question": question},
            max_tokens=96,
        )
    route.default("chat", p="20%")
    notes = wf.gather(compare.optional, min=1, within="300ms")
    answer = wf.llm(
        "answer",
        model="big",
        max_tokens=500,
        fallback="small",
        stream=True,
        inputs={"question": question, "orders": orders.optional, "notes": notes},
    )
    wf.output(answer)
    return wf
