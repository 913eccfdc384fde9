"""A session with a fleet that follows the load, read from its journal: runs, replicas over time, what was lost.

Owns the figures. Playing the session is `app/elastic_bench.py`, the picture is `elastic_plot.py`. Moments are seconds
since the session began.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tightrope.kernel.journal import Entry
from tightrope.model.fleet import ReplicaSpec
from tightrope.model.ids import AcceleratorName, CallId, ReplicaId, RunId
from tightrope.model.messages import (
    AcceleratorRegistered,
    CallDone,
    CallFailed,
    CancelCall,
    Dispatch,
    FinishRun,
    NoteScaling,
    ReplicaLost,
    ReplicaReady,
    ReplicaStopped,
    RunSubmitted,
    StartReplica,
    StopReplica,
)
from tightrope.model.outcome import FailureKind, Outcome, Verdict
from tightrope.reports.scaling import sentence

LOST = (Outcome.CANCELLED, Outcome.EXPIRED, Outcome.REJECTED)
"""Runs that end like this were let down by the fleet; a time limit of their own workflow is another matter."""
GONE = (FailureKind.REPLICA_LOST, FailureKind.STALLED)


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the session with a name."""

    name: str
    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True)
class PlayedRun:
    """One run. `ttft_s` and `promise_s` (the time to its first token) are None where there was none."""

    at_s: float
    workflow: str
    outcome: str
    verdict: str
    duration_s: float
    ttft_s: float | None
    promise_s: float | None


@dataclass(frozen=True, slots=True)
class Count:
    """From this moment on so many replicas of a model on one kind of card are ready, and so many starting."""

    at_s: float
    model: str
    accelerator: str
    ready: int
    starting: int


@dataclass(frozen=True, slots=True)
class Start:
    """A replica came up, `took_s` after its order."""

    at_s: float
    model: str
    accelerator: str
    took_s: float


@dataclass(frozen=True, slots=True)
class Said:
    """What the provisioner did or refused, in words."""

    at_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Elastic:
    """The whole session. `aborted_calls` were on a replica when it was ended or lost; `lost_runs` have no answer for
    want of one. `usd` is what the cards cost from order to end, `usd_at_most` what as many as there were at once would
    have cost all the time."""

    parts: tuple[Part, ...]
    runs: tuple[PlayedRun, ...]
    counts: tuple[Count, ...]
    starts: tuple[Start, ...]
    said: tuple[Said, ...]
    outcomes: tuple[tuple[str, int], ...]
    met: int
    promised: int
    aborted_calls: int
    lost_runs: int
    usd: float
    usd_at_most: float

    @property
    def is_sound(self) -> bool:
        """Whether nothing was lost and nothing aborted."""
        return not self.aborted_calls and not self.lost_runs

    def part(self, name: str) -> Part:
        """The part of this name."""
        return next(part for part in self.parts if part.name == name)

    def runs_of(self, name: str) -> list[PlayedRun]:
        """The runs that arrived in this part."""
        part = self.part(name)
        return [run for run in self.runs if part.from_s <= run.at_s < part.to_s]


def elastic(entries: Iterable[Entry], began_s: float, parts: Sequence[Part]) -> Elastic:
    """The figures of a session whose first part began at `began_s` of the journal's clock."""
    reading = _Reading(began_s)
    for entry in entries:
        reading.take(entry)
    end_s = max(part.to_s for part in parts)
    runs = sorted(reading.runs.values(), key=lambda run: run.at_s)
    judged = [run for run in runs if run.verdict != Verdict.NONE]
    usd, most_usd_per_h = _cost(reading, end_s)
    return Elastic(
        parts=tuple(parts),
        runs=tuple(runs),
        counts=tuple(reading.counts),
        starts=tuple(reading.starts),
        said=tuple(reading.said),
        outcomes=tuple(sorted(Counter(run.outcome for run in runs).items())),
        met=sum(run.verdict == Verdict.MET for run in judged),
        promised=len(judged),
        aborted_calls=reading.aborted,
        lost_runs=len(reading.submitted) + len(reading.let_down),
        usd=usd,
        usd_at_most=most_usd_per_h * end_s / 3600,
    )


