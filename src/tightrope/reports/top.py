"""What a journal says of this moment: replicas by state, calls that wait and run, rates, promises kept, money, and what
the provisioner did lately.

Owns the tables that follow a journal as it grows. They are those of the kernel, as far as these figures need them, kept
from the outside: an event, or the commands that it led to, tell all but what the text of an answer was worth. The words
are `top_text.py`'s.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

from tightrope.kernel.journal import Entry, Gap, Head
from tightrope.model.codec import encode
from tightrope.model.fleet import Accelerator, FleetPlan, ReplicaSpec, ReplicaState
from tightrope.model.ids import AcceleratorName, CallId, ModelName, ReplicaId, RunId, StepId
from tightrope.model.json import Json
from tightrope.model.messages import (
    AcceleratorRegistered,
    CallDone,
    CallFailed,
    CancelCall,
    Command,
    Dispatch,
    DrainRequested,
    Event,
    FinishRun,
    FleetPlanned,
    NoteScaling,
    Prepared,
    ProvisioningSet,
    ReplicaLost,
    ReplicaReady,
    ReplicaStopped,
    RunSubmitted,
    SettleStep,
    StartReplica,
    StopReplica,
    Wake,
    WakeAt,
    WakeKind,
    Woke,
    WorkflowDeployed,
)
from tightrope.model.outcome import FailureKind, Outcome, Verdict
from tightrope.model.provision import Provisioning, ScaleAction
from tightrope.model.workflow import ModelCall, Node, Workflow
from tightrope.reports.scaling import sentence

LATELY_S = 60.0
"""Arrivals are counted over so much time."""
KEPT_S = 300.0
"""Promises are counted over so much time: of fewer runs the share says little."""
ACTIONS = 12
"""So many actions and refusals of the provisioner are remembered."""

GONE = (FailureKind.REPLICA_LOST, FailureKind.STALLED)
"""After these a call is moved to another replica, as often as the head of the journal says."""


@dataclass(frozen=True, slots=True)
class CardRow:
    """The replicas of a model on one kind of card, by state, and what they cost; one that is lost costs nothing."""

    accelerator: AcceleratorName
    starting: int
    ready: int
    ejected: int
    draining: int
    lost: int
    usd_per_h: float


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model: its replicas, its calls, and how many came per second in the last LATELY_S seconds."""

    model: ModelName
    cards: tuple[CardRow, ...]
    waiting: int
    running: int
    per_s: float


@dataclass(frozen=True, slots=True)
class RunRow:
    """Runs of a workflow by one tenant: how many are under way, how many came per second lately; and of those that
    ended in the last KEPT_S seconds how many there were, had a promise, kept it, and had no whole answer."""

    tenant: str
    workflow: str
    underway: int
    per_s: float
    ended: int
    promised: int
    met: int
    failed: int

    @property
    def attainment(self) -> float | None:
        """The share of promises that were kept; None without any."""
        return self.met / self.promised if self.promised else None


@dataclass(frozen=True, slots=True)
class Said:
    """One action or refusal of the provisioner, in words, and when; `wall_s` is Unix time."""

    at_s: float
    wall_s: float
    action: ScaleAction
    is_advice: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Top:
    """Everything at one moment. `wall_s` is Unix time, `session_s` the age of the session, `lines_lost` how many lines
    a full disk refused in it. `provisioner` is its policy and mode, "" where nobody changes the fleet."""

    wall_s: float
    session_s: float
    lines_lost: int
    is_draining: bool
    models: tuple[ModelRow, ...]
    runs: tuple[RunRow, ...]
    usd_per_h: float
    max_usd_per_h: float | None
    provisioner: str
    said: tuple[Said, ...]


def as_json(top: Top) -> Json:
    """The same as plain JSON."""
    encoded = cast(dict[str, Json], encode(top))
    return {key: value for key, value in encoded.items() if key != "type"}


# --- what is followed ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Replica:
    spec: ReplicaSpec
    state: ReplicaState = ReplicaState.STARTING
    is_planned: bool = True
    ejected_until_s: float = 0.0
    calls: set[CallId] = field(default_factory=set)


@dataclass(slots=True)
class _Item:
    """One item of a node that is not settled: it waits for a replica, runs on one (`call`), or pauses."""

    run: RunId
    step: StepId
    index: int
    node: Node
    model: ModelName
    attempt: int = 0
    call: CallId | None = None
    is_waiting: bool = False
    failovers: int = 0
    was_reasked: bool = False
    on_fallback: bool = False


