"""What a provisioner may do, and what it did: Bounds, Floor, Provisioning, ScaleAction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from tightrope.model.ids import AcceleratorName, ModelName, TenantId


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many replicas of a model may be on one kind of card: from `least` to `most`, each on `cards` of them.

    `load_s` is the time from order to ready (seconds) that is expected until one was seen.
    """

    model: ModelName
    accelerator: AcceleratorName
    least: int
    most: int
    cards: int = 1
    load_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Floor:
    """Runs per second of one tenant for which there is always capacity, whether they come or not."""

    tenant: TenantId
    runs_per_s: float


class ProvisionMode(StrEnum):
    """What becomes of the decisions of a provisioner."""

    ADVISE = "advise"
    """They are written down and not carried out."""
    ACT = "act"


@dataclass(frozen=True, slots=True)
class Provisioning:
    """The contract of the provisioner: its policy, what it may change, and how careful it is.

    It looks every `every_s` seconds. `attain` is the share of calls that shall begin within their budget by the
    queueing model, `headroom` the part of each replica left free on top. More than `risk` of the calls predicted
    late starts an increase. A replica goes after `idle_after_s` without need of it, and between two changes of one
    model downward, or after one upward, lie `cooldown_s`, unless cheaper cards came in its place. `max_usd_per_h` is
    the budget, of the replicas that drain too. `target` is the number that a policy of others aims at, in its own
    unit; None: its authors' default.
    """

    policy: str = "least-cost"
    bounds: tuple[Bounds, ...] = ()
    floors: tuple[Floor, ...] = ()
    mode: ProvisionMode = ProvisionMode.ACT
    every_s: float = 5.0
    attain: float = 0.95
    headroom: float = 0.1
    risk: float = 0.05
    idle_after_s: float = 120.0
    cooldown_s: float = 60.0
    max_usd_per_h: float = math.inf
    target: float | None = None


class ScaleAction(StrEnum):
    """What the provisioner did about one model."""

    UP = "up"
    DOWN = "down"
    HOLD = "hold"
    """It saw a reason to act and did not, or is blind."""
