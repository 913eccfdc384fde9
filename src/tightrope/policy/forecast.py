"""Forecast: how many calls per second will come, and how wrong that may be.

Owns the history of arrivals at one model: counts in bins, their level and trend (Holt's method with a damped
trend, Gardner and McKenzie, 1985) with the variance of its errors, how often and by how much it was exceeded, and the
traffic envelope of the last minute (InferLine, 1812.01776). What is done about it is `provision.py`.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

BIN_S = 5.0
LEVEL_GAIN, TREND_GAIN, DAMPING = 0.3, 0.1, 0.9
"""How much one bin changes level and trend, and what is left of a trend one bin later."""
ERROR_GAIN = 0.1
LEAD_BINS, SPELL_BINS = 6, 3
"""A forecast is held against what comes so many bins later, over a spell of so many: the time of a start, and one
that is long enough to be late in."""
REMEMBERED = 1440
"""Forecasts of the last two hours are held against what came."""
FEWEST_HELD = 60
ENVELOPE_S = (4.0, 8.0, 16.0, 32.0, 64.0)
"""Windows in which the most arrivals are looked for; shorter ones tell of chance only."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Calls per second expected at some time ahead, and the standard deviation of that."""

    per_s: float
    deviation_per_s: float

    def high_per_s(self, deviations: float) -> float:
        """The rate so many standard deviations above what is expected."""
        return self.per_s + deviations * self.deviation_per_s


@dataclass(slots=True)
class Arrivals:
    """Arrivals at one model, noted in the order of time."""

    _moments: deque[float] = field(default_factory=deque)
    _bin: int | None = None
    _count: int = 0
    _bins: int = 0
    _level: float = 0.0
    _trend: float = 0.0
    _variance: float = 0.0
    _counts: deque[int] = field(default_factory=lambda: deque(maxlen=SPELL_BINS))
    _told: deque[float] = field(default_factory=lambda: deque(maxlen=LEAD_BINS))
    _exceeded: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    last_s: float = -math.inf

    def note(self, now_s: float) -> None:
        """One more call came."""
        self._advance(now_s)
        self._count += 1
        self.last_s = now_s
        self._moments.append(now_s)
        while self._moments[0] <= now_s - ENVELOPE_S[-1]:
            self._moments.popleft()

    def forecast(self, now_s: float, ahead_s: float) -> Forecast:
        """The rate `ahead_s` from now. Before a bin is full it is what has come in it; 0 if nothing ever came."""
        self._advance(now_s)
        if self.last_s == -math.inf:
            return Forecast(0.0, 0.0)
        if self._bins == 0:
            begun_s = max(1.0, now_s - (self._bin or 0) * BIN_S) if self._bin is not None else BIN_S
            return Forecast(self._count / begun_s, math.sqrt(self._count) / begun_s)
        steps = ahead_s / BIN_S
        damped = _damped(steps)
        mean = max(0.0, self._level + self._trend * damped)
        # Hyndman et al., Forecasting with Exponential Smoothing (2008), table 6.1, additive errors.
        growth = LEVEL_GAIN**2 + LEVEL_GAIN * TREND_GAIN * damped + (TREND_GAIN * damped) ** 2 / 3
        variance = self._variance * (1 + max(0.0, steps - 1) * growth)
        return Forecast(mean / BIN_S, math.sqrt(variance) / BIN_S)

    def exceeded_by(self, quantile: float) -> float:
        """The factor by which forecasts were exceeded at most in this share of the time, as it was seen in the last two
        hours (split conformal prediction, 1905.03222, in form of a ratio); 1 while too little was seen."""
        if len(self._exceeded) < FEWEST_HELD:
            return 1.0
        ordered = sorted(self._exceeded)
        return ordered[min(len(ordered) - 1, math.ceil(quantile * len(ordered)) - 1)]

    def envelope(self, now_s: float) -> list[tuple[float, float]]:
        """For each window (seconds) the calls per second that came in the latest stretch of that length."""
        found = []
        for window_s in ENVELOPE_S:
            count = sum(moment > now_s - window_s for moment in self._moments)
            found.append((window_s, count / window_s))
        return found

    def _advance(self, now_s: float) -> None:
        """Close the bins that are over."""
        now = int(now_s // BIN_S)
        if self._bin is None:
            self._bin = now
        while self._bin < now:
            self._close(self._count)
            self._count = 0
            self._bin += 1

    def _close(self, count: int) -> None:
        self._bins += 1
        self._counts.append(count)
        if len(self._told) == LEAD_BINS and self._told[0] >= 1.0:
            self._exceeded.append(sum(self._counts) / len(self._counts) / self._told[0])
        self._learn(count)
        self._told.append(self._level + self._trend * _damped(LEAD_BINS))

    def _learn(self, count: int) -> None:
        if self._bins == 1:
            self._level, self._variance = float(count), max(1.0, float(count))
            return
        expected = self._level + DAMPING * self._trend
        error = count - expected
        gain = max(LEVEL_GAIN, 1 / self._bins)
        self._trend = DAMPING * self._trend + gain * TREND_GAIN * error
        self._level = max(0.0, expected + gain * error)
        self._variance += max(ERROR_GAIN, 1 / self._bins) * (error * error - self._variance)


def _damped(steps: float) -> float:
    """What a trend of one adds in so many bins."""
    return DAMPING * (1 - math.pow(DAMPING, steps)) / (1 - DAMPING)


def surprise_per_s(envelope: list[tuple[float, float]], assumed_per_s: float, deviations: float) -> float:
    """The highest rate of the envelope that a Poisson stream of the assumed rate would hardly have; 0 if none is."""
    surprising = [
        per_s
        for window_s, per_s in envelope
        if per_s * window_s
        > assumed_per_s * window_s + deviations * math.sqrt(max(1.0, assumed_per_s * window_s))
    ]
    return max(surprising, default=0.0)