@dataclass(slots=True)
class _Run:
    key: tuple[str, str]
    workflow: Workflow | None
    items: dict[tuple[StepId, int], _Item] = field(default_factory=dict)
    settled: set[StepId] = field(default_factory=set)


@dataclass(slots=True)
class _Running:
    item: _Item
    replica: ReplicaId


@dataclass(slots=True)
class _Session:
    """All that one session has told so far. `event` is the one whose commands are read now; `failed` an item of which
    only the next command tells whether it is tried again after a pause."""

    head: Head
    now_s: float
    accelerators: dict[AcceleratorName, Accelerator] = field(default_factory=dict)
    workflows: dict[str, Workflow] = field(default_factory=dict)
    replicas: dict[ReplicaId, _Replica] = field(default_factory=dict)
    provisioning: Provisioning | None = None
    runs: dict[RunId, _Run] = field(default_factory=dict)
    calls: dict[CallId, _Running] = field(default_factory=dict)
    waiting: Counter[ModelName] = field(default_factory=Counter)
    arrivals: dict[ModelName, deque[float]] = field(default_factory=dict)
    submitted: dict[tuple[str, str], deque[float]] = field(default_factory=dict)
    ended: dict[tuple[str, str], deque[tuple[float, FinishRun]]] = field(default_factory=dict)
    said: deque[Said] = field(default_factory=lambda: deque(maxlen=ACTIONS))
    event: Event | None = None
    failed: tuple[_Item, FailureKind] | None = None
    lines_lost: int = 0
    is_draining: bool = False


class Follower:
    """Takes what a journal holds, item by item, and says at any time how things stand in its last session."""

    def __init__(self) -> None:
        self._session: _Session | None = None

    def take(self, item: Entry | Head | Gap) -> None:
        """The next item. A head begins anew: an earlier session has nothing that is left."""
        if isinstance(item, Head):
            self._session = _Session(item, item.at_s)
        elif self._session is not None and isinstance(item, Gap):
            self._session.lines_lost += item.lines
        elif self._session is not None and isinstance(item, Entry):
            self._session.now_s = item.at_s
            _go_on(self._session, item.message)
            if item.is_command:
                _command(self._session, cast(Command, item.message), item)
            else:
                self._session.event = cast(Event, item.message)
                _event(self._session, self._session.event)

    @property
    def last_wall_s(self) -> float | None:
        """Unix time of the last item; None before any, and where the journal is not of this world."""
        session = self._session
        if session is None or session.head.wall_s <= 0:
            return None
        return session.head.wall_s - session.head.at_s + session.now_s

    def top(self, later_s: float = 0.0) -> Top | None:
        """How things stand so many seconds after the last item, with nothing in between; None without a session."""
        return None if self._session is None else _top(self._session, self._session.now_s + later_s)


def follow(items: Iterable[Entry | Head | Gap]) -> Top | None:
    """How things stand at the end of a journal; None of an empty one."""
    follower = Follower()
    for item in items:
        follower.take(item)
    return follower.top()


# --- events ----------------------------------------------------------------------------------------------


def _event(session: _Session, event: Event) -> None:
    match event:
        case AcceleratorRegistered(card):
            session.accelerators[card.name] = card
        case WorkflowDeployed(workflow):
            session.workflows.setdefault(workflow.id, workflow)
        case FleetPlanned(plan):
            _planned(session, plan)
        case ProvisioningSet(provisioning):
            session.provisioning = provisioning
        case ReplicaReady(replica):
            _ready(session, replica)
        case ReplicaLost(replica) | ReplicaStopped(replica):
            _lost(session, replica)
        case RunSubmitted():
            _submitted(session, event)
        case DrainRequested():
            session.is_draining = True
        case Prepared():
            _prepared(session, event)
        case CallDone(call):
            _settle(session, call)
        case CallFailed(call, failure):
            _failed(session, call, failure)
        case Woke(wake):
            _woke(session, wake)
        case _:
            pass


def _submitted(session: _Session, event: RunSubmitted) -> None:
    key = (str(event.tenant), event.workflow.partition("@")[0])
    session.runs[event.run] = _Run(key, session.workflows.get(event.workflow))
    _note(session.submitted.setdefault(key, deque()), session.now_s, LATELY_S)


def _note(moments: deque[float], now_s: float, within_s: float) -> None:
    moments.append(now_s)
    while moments[0] <= now_s - within_s:
        moments.popleft()


