"""
Laws of a workflow
1. A cycle, an unknown name and a step that cannot run are problems; a workflow without problems has a graph.
2. The graph's order puts every step after all that it waits for.
3. Exactly the runs that need it skip a step, and the output is skipped in no run.
4. Equal content is an equal version; the order of inputs means nothing.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from tests.flow.generated import workflows
from tightrope.model.ids import ModelName, StepId
from tightrope.model.workflow import (
    RESERVED_NAMES,
    Binding,
    Case,
    CaseRef,
    CodeCall,
    FanOut,
    Gather,
    Graph,
    InputSpec,
    ModelCall,
    Need,
    Node,
    OnError,
    Prompt,
    Ref,
    Retry,
    Switch,
    Workflow,
    problems,
)


def a_node(
    name: str, *reads: str | Binding, case: str = "", work: CodeCall | ModelCall | None = None
) -> Node:
    """A code node that reads these, each text being the references of one input."""
    bindings = [read if isinstance(read, Binding) else a_binding(read) for read in reads]
    return Node(
        id=StepId(name),
        work=work or CodeCall("m:f"),
        inputs=tuple((f"i{index}", binding) for index, binding in enumerate(bindings)),
        case=CaseRef(StepId(case.split(".", maxsplit=1)[0]), case.split(".")[1]) if case else None,
    )


def a_binding(text: str) -> Binding:
    parts = [part.strip() for part in text.split("|")]
    refs = tuple(Ref(*_halves(part)) for part in parts if part != "null")
    return Binding(refs, parts[-1] == "null")


def _halves(text: str) -> tuple[str, tuple[str, ...]]:
    source, *path = text.split(".")
    return source, tuple(path)


def a_switch(name: str, *cases: str, reads: str = "", case: str = "") -> Switch:
    guards = [Case(one, None if one == cases[-1] else "true", 1 / len(cases)) for one in cases]
    inside = CaseRef(StepId(case.split(".", maxsplit=1)[0]), case.split(".")[1]) if case else None
    return Switch(StepId(name), tuple(guards), tuple(map(StepId, reads.split())), inside)


def a_workflow(*steps: Node | Switch, output: str = "out") -> Workflow:
    return Workflow(
        "w",
        tuple(step for step in steps if isinstance(step, Node)),
        StepId(output),
        inputs=(InputSpec("q"),),
        switches=tuple(step for step in steps if isinstance(step, Switch)),
    )


def found(*steps: Node | Switch, output: str = "out") -> list[tuple[str, str]]:
    return [(problem.code, ".".join(problem.path)) for problem in problems(a_workflow(*steps, output=output))]


def test_1_a_right_workflow_has_no_problems() -> None:
    assert found(a_node("a", "input.q"), a_node("out", "a", "input.q")) == []


@pytest.mark.parametrize(
    ("steps", "code", "path"),
    [
        ((a_node("a", "b"), a_node("b", "a"), a_node("out", "a")), "cycle", "nodes.a"),
        ((a_node("out", "out"),), "cycle", "nodes.out"),
        (
            (a_switch("s", "x", "y", reads="a"), a_node("a", case="s.x"), a_node("out", "a | null")),
            "cycle",
            "nodes.a",
        ),
        ((a_node("a"), a_node("out")), "unreachable_node", "nodes.a"),
        ((a_switch("s", "x", "y"), a_node("out")), "unreachable_node", "switch.s"),
        ((a_node("out", "input.z"),), "missing_input", "nodes.out.inputs.i0"),
        ((a_node("out", "input"),), "missing_input", "nodes.out.inputs.i0"),
        ((a_node("out", "z"),), "unknown_reference", "nodes.out.inputs.i0"),
        ((a_node("out", "each"),), "unknown_reference", "nodes.out.inputs.i0"),
        ((a_node("out", Binding(())),), "bad_value", "nodes.out.inputs.i0"),
        ((replace(a_node("out"), after=(StepId("z"),)),), "unknown_reference", "nodes.out.after"),
        ((a_node("a", case="s.x"), a_node("out", "a | null")), "unknown_reference", "nodes.a.case"),
        ((a_node("a"), a_node("a"), a_node("out", "a")), "duplicate_key", "nodes.a"),
        ((a_node("a b"), a_node("out", Binding((Ref("a b"),)))), "bad_name", "nodes.a b"),
        ((replace(a_node("out"), retry=Retry(1)),), "retry_needs_idempotent", "nodes.out.retry"),
        ((replace(a_node("out"), on_error=OnError("skip")),), "bad_value", "nodes.out.on_error"),
        ((a_node("out", work=ModelCall(ModelName("m"), Prompt(), 0)),), "bad_value", "nodes.out.max_tokens"),
        (
            (replace(a_node("a"), fan_out=FanOut(Ref("input", ("q",)), 0)), a_node("out", "a")),
            "bad_value",
            "nodes.a.max_items",
        ),
        (
            (replace(a_node("out"), fan_out=FanOut(Ref("input", ("q",)), 2)),),
            "two_outputs",
            "nodes.out.foreach",
        ),
        (
            (a_node("a"), a_node("out", Binding((Ref("a"),), gather=Gather()))),
            "unknown_reference",
            "nodes.out.inputs.i0",
        ),
    ],
)
def test_1_each_mistake_is_a_problem(steps: tuple[Node | Switch, ...], code: str, path: str) -> None:
    assert found(*steps) == [(code, path)]


@pytest.mark.parametrize("name", RESERVED_NAMES)
def test_1_words_with_a_meaning_cannot_name_a_step(name: str) -> None:
    assert ("bad_name", f"nodes.{name}") in found(a_node(name), a_node("out"))


def test_1_two_streaming_nodes_are_two_outputs() -> None:
    call = ModelCall(ModelName("m"), Prompt(), 9, stream=True)
    assert found(a_node("a", work=call), a_node("out", "a", work=call)) == [("two_outputs", "nodes.a.stream")]


def test_1_an_output_inside_a_case_is_a_problem() -> None:
    assert found(a_switch("s", "x", "y"), a_node("out", case="s.x")) == [
        ("unreachable_node", "nodes.out.case")
    ]


def test_1_probabilities_and_the_else() -> None:
    half = (Case("x", "true", 0.5), Case("y", None, 0.4))
    twice = (Case("x", None, 0.5), Case("y", None, 0.5))
    for cases, code in ((half, "cases_not_100"), (twice, "guard_invalid"), (half[:1] * 2, "guard_invalid")):
        switch = Switch(StepId("s"), cases)
        assert found(switch, a_node("a", case="s.x"), a_node("out", "a | null"))[0] == (code, "switch.s")


def test_1_a_gather_of_more_than_the_fan_out_can_give() -> None:
    fan = replace(a_node("a"), fan_out=FanOut(Ref("input", ("q",)), 2))
    assert found(fan, a_node("out", Binding((Ref("a"),), gather=Gather(2)))) == []
    assert found(fan, a_node("out", Binding((Ref("a"),), gather=Gather(3)))) == [
        ("bad_value", "nodes.out.inputs.i0")
    ]


def test_1_a_cycle_has_no_graph() -> None:
    with pytest.raises(ValueError, match="cycle"):
        Graph.of(a_workflow(a_node("a", "out"), a_node("out", "a")))


def test_3_an_output_that_one_case_skips_is_a_problem() -> None:
    switch, one, two = a_switch("s", "x", "y"), a_node("one", case="s.x"), a_node("two", case="s.y")
    (problem,) = problems(a_workflow(switch, one, a_node("out", "one")))
    assert problem.code == "unreachable_node"
    assert "in case s.y there is no answer: out needs one" in problem.message
    assert found(switch, one, a_node("out", "one | null")) == []
    assert found(switch, one, a_node("out", "one | input.q")) == []
    assert found(switch, one, two, a_node("out", "one | two")) == []
    assert found(switch, one, two, a_node("mid", "one"), a_node("out", "mid | two")) == []


def test_3_a_node_of_two_cases_at_once_is_a_problem() -> None:
    switch, one = a_switch("s", "x", "y"), a_node("one", case="s.x")
    assert found(switch, one, a_node("two", "one", case="s.y"), a_node("out", "two | null")) == [
        ("unreachable_node", "nodes.two")
    ]


def test_3_a_switch_inside_a_case_is_skipped_with_it() -> None:
    steps = (a_switch("s", "x", "y"), a_switch("t", "u", "v", case="s.x"), a_node("one", case="t.u"))
    assert found(*steps, a_node("out", "one | null")) == []
    assert found(*steps, a_node("out", "one"))[0][0] == "unreachable_node"


def test_3_many_switches_are_still_checked_quickly() -> None:
    switches = [a_switch(f"s{index}", "x", "y") for index in range(40)]
    nodes = [a_node(f"n{index}", case=f"s{index}.x") for index in range(40)]
    assert found(*switches, *nodes, a_node("out", *(f"n{index} | null" for index in range(40)))) == []


def test_2_what_a_step_waits_for() -> None:
    workflow = a_workflow(
        a_switch("s", "x", "y", reads="a"),
        a_node("a", "input.q"),
        a_node("b", "a", "a.f", case="s.x"),
        replace(a_node("out", "b | a", "b | null", "b | input.q"), after=(StepId("a"),)),
    )
    needs = workflow.graph.needs_by_step
    a, b = StepId("a"), StepId("b")
    assert needs[a] == ()
    assert needs[StepId("s")] == (Need((a,)),)
    assert needs[b] == (Need((StepId("s"),)), Need((a,)))
    assert needs[StepId("out")] == (Need((b, a)), Need((b,), optional=True), Need((a,), optional=True))
    assert workflow.graph.readers_by_step[a] == (StepId("b"), StepId("out"), StepId("s"))


@given(workflows())
@settings(deadline=None, max_examples=25)
def test_2_every_step_comes_after_what_it_waits_for(workflow: Workflow) -> None:
    graph = workflow.graph
    assert sorted(graph.order) == sorted(step.id for step in workflow.steps)
    place = {step: index for index, step in enumerate(graph.order)}
    for step, needs in graph.needs_by_step.items():
        for need in needs:
            assert all(place[source] < place[step] for source in need.any_of)
            assert all(step in graph.readers_by_step[source] for source in need.any_of)


@given(workflows())
@settings(deadline=None, max_examples=20)
def test_4_the_version_is_of_the_content(workflow: Workflow) -> None:
    shuffled = replace(
        workflow,
        nodes=tuple(replace(node, inputs=node.inputs[::-1]) for node in workflow.nodes),
        inputs=workflow.inputs[::-1],
    )
    assert shuffled.version == workflow.version == replace(workflow).version
    assert workflow.id == f"{workflow.name}@{workflow.version}"
    assert (
        replace(workflow, nodes=workflow.nodes[::-1]).version != workflow.version or len(workflow.nodes) == 1
    )


def test_4_models_are_named_once_in_order() -> None:
    def call(model: str, fallback: str | None = None) -> ModelCall:
        return ModelCall(ModelName(model), Prompt(), 9, fallback=ModelName(fallback) if fallback else None)

    workflow = a_workflow(
        a_node("a", work=call("m", "n")), a_node("b", work=call("n")), a_node("out", "a", "b")
    )
    assert workflow.models() == ("m", "n")
    assert workflow.required_models() == ("m", "n")
