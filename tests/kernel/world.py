"""Workflows and cards for the tests of the kernel."""

from __future__ import annotations

from hypothesis import strategies as st

from tightrope.model.fleet import Accelerator
from tightrope.model.ids import AcceleratorName, ModelName, StepId
from tightrope.model.outcome import FailureKind
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
    OnError,
    Prompt,
    Ref,
    Retry,
    Switch,
    Timeouts,
    Workflow,
    problems,
)

CARDS = (Accelerator(AcceleratorName("fast")), Accelerator(AcceleratorName("slow")))
MODELS = (ModelName("small"), ModelName("big"))

_ON_ERROR = st.sampled_from([OnError(), OnError("skip"), OnError("value", '{"x": 1}')])
_RETRY = st.sampled_from([Retry(), Retry(1), Retry(2, (FailureKind.ENGINE_ERROR, FailureKind.CODE_ERROR))])
_TIMEOUTS = st.sampled_from([Timeouts(), Timeouts(queue_s=0.5, attempt_s=2.0), Timeouts(total_s=4.0)])


@st.composite
def workflows(draw: st.DrawFn) -> Workflow:
    """A random acyclic graph with a switch, a fan-out and joins; always one that can run."""
    names = [StepId(f"n{index}") for index in range(draw(st.integers(1, 4)))]
    has_switch = draw(st.booleans())
    nodes: list[Node] = []
    for index, name in enumerate(names):
        nodes.append(_node(draw, name, names[:index], has_switch and index > 0))
    switches: tuple[Switch, ...] = ()
    if any(node.case is not None for node in nodes):
        cases = (Case("left", "input.x == 1", 0.5), Case("right", None, 0.5))
        switches = (Switch(StepId("way"), cases, reads=(names[0],)),)
    output = _output(draw, nodes)
    flow = Workflow("flow", (*nodes, output), output.id, inputs=(InputSpec("x"),), switches=switches)
    assert problems(flow) == []
    return flow


def _node(draw: st.DrawFn, name: StepId, earlier: list[StepId], may_branch: bool) -> Node:
    is_code = draw(st.booleans())
    sources = draw(st.lists(st.sampled_from(earlier), unique=True, max_size=2)) if earlier else []
    idempotent = draw(st.booleans())
    case = draw(st.sampled_from([None, CaseRef(StepId("way"), "left")])) if may_branch else None
    return Node(
        id=name,
        work=CodeCall("module:function", idempotent) if is_code else _ask(draw),
        inputs=tuple(
            (f"i{index}", Binding((Ref(source),), optional=draw(st.booleans())))
            for index, source in enumerate(sources)
        ),
        case=case,
        fan_out=FanOut(Ref("input", ("x",)), 3) if draw(st.booleans()) else None,
        timeouts=draw(_TIMEOUTS),
        retry=draw(_RETRY) if not is_code or idempotent else Retry(),
        on_error=draw(_ON_ERROR),
    )


def _ask(draw: st.DrawFn) -> ModelCall:
    model, fallback = draw(st.sampled_from([(MODELS[0], MODELS[1]), (MODELS[1], None), (MODELS[0], None)]))
    shape = draw(st.sampled_from([None, '{"type":"object"}']))
    return ModelCall(model, Prompt(text="say"), 16, shape=shape, fallback=fallback)


def _output(draw: st.DrawFn, nodes: list[Node]) -> Node:
    inputs = []
    for node in nodes:
        gather = None
        if node.fan_out is not None:
            gather = draw(st.sampled_from([None, Gather(1, 1.0), Gather(None, None), Gather(2, None)]))
        inputs.append((f"from_{node.id}", Binding((Ref(node.id),), optional=True, gather=gather)))
    timeouts, retry = draw(_TIMEOUTS), draw(_RETRY)
    ask = _ask(draw)
    return Node(StepId("out"), ask, tuple(inputs), timeouts=timeouts, retry=retry)
