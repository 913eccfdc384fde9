"""A session read back from its journal: what there was, what every run asked for, when every call was answered.

Owns the way from a journal to a world and scripts that the simulator can play again. What both say of each other is
`parity.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from tightrope.kernel.journal import Entry, Gap, Head, read
from tightrope.kernel.state import KernelSettings
from tightrope.model.errors import InvalidInput
from tightrope.model.fleet import Accelerator, ReplicaSpec
from tightrope.model.ids import AcceleratorName, CallId, ReplicaId, RunId, StepId, TenantId, WorkflowId
from tightrope.model.messages import (
    AcceleratorRegistered,
    CallDone,
    CallFailed,
    CancelCall,
    CaseTaken,
    Dispatch,
    FinishRun,
    FirstToken,
    FleetPlanned,
    Prepared,
    PrepareFailed,
    ProfileLoaded,
    ReplicaLost,
    ReplicaReady,
    RunCancelled,
    RunCode,
    RunSubmitted,
    StartReplica,
    TenantRegistered,
    WorkflowDeployed,
)
from tightrope.model.outcome import Usage
from tightrope.model.profile import Profile
from tightrope.model.slo import Tenant
from tightrope.model.workflow import Node, Workflow
from tightrope.sim.engine import Truth
from tightrope.sim.script import CallScript, RunScript
from tightrope.sim.world import CardKind, Fault, World


@dataclass(frozen=True, slots=True)
class SeenCall:
    """One model call on a replica. Moments are seconds after the head of the journal, None where they never came.

    Tokens are those used; of a call that did not end well (`ended_s` None, `given_up_s` set) those expected.
    """

    call: CallId
    run: RunId
    step: StepId
    replica: ReplicaId
    kind: CardKind
    prompt_tokens: int
    output_tokens: int
    dispatched_s: float
    first_s: float | None
    ended_s: float | None
    given_up_s: float | None


@dataclass(frozen=True, slots=True)
class SeenRun:
    """One run: the script it turned out to follow, and how it ended (None: it had not when the journal did).

    `is_disturbed`: something happened to it that no script tells (a call failed, its client left), or a call was given
    up and never ended well, so that its length is a guess. What is tried again because of a time limit is no
    disturbance: the same will happen in the simulation if its times are the same.
    """

    script: RunScript
    finish: FinishRun | None
    is_disturbed: bool


@dataclass(frozen=True, slots=True)
class Session:
    """Everything about a session that its journal tells. Profiles are the latest believed of each pair.

    `start_s`: what the journal's clock said at its head, from where all other moments are counted. `losses`: replicas
    that went away; `up_after_s`: how long a replica last took to start, by card.
    """

    start_s: float
    settings: KernelSettings
    accelerators: tuple[Accelerator, ...]
    replicas: tuple[ReplicaSpec, ...]
    profiles: Mapping[CardKind, Profile]
    tenants: tuple[Tenant, ...]
    workflows: tuple[Workflow, ...]
    runs: tuple[SeenRun, ...]
    calls: tuple[SeenCall, ...]
    losses: tuple[Fault, ...]
    up_after_s: Mapping[AcceleratorName, float]

    @property
    def scripts(self) -> list[RunScript]:
        """What the simulator is to play, in order of arrival."""
        return [run.script for run in self.runs]


def session(lines: Iterable[str]) -> Session:
    """Read one session. Raises InvalidInput where a journal has no head, several of them, or a gap."""
    reading: _Reading | None = None
    for item in read(lines):
        match item:
            case Head() if reading is None:
                reading = _Reading(item)
            case Entry() if reading is not None:
                reading.take(item)
            case Gap():
                raise InvalidInput("the journal has a gap, so nobody knows what its runs really did")
            case _:
                raise InvalidInput(
                    "the journal is not that of one session: it needs one head, before all else"
                )
    if reading is None:
        raise InvalidInput("the journal is empty")
    return reading.session()


def world(
    found: Session, truths: Mapping[CardKind, Truth], *, network_s: float = 0.0, seed: int = 1
) -> World:
    """The world that the session happened in, its cards behaving like this. Its fleet is up from the start, and its
    replicas go away when they did."""
    return World(
        accelerators=found.accelerators,
        replicas=found.replicas,
        truths=truths,
        beliefs=found.profiles,
        tenants=found.tenants,
        workflows=found.workflows,
        settings=found.settings,
        start_s={spec.accelerator: found.up_after_s.get(spec.accelerator, 0.0) for spec in found.replicas},
        network_s=network_s,
        faults=found.losses,
        seed=seed,
    )


# --- reading ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Call:
    """A call under way: of a model (with its Dispatch) or of code."""

    run: RunId
    step: StepId
    item: int
    began_s: float
    dispatch: Dispatch | None = None
    first_s: float | None = None


@dataclass(slots=True)
class _Run:
    """What is known of a run so far. `done` has, by step and item, what the call that ended well was like."""

    submitted: RunSubmitted
    at_s: float
    prompt_bytes: dict[StepId, tuple[int, ...]] = field(default_factory=dict)
    done: dict[StepId, dict[int, CallScript]] = field(default_factory=lambda: defaultdict(dict))
    cases: dict[StepId, str] = field(default_factory=dict)
    given_up: set[tuple[StepId, int]] = field(default_factory=set)
    finish: FinishRun | None = None
    is_disturbed: bool = False

    @property
    def has_guesses(self) -> bool:
        """Whether a call of it was given up and never ended well."""
        return any(item not in self.done[step] for step, item in self.given_up)


class _Reading:
    """Takes in the lines of one session."""

    def __init__(self, head: Head) -> None:
        self._settings = head.settings
        self._start_s = head.at_s
        self._accelerators: dict[str, Accelerator] = {}
        self._profiles: dict[CardKind, Profile] = {}
        self._tenants: dict[TenantId, Tenant] = {}
        self._workflows: dict[WorkflowId, Workflow] = {}
        self._replicas: dict[ReplicaId, ReplicaSpec] = {}
        self._runs: dict[RunId, _Run] = {}
        self._calls: dict[CallId, _Call] = {}
        self._seen: list[SeenCall] = []
        self._ordered_s: dict[ReplicaId, float] = {}
        self._losses: list[Fault] = []
        self._up_after_s: dict[AcceleratorName, float] = {}

    def take(self, entry: Entry) -> None:
        """One line, in the order of the journal."""
        at_s = entry.at_s - self._start_s
        match entry.message:
            case TenantRegistered(tenant):
                self._tenants[tenant.id] = tenant
            case AcceleratorRegistered(card):
                self._accelerators[card.name] = card
            case ProfileLoaded(profile):
                self._profiles[profile.model, profile.accelerator] = profile
            case WorkflowDeployed(workflow):
                self._workflows[workflow.id] = workflow
            case FleetPlanned(plan):
                self._replicas = {spec.id: spec for spec in plan.replicas}
            case StartReplica(spec):
                self._ordered_s[spec.id] = at_s
            case ReplicaReady(replica) if replica in self._ordered_s:
                kind = self._replicas[replica].accelerator
                self._up_after_s[kind] = at_s - self._ordered_s.pop(replica)
            case ReplicaLost(replica):
                self._losses.append(Fault(at_s, replica, "die"))
            case RunSubmitted(run=run) as submitted:
                self._runs[run] = _Run(submitted, at_s)
            case Prepared(run, step, items):
                self._runs[run].prompt_bytes[step] = tuple(item.prompt_bytes for item in items)
            case CaseTaken(run, step, case):
                self._runs[run].cases[step] = case
            case RunCode(call, run, step, item):
                self._calls[call] = _Call(run, step, item, at_s)
            case Dispatch(call, run, step, item) as dispatch:
                self._calls[call] = _Call(run, step, item, at_s, dispatch)
            case FirstToken(call) if call in self._calls:
                self._calls[call].first_s = at_s
            case CallDone(call, usage) if call in self._calls:
                self._done(self._calls.pop(call), usage, at_s)
            case CallFailed(call) if call in self._calls:
                self._runs[self._calls[call].run].is_disturbed = True
                self._given_up(self._calls.pop(call), at_s)
            case CancelCall(call) if call in self._calls:
                self._given_up(self._calls.pop(call), at_s)
            case RunCancelled(run) | PrepareFailed(run) if run in self._runs:
                self._runs[run].is_disturbed = True
            case FinishRun(run=run) as finish:
                self._runs[run].finish = finish
            case _:
                pass

    def session(self) -> Session:
        """What was taken in."""
        typical = _typical(self._runs.values())
        return Session(
            start_s=self._start_s,
            settings=self._settings,
            accelerators=tuple(self._accelerators.values()),
            replicas=tuple(self._replicas.values()),
            profiles=self._profiles,
            tenants=tuple(self._tenants.values()),
            workflows=tuple(self._workflows.values()),
            runs=tuple(self._seen_run(run, typical) for run in self._runs.values()),
            calls=tuple(sorted(self._seen, key=lambda call: (call.dispatched_s, call.call))),
            losses=tuple(self._losses),
            up_after_s=self._up_after_s,
        )

    def _done(self, call: _Call, usage: Usage, at_s: float) -> None:
        run = self._runs[call.run]
        sizes = run.prompt_bytes.get(call.step, ())
        run.done[call.step][call.item] = CallScript(
            prompt_tokens=usage.prompt_tokens,
            output_tokens=max(1, usage.output_tokens),
            seconds=at_s - call.began_s if call.dispatch is None else 0.0,
            prompt_bytes=sizes[call.item] if call.item < len(sizes) else 0,
        )
        self._see(call, usage, ended_s=at_s)

    def _given_up(self, call: _Call, at_s: float) -> None:
        self._runs[call.run].given_up.add((call.step, call.item))
        self._see(call, None, given_up_s=at_s)

    def _see(
        self,
        call: _Call,
        usage: Usage | None,
        *,
        ended_s: float | None = None,
        given_up_s: float | None = None,
    ) -> None:
        dispatch = call.dispatch
        if dispatch is None:
            return
        spec = self._replicas[dispatch.replica]
        self._seen.append(
            SeenCall(
                call=dispatch.call,
                run=call.run,
                step=call.step,
                replica=dispatch.replica,
                kind=(spec.model, spec.accelerator),
                prompt_tokens=max(1, usage.prompt_tokens if usage else dispatch.prompt_tokens),
                output_tokens=max(1, usage.output_tokens if usage else round(dispatch.output_tokens)),
                dispatched_s=call.began_s,
                first_s=call.first_s,
                ended_s=ended_s,
                given_up_s=given_up_s,
            )
        )

    def _seen_run(self, run: _Run, typical: Mapping[tuple[WorkflowId, StepId], CallScript]) -> SeenRun:
        submitted = run.submitted
        workflow = self._workflows[submitted.workflow]
        cases = {switch.id: run.cases.get(switch.id, switch.cases[-1].name) for switch in workflow.switches}
        calls = {
            node.id: _items(run, node, typical.get((workflow.id, node.id), _UNKNOWN))
            for node in workflow.nodes
        }
        script = RunScript(submitted.run, run.at_s, submitted.tenant, workflow, submitted.slo, calls, cases)
        return SeenRun(script, run.finish, run.is_disturbed or run.has_guesses or run.finish is None)


_UNKNOWN = CallScript(prompt_tokens=1)
"""An item of a node of which no call ever ended well; only a run that goes where none went before gets here."""


def _items(run: _Run, node: Node, typical: CallScript) -> tuple[CallScript, ...]:
    """As many items as were prepared; what never ended well is taken to be as the node's calls are on average."""
    width = len(run.prompt_bytes.get(node.id, (0,)))
    done = run.done.get(node.id, {})
    return tuple(done.get(item, typical) for item in range(width))


def _typical(runs: Iterable[_Run]) -> dict[tuple[WorkflowId, StepId], CallScript]:
    found: dict[tuple[WorkflowId, StepId], list[CallScript]] = defaultdict(list)
    for run in runs:
        for step, items in run.done.items():
            found[run.submitted.workflow, step] += items.values()
    return {node: _mean(calls) for node, calls in found.items()}


def _mean(calls: Sequence[CallScript]) -> CallScript:
    return CallScript(
        prompt_tokens=round(fmean(call.prompt_tokens for call in calls)),
        output_tokens=round(fmean(call.output_tokens for call in calls)),
        seconds=fmean(call.seconds for call in calls),
        prompt_bytes=round(fmean(call.prompt_bytes for call in calls)),
    )
