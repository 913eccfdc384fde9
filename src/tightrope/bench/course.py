"""The course of a run as it will really be: which steps must be done, and what each of them waits for.

Owns the reading of a script along the graph of its workflow. How long steps take on which machine, and until
when they must have ended, is `windows.py`. Steps of which the answer does not depend are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from tightrope.model.ids import ModelName, StepId
from tightrope.model.workflow import CodeCall, Gather, Graph, ModelCall, Need, Node
from tightrope.sim.script import CallScript, RunScript

PATIENCE_S = 15.0
"""How long a call is silent before its step may be given up for it: the kernel's default limit of silence, for
the first try and two more elsewhere."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a run that its answer waits for.

    `waits_for` are places in the course, all before this one. `items` are its calls, `needed` how many of them
    must end before the step has. `models` can serve them; a stage without models takes the `seconds` of its
    items, and one without items takes no time.
    """

    step: StepId
    waits_for: tuple[int, ...]
    items: tuple[CallScript, ...]
    needed: int
    models: tuple[ModelName, ...]


def course(
    script: RunScript, answer_tokens: int | None = None, patience_s: float = PATIENCE_S
) -> tuple[Stage, ...]:
    """The stages of a run in order, the output last; an answer ends after `answer_tokens` at most.

    A step whose failure does not fail the run, or a join that need not wait for all, counts as needed only in
    part if the limit that lets it go may pass before the run is due: a lower bound of what has to be done.
    Assumes that no call fails but by such a limit. `patience_s` is how long a silent call is waited for.
    """
    workflow = script.workflow
    graph = workflow.graph
    running = _running(graph, script.cases)
    waited = _waited(workflow.output, graph, script.cases, running)
    place_by_step = {step: place for place, step in enumerate(step for step in graph.order if step in waited)}
    limits = _Limits(patience_s, math.inf if script.slo.target_s is None else script.slo.target_s)
    nodes = [workflow.step_by_id[step] for step in place_by_step if step in running]
    is_open = any(isinstance(node, Node) and _may_be_skipped(node, limits) for node in nodes)
    stages = []
    for step in place_by_step:
        waits_for = tuple(place_by_step[source] for source in waited[step])
        stage = (
            _stage(script, step, waits_for, limits) if step in running else Stage(step, waits_for, (), 0, ())
        )
        is_certain = step == workflow.output or not is_open
        stages.append(stage if is_certain else replace(stage, needed=0))
    return (*stages[:-1], _cut(stages[-1], answer_tokens))


def _cut(answer: Stage, answer_tokens: int | None) -> Stage:
    if answer_tokens is None:
        return answer
    return replace(answer, items=tuple(_at_most(answer_tokens, item) for item in answer.items))


def _at_most(output_tokens: int, item: CallScript) -> CallScript:
    return replace(item, output_tokens=max(1, min(output_tokens, item.output_tokens)))


# --- what happens, and what it waits for -----------------------------------------------------------------


def _running(graph: Graph, cases: Mapping[StepId, str]) -> frozenset[StepId]:
    """The steps that are not skipped."""
    running: set[StepId] = set()
    for step in graph.order:
        if _is_case_taken(graph, step, cases) and not _missing(graph, step, running):
            running.add(step)
    return frozenset(running)


def _is_case_taken(graph: Graph, step: StepId, cases: Mapping[StepId, str]) -> bool:
    case = graph.case_by_step[step]
    return case is None or cases.get(case.switch) == case.case


def _missing(graph: Graph, step: StepId, running: AbstractSet[StepId]) -> list[Need]:
    """The needs that nobody meets; with one of them the step is skipped."""
    return [
        need for need in graph.needs_by_step[step] if not need.optional and running.isdisjoint(need.any_of)
    ]


def _waited(
    output: StepId, graph: Graph, cases: Mapping[StepId, str], running: AbstractSet[StepId]
) -> dict[StepId, tuple[StepId, ...]]:
    """For every step that the output waits for, itself included: the steps it waits for directly."""
    waited: dict[StepId, tuple[StepId, ...]] = {}
    todo = [output]
    while todo:
        step = todo.pop()
        if step not in waited:
            waited[step] = tuple(dict.fromkeys(_waits(graph, step, cases, running)))
            todo += waited[step]
    return waited


def _waits(
    graph: Graph, step: StepId, cases: Mapping[StepId, str], running: AbstractSet[StepId]
) -> Iterator[StepId]:
    """Of alternatives a step waits for the first that runs, and to learn that the ones before it do not.

    A skipped step is known to be skipped when its case is not taken or what it needs is skipped; where several
    reasons compete, the first of them may come at any time.
    """
    if step in running:
        for need in graph.needs_by_step[step]:
            yield from _until_met(need, running)
        return
    case = graph.case_by_step[step]
    missing = _missing(graph, step, running)
    if case is not None and case.switch in running and not _is_case_taken(graph, step, cases):
        if not missing:
            yield case.switch
    elif len(missing) == 1:
        yield from missing[0].any_of


def _until_met(need: Need, running: AbstractSet[StepId]) -> Iterator[StepId]:
    for source in need.any_of:
        yield source
        if source in running:
            return


# --- one stage -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Limits:
    """Seconds that a silent call is waited for, and that the whole run may take."""

    patience_s: float
    target_s: float

    def may_pass(self, *limits_s: float | None) -> bool:
        """Whether one of these limits, or patience, can pass in a run that is on time."""
        known = [self.patience_s, *(limit for limit in limits_s if limit is not None)]
        return min(known) < self.target_s


def _stage(script: RunScript, step: StepId, waits_for: tuple[int, ...], limits: _Limits) -> Stage:
    node = script.workflow.step_by_id[step]
    if not isinstance(node, Node):
        return Stage(step, waits_for, (), 0, ())
    items = script.calls[step]
    if node.fan_out is not None and node.fan_out.overflow == "cut":
        items = items[: node.fan_out.max_items]
    if isinstance(node.work, ModelCall):
        items = tuple(_at_most(node.work.max_tokens, item) for item in items)
    needed = _needed(script.workflow.graph, node, len(items), limits)
    return Stage(step, waits_for, items, needed, _models(node.work))


def _models(work: ModelCall | CodeCall) -> tuple[ModelName, ...]:
    if isinstance(work, CodeCall):
        return ()
    return (work.model,) if work.fallback is None else (work.model, work.fallback)


def _needed(graph: Graph, node: Node, items: int, limits: _Limits) -> int:
    """How many items must end for certain in a run that keeps its promise."""
    if node.on_error.action != "fail" and _may_be_given_up(node, limits):
        return 0
    rule = _rule(graph, node.id)
    if rule is None or rule.minimum is None:
        return items
    may_omit = _may_be_given_up(node, limits) or limits.may_pass(rule.within_s)
    return min(rule.minimum, items) if may_omit else items


def _may_be_given_up(node: Node, limits: _Limits) -> bool:
    own = node.timeouts
    return limits.may_pass(own.queue_s, own.attempt_s, own.total_s, own.idle_s)


def _may_be_skipped(node: Node, limits: _Limits) -> bool:
    """Whether the step may end without a result, and take steps with it that wait for one."""
    return node.fan_out is None and node.on_error.action == "skip" and _may_be_given_up(node, limits)


def _rule(graph: Graph, step: StepId) -> Gather | None:
    """How the readers of a fan-out join it: the most that one of them asks for, the shortest wait of any."""
    rules = [
        need.gather
        for reader in graph.readers_by_step[step]
        for need in graph.needs_by_step[reader]
        if step in need.any_of
    ]
    known = [rule for rule in rules if rule is not None and rule.minimum is not None]
    if not known or len(known) < len(rules):
        return None
    withins = [rule.within_s for rule in known if rule.within_s is not None]
    return Gather(max(rule.minimum or 0 for rule in known), min(withins, default=None))
