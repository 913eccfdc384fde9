"""What a simulation is made of, and what it says afterwards: World, Fault, CallRecord, RunRecord.

Owns these values and the judgement of a run. What happens in a world is `driver.py`, how an engine behaves is
`engine.py`, what runs bring along is `workload.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tightrope.kernel.state import KernelSettings
from tightrope.model.fleet import Accelerator, ReplicaSpec
from tightrope.model.ids import AcceleratorName, CallId, ModelName, ReplicaId, RunId, StepId, TenantId
from tightrope.model.outcome import Outcome
from tightrope.model.profile import Profile
from tightrope.model.provision import Provisioning
from tightrope.model.slo import Slo, Tenant
from tightrope.model.workflow import Workflow
from tightrope.sim.engine import Truth

CardKind = tuple[ModelName, AcceleratorName]
"""A model on a kind of card."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens to a replica at `at_s`.

    "slow": its steps take `factor` times as long as profiled from then on (1 heals it). "die": it is gone, its
    calls with it; it comes back when the kernel orders it again and the start-up time of its card has passed.
    """

    at_s: float
    replica: ReplicaId
    kind: Literal["slow", "die"]
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Outage:
    """There are no cards of one kind between two moments: what is on them is lost, what is ordered does not come."""

    accelerator: AcceleratorName
    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True)
class Slowness:
    """Every step of a model takes `factor` times as long as profiled from `at_s` on, wherever it is."""

    at_s: float
    model: ModelName
    factor: float


@dataclass(frozen=True, slots=True)
class Rented:
    """A replica was there, or on order, between two moments: that is what is paid."""

    spec: ReplicaSpec
    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True)
class World:
    """Everything about a simulation but its runs. Its clock starts at 0, with all `replicas` ready.

    `truths` say how the cards behave, `beliefs` what the kernel is told about them; a pair without a belief is
    one that nobody measured. `start_s` is the time from order to ready of what is started later, by card.
    `network_s` passes between the kernel and an engine, each way; `telemetry_s` is how much later still the
    kernel, unlike the reader, hears of first tokens. `start_spread`: by how much, as a share, a start may differ.
    With `provisioning` the kernel changes the fleet.
    """

    accelerators: tuple[Accelerator, ...]
    replicas: tuple[ReplicaSpec, ...]
    truths: Mapping[CardKind, Truth]
    beliefs: Mapping[CardKind, Profile]
    tenants: tuple[Tenant, ...]
    workflows: tuple[Workflow, ...]
    settings: KernelSettings
    start_s: Mapping[AcceleratorName, float]
    network_s: float = 0.0
    faults: tuple[Fault, ...] = ()
    seed: int = 1
    telemetry_s: float = 0.0
    start_spread: float = 0.0
    provisioning: Provisioning | None = None
    outages: tuple[Outage, ...] = ()
    slownesses: tuple[Slowness, ...] = ()


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One attempt on a replica: what was predicted when it was dispatched, and what came of it.

    `predicted_crit_ms` = `lx` + `lq` + `lr`, in ms, of the chosen replica. `measured_crit_ms` runs from the
    dispatch to the first token (`is_terminal`) or to the end; None where that moment never came. Moments are
    on the simulation's clock, as the driver sees them. Tokens are the true ones.
    """

    call: CallId
    step: StepId
    model: ModelName
    replica: ReplicaId
    accelerator: AcceleratorName
    reason: str
    predicted_crit_ms: float
    lx: float
    lq: float
    lr: float
    measured_crit_ms: float | None
    dispatched_s: float
    waited_s: float
    slack_s: float
    budget_s: float
    is_terminal: bool
    first_s: float | None
    ended_s: float | None
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class RunRecord:
    """How a run went for its client. Times in seconds since its arrival, None where the moment never came.

    `ttft_s` is the first content that the client could read, `tpot_s` the mean gap of the answer's tokens.
    `is_met` is the simulator's own judgement, whatever the kernel came to believe.
    """

    run: RunId
    workflow: str
    tenant: TenantId
    arrived_s: float
    slo: Slo
    outcome: Outcome
    ttft_s: float | None
    tpot_s: float | None
    duration_s: float
    is_met: bool
    calls: tuple[CallRecord, ...]


def is_met(slo: Slo, outcome: Outcome, ttft_s: float | None, tpot_s: float | None, duration_s: float) -> bool:
    """Whether a run kept its promise: a whole answer, and everything that was promised in time.

    An answer of one token has no gaps, so nothing can be wrong with them.
    """
    return (
        outcome is Outcome.SUCCEEDED
        and (slo.ttft_s is None or (ttft_s is not None and ttft_s <= slo.ttft_s))
        and (slo.tpot_s is None or tpot_s is None or tpot_s <= slo.tpot_s)
        and (slo.e2e_s is None or duration_s <= slo.e2e_s)
    )
