"""The virtual driver: the kernel's commands carried out on simulated engines, in time that costs nothing.

Owns the order of events. It decides nothing: it answers commands as the live driver does, out of what was drawn
for the run beforehand. Time is `agenda.py`, replicas are `fleet.py`, what clients see is `witness.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import assert_never

from tightrope.kernel.journal import Head, command_line, event_line, head_line
from tightrope.kernel.kernel import Kernel
from tightrope.model.errors import InvalidInput, TightropeBug
from tightrope.model.fleet import FleetPlan
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
    NoteScaling,
    Prepare,
    Prepared,
    ProfileLoaded,
    ProvisioningSet,
    ReplicaStopped,
    RunCode,
    RunSubmitted,
    SettleStep,
    StartReplica,
    StopReplica,
    TenantRegistered,
    Wake,
    WakeAt,
    WakeKind,
    Woke,
    WorkflowDeployed,
)
from tightrope.model.outcome import FailureKind, Usage
from tightrope.model.workflow import Switch
from tightrope.sim.agenda import (
    Agenda,
    CancelArrives,
    CodeEnds,
    EngineMoment,
    Happening,
    ReplicaIsUp,
    RequestArrives,
)
from tightrope.sim.engine import FirstOut, LastOut, Request
from tightrope.sim.fleet import Fleet
from tightrope.sim.script import RunScript
from tightrope.sim.witness import Witness
from tightrope.sim.world import Fault, Outage, Rented, RunRecord, Slowness, World

ABOUT_NO_RUN = (WakeKind.REPLICA_RESTART, WakeKind.REPLICA_READMIT, WakeKind.LEARN, WakeKind.PROVISION)
"""All other wake-ups are thrown away when their run has ended, as the live driver does."""
TOLD = {
    FailureKind.REPLICA_LOST: "the replica went away before the call was made",
    FailureKind.CONTEXT_TOO_LONG: "prompt and answer do not fit the memory of the engine",
}


def simulate(
    world: World,
    scripts: Sequence[RunScript],
    journal: Callable[[str], None] | None = None,
    kernel: Kernel | None = None,
    rented: list[Rented] | None = None,
) -> list[RunRecord]:
    """Play every run to its end; the records are in the order of `scripts`.

    `journal` is given every line of the session as `kernel/journal.py` writes it. `kernel`, a new one, is driven
    in place of one with the world's settings. To `rented` is added which replicas were there and for how long.
    Equal arguments give equal records and lines. Raises InvalidInput when the world does not hold what the scripts
    or its faults name.
    """
    _refuse_what_does_not_fit(world, scripts)
    simulation = _Simulation(world, journal, kernel or Kernel(world.settings))
    simulation.begin(scripts)
    record_by_run = {record.run: record for record in simulation.play(len(scripts))}
    if rented is not None:
        rented += simulation.rented()
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


class _Simulation:
    """One world under way."""

    def __init__(self, world: World, journal: Callable[[str], None] | None, kernel: Kernel) -> None:
        self._world = world
        self._journal = journal
        self._kernel = kernel
        self._agenda = Agenda()
        self._fleet = Fleet(world, self._agenda)
        self._witness = Witness()
        self._limits = {tenant.id: tenant.limits for tenant in world.tenants}
        self._block_tokens = max((truth.block_tokens for truth in world.truths.values()), default=0)
        self._inbox: deque[Event] = deque()
        self._code: set[CallId] = set()
        self._records: list[RunRecord] = []

    def begin(self, scripts: Sequence[RunScript]) -> None:
        """Tell the kernel what there is, and note what will come. The fleet that was planned is up at once."""
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
        if world.provisioning is not None:
            facts.append(ProvisioningSet(world.provisioning))
        for fact in facts:
            self._post(fact)
        for fault in world.faults:
            self._agenda.note(fault.at_s, fault)
        for outage in world.outages:
            self._agenda.note(outage.from_s, outage)
        for slowness in world.slownesses:
            self._agenda.note(slowness.at_s, slowness)
        for script in scripts:
            self._agenda.note(script.at_s, script)

    def play(self, runs: int) -> list[RunRecord]:
        """Let time pass until so many runs have ended."""
        while len(self._records) < runs:
            happening = self._agenda.next()
            if happening is None:
                raise TightropeBug(f"{runs - len(self._records)} runs wait for nothing")
            self._happen(happening)
        return self._records

    def rented(self) -> list[Rented]:
        """Which replicas were there and for how long."""
        return self._fleet.rented()

    def _happen(self, happening: Happening) -> None:
        match happening:
            case EngineMoment():
                self._fleet.look_at(happening)
            case RequestArrives(request, replica):
                self._request_arrives(request, replica)
            case FirstOut(call):
                self._first_out(call)
            case LastOut(call, cached_tokens=cached_tokens):
                self._last_out(call, cached_tokens)
            case Woke(wake):
                if self._is_heeded(wake):
                    self._post(happening)
            case FirstToken(call):
                if self._witness.is_underway(call):
                    self._post(happening)
            case RunScript():
                self._submit(happening)
            case CodeEnds(call):
                self._code_ends(call)
            case CancelArrives(call, replica):
                self._fleet.cancel(call, replica)
            case CallFailed(call):
                if self._witness.is_underway(call):
                    self._witness.gave_up(call)
                    self._post(happening)
            case Fault():
                self._post_if_any(self._fleet.strike(happening))
            case Outage():
                for lost in self._fleet.go_out(happening):
                    self._post(lost)
            case Slowness():
                self._fleet.slow_down(happening)
            case ReplicaIsUp():
                self._post_if_any(self._fleet.come_up(happening))
            case ReplicaStopped():
                self._post(happening)
            case _:
                assert_never(happening)

    # --- the kernel ------------------------------------------------------------------------------------

    def _post(self, event: Event) -> None:
        """Give the kernel one fact; it and all that follows from it at once is done when this returns."""
        self._inbox.append(event)
        while self._inbox:
            self._turn(self._inbox.popleft())

    def _post_if_any(self, event: Event | None) -> None:
        if event is not None:
            self._post(event)

    def _turn(self, event: Event) -> None:
        journal, now_s = self._journal, self._agenda.now_s
        if journal is not None:
            journal(event_line(event, now_s))
        for command in self._kernel.handle(event, now_s):
            if journal is not None:
                journal(command_line(command, now_s))
            self._carry_out(command, now_s)

    def _carry_out(self, command: Command, now_s: float) -> None:
        match command:
            case Prepare():
                self._inbox.append(self._prepared(command))
            case WakeAt(at_s, wake):
                self._agenda.note(at_s, Woke(wake))
            case Dispatch(replica=replica):
                request = self._witness.dispatched(command, now_s)
                self._agenda.note(now_s + self._world.network_s, RequestArrives(request, replica))
            case RunCode(call, run, step, item):
                self._code.add(call)
                self._agenda.note(now_s + self._witness.run(run).calls[step][item].seconds, CodeEnds(call))
            case CancelCall(call):
                self._cancel(call)
            case FinishRun():
                self._records.append(self._witness.finished(command, now_s))
            case StartReplica(spec):
                is_planned_from_the_start = now_s == 0.0
                start_s = 0.0 if is_planned_from_the_start else self._world.start_s[spec.accelerator]
                self._fleet.order(spec, start_s)
            case StopReplica(replica):
                self._fleet.take_down(replica)
                self._agenda.note(now_s, ReplicaStopped(replica))
            case NoteScaling():
                pass  # for readers of the journal
            case SettleStep():
                pass  # what the readers of a step get of it stands in the script already
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
        items = tuple(
            Item(
                prompt_bytes=item.prompt_bytes,
                blocks=item.blocks if self._block_tokens else (),
                block_tokens=self._block_tokens,
            )
            for item in script.calls[command.step]
        )
        return Prepared(command.run, command.step, items)

    def _is_heeded(self, wake: Wake) -> bool:
        return wake.kind in ABOUT_NO_RUN or self._witness.is_open(wake.subject.partition("/")[0])

    # --- calls -----------------------------------------------------------------------------------------

    def _request_arrives(self, request: Request, replica: ReplicaId) -> None:
        if not self._witness.is_underway(request.call):
            return
        failure = self._fleet.submit(request, replica)
        if failure is not None:
            at_s = self._agenda.now_s + self._world.network_s
            self._agenda.note(at_s, CallFailed(request.call, failure, TOLD[failure]))

    def _first_out(self, call: CallId) -> None:
        if not self._witness.is_underway(call):
            return
        now_s, telemetry_s = self._agenda.now_s, self._world.telemetry_s
        self._witness.began(call, now_s)
        if telemetry_s > 0:
            self._agenda.note(now_s + telemetry_s, FirstToken(call))
        else:
            self._post(FirstToken(call))

    def _last_out(self, call: CallId, cached_tokens: int) -> None:
        if self._witness.is_underway(call):
            usage = self._witness.ended(call, self._agenda.now_s, cached_tokens)
            self._post(CallDone(call, usage))

    def _code_ends(self, call: CallId) -> None:
        if call in self._code:
            self._code.discard(call)
            self._post(CallDone(call, Usage()))

    def _cancel(self, call: CallId) -> None:
        self._code.discard(call)
        if self._witness.is_underway(call):
            replica = self._witness.gave_up(call)
            at_s = self._agenda.now_s + self._world.network_s
            self._agenda.note(at_s, CancelArrives(call, replica))
