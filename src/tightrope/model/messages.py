"""Everything the kernel is told and everything it asks for: two closed unions of frozen dataclasses.

Events are facts in the past tense, commands are wishes in the imperative. A reader who knows the two unions
knows the system. All are encodable (`kernel/journal.py`); payloads (prompts, answers) are never in them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from tightrope.model.fleet import Accelerator, FleetPlan, ReplicaSpec, Routed
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
from tightrope.model.outcome import FailureKind, Outcome, Refusal, Usage, Verdict
from tightrope.model.profile import Profile
from tightrope.model.provision import Provisioning, ScaleAction
from tightrope.model.slo import Slo, Tenant
from tightrope.model.workflow import Workflow

# --- events: what the kernel knows -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TenantRegistered:
    """A tenant exists, or its contract changed."""

    tenant: Tenant


@dataclass(frozen=True, slots=True)
class AcceleratorRegistered:
    """A kind of card exists, or its row changed."""

    accelerator: Accelerator


@dataclass(frozen=True, slots=True)
class ProfileLoaded:
    """What to believe about a model on an accelerator from now on."""

    profile: Profile


@dataclass(frozen=True, slots=True)
class WorkflowDeployed:
    """A workflow may be run from now on; runs of an earlier version go on unchanged."""

    workflow: Workflow


@dataclass(frozen=True, slots=True)
class FleetPlanned:
    """Which replicas shall exist from now on."""

    plan: FleetPlan


@dataclass(frozen=True, slots=True)
class ProvisioningSet:
    """From now on the fleet follows the load, within these bounds."""

    provisioning: Provisioning


# --- events: life of a replica ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReplicaReady:
    """The replica answers. `max_sequences` is what its engine reports, None where it does not say."""

    replica: ReplicaId
    max_sequences: int | None = None


@dataclass(frozen=True, slots=True)
class ReplicaLost:
    """The replica is gone, or could not be started; `why` is for people."""

    replica: ReplicaId
    why: str


@dataclass(frozen=True, slots=True)
class ReplicaStopped:
    """The replica ended because it was asked to."""

    replica: ReplicaId


# --- events: life of a run -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunSubmitted:
    """A request arrived. `slo` and `deadline_s` (seconds from arrival) are what holds for this run.

    `is_streamed`: what the output node produces reaches the client at once and cannot be taken back.
    `output_tokens` caps the output node below its own limit; None leaves it.
    """

    run: RunId
    tenant: TenantId
    workflow: WorkflowId
    slo: Slo
    deadline_s: float
    is_streamed: bool
    output_tokens: int | None = None
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class RunCancelled:
    """The client left, or somebody asked to end the run."""

    run: RunId
    why: str


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """No new runs from now on; running ones go on."""


@dataclass(frozen=True, slots=True)
class Item:
    """One prepared call: bytes of its rendered prompt, and its tokens where they are known exactly.

    `blocks` are hashes of the leading pieces of the prompt, `block_tokens` long each, each with all before it and
    with the tenant in it. None of the prompt can be told from them.
    """

    prompt_bytes: int = 0
    prompt_tokens: int | None = None
    blocks: tuple[int, ...] = ()
    block_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """The inputs of a node were built; one item, or one per element of its fan-out (which may be none)."""

    run: RunId
    step: StepId
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class CaseTaken:
    """The guards of a switch were evaluated."""

    run: RunId
    step: StepId
    case: str


@dataclass(frozen=True, slots=True)
class PrepareFailed:
    """The inputs of a node, or the guards of a switch, could not be built."""

    run: RunId
    step: StepId
    failure: FailureKind
    message: str


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The first content of a model call arrived."""

    call: CallId


@dataclass(frozen=True, slots=True)
class CallDone:
    """A call ended well, and its answer has the shape that was asked for."""

    call: CallId
    usage: Usage
    was_repaired: bool = False


@dataclass(frozen=True, slots=True)
class CallFailed:
    """One attempt of a call ended badly. `usage` is what it had cost until then."""

    call: CallId
    failure: FailureKind
    message: str
    usage: Usage = field(default_factory=Usage)


class WakeKind(StrEnum):
    """Why the kernel asked to be woken."""

    RUN_DEADLINE = "run_deadline"
    STEP_TOTAL = "step_total"
    GATHER_WITHIN = "gather_within"
    CALL_QUEUE = "call_queue"
    CALL_ATTEMPT = "call_attempt"
    CALL_SILENT = "call_silent"
    CALL_OVERDUE = "call_overdue"
    CALL_RETRY = "call_retry"
    REPLICA_RESTART = "replica_restart"
    REPLICA_READMIT = "replica_readmit"
    LEARN = "learn"
    PROVISION = "provision"


