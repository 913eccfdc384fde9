"""The virtual driver: the kernel's commands carried out on simulated engines, in time that costs nothing.

Owns the order of events. It decides nothing: it answers commands as the live driver does, out of what was drawn
for the run beforehand (`workload.py`). What an engine does is `engine.py`, what a client sees `witness.py`.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import assert_never

from tightrope.kernel.journal import Head, command_line, event_line, head_line
from tightrope.kernel.kernel import Kernel
from tightrope.model.errors import InvalidInput, TightropeBug
from tightrope.model.fleet import FleetPlan, ReplicaSpec
from tightrope.model.ids import CallId, ReplicaId
from tightrope.model.messages import (
    AcceleratorRegistered,
    CallDone,
    CallFailed,
    CancelCall,
    CaseTaken,
    Command,
    Dispatch,
    Event,
    FinishRun,
    FirstToken,
    FleetPlanned,
    Item,
    Prepare,
    Prepared,
    ProfileLoaded,
    ReplicaLost,
    ReplicaReady,
    ReplicaStopped,
    RunCode,
    RunSubmitted,
    SettleStep,
    StartReplica,
    StopReplica,
    TenantRegistered,
    WakeAt,
    WakeKind,
    Woke,
    WorkflowDeployed,
)
from tightrope.model.outcome import FailureKind, Usage
from tightrope.model.workflow import Switch
from tightrope.sim.engine import FirstOut, LastOut, Request, SimEngine
from tightrope.sim.script import RunScript
from tightrope.sim.witness import Witness
from tightrope.sim.world import Fault, RunRecord, World

ABOUT_NO_RUN = (WakeKind.REPLICA_RESTART, WakeKind.REPLICA_READMIT, WakeKind.LEARN)
"""All other wake-ups are thrown away when their run has ended, as the live driver does."""


def simulate(
    world: World, scripts: Sequence[RunScript], journal: Callable[[str], None] | None = None
) -> list[RunRecord]:
    """Play every run to its end; the records are in the order of `scripts`.

    `journal` is given every line of the session as `kernel/journal.py` writes it. Equal arguments give equal
    records and lines. Raises InvalidInput when the world does not hold what the scripts or its faults name.
    """
    _refuse_what_does_not_fit(world, scripts)
    simulation = _Simulation(world, journal)
    simulation.begin()
    for script in scripts:
        simulation.later(script.at_s, script)
    record_by_run = simulation.play(len(scripts))
    return [record_by_run[script.run] for script in scripts]


def _refuse_what_does_not_fit(world: World, scripts: Sequence[RunScript]) -> None:
    for spec in world.replicas:
        if (spec.model, spec.accelerator) not in world.truths:
            raise InvalidInput(f"nothing says how {spec.model} behaves on {spec.accelerator}")
        if spec.accelerator not in world.start_s:
            raise InvalidInput(f"nothing says how long a replica takes to start on {spec.accelerator}")
    unknown: set[str] = set()
    unknown |= {fault.replica for fault in world.faults} - {spec.id for spec in world.replicas}
    unknown |= {script.workflow.id for script in scripts} - {workflow.id for workflow in world.workflows}
    unknown |= {script.tenant for script in scripts} - {tenant.id for tenant in world.tenants}
    if unknown:
        raise InvalidInput(f"the world does not hold {', '.join(sorted(unknown))}")
    if len({script.run for script in scripts}) < len(scripts):
        raise InvalidInput("two runs have the same id")


# --- what waits in the heap ------------------------------------------------------------------------------


@dataclass(slots=True)
class _Seat:
    """A replica that is up. At most one moment of its engine waits in the heap: the one of this version."""

    replica: ReplicaId
    engine: SimEngine
    kv_tokens: int
    version: int = 0
    armed_s: float = math.inf


@dataclass(frozen=True, slots=True)
class _EngineMoment:
    seat: _Seat
    version: int


@dataclass(frozen=True, slots=True)
class _Arrives:
    """A request reaches its engine."""

    request: Request
    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class _Leaves:
    """The word that a call is cancelled reaches its engine."""

    call: CallId
    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class _CodeEnds:
    call: CallId


@dataclass(frozen=True, slots=True)
class _IsUp:
    """A replica that was ordered answers, unless that order has come to nothing."""

    spec: ReplicaSpec
    order: int


_Waiting = (
    RunScript
    | _EngineMoment
    | _Arrives
    | _Leaves
    | FirstOut
    | LastOut
    | FirstToken
    | CallFailed
    | _CodeEnds
    | Woke
    | _IsUp
    | Fault
    | ReplicaStopped
)
"""FirstOut and LastOut wait for their way back from the engine, FirstToken for a slow telemetry."""


# --- the simulation --------------------------------------------------------------------------------------


class _Simulation:
    """One world under way. Everything happens in order of (time, serial), so that ties never depend on chance."""

    def __init__(self, world: World, journal: Callable[[str], None] | None) -> None:
        self._world = world
        self._journal = journal
        self._kernel = Kernel(world.settings)
        self._witness = Witness(world)
        self._limits = {tenant.id: tenant.limits for tenant in world.tenants}
        self._now_s = 0.0
        self._heap: list[tuple[float, int, _Waiting]] = []
        self._serial = 0
        self._inbox: deque[Event] = deque()
        self._seats: dict[ReplicaId, _Seat] = {}
        self._orders: dict[ReplicaId, int] = {}
        self._starts: dict[ReplicaId, int] = {}
        self._code: set[CallId] = set()
        self._records: list[RunRecord] = []

    def begin(self) -> None:
        """Tell the kernel what there is. The fleet that the world begins with is up at once."""
        world = self._world
        if self._journal is not None:
            self._journal(head_line(Head(world.settings, wall_s=0.0, at_s=0.0)))
        facts: list[Event] = [
            *(TenantRegistered(tenant) for tenant in world.tenants),
            *(AcceleratorRegistered(card) for card in world.accelerators),
            *(ProfileLoaded(profile) for profile in world.beliefs.values()),
            *(WorkflowDeployed(workflow) for workflow in world.workflows),
            FleetPlanned(FleetPlan(world.replicas)),
        ]
        for fact in facts:
            self._post(fact)
        for spec in world.replicas:
            self._is_up(spec, self._orders[spec.id])  # its order waits in the heap, and comes to nothing
        for fault in world.faults:
            self.later(fault.at_s, fault)

    def later(self, at_s: float, what: _Waiting) -> None:
        """Let something happen at this moment, after all that was already to happen then."""
        self._serial += 1
        heapq.heappush(self._heap, (at_s, self._serial, what))

    def play(self, runs: int) -> dict[str, RunRecord]:
        """Let time pass until so many runs have ended."""
        while len(self._records) < runs:
            if not self._heap:
                raise TightropeBug(f"{runs - len(self._records)} runs wait for nothing")
            self._now_s, _, what = heapq.heappop(self._heap)
            self._happen(what)
        return {record.run: record for record in self._records}

    def _happen(self, what: _Waiting) -> None:
        match what:
            case _EngineMoment(seat, version):
                if version == seat.version:
                    self._listen(seat)
                    self._arm(seat)
            case _Arrives(request, replica):
                self._arrives(request, replica)
            case FirstOut(call):
                self._first_out(call)
            case LastOut(call, cached_tokens=cached_tokens):
                self._last_out(call, cached_tokens)
            case Woke(wake):
                if wake.kind in ABOUT_NO_RUN or self._witness.is_open(wake.subject.partition("/")[0]):
                    self._post(what)
            case FirstToken(call):
                if self._witness.is_underway(call):
                    self._post(what)
            case RunScript():
                self._submit(what)
            case _CodeEnds(call):
                if call in self._code:
                    self._code.discard(call)
                    self._post(CallDone(call, Usage()))
            case _Leaves(call, replica):
                self._leaves(call, replica)
            case CallFailed(call):
                if self._witness.is_underway(call):
                    self._witness.gave_up(call)
                    self._post(what)
            case Fault():
                self._strike(what)
            case _IsUp(spec, order):
                self._is_up(spec, order)
            case ReplicaStopped():
                self._post(what)
            case _:
                assert_never(what)

    # --- the kernel ------------------------------------------------------------------------------------

    def _post(self, event: Event) -> None:
        """Give the kernel one fact; it and all that follows from it at once is done when this returns."""
        self._inbox.append(event)
        while self._inbox:
            self._turn(self._inbox.popleft())

    def _turn(self, event: Event) -> None:
        journal, now_s = self._journal, self._now_s
        if journal is not None:
            journal(event_line(event, now_s))
        for command in self._kernel.handle(event, now_s):
            if journal is not None:
                journal(command_line(command, now_s))
            self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        match command:
            case Prepare():
                self._inbox.append(self._prepared(command))
            case WakeAt(at_s, wake):
                self.later(max(at_s, self._now_s), Woke(wake))
            case Dispatch(replica=replica):
                request = self._witness.dispatched(command, self._now_s)
                self.later(self._now_s + self._world.network_s, _Arrives(request, replica))
            case RunCode(call, run, step, item):
                self._code.add(call)
                seconds = self._witness.run(run).calls[step][item].seconds
                self.later(self._now_s + seconds, _CodeEnds(call))
            case CancelCall(call):
                self._cancel(call)
            case FinishRun():
                self._records.append(self._witness.finished(command, self._now_s))
            case StartReplica(spec):
                self._order(spec)
            case StopReplica(replica):
                self._take_down(replica)
                self.later(self._now_s, ReplicaStopped(replica))
            case SettleStep():
                pass  # what readers get of a step is fixed in the script already
            case _:
                assert_never(command)

    # --- runs ------------------------------------------------------------------------------------------

    def _submit(self, script: RunScript) -> None:
        limits = self._limits[script.tenant]
        self._witness.submitted(script)
        self._post(
            RunSubmitted(
                run=script.run,
                tenant=script.tenant,
                workflow=script.workflow.id,
                slo=script.slo,
                deadline_s=limits.deadline_s,
                is_streamed=script.is_streamed,
                output_tokens=limits.output_tokens,
            )
        )

    def _prepared(self, command: Prepare) -> Event:
        script = self._witness.run(command.run)
        if isinstance(script.workflow.step_by_id[command.step], Switch):
            return CaseTaken(command.run, command.step, script.cases[command.step])
        items = tuple(Item(prompt_bytes=item.prompt_bytes) for item in script.calls[command.step])
        return Prepared(command.run, command.step, items)

    # --- calls -----------------------------------------------------------------------------------------

    def _arrives(self, request: Request, replica: ReplicaId) -> None:
        if not self._witness.is_underway(request.call):
            return
        seat = self._seats.get(replica)
        if seat is None:
            self._fail(request.call, FailureKind.REPLICA_LOST, "it went away before the call was made")
        elif request.prompt_tokens + request.output_tokens > seat.kv_tokens:
            self._fail(request.call, FailureKind.CONTEXT_TOO_LONG, "it does not fit the memory of the engine")
        else:
            self._listen(seat)
            seat.engine.submit(request, self._now_s)
            self._arm(seat)

    def _fail(self, call: CallId, failure: FailureKind, message: str) -> None:
        self.later(self._now_s + self._world.network_s, CallFailed(call, failure, message))

    def _first_out(self, call: CallId) -> None:
        if self._witness.is_underway(call):
            self._witness.began(call, self._now_s)
            self._told_late(FirstToken(call))

    def _told_late(self, event: FirstToken) -> None:
        if self._world.telemetry_s > 0:
            self.later(self._now_s + self._world.telemetry_s, event)
        else:
            self._post(event)

    def _last_out(self, call: CallId, cached_tokens: int) -> None:
        if self._witness.is_underway(call):
            self._post(CallDone(call, self._witness.ended(call, self._now_s, cached_tokens)))

    def _cancel(self, call: CallId) -> None:
        self._code.discard(call)
        if self._witness.is_underway(call):
            replica = self._witness.gave_up(call)
            self.later(self._now_s + self._world.network_s, _Leaves(call, replica))

    def _leaves(self, call: CallId, replica: ReplicaId) -> None:
        seat = self._seats.get(replica)
        if seat is not None:
            self._listen(seat)
            seat.engine.cancel(call, self._now_s)
            self._arm(seat)

    # --- replicas --------------------------------------------------------------------------------------

    def _listen(self, seat: _Seat) -> None:
        """Bring an engine to the present; what it said on the way is heard after the way back."""
        for out in seat.engine.advance(self._now_s):
            self.later(max(self._now_s, out.at_s + self._world.network_s), out)

    def _arm(self, seat: _Seat) -> None:
        next_s = seat.engine.next_s()
        if next_s == seat.armed_s and next_s > self._now_s:
            return
        seat.version += 1
        seat.armed_s = next_s
        if next_s < math.inf:
            self.later(next_s, _EngineMoment(seat, seat.version))

    def _order(self, spec: ReplicaSpec) -> None:
        self._serial += 1
        self._orders[spec.id] = self._serial
        self.later(self._now_s + self._world.start_s[spec.accelerator], _IsUp(spec, self._serial))

    def _is_up(self, spec: ReplicaSpec, order: int) -> None:
        if self._orders.get(spec.id) != order:
            return
        del self._orders[spec.id]
        truth = self._world.truths[spec.model, spec.accelerator]
        started = self._starts[spec.id] = self._starts.get(spec.id, 0) + 1
        rng = Random(f"{self._world.seed}/{spec.id}/{started}")
        engine = SimEngine(truth, rng, now_s=self._now_s)
        self._seats[spec.id] = _Seat(spec.id, engine, truth.profile.kv_tokens)
        self._post(ReplicaReady(spec.id, truth.profile.max_sequences))

    def _take_down(self, replica: ReplicaId) -> bool:
        """End a replica or the order for one; whether there was any."""
        was_ordered = self._orders.pop(replica, None) is not None
        seat = self._seats.pop(replica, None)
        if seat is not None:
            seat.version += 1
        return was_ordered or seat is not None

    def _strike(self, fault: Fault) -> None:
        if fault.kind == "die":
            if self._take_down(fault.replica):
                self._post(ReplicaLost(fault.replica, "it died"))
            return
        seat = self._seats.get(fault.replica)
        if seat is not None:
            self._listen(seat)
            seat.engine.slow_down(fault.factor, self._now_s)
            self._arm(seat)
