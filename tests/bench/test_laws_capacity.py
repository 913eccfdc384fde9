"""
Laws of the stability limit
1. It is linear in the number of replicas and scales with 1 / coefficients.
2. No prices of machine time give a smaller bound (duality): the limit is the best that any split reaches.
3. With one kind of call it is the sum of what the machines do alone.
4. More machines, or fewer calls a run, never lower it.
"""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightrope.bench.capacity import Demand, pool_limit, stability_limit, work_ms
from tightrope.model.ids import AcceleratorName, ModelName
from tightrope.model.profile import Coefficients, Profile

demands = st.builds(
    Demand,
    calls=st.floats(0.1, 5),
    prompt_tokens=st.floats(10, 6000),
    output_tokens=st.floats(1, 800),
)
coefficients = st.builds(
    Coefficients,
    a=st.floats(1, 40),
    b=st.floats(0, 0.1),
    c=st.floats(0, 1e-3),
    d=st.floats(1e-3, 0.3),
    e=st.floats(0, 1e-5),
    h=st.floats(0, 5),
)


def card(name: str, k: Coefficients) -> Profile:
    return Profile(ModelName("m"), AcceleratorName(name), k, 2048, 128, 400_000)


kinds_of_call = st.lists(demands, min_size=1, max_size=4)
pools = st.lists(coefficients, min_size=1, max_size=3).flatmap(
    lambda found: st.lists(st.integers(1, 4), min_size=len(found), max_size=len(found)).map(
        lambda counts: [
            card(f"card{index}", k)
            for index, (k, count) in enumerate(zip(found, counts, strict=True))
            for _ in range(count)
        ]
    )
)


@given(kinds_of_call, pools, st.integers(2, 5), st.floats(0.2, 5))
def test_1_linear_in_replicas_and_in_speed(
    kinds: list[Demand], pool: list[Profile], times: int, factor: float
) -> None:
    limit = pool_limit(kinds, pool)
    assert pool_limit(kinds, pool * times) == pytest.approx(times * limit)
    slower = [card(profile.accelerator, profile.coefficients.scaled(factor)) for profile in pool]
    assert pool_limit(kinds, slower) == pytest.approx(limit / factor)


@given(kinds_of_call, pools)
def test_2_it_is_the_least_of_all_bounds_by_prices(kinds: list[Demand], pool: list[Profile]) -> None:
    """With a price on the time of each card, runs per second <= value of all time / cheapest cost of a run.

    The best prices make some card indifferent between two kinds of call; all such prices are tried.
    """
    cards = sorted(set(pool), key=lambda profile: profile.accelerator)
    counts = [1000 * pool.count(profile) for profile in cards]
    work = [[kind.calls * work_ms(profile, kind) for profile in cards] for kind in kinds]

    def bound(prices: list[float]) -> float:
        cost = sum(min(w * p for w, p in zip(row, prices, strict=True)) for row in work)
        return sum(c * p for c, p in zip(counts, prices, strict=True)) / cost

    ratios = [[1.0], *[sorted({row[0] / row[g] for row in work}) for g in range(1, len(cards))]]
    tried = [bound(list(prices)) for prices in product(*ratios)]
    limit = pool_limit(kinds, pool)
    assert limit <= min(tried) * (1 + 1e-9)
    if len(cards) <= 2:
        assert limit == pytest.approx(min(tried))


@given(demands, pools)
def test_3_one_kind_of_call_uses_every_machine_fully(kind: Demand, pool: list[Profile]) -> None:
    alone = sum(1000 / work_ms(profile, kind) for profile in pool) / kind.calls
    assert pool_limit([kind], pool) == pytest.approx(alone)


@given(kinds_of_call, pools, coefficients, st.floats(1, 3))
def test_4_more_machines_or_fewer_calls_never_lower_it(
    kinds: list[Demand], pool: list[Profile], other: Coefficients, factor: float
) -> None:
    limit = pool_limit(kinds, pool)
    assert pool_limit(kinds, [*pool, card("other", other)]) >= limit * (1 - 1e-9)
    more = [Demand(kind.calls * factor, kind.prompt_tokens, kind.output_tokens) for kind in kinds]
    assert pool_limit(more, pool) == pytest.approx(limit / factor)


def test_the_tightest_pool_decides() -> None:
    k = Coefficients(6.366, 0.010993, 4.1558e-5, 0.015197, 9.7802e-7, 4.0)
    small, large = ModelName("small"), ModelName("large")
    kind = Demand(1.0, 1000.0, 100.0)
    pools = {small: [card("h100", k)] * 3, large: [card("h100", k)]}
    both = stability_limit({small: [kind], large: [kind]}, pools)
    assert both == pool_limit([kind], pools[large]) < pool_limit([kind], pools[small])


def test_a_call_goes_where_it_is_relatively_cheapest() -> None:
    """Long prompts to the card that reads fast, long answers to the one that writes fast: 2 against 1 if mixed."""
    reads, writes = Demand(1.0, 1000.0, 1.0), Demand(1.0, 1.0, 1001.0)
    reader = card("reader", Coefficients(0.0, 10.0, 0.0, 1.0, 0.0))
    writer = card("writer", Coefficients(0.0, 1.0, 0.0, 10.0, 0.0))
    limit = pool_limit([reads, writes], [reader, writer])
    assert limit == pytest.approx(1.0, rel=0.02)
