"""
Laws of the search for capacities
1. On any falling curve it ends, with two tested rates around every level that are at most the tolerance apart.
2. It asks for no rate twice and for none outside the bounds.
"""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from tightrope.bench.search import HIGHEST, LEVELS, LOWEST, TOLERANCE, next_shares


def goodput(share: float, knee: float, slope: float) -> float:
    """Falls from nearly 1 to nearly 0 around `knee`."""
    return 1 / (1 + math.exp(min(700.0, slope * (share - knee))))


shares = st.lists(st.integers(2, 300).map(lambda percent: percent / 100), min_size=1, max_size=6)


@given(st.floats(0.001, 5.0), st.floats(1, 500), shares)
def test_1_and_2_every_level_is_found(knee: float, slope: float, first: list[float]) -> None:
    curve = {share: goodput(share, knee, slope) for share in first}
    while wanted := next_shares(curve):
        assert not set(wanted) & set(curve)
        assert all(LOWEST <= share <= HIGHEST for share in wanted)
        assert len(curve) < 100
        curve |= {share: goodput(share, knee, slope) for share in wanted}
    for level in LEVELS:
        reached = [share for share, height in curve.items() if height >= level]
        missed = [share for share, height in curve.items() if height < level]
        if not reached:
            assert min(curve) == LOWEST
        elif not missed:
            assert max(curve) == HIGHEST
        else:
            assert min(share for share in missed if share > max(reached)) - max(reached) <= TOLERANCE + 1e-9
