"""The workflow of shopping.yaml in the Python form; both give the same object.

Owns nothing of its own: a change belongs in both files, and a test compares them.
"""

from __future__ import annotations

from tightrope import Slo, Workflow

wf = Workflow("shopping", slo=Slo(ttft="8s", tpot="250ms", attain="95%"))
question = wf.input("question", source="last_user_message")
customer = wf.input("customer", source="metadata.customer_id", default="")

intent = wf.llm(
    "intent",
    model="small",
    system="Sort each message.",
    temperature=0,
    inputs={"question": question},
    out={"kind": {"enum": ["order", "browse", "complaint", "chat"]}},
    max_tokens=16,
    timeout={"attempt": "10s", "total": "20s"},
    retry={"max": 1, "for": ["timeout", "replica_lost", "bad_output"]},
    on_error={"value": {"kind": "chat"}},
)

route = wf.switch("route")
with route.case("order", when='intent.kind == "order" && input.customer != ""', p="30%"):
    orders = wf.code(
        "orders",
        fn="shop.nodes:lookup_orders",
        inputs={"customer": customer, "question": question},
        timeout="1s",
        idempotent=True,
        retry=1,
    )

with route.case("browse", when='intent.kind == "browse"', p="40%"):
    rewrite = wf.llm(
        "rewrite",
        model="small",
        system="Give search words.",
        temperature=0,
        inputs={"question": question},
        max_tokens=8,
        timeout={"attempt": "10s", "total": "20s"},
        retry=1,
    )
    search = wf.code(
        "search",
        fn="shop.nodes:search_products",
        inputs={"query": rewrite.text, "question": question},
        timeout="1s",
        idempotent=True,
        retry=1,
    )
    compare = wf.llm(
        "compare",
        model="small",
        foreach=search,
        max_items=2,
        system="Name the better product and why.",
        temperature=0,
        inputs={"batch": wf.each, "question": question},
        max_tokens=24,
        timeout={"attempt": "15s", "total": "30s"},
        retry=1,
    )

with route.case("complaint", when='intent.kind == "complaint"', p="15%"):
    rule = wf.code(
        "rule",
        fn="shop.nodes:find_rule",
        inputs={"question": question},
        timeout="1s",
        idempotent=True,
        retry=1,
    )
    summary = wf.llm(
        "summary",
        model="small",
        system="Say in a few words what went wrong.",
        temperature=0,
        inputs={"question": question},
        max_tokens=12,
        timeout={"attempt": "10s", "total": "20s"},
        retry=1,
        on_error="skip",
    )
    draft = wf.llm(
        "draft",
        model="small",
        system="Say sorry and tell the customer what the rule gives.",
        temperature=0,
        inputs={"question": question, "rule": rule},
        max_tokens=28,
        timeout={"attempt": "15s", "total": "30s"},
        retry=1,
    )

route.default("chat", p="15%")
notes = wf.gather(compare.optional, min=1, within="15s")
answer = wf.llm(
    "answer",
    model="big",
    system="You answer customers of the shop Fellside in one or two sentences.",
    temperature=0,
    inputs={
        "question": question,
        "orders": orders.optional,
        "notes": notes,
        "summary": summary.optional,
        "draft": draft.optional,
    },
    max_tokens=32,
    fallback="small",
    stream=True,
)
wf.output(answer)