@dataclass(frozen=True, slots=True)
class Wake:
    """What a wake-up is about; `subject` is the id of a run, `run/step`, a call, a replica or a workflow,
    or a number."""

    kind: WakeKind
    subject: str


@dataclass(frozen=True, slots=True)
class Woke:
    """The moment asked for has come."""

    wake: Wake


Event = (
    TenantRegistered
    | AcceleratorRegistered
    | ProfileLoaded
    | WorkflowDeployed
    | FleetPlanned
    | ProvisioningSet
    | ReplicaReady
    | ReplicaLost
    | ReplicaStopped
    | RunSubmitted
    | RunCancelled
    | DrainRequested
    | Prepared
    | CaseTaken
    | PrepareFailed
    | FirstToken
    | CallDone
    | CallFailed
    | Woke
)

# --- commands --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prepare:
    """All that the step waits for is there: build its inputs, or evaluate its guards, and say so."""

    run: RunId
    step: StepId


class Settlement(StrEnum):
    """How a step ended that did not simply succeed."""

    SKIPPED = "skipped"
    VALUE = "value"
    """Its declared `on_error` value stands in."""
    JOINED = "joined"
    """A fan-out was closed with the successes it has; the rest is given up."""


@dataclass(frozen=True, slots=True)
class SettleStep:
    """Readers of the step see it like this from now on."""

    run: RunId
    step: StepId
    settlement: Settlement


@dataclass(frozen=True, slots=True)
class Slack:
    """What the run could afford when the call was placed. `due_s` is on the kernel's clock, the rest are seconds.

    `slack_s` = latest finish - now, `budget_s` the share granted to this node, `remaining_s` what the rest of
    the run is expected to need after it (at the configured quantile).
    """

    due_s: float
    slack_s: float
    budget_s: float
    remaining_s: float


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Make this model call on this replica.

    `model` differs from the node's own when it is the fallback. `is_reask`: the answer before had the wrong
    shape. `idle_s`: silence in seconds between two pieces of the answer after which the driver reports
    STALLED. `waited_s`: time in the line. `prompt_tokens` and `output_tokens` are what was expected.
    """

    call: CallId
    run: RunId
    step: StepId
    item: int
    attempt: int
    replica: ReplicaId
    model: str
    max_tokens: int
    is_reask: bool
    idle_s: float
    waited_s: float
    prompt_tokens: int
    output_tokens: float
    slack: Slack
    routed: Routed


@dataclass(frozen=True, slots=True)
class RunCode:
    """Run the function of a code node."""

    call: CallId
    run: RunId
    step: StepId
    item: int
    attempt: int
    slack: Slack


@dataclass(frozen=True, slots=True)
class CancelCall:
    """Stop working on this call; nothing about it will be listened to any more."""

    call: CallId
    why: str


@dataclass(frozen=True, slots=True)
class StartReplica:
    """Bring this replica up and report it ready or lost."""

    spec: ReplicaSpec


@dataclass(frozen=True, slots=True)
class StopReplica:
    """The replica holds no call any more: end it."""

    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class NoteScaling:
    """Nothing is to be done: what the provisioner did about a model, or saw and did not do, and why.

    From `had` to `wants` replicas on this kind of card; `reason` is one of `policy/provision.py`, `evidence` the
    numbers that spoke for it. `is_advice`: nobody carries it out.
    """

    action: ScaleAction
    model: ModelName
    accelerator: AcceleratorName
    had: int
    wants: int
    reason: str
    evidence: tuple[tuple[str, float], ...] = ()
    is_advice: bool = False


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send `Woke(wake)` at this moment, or as soon after it as possible."""

    at_s: float
    wake: Wake


@dataclass(frozen=True, slots=True)
class FinishRun:
    """The run is over. Exactly one for every RunSubmitted.

    `failure` and `refusal` say why it did not succeed, `step` where. Times are seconds since arrival; None
    where the moment never came. `late_s` is how far beyond the target the SLO event was (negative: early).
    """

    run: RunId
    tenant: TenantId
    workflow: WorkflowId
    outcome: Outcome
    verdict: Verdict
    duration_s: float
    ttft_s: float | None
    tpot_s: float | None
    usage: Usage
    failure: FailureKind | None = None
    refusal: Refusal | None = None
    step: StepId | None = None
    message: str = ""
    retry_after_s: float | None = None


Command = (
    Prepare
    | SettleStep
    | Dispatch
    | RunCode
    | CancelCall
    | StartReplica
    | StopReplica
    | NoteScaling
    | WakeAt
    | FinishRun
)