@dataclass(slots=True)
class _Reading:
    """`submitted` are runs that have not ended, `let_down` those that ended without an answer for want of a replica."""

    began_s: float
    submitted: dict[RunId, tuple[float, RunSubmitted]] = field(default_factory=dict)
    runs: dict[RunId, PlayedRun] = field(default_factory=dict)
    let_down: set[RunId] = field(default_factory=set)
    counts: list[Count] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    prices: dict[AcceleratorName, float] = field(default_factory=dict)
    rented: list[tuple[AcceleratorName, float, float]] = field(default_factory=list)
    aborted: int = 0
    ordered: dict[ReplicaId, tuple[ReplicaSpec, float]] = field(default_factory=dict)
    ready: set[ReplicaId] = field(default_factory=set)
    held: dict[CallId, ReplicaId] = field(default_factory=dict)

    def take(self, entry: Entry) -> None:
        at_s = entry.at_s - self.began_s
        match entry.message:
            case AcceleratorRegistered(card):
                self.prices[card.name] = card.usd_per_h
            case RunSubmitted() as arrived if at_s >= 0:
                self.submitted[arrived.run] = (at_s, arrived)
            case FinishRun() as finish if finish.run in self.submitted:
                self._finished(finish)
            case Dispatch(call=call, replica=replica):
                self.held[call] = replica
            case CallDone(call) | CallFailed(call) | CancelCall(call):
                self.held.pop(call, None)
            case NoteScaling() as note:
                self.said.append(Said(at_s, sentence(note)))
            case StartReplica(spec):
                self.ordered[spec.id] = (spec, at_s)
                self._count(spec, at_s)
            case ReplicaReady(replica) if replica in self.ordered:
                spec, from_s = self.ordered[replica]
                self.ready.add(replica)
                self.starts.append(Start(at_s, spec.model, spec.accelerator, at_s - from_s))
                self._count(spec, at_s)
            case ReplicaLost(replica) | StopReplica(replica) if replica in self.ordered:
                self._gone(replica, at_s)
            case ReplicaStopped():
                pass  # it was counted as gone when it was told to stop
            case _:
                pass

    def _finished(self, finish: FinishRun) -> None:
        at_s, arrived = self.submitted.pop(finish.run)
        self.runs[finish.run] = PlayedRun(
            at_s=at_s,
            workflow=finish.workflow.rpartition("@")[0] or finish.workflow,
            outcome=finish.outcome.value,
            verdict=finish.verdict.value,
            duration_s=finish.duration_s,
            ttft_s=finish.ttft_s,
            promise_s=arrived.slo.ttft_s,
        )
        if finish.outcome in LOST or finish.failure in GONE:
            self.let_down.add(finish.run)

    def _gone(self, replica: ReplicaId, at_s: float) -> None:
        spec, from_s = self.ordered.pop(replica)
        self.ready.discard(replica)
        self.rented.append((spec.accelerator, from_s, at_s))
        self.aborted += sum(holder == replica for holder in self.held.values())
        self._count(spec, at_s)

    def _count(self, spec: ReplicaSpec, at_s: float) -> None:
        mine = [
            replica
            for replica, (other, _) in self.ordered.items()
            if (other.model, other.accelerator) == (spec.model, spec.accelerator)
        ]
        ready = sum(replica in self.ready for replica in mine)
        self.counts.append(Count(at_s, spec.model, spec.accelerator, ready, len(mine) - ready))


def _cost(reading: _Reading, end_s: float) -> tuple[float, float]:
    """What was paid in all (USD), and the most per hour."""
    rented = [*reading.rented, *((spec.accelerator, at_s, end_s) for spec, at_s in reading.ordered.values())]
    usd = sum(reading.prices[card] * max(0.0, to_s - from_s) / 3600 for card, from_s, to_s in rented)
    changes: dict[float, float] = {}
    for card, from_s, to_s in rented:
        changes[from_s] = changes.get(from_s, 0.0) + reading.prices[card]
        changes[to_s] = changes.get(to_s, 0.0) - reading.prices[card]
    price = most = 0.0
    for at_s in sorted(changes):
        price += changes[at_s]
        most = max(most, price)
    return usd, most


def steps(
    counts: Sequence[Count], end_s: float
) -> Mapping[tuple[str, str], tuple[list[float], list[int], list[int]]]:
    """By model and card: moments, and how many are ready and starting from each on; from 0 to the end."""
    found: dict[tuple[str, str], tuple[list[float], list[int], list[int]]] = {}
    for one in counts:
        moments, ready, starting = found.setdefault((one.model, one.accelerator), ([0.0], [0], [0]))
        moments.append(max(0.0, one.at_s))
        ready.append(one.ready)
        starting.append(one.starting)
    for moments, ready, starting in found.values():
        moments.append(end_s)
        ready.append(ready[-1])
        starting.append(starting[-1])
    return dict(sorted(found.items()))
