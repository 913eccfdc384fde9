"""The kernel's tables, and `check`, which asserts every invariant that holds between them.

Owns what is remembered and the snapshots handed to policies. What changes it is `runs.py`, `placing.py` and
`fleet.py`; nothing outside this package touches it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from random import Random

from tightrope.kernel.demand import Demand, Provisioned
from tightrope.kernel.roster import Roster
from tightrope.model.errors import TightropeBug
from tightrope.model.fleet import (
    Accelerator,
    HeldCall,
    Job,
    ReplicaSpec,
    ReplicaState,
    ReplicaView,
)
from tightrope.model.ids import (
    AcceleratorName,
    CallId,
    ModelName,
    ReplicaId,
    RunId,
    StepId,
    TenantId,
    WorkflowId,
)
from tightrope.model.messages import Item, Slack
from tightrope.model.outcome import Usage
from tightrope.model.profile import Coefficients, Profile
from tightrope.model.slo import Slo, Tenant
from tightrope.model.workflow import Gather, Graph, Node, Workflow
from tightrope.policy.learn import Inflation, Learned
from tightrope.policy.margin import Margin
from tightrope.policy.order import line_key
from tightrope.policy.pace import Pace, at_pace
from tightrope.policy.prefix import PrefixIndex
from tightrope.policy.route import Router
from tightrope.policy.slack import Outlook
from tightrope.policy.utilisation import Offered


@dataclass(frozen=True, slots=True)
class KernelSettings:
    """What an operator may choose. Written into the head of the journal, so that a replay decides alike.

    `quantile` of the remaining time that latest finishes leave room for. `failovers` per item when replicas are
    lost, and `retry_share` of active calls (at least 3) that may be repetitions at any moment. A call without
    its first token is called stalled after max(`silence_s`, `silence_factor` x the predicted time).
    """

    router: str = "foresight"
    quantile: float = 0.8
    failovers: int = 2
    retry_share: float = 0.1
    silence_s: float = 5.0
    silence_factor: float = 3.0
    seed: int = 1


class StepStatus(Enum):
    """Where a step of a run is."""

    WAITING = auto()
    PREPARING = auto()
    RUNNING = auto()
    DONE = auto()
    SKIPPED = auto()


@dataclass(slots=True)
class Piece:
    """One item of a node: the tries it has had and the call that stands for it now."""

    index: int
    item: Item
    call: CallId | None = None
    tries: int = 0
    retries: int = 0
    failovers: int = 0
    on_fallback: bool = False
    was_reasked: bool = False
    waits_for_retry: bool = False
    is_settled: bool = False
    has_result: bool = False
    avoid: tuple[ReplicaId, ...] = ()


@dataclass(slots=True)
class Step:
    """One node or switch of one run."""

    status: StepStatus = StepStatus.WAITING
    pieces: list[Piece] = field(default_factory=list)
    started_s: float = 0.0
    join_is_due: bool = False

    def successes(self) -> int:
        """Items that ended well."""
        return sum(piece.has_result for piece in self.pieces)


@dataclass(slots=True)
class Template:
    """A deployed workflow and what has been learned about it."""

    workflow: Workflow
    learned: Learned
    outlook_ttft: Outlook | None = None
    outlook_e2e: Outlook | None = None
    learned_s: float = -math.inf
    learned_at: int = 0
    wake_is_set: bool = False

    @property
    def graph(self) -> Graph:
        """The graph of the workflow."""
        return self.workflow.graph


@dataclass(slots=True)
class Run:
    """One execution of a workflow. `due_*_s` are moments on the kernel's clock, inf without a promise. `worst`: by how
    many seconds the step that went furthest beyond its budget did so, its model and its name."""

    id: RunId
    tenant: TenantId
    template: Template
    slo: Slo
    submitted_s: float
    due_ttft_s: float
    due_e2e_s: float
    is_streamed: bool
    output_tokens: int | None
    steps: dict[StepId, Step]
    cases: dict[StepId, str] = field(default_factory=dict)
    calls: set[CallId] = field(default_factory=set)
    usage: Usage = field(default_factory=Usage)
    first_content_s: float | None = None
    output_usage: Usage | None = None
    worst: tuple[float, ModelName, StepId] | None = None

    def node(self, step: StepId) -> Node:
        """The node of this name; a switch is not one."""
        found = self.template.workflow.step_by_id[step]
        if not isinstance(found, Node):
            raise TightropeBug(f"{step} of {self.id} is a switch, not a node")
        return found

    @property
    def output(self) -> StepId:
        """The output node."""
        return self.template.workflow.output


class CallPhase(Enum):
    """Where a call is."""

    WAITING = auto()
    DISPATCHED = auto()
    STREAMING = auto()
    CODE = auto()


@dataclass(slots=True)
class Call:
    """One attempt of one item. `job` and `slack` are what the last decision about it used.

    `last_chance_s` is when it must have ended even if the rest of the run is short; `usual_s` is how long it takes
    alone on the best of the cards `usual_on`. `thought` is where it is placed in thought. With `is_demoted` it is
    behind the live ones only for the sake of others. `came_late`: no fleet could have saved it as it came.
    `predicted_ms` is its critical time as it was dispatched.
    """

    id: CallId
    run: RunId
    step: StepId
    piece: Piece
    attempt: int
    phase: CallPhase
    ready_s: float
    slack: Slack
    max_tokens: int = 0
    model: ModelName | None = None
    job: Job | None = None
    is_reask: bool = False
    replica: ReplicaId | None = None
    first_token_s: float | None = None
    last_chance_s: float = math.inf
    usual_s: float = 0.0
    usual_on: tuple[Profile, ...] | None = None
    thought: ReplicaId | None = None
    line_key: tuple[object, ...] | None = None
    is_demoted: bool = False
    came_late: bool = False
    predicted_ms: float | None = None


@dataclass(slots=True)
class Replica:
    """One replica: its life and its ledger, that is the calls it holds in order of dispatch.

    `placed` are waiting calls that are there in thought only; `plain` is the view without them, None when the
    ledger has changed.
    """

    spec: ReplicaSpec
    state: ReplicaState
    is_planned: bool = True
    max_sequences: int | None = None
    held: dict[CallId, HeldCall] = field(default_factory=dict)
    placed: dict[CallId, HeldCall] = field(default_factory=dict)
    plain: ReplicaView | None = None
    failures_in_a_row: int = 0
    ejections: int = 0
    ejected_until_s: float = 0.0
    restarts: int = 0
    pace: Pace = field(default_factory=Pace)
    level: int = 0
    ordered_s: float = 0.0
    margin: Margin = field(default_factory=Margin)
    believed_tokens: float = 0.0
    counted_s: float = 0.0
    begun: dict[CallId, float] = field(default_factory=dict)


@dataclass(slots=True)
class Pool:
    """All replicas of one model and the line of calls that wait for them, sorted by `line_key`.

    `roster` are the ready ones as policies see them. `profiles` are the beliefs about the kinds of card, None
    until they are asked for. `is_long` says that the line is no longer walked to its end at every event; then
    `arrived` are the calls that have come since, `cursor` is the place in the line where the next ones are looked
    at again, and `thoughtful` are the replicas where calls are placed in thought. `demoted` are the calls of the
    line that are behind the live ones for the sake of others, by their latest finish. `awaited` is the
    dispatched call whose first token, if it is overdue, is no longer waited for.
    """

    model: ModelName
    roster: Roster
    replicas: dict[ReplicaId, Replica] = field(default_factory=dict)
    profiles: tuple[Profile, ...] | None = None
    line: list[tuple[tuple[object, ...], CallId]] = field(default_factory=list)
    turn: int = 0
    is_long: bool = False
    arrived: dict[CallId, None] = field(default_factory=dict)
    cursor: int = 0
    thoughtful: dict[ReplicaId, None] = field(default_factory=dict)
    inflation: Inflation = field(default_factory=Inflation)
    prefixes: PrefixIndex = field(default_factory=PrefixIndex)
    paced: dict[ReplicaId, None] = field(default_factory=dict)
    looked_s: float = 0.0
    demoted: list[tuple[float, CallId]] = field(default_factory=list)
    offered: Offered = field(default_factory=Offered)
    demand: Demand = field(default_factory=Demand)
    awaited: CallId | None = None

    @property
    def is_planned(self) -> bool:
        """Whether some replica is there to stay, or on order."""
        return any(replica.is_planned for replica in self.replicas.values())

    def on(self, card: AcceleratorName) -> list[Replica]:
        """Replicas of our own on one kind of card, whatever they do."""
        return [
            replica
            for replica in self.replicas.values()
            if replica.spec.accelerator == card and replica.spec.url is None
        ]

    def ready(self) -> list[Replica]:
        """Replicas that may be given calls, in id order."""
        return [self.replicas[view.id] for view in self.roster]


class State:
    """Every table of the kernel. One object, no globals."""

    def __init__(self, settings: KernelSettings, router: Router) -> None:
        self.settings = settings
        self.router = router
        self.rng = Random(settings.seed)
        self.tenants: dict[TenantId, Tenant] = {}
        self.accelerators: dict[AcceleratorName, Accelerator] = {}
        self.profiles: dict[tuple[ModelName, AcceleratorName], Profile] = {}
        self._beliefs: dict[tuple[ModelName, AcceleratorName, int | None, int], Profile] = {}
        self.templates: dict[WorkflowId, Template] = {}
        self.runs: dict[RunId, Run] = {}
        self.calls: dict[CallId, Call] = {}
        self.pools: dict[ModelName, Pool] = {}
        self.replicas: dict[ReplicaId, Replica] = {}
        self.draining: dict[ReplicaId, None] = {}
        self.stopping: set[ReplicaId] = set()
        """Replicas that were told to end and have not said that they did."""
        self.touched: dict[ModelName, dict[ReplicaId, None]] = {}
        """Models whose line is to be looked at, and on which replicas there is new room."""
        self.runs_by_tenant: dict[TenantId, int] = {}
        self.waiting_by_tenant: dict[TenantId, int] = {}
        self.is_draining = False
        self.provisioned: Provisioned | None = None
        """None where the fleet is as it was planned."""

    # --- look-ups --------------------------------------------------------------------------------------

    def pool(self, model: ModelName) -> Pool:
        """The pool of a model, made empty when first asked for."""
        if model not in self.pools:
            self.pools[model] = Pool(model, Roster(self.router.rank))
        return self.pools[model]

    def is_served(self, model: ModelName) -> bool:
        """Whether some replica of the model exists, is on order, or can be ordered."""
        if self.provisioned is not None and self.provisioned.may_order(model):
            return True
        pool = self.pools.get(model)
        return pool is not None and pool.is_planned

    def profile(self, model: ModelName, accelerator: AcceleratorName) -> Profile:
        """What is believed about the pair; a cautious guess while nothing was measured."""
        return self.profiles.get((model, accelerator)) or assumed_profile(model, accelerator)

    def pool_profiles(self, model: ModelName) -> tuple[Profile, ...]:
        """Beliefs about each kind of card that serves the model: ready ones, else those planned, else possible."""
        pool = self.pools.get(model)
        if pool is None:
            return ()
        if pool.profiles is None:
            planned = (replica.spec for replica in pool.replicas.values() if replica.is_planned)
            cards = {view.accelerator for view in pool.roster} or {spec.accelerator for spec in planned}
            if not cards and self.provisioned is not None:
                cards = self.provisioned.cards_of(model)
            pool.profiles = tuple(self.profile(model, card) for card in sorted(cards))
        return pool.profiles

    # --- replicas --------------------------------------------------------------------------------------

    def add_replica(self, spec: ReplicaSpec, now_s: float) -> None:
        """A replica is on order."""
        pool = self.pool(spec.model)
        replica = Replica(spec, ReplicaState.STARTING, ordered_s=now_s)
        self.replicas[spec.id] = pool.replicas[spec.id] = replica
        pool.profiles = None
        pool.demand.has_called = False

    def move(self, replica: Replica, to: ReplicaState) -> None:
        """The one way in which a replica goes on in its life. One that becomes ready may serve who waits."""
        pool = self.pool(replica.spec.model)
        replica.state = to
        pool.profiles = None
        if to is ReplicaState.DRAINING:
            self.draining[replica.spec.id] = None
        else:
            self.draining.pop(replica.spec.id, None)
        if to is ReplicaState.LOST:
            pool.prefixes.forget(replica.spec.id)
        if to is ReplicaState.READY:
            self.show(replica)
            self.touched.setdefault(replica.spec.model, {})[replica.spec.id] = None
        else:
            self._forget_placed(replica)
            pool.roster.drop(replica.spec.id)

    def plan_for(self, replica: Replica, is_planned: bool) -> None:
        """The plan lists the replica, or does not any more."""
        replica.is_planned = is_planned
        self.pool(replica.spec.model).profiles = None

    def forget(self, replica: Replica) -> None:
        """The replica is no more."""
        pool = self.pool(replica.spec.model)
        self._forget_placed(replica)
        del self.replicas[replica.spec.id]
        del pool.replicas[replica.spec.id]
        self.draining.pop(replica.spec.id, None)
        pool.roster.drop(replica.spec.id)
        pool.prefixes.forget(replica.spec.id)
        pool.profiles = None

    def show(self, replica: Replica) -> None:
        """Let policies see the replica as it is, if it may be given calls."""
        if replica.state is ReplicaState.READY:
            self.pool(replica.spec.model).roster.put(self.view(replica))

    def view(self, replica: Replica) -> ReplicaView:
        """The replica as the ledger has it, with what is placed there in thought."""
        if replica.plain is None:
            replica.plain = self._plain(replica)
        if not replica.placed:
            return replica.plain
        return replica.plain.thinking_of(replica.placed.values())

    def _plain(self, replica: Replica) -> ReplicaView:
        spec = replica.spec
        card = self.accelerators.get(spec.accelerator)
        return ReplicaView(
            id=spec.id,
            model=spec.model,
            accelerator=spec.accelerator,
            profile=self.belief(replica),
            usd_per_h=card.usd_per_h if card else 0.0,
            held=tuple(replica.held.values()),
            margin=replica.margin.ratio if self.router.has_margins else None,
        )

    def belief(self, replica: Replica) -> Profile:
        """The profile at the pace of the replica, with the number of sequences that its engine reports.

        The same object for all that are alike, so that they are of one kind.
        """
        key = (replica.spec.model, replica.spec.accelerator, replica.max_sequences, replica.level)
        found = self._beliefs.get(key)
        if found is None:
            found = self.profile(replica.spec.model, replica.spec.accelerator)
            if replica.max_sequences is not None and replica.max_sequences != found.max_sequences:
                found = replace(found, max_sequences=replica.max_sequences)
            found = self._beliefs[key] = at_pace(found, replica.level)
        return found

    def show_all(self) -> None:
        """A profile or a price changed: every view is made anew."""
        self._beliefs.clear()
        for pool in self.pools.values():
            pool.profiles = None
        for replica in self.replicas.values():
            replica.plain = None
            self.show(replica)

    # --- the waiting line ------------------------------------------------------------------------------

    def enqueue(self, call: Call) -> None:
        """Put a waiting model call into its pool's line."""
        if call.job is None or call.model is None:
            raise TightropeBug(f"{call.id} has no job to wait with")
        call.line_key = line_key(call.job, self.router.line)
        insort(self.pool(call.model).line, (call.line_key, call.id))
        self.pool(call.model).arrived[call.id] = None
        self._count_waiting(call, 1)
        self.touched.setdefault(call.model, {})

    def dequeue(self, call: Call) -> None:
        """Take a waiting call out of its line."""
        if call.line_key is None or call.model is None:
            raise TightropeBug(f"{call.id} does not stand in a line")
        self.forget_thought(call)
        pool = self.pool(call.model)
        at = bisect_left(pool.line, (call.line_key, call.id))
        if at >= len(pool.line) or pool.line[at][1] != call.id:
            raise TightropeBug(f"{call.id} is missing from the line of {call.model}")
        del pool.line[at]
        if call.is_demoted and call.job is not None:
            del pool.demoted[bisect_left(pool.demoted, (call.job.due_s, call.id))]
            call.is_demoted = False
        call.line_key = None
        self._count_waiting(call, -1)

    def _count_waiting(self, call: Call, change: int) -> None:
        tenant = self.runs[call.run].tenant
        self.waiting_by_tenant[tenant] = self.waiting_by_tenant.get(tenant, 0) + change

    # --- calls placed in thought -----------------------------------------------------------------------

    def think(self, call: Call, replica: Replica, held: HeldCall) -> None:
        """Place a waiting call on a replica in thought."""
        replica.placed[call.id] = held
        call.thought = replica.spec.id
        self.pool(replica.spec.model).thoughtful[replica.spec.id] = None
        self.show(replica)

    def forget_thought(self, call: Call) -> None:
        """The call is nowhere any more."""
        if call.thought is None:
            return
        replica = self.replicas[call.thought]
        call.thought = None
        del replica.placed[call.id]
        if not replica.placed:
            del self.pool(replica.spec.model).thoughtful[replica.spec.id]
        self.show(replica)

    def forget_thoughts(self, pool: Pool) -> None:
        """No call of the pool is placed in thought any more."""
        for replica in [self.replicas[one] for one in pool.thoughtful]:
            self._forget_placed(replica)
            self.show(replica)

    def _forget_placed(self, replica: Replica) -> None:
        for call in replica.placed:
            self.calls[call].thought = None
        replica.placed.clear()
        self.pool(replica.spec.model).thoughtful.pop(replica.spec.id, None)

    # --- the ledger ------------------------------------------------------------------------------------

    def hold(self, replica: Replica, held: HeldCall) -> None:
        """Note a call, or a change of one, on its replica."""
        replica.held[held.call] = held
        replica.plain = None
        self.show(replica)

    def hold_first_token(self, call: Call, now_s: float) -> None:
        """The call's prompt is done; it decodes from now on, and another one may be next."""
        replica = self.replicas.get(call.replica) if call.replica else None
        if replica is None or call.id not in replica.held:
            return
        self.hold(replica, replace(replica.held[call.id], first_token_s=now_s))
        if self.pool(replica.spec.model).is_long:
            self.touched.setdefault(replica.spec.model, {})[replica.spec.id] = None

    def release(self, call: Call) -> None:
        """Forget a call on its replica; room there may serve somebody else."""
        if call.replica is None:
            return
        replica = self.replicas.get(call.replica)
        if replica is not None and replica.held.pop(call.id, None) is not None:
            replica.begun.pop(call.id, None)
            replica.plain = None
            self.show(replica)
        if call.model is not None:
            self.touched.setdefault(call.model, {})[call.replica] = None

    # --- invariants ------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert everything that must hold between two events. Raises TightropeBug naming what does not."""
        for problem in self._broken():
            raise TightropeBug(problem)

    def _broken(self) -> Iterator[str]:
        yield from self._broken_calls()
        yield from self._broken_lines()
        yield from self._broken_replicas()
        yield from self._broken_runs()

    def _broken_calls(self) -> Iterator[str]:
        for call in self.calls.values():
            run = self.runs.get(call.run)
            if run is None or call.id not in run.calls:
                yield f"{call.id} belongs to no run"
            elif call.piece.call != call.id or call.piece not in run.steps[call.step].pieces:
                yield f"{call.id} is not the current try of its item"
            if call.thought is not None and call.id not in self.replicas[call.thought].placed:
                yield f"{call.id} is placed in thought and no replica knows it"
            if (call.phase is CallPhase.WAITING) != (call.line_key is not None):
                yield f"{call.id} is {call.phase.name} and its place in the line says otherwise"
            if call.phase in (CallPhase.DISPATCHED, CallPhase.STREAMING):
                replica = self.replicas.get(call.replica) if call.replica else None
                if replica is None or call.id not in replica.held:
                    yield f"{call.id} is dispatched and no replica holds it"

    def _broken_lines(self) -> Iterator[str]:
        for pool in self.pools.values():
            if [key for key, _ in pool.line] != sorted(key for key, _ in pool.line):
                yield f"the line of {pool.model} is out of order"
            for _, call in pool.line:
                if call not in self.calls or self.calls[call].phase is not CallPhase.WAITING:
                    yield f"{call} stands in the line of {pool.model} and does not wait"
            demoted = {call for _, call in pool.line if self.calls[call].is_demoted}
            if len(demoted) != len(pool.demoted) or demoted != {call for _, call in pool.demoted}:
                yield f"the demoted calls of {pool.model} are not those of its line"
        waiting = sum(call.phase is CallPhase.WAITING for call in self.calls.values())
        if waiting != sum(self.waiting_by_tenant.values()):
            yield "the count of waiting calls by tenant is wrong"
        if waiting != sum(len(pool.line) for pool in self.pools.values()):
            yield "some call waits in no line, or in two"

    def _broken_replicas(self) -> Iterator[str]:
        for replica in self.replicas.values():
            if self.pools[replica.spec.model].replicas.get(replica.spec.id) is not replica:
                yield f"{replica.spec.id} is not in the pool of {replica.spec.model}"
            if (replica.state is ReplicaState.DRAINING) != (replica.spec.id in self.draining):
                yield f"{replica.spec.id} is {replica.state} and the list of draining ones says otherwise"
            if replica.state in (ReplicaState.STARTING, ReplicaState.LOST) and replica.held:
                yield f"{replica.spec.id} is {replica.state} and holds calls"
            shown = self.pools[replica.spec.model].roster.of(replica.spec.id)
            if (replica.state is ReplicaState.READY) != (shown is not None):
                yield f"{replica.spec.id} is {replica.state} and the roster says otherwise"
            elif shown is not None and shown != self.view(replica):
                yield f"the roster shows {replica.spec.id} as it is not"
            for call in replica.placed:
                if call not in self.calls or self.calls[call].thought != replica.spec.id:
                    yield f"{call} is placed in thought on {replica.spec.id} and does not know it"
            for call in replica.held:
                if call not in self.calls or self.calls[call].replica != replica.spec.id:
                    yield f"{replica.spec.id} holds {call}, which is not there"

    def _broken_runs(self) -> Iterator[str]:
        counted: dict[TenantId, int] = {}
        for run in self.runs.values():
            counted[run.tenant] = counted.get(run.tenant, 0) + 1
            if run.steps[run.output].status in (StepStatus.DONE, StepStatus.SKIPPED):
                yield f"{run.id} has its answer and is not finished"
            if not self._is_alive(run):
                yield f"{run.id} waits for nothing and will never end"
        if counted != {tenant: count for tenant, count in self.runs_by_tenant.items() if count}:
            yield "the count of runs by tenant is wrong"

    def _is_alive(self, run: Run) -> bool:
        return bool(run.calls) or any(
            step.status is StepStatus.PREPARING or any(piece.waits_for_retry for piece in step.pieces)
            for step in run.steps.values()
        )


def assumed_profile(model: ModelName, accelerator: AcceleratorName) -> Profile:
    """A cautious belief about a pair that nobody measured: a slow, small engine, the same on every card."""
    guess = Coefficients(a=20.0, b=1.0, c=1e-3, d=1.0, e=0.0)
    return Profile(model, accelerator, guess, step_tokens=2048, max_sequences=8, kv_tokens=65536)


def gather_of(run: Run, step: StepId) -> Gather | None:
    """How the readers of a fan-out join it: the strictest of their rules, None when one wants every item."""
    rules = [
        need.gather
        for reader in run.template.graph.readers_by_step[step]
        for need in run.template.graph.needs_by_step[reader]
        if step in need.any_of
    ]
    if not rules or any(rule is None or rule.minimum is None for rule in rules):
        return None
    known = [rule for rule in rules if rule is not None]
    withins = [rule.within_s for rule in known]
    return Gather(
        minimum=max(rule.minimum or 0 for rule in known),
        within_s=None if None in withins else max(within for within in withins if within is not None),
    )
