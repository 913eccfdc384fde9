"""
Laws of the routers taken from other systems
J1. just-enough stays within the limit of the call while some replica does, with the largest estimate of those.
J2. With nobody within the limit, or no limit, just-enough takes the smallest estimate.
J3. The limit is never beyond the latest finish nor beyond the end of the budget.
S1. slo-headroom without exploring draws one on time while there is one; with nobody on time, an idle one while
    there is one.
S2. Least and most turn the order of odds on time round; with more to spare in both the odds of most never fall,
    nor do those of the late.
S3. Odds on time depend on differences alone; all lie between the lowest and that plus the spread of the tier.
S4. Exploring happens as often as it is set to.
S5. A gate lets through only who has enough of the prompt, or everybody; everybody if nobody has enough.
H1. hexgen-flow with all weight on suitability takes a card on which the call is fastest.
H2. hexgen-flow with all weight on workload takes a replica with the least work.
H3. Scaling all times keeps the choice of hexgen-flow.
V1. Every variant goes by its own name, and is found by it.
V2. The variant with the settings of the plain router decides as that does.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import product
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.policy.builders import H100, L40S, NOW_S, a_held, a_job, a_pool, a_view, jobs, numbers, pools
from tightrope import policy
from tightrope.model.errors import InvalidInput
from tightrope.model.fleet import Estimate, HeldCall, Job, PoolView, ReplicaView, Routed
from tightrope.model.ids import ReplicaId
from tightrope.policy import ROUTERS, VARIANTS, router
from tightrope.policy.estimate import estimate, fits_at_all, has_slot
from tightrope.policy.hexgen_flow import ALPHA, hexgen_flow, work_ms
from tightrope.policy.just_enough import just_enough, limit_ms
from tightrope.policy.slo_headroom import (
    EARLY_SPREAD,
    LATE_SPREAD,
    LOWEST_ODDS,
    Rated,
    Strategy,
    early_odds,
    gated,
    late_odds,
    slo_headroom,
)

strategies = st.sampled_from(["least", "most"])
promises = st.builds(
    lambda job, tpot_s: replace(job, tpot_s=tpot_s), jobs(), st.sampled_from([math.inf, 0.02, 0.2])
)
"""Calls, some of them with a reader who wants tokens at a rate."""


def a_rating(headroom_ms: float, gap_ms: float = 0.0, cached: float = 0.0, ttft_ms: float = 0.0) -> Rated:
    """A replica as the headroom rules see it."""
    return Rated(a_view(), Estimate(0, 0, 0, ttft=ttft_ms, decode=0), headroom_ms, gap_ms, cached)


ratings = st.lists(st.builds(a_rating, numbers(-5000, 5000), numbers(-50, 50)), min_size=1, max_size=6)


def estimates(job: Job, pool: PoolView) -> dict[str, float]:
    """What the call would take on each replica with a free slot, in milliseconds."""
    return {view.id: estimate(job, view, NOW_S).crit for view in pool.replicas if has_slot(job, view)}


def kept(job: Job, pool: PoolView) -> list[ReplicaId]:
    """The replicas with a free slot on which every promise is expected to be kept, written out."""
    found = []
    for view in pool.replicas:
        cost = estimate(job, view, NOW_S)
        gaps = max(1.0, job.output_tokens - 1)
        is_smooth = cost.decode / gaps <= 1000 * min(
            job.tpot_s, *(call.tpot_s for call in view.held), math.inf
        )
        limit = limit_ms(job, NOW_S)
        if has_slot(job, view) and cost.crit <= limit < math.inf and is_smooth:
            found.append(view.id)
    return found


@given(promises, pools(), st.sampled_from([math.inf, 0.05]))
def test_j1_j2_just_enough_is_the_largest_within_or_else_the_smallest(
    job: Job, pool: PoolView, tpot_s: float
) -> None:
    pool = _read_by(pool, tpot_s)
    found, crit_ms = just_enough()(job, pool, NOW_S, Random(1)), estimates(job, pool)
    if found is None:
        assert not crit_ms
        return
    within = [crit_ms[id_] for id_ in kept(job, pool)]
    assert crit_ms[found.replica] == (max(within) if within else min(crit_ms.values()))


def _read_by(pool: PoolView, tpot_s: float) -> PoolView:
    """The pool when all who read there were promised that rate."""
    return replace(
        pool,
        replicas=tuple(
            replace(view, held=tuple(replace(call, tpot_s=tpot_s) for call in view.held))
            for view in pool.replicas
        ),
    )


@given(jobs())
def test_j3_the_limit_is_the_tighter_of_two(job: Job) -> None:
    assert limit_ms(job, NOW_S) == pytest.approx(1000 * min(job.budget_s, job.due_s - NOW_S))


@given(strategies, promises, pools(), st.integers(0, 99))
def test_s1_on_time_before_idle_before_late(strategy: Strategy, job: Job, pool: PoolView, seed: int) -> None:
    found = slo_headroom(strategy, explore_late=0)(job, pool, NOW_S, Random(seed))
    if found is None:
        return
    on_time = kept(job, pool)
    idle = [view.id for view in pool.replicas if has_slot(job, view) and not view.held]
    if on_time:
        assert found.replica in on_time
    elif idle:
        assert found.replica in idle


@given(ratings)
def test_s2_least_and_most_are_mirrored(rated: list[Rated]) -> None:
    least, most = early_odds(rated, "least"), early_odds(rated, "most")
    assert [one + other for one, other in zip(least, most, strict=True)] == pytest.approx(
        [2 * LOWEST_ODDS + EARLY_SPREAD] * len(rated)
    )
    for odds in (most, late_odds(rated)):
        for one, other in product(zip(rated, odds, strict=True), repeat=2):
            if one[0].headroom_ms <= other[0].headroom_ms and one[0].gap_ms <= other[0].gap_ms:
                assert one[1] <= other[1] + 1e-9


@given(strategies, ratings, st.integers(-5000, 5000))
def test_s3_odds_are_relative_and_bounded(strategy: Strategy, rated: list[Rated], by_ms: int) -> None:
    moved = [one._replace(headroom_ms=one.headroom_ms + by_ms) for one in rated]
    assume(len({one.headroom_ms for one in moved}) == len({one.headroom_ms for one in rated}))
    assert early_odds(rated, strategy) == pytest.approx(early_odds(moved, strategy), abs=1e-4)
    for odds, spread in ((early_odds(rated, strategy), EARLY_SPREAD), (late_odds(rated), LATE_SPREAD)):
        assert all(LOWEST_ODDS - 1e-9 <= one <= LOWEST_ODDS + spread + 1e-9 for one in odds)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2])
def test_s4_exploring_is_as_rare_as_it_is_set_to(share: float) -> None:
    slow_ms = estimate(a_job(), a_view(profile=L40S), NOW_S).crit
    job = a_job(budget_s=slow_ms / 2000)
    pool, rng, choose = a_pool(a_view("fast"), a_view("slow", L40S)), Random(5), slo_headroom("least", share)
    found = [choose(job, pool, NOW_S, rng) for _ in range(4000)]
    explored = [one for one in found if one is not None and one.reason == "explored"]
    assert len(explored) / len(found) == pytest.approx(share, rel=0.3)
    assert {one.replica for one in explored} <= {"slow"}


@given(
    st.lists(st.tuples(numbers(0, 1), numbers(0, 9000)), min_size=1, max_size=5),
    numbers(0.1, 1),
    st.integers(0, 99),
)
def test_s5_a_gate_lets_through_the_warm_or_everybody(
    seen: list[tuple[float, float]], least_cached: float, seed: int
) -> None:
    rated = [a_rating(place, cached=cached, ttft_ms=ttft_ms) for place, (cached, ttft_ms) in enumerate(seen)]
    through = gated(rated, least_cached, Random(seed))
    warm = [one for one in rated if one.cached >= least_cached]
    assert through == rated or through == warm != []


@given(jobs(), pools())
def test_h1_suitability_alone_takes_the_fastest_card(job: Job, pool: PoolView) -> None:
    found = hexgen_flow(alpha=1.0)(job, pool, NOW_S, Random(1))
    alone = {view.id: _alone_ms(job, view) for view in pool.replicas if fits_at_all(job, view.profile)}
    assert found is None or alone[found.replica] == pytest.approx(min(alone.values()))


@given(jobs(), pools())
def test_h2_workload_alone_takes_the_least_work(job: Job, pool: PoolView) -> None:
    found = hexgen_flow(alpha=0.0)(job, pool, NOW_S, Random(1))
    able = [view for view in pool.replicas if fits_at_all(job, view.profile)]
    work = {view.id: work_ms(view, NOW_S) for view in able}
    if found is None or work[min(able, key=lambda view: (_alone_ms(job, view), view.id)).id] == 0:
        return
    assert work[found.replica] == pytest.approx(min(work.values()))


@given(jobs(), pools())
def test_h3_scaling_all_times_keeps_the_choice(job: Job, pool: PoolView) -> None:
    plain = hexgen_flow()(job, pool, NOW_S, Random(1))
    slower = hexgen_flow()(job, replace(pool, replicas=tuple(map(_slower, pool.replicas))), NOW_S, Random(1))
    assert (plain and plain.replica) == (slower and slower.replica)


def _slower(view: ReplicaView) -> ReplicaView:
    """The same replica when everything takes twice as long, the ages of its calls included."""

    def held(call: HeldCall) -> HeldCall:
        return replace(call, dispatched_s=NOW_S - 2 * (NOW_S - call.dispatched_s), first_token_s=None)

    card = replace(view.profile, coefficients=view.profile.coefficients.scaled(2))
    return replace(view, profile=card, held=tuple(map(held, view.held)))


def _alone_ms(job: Job, view: ReplicaView) -> float:
    return view.profile.solo_ms(job.prompt_tokens, job.output_tokens)


@pytest.mark.parametrize("name", VARIANTS)
def test_v1_a_variant_goes_by_its_name(name: str) -> None:
    pool = a_pool(a_view("a", H100, (a_held(),)), a_view("b", L40S))
    found = router(name).choose(a_job(), pool, NOW_S, Random(1))
    assert found is not None
    assert (router(name).name, found.policy) == (name, name)
    assert name not in ROUTERS


@given(
    st.sampled_from(
        [
            ("fmware-greedy", "default-replica-full"),
            ("fmware-target", "default-replica-full-slowest"),
            ("hexgen-flow", str(ALPHA)),
            ("just-enough", "1.0"),
        ]
    ),
    jobs(),
    pools(),
)
def test_v2_the_plain_router_is_one_of_its_variants(named: tuple[str, str], job: Job, pool: PoolView) -> None:
    name, settings = named
    plain = ROUTERS[name].choose(job, pool, NOW_S, Random(1))
    variant = router(f"{name}/{settings}").choose(job, pool, NOW_S, Random(1))
    assert plain == (variant and _renamed(variant, name))


def _renamed(found: Routed, name: str) -> Routed:
    return replace(found, policy=name)


def test_a_router_of_ones_own_is_known_by_its_name_unless_that_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = replace(ROUTERS["random"], name="mine")
    monkeypatch.setattr(policy, "_ROUTERS", table := dict(ROUTERS))
    monkeypatch.setattr(policy, "ROUTERS", table)
    policy.register(mine)
    assert router("mine") is mine
    for taken in ("mine", "random", "hexgen-flow/0.2"):
        with pytest.raises(InvalidInput, match="give yours another name"):
            policy.register(replace(mine, name=taken))


def test_a_name_that_is_nearly_a_variant_lists_the_variants() -> None:
    with pytest.raises(InvalidInput, match=re.escape("name one of: hexgen-flow/0.0, hexgen-flow/0.1")):
        router("hexgen-flow/0.7")
    with pytest.raises(InvalidInput, match="name one of: foresight, "):
        router("random/unknown")
