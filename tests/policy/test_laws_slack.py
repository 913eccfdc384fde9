"""
Laws of slack
S1. The latest finish of the output node is the deadline of the run.
S2. With fixed times it is the smallest, over all ways to the output, of what the deadline leaves.
S3. Shifting arrival, deadline and now together shifts the latest finish and changes no budget.
S4. A step that takes longer never raises the latest finish of one before it.
S5. A larger quantile never raises a latest finish.
S6. A budget is never negative and never above the time left; the output node gets all of it.
S7. If every node of a chain takes exactly its budget, the run ends exactly at its deadline.
S8. More time left never shrinks a budget.
S9. All items of a fan-out are due when their join still has its time.
S10. A quantile over branches lies between the smallest and the largest of the branches alone.
S11. Branch probabilities: positive where the prior is, summing to 1, deaf to the order of one instant.
S12. Renaming steps, or a case that is never taken, changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.builders import a_switch, a_workflow, code, numbers
from tightrope.model.ids import StepId
from tightrope.model.workflow import CaseRef, Gather, Node, Switch, Workflow
from tightrope.policy.learn import Learned
from tightrope.policy.slack import Outlook, budget_s, grant, sample

Times = Mapping[StepId, float]


def imagine(workflow: Workflow, times: Mapping[Any, float], scenarios: int = 256, seed: int = 1) -> Outlook:
    """An outlook in which every step takes its fixed time; cases by their declared probabilities."""
    return sample(
        workflow, True, lambda step, rng: times.get(step, 0.0), declared(workflow), Random(seed), scenarios
    )


def declared(workflow: Workflow) -> Callable[[StepId], Mapping[str, float]]:
    by_switch = {s.id: {case.name: case.probability for case in s.cases} for s in workflow.switches}
    return by_switch.__getitem__


def jittery(step: StepId, rng: Random) -> float:
    return rng.expovariate(1.0)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Workflow, Times]:
    """Up to eight code nodes, all on a way to the last one, with fixed times."""
    count = draw(st.integers(1, 8))
    reads = {index: {j for j in range(index) if draw(st.booleans())} for index in range(count)}
    for index in range(count - 1):
        if not any(index in reads[later] for later in range(index + 1, count)):
            reads[count - 1].add(index)
    nodes = [code(f"n{index}", *(f"n{j}" for j in sorted(reads[index]))) for index in range(count)]
    return a_workflow(*nodes), {node.id: draw(numbers(0, 5)) for node in nodes}


def longest_s(workflow: Workflow, times: Times, step: StepId) -> float:
    """By brute force over all ways: the time from the end of a step to the end of the output."""
    readers = workflow.graph.readers_by_step[step]
    return max((times[reader] + longest_s(workflow, times, reader) for reader in readers), default=0.0)


@given(graphs(), numbers(0, 50))
def test_s1_the_output_is_due_when_the_run_is(found: tuple[Workflow, Times], due_s: float) -> None:
    workflow, times = found
    outlook = imagine(workflow, times, scenarios=4)
    assert grant(0.0, due_s, 1.0, outlook, workflow.output, {}).due_s == due_s


@given(graphs())
def test_s2_fixed_times_give_what_brute_force_gives(found: tuple[Workflow, Times]) -> None:
    workflow, times = found
    outlook = imagine(workflow, times, scenarios=3)
    for node in workflow.nodes:
        assert outlook.remaining_s(node.id, {}, 0.8) == pytest.approx(longest_s(workflow, times, node.id))
    whole = max(times[node.id] + longest_s(workflow, times, node.id) for node in workflow.nodes)
    assert outlook.path_s(0.1) == outlook.path_s(0.9) == pytest.approx(whole)


@given(graphs(), numbers(0, 50), numbers(0, 50), numbers(0, 1000))
def test_s3_only_differences_of_times_count(
    found: tuple[Workflow, Times], due_s: float, now_s: float, shift_s: float
) -> None:
    workflow, times = found
    outlook = imagine(workflow, times, scenarios=3)
    first = workflow.nodes[0].id
    plain = grant(now_s, due_s, 1.0, outlook, first, {})
    shifted = grant(now_s + shift_s, due_s + shift_s, 1.0, outlook, first, {})
    assert shifted.due_s == pytest.approx(plain.due_s + shift_s)
    assert shifted.budget_s == pytest.approx(plain.budget_s, abs=1e-9)


@given(graphs(), st.integers(0, 7), numbers(0, 5))
def test_s4_a_longer_step_never_gives_those_before_it_more(
    found: tuple[Workflow, Times], which: int, extra_s: float
) -> None:
    workflow, times = found
    slowed = workflow.nodes[which % len(workflow.nodes)].id
    before = imagine(workflow, times, scenarios=3)
    after = imagine(workflow, {**times, slowed: times[slowed] + extra_s}, scenarios=3)
    for node in workflow.nodes:
        assert after.remaining_s(node.id, {}, 0.8) >= before.remaining_s(node.id, {}, 0.8)


@given(graphs(), numbers(0, 1), numbers(0, 1), st.integers(0, 2**32))
def test_s5_a_larger_quantile_is_never_due_later(
    found: tuple[Workflow, Times], one: float, other: float, seed: int
) -> None:
    workflow, _ = found
    outlook = sample(workflow, False, jittery, declared(workflow), Random(seed), scenarios=20)
    low, high = sorted((one, other))
    for node in workflow.nodes:
        assert outlook.remaining_s(node.id, {}, low) <= outlook.remaining_s(node.id, {}, high)


@given(graphs(), numbers(0, 50), numbers(0, 50), numbers(0, 5))
def test_s6_a_budget_is_part_of_the_time_left(
    found: tuple[Workflow, Times], due_s: float, now_s: float, own_s: float
) -> None:
    workflow, times = found
    outlook = imagine(workflow, times, scenarios=3)
    left_s = max(0.0, due_s - now_s)
    for node in workflow.nodes:
        assert 0 <= grant(now_s, due_s, own_s, outlook, node.id, {}).budget_s <= left_s
    assert grant(now_s, due_s, own_s, outlook, workflow.output, {}).budget_s == left_s


@given(st.lists(numbers(0.01, 5), min_size=1, max_size=6), numbers(0.1, 50))
def test_s7_a_chain_that_uses_its_budgets_ends_at_the_deadline(times: list[float], due_s: float) -> None:
    nodes = [code("n0"), *(code(f"n{i}", f"n{i - 1}") for i in range(1, len(times)))]
    own_by_step = {node.id: own_s for node, own_s in zip(nodes, times, strict=True)}
    outlook = imagine(a_workflow(*nodes), own_by_step, scenarios=3)
    now_s = 0.0
    for node in nodes:
        now_s += grant(now_s, due_s, own_by_step[node.id], outlook, node.id, {}).budget_s
    assert now_s == pytest.approx(due_s)


@given(numbers(0, 50), numbers(0, 50), numbers(0, 5), numbers(0, 5))
def test_s8_more_time_left_never_shrinks_a_budget(
    one_s: float, other_s: float, own_s: float, rest_s: float
) -> None:
    less_s, more_s = sorted((one_s, other_s))
    assert budget_s(less_s, own_s, rest_s) <= budget_s(more_s, own_s, rest_s)


@given(numbers(0, 5), numbers(0, 5))
def test_s9_a_fan_out_is_due_when_its_join_must_begin(fan_s: float, join_s: float) -> None:
    workflow = a_workflow(code("fan", max_items=4), code("join", "fan"))
    outlook = imagine(workflow, {"fan": fan_s, "join": join_s}, scenarios=3)
    assert grant(0.0, 20.0, fan_s, outlook, StepId("fan"), {}).due_s == 20.0 - join_s


BRANCHES = a_workflow(
    code("first"),
    code("left", "first", case=("fork", "left")),
    code("right", "first", case=("fork", "right")),
    code("last", "left|right"),
    switches=(a_switch("fork", "first", left=0.4, right=0.6),),
)


@given(st.integers(0, 2**32), numbers(0, 1), numbers(0, 5))
def test_s10_a_mixture_lies_between_its_branches(seed: int, quantile: float, extra_s: float) -> None:
    def draw(step: StepId, rng: Random) -> float:
        return rng.random() + (extra_s if step == "left" else 0.0)

    outlook = sample(BRANCHES, True, draw, declared(BRANCHES), Random(seed))
    alone = [
        outlook.remaining_s(StepId("first"), {StepId("fork"): case}, quantile) for case in ("left", "right")
    ]
    assert min(alone) <= outlook.remaining_s(StepId("first"), {}, quantile) <= max(alone)


@given(st.lists(st.sampled_from(["left", "right"]), max_size=60), st.randoms(use_true_random=False))
def test_s11_branch_probabilities(taken: list[str], rng: Random) -> None:
    shuffled = rng.sample(taken, len(taken))
    ordered, mixed = Learned(BRANCHES), Learned(BRANCHES)
    for case, other in zip(taken, shuffled, strict=True):
        ordered.observe_case(StepId("fork"), case, 50.0)
        mixed.observe_case(StepId("fork"), other, 50.0)
    chances = ordered.case_probabilities(StepId("fork"), 80.0)
    assert chances == mixed.case_probabilities(StepId("fork"), 80.0)
    assert math.fsum(chances.values()) == pytest.approx(1)
    assert min(chances.values()) > 0


def test_s11_evidence_moves_the_prior_and_fades() -> None:
    learned = Learned(BRANCHES)
    for _ in range(20):
        learned.observe_case(StepId("fork"), "left", 0.0)
    assert learned.case_probabilities(StepId("fork"), 0.0)["left"] == pytest.approx((8 + 20) / 40)
    assert learned.case_probabilities(StepId("fork"), 3600.0)["left"] == pytest.approx((8 + 10) / 30)


@given(st.integers(0, 2**32))
def test_s12_names_do_not_matter(seed: int) -> None:
    renamed = a_workflow(
        code("zz"),
        code("b", "zz", case=("a", "left")),
        code("c", "zz", case=("a", "right")),
        code("d", "b|c"),
        switches=(a_switch("a", "zz", left=0.4, right=0.6),),
    )
    plain = sample(BRANCHES, True, jittery, declared(BRANCHES), Random(seed), 64)
    other = sample(renamed, True, jittery, declared(renamed), Random(seed), 64)
    for step, name in zip(BRANCHES.steps, renamed.steps, strict=True):
        assert plain.remaining_s(step.id, {}, 0.8) == other.remaining_s(name.id, {}, 0.8)


@given(st.integers(0, 2**32))
def test_s12_a_case_without_a_chance_changes_nothing(seed: int) -> None:
    wider = a_workflow(
        code("first"),
        code("left", "first", case=("fork", "left")),
        code("never", "first", case=("fork", "never")),
        code("right", "first", case=("fork", "right")),
        code("last", "left|never|right"),
        switches=(a_switch("fork", "first", left=0.4, never=0.0, right=0.6),),
    )
    plain = sample(BRANCHES, True, jittery, declared(BRANCHES), Random(seed), 64)
    other = sample(wider, True, jittery, declared(wider), Random(seed), 64)
    assert plain.path_s(0.8) == other.path_s(0.8)
    for step in BRANCHES.steps:
        assert plain.remaining_s(step.id, {}, 0.8) == other.remaining_s(step.id, {}, 0.8)


# --- branches against a run told forward -----------------------------------------------------------------


@st.composite
def branching(draw: st.DrawFn) -> Workflow:
    """Random steps with switches, cases inside cases, alternatives and optional inputs."""
    nodes: list[Node] = [code("n0")]
    switches: list[Switch] = []
    for index in range(1, draw(st.integers(2, 8))):
        known = [node.id for node in nodes]
        case = draw(st.sampled_from([None, *((s.id, c.name) for s in switches for c in s.cases)]))
        reads = [
            "|".join(draw(st.permutations(known))[: draw(st.integers(1, 3))])
            for _ in range(draw(st.integers(0, 2)))
        ]
        reads = [text + "?" * draw(st.booleans()) for text in reads]
        nodes.append(code(f"n{index}", *reads, case=case))
        if draw(st.booleans()):
            inside = draw(st.sampled_from([None, *((s.id, c.name) for s in switches for c in s.cases)]))
            switches.append(a_switch(f"s{index}", draw(st.sampled_from(known)), inside, yes=0.5, no=0.5))
    ends = [f"{node.id}?" for node in nodes]
    return a_workflow(*nodes, code("out", *ends), switches=tuple(switches))


@given(branching(), st.data())
def test_a_step_that_takes_for_ever_ends_its_run_when_its_remaining_time_says(
    workflow: Workflow, data: st.DataObject
) -> None:
    """What comes after a step is found by making it the last of all and telling the run forward."""
    cases = {s.id: data.draw(st.sampled_from(["yes", "no"])) for s in workflow.switches}
    times = {node.id: data.draw(st.integers(0, 9)) for node in workflow.nodes}
    sure = a_workflow(*workflow.nodes, switches=tuple(_certain(s, cases[s.id]) for s in workflow.switches))
    for node in workflow.nodes:
        slowed = {**times, node.id: 10_000}
        ends = _tell_forward(sure, slowed, cases)
        expected = ends[sure.output] - ends[node.id]
        if node.id in _running(sure, cases) and expected >= 0:
            outlook = imagine(sure, {step: float(time) for step, time in slowed.items()}, scenarios=2)
            assert outlook.remaining_s(node.id, {}, 0.5) == expected


def _certain(switch: Switch, taken: str) -> Switch:
    return replace(switch, cases=tuple(replace(c, probability=float(c.name == taken)) for c in switch.cases))


def _running(workflow: Workflow, cases: Mapping[StepId, str]) -> set[StepId]:
    running: set[StepId] = set()
    for step in workflow.graph.order:
        if _cause_of_skip(workflow, step, cases, running) is None:
            running.add(step)
    return running


def _cause_of_skip(
    workflow: Workflow, step: StepId, cases: Mapping[StepId, str], running: set[StepId]
) -> tuple[StepId, ...] | None:
    case = workflow.graph.case_by_step[step]
    if case is not None and cases[case.switch] != case.case:
        return (case.switch,)
    needs = workflow.graph.needs_by_step[step]
    lacking = (n.any_of for n in needs if not n.optional and not any(s in running for s in n.any_of))
    return next(lacking, None)


def _tell_forward(
    workflow: Workflow, times: Mapping[StepId, int], cases: Mapping[StepId, str]
) -> dict[StepId, int]:
    """When every step is over in a run that begins at 0: skipped, or ended."""
    running, ends = _running(workflow, cases), dict[StepId, int]()
    for step in workflow.graph.order:
        cause = _cause_of_skip(workflow, step, cases, running)
        if cause is not None:
            ends[step] = max(ends[source] for source in cause)
            continue
        start = 0
        for need in workflow.graph.needs_by_step[step]:
            for source in need.any_of:
                start = max(start, ends[source])
                if source in running:
                    break
        ends[step] = start + times.get(step, 0)
    return ends


# --- examples --------------------------------------------------------------------------------------------


def test_two_nodes() -> None:
    outlook = imagine(a_workflow(code("one"), code("two", "one")), {"one": 0.3, "two": 0.1})
    one, two = StepId("one"), StepId("two")
    at_start = grant(0.0, 2.0, 0.3, outlook, one, {})
    assert (at_start.due_s, at_start.slack_s, at_start.budget_s) == pytest.approx((1.9, 1.9, 1.5))
    on_time = grant(0.5, 2.0, 0.1, outlook, two, {})
    assert (on_time.slack_s, on_time.budget_s) == pytest.approx((1.5, 1.5))
    assert grant(1.95, 2.0, 0.1, outlook, two, {}).slack_s == pytest.approx(0.05)


def test_a_run_without_an_slo_has_all_the_time_there_is() -> None:
    outlook = imagine(a_workflow(code("one"), code("two", "one")), {"two": 0.1})
    free = grant(5.0, math.inf, 0.0, outlook, StepId("one"), {})
    assert (free.due_s, free.slack_s, free.budget_s) == (math.inf, math.inf, math.inf)
    assert free.remaining_s == pytest.approx(0.1)


def test_a_case_once_taken_removes_the_others() -> None:
    outlook = imagine(BRANCHES, {"left": 1.0, "right": 3.0, "last": 0.5})
    first = StepId("first")
    assert outlook.remaining_s(first, {}, 0.2) == 1.5
    assert outlook.remaining_s(first, {}, 0.8) == 3.5
    assert outlook.remaining_s(first, {StepId("fork"): "left"}, 0.8) == 1.5


def test_a_rare_case_is_told_with_the_times_at_hand() -> None:
    rare = replace(BRANCHES, switches=(a_switch("fork", "first", left=0.0, right=1.0),))
    outlook = imagine(rare, {"left": 7.0, "right": 3.0, "last": 0.5})
    assert outlook.remaining_s(StepId("first"), {StepId("fork"): "left"}, 0.8) == 7.5
    assert outlook.remaining_s(StepId("left"), {}, 0.8) == 0.5


def test_a_branch_without_a_node_still_leads_to_the_rest() -> None:
    workflow = a_workflow(
        code("ask"),
        code("look", "ask", case=("need", "yes")),
        code("answer", "look?"),
        switches=(a_switch("need", "ask", yes=0.0, no=1.0),),
    )
    outlook = imagine(workflow, {"look": 5.0, "answer": 2.0})
    assert outlook.remaining_s(StepId("ask"), {}, 0.8) == 2.0


def test_a_join_waits_for_a_fan_out_no_longer_than_it_says() -> None:
    join = code("join", "fan")
    name, binding = join.inputs[0]
    join = replace(join, inputs=((name, replace(binding, gather=Gather(1, 0.3))),))
    workflow = a_workflow(
        code("plan"), replace(code("fan", "plan"), fan_out=code("x", max_items=3).fan_out), join
    )
    outlook = imagine(workflow, {"fan": 9.0, "join": 1.0})
    assert outlook.remaining_s(StepId("plan"), {}, 0.8) == pytest.approx(1.3)
    assert outlook.remaining_s(StepId("fan"), {}, 0.8) == 1.0


def test_only_the_output_under_a_first_token_promise_is_terminal() -> None:
    workflow = a_workflow(code("one"), code("two", "one"))
    assert imagine(workflow, {}).is_terminal(StepId("two"))
    assert not imagine(workflow, {}).is_terminal(StepId("one"))
    whole = sample(workflow, False, jittery, declared(workflow), Random(1), 4)
    assert not whole.is_terminal(StepId("two"))


def test_a_step_outside_its_case_is_made_to_run_when_asked_about() -> None:
    nested = a_workflow(
        code("a"),
        replace(code("b", "a"), case=CaseRef(StepId("inner"), "yes")),
        code("c", "b?"),
        switches=(
            a_switch("outer", "a", yes=0.0, no=1.0),
            a_switch("inner", "a", ("outer", "yes"), yes=0.0, no=1.0),
        ),
    )
    assert imagine(nested, {"b": 4.0, "c": 2.0}).remaining_s(StepId("b"), {}, 0.8) == 2.0
