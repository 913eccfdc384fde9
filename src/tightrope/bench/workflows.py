"""The workflows of the benchmark, and what their calls are really like.

Output nodes take lengths seen in production (prompts scaled to what the node is given, answers cut at 600 tokens);
inner nodes take lognormal lengths, which are synthetic. Where the lengths were seen is `traces.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tightrope.bench.traces import Pairs, SeenRequest, Traces
from tightrope.model.ids import ModelName, StepId, TenantId
from tightrope.model.workflow import (
    Binding,
    Case,
    CaseRef,
    CodeCall,
    FanOut,
    Gather,
    InputSpec,
    ModelCall,
    Node,
    Prompt,
    Ref,
    Switch,
    Workflow,
)
from tightrope.sim.arrivals import Poisson
from tightrope.sim.lengths import ByCase, CodeTime, Lengths, Lognormal, Sampled
from tightrope.sim.workload import Flow, Plan, Recorded, Recording, Share

ANSWER_MOST = 600
"""Longest answer that a reader gets, in tokens."""
BLOCK_TOKENS = 128
"""Prompt tokens of a block of the recorded loads with prefixes: engines that shall find them cache such blocks."""
SHRINK = 4
"""Mooncake's prompts, 13,500 tokens on average and in blocks of 512, are divided by this: blocks keep their
meaning, and one request no longer fills the memory of a small card."""
TAU2_SESSIONS = 200
TAU2_EVERY_S = 6.0
TAU2_COMMON_TOKENS = 5000
"""Every session of the retail assistant begins with the same instructions, about this long."""


@dataclass(frozen=True, slots=True)
class Models:
    """The two models that the workflows call."""

    small: ModelName
    large: ModelName


def rag(models: Models, traces: Traces) -> Flow:
    """Retrieve (code), rewrite on the small model, answer on the large one, streamed."""
    nodes = (
        _code("retrieve", "question"),
        _ask("rewrite", models.small, 192, "question", "retrieve"),
        _answer("answer", models.large, "question", "retrieve", "rewrite"),
    )
    lengths: dict[str, Lengths] = {
        "retrieve": CodeTime(0.030),
        "rewrite": Lognormal(prompt_mean=1200, output_mean=64, output_most=192),
        "answer": _as_seen(traces.azure_pairs, 1.9),
    }
    return Flow(_workflow("rag", nodes), _by_step(lengths))


def shop(models: Models, traces: Traces) -> Flow:
    """A shopping assistant: the intent decides which branch prepares the streamed answer; 2, 4 or 5 model calls.

    Products are ranked and replies to complaints drafted by the large model, at such length that a run whose
    inner call of it sits on a card a third as fast can hardly keep a promise of twice its time alone: this is
    the workflow in which the choice among unequal cards decides.
    """
    rank = _Inner(models.large, Lognormal(prompt_mean=1700, output_mean=110, output_most=256))
    draft = _Inner(models.large, Lognormal(prompt_mean=900, output_mean=200, output_most=400))
    return _shop("shop", models, traces, rank, draft)


def shop_light(models: Models, traces: Traces) -> Flow:
    """The same with a short ranking by the small model and shorter drafts: most runs are in time on any idle card."""
    rank = _Inner(models.small, Lognormal(prompt_mean=1800, output_mean=48, output_most=128))
    draft = _Inner(models.large, Lognormal(prompt_mean=900, output_mean=120, output_most=300))
    return _shop("shop_light", models, traces, rank, draft)


@dataclass(frozen=True, slots=True)
class _Inner:
    """Which model an inner node asks, and how much."""

    model: ModelName
    lengths: Lognormal


def _shop(name: str, models: Models, traces: Traces, rank: _Inner, draft: _Inner) -> Flow:
    small = models.small
    nodes = (
        _ask("classify", small, 16, "question"),
        # products
        _ask("refine", small, 64, "question", case="products"),
        _code("search", "refine", case="products"),
        _ask("rank", rank.model, rank.lengths.output_most, "question", "search", case="products"),
        # order
        _code("look_up", "question", case="order"),
        # complaint: two at once, then one that reads both
        _ask("summarise", small, 256, "question", case="complaint"),
        _ask("draft", draft.model, draft.lengths.output_most, "question", case="complaint"),
        _ask("check", small, 128, "summarise", "draft", case="complaint"),
        # every run
        _answer("reply", models.large, "question", "rank?", "look_up?", "draft?", "check?"),
    )
    lengths: dict[str, Lengths] = {
        "classify": Lognormal(prompt_mean=350, output_mean=8, output_most=16),
        "refine": Lognormal(prompt_mean=500, output_mean=24, output_most=64),
        "search": CodeTime(0.040),
        "rank": rank.lengths,
        "look_up": CodeTime(0.050),
        "summarise": Lognormal(prompt_mean=900, output_mean=100, output_most=256),
        "draft": draft.lengths,
        "check": Lognormal(prompt_mean=700, output_mean=40, output_most=128),
        "reply": ByCase(
            StepId("route"),
            {case: _as_seen(traces.azure_pairs, scale) for case, scale in SHOP_REPLY_SCALES.items()},
        ),
    }
    return Flow(_workflow(name, nodes, _route()), _by_step(lengths))


SHOP_REPLY_SCALES = {"products": 2.4, "order": 1.5, "complaint": 2.0, "small_talk": 0.8}
"""How much longer than a prompt to a chat service the reply's prompt is, with what each branch has found out."""


