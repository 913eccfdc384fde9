"""
Laws of the spare time of runs
1. Parts that are known stay in proportion and add up to 1; others are in proportion to the work, nobody's too small.
2. A call has an even share of its model's part.
3. A step moves some between two models, only if it saves money, and takes from nobody below the least.
4. Step after step it comes to rest, and the price never rises on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.builders import numbers
from tightrope.model.ids import ModelName
from tightrope.policy.spare_time import LEAST, MOVED, Claim, bettered, part_of_call, parts_of

NAMES = tuple(ModelName(name) for name in ("a", "b", "c"))


@st.composite
def claims(draw: st.DrawFn, fewest: int = 1) -> list[Claim]:
    """Up to three models."""
    names = NAMES[: draw(st.integers(fewest, 3))]
    return [Claim(name, draw(numbers(0, 6)), draw(numbers(0, 20))) for name in names]


@given(claims(), st.lists(numbers(0.05, 1), min_size=3, max_size=3))
def test_1_what_is_known_is_kept(found: list[Claim], weights: list[float]) -> None:
    known = dict(zip(NAMES, weights, strict=True))
    parts = parts_of(found, known)
    assert sum(parts.values()) == pytest.approx(1.0)
    for claim in found:
        assert parts[claim.model] / parts[NAMES[0]] == pytest.approx(known[claim.model] / known[NAMES[0]])


@given(claims())
def test_1_else_by_work(found: list[Claim]) -> None:
    parts = parts_of(found, {NAMES[-1]: 1.0} if len(found) < 3 else {})
    assert set(parts) == {claim.model for claim in found}
    assert all(LEAST <= part <= 1 for part in parts.values())
    for one, other in pairwise(sorted(found, key=lambda claim: claim.calls_per_run * claim.own_s)):
        assert parts[one.model] <= parts[other.model]


def test_1_example() -> None:
    assert parts_of([], {}) == {}
    found = parts_of([Claim(NAMES[0], 3.0, 1.0), Claim(NAMES[1], 1.0, 1.0)], {})
    assert found == pytest.approx({NAMES[0]: 0.75, NAMES[1]: 0.25})


def test_2_calls_share_alike() -> None:
    assert part_of_call(Claim(NAMES[0], 4.0, 1.0), {NAMES[0]: 0.6}) == pytest.approx(0.15)
    assert part_of_call(Claim(NAMES[0], 0.5, 1.0), {NAMES[0]: 0.6}) == pytest.approx(0.6)


@given(claims(), st.integers(0, 20), st.lists(numbers(0.1, 10), min_size=3, max_size=3))
def test_3_a_step_is_small_and_saves(found: list[Claim], turn: int, prices: list[float]) -> None:
    parts = parts_of(found, {})
    usd = price_of(prices)
    after = bettered(found, parts, turn, usd)
    assert sum(after.values()) == pytest.approx(sum(parts.values()))
    changed = {model: after[model] - parts[model] for model in parts if after[model] != parts[model]}
    if changed:
        less, more = sorted(changed.values())
        assert -less == pytest.approx(more)
        assert any(more == pytest.approx(much) for much in MOVED)
        assert min(after.values()) >= LEAST - 1e-9
        assert whole(found, after, prices) < whole(found, parts, prices)


@given(claims(fewest=2), st.lists(numbers(0.1, 10), min_size=3, max_size=3))
def test_4_it_comes_to_rest(found: list[Claim], prices: list[float]) -> None:
    parts = parts_of(found, {})
    pairs = len(found) * (len(found) - 1)
    course = [parts]
    for turn in range(60 * pairs):
        course.append(bettered(found, course[-1], turn, price_of(prices)))
    usd = [whole(found, one, prices) for one in course]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(usd))
    assert all(one == course[-1] for one in course[-pairs:])


def test_3_time_goes_to_the_dear_one() -> None:
    found = [Claim(NAMES[0], 1.0, 1.0), Claim(NAMES[1], 1.0, 1.0)]
    parts = parts_of(found, {})
    for turn in range(40):
        parts = bettered(found, parts, turn, price_of([9.0, 0.1, 0.0]))
    assert parts[NAMES[0]] > 0.7
    assert parts[NAMES[1]] >= LEAST
    indifferent = bettered(found, parts, 0, lambda claim, part: 1.0)
    assert indifferent == parts


def price_of(prices: list[float]) -> Callable[[Claim, float], float]:
    """A fleet that is the cheaper the more time its calls have."""

    def usd_per_h(claim: Claim, part: float) -> float:
        return prices[NAMES.index(claim.model)] / (0.1 + part)

    return usd_per_h


def whole(found: list[Claim], parts: dict[ModelName, float], prices: list[float]) -> float:
    """What all fleets cost."""
    return sum(price_of(prices)(claim, part_of_call(claim, parts)) for claim in found)
