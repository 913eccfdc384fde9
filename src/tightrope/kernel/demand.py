"""What the provisioner remembers: of each model what was asked of it lately, and of itself what it did.

Owns the tables. When they are written is `signals.py`, what follows from them `provision.py` of this package.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from tightrope.model.ids import AcceleratorName, ModelName, StepId, TenantId
from tightrope.model.provision import Provisioning, ProvisionMode, ScaleAction
from tightrope.policy.forecast import Arrivals
from tightrope.policy.provision import PastCall, Provisioner, ScaleReason

PAST_CALLS = 200
"""Calls that are remembered one by one, for their sizes."""


class Share:
    """The part of the last observations, at most `most`, that were so. 0 without any, and of those that are old."""

    def __init__(self, most: int = 64, within_s: float = 30.0) -> None:
        self._seen: deque[tuple[float, bool]] = deque(maxlen=most)
        self._within_s = within_s

    def note(self, is_so: bool, now_s: float) -> None:
        """One more observation."""
        self._seen.append((now_s, is_so))

    def value(self, now_s: float, fewest: int = 8) -> float:
        """The part of the recent ones; 0 while they are too few to tell."""
        recent = [is_so for at_s, is_so in self._seen if at_s > now_s - self._within_s]
        return sum(recent) / len(recent) if len(recent) >= fewest else 0.0


@dataclass(slots=True)
class Demand:
    """What was asked of one model, and what was heard of its replicas. `awaited_until_s`: a run is under way that will
    come to it. `has_called`: the provisioner was called for it since the last round, and has ordered nothing."""

    arrivals: Arrivals = field(default_factory=Arrivals)
    past: deque[PastCall] = field(default_factory=lambda: deque(maxlen=PAST_CALLS))
    late: Share = field(default_factory=Share)
    over: Share = field(default_factory=Share)
    blamed: dict[StepId, int] = field(default_factory=dict)
    calls_by_tenant: dict[TenantId, float] = field(default_factory=dict)
    heard_s: float = -math.inf
    busy_s: float = -math.inf
    awaited_until_s: float = -math.inf
    has_called: bool = False
    raised_s: float = -math.inf
    lowered_s: float = -math.inf


@dataclass(slots=True)
class Provisioned:
    """The provisioner at work. `memory` is what its policy wants to be told next time, `held` what was last refused or
    advised and why, so that it is said once. `is_called_for`: something cannot wait for the next round."""

    settings: Provisioning
    policy: Provisioner
    memory: dict[str, float] = field(default_factory=dict)
    held: dict[tuple[ScaleAction, ModelName, AcceleratorName], tuple[ScaleReason, int]] = field(
        default_factory=dict
    )
    load_s: dict[tuple[ModelName, AcceleratorName], float] = field(default_factory=dict)
    runs_by_tenant: dict[TenantId, float] = field(default_factory=dict)
    serial: int = 0
    is_called_for: bool = False

    def may_order(self, model: ModelName) -> bool:
        """Whether the bounds leave room for a replica of the model, and it would be ordered."""
        return self.settings.mode is ProvisionMode.ACT and any(
            bounds.model == model and bounds.most > 0 for bounds in self.settings.bounds
        )

    def cards_of(self, model: ModelName) -> set[AcceleratorName]:
        """The kinds of card that it may be on."""
        return {
            bounds.accelerator for bounds in self.settings.bounds if bounds.model == model and bounds.most > 0
        }