def _prepared(session: _Session, event: Prepared) -> None:
    """Every item of a model's node comes into the line; what a node of code does is of no account here."""
    run = session.runs.get(event.run)
    if run is None or run.workflow is None or event.step in run.settled:
        return
    node = run.workflow.step_by_id.get(event.step)
    if not isinstance(node, Node) or not isinstance(node.work, ModelCall):
        return
    for index, _ in enumerate(event.items):
        item = _Item(event.run, event.step, index, node, node.work.model)
        run.items[event.step, index] = item
        _wait(session, item)


def _woke(session: _Session, wake: Wake) -> None:
    match wake.kind:
        case WakeKind.REPLICA_READMIT:
            found = session.replicas.get(ReplicaId(wake.subject))
            if (
                found is not None
                and found.state is ReplicaState.EJECTED
                and session.now_s >= found.ejected_until_s
            ):
                found.state = ReplicaState.READY
        case WakeKind.CALL_RETRY:
            run, step, index = wake.subject.rsplit("/", 2)
            item = _item(session, RunId(run), StepId(step), int(index))
            if item is not None and not item.is_waiting and item.call is None:
                _try_again(session, item)
        case WakeKind.CALL_QUEUE:
            run, step, last = wake.subject.rsplit("/", 2)
            index, attempt = last.split(".")
            item = _item(session, RunId(run), StepId(step), int(index))
            if item is not None and item.is_waiting and item.attempt == int(attempt):
                _leave_line(session, item)
                _again(session, item, FailureKind.TIMEOUT)
        case _:
            pass


# --- calls -----------------------------------------------------------------------------------------------


def _item(session: _Session, run: RunId, step: StepId, index: int) -> _Item | None:
    found = session.runs.get(run)
    return None if found is None else found.items.get((step, index))


def _wait(session: _Session, item: _Item) -> None:
    """The item comes into the line of its model."""
    item.is_waiting = True
    session.waiting[item.model] += 1
    _note(session.arrivals.setdefault(item.model, deque()), session.now_s, LATELY_S)


def _leave_line(session: _Session, item: _Item) -> None:
    if item.is_waiting:
        item.is_waiting = False
        session.waiting[item.model] -= 1


def _dispatched(session: _Session, dispatch: Dispatch) -> None:
    item = _item(session, dispatch.run, dispatch.step, dispatch.item)
    if item is None:
        return
    _leave_line(session, item)
    item.model, item.attempt, item.call = ModelName(dispatch.model), dispatch.attempt, dispatch.call
    session.calls[dispatch.call] = _Running(item, dispatch.replica)
    replica = session.replicas.get(dispatch.replica)
    if replica is not None:
        replica.calls.add(dispatch.call)


def _released(session: _Session, call: CallId) -> _Running | None:
    """The call is not on its replica any more."""
    running = session.calls.pop(call, None)
    if running is not None:
        running.item.call = None
        replica = session.replicas.get(running.replica)
        if replica is not None:
            replica.calls.discard(call)
    return running


def _settle(session: _Session, call: CallId) -> None:
    running = _released(session, call)
    if running is not None:
        _forget(session, running.item)


def _forget(session: _Session, item: _Item) -> None:
    """The item is over; nothing of it waits or runs."""
    _leave_line(session, item)
    if item.call is not None:
        _released(session, item.call)
    run = session.runs.get(item.run)
    if run is not None:
        run.items.pop((item.step, item.index), None)


def _failed(session: _Session, call: CallId, failure: FailureKind) -> None:
    running = _released(session, call)
    if running is not None:
        _again(session, running.item, failure)


def _cancelled(session: _Session, call: CallId) -> None:
    """A call is ended: because of what the event tells, or because nobody wants it any more."""
    running = _released(session, call)
    if running is None:
        return
    match session.event:
        case Woke(Wake(WakeKind.CALL_SILENT, subject)) if subject == call:
            _again(session, running.item, FailureKind.STALLED)
        case Woke(Wake(WakeKind.CALL_ATTEMPT, subject)) if subject == call:
            _again(session, running.item, FailureKind.TIMEOUT)
        case ReplicaLost(replica) | ReplicaStopped(replica) if replica == running.replica:
            _again(session, running.item, FailureKind.REPLICA_LOST)
        case _:
            _forget(session, running.item)


def _again(session: _Session, item: _Item, failure: FailureKind) -> None:
    """An attempt ended badly: the work is moved, or what is done is to be seen next."""
    if failure in GONE and item.failovers < session.head.settings.failovers:
        item.failovers += 1
        _try_again(session, item)
    else:
        session.failed = (item, failure)


