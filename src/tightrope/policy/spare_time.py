"""Spare time: which part of what a run has beyond its own work is planned for the calls of which model.

Owns the parts and how they are bettered: from round to round some is moved from one model to another if the fleet of
both becomes cheaper by it. A promise is kept whoever uses the time, but a queue in front of dear cards saves more than
one in front of cheap ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tightrope.model.ids import ModelName

MOVED = (0.05, 0.1, 0.2, 0.4)
"""Of the spare time of a run, one of these is moved at once: replicas are whole, so that a little often saves nothing.
"""
LEAST = 0.05
"""No model is planned with less."""
WORTH_IT = 0.03
"""Part of the price that a move must save."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A model that takes part: calls of it in a mean run, and seconds that they take alone."""

    model: ModelName
    calls_per_run: float
    own_s: float


def parts_of(claims: Sequence[Claim], known: Mapping[ModelName, float]) -> dict[ModelName, float]:
    """The part that all calls of each model in a run share, together 1: as known, or in proportion to their work."""
    if all(claim.model in known for claim in claims):
        whole = sum(known[claim.model] for claim in claims)
        if whole > 0:
            return {claim.model: known[claim.model] / whole for claim in claims}
    work = {claim.model: max(1e-6, claim.calls_per_run * claim.own_s) for claim in claims}
    whole = sum(work.values())
    return {model: max(LEAST, own / whole) for model, own in work.items()}


def part_of_call(claim: Claim, parts: Mapping[ModelName, float]) -> float:
    """What one call of the model is given."""
    return parts[claim.model] / max(1.0, claim.calls_per_run)


def bettered(
    claims: Sequence[Claim],
    parts: Mapping[ModelName, float],
    turn: int,
    usd_per_h: Callable[[Claim, float], float],
) -> dict[ModelName, float]:
    """The parts, or with some moved from one model to another if that saves money.

    `turn` says which two are looked at; `usd_per_h(claim, part of a call)` is what the model's fleet would cost.
    """
    pairs = [(one, other) for one in claims for other in claims if one is not other]
    found = dict(parts)
    if not pairs:
        return found
    giver, taker = pairs[turn % len(pairs)]

    def price(parts: Mapping[ModelName, float]) -> float:
        return sum(usd_per_h(claim, part_of_call(claim, parts)) for claim in (giver, taker))

    lowest = (1 - WORTH_IT) * price(parts)
    for much in MOVED:
        if parts[giver.model] - much < LEAST:
            break
        moved = {**parts, giver.model: parts[giver.model] - much, taker.model: parts[taker.model] + much}
        then = price(moved)
        if then < lowest:
            lowest, found = then, moved
    return found
