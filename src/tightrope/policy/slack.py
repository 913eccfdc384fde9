"""Slack: how much time each step of a run may take.

Owns the remaining time of a run, sampled over scenarios and computed backward over the graph, and what
follows from it: latest finish, slack and budget. How long single steps take is drawn by `learn.py`; which
replica gets a call is `route.py`; whether a run may enter is not asked here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from operator import add
from random import Random

from tightrope.model.ids import StepId
from tightrope.model.messages import Slack
from tightrope.model.workflow import Graph, Need, Workflow

SCENARIOS = 256
FEWEST = 32
"""With fewer scenarios than this that agree with a run, all are taken and its cases fixed in them."""

_NOWHERE = -math.inf


@dataclass(frozen=True, slots=True)
class Scenario:
    """One imagined run: the case every switch would take, and the time every step would need, in seconds.

    Times are there for every step, the ones that do not run in this scenario included, so that the same
    scenario can be told again with other cases.
    """

    case_by_switch: Mapping[StepId, str]
    seconds_by_step: Mapping[StepId, float]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What runs of one workflow may still have before them.

    Times are to the SLO event: the first content of the output node if `is_ttft`, else its end. Answers are
    quantiles over scenarios: of n values in order, the one at place ceil(q * n).
    """

    workflow: Workflow
    is_ttft: bool
    scenarios: tuple[Scenario, ...]
    _told: tuple[_Told, ...]
    _memo: dict[tuple[StepId, tuple[tuple[StepId, str], ...]], list[float]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def is_terminal(self, step: StepId) -> bool:
        """Does only the first token of this step count for the SLO?"""
        return self.is_ttft and step == self.workflow.output

    def remaining_s(self, step: StepId, decided: Mapping[StepId, str], quantile: float) -> float:
        """Seconds from the end of a step to the SLO event, in runs that decided these switches so.

        0 for the output node, and for a step that nothing on the way to the output waits for. With fewer than
        FEWEST scenarios in which the step runs and the cases agree, every scenario is told again with those
        cases fixed and the step made to run: the drawn times stay, so no chance is added.
        """
        key = (step, tuple(sorted(decided.items())) if decided else ())
        ordered = self._memo.get(key)
        if ordered is None:
            ordered = self._memo[key] = sorted(self._remaining(step, decided))
        return _at(ordered, quantile)

    def path_s(self, quantile: float) -> float:
        """Seconds of the whole way from the arrival of a run to its SLO event, steps alone."""
        ways_s = [
            max(steps_s) for told in self._told for steps_s in zip(*told.to_event_s.values(), strict=True)
        ]
        return _at(sorted(ways_s), quantile)

    def _remaining(self, step: StepId, decided: Mapping[StepId, str]) -> list[float]:
        agreeing = [
            told
            for told in self._told
            if step in told.running
            and all(told.taken_by_switch.get(switch) == case for switch, case in decided.items())
        ]
        if sum(told.count for told in agreeing) < FEWEST:
            fixed = {**_chain(self.workflow.graph, step), **decided}
            agreeing = list(_tell_all(self.workflow, self.scenarios, fixed, step))
        return [max(0.0, after_s) for told in agreeing for after_s in told.after_s[step]]


def sample(
    workflow: Workflow,
    is_ttft: bool,
    draw: Callable[[StepId, Random], float],
    probabilities: Callable[[StepId], Mapping[str, float]],
    rng: Random,
    scenarios: int = SCENARIOS,
) -> Outlook:
    """Imagine runs of a workflow. `draw` gives seconds for a step, `probabilities` the cases of a switch.

    Every scenario has a stream of chance of its own, and what runs in it is drawn first: a case that is never
    taken changes nothing, and with an equal `rng` longer times give longer remaining times, no reshuffle.
    """
    chances = {switch.id: probabilities(switch.id) for switch in workflow.switches}
    imagined = tuple(_imagine(workflow, draw, chances, Random(rng.getrandbits(64))) for _ in range(scenarios))
    return _outlook(workflow, is_ttft, imagined)


def sample_both(
    workflow: Workflow,
    draw: Callable[[StepId, Random], tuple[float, float]],
    probabilities: Callable[[StepId], Mapping[str, float]],
    rng: Random,
) -> tuple[Outlook, Outlook]:
    """The outlook to the first content and the one to the end, of the same imagined runs.

    `draw` gives the seconds of a step to its first token and to its end.
    """
    firsts_s: list[float] = []

    def whole(step: StepId, rng: Random) -> float:
        first_s, whole_s = draw(step, rng)
        if step == workflow.output:
            firsts_s.append(first_s)
        return whole_s

    e2e = sample(workflow, False, whole, probabilities, rng)
    imagined = tuple(
        Scenario(scenario.case_by_switch, {**scenario.seconds_by_step, workflow.output: first_s})
        for scenario, first_s in zip(e2e.scenarios, firsts_s, strict=True)
    )
    return _outlook(workflow, True, imagined), e2e


def grant(
    now_s: float,
    run_due_s: float,
    own_s: float,
    outlook: Outlook,
    step: StepId,
    decided: Mapping[StepId, str],
    quantile: float = 0.8,
) -> Slack:
    """What a step may take now, if the run is due at `run_due_s` and the step usually needs `own_s`.

    `due_s` is its latest finish; the budget is its share of the time left, between 0 and all of it. Without
    an SLO (`run_due_s` infinite) all of them are infinite.
    """
    remaining_s = outlook.remaining_s(step, decided, quantile)
    due_s = run_due_s - remaining_s
    typical_s = outlook.remaining_s(step, decided, 0.5)
    return Slack(
        due_s=due_s,
        slack_s=due_s - now_s,
        budget_s=budget_s(max(0.0, run_due_s - now_s), own_s, typical_s),
        remaining_s=remaining_s,
    )


def budget_s(left_s: float, own_s: float, remaining_s: float) -> float:
    """The share of the time left that a step gets, in proportion to its own need; 0/0 counts as 1."""
    whole_s = own_s + remaining_s
    if math.isinf(left_s) or whole_s <= 0:
        return left_s
    return min(left_s, left_s * (own_s / whole_s))


# --- one scenario ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Told:
    """All scenarios in which the switches go one way, worked out: who runs, which cases are taken, and how far the
    SLO event is in each of the `count`.

    `to_event_s` counts from the start of a step, `after_s` from its end; minus infinity where no way leads
    there.
    """

    count: int
    running: frozenset[StepId]
    taken_by_switch: Mapping[StepId, str]
    to_event_s: Mapping[StepId, Sequence[float]]
    after_s: Mapping[StepId, Sequence[float]]


@dataclass(frozen=True, slots=True)
class _Order:
    """Who runs if the switches go in one way, and who then waits for whom: (step, source, seconds at most)."""

    running: frozenset[StepId]
    taken_by_switch: Mapping[StepId, str]
    waits: tuple[tuple[StepId, StepId, float], ...]


def _outlook(workflow: Workflow, is_ttft: bool, scenarios: tuple[Scenario, ...]) -> Outlook:
    return Outlook(workflow, is_ttft, scenarios, _tell_all(workflow, scenarios, {}, None))


def _imagine(
    workflow: Workflow,
    draw: Callable[[StepId, Random], float],
    chances: Mapping[StepId, Mapping[str, float]],
    rng: Random,
) -> Scenario:
    cases = {switch.id: _pick(chances[switch.id], rng.random()) for switch in workflow.switches}
    running = _running(workflow, cases, None)
    order = workflow.graph.order
    seconds = {step: draw(step, rng) for step in order if step in running}
    seconds |= {step: draw(step, rng) for step in order if step not in running}
    return Scenario(cases, seconds)


def _pick(chance_by_case: Mapping[str, float], point: float) -> str:
    """The case in whose stretch of [0, 1) the point lies; never one without a chance."""
    possible = [(case, chance) for case, chance in chance_by_case.items() if chance > 0]
    for case, chance in possible:
        point -= chance
        if point < 0:
            return case
    return possible[-1][0] if possible else next(iter(chance_by_case))


def _tell_all(
    workflow: Workflow,
    scenarios: Iterable[Scenario],
    fixed: Mapping[StepId, str],
    forced: StepId | None,
) -> tuple[_Told, ...]:
    """Work scenarios out backward, with some cases fixed and one step made to run.

    They differ in their times; who waits for whom is the same in all whose switches go the same way.
    """
    alike: dict[tuple[str, ...], list[Scenario]] = {}
    for scenario in scenarios:
        cases = {**scenario.case_by_switch, **fixed}
        alike.setdefault(tuple(cases[switch.id] for switch in workflow.switches), []).append(scenario)
    return tuple(
        _tell(workflow, found, _order(workflow, {**found[0].case_by_switch, **fixed}, forced))
        for found in alike.values()
    )


def _order(workflow: Workflow, cases: Mapping[StepId, str], forced: StepId | None) -> _Order:
    graph = workflow.graph
    running = _running(workflow, cases, forced)
    taken = {switch.id: cases[switch.id] for switch in workflow.switches if switch.id in running}
    waits = tuple(
        (step, source, within_s)
        for step in reversed(graph.order)
        for source, within_s in _waits(graph, step, cases, running)
    )
    return _Order(running, taken, waits)


def _tell(workflow: Workflow, scenarios: Sequence[Scenario], order: _Order) -> _Told:
    nowhere = [_NOWHERE] * len(scenarios)
    to_event: dict[StepId, Sequence[float]] = dict.fromkeys(workflow.graph.order, nowhere)
    after = to_event.copy()
    after[workflow.output] = [0.0] * len(scenarios)
    to_event[workflow.output] = [scenario.seconds_by_step[workflow.output] for scenario in scenarios]
    for step, source, within_s in order.waits:
        ahead = to_event[step]
        after[source] = list(map(max, after[source], ahead))
        if source in order.running:
            lasts = (min(scenario.seconds_by_step[source], within_s) for scenario in scenarios)
            ahead = list(map(add, lasts, ahead))
        to_event[source] = list(map(max, to_event[source], ahead))
    return _Told(len(scenarios), order.running, order.taken_by_switch, to_event, after)


def _running(workflow: Workflow, cases: Mapping[StepId, str], forced: StepId | None) -> frozenset[StepId]:
    """The steps that are not skipped if the switches go like this."""
    graph = workflow.graph
    running: set[StepId] = set()
    for step in graph.order:
        if step == forced or (_is_case_taken(graph, step, cases) and not _missing(graph, step, running)):
            running.add(step)
    return frozenset(running)


def _is_case_taken(graph: Graph, step: StepId, cases: Mapping[StepId, str]) -> bool:
    case = graph.case_by_step[step]
    return case is None or cases[case.switch] == case.case


def _missing(graph: Graph, step: StepId, running: AbstractSet[StepId]) -> Need | None:
    """The first need that nobody meets, for which the step is skipped."""
    for need in graph.needs_by_step[step]:
        if not need.optional and running.isdisjoint(need.any_of):
            return need
    return None


def _waits(
    graph: Graph, step: StepId, cases: Mapping[StepId, str], running: AbstractSet[StepId]
) -> Iterator[tuple[StepId, float]]:
    """The steps whose end this one waits for, and for how long since their start at most.

    Of alternatives it waits for the first that runs, and to learn that the ones before it do not. A skipped
    step takes no time, but is known to be skipped only when what skips it is done.
    """
    if step in running:
        for need in graph.needs_by_step[step]:
            within_s = need.gather.within_s if need.gather is not None else None
            for source in need.any_of:
                yield source, math.inf if within_s is None else within_s
                if source in running:
                    break
        return
    case = graph.case_by_step[step]
    if case is not None and not _is_case_taken(graph, step, cases):
        yield case.switch, math.inf
        return
    missing = _missing(graph, step, running)
    if missing is not None:
        yield from ((source, math.inf) for source in missing.any_of)


def _chain(graph: Graph, step: StepId) -> dict[StepId, str]:
    """The cases that must have been taken for the step to run, from the inside out."""
    found: dict[StepId, str] = {}
    case = graph.case_by_step[step]
    while case is not None:
        found[case.switch] = case.case
        case = graph.case_by_step[case.switch]
    return found


def _at(ordered: list[float], quantile: float) -> float:
    # The subtraction keeps a product such as 0.8 * 5, which may round upward, at its own place.
    place = math.ceil(quantile * len(ordered) - 1e-9)
    return ordered[min(max(place, 1), len(ordered)) - 1]
