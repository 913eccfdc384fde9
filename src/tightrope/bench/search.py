"""Where to measure next: bisection of the arrival rate for the highest one at which goodput reaches a level.

Pure: curves in, rates out. Rates are shares of the stability limit. Running them is `run.py`; the value between
the two rates that remain is interpolated by `intervals.crossing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LEVELS = (0.70, 0.90, 0.95, 0.99)
"""The goodputs whose capacity is reported."""
TOLERANCE = 0.03
"""Bisection ends when the two rates around a level are this close, in shares of the stability limit."""
LOWEST, HIGHEST = 0.02, 3.0
"""No rate outside these is tried, however good or bad a policy is."""


def next_shares(
    curve: Mapping[float, float], levels: Sequence[float] = LEVELS, tolerance: float = TOLERANCE
) -> list[float]:
    """The rates at which the curve (share -> mean goodput, at least one point) has to be known next.

    None when every level lies between two rates that are close enough, or outside of what is tried.
    """
    wanted = {_next_share(sorted(curve.items()), level, tolerance) for level in levels}
    return sorted(share for share in wanted if share is not None)


def _next_share(points: Sequence[tuple[float, float]], level: float, tolerance: float) -> float | None:
    reached = [share for share, goodput in points if goodput >= level]
    if not reached:
        lowest = points[0][0]
        return _rounded(max(LOWEST, lowest / 2)) if lowest > LOWEST else None
    below = max(reached)
    beyond = [share for share, _ in points if share > below]
    if not beyond:
        return _rounded(min(HIGHEST, below * 1.25)) if below < HIGHEST else None
    above = min(beyond)
    return _rounded((below + above) / 2) if above - below > tolerance + 1e-9 else None


def _rounded(share: float) -> float:
    """Shares with few digits, so that equal ones are equal in every run and for every policy."""
    return round(share, 4)
