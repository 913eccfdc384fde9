"""
Laws of the routers
P1. fmware-greedy equals a naive transcription of Algorithm 1.
P2. Both modes agree when nothing is within the budget.
P3. The target mode never picks a replica whose cost is not below the budget while one exists.
P4. lx + lq + lr is the cost, bit for bit.
R1. A replica that cannot take the call is never chosen.
R2. The order of candidates does not matter.
R3. One more idle replica of a kind that is there never raises the chosen score.
R4. Scaling all times keeps the choice.
R5. Without a price on harm and on crowds the smallest estimate is chosen.
R6. More load on a replica never makes it the choice, as long as the same calls are live.
R11. Equal seeds give equal decisions.
R12. A decision names its reason, and a runner-up with what it lacked.
R13. A margin learned for a replica counts as the constant does; a variant of foresight sees more, and judges alike.
R14. In a pool that is offered far more than it can do, foresight puts no price on harm.
F1. While somebody idles and nobody is full, a call that fits is always placed.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.builders import (
    H100,
    L40S,
    MODEL,
    NOW_S,
    a_held,
    a_job,
    a_pool,
    a_random_card,
    a_random_held,
    a_view,
    jobs,
    numbers,
    pools,
)
from tightrope.model.errors import InvalidInput
from tightrope.model.fleet import HeldCall, Job, PoolView, ReplicaView, Routed
from tightrope.model.ids import AcceleratorName, CallId, ReplicaId
from tightrope.model.profile import Coefficients, Profile
from tightrope.policy import DEFAULT_ROUTER, ROUTERS, router
from tightrope.policy.baselines import tokens_left
from tightrope.policy.estimate import estimate, fits_at_all, has_slot
from tightrope.policy.fmware import Reading, costs, greedy, readings, target
from tightrope.policy.foresight import DEFAULT as WEIGHING
from tightrope.policy.foresight import EXTENDED, Weighing, foresight
from tightrope.policy.harm import exposed, harm_ms
from tightrope.policy.load import standing
from tightrope.policy.route import Reason, Router

names = st.sampled_from(sorted(ROUTERS))
READINGS = readings()
ORDERLESS = sorted(set(ROUTERS) - {"random", "round-robin", "power-of-two", "shortest-queue", "prefix-aware"})
"""The rest follows the order, or draws in it."""
OF_TWO = ("power-of-two", "prefix-aware")
"""What looks, or may look, at two replicas only."""


def choose(name: str, job: Job, pool: PoolView, seed: int = 1) -> Routed | None:
    return router(name).choose(job, pool, NOW_S, Random(seed))


def random_case(rng: Random) -> tuple[Job, PoolView]:
    """A cheap random pool: two kinds of cards, up to six replicas, some of them beyond their sequences."""
    cards = [_random_card(rng, name) for name in ("x", "y")]
    views = []
    for index in range(rng.randint(1, 6)):
        ages = sorted((rng.uniform(0, 4) for _ in range(rng.choice([0, 0, 1, 2, 5]))), reverse=True)
        held = tuple(
            a_held(f"{index}/{number}", dispatched_s=NOW_S - age, prompt_tokens=rng.randint(1, 900))
            for number, age in enumerate(ages)
        )
        views.append(a_view(f"r{index}", rng.choice(cards), held))
    job = a_job(prompt_tokens=rng.randint(1, 900), is_terminal=rng.random() < 0.5, budget_s=rng.uniform(0, 5))
    return job, a_pool(*views)


def _random_card(rng: Random, name: str) -> Profile:
    return Profile(
        MODEL,
        AcceleratorName(name),
        Coefficients(rng.uniform(1, 20), rng.uniform(0, 0.1), 1e-4, rng.uniform(0.01, 0.2), 1e-6),
        step_tokens=512,
        max_sequences=rng.choice([1, 2, 4, 64]),
        kv_tokens=50_000,
    )


def algorithm_1(job: Job, pool: PoolView, now_s: float, budget_ms: float) -> ReplicaId | None:
    """The listing, transcribed: two sets, and the minimum over the first that has a member."""
    within: list[tuple[float, int, ReplicaId]] = []
    beyond: list[tuple[float, int, ReplicaId]] = []
    for view in pool.replicas:
        limit = view.profile.max_sequences
        if len(view.held) >= limit:
            continue
        k, n, o, c = view.profile.coefficients, 1024, 128, view.profile.step_tokens
        profiled = -(-n // c) * (k.a + k.h) + k.d * n + k.e * n * n / 2
        profiled += (o - 1) * (k.a + k.h + k.b + k.c * (n + o / 2))
        queue = len(view.held[limit:]) * profiled
        in_flight = sum(max(0, profiled - (now_s - h.dispatched_s) * 1000) for h in view.held[:limit])
        cost = profiled + queue + in_flight
        (within if cost < budget_ms else beyond).append((round(cost, 6), len(view.held), view.id))
    return min(within or beyond)[2] if within or beyond else None


def test_p1_greedy_is_algorithm_1() -> None:
    rng, policy = Random(7), ROUTERS["fmware-greedy"].choose
    for _ in range(10_000):
        job, pool = random_case(rng)
        found = policy(job, pool, NOW_S, rng)
        assert (found and found.replica) == algorithm_1(job, pool, NOW_S, job.budget_s * 1000)


@pytest.mark.parametrize("reading", READINGS)
def test_p2_p3_p4_for_every_reading(reading: Reading) -> None:
    rng = Random(11)
    for _ in range(300):
        job, pool = random_case(rng)
        priced = {one.view.id: one.cost for one in costs(job, pool, NOW_S, reading)}
        for cost in priced.values():
            assert cost.crit == cost.lx + cost.lq + cost.lr
        for prefer in ("slowest", "fullest"):
            aimed = target(replace(reading, prefer=prefer))(job, pool, NOW_S, rng)
            plain = greedy(reading)(job, pool, NOW_S, rng)
            if aimed is None or plain is None:
                assert aimed is plain is None
                continue
            within = [id_ for id_, cost in priced.items() if cost.crit < job.budget_s * 1000]
            if within:
                assert aimed.replica in within
            else:
                assert aimed.replica == plain.replica
            assert aimed.offers[0].estimate == priced[aimed.replica]


def test_p3_the_slowest_card_that_keeps_the_budget_leaves_the_fast_one_free() -> None:
    pool = a_pool(a_view("fast", H100), a_view("slow", L40S))
    slow_s = estimate(a_job(prompt_tokens=1024, output_tokens=128.0), pool.replicas[1], NOW_S).crit / 1000
    roomy = choose("fmware-target", a_job(budget_s=slow_s * 1.01), pool)
    tight = choose("fmware-target", a_job(budget_s=slow_s * 0.99), pool)
    assert roomy is not None
    assert tight is not None
    assert (roomy.replica, roomy.reason) == ("slow", "slowest-on-time")
    assert (tight.replica, tight.offers[1].verdict.split(" by ")[0]) == ("fast", "over the budget")


@given(names, jobs(), pools(fewest=0), st.integers(0, 99))
def test_r1_only_a_replica_that_can_take_it(name: str, job: Job, pool: PoolView, seed: int) -> None:
    found, policy = choose(name, job, pool, seed), ROUTERS[name]
    able = [view for view in pool.replicas if _may_take(policy, job, view)]
    if found is not None:
        assert found.replica in [view.id for view in able]
    elif name not in OF_TWO:
        assert able == []


def _may_take(policy: Router, job: Job, view: ReplicaView) -> bool:
    return fits_at_all(job, view.profile) if policy.is_late_binding else has_slot(job, view)


@given(st.sampled_from(ORDERLESS), jobs(), pools())
def test_r2_the_order_of_candidates_does_not_matter(name: str, job: Job, pool: PoolView) -> None:
    turned = replace(pool, replicas=pool.replicas[::-1])
    assert choose(name, job, pool) == choose(name, job, turned)


@given(jobs(), pools(has_memory=True), st.integers(0, 4))
def test_r3_one_more_idle_replica_never_raises_the_score(job: Job, pool: PoolView, which: int) -> None:
    twin = pool.replicas[which % len(pool.replicas)]
    more = replace(pool, replicas=(*pool.replicas, replace(twin, id=ReplicaId("zz"), held=())))
    for name in ("foresight", "fmware-greedy"):
        before, after = choose(name, job, pool), choose(name, job, more)
        assert after is not None
        assert before is None or after.offers[0].score <= before.offers[0].score


@given(jobs(), pools())
def test_r4_scaling_all_times_keeps_the_choice(job: Job, pool: PoolView) -> None:
    plain = foresight(Weighing())(job, pool, NOW_S, Random(1))
    scaled = foresight(Weighing(tolerance_s=0.5))(
        replace(job, due_s=2 * job.due_s, budget_s=2 * job.budget_s),
        _twice_as_slow(pool),
        2 * NOW_S,
        Random(1),
    )
    assert (plain and plain.replica) == (scaled and scaled.replica)


def _twice_as_slow(pool: PoolView) -> PoolView:
    def held(call: HeldCall) -> HeldCall:
        first_s = None if call.first_token_s is None else 2 * call.first_token_s
        return replace(call, dispatched_s=2 * call.dispatched_s, due_s=2 * call.due_s, first_token_s=first_s)

    def view(one: ReplicaView) -> ReplicaView:
        slower = replace(one.profile, coefficients=one.profile.coefficients.scaled(2))
        return replace(one, profile=slower, held=tuple(held(call) for call in one.held))

    return replace(pool, replicas=tuple(view(one) for one in pool.replicas))


@given(jobs(), pools())
def test_r5_without_a_price_on_harm_the_smallest_estimate_wins(job: Job, pool: PoolView) -> None:
    found = foresight(Weighing(harm_weight=0, crowd_weight=0))(job, pool, NOW_S, Random(1))
    able = [estimate(job, v, NOW_S).crit for v in pool.replicas if fits_at_all(job, v.profile)]
    if found is not None:
        assert found.offers[0].estimate.crit == pytest.approx(min(able))


@given(jobs(), st.integers(0, 2**32))
def test_r10_looking_at_the_fast_cards_first_changes_no_choice(job: Job, seed: int) -> None:
    """Against one decision for every replica by itself, in a pool that is larger than what is remembered."""
    rng = Random(seed)
    cards = [a_random_card(rng, f"card{index}", True) for index in range(3)]
    views = [
        a_view(
            f"r{index:02}",
            rng.choice(cards),
            tuple(a_random_held(rng, f"{index}/{n}", 5 - n, True) for n in range(rng.choice([0, 2, 4]))),
        )
        for index in range(15)
    ]
    alone = [choose("foresight", job, a_pool(view)) for view in views]
    left_ms = (job.due_s - NOW_S) * 1000  # what would be late comes after all that would not
    scores = sorted(
        (
            found.offers[0].estimate.crit * (1 + WEIGHING.margin) > left_ms,
            found.offers[0].score,
            len(view.held),
            view.id,
        )
        for found, view in zip(alone, views, strict=True)
        if found is not None
    )
    together = choose("foresight", job, a_pool(*views))
    assert together is not None
    assert [(offer.score, offer.replica) for offer in together.offers] == [
        (s, id_) for _, s, _, id_ in scores[:8]
    ]


@given(jobs(), pools(fewest=2, has_memory=True, may_place=False), st.integers(0, 4), st.integers(1, 3000))
def test_r6_more_load_never_attracts(job: Job, pool: PoolView, which: int, prompt_tokens: int) -> None:
    """The load is a prompt that goes first, of a call that cannot be on time and so is not counted as harmed;
    nobody else there can be either, so that the live calls are the same."""
    hopeless = replace(
        pool,
        replicas=tuple(
            replace(view, held=tuple(replace(call, is_hopeless=True) for call in view.held))
            for view in pool.replicas
        ),
    )
    loaded = hopeless.replicas[which % len(hopeless.replicas)]
    extra = a_held("extra", prompt_tokens=prompt_tokens, is_hopeless=True)
    more = replace(
        hopeless,
        replicas=tuple(
            replace(view, held=(*view.held, extra)) if view is loaded else view for view in hopeless.replicas
        ),
    )
    before, after = choose("foresight", job, hopeless), choose("foresight", job, more)
    if before is not None and after is not None and before.replica != loaded.id:
        assert after.replica != loaded.id


@given(names, jobs(), pools(), st.integers(0, 2**32))
def test_r11_equal_seeds_give_equal_decisions(name: str, job: Job, pool: PoolView, seed: int) -> None:
    assert choose(name, job, pool, seed) == choose(name, job, pool, seed)


@given(names, jobs(), pools(), st.integers(0, 99))
def test_r12_a_decision_says_why(name: str, job: Job, pool: PoolView, seed: int) -> None:
    found = choose(name, job, pool, seed)
    if found is None:
        return
    assert found.policy == name
    assert found.reason in list(Reason)
    assert found.offers[0].replica == found.replica
    assert len(found.offers) <= 8
    assert all(offer.verdict for offer in found.offers)
    assert len({offer.replica for offer in found.offers}) == len(found.offers)
    able = [view for view in pool.replicas if _may_take(ROUTERS[name], job, view)]
    if len(able) > 1 and name not in OF_TWO:
        assert len(found.offers) >= 2
    assert (found.reason == Reason.ONLY_CANDIDATE) == (len(found.offers) == 1)


@given(names, jobs(), pools(), st.integers(0, 99))
def test_f1_an_idle_pool_takes_what_fits(name: str, job: Job, pool: PoolView, seed: int) -> None:
    idle = replace(pool, replicas=tuple(replace(view, held=()) for view in pool.replicas))
    if not all(fits_at_all(job, view.profile) for view in idle.replicas):
        return
    found = choose(name, job, idle, seed)
    assert found is not None
    chosen = next(view for view in idle.replicas if view.id == found.replica)
    assert ROUTERS[name].room(job, chosen, NOW_S)


@given(jobs(), pools())
def test_r13_variants_of_foresight_differ_only_by_what_the_kernel_keeps_for_them(
    job: Job, pool: PoolView
) -> None:
    plain = choose("foresight", job, pool)
    for variant in EXTENDED:
        found = variant.choose(job, pool, NOW_S, Random(1))
        assert plain == (found and replace(found, policy="foresight"))


@given(jobs(), pools(has_memory=True), numbers(0, 1))
def test_r13_a_margin_of_every_replica_counts_as_one_of_all(job: Job, pool: PoolView, margin: float) -> None:
    own = replace(pool, replicas=tuple(replace(view, margin=margin) for view in pool.replicas))
    weighed = foresight(replace(WEIGHING, margin=margin))(job, pool, NOW_S, Random(1))
    assert choose("foresight", job, own) == weighed


@given(jobs(), pools())
def test_r14_in_overload_harm_counts_for_nothing(job: Job, pool: PoolView) -> None:
    free = foresight(replace(WEIGHING, harm_weight=0.0))(job, pool, NOW_S, Random(1))
    assert choose("foresight", job, replace(pool, utilisation=1.3)) == free
    assert choose("foresight", job, replace(pool, utilisation=1.05)) == choose("foresight", job, pool)


# --- examples --------------------------------------------------------------------------------------------


def busy(count: int, name: str, profile: Profile = H100, **changes: object) -> ReplicaView:
    held = tuple(a_held(f"{name}/{i}", first_token_s=NOW_S, **changes) for i in range(count))
    return a_view(name, profile, held)


def test_the_names() -> None:
    assert set(ROUTERS) == {
        "foresight",
        "fmware-greedy",
        "fmware-target",
        "random",
        "round-robin",
        "power-of-two",
        "shortest-queue",
        "least-tokens",
        "prefix-aware",
        "hexgen-flow",
        "slo-headroom-least",
        "slo-headroom-most",
        "just-enough",
    }
    assert router("foresight").is_late_binding
    assert DEFAULT_ROUTER == "foresight"
    with pytest.raises(InvalidInput, match="'foresigt'; name one of: foresight, fmware-greedy"):
        router("foresigt")


def test_round_robin_goes_round_and_steps_over_the_full() -> None:
    full = a_view("r1", replace(H100, max_sequences=1), (a_held(),))
    pool = a_pool(a_view("r0"), full, a_view("r2"))
    chosen = [choose("round-robin", a_job(), replace(pool, turn=turn)) for turn in range(4)]
    assert [found and found.replica for found in chosen] == ["r0", "r2", "r2", "r0"]


def test_random_is_uniform() -> None:
    pool, rng = a_pool(*(a_view(name) for name in "abc")), Random(3)
    drawn = Counter(_replica(ROUTERS["random"].choose(a_job(), pool, NOW_S, rng)) for _ in range(900))
    assert min(drawn.values()) > 250


def test_power_of_two_never_takes_the_longest_of_three() -> None:
    pool, rng = a_pool(busy(3, "a"), busy(2, "b"), busy(1, "c")), Random(3)
    drawn = Counter(_replica(ROUTERS["power-of-two"].choose(a_job(), pool, NOW_S, rng)) for _ in range(900))
    assert set(drawn) == {"b", "c"}
    assert drawn["c"] == pytest.approx(600, abs=60)


def test_power_of_two_breaks_ties_at_random() -> None:
    pool, rng = a_pool(busy(1, "a"), busy(1, "b")), Random(3)
    found = [ROUTERS["power-of-two"].choose(a_job(), pool, NOW_S, rng) for _ in range(200)]
    assert min(Counter(map(_replica, found)).values()) > 60
    assert {one.reason for one in found if one} == {"equal-calls"}


def test_power_of_two_waits_when_both_are_full() -> None:
    one = replace(H100, max_sequences=1)
    assert choose("power-of-two", a_job(), a_pool(busy(1, "a", one), busy(1, "b", one))) is None


def test_shortest_queue_and_least_tokens_count_different_things() -> None:
    """One long answer against two short ones."""
    long, short = busy(1, "long", output_tokens=400.0), busy(2, "short", output_tokens=20.0)
    pool = a_pool(long, short)
    assert _replica(choose("shortest-queue", a_job(), pool)) == "long"
    assert _replica(choose("least-tokens", a_job(), pool)) == "short"
    assert (tokens_left(long, NOW_S), tokens_left(short, NOW_S)) == pytest.approx((399, 38))


def test_foresight_takes_the_fast_card_until_it_is_busier_than_slow() -> None:
    job = a_job(prompt_tokens=2000, is_terminal=True, due_s=NOW_S + 60)
    waiting = tuple(a_held(str(i), prompt_tokens=2000, is_terminal=True, due_s=NOW_S - 9) for i in range(9))
    idle = choose("foresight", job, a_pool(a_view("fast", H100), a_view("slow", L40S)))
    loaded = choose("foresight", job, a_pool(a_view("fast", H100, waiting), a_view("slow", L40S)))
    assert (_replica(idle), _replica(loaded)) == ("fast", "slow")


def test_foresight_spares_calls_that_can_still_be_on_time() -> None:
    """The fast card would be a little faster for this call, but tight inner calls run there."""
    job = a_job(prompt_tokens=1500, output_tokens=2.0, is_terminal=True, due_s=NOW_S + 60)
    near = replace(H100, coefficients=H100.coefficients.scaled(2.5), accelerator=AcceleratorName("near"))
    tight = tuple(a_held(str(i), first_token_s=NOW_S, output_tokens=50.0, due_s=NOW_S + 2) for i in range(3))
    lost = tuple(replace(call, due_s=NOW_S - 2) for call in tight)
    spared = choose("foresight", job, a_pool(a_view("fast", H100, tight), a_view("near", near)))
    ignored = choose("foresight", job, a_pool(a_view("fast", H100, lost), a_view("near", near)))
    assert spared is not None
    assert ignored is not None
    assert (spared.replica, spared.reason) == ("near", "spares-others")
    assert spared.offers[1].verdict.startswith("harms others by ")
    assert (ignored.replica, ignored.reason) == ("fast", "smallest-estimate")


def test_harm_counts_each_live_call_by_what_it_suffers() -> None:
    """A prompt of 100 tokens at 1 ms stalls a decoding call and one behind us wholly, one in prefill by half;
    an answer of 10 tokens slows the 5 left of the decoding call, and 10 of each of the others, by 2 ms."""
    card = replace(H100, coefficients=Coefficients(a=10, b=2, c=0, d=1, e=0))
    held = (
        a_held("decoding", first_token_s=NOW_S, output_tokens=6.0),
        a_held("streaming", first_token_s=NOW_S, is_terminal=True),
        a_held("prefilling", due_s=NOW_S + 99),
        a_held("behind", due_s=NOW_S + 99, has_slot=False),
        a_held("ahead", due_s=NOW_S + 40, has_slot=False, is_terminal=True),
        a_held("lost", first_token_s=NOW_S, is_hopeless=True),
    )
    now = standing(a_view(profile=card, held=held), NOW_S)
    job = a_job(prompt_tokens=100, output_tokens=10.0, due_s=NOW_S + 50)
    stall, overlap = 100 * (1 + 0.5 + 1), 2 * (5 + 10 + 10)
    assert harm_ms(job, now, exposed(now, 0.25)) == pytest.approx(stall + overlap)


def test_foresight_says_when_it_will_be_late() -> None:
    found = choose("foresight", a_job(due_s=NOW_S), a_pool(a_view("a"), a_view("b", L40S)))
    assert found is not None
    assert found.reason == "least-late"
    assert found.offers[0].verdict.startswith("chosen, late by ")
    assert found.offers[1].verdict.startswith("slower by ")


def test_foresight_looks_at_full_replicas_too_and_leaves_it_to_room() -> None:
    one = replace(H100, max_sequences=1)
    full = a_view("full", one, (a_held(first_token_s=NOW_S - 1, output_tokens=5.0, is_terminal=True),))
    found = choose("foresight", a_job(), a_pool(full, a_view("slow", L40S)))
    assert _replica(found) == "full"
    assert not router("foresight").room(a_job(), full, NOW_S)


def test_foresight_makes_nobody_wait_where_readers_keep_their_promise() -> None:
    """A prompt of 2000 tokens after an answer of 10 costs each reader about 4 ms a token, on steps of about 9."""
    job = a_job(prompt_tokens=2000, output_tokens=10.0, is_terminal=True, due_s=NOW_S + 60)
    late = replace(job, is_hopeless=True)

    def readers(tpot_s: float) -> ReplicaView:
        held = [a_held(str(i), first_token_s=NOW_S, output_tokens=200.0, tpot_s=tpot_s) for i in range(4)]
        return a_view("fast", H100, tuple(held))

    room = router("foresight").room
    promised_s = (0.005, 0.02, 0.1, math.inf)
    assert [room(job, readers(tpot_s), NOW_S) for tpot_s in promised_s] == [False, True, True, True]
    assert [room(late, readers(tpot_s), NOW_S) for tpot_s in promised_s] == [False, False, True, True]
    assert room(late, a_view("idle", H100), NOW_S)


def test_foresight_takes_nothing_that_no_replica_can_hold() -> None:
    assert choose("foresight", a_job(prompt_tokens=10**6), a_pool(a_view())) is None
    assert choose("foresight", a_job(call=CallId("x")), a_pool()) is None


def _replica(found: Routed | None) -> str | None:
    return None if found is None else found.replica
