"""The agenda: all that is still to happen in a simulation, in order of (time, serial).

Owns virtual time. Ties are broken by who was noted first, never by chance (as in simpy). What happening means is
`driver.py` and `fleet.py`.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from tightrope.model.fleet import ReplicaSpec
from tightrope.model.ids import CallId, ReplicaId
from tightrope.model.messages import CallFailed, FirstToken, ReplicaStopped, Woke
from tightrope.sim.engine import FirstOut, LastOut, Request
from tightrope.sim.script import RunScript
from tightrope.sim.world import Fault, Outage, Slowness


@dataclass(frozen=True, slots=True)
class EngineMoment:
    """Something may happen in an engine, unless a later moment was noted for it since."""

    replica: ReplicaId
    version: int


@dataclass(frozen=True, slots=True)
class RequestArrives:
    """A request reaches its engine."""

    request: Request
    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class CancelArrives:
    """The word that a call is given up reaches its engine."""

    call: CallId
    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class CodeEnds:
    """The function of a code node returns."""

    call: CallId


@dataclass(frozen=True, slots=True)
class ReplicaIsUp:
    """A replica that was ordered (its `order`-th time) answers, unless that order has come to nothing."""

    spec: ReplicaSpec
    order: int


Happening = (
    RunScript
    | EngineMoment
    | RequestArrives
    | CancelArrives
    | FirstOut
    | LastOut
    | FirstToken
    | CallFailed
    | CodeEnds
    | Woke
    | ReplicaIsUp
    | Fault
    | Outage
    | Slowness
    | ReplicaStopped
)
"""A run arrives with its script. FirstOut, LastOut and CallFailed are on their way back from an engine, a
FirstToken is held up by slow telemetry."""


class Agenda:
    """A heap of happenings, and the moment of the latest one taken out of it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Happening]] = []
        self._serial = 0

    def note(self, at_s: float, what: Happening) -> None:
        """Let this happen at a moment, now at the earliest, and after all that was already to happen then."""
        self._serial += 1
        heapq.heappush(self._heap, (max(at_s, self.now_s), self._serial, what))

    def next(self) -> Happening | None:
        """Go to the next moment; what happens there. None when nothing is to happen any more."""
        if not self._heap:
            return None
        self.now_s, _, what = heapq.heappop(self._heap)
        return what
