"""
Laws of intervals and crossings
1. The interval of a mean holds the mean, lies within the values, and is a point where all values are equal.
2. Shifting or scaling the values shifts or scales the interval.
3. A paired difference with oneself is nothing, and turns its sign when the two are exchanged.
4. The crossing of a falling curve is where the curve is at the level, and lower levels are crossed later.
5. The interval of a crossing holds the crossing, and is a point where all seeds agree.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tightrope.bench.intervals import (
    Interval,
    crossing,
    crossing_intervals,
    mean_interval,
    paired_difference,
)

values = st.lists(st.floats(-100, 100), min_size=1, max_size=6)
few = settings(max_examples=25)


@few
@given(values)
def test_1_the_interval_holds_the_mean_and_stays_within_the_values(found: list[float]) -> None:
    one = mean_interval(found)
    assert min(found) - 1e-9 <= one.low <= one.value <= one.high <= max(found) + 1e-9
    alike = mean_interval([found[0]] * len(found))
    assert alike.low == pytest.approx(alike.value) == pytest.approx(alike.high)


@few
@given(values, st.floats(-10, 10), st.floats(0.1, 10))
def test_2_shift_and_scale(found: list[float], shift: float, scale: float) -> None:
    one = mean_interval(found)
    other = mean_interval([scale * value + shift for value in found])
    for before, after in ((one.low, other.low), (one.value, other.value), (one.high, other.high)):
        assert after == pytest.approx(scale * before + shift, abs=1e-6)


@few
@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=1, max_size=6))
def test_3_differences_are_paired(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = [one for one, _ in pairs], [other for _, other in pairs]
    assert paired_difference(ours, ours) == Interval(0.0, 0.0, 0.0)
    one, other = paired_difference(ours, theirs), paired_difference(theirs, ours)
    assert one.value == pytest.approx(-other.value, abs=1e-9)


falling = st.lists(st.floats(0.001, 0.999), min_size=2, max_size=8, unique=True).map(
    lambda heights: sorted(heights, reverse=True)
)


@given(falling, st.data())
def test_4_the_crossing_is_where_the_curve_is_at_the_level(heights: list[float], data: st.DataObject) -> None:
    rates = [0.2 * (at + 1) for at in range(len(heights))]
    level = data.draw(st.floats(heights[-1], heights[0]))
    found = crossing(rates, heights, level)
    if found.above is None or found.below is None:
        assert level == pytest.approx(heights[-1])
        return
    low, high = rates.index(found.below), rates.index(found.above)
    part = (found.rate - found.below) / (found.above - found.below)
    assert heights[low] + part * (heights[high] - heights[low]) == pytest.approx(level)
    assert crossing(rates, heights, level * 0.9).rate >= found.rate


def test_4_beyond_what_was_tested_the_crossing_is_a_bound() -> None:
    below, above = crossing([0.2, 0.4], [0.6, 0.5], 0.9), crossing([0.2, 0.4], [1.0, 0.95], 0.9)
    assert (below.rate, below.below, below.above) == (0.2, None, 0.2)
    assert (above.rate, above.below, above.above) == (0.4, 0.4, None)


def test_4_of_several_crossings_the_last_counts() -> None:
    assert crossing([1, 2, 3, 4], [0.95, 0.85, 0.95, 0.85], 0.9).rate == pytest.approx(3.5)


@few
@given(falling, st.floats(0.05, 0.95))
def test_5_seeds_that_agree_leave_no_doubt(heights: list[float], level: float) -> None:
    rates = [0.2 * (at + 1) for at in range(len(heights))]
    (found,) = crossing_intervals(rates, [[height] * 3 for height in heights], [level])
    assert found.low == pytest.approx(found.value) == pytest.approx(found.high)
    two = [[height, min(1.0, height + 0.2)] for height in heights]
    (apart,) = crossing_intervals(rates, two, [level])
    assert apart.low <= apart.value <= apart.high
    assert apart.value >= found.value - 1e-9


def test_two_intervals_are_apart_when_they_share_no_value() -> None:
    one = Interval(1.0, 0.5, 1.5)
    assert not one.is_apart_from(Interval(2.0, 1.5, 2.5))
    assert one.is_apart_from(Interval(2.0, 1.6, 2.5))
    assert Interval(2.0, 1.6, 2.5).is_apart_from(one)
