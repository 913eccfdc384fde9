"""
A state machine over the kernel: random workflows, random facts in any order, and the laws that always hold

1. Every submitted run ends in exactly one FinishRun, and nothing is said about it afterwards.
2. A replica never holds more calls than it accepts; nothing is dispatched to one that is not ready.
3. Every call that was dispatched ends exactly once: done, failed, or cancelled.
4. Code that is not idempotent is never run twice.
5. When all runs have ended the tables are empty.
6. The invariants of `State.check` hold after every event.
7. Equal events give equal commands.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from tests.kernel.world import CARDS, MODELS, workflows
from tightrope.kernel.kernel import Kernel
from tightrope.kernel.state import KernelSettings
from tightrope.model.fleet import FleetPlan, ReplicaSpec
from tightrope.model.ids import CallId, ReplicaId, RunId, TenantId, WorkflowId
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
    PrepareFailed,
    ReplicaLost,
    ReplicaReady,
    RunCancelled,
    RunCode,
    RunSubmitted,
    StartReplica,
    StopReplica,
    TenantRegistered,
    WakeAt,
    Woke,
    WorkflowDeployed,
)
from tightrope.model.outcome import FailureKind, Usage
from tightrope.model.slo import Limits, Slo, Tenant
from tightrope.model.workflow import CodeCall, Switch, Workflow
from tightrope.policy import ROUTERS
from tightrope.policy.foresight import EXTENDED

SLOTS = 2
FAILURES = [
    FailureKind.TIMEOUT,
    FailureKind.STALLED,
    FailureKind.REPLICA_LOST,
    FailureKind.ENGINE_ERROR,
    FailureKind.BAD_REQUEST,
    FailureKind.BAD_OUTPUT,
]


class KernelMachine(RuleBasedStateMachine):
    """Plays the driver and the world, in whatever order Hypothesis thinks of."""

    runs = Bundle("runs")

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.events: list[tuple[Event, float]] = []
        self.said: list[list[Command]] = []
        self.submitted: set[RunId] = set()
        self.finished: set[RunId] = set()
        self.prepares: list[Prepare] = []
        self.calls: dict[CallId, Dispatch | RunCode] = {}
        self.first: set[CallId] = set()
        self.ended: Counter[CallId] = Counter()
        self.code_runs: Counter[str] = Counter()
        self.wakes: list[WakeAt] = []
        self.up: dict[ReplicaId, bool] = {}
        self.ordered: list[ReplicaId] = []

    # --- the world -------------------------------------------------------------------------------------

    @initialize(
        flow=workflows(),
        router=st.sampled_from([*sorted(ROUTERS), *(found.name for found in EXTENDED)]),
        has_slo=st.booleans(),
        limit=st.sampled_from([2, 1000]),
    )
    def begin(self, flow: Workflow, router: str, has_slo: bool, limit: int) -> None:
        """One workflow, one tenant, two cards, two models."""
        self.workflow = flow
        self.slo = Slo(ttft_s=3.0, e2e_s=9.0) if has_slo else Slo()
        self.kernel = Kernel(KernelSettings(router=router))
        tenant = Tenant(TenantId("t"), limits=Limits(concurrent=limit), workflows=(flow.name,))
        self.tell(TenantRegistered(tenant))
        for card in CARDS:
            self.tell(AcceleratorRegistered(card))
        self.tell(WorkflowDeployed(flow))
        self.plan(2)

    def plan(self, per_model: int) -> None:
        specs = [
            ReplicaSpec(ReplicaId(f"{model}-{index}"), model, CARDS[index % 2].name)
            for model in MODELS
            for index in range(per_model)
        ]
        self.tell(FleetPlanned(FleetPlan(tuple(specs))))

    def tell(self, event: Event) -> None:
        """Give the kernel a fact, check its tables, and take what it asks for as a driver would."""
        self.events.append((event, self.now_s))
        commands = self.kernel.handle(event, self.now_s)
        self.said.append(commands)
        self.kernel.check()
        for command in commands:
            self.take(command)

    def take(self, command: Command) -> None:
        match command:
            case Prepare(run):
                assert run not in self.finished
                self.prepares.append(command)
            case Dispatch(call, run):
                assert run not in self.finished
                assert self.up.get(command.replica), "law 2: only ready replicas get calls"
                assert call not in self.calls
                self.calls[call] = command
            case RunCode(call, run, step, item):
                work = self.workflow.step_by_id[step]
                self.code_runs[f"{run}/{step}/{item}"] += 1
                self.calls[call] = command
                if (
                    not isinstance(work, Switch)
                    and isinstance(work.work, CodeCall)
                    and not work.work.idempotent
                ):
                    assert self.code_runs[f"{run}/{step}/{item}"] == 1, "law 4"
            case CancelCall(call):
                self.calls.pop(call)
                self.ended[call] += 1
            case FinishRun(run):
                assert run not in self.finished, "law 1: one end"
                self.finished.add(run)
                self.prepares = [left for left in self.prepares if left.run != run]
            case WakeAt():
                assert command.at_s >= self.now_s
                self.wakes.append(command)
            case StartReplica(spec):
                self.up[spec.id] = False
                self.ordered.append(spec.id)
            case StopReplica(replica):
                assert self.up.pop(replica, None) is not None
                self.ordered = [name for name in self.ordered if name != replica]

    # --- facts -----------------------------------------------------------------------------------------

    @rule(target=runs, is_streamed=st.booleans(), deadline_s=st.sampled_from([1.0, 60.0]))
    def submit(self, is_streamed: bool, deadline_s: float) -> object:
        run = RunId(f"r{len(self.submitted)}")
        self.submitted.add(run)
        workflow = WorkflowId(self.workflow.id)
        self.tell(RunSubmitted(run, TenantId("t"), workflow, self.slo, deadline_s, is_streamed))
        return run if run not in self.finished else multiple()

    @rule(run=runs)
    def cancel(self, run: RunId) -> None:
        self.tell(RunCancelled(run, "the client left"))

    @precondition(lambda self: self.prepares)
    @rule(
        data=st.data(),
        items=st.integers(0, 3),
        fails=st.integers(0, 9),
        size=st.sampled_from([100, 100, 10**7]),
    )
    def prepare(self, data: st.DataObject, items: int, fails: int, size: int) -> None:
        wish = self.prepares.pop(data.draw(st.integers(0, len(self.prepares) - 1)))
        step = self.workflow.step_by_id[wish.step]
        if fails == 0:
            self.tell(PrepareFailed(wish.run, wish.step, FailureKind.BAD_INPUT, "a field is missing"))
        elif isinstance(step, Switch):
            case = data.draw(st.sampled_from([case.name for case in step.cases]))
            self.tell(CaseTaken(wish.run, wish.step, case))
        else:
            count = items if step.fan_out is not None else 1
            self.tell(Prepared(wish.run, wish.step, tuple(Item(size * (n + 1)) for n in range(count))))

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def first_token(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(sorted(self.calls)))
        if isinstance(self.calls[call], Dispatch) and call not in self.first:
            self.first.add(call)
            self.tell(FirstToken(call))

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(sorted(self.calls)))
        self.end(call)
        self.tell(CallDone(call, Usage(50, 8)))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), failure=st.sampled_from(FAILURES))
    def failed(self, data: st.DataObject, failure: FailureKind) -> None:
        call = data.draw(st.sampled_from(sorted(self.calls)))
        kind = FailureKind.CODE_ERROR if isinstance(self.calls[call], RunCode) else failure
        self.end(call)
        self.tell(CallFailed(call, kind, "something happened"))

    def end(self, call: CallId) -> None:
        del self.calls[call]
        self.ended[call] += 1

    @rule(data=st.data())
    def stale_news(self, data: st.DataObject) -> None:
        """What the kernel no longer knows is ignored."""
        for call in sorted(self.ended)[:1]:
            before = len(self.said)
            stale: list[Event] = [FirstToken(call), CallDone(call, Usage(1, 1))]
            self.tell(data.draw(st.sampled_from(stale)))
            assert self.said[before] == []

    @precondition(lambda self: self.ordered)
    @rule(data=st.data())
    def ready(self, data: st.DataObject) -> None:
        replica = self.ordered.pop(data.draw(st.integers(0, len(self.ordered) - 1)))
        if replica in self.up:
            self.up[replica] = True
            self.tell(ReplicaReady(replica, SLOTS))

    @precondition(lambda self: any(self.up.values()))
    @rule(data=st.data())
    def lost(self, data: st.DataObject) -> None:
        replica = data.draw(st.sampled_from(sorted(name for name, is_up in self.up.items() if is_up)))
        self.up[replica] = False
        self.tell(ReplicaLost(replica, "killed"))

    @rule(per_model=st.integers(1, 3))
    def replan(self, per_model: int) -> None:
        self.plan(per_model)

    @precondition(lambda self: self.wakes)
    @rule(skip=st.integers(0, 3))
    def wake(self, skip: int) -> None:
        """Time goes on to one of the next wake-ups; the earlier ones come first."""
        self.wakes.sort(key=lambda wake: wake.at_s)
        for _ in range(min(skip + 1, len(self.wakes))):
            due = self.wakes.pop(0)
            self.now_s = max(self.now_s, due.at_s)
            self.tell(Woke(due.wake))

    @rule(seconds=st.floats(0.001, 0.5))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    # --- laws ------------------------------------------------------------------------------------------

    @invariant()
    def no_replica_is_overfull(self) -> None:
        held = Counter(call.replica for call in self.calls.values() if isinstance(call, Dispatch))
        assert all(count <= SLOTS for count in held.values()), "law 2"

    @invariant()
    def every_call_ends_once(self) -> None:
        assert all(count == 1 for count in self.ended.values()), "law 3"

    def teardown(self) -> None:
        """Let the world come to rest: cancel what is left, and look at what remains."""
        if not hasattr(self, "kernel"):
            return
        for run in sorted(self.submitted - self.finished):
            self.tell(RunCancelled(run, "the test is over"))
        assert self.submitted == self.finished, "law 1"
        assert not self.calls, "law 3"
        state = self.kernel.state
        assert not state.runs, "law 5"
        assert not state.calls, "law 5"
        assert not any(pool.line for pool in state.pools.values()), "law 5"
        assert not any(replica.held for replica in state.replicas.values()), "law 5"
        self.replays_alike()

    def replays_alike(self) -> None:
        again = Kernel(self.kernel.settings)
        assert [again.handle(event, at_s) for event, at_s in self.events] == self.said, "law 7"


KernelMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestKernel = KernelMachine.TestCase
