"""Capacity: how many runs per second a fleet can bear if its batches were always full.

Owns the stability limit that labels every load. It says nothing about deadlines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tightrope.model.ids import ModelName
from tightrope.model.profile import Profile
from tightrope.policy import utilisation
from tightrope.policy.simplex import largest_rate


@dataclass(frozen=True, slots=True)
class Demand:
    """What one run asks of one model on average, in calls of one kind: how many, and their mean lengths."""

    calls: float
    prompt_tokens: float
    output_tokens: float


def work_ms(profile: Profile, demand: Demand) -> float:
    """Machine milliseconds of one call when the batch is full."""
    return utilisation.work_ms(profile, demand.prompt_tokens, demand.output_tokens)


def stability_limit(
    demands: Mapping[ModelName, Sequence[Demand]], fleet: Mapping[ModelName, Sequence[Profile]]
) -> float:
    """Runs per second at which the first pool's machines are busy all the time; `fleet` has a profile per replica.

    Within a pool of unequal cards each kind of call goes where it is relatively cheapest, as a linear program
    finds it. Inf when nothing is asked.
    """
    return min((pool_limit(kinds, fleet[model]) for model, kinds in demands.items()), default=float("inf"))


def pool_limit(kinds: Sequence[Demand], replicas: Sequence[Profile]) -> float:
    """The same for one model. With one kind of call it is the sum over replicas of 1000 / (calls x work_ms).

    In general: the most runs per second, with y[v,g] the share of time that the machines of kind g spend on
    calls of kind v, such that for each g the sum over v of y[v,g] is at most 1, and for each v the sum over g of
    y[v,g] x 1000 x machines[g] / work_ms[v,g] is at least that rate x calls[v].
    """
    asked = [kind for kind in kinds if kind.calls > 0]
    machines = Counter(replicas)
    if not asked or not machines:
        return 0.0 if asked else float("inf")
    rates = [
        [1000 * count / (work_ms(profile, kind) * kind.calls) for profile, count in machines.items()]
        for kind in asked
    ]
    return largest_rate(rates)