def _route() -> Switch:
    cases = (
        Case("products", 'classify.text == "products"', 0.35),
        Case("order", 'classify.text == "order"', 0.20),
        Case("complaint", 'classify.text == "complaint"', 0.15),
        Case("small_talk", None, 0.30),
    )
    return Switch(StepId("route"), cases, reads=(StepId("classify"),))


def compare(models: Models, traces: Traces) -> Flow:
    """A search, one summary of each thing found at once on the small model, and an answer that reads them all."""
    nodes = (
        _code("search", "question"),
        _ask("summarise", models.small, 192, "question", each="search", max_items=8),
        _answer("answer", models.large, "question", "summarise*"),
    )
    lengths: dict[str, Lengths] = {
        "search": CodeTime(0.040),
        "summarise": Lognormal(prompt_mean=900, output_mean=60, output_most=192),
        "answer": _as_seen(traces.azure_pairs, 1.2),
    }
    return Flow(_workflow("compare", nodes), _by_step(lengths), {StepId("summarise"): (2, 6)})


def chat(models: Models, traces: Traces) -> Flow:
    """One call of the large model, as long as those of a chat service in production."""
    lengths: dict[str, Lengths] = {"answer": _as_seen(traces.azure_pairs, 1.0)}
    return Flow(_one_call("chat", models.large), _by_step(lengths))


def chat_sharegpt(models: Models, traces: Traces) -> Flow:
    """One call of the large model, as long as those of conversations that people shared."""
    lengths: dict[str, Lengths] = {"answer": _as_seen(traces.sharegpt_pairs, 1.0)}
    return Flow(_one_call("chat_sharegpt", models.large), _by_step(lengths))


FLOWS: Mapping[str, Callable[[Models, Traces], Flow]] = {
    "rag": rag,
    "shop": shop,
    "shop_light": shop_light,
    "compare": compare,
    "chat": chat,
    "chat_sharegpt": chat_sharegpt,
}
"""Workflows by name; arrivals, tenants and shares are chosen apart."""


def burst(flow: Flow, tenant: TenantId, requests: int, rate_per_s: float) -> Plan:
    """The source paper's own kind of load: so many requests of one workflow, Poisson, on idle machines."""
    return Plan((Share(flow, tenant),), Poisson(rate_per_s), count=requests)


# --- recorded loads --------------------------------------------------------------------------------------


