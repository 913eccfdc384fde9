"""A scenario as data: fleet, tenants, workload, promises, policies, rates and seeds of one benchmark.

Owns the values and what they mean. How they are written is `scenario_form.py`; the world and the scripts that
follow from them are `cell.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from tightrope.model.ids import AcceleratorName, ModelName, TenantId
from tightrope.model.profile import Profile
from tightrope.sim.promise import Promise


@dataclass(frozen=True, slots=True)
class Placement:
    """`count` replicas of a model on one kind of card."""

    model: ModelName
    accelerator: AcceleratorName
    count: int


@dataclass(frozen=True, slots=True)
class Hardware:
    """How every replica is set up, and what is true of cards beside their coefficients.

    `host_overhead_s` is spent in every engine step. `noise` is the relative standard deviation of one step.
    `prefix_block_tokens` > 0 gives engines a prefix cache of such blocks. `start_s` passes from order to ready,
    `network_s` each way between runtime and engine. `is_ahead`: engines compose a step while the one before it
    runs (asynchronous scheduling), so that what arrives or ends counts one step later. `usd_per_h` overrides the
    prices of the table of cards.
    """

    host_overhead_s: float = 0.004
    step_tokens: int = 2048
    max_sequences: int = 128
    noise: float = 0.0
    prefix_block_tokens: int = 0
    start_s: float = 30.0
    network_s: float = 0.0
    is_ahead: bool = False
    usd_per_h: tuple[tuple[AcceleratorName, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Stream:
    """Runs of one workflow by one tenant: `share` of all arrivals (all shares of a scenario add up to 1)."""

    tenant: TenantId
    workflow: str
    share: float


Lengths = Literal["varied", "fixed"]
"""`varied`: drawn from data; `fixed`: every call of a node has the mean length of that data."""


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent arrivals at a constant rate."""


@dataclass(frozen=True, slots=True)
class Bursts:
    """A Poisson process whose rate switches between calm and `factor` times that, at random (MMPP).

    Mean stays are `calm_s` and `burst_s`; the mean rate over both is that of the scenario.
    """

    factor: float
    calm_s: float
    burst_s: float


@dataclass(frozen=True, slots=True)
class Diurnal:
    """A rate that swings as a sine by `swing` (0 to 1) of its mean over one `period_s`."""

    swing: float
    period_s: float


@dataclass(frozen=True, slots=True)
class Trace:
    """The gaps of a recorded trace, stretched to the rate of the scenario; seeds begin at different places."""

    name: str


@dataclass(frozen=True, slots=True)
class Day:
    """Recorded gaps under the rate of a day: `sim/arrivals.py` says how. The scenario's rate is its mean."""

    traces: tuple[str, ...]
    length_s: float
    trough: float
    bursts: int
    factor: float
    burst_s: float


@dataclass(frozen=True, slots=True)
class Surge:
    """A Poisson process that is `factor` times as fast from `at_s` on, for `lasts_s`. The rate is the calm one."""

    at_s: float
    lasts_s: float
    factor: float


Arrivals = Poisson | Bursts | Diurnal | Trace | Day | Surge


@dataclass(frozen=True, slots=True)
class Elastic:
    """A fleet that follows the load: its placements are the most replicas there may be, and none is there for good.

    `start_s` are the seconds from order to ready by card, `start_spread` how much a start may differ from that, as a
    share. `attain` is the share of the runs that shall keep their promise.
    """

    start_s: tuple[tuple[AcceleratorName, float], ...]
    start_spread: float = 0.2
    attain: float = 0.99
    max_usd_per_h: float = math.inf


@dataclass(frozen=True, slots=True)
class Belief:
    """The kernel believes that every step on `accelerator` takes `factor` times what it really takes."""

    accelerator: AcceleratorName
    factor: float


@dataclass(frozen=True, slots=True)
class Mishap:
    """What happens to one replica of a pool, counted from 0 in order of ids, `at_s` after the start.

    `slow`: its steps take `factor` times as long from then on; `die`: it is lost and comes back after its start.
    """

    at_s: float
    model: ModelName
    accelerator: AcceleratorName
    index: int
    kind: Literal["slow", "die"]
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Rate:
    """An arrival rate, as a share of the stability limit or in runs per second; exactly one is given."""

    share: float | None = None
    per_s: float | None = None

    def __str__(self) -> str:
        return f"{self.share:.0%}" if self.share is not None else f"{self.per_s:g} req/s"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One benchmark. Times in seconds of simulated time; what arrives before `warm_up_s` is not counted.

    `small` and `large` are the models that the workflows call so. Either `streams` say who asks for what, or
    `recording` names a load whose arrivals, lengths and tenants belong together. Seeds 0-9 are for tuning and never
    reported; `seeds` are those that are reported. Prompts and answers have `shrink` of the tokens that they have by the
    data. `measured` are profiles of this machine's own engines, of which the fleet consists then, and not of cards.
    """

    name: str
    about: str
    fleet: tuple[Placement, ...]
    small: ModelName
    large: ModelName
    streams: tuple[Stream, ...] = ()
    recording: str | None = None
    hardware: Hardware = field(default_factory=Hardware)
    lengths: Lengths = "varied"
    arrivals: Arrivals = field(default_factory=Poisson)
    promise: Promise = field(default_factory=Promise)
    policies: tuple[str, ...] = ()
    rates: tuple[Rate, ...] = ()
    seeds: tuple[int, ...] = ()
    duration_s: float = 150.0
    warm_up_s: float = 30.0
    beliefs: tuple[Belief, ...] = ()
    telemetry_delay_s: float = 0.0
    mishaps: tuple[Mishap, ...] = ()
    elastic: Elastic | None = None
    shrink: float = 1.0
    measured: tuple[Profile, ...] = ()

    @property
    def unnamed(self) -> Scenario:
        """The same world and load without what is only said of them or asked of them: equal ones give equal results."""
        return replace(self, name="", about="", policies=(), rates=(), seeds=())

    @property
    def models(self) -> tuple[ModelName, ...]:
        """The models of the fleet, each once, in order of appearance."""
        return tuple(dict.fromkeys(placement.model for placement in self.fleet))
