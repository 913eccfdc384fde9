"""
Laws of the safety margin
L8. Of any T calls whose estimates are at most a share M too small, the share that estimate and margin together do not
cover is at most 0.1 + (M + 0.02) / (0.02 T).
1. It is never below 0, and never goes beyond what was needed once by more than one step.
2. Calls that always fit let it fall to 0.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightrope.policy.margin import GAIN, MISSES, START, Margin

errors = st.lists(st.floats(-0.9, 3.0), min_size=1, max_size=300)


@given(errors, st.floats(1.0, 1e5))
def test_l8_misses_are_few(found: list[float], predicted_ms: float) -> None:
    margin, misses = Margin(), 0
    for error in found:
        real_ms = predicted_ms * (1 + error)
        misses += real_ms > predicted_ms * (1 + margin.ratio)
        margin.observe(predicted_ms, real_ms)
    most, count = max(0.0, *found), len(found)
    assert misses / count <= MISSES + (most + GAIN) / (GAIN * count) + 1e-9


@given(errors)
def test_1_it_stays_where_errors_are(found: list[float]) -> None:
    margin = Margin()
    for error in found:
        margin.observe(100.0, 100.0 * (1 + error))
        assert 0 <= margin.ratio <= max(START, *found) + GAIN


def test_2_what_always_fits_needs_no_margin() -> None:
    margin = Margin()
    for _ in range(60):
        margin.observe(100.0, 90.0)
    assert margin.ratio == 0.0
    margin.observe(100.0, 101.0)
    assert margin.ratio == pytest.approx(GAIN * (1 - MISSES))
