"""Capacity: how many runs per second a fleet can bear if its batches were always full.

Owns the stability limit that labels every load. It says nothing about deadlines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tightrope.model.ids import ModelName
from tightrope.model.profile import Profile


@dataclass(frozen=True, slots=True)
class Demand:
    """What one run asks of one model on average: calls, and prompt and output tokens of a call."""

    calls: float
    prompt_tokens: float
    output_tokens: float


def work_ms(profile: Profile, demand: Demand) -> float:
    """Machine milliseconds of one call when the batch is full."""
    k = profile.coefficients
    n, o = demand.prompt_tokens, max(1.0, demand.output_tokens)
    batch = max(1.0, min(profile.max_sequences, profile.kv_tokens / (n + o)))
    prefill = k.d * n + k.e * n * n / 2 + (k.a + k.h) * n / profile.step_tokens
    return prefill + (o - 1) * ((k.a + k.h) / batch + k.b + k.c * (n + o / 2))


def stability_limit(
    demands: Mapping[ModelName, Demand], fleet: Mapping[ModelName, Sequence[Profile]]
) -> float:
    """Runs per second at which the first pool's machines are busy all the time; `fleet` has a profile per replica.

    Each pool bears sum over its replicas of 1000 / work_ms calls a second.
    """
    limits = [
        sum(1000 / work_ms(profile, demand) for profile in fleet[model]) / demand.calls
        for model, demand in demands.items()
        if demand.calls > 0
    ]
    return min(limits)
