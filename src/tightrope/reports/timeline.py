"""What the journal knows of one run: its steps, their attempts, and when each thing happened.

Owns gathering and cutting time into phases that add up. What to make of them is `explain.py`. All moments are
seconds since the arrival of the run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from tightrope.kernel.journal import Entry
from tightrope.model.ids import CallId, RunId, StepId, WorkflowId
from tightrope.model.messages import (
    CallDone,
    CallFailed,
    CancelCall,
    CaseTaken,
    Dispatch,
    FinishRun,
    FirstToken,
    Prepare,
    Prepared,
    PrepareFailed,
    ReplicaLost,
    RunCancelled,
    RunCode,
    RunSubmitted,
    Settlement,
    SettleStep,
    WorkflowDeployed,
)
from tightrope.model.outcome import Usage
from tightrope.model.workflow import Switch, Workflow
from tightrope.reports.fleet import FleetLine, FleetReader

Ending = Literal["done", "failed", "cancelled", "open"]


@dataclass(slots=True)
class Attempt:
    """One try of one item: a model call on a replica, or a function (`dispatch` is None)."""

    call: CallId
    item: int
    number: int
    started_s: float
    dispatch: Dispatch | None = None
    first_token_s: float | None = None
    ended_s: float | None = None
    ending: Ending = "open"
    why: str = ""
    usage: Usage = field(default_factory=Usage)
    was_repaired: bool = False

    @property
    def waited_s(self) -> float:
        """Seconds in the waiting line before this try."""
        return self.dispatch.waited_s if self.dispatch else 0.0


@dataclass(slots=True)
class StepFacts:
    """One node or switch. `settlement` is set when it did not simply succeed."""

    id: StepId
    is_switch: bool = False
    ready_s: float | None = None
    prepared_s: float | None = None
    items: int = 1
    attempts: list[Attempt] = field(default_factory=list)
    settlement: Settlement | None = None
    settled_s: float | None = None
    case: str | None = None
    failure: str = ""


@dataclass(slots=True)
class RunFacts:
    """One run. `finish` is None while it goes on; `until_s` is then the last moment the journal knows.

    `fleet` is what happened to the replicas of its models meanwhile.
    """

    submitted: RunSubmitted
    arrived_wall_s: float
    workflow: Workflow | None = None
    steps: dict[StepId, StepFacts] = field(default_factory=dict)
    finish: FinishRun | None = None
    until_s: float = 0.0
    cancelled_why: str = ""
    fleet: list[FleetLine] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Phases:
    """The seconds of a step, from ready to end; they add up to `used_s`."""

    prepare_s: float = 0.0
    queue_s: float = 0.0
    lost_s: float = 0.0
    """Attempts that failed, and the pauses after them."""
    prefill_s: float = 0.0
    """From dispatch to the first token, the engine's own waiting included."""
    decode_s: float = 0.0
    code_s: float = 0.0
    join_s: float = 0.0
    """Waiting for further items of a fan-out after the last one that counts had ended."""

    @property
    def used_s(self) -> float:
        """The whole."""
        return (
            self.prepare_s
            + self.queue_s
            + self.lost_s
            + self.prefill_s
            + self.decode_s
            + self.code_s
            + self.join_s
        )


def gather(entries: Iterable[Entry], run: RunId) -> RunFacts | None:
    """What a journal says of a run; None if it never arrived."""
    gathering = _Gathering(run)
    for entry in entries:
        gathering.take(entry)
    return gathering.facts


def end_of(step: StepFacts, until_s: float) -> float:
    """When readers of the step could go on; `until_s` if it never came so far."""
    ends = [attempt.ended_s for attempt in step.attempts if attempt.ended_s is not None]
    if step.settled_s is not None:
        return min(step.settled_s, until_s)
    if step.is_switch:
        return min(until_s if step.prepared_s is None else step.prepared_s, until_s)
    if not ends or any(attempt.ending == "open" for attempt in step.attempts):
        return until_s
    return min(max(ends), until_s)


def last_item(step: StepFacts, end_s: float) -> list[Attempt]:
    """The attempts of the item that ended last before the step did: the one the step waited for."""
    last_by_item: dict[int, float] = {}
    for attempt in step.attempts:
        last_by_item[attempt.item] = end_s if attempt.ended_s is None else attempt.ended_s
    if not last_by_item:
        return []
    counted = {item: at_s for item, at_s in last_by_item.items() if at_s <= end_s} or last_by_item
    item = max(counted, key=lambda index: (counted[index], index))
    return [attempt for attempt in step.attempts if attempt.item == item]


def phases(step: StepFacts, end_s: float) -> Phases:
    """The time of the step between ready and `end_s`, cut at what happened to the item it waited for."""
    if step.ready_s is None:
        return Phases()
    if step.prepared_s is None or step.prepared_s >= end_s:
        return Phases(prepare_s=max(0.0, end_s - step.ready_s))
    prepare_s = step.prepared_s - step.ready_s
    if step.is_switch:
        return Phases(prepare_s=prepare_s, join_s=end_s - step.prepared_s)
    attempts = last_item(step, end_s)
    if not attempts:
        return Phases(prepare_s=prepare_s, queue_s=end_s - step.prepared_s)
    return _cut(attempts, prepare_s, step.prepared_s, end_s)


