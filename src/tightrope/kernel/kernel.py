"""The one door to the state: `Kernel.handle(event, now_s) -> commands`.

Owns the dispatch of events to the life of runs (`runs.py`) and of replicas (`fleet.py`), and the placing of
calls after every change (`placing.py`). It has no clock, no loop, no I/O and no randomness but its seed.
"""

from __future__ import annotations

from typing import assert_never

from tightrope.kernel import fleet, health, learning, placing, provision, runs
from tightrope.kernel.overdue import await_first_token, first_token_is_overdue
from tightrope.kernel.state import KernelSettings, State, Template
from tightrope.model.ids import CallId, ReplicaId, RunId, StepId, WorkflowId
from tightrope.model.messages import (
    AcceleratorRegistered,
    CallDone,
    CallFailed,
    CaseTaken,
    Command,
    DrainRequested,
    Event,
    FirstToken,
    FleetPlanned,
    Prepared,
    PrepareFailed,
    ProfileLoaded,
    ProvisioningSet,
    ReplicaLost,
    ReplicaReady,
    ReplicaStopped,
    RunCancelled,
    RunSubmitted,
    TenantRegistered,
    Wake,
    WakeKind,
    Woke,
    WorkflowDeployed,
)
from tightrope.model.workflow import Workflow
from tightrope.policy import router
from tightrope.policy.learn import Learned
from tightrope.policy.provision import Provisioner


class Kernel:
    """Decides everything, does nothing. Equal settings and equal events give equal commands, for ever."""

    def __init__(self, settings: KernelSettings, foreign: Provisioner | None = None) -> None:
        """`foreign` is a provisioner that is in no table, for an experiment, known by its name."""
        self.settings = settings
        self._foreign = foreign
        self.state = State(settings, router(settings.router))

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """Take one fact and say what shall be done about it. `now_s` never goes back between two calls."""
        commands = self._apply(event, now_s)
        commands += self._place_touched(now_s)
        if self.state.provisioned is not None and self.state.provisioned.is_called_for:
            commands += provision.look(self.state, now_s)
            commands += self._place_touched(now_s)  # on what was to go and stays
        commands += self._stop_drained()
        for pool in self.state.pools.values():
            pool.roster.settle(now_s)
        return commands

    def check(self) -> None:
        """Assert every invariant of the tables. Raises TightropeBug."""
        self.state.check()

    def _apply(self, event: Event, now_s: float) -> list[Command]:
        state = self.state
        match event:
            case RunSubmitted():
                return runs.submit(state, event, now_s)
            case Prepared():
                return runs.prepared(state, event, now_s)
            case CaseTaken():
                return runs.case_taken(state, event, now_s)
            case PrepareFailed():
                return runs.prepare_failed(state, event, now_s)
            case FirstToken():
                return runs.first_token(state, event, now_s)
            case CallDone():
                return runs.call_done(state, event, now_s)
            case CallFailed():
                return runs.call_failed(state, event, now_s)
            case RunCancelled(run, why):
                return runs.cancel(state, run, why, now_s)
            case Woke(wake):
                return self._woke(wake, now_s)
            case ReplicaReady():
                return fleet.replica_ready(state, event, now_s)
            case ReplicaLost():
                return fleet.replica_lost(state, event, now_s)
            case ReplicaStopped(replica):
                return fleet.replica_stopped(state, replica, now_s)
            case FleetPlanned(plan):
                return fleet.apply_plan(state, plan, now_s)
            case ProvisioningSet(provisioning):
                return provision.begin(state, provisioning, self._foreign, now_s)
            case TenantRegistered(tenant):
                state.tenants[tenant.id] = tenant
            case AcceleratorRegistered(accelerator):
                state.accelerators[accelerator.name] = accelerator
                state.show_all()
            case ProfileLoaded(profile):
                state.profiles[profile.model, profile.accelerator] = profile
                state.show_all()
                self._learn_anew(now_s)
            case WorkflowDeployed(workflow):
                self._deploy(workflow)
            case DrainRequested():
                state.is_draining = True
            case _:
                assert_never(event)
        return []

    def _woke(self, wake: Wake, now_s: float) -> list[Command]:
        state = self.state
        match wake.kind:
            case WakeKind.RUN_DEADLINE:
                return runs.run_expired(state, RunId(wake.subject), now_s)
            case WakeKind.STEP_TOTAL:
                run, step = wake.subject.rsplit("/", 1)
                return runs.step_timed_out(state, RunId(run), StepId(step), now_s)
            case WakeKind.GATHER_WITHIN:
                run, step = wake.subject.rsplit("/", 1)
                return runs.join_is_due(state, RunId(run), StepId(step), now_s)
            case WakeKind.CALL_QUEUE | WakeKind.CALL_ATTEMPT | WakeKind.CALL_SILENT:
                return runs.call_timed_out(state, CallId(wake.subject), wake.kind, now_s)
            case WakeKind.CALL_OVERDUE:
                first_token_is_overdue(state, CallId(wake.subject))
                return []
            case WakeKind.CALL_RETRY:
                run, step, index = wake.subject.rsplit("/", 2)
                return runs.retry(state, RunId(run), StepId(step), int(index), now_s)
            case WakeKind.REPLICA_RESTART:
                return fleet.restart(state, ReplicaId(wake.subject), now_s)
            case WakeKind.REPLICA_READMIT:
                return health.readmit(state, ReplicaId(wake.subject), now_s)
            case WakeKind.LEARN:
                template = state.templates.get(WorkflowId(wake.subject))
                if template is not None:
                    learning.learn(state, template, now_s)
                return []
            case WakeKind.PROVISION:
                return provision.round_is_due(state, now_s, int(wake.subject))
            case _:
                assert_never(wake.kind)

    def _deploy(self, workflow: Workflow) -> None:
        if workflow.id not in self.state.templates:
            self.state.templates[workflow.id] = Template(workflow, Learned(workflow))

    def _learn_anew(self, now_s: float) -> None:
        for template in self.state.templates.values():
            if template.outlook_ttft is not None:
                learning.learn(self.state, template, now_s)

    def _place_touched(self, now_s: float) -> list[Command]:
        commands: list[Command] = []
        while self.state.touched:
            model, opened = next(iter(self.state.touched.items()))
            pool = self.state.pool(model)
            commands += placing.place(self.state, pool, tuple(opened), now_s)
            commands += await_first_token(self.state, pool, now_s)
            self.state.touched.pop(model, None)
        return commands

    def _stop_drained(self) -> list[Command]:
        commands: list[Command] = []
        for replica in list(self.state.draining):
            commands += fleet.stop_if_drained(self.state, replica)
        return commands
