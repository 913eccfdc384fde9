"""What is promised to a run: a multiple of the time it would take if it were alone.

Owns the time to first content without contention, by the closed form of the step-time model, and the SLO made of
it. Whether a run kept its promise is `world.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from tightrope.model.ids import ModelName, StepId
from tightrope.model.profile import Profile
from tightrope.model.slo import Slo
from tightrope.model.workflow import ModelCall, Node
from tightrope.sim.script import RunScript

Cards = Mapping[ModelName, Sequence[Profile]]
"""The kinds of cards that a fleet has for each model, as they really are."""


@dataclass(frozen=True, slots=True)
class Promise:
    """ttft = stretch * (scale * time without contention + buffer); `tpot_s` None promises nothing about gaps.

    The time is that of the run itself, with its true lengths and cases, or ("workflow") the mean over all runs
    of its workflow in the same load.
    """

    scale: float = 2.0
    buffer_s: float = 0.5
    tpot_s: float | None = 0.1
    per: Literal["run", "workflow"] = "run"
    stretch: float = 1.0

    def ttft_s(self, without_contention_s: float) -> float:
        """What is promised when this is the time to first content without contention."""
        return self.stretch * (self.scale * without_contention_s + self.buffer_s)


def promised(scripts: Sequence[RunScript], promise: Promise, cards: Cards) -> list[RunScript]:
    """The same runs, each with what it is promised on a fleet of these cards."""
    alone = [alone_s(script, cards) for script in scripts]
    if promise.per == "workflow":
        alone = _means(scripts, alone)
    return [replace(script, slo=slo_of(promise, own_s)) for script, own_s in zip(scripts, alone, strict=True)]


def slo_of(promise: Promise, without_contention_s: float) -> Slo:
    """What is promised when this is the time to first content without contention."""
    return Slo(ttft_s=promise.ttft_s(without_contention_s), tpot_s=promise.tpot_s)


def alone_s(script: RunScript, cards: Cards) -> float:
    """Seconds until the first content of a run with the whole fleet to itself: every call on its best card.

    The longest way through the steps that this run takes; a join waits for every item. Raises KeyError for a
    model without a card.
    """
    graph = script.workflow.graph
    ends_s: dict[StepId, float] = {}
    running: set[StepId] = set()
    for step in graph.order:
        starts_s, runs = _start(script, step, ends_s, running)
        ends_s[step] = starts_s
        if runs:
            running.add(step)
            ends_s[step] += _own_s(script, step, cards)
    return ends_s[script.workflow.output]


def _start(
    script: RunScript, step: StepId, ends_s: Mapping[StepId, float], running: set[StepId]
) -> tuple[float, bool]:
    """When the step starts, or is known to be skipped, and which of the two. Reads steps before it in order."""
    graph = script.workflow.graph
    case = graph.case_by_step[step]
    if case is not None and (case.switch not in running or script.cases[case.switch] != case.case):
        return ends_s[case.switch], False
    waits_s = [0.0]
    for need in graph.needs_by_step[step]:
        for source in need.any_of:
            waits_s.append(ends_s[source])
            if source in running:
                break
        else:
            if not need.optional:
                return max(ends_s[source] for source in need.any_of), False
    return max(waits_s), True


def _own_s(script: RunScript, step: StepId, cards: Cards) -> float:
    found = script.workflow.step_by_id[step]
    if not isinstance(found, Node):
        return 0.0
    is_first_enough = step == script.workflow.output and script.is_read_along
    items_s = [0.0]
    for item in script.calls[step]:
        if not isinstance(found.work, ModelCall):
            items_s.append(item.seconds)
            continue
        output = min(item.output_tokens, found.work.max_tokens)
        ms = (
            card.solo_ttft_ms(item.prompt_tokens)
            if is_first_enough
            else card.solo_ms(item.prompt_tokens, output)
            for card in cards[found.work.model]
        )
        items_s.append(min(ms) / 1000)
    return max(items_s)


def _means(scripts: Sequence[RunScript], alone: Sequence[float]) -> list[float]:
    by_workflow: dict[str, list[float]] = {}
    for script, own_s in zip(scripts, alone, strict=True):
        by_workflow.setdefault(script.workflow.id, []).append(own_s)
    mean_by_workflow = {workflow: fmean(found) for workflow, found in by_workflow.items()}
    return [mean_by_workflow[script.workflow.id] for script in scripts]
