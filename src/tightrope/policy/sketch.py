"""Sketch: what a quantity usually is, learned from a stream of values.

Owns decayed counts and quantiles. A sketch keeps logarithmic buckets (relative error 2 %) whose weights halve
every hour, and can be merged with another one. The bucket rule is that of DDSketch (1908.10693). What the
values mean, and which sketch answers for what, is `learn.py`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from operator import mul
from random import Random

HALF_LIFE_S = 3600.0
RELATIVE_ERROR = 0.02

_GROWTH = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GROWTH = math.log(_GROWTH)
_REBASE_AFTER = 20.0  # half-lives; keeps weights far from overflow
_ZERO = -(10**9)  # the bucket of values that have no logarithm


class Tally:
    """A count that halves every hour. Counts of one instant add up to the same in any order."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._at_s = 0.0

    def add(self, now_s: float, weight: float = 1.0) -> None:
        """Count one more. A moment before the last one counts as the last one."""
        at_s = max(now_s, self._at_s)
        self._weight = self.value(at_s) + weight
        self._at_s = at_s

    def value(self, now_s: float) -> float:
        """The count as it weighs now; never negative."""
        return self._weight * math.exp2(-max(0.0, now_s - self._at_s) / HALF_LIFE_S)


class Sketch:
    """Quantiles of a stream of non-negative values, recent ones weighing more.

    All weights fade at the same pace, so only `count` depends on the moment it is asked for; the other
    answers change when a value is added. An empty sketch answers 0.
    """

    def __init__(self) -> None:
        self._weight_by_bucket: dict[int, float] = {}
        self._buckets: list[int] = []  # in order, with the values they stand for
        self._values: list[float] = []
        self._total = 0.0
        self._sum = 0.0
        self._origin_s = 0.0
        self._ladder: _Ladder | None = None

    def add(self, value: float, now_s: float) -> None:
        """Take in one value; a negative one counts as 0."""
        weight = self._weight_at(now_s)
        bucket = _bucket(value)
        self._put(bucket, weight)
        self._total += weight
        self._sum += weight * max(0.0, value)
        self._ladder = None

    def merge(self, other: Sketch) -> None:
        """Take in everything the other sketch has seen, as if it had been added here."""
        if other._origin_s > self._origin_s:
            self._rebase(other._origin_s)
        factor = math.exp2((other._origin_s - self._origin_s) / HALF_LIFE_S)
        for bucket, weight in other._weight_by_bucket.items():
            self._put(bucket, factor * weight)
        self._total += factor * other._total
        self._sum += factor * other._sum
        self._ladder = None

    def count(self, now_s: float) -> float:
        """How many values it holds, each weighing half as much for every hour of its age."""
        return self._total * math.exp2((self._origin_s - now_s) / HALF_LIFE_S)

    def mean(self) -> float:
        """Weighted mean; exact, not from buckets."""
        return self._sum / self._total if self._total else 0.0

    def quantile(self, q: float) -> float:
        """The smallest value such that a share q of the weight is at or below it, within 2 %."""
        return self._rungs().at(q)

    def draw(self, rng: Random) -> float:
        """A value at random, as likely as it was seen."""
        return self._rungs().at(rng.random())

    def mean_beyond(self, floor: float) -> float:
        """Mean of the values above `floor`: at least floor + 1, and never falling as the floor rises.

        What a call that has produced `floor` tokens will end up with; floor + 1 if nothing longer was seen.
        """
        return max(floor + 1.0, self._rungs().mean_above(floor))

    def _rungs(self) -> _Ladder:
        if self._ladder is None:
            weights = [self._weight_by_bucket[bucket] for bucket in self._buckets]
            self._ladder = _Ladder(self._values.copy(), weights)
        return self._ladder

    def _put(self, bucket: int, weight: float) -> None:
        found = self._weight_by_bucket.get(bucket)
        if found is None:
            at = bisect_left(self._buckets, bucket)
            self._buckets.insert(at, bucket)
            self._values.insert(at, _middle(bucket))
        self._weight_by_bucket[bucket] = (found or 0.0) + weight

    def _weight_at(self, now_s: float) -> float:
        """Weight of a value seen now, in the scale of the origin: later values weigh more, old ones stay."""
        if now_s - self._origin_s > _REBASE_AFTER * HALF_LIFE_S:
            self._rebase(now_s)
        return math.exp2((now_s - self._origin_s) / HALF_LIFE_S)

    def _rebase(self, origin_s: float) -> None:
        factor = math.exp2((self._origin_s - origin_s) / HALF_LIFE_S)
        self._weight_by_bucket = {bucket: factor * w for bucket, w in self._weight_by_bucket.items()}
        self._total *= factor
        self._sum *= factor
        self._origin_s = origin_s
        self._ladder = None


class _Ladder:
    """Values in order, with the cumulated weight and, where that is asked for, the cumulated weighted sum."""

    def __init__(self, values: Sequence[float], weights: Sequence[float]) -> None:
        self._values = values
        self._weights = weights
        self._below = list(accumulate(weights))

    @cached_property
    def _sums(self) -> list[float]:
        return list(accumulate(map(mul, self._values, self._weights)))

    def at(self, q: float) -> float:
        if not self._values:
            return 0.0
        index = bisect_left(self._below, q * self._below[-1] * (1 - 1e-12))
        return self._values[min(index, len(self._values) - 1)]

    def mean_above(self, floor: float) -> float:
        """Mean of the bucket values above `floor`; 0 where there is none."""
        first = bisect_left(self._values, math.nextafter(floor, math.inf))
        if first == len(self._values):
            return 0.0
        weight = self._below[-1] - (self._below[first - 1] if first else 0.0)
        total = self._sums[-1] - (self._sums[first - 1] if first else 0.0)
        if weight <= 0:
            return self._values[-1]
        # Differences of long sums lose digits; the mean of the rest lies between its ends in any case.
        return min(max(total / weight, self._values[first]), self._values[-1])


def _bucket(value: float) -> int:
    return math.ceil(math.log(value) / _LOG_GROWTH) if value > 1e-9 else _ZERO


def _middle(bucket: int) -> float:
    """The value within 2 % of everything that falls into the bucket."""
    return 0.0 if bucket == _ZERO else float(2 * _GROWTH**bucket / (_GROWTH + 1))