def _go_on(session: _Session, message: Event | Command) -> None:
    """A failed item pauses if that is said now; else it is asked again, given to the fallback, or left out of its join.
    What ends the step or the run instead is said too, and then nothing is left of it."""
    if session.failed is None:
        return
    item, failure = session.failed
    match message:
        case WakeAt(wake=Wake(WakeKind.REPLICA_READMIT)):
            return
        case WakeAt(wake=Wake(WakeKind.CALL_RETRY, subject)) if (
            subject == f"{item.run}/{item.step}/{item.index}"
        ):
            session.failed = None
            return
        case _:
            session.failed = None
    work = item.node.work
    fallback = work.fallback if isinstance(work, ModelCall) else None
    if failure is FailureKind.BAD_OUTPUT and not item.was_reasked:
        item.was_reasked = True
        _try_again(session, item)
    elif fallback is not None and not item.on_fallback:
        item.on_fallback, item.model = True, fallback
        _try_again(session, item)
    else:
        _forget(session, item)


def _try_again(session: _Session, item: _Item) -> None:
    item.attempt += 1
    _wait(session, item)


# --- commands --------------------------------------------------------------------------------------------


def _command(session: _Session, command: Command, entry: Entry) -> None:
    match command:
        case StartReplica(spec):
            found = session.replicas.setdefault(spec.id, _Replica(spec))
            found.state, found.is_planned = ReplicaState.STARTING, True
        case StopReplica(replica):
            session.replicas.pop(replica, None)
        case NoteScaling():
            _scaled(session, command, entry)
        case WakeAt(at_s, wake):
            _wakes(session, at_s, wake)
        case Dispatch():
            _dispatched(session, command)
        case CancelCall(call):
            _cancelled(session, call)
        case SettleStep(run, step):
            _step_over(session, run, step)
        case FinishRun():
            _finished(session, command)
        case _:
            pass


def _wakes(session: _Session, at_s: float, wake: Wake) -> None:
    """What is to be looked at later tells what has happened now."""
    match wake.kind:
        case WakeKind.REPLICA_READMIT if wake.subject in session.replicas:
            found = session.replicas[ReplicaId(wake.subject)]
            found.state, found.ejected_until_s = ReplicaState.EJECTED, at_s
        case WakeKind.REPLICA_RESTART if wake.subject in session.replicas:
            session.replicas[ReplicaId(wake.subject)].state = ReplicaState.LOST
        case _:
            pass


def _step_over(session: _Session, run: RunId, step: StepId) -> None:
    found = session.runs.get(run)
    if found is not None:
        found.settled.add(step)
        for item in [one for one in found.items.values() if one.step == step]:
            _forget(session, item)


def _finished(session: _Session, finish: FinishRun) -> None:
    run = session.runs.get(finish.run)
    if run is None:
        return
    for item in list(run.items.values()):
        _forget(session, item)
    del session.runs[finish.run]
    ends = session.ended.setdefault(run.key, deque())
    ends.append((session.now_s, finish))
    while ends[0][0] <= session.now_s - KEPT_S:
        ends.popleft()


# --- replicas --------------------------------------------------------------------------------------------


def _ready(session: _Session, replica: ReplicaId) -> None:
    found = session.replicas.get(replica)
    if found is not None and found.state in (ReplicaState.STARTING, ReplicaState.LOST):
        found.state = ReplicaState.READY


def _lost(session: _Session, replica: ReplicaId) -> None:
    """It is lost; one that was to end anyway is gone. The restart that is ordered says that it comes back."""
    found = session.replicas.get(replica)
    if found is None or found.state is ReplicaState.LOST:
        return
    if found.is_planned:
        found.state = ReplicaState.LOST
    else:
        del session.replicas[replica]


def _planned(session: _Session, plan: FleetPlan) -> None:
    listed = {spec.id for spec in plan.replicas}
    for name, found in list(session.replicas.items()):
        if name in listed:
            _keep(found)
        elif found.is_planned:
            _retire(session, found)


def _keep(found: _Replica) -> None:
    found.is_planned = True
    if found.state is ReplicaState.DRAINING:
        found.state = ReplicaState.READY


def _retire(session: _Session, found: _Replica) -> None:
    found.is_planned = False
    if found.state is ReplicaState.LOST:
        del session.replicas[found.spec.id]
    else:
        found.state = ReplicaState.DRAINING


