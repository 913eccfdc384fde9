"""Hypothesis strategies for workflows that can run, in every way the model can hold."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from tightrope.flow.guards import compile_guard
from tightrope.flow.shapes import ANY_JSON, schema_of
from tightrope.model.ids import ModelName, StepId
from tightrope.model.json import Json
from tightrope.model.outcome import FailureKind
from tightrope.model.slo import Slo
from tightrope.model.units import ratio
from tightrope.model.workflow import (
    RETRIED_BY_DEFAULT,
    Binding,
    Case,
    CaseRef,
    CodeCall,
    FanOut,
    Gather,
    InputSpec,
    ModelCall,
    Node,
    OnError,
    Prompt,
    PromptKind,
    Ref,
    Retry,
    Switch,
    Timeouts,
    Workflow,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
plain_json: st.SearchStrategy[Json] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
json_texts = plain_json.map(
    lambda value: json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
)
durations = st.one_of(
    st.integers(1, 10**6).map(lambda ms: ms / 1000),
    st.floats(1e-6, 1e6, allow_nan=False, allow_infinity=False),
)
field_names = st.sampled_from(["notes", "kind", "a", "b2", "enum", "schema", "true", "No", "x y", "é"])
short_shapes: st.SearchStrategy[Json] = st.recursive(
    st.sampled_from(["string", "number", "integer", "boolean"])
    | st.lists(texts | st.booleans() | st.integers(-9, 9), min_size=1, max_size=3, unique_by=json.dumps).map(
        lambda values: {"enum": list(values)}
    ),
    lambda inner: inner.map(lambda one: [one]) | st.dictionaries(field_names, inner, min_size=1, max_size=3),
    max_leaves=5,
)


def _is_shape(shape: Json) -> bool:
    match shape:
        case {"schema": _} | "string":
            return False
        case {"enum": _, **rest}:
            return not rest
        case dict():
            return all(_is_shape(inner) or inner == "string" for inner in shape.values())
        case [inner]:
            return _is_shape(inner) or inner == "string"
        case _:
            return True


def _has_bare_enum_field(shape: Json) -> bool:
    match shape:
        case {"enum": list() as values, **rest} if not rest:
            return any(isinstance(value, dict | list) for value in values)
        case dict():
            return "enum" in shape or "schema" in shape or any(map(_has_bare_enum_field, shape.values()))
        case list():
            return any(map(_has_bare_enum_field, shape))
        case _:
            return False


shapes = (
    st.none()
    | st.just(ANY_JSON)
    | short_shapes.filter(lambda shape: shape != "string" and not _has_bare_enum_field(shape)).map(schema_of)
    | st.just(
        schema_of({"schema": {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}}})
    )
)
timeouts = st.builds(
    Timeouts, st.none() | durations, st.none() | durations, st.none() | durations, st.none() | durations
)
retried = st.just(RETRIED_BY_DEFAULT) | st.lists(
    st.sampled_from(
        [FailureKind.TIMEOUT, FailureKind.STALLED, FailureKind.BAD_OUTPUT, FailureKind.CODE_ERROR]
    ),
    unique=True,
).map(tuple)
retries = st.builds(Retry, st.integers(0, 4), retried)
slos = st.builds(
    Slo,
    ttft_s=st.none() | durations,
    tpot_s=st.none() | durations,
    e2e_s=st.none() | durations,
    attain=st.integers(1, 100).map(lambda percent: ratio(f"{percent}%")),
)


@st.composite
def workflows(draw: st.DrawFn) -> Workflow:
    """Valid workflows: a chain of layers, some of it in cases, some of it fanned out, joined by the last node."""
    inputs = (
        InputSpec("question", draw(st.sampled_from(["last_user_message", "input", "metadata.x", "prompt"]))),
        InputSpec("more", "input", draw(json_texts)),
    )
    count = draw(st.integers(1, 4))
    nodes: list[Node] = []
    for index in range(count):
        nodes.append(draw(_nodes(StepId(f"n{index}"), nodes)))
    switches: tuple[Switch, ...] = ()
    if draw(st.booleans()):
        switch = draw(_switch(nodes))
        switches = (switch,)
        nodes.append(draw(_nodes(StepId("cased"), nodes[:0], CaseRef(switch.id, switch.cases[0].name))))
    return Workflow(
        name=draw(texts),
        nodes=(*nodes, draw(_last_node(nodes))),
        output=StepId("last"),
        slo=draw(slos),
        inputs=inputs,
        switches=switches,
    )


@st.composite
def _switch(draw: st.DrawFn, nodes: list[Node]) -> Switch:
    readable = [node.id for node in nodes if isinstance(node.work, CodeCall) and node.fan_out is None]
    reads = [step for step in readable if draw(st.booleans())]
    guards = [
        f"has({step}.text) && {step}.text == {json.dumps(step)} || input.more == null" for step in reads
    ] or ['input.question != "b"']
    names = draw(st.lists(st.sampled_from(["a", "b", "yes", "null"]), min_size=1, max_size=3, unique=True))
    share = 100 // (len(names) + 1)
    cases = [Case(name, draw(st.sampled_from(guards)), ratio(f"{share}%")) for name in names]
    found: dict[StepId, None] = {}
    for case in cases:
        found |= {StepId(read): None for read in compile_guard(case.guard or "").reads if read != "input"}
    rest = Case("rest", None, ratio(f"{100 - share * len(names)}%"))
    return Switch(StepId("route"), (*cases, rest), tuple(found))


@st.composite
def _nodes(draw: st.DrawFn, name: StepId, before: list[Node], case: CaseRef | None = None) -> Node:
    readable = [node.id for node in before]
    bindings = {"question": Binding((Ref("input", ("question",)),))}
    for other in readable:
        if draw(st.booleans()):
            bindings[f"of_{other}"] = Binding((Ref(other), Ref("input", ("more",))), draw(st.booleans()))
    fan_out = None
    codes = [str(node.id) for node in before if isinstance(node.work, CodeCall)]
    if draw(st.booleans()) and codes:
        over = Ref(draw(st.sampled_from(codes)), ("hits",) if draw(st.booleans()) else ())
        fan_out = FanOut(over, draw(st.integers(1, 9)), draw(st.sampled_from(["fail", "cut"])))
        bindings["item"] = Binding((Ref("each"),))
    is_call = draw(st.booleans())
    work = draw(_calls(tuple(bindings))) if is_call else CodeCall("a.b:c", True)
    return Node(
        id=name,
        work=work,
        inputs=tuple(bindings.items()),
        case=case,
        after=tuple(StepId(other) for other in readable if draw(st.booleans())),
        fan_out=fan_out,
        timeouts=draw(timeouts),
        retry=draw(retries),
        on_error=draw(
            st.just(OnError()) | st.just(OnError("skip")) | st.builds(OnError, st.just("value"), json_texts)
        ),
    )


@st.composite
def _calls(draw: st.DrawFn, names: tuple[str, ...]) -> ModelCall:
    holes = draw(st.lists(st.sampled_from(names), max_size=3))
    text = draw(texts.filter(lambda text: "{" not in text)) + "".join(
        f" {{{{ {name} }}}}\n" for name in holes
    )
    prompt = draw(
        st.sampled_from(
            [
                Prompt(PromptKind.MESSAGES),
                Prompt(PromptKind.COMPLETION),
                Prompt(text=text),
                Prompt(text=text, system=text),
            ]
        )
    )
    return ModelCall(
        model=ModelName(draw(texts.filter(bool))),
        prompt=prompt,
        max_tokens=draw(st.integers(1, 5000)),
        shape=draw(shapes),
        fallback=draw(st.none() | texts.filter(bool).map(ModelName)),
        temperature=draw(st.none() | st.floats(0, 2)),
        stop=draw(st.lists(texts, max_size=2).map(tuple)),
    )


@st.composite
def _last_node(draw: st.DrawFn, before: list[Node]) -> Node:
    bindings = {}
    for node in before:
        gather = None
        if node.fan_out is not None and draw(st.booleans()):
            minimum = draw(st.none() | st.integers(0, node.fan_out.max_items))
            gather = Gather(minimum, draw(st.none() | durations))
        bindings[str(node.id)] = Binding((Ref(node.id),), True, gather)
    call = draw(_calls(tuple(bindings)))
    return Node(StepId("last"), call, tuple(bindings.items()))
