"""Intervals: how sure a mean over paired seeds is, and at which rate a curve crosses a level.

Owns the percentile bootstrap over seeds. All figures of one benchmark are resampled with the same draws, so
that differences between policies are those of equal loads; the draws come from a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

RESAMPLES = 1000
CONFIDENCE = 0.95
_DRAWS_SEED = 20260


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and the 95 % interval around it; both ends equal the value where a single seed was run."""

    value: float
    low: float
    high: float

    def is_apart_from(self, other: Interval) -> bool:
        """True when the two intervals share no value."""
        return self.low > other.high or self.high < other.low


@dataclass(frozen=True, slots=True)
class Crossing:
    """The highest rate at which a curve is at least at a level, between the tested rates `below` and `above`.

    `rate` is interpolated linearly between the two. `below` None: not reached even at the lowest rate tested,
    and `rate` is that rate; `above` None: still reached at the highest one, and `rate` is that.
    """

    rate: float
    below: float | None
    above: float | None


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of one value per seed, and its bootstrap interval. Raises ValueError without any."""
    if not values:
        raise ValueError("there is no mean of nothing")
    return bootstrap(
        [math.fsum(values[at] for at in draw) / len(values) for draw in draws(len(values))], mean(values)
    )


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Mean of ours - theirs, seed by seed; both in the same order of seeds."""
    return mean_interval([one - other for one, other in zip(ours, theirs, strict=True)])


def crossing(rates: Sequence[float], heights: Sequence[float], level: float) -> Crossing:
    """Where the curve through (rate, height), in order of rate, is at `level` for the last time."""
    at = max((index for index, height in enumerate(heights) if height >= level), default=None)
    if at is None:
        return Crossing(rates[0], None, rates[0])
    if at == len(rates) - 1:
        return Crossing(rates[at], rates[at], None)
    fall = heights[at] - heights[at + 1]
    part = (heights[at] - level) / fall
    return Crossing(rates[at] + part * (rates[at + 1] - rates[at]), rates[at], rates[at + 1])


def crossing_intervals(
    rates: Sequence[float], by_seed: Sequence[Sequence[float]], levels: Sequence[float]
) -> list[Interval]:
    """The crossings of the mean curve; `by_seed[i]` has the heights of all seeds at `rates[i]`, in one order."""
    seeds = len(by_seed[0])
    whole = [mean(row) for row in by_seed]
    curves = [[sum(row[at] for at in draw) / seeds for row in by_seed] for draw in draws(seeds)]
    return [
        bootstrap(
            [crossing(rates, curve, level).rate for curve in curves], crossing(rates, whole, level).rate
        )
        for level in levels
    ]


def bootstrap(resampled: Sequence[float], value: float) -> Interval:
    """The interval that holds the middle 95 % of what resampling gave."""
    ordered = sorted(resampled)
    tail = (1 - CONFIDENCE) / 2
    low, high = ordered[int(tail * len(ordered))], ordered[math.ceil((1 - tail) * len(ordered)) - 1]
    return Interval(value, min(low, value), max(high, value))  # few seeds can leave the value itself outside


def mean(values: Sequence[float]) -> float:
    """The plain mean."""
    return math.fsum(values) / len(values)


@cache
def draws(count: int) -> tuple[tuple[int, ...], ...]:
    """Which of `count` seeds each resample holds; one resample if there is nothing to choose."""
    if count == 1:
        return ((0,),)
    rng = Random(_DRAWS_SEED)
    return tuple(tuple(rng.choices(range(count), k=count)) for _ in range(RESAMPLES))