def _scaled(session: _Session, note: NoteScaling, entry: Entry) -> None:
    """Which replicas are kept or let go follows from the numbers, as `kernel/provision.py` chooses them."""
    session.said.append(Said(entry.at_s, entry.wall_s, note.action, note.is_advice, sentence(note)))
    if note.is_advice or note.action is ScaleAction.HOLD:
        return
    mine = [
        found
        for found in session.replicas.values()
        if found.spec.model == note.model
        and found.spec.accelerator == note.accelerator
        and found.spec.url is None
    ]
    if note.action is ScaleAction.UP:
        for found in [one for one in mine if not one.is_planned][: note.wants - note.had]:
            _keep(found)
        return
    order = {ReplicaState.LOST: 0, ReplicaState.STARTING: 1, ReplicaState.EJECTED: 2}
    going = sorted((one for one in mine if one.is_planned), key=lambda one: one.spec.id, reverse=True)
    going.sort(key=lambda one: (order.get(one.state, 3), len(one.calls)))
    for found in going[: note.had - note.wants]:
        _retire(session, found)


# --- the view --------------------------------------------------------------------------------------------


def _top(session: _Session, now_s: float) -> Top:
    cards = _cards(session)
    models = sorted({model for model, _ in cards} | set(session.arrivals) | _bounded(session))
    rows = tuple(
        ModelRow(
            model,
            tuple(row for (name, _), row in sorted(cards.items()) if name == model),
            session.waiting[model],
            sum(running.item.model == model for running in session.calls.values()),
            _per_s(session, session.arrivals.get(model, ()), now_s),
        )
        for model in models
    )
    settings = session.provisioning
    usd = settings.max_usd_per_h if settings is not None else float("inf")
    return Top(
        wall_s=session.head.wall_s - session.head.at_s + now_s,
        session_s=now_s - session.head.at_s,
        lines_lost=session.lines_lost,
        is_draining=session.is_draining,
        models=rows,
        runs=tuple(_run_rows(session, now_s)),
        usd_per_h=round(sum(row.usd_per_h for row in cards.values()), 9),
        max_usd_per_h=None if usd == float("inf") else usd,
        provisioner="" if settings is None else f"{settings.policy}, {settings.mode.value}",
        said=tuple(reversed(session.said)),
    )


def _bounded(session: _Session) -> set[ModelName]:
    settings = session.provisioning
    return set() if settings is None else {bounds.model for bounds in settings.bounds}


def _cards(session: _Session) -> Mapping[tuple[ModelName, AcceleratorName], CardRow]:
    settings = session.provisioning
    bounds = () if settings is None else settings.bounds
    each = {(one.model, one.accelerator): one.cards for one in bounds}
    counts: dict[tuple[ModelName, AcceleratorName], Counter[ReplicaState]] = {
        (one.model, one.accelerator): Counter() for one in bounds
    }
    for found in session.replicas.values():
        counts.setdefault((found.spec.model, found.spec.accelerator), Counter())[found.state] += 1
    rows = {}
    for (model, name), states in counts.items():
        card = session.accelerators.get(name)
        price = card.usd_per_h * each.get((model, name), 1) if card is not None else 0.0
        paid = states.total() - states[ReplicaState.LOST]
        rows[model, name] = CardRow(
            name,
            states[ReplicaState.STARTING],
            states[ReplicaState.READY],
            states[ReplicaState.EJECTED],
            states[ReplicaState.DRAINING],
            states[ReplicaState.LOST],
            price * paid,
        )
    return rows


def _per_s(session: _Session, moments: Iterable[float], now_s: float) -> float:
    """Over the last LATELY_S seconds, or as long as the session is old."""
    age_s = max(1.0, min(LATELY_S, now_s - session.head.at_s))
    return sum(at_s > now_s - LATELY_S for at_s in moments) / age_s


def _run_rows(session: _Session, now_s: float) -> Iterable[RunRow]:
    underway = Counter(run.key for run in session.runs.values())
    for key in sorted(session.submitted):
        ends = [finish for at_s, finish in session.ended.get(key, ()) if at_s > now_s - KEPT_S]
        yield RunRow(
            tenant=key[0],
            workflow=key[1],
            underway=underway[key],
            per_s=_per_s(session, session.submitted[key], now_s),
            ended=len(ends),
            promised=sum(finish.verdict is not Verdict.NONE for finish in ends),
            met=sum(finish.verdict is Verdict.MET for finish in ends),
            failed=sum(finish.outcome is not Outcome.SUCCEEDED for finish in ends),
        )