def _cut(attempts: list[Attempt], prepare_s: float, cursor_s: float, end_s: float) -> Phases:
    queue_s = lost_s = prefill_s = decode_s = code_s = 0.0
    for attempt in attempts:
        started_s = min(attempt.started_s, end_s)
        ended_s = min(end_s if attempt.ended_s is None else attempt.ended_s, end_s)
        gap_s = max(0.0, started_s - cursor_s)
        in_line_s = min(gap_s, attempt.waited_s)
        queue_s += in_line_s
        lost_s += gap_s - in_line_s
        spent_s = max(0.0, ended_s - started_s)
        if attempt is not attempts[-1] or attempt.ending == "failed":
            lost_s += spent_s
        elif attempt.dispatch is None:
            code_s += spent_s
        else:
            first_s = ended_s if attempt.first_token_s is None else min(attempt.first_token_s, ended_s)
            prefill_s += first_s - started_s
            decode_s += ended_s - first_s
        cursor_s = max(cursor_s, ended_s)
    join_s = max(0.0, end_s - cursor_s)
    return Phases(prepare_s, queue_s, lost_s, prefill_s, decode_s, code_s, join_s)


class _Gathering:
    """Picks what concerns one run out of a stream of entries."""

    def __init__(self, run: RunId) -> None:
        self.facts: RunFacts | None = None
        self._run = run
        self._prefix = f"{run}/"
        self._origin_s = 0.0
        self._workflows: dict[WorkflowId, Workflow] = {}
        self._attempts: dict[CallId, Attempt] = {}
        self._fleet = FleetReader()

    def take(self, entry: Entry) -> None:
        line = self._fleet.take(entry)
        if line is not None:
            self._beside(line)
        match entry.message:
            case WorkflowDeployed(workflow=workflow):
                self._workflows[workflow.id] = workflow
            case RunSubmitted() as submitted if submitted.run == self._run:
                self._origin_s = entry.at_s
                self.facts = RunFacts(submitted, entry.wall_s, self._workflows.get(submitted.workflow))
            case _ if self.facts is not None and self.facts.finish is None:
                self._inside(self.facts, entry, entry.at_s - self._origin_s)

    def _beside(self, line: FleetLine) -> None:
        """Note what happens to the fleet while the run goes on, as far as it may matter to it."""
        if self.facts is None or self.facts.finish is not None:
            return
        workflow = self.facts.workflow
        if workflow is None or not line.model or line.model in workflow.models():
            self.facts.fleet.append(replace(line, at_s=line.at_s - self._origin_s))

    def _inside(self, facts: RunFacts, entry: Entry, at_s: float) -> None:
        match entry.message:
            case Prepare(run=run, step=step) if run == self._run:
                self._step(facts, step).ready_s = at_s
            case Prepared(run=run, step=step, items=items) if run == self._run:
                found = self._step(facts, step)
                found.prepared_s, found.items = at_s, len(items)
            case CaseTaken(run=run, step=step, case=case) if run == self._run:
                found = self._step(facts, step)
                found.prepared_s, found.case, found.is_switch = at_s, case, True
            case PrepareFailed(run=run, step=step, message=message) if run == self._run:
                found = self._step(facts, step)
                found.prepared_s, found.failure = at_s, message
            case SettleStep(run=run, step=step, settlement=settlement) if run == self._run:
                found = self._step(facts, step)
                found.settlement, found.settled_s = settlement, at_s
            case Dispatch() as dispatch if dispatch.run == self._run:
                attempt = Attempt(dispatch.call, dispatch.item, dispatch.attempt, at_s, dispatch)
                self._begin(facts, dispatch.step, attempt)
            case RunCode() as code if code.run == self._run:
                self._begin(facts, code.step, Attempt(code.call, code.item, code.attempt, at_s))
            case RunCancelled(run=run, why=why) if run == self._run:
                facts.cancelled_why = why
            case FinishRun() as finish if finish.run == self._run:
                facts.finish = finish
                at_s = finish.duration_s
            case FirstToken() | CallDone() | CallFailed() | CancelCall() | ReplicaLost():
                if not self._on_call(entry, at_s):
                    return
            case _:
                return
        facts.until_s = max(facts.until_s, at_s)

    def _on_call(self, entry: Entry, at_s: float) -> bool:
        """Note what happened to a call; False if it is none of this run's."""
        match entry.message:
            case ReplicaLost(replica=replica, why=why):
                for attempt in self._attempts.values():
                    if attempt.dispatch and attempt.dispatch.replica == replica and attempt.ended_s is None:
                        _end(attempt, at_s, "failed", f"replica_lost: {why}")
                return False
            case FirstToken(call=call) if call in self._attempts:
                self._attempts[call].first_token_s = at_s
            case CallDone(call=call, usage=usage, was_repaired=was_repaired) if call in self._attempts:
                _end(self._attempts[call], at_s, "done", "", usage)
                self._attempts[call].was_repaired = was_repaired
            case CallFailed() as failed if failed.call in self._attempts:
                why = f"{failed.failure.value}: {failed.message}"
                _end(self._attempts[failed.call], at_s, "failed", why, failed.usage)
            case CancelCall(call=call, why=why) if call in self._attempts:
                _end(self._attempts[call], at_s, "cancelled", why)
            case _:
                return False
        return True

    def _begin(self, facts: RunFacts, step: StepId, attempt: Attempt) -> None:
        self._step(facts, step).attempts.append(attempt)
        self._attempts[attempt.call] = attempt

    def _step(self, facts: RunFacts, step: StepId) -> StepFacts:
        if step not in facts.steps:
            known = facts.workflow.step_by_id.get(step) if facts.workflow else None
            facts.steps[step] = StepFacts(step, isinstance(known, Switch))
        return facts.steps[step]


def _end(attempt: Attempt, at_s: float, ending: Ending, why: str, usage: Usage | None = None) -> None:
    if attempt.ended_s is None:
        attempt.ended_s, attempt.ending, attempt.why = at_s, ending, why
        attempt.usage = usage or attempt.usage