def sessions(models: Models, traces: Traces, rate_per_s: float) -> Recording:
    """Mooncake's conversations on the large model: prompts that begin alike share blocks of BLOCK_TOKENS."""
    requests = tuple(
        Recorded(
            at_s=seen.at_s,
            tenant=TenantId("sessions"),
            prompt_tokens=max(1, seen.prompt_tokens // SHRINK),
            output_tokens=seen.output_tokens,
            blocks=seen.blocks,
        )
        for seen in traces.mooncake_conversation
    )
    return Recording(_one_call("sessions", models.large, most=2000), requests, rate_per_s)


def tau2(models: Models, traces: Traces, rate_per_s: float) -> Recording:
    """Sessions of a retail assistant on the large model, one beginning every six seconds.

    Each call repeats the conversation so far. There are ten sessions in the data; each is held TAU2_SESSIONS / 10
    times with another customer, that is with other blocks behind the common instructions.
    """
    by_session: dict[str, list[SeenRequest]] = {}
    for seen in traces.tau2_retail:
        by_session.setdefault(seen.owner, []).append(seen)
    held = list(by_session.values())
    requests = [
        _tau2_call(number, seen) for number in range(TAU2_SESSIONS) for seen in held[number % len(held)]
    ]
    requests.sort(key=lambda request: request.at_s)
    return Recording(_one_call("tau2", models.large), tuple(requests), rate_per_s)


def _tau2_call(number: int, seen: SeenRequest) -> Recorded:
    common = TAU2_COMMON_TOKENS // BLOCK_TOKENS
    blocks = range(seen.prompt_tokens // BLOCK_TOKENS)
    return Recorded(
        at_s=number * TAU2_EVERY_S + seen.at_s,
        tenant=TenantId("tau2"),
        prompt_tokens=seen.prompt_tokens,
        output_tokens=seen.output_tokens,
        blocks=tuple(block if block < common else (number + 1) * 10_000 + block for block in blocks),
    )


def tenants_27(models: Models, traces: Traces, rate_per_s: float) -> Recording:
    """Requests of 27 unequal tenants to the large model; a few of them send most."""
    requests = tuple(
        Recorded(seen.at_s, TenantId(seen.owner), seen.prompt_tokens, seen.output_tokens)
        for seen in traces.arena_tenants
    )
    return Recording(_one_call("tenants_27", models.large, most=1024), requests, rate_per_s)


RECORDINGS: Mapping[str, Callable[[Models, Traces, float], Recording]] = {
    "sessions": sessions,
    "tau2": tau2,
    "tenants_27": tenants_27,
}
"""Loads whose arrivals, lengths and tenants belong together, by name; the last argument is runs per second."""


# --- parts -----------------------------------------------------------------------------------------------


def _workflow(name: str, nodes: tuple[Node, ...], *switches: Switch) -> Workflow:
    question = InputSpec("question", "last_user_message")
    return Workflow(name, nodes, nodes[-1].id, inputs=(question,), switches=switches)


def _one_call(name: str, model: ModelName, most: int = ANSWER_MOST) -> Workflow:
    return _workflow(name, (_answer("answer", model, "question", most=most),))


def _answer(name: str, model: ModelName, *reads: str, most: int = ANSWER_MOST) -> Node:
    work = ModelCall(model, _prompt(reads), most, stream=True)
    return Node(StepId(name), work, _inputs(reads))


def _ask(
    name: str,
    model: ModelName,
    max_tokens: int,
    *reads: str,
    case: str | None = None,
    each: str | None = None,
    max_items: int = 0,
) -> Node:
    return Node(
        StepId(name),
        ModelCall(model, _prompt(reads), max_tokens),
        _inputs(reads),
        case=_case(case),
        fan_out=FanOut(Ref(each), max_items) if each else None,
    )


def _code(name: str, *reads: str, case: str | None = None) -> Node:
    return Node(StepId(name), CodeCall(f"shop.nodes:{name}", True), _inputs(reads), case=_case(case))


def _case(name: str | None) -> CaseRef | None:
    return CaseRef(StepId("route"), name) if name else None


def _prompt(reads: tuple[str, ...]) -> Prompt:
    return Prompt(text="\n".join(f"{{{{ {name.rstrip('?*')} }}}}" for name in reads))


def _inputs(reads: tuple[str, ...]) -> tuple[tuple[str, Binding], ...]:
    """`question` is the request's; `a?` may have been skipped; `a*` is the list of a fan-out."""
    return tuple((name.rstrip("?*"), _binding(name)) for name in reads)


def _binding(name: str) -> Binding:
    if name == "question":
        return Binding((Ref("input", ("question",)),))
    gather = Gather() if name.endswith("*") else None
    return Binding((Ref(name.rstrip("?*")),), optional=name.endswith("?"), gather=gather)


def _as_seen(pairs: Pairs, prompt_scale: float) -> Sampled:
    return Sampled(pairs, prompt_scale, ANSWER_MOST)


def _by_step(lengths: Mapping[str, Lengths]) -> dict[StepId, Lengths]:
    return {StepId(step): own for step, own in lengths.items()}
