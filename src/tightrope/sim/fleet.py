"""The replicas of a simulation: ordered, up, slowed down, dead.

Owns their engines and when each is looked at. What the kernel is told about it is for `driver.py` to pass on.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from random import Random

from tightrope.model.fleet import ReplicaSpec
from tightrope.model.ids import AcceleratorName, CallId, ModelName, ReplicaId
from tightrope.model.messages import ReplicaLost, ReplicaReady
from tightrope.model.outcome import FailureKind
from tightrope.sim.agenda import Agenda, EngineMoment, ReplicaIsUp
from tightrope.sim.engine import Request, SimEngine
from tightrope.sim.world import Fault, Outage, Rented, Slowness, World


@dataclass(slots=True)
class _Seat:
    """A replica that is up. Of the moments noted for its engine, the one of this version counts."""

    engine: SimEngine
    kv_tokens: int
    version: int = 0
    armed_s: float = math.inf


class Fleet:
    """Engines in virtual time. What they say is noted in the agenda, `network_s` after they said it."""

    def __init__(self, world: World, agenda: Agenda) -> None:
        self._world = world
        self._agenda = agenda
        self._seats: dict[ReplicaId, _Seat] = {}
        self._orders: dict[ReplicaId, int] = {}
        self._ordered: Counter[ReplicaId] = Counter()
        self._versions = 0
        self._slow: dict[ModelName, float] = {}
        self._since: dict[ReplicaId, tuple[ReplicaSpec, float]] = {}
        self._rented: list[Rented] = []

    def rented(self) -> list[Rented]:
        """Every replica and for how long it was there, up to now."""
        now_s = self._agenda.now_s
        return [*self._rented, *(Rented(spec, from_s, now_s) for spec, from_s in self._since.values())]

    # --- lives -----------------------------------------------------------------------------------------

    def order(self, spec: ReplicaSpec, start_s: float) -> None:
        """A replica is to be up after this long."""
        self._ordered[spec.id] += 1
        order = self._orders[spec.id] = self._ordered[spec.id]
        if self._world.start_spread and start_s:
            chance = Random(f"{self._world.seed}/{spec.id}/{order}/start").uniform(-1.0, 1.0)
            start_s *= 1 + self._world.start_spread * chance
        self._since.setdefault(spec.id, (spec, self._agenda.now_s))
        self._agenda.note(self._agenda.now_s + start_s, ReplicaIsUp(spec, order))

    def come_up(self, happening: ReplicaIsUp) -> ReplicaReady | ReplicaLost | None:
        """The replica answers, or there is no card for it; None if the order has come to nothing meanwhile."""
        spec = happening.spec
        if self._orders.get(spec.id) != happening.order:
            return None
        if self._is_out(spec.accelerator):
            self.take_down(spec.id)
            return ReplicaLost(spec.id, f"there is no {spec.accelerator} to be had")
        del self._orders[spec.id]
        truth = self._world.truths[spec.model, spec.accelerator]
        rng = Random(f"{self._world.seed}/{spec.id}/{happening.order}")
        seat = self._seats[spec.id] = _Seat(
            SimEngine(truth, rng, now_s=self._agenda.now_s), truth.profile.kv_tokens
        )
        if spec.model in self._slow:
            seat.engine.slow_down(self._slow[spec.model], self._agenda.now_s)
        return ReplicaReady(spec.id, truth.profile.max_sequences)

    def take_down(self, replica: ReplicaId) -> bool:
        """End a replica, or the order for one; whether there was any."""
        was_ordered = self._orders.pop(replica, None) is not None
        spec, from_s = self._since.pop(replica, (None, 0.0))
        if spec is not None:
            self._rented.append(Rented(spec, from_s, self._agenda.now_s))
        return self._seats.pop(replica, None) is not None or was_ordered

    def strike(self, fault: Fault) -> ReplicaLost | None:
        """What happens to a replica happens; nothing to one that is away already."""
        if fault.kind == "die":
            return ReplicaLost(fault.replica, "it died") if self.take_down(fault.replica) else None
        seat = self._seats.get(fault.replica)
        if seat is not None:
            self._listen(seat)
            seat.engine.slow_down(fault.factor, self._agenda.now_s)
            self._arm(fault.replica, seat)
        return None

    def go_out(self, outage: Outage) -> list[ReplicaLost]:
        """No card of the kind is there any more: every replica on one is lost."""
        there = [
            replica for replica, (spec, _) in self._since.items() if spec.accelerator == outage.accelerator
        ]
        return [
            ReplicaLost(one, f"there is no {outage.accelerator} any more")
            for one in there
            if self.take_down(one)
        ]

    def slow_down(self, slowness: Slowness) -> None:
        """Every engine of the model is slow from now on, those to come included."""
        self._slow[slowness.model] = slowness.factor
        for replica, seat in self._seats.items():
            if self._since[replica][0].model == slowness.model:
                self._listen(seat)
                seat.engine.slow_down(slowness.factor, self._agenda.now_s)
                self._arm(replica, seat)

    def _is_out(self, card: AcceleratorName) -> bool:
        now_s = self._agenda.now_s
        return any(one.accelerator == card and one.from_s <= now_s < one.to_s for one in self._world.outages)

    # --- calls -----------------------------------------------------------------------------------------

    def submit(self, request: Request, replica: ReplicaId) -> FailureKind | None:
        """A request reaches its engine; why it is turned away, if it is."""
        seat = self._seats.get(replica)
        if seat is None:
            return FailureKind.REPLICA_LOST
        if request.prompt_tokens + request.output_tokens > seat.kv_tokens:
            return FailureKind.CONTEXT_TOO_LONG
        self._listen(seat)
        seat.engine.submit(request, self._agenda.now_s)
        self._arm(replica, seat)
        return None

    def cancel(self, call: CallId, replica: ReplicaId) -> None:
        """The engine stops working on a call, if it still does."""
        seat = self._seats.get(replica)
        if seat is not None:
            self._listen(seat)
            seat.engine.cancel(call, self._agenda.now_s)
            self._arm(replica, seat)

    def look_at(self, moment: EngineMoment) -> None:
        """Let an engine go on to this moment, and note its next one."""
        seat = self._seats.get(moment.replica)
        if seat is not None and seat.version == moment.version:
            self._listen(seat)
            self._arm(moment.replica, seat)

    def _listen(self, seat: _Seat) -> None:
        """Bring an engine to the present; what it said on the way is heard after the way back."""
        for said in seat.engine.advance(self._agenda.now_s):
            self._agenda.note(said.at_s + self._world.network_s, said)

    def _arm(self, replica: ReplicaId, seat: _Seat) -> None:
        """Note the engine's next moment, unless it is noted already. Versions are never used again."""
        next_s = seat.engine.next_s()
        if next_s == seat.armed_s and next_s > self._agenda.now_s:
            return
        self._versions += 1
        seat.version, seat.armed_s = self._versions, next_s
        if next_s < math.inf:
            self._agenda.note(next_s, EngineMoment(replica, seat.version))
