"""When requests arrive: processes with a mean rate, drawn from a source of chance that is handed in.

Owns the moments alone. What arrives is `workload.py`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count as endlessly
from itertools import islice, takewhile
from random import Random

from tightrope.model.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Poisson:
    """Arrivals without memory."""

    rate_per_s: float

    def moments(self, rng: Random) -> Iterator[float]:
        """Endless, ascending seconds."""
        at_s = 0.0
        while True:
            at_s += rng.expovariate(self.rate_per_s)
            yield at_s


@dataclass(frozen=True, slots=True)
class Mmpp:
    """Two Poisson processes in turn, a calm one and a burst that is `factor` times as fast (MMPP of two states).

    Each state lasts exponentially long, `calm_s` and `burst_s` on average. `rate_per_s` is the mean over both.
    """

    rate_per_s: float
    factor: float = 4.0
    calm_s: float = 30.0
    burst_s: float = 5.0

    def moments(self, rng: Random) -> Iterator[float]:
        """Endless, ascending seconds, from a state as it is found at a random moment."""
        whole_s = self.calm_s + self.burst_s
        calm_per_s = self.rate_per_s * whole_s / (self.calm_s + self.factor * self.burst_s)
        is_burst = rng.random() < self.burst_s / whole_s
        began_s = 0.0
        while True:
            ends_s = began_s + rng.expovariate(1 / (self.burst_s if is_burst else self.calm_s))
            for since_s in Poisson(calm_per_s * self.factor if is_burst else calm_per_s).moments(rng):
                if began_s + since_s >= ends_s:
                    break
                yield began_s + since_s
            began_s, is_burst = ends_s, not is_burst


@dataclass(frozen=True, slots=True)
class Diurnal:
    """A rate that swings like a day: rate * (1 + swing * sin(2 pi (t / period + phase))), `swing` at most 1.

    Drawn by thinning a Poisson process of the highest rate (Lewis and Shedler, 1979).
    """

    rate_per_s: float
    swing: float = 0.8
    period_s: float = 600.0
    phase: float = 0.0

    def moments(self, rng: Random) -> Iterator[float]:
        """Endless, ascending seconds."""
        highest = 1 + self.swing
        for at_s in Poisson(self.rate_per_s * highest).moments(rng):
            if rng.random() * highest < 1 + self.swing * math.sin(
                math.tau * (at_s / self.period_s + self.phase)
            ):
                yield at_s


@dataclass(frozen=True, slots=True)
class Trace:
    """Arrivals as they were seen, at least two, ascending, in seconds; stretched to the rate.

    The trace is a circle that is entered at a random arrival, so that seeds differ and no trace is too short.
    """

    seen_s: tuple[float, ...]
    rate_per_s: float

    def moments(self, rng: Random) -> Iterator[float]:
        """Endless, ascending seconds, the first one 0."""
        return self.moments_from(rng.randrange(len(self.seen_s)))

    def moments_from(self, start: int) -> Iterator[float]:
        """The same, entered at this arrival."""
        seen = self.seen_s
        gaps = len(seen) - 1
        circle_s = (seen[-1] - seen[0]) * (1 + 1 / gaps)  # the gap that closes the circle is a mean one
        stretch = len(seen) / circle_s / self.rate_per_s
        for place in endlessly(start):
            rounds, index = divmod(place, len(seen))
            yield (seen[index] - seen[start] + rounds * circle_s) * stretch


@dataclass(frozen=True, slots=True)
class Day:
    """A day, `length_s` long, in the gaps of recorded traces: quiet at both ends, busiest in the middle, with bursts.

    The rate is a half cosine wave from `trough` of its highest value up to it and down again; `bursts` times, at
    random moments, it is `factor` times as high for `burst_s` seconds. The traces are stretched to the highest rate,
    merged, and thinned (Lewis and Shedler, 1979); `rate_per_s` is the mean without bursts.
    """

    traces: tuple[tuple[float, ...], ...]
    rate_per_s: float
    length_s: float = 3600.0
    trough: float = 0.1
    bursts: int = 4
    factor: float = 2.0
    burst_s: float = 60.0

    def moments(self, rng: Random) -> Iterator[float]:
        """Endless, ascending seconds; every day is like the first."""
        starts = sorted(rng.uniform(0, self.length_s - self.burst_s) for _ in range(self.bursts))
        highest = self.rate_per_s * 2 / (1 + self.trough)
        each_per_s = highest * self.factor / len(self.traces)
        streams = [Trace(seen_s, each_per_s).moments(Random(rng.getrandbits(64))) for seen_s in self.traces]
        for at_s in heapq.merge(*streams):
            if rng.random() * self.factor < self._shape(at_s % self.length_s, starts):
                yield at_s

    def _shape(self, at_s: float, starts: Sequence[float]) -> float:
        """The rate over the highest one without bursts."""
        wave = self.trough + (1 - self.trough) * (1 - math.cos(math.tau * at_s / self.length_s)) / 2
        return wave * (self.factor if any(start <= at_s < start + self.burst_s for start in starts) else 1.0)


@dataclass(frozen=True, slots=True)
class Surge:
    """Poisson at `rate_per_s`, but `factor` (at least 1) times as fast from `at_s` on, for `lasts_s`; thinned too."""

    rate_per_s: float
    at_s: float
    lasts_s: float
    factor: float

    def moments(self, rng: Random) -> Iterator[float]:
        """Endless, ascending seconds."""
        for at_s in Poisson(self.rate_per_s * self.factor).moments(rng):
            if self.at_s <= at_s < self.at_s + self.lasts_s or rng.random() * self.factor < 1:
                yield at_s


Arrivals = Poisson | Mmpp | Diurnal | Trace | Day | Surge
"""Each has a `rate_per_s`, of all but Surge the mean, so that `replace(arrivals, rate_per_s=...)` sets the load."""


def times(
    arrivals: Arrivals, rng: Random, *, count: int | None = None, duration_s: float | None = None
) -> list[float]:
    """The first `count` arrivals, those before `duration_s`, or what holds of both. InvalidInput without either."""
    return list(bounded(arrivals.moments(rng), count, duration_s))


def bounded(moments: Iterator[float], count: int | None, duration_s: float | None) -> Iterator[float]:
    """Ascending moments, up to what comes first of the two limits."""
    if count is None and duration_s is None:
        raise InvalidInput("arrivals need a count or a duration, or they never end")
    limit_s = math.inf if duration_s is None else duration_s
    return takewhile(lambda at_s: at_s < limit_s, islice(moments, count))
