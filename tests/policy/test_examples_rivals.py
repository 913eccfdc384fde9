"""What the routers taken from other systems do, one rule at a time, in numbers a reader can follow."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from tests.policy.builders import MODEL, NOW_S, a_held, a_job, a_pool, a_view
from tightrope.model.fleet import Estimate, Job, PoolView, Routed
from tightrope.model.ids import AcceleratorName, ReplicaId
from tightrope.model.profile import Coefficients, Profile
from tightrope.policy import router
from tightrope.policy.hexgen_flow import hexgen_flow, work_ms
from tightrope.policy.just_enough import limit_ms
from tightrope.policy.slo_headroom import Rated, early_odds, late_odds


def card(name: str, step_ms: float) -> Profile:
    """A card on which every step takes the same time, whatever it holds: answers of n tokens take n steps."""
    steps = Coefficients(a=step_ms, b=0, c=0, d=0, e=0)
    return Profile(MODEL, AcceleratorName(name), steps, step_tokens=1000, max_sequences=4, kv_tokens=10_000)


FAST, MIDDLE, SLOW = card("fast", 5), card("middle", 10), card("slow", 20)  # 100 tokens: 0.5, 1 and 2 s
THREE = a_pool(a_view("fast", FAST), a_view("middle", MIDDLE), a_view("slow", SLOW))


def taken(name: str, job: Job, pool: PoolView) -> Routed:
    """The decision of a router that takes something."""
    found = router(name).choose(job, pool, NOW_S, Random(1))
    assert found is not None
    return found


def shares(name: str, job: Job, pool: PoolView) -> Counter[str]:
    """How often each replica is drawn in a thousand decisions."""
    rng, choose = Random(9), router(name).choose
    return Counter(found.replica for _ in range(1000) if (found := choose(job, pool, NOW_S, rng)))


def rated(*headrooms_ms: float) -> list[Rated]:
    """Replicas with these headrooms, nobody minding the gaps."""
    nothing = Estimate(0, 0, 0, ttft=0, decode=0)
    return [Rated(a_view(str(place)), nothing, ms) for place, ms in enumerate(headrooms_ms)]


# --- just-enough -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget_s", "replica", "reason"),
    [
        (3.0, "slow", "fullest-on-time"),
        (1.5, "middle", "fullest-on-time"),
        (0.6, "fast", "fullest-on-time"),
        (0.4, "fast", "least-late"),
        (float("inf"), "fast", "smallest-estimate"),
    ],
)
def test_just_enough_takes_the_slowest_card_that_will_do(budget_s: float, replica: str, reason: str) -> None:
    found = taken("just-enough", a_job(budget_s=budget_s, due_s=NOW_S + budget_s), THREE)
    assert (found.replica, found.reason) == (replica, reason)


def test_just_enough_packs_equal_cards() -> None:
    """Of two that will do, the one with calls on it; with little time, the idle one."""
    coming = a_held(prompt_tokens=3000, output_tokens=300.0)  # three steps of prompt to go first
    pool = a_pool(a_view("busy", MIDDLE, (coming,)), a_view("idle", MIDDLE))
    assert taken("just-enough", a_job(budget_s=3.0), pool).replica == "busy"
    assert taken("just-enough", a_job(budget_s=1.01), pool).replica == "idle"


def test_just_enough_says_what_the_others_lacked() -> None:
    found = taken("just-enough", a_job(budget_s=1.5), THREE)
    assert [(offer.replica, offer.verdict) for offer in found.offers[1:]] == [
        ("fast", "500 ms more to spare"),
        ("slow", "over its time by 500 ms"),
    ]


def test_a_part_of_the_time_may_be_kept_in_reserve() -> None:
    """Of 1.2 s the middle card is expected to need 1: within 90 %, not within 80 %."""
    job = a_job(budget_s=1.2)
    chosen = {part: taken(f"just-enough/{part}", job, THREE).replica for part in (1.0, 0.9, 0.8)}
    assert chosen == {1.0: "middle", 0.9: "middle", 0.8: "fast"}


def test_time_spent_in_the_line_is_gone() -> None:
    assert limit_ms(a_job(ready_s=NOW_S - 1, budget_s=3.0), NOW_S) == 2000
    assert limit_ms(a_job(budget_s=3.0, due_s=NOW_S + 2), NOW_S) == 2000


# --- slo-headroom ----------------------------------------------------------------------------------------


def test_least_prefers_the_tightest_and_most_the_roomiest() -> None:
    """1.5, 1 and 0 s to spare: the middle one lies a third of the way from the roomiest to the tightest."""
    job = a_job(budget_s=2.0, due_s=NOW_S + 2.0)
    assert early_odds(rated(1500, 1000, 0), "least") == pytest.approx([0.02, 0.35, 1.01])
    assert early_odds(rated(1500, 1000, 0), "most") == pytest.approx([1.01, 0.68, 0.02])
    least, most = shares("slo-headroom-least", job, THREE), shares("slo-headroom-most", job, THREE)
    assert [least[name] / 1000 for name in ("fast", "middle", "slow")] == pytest.approx(
        [0.02 / 1.38, 0.35 / 1.38, 1.01 / 1.38], abs=0.04
    )
    assert most["fast"] > most["middle"] > most["slow"]


def test_one_that_is_late_is_drawn_once_in_a_hundred() -> None:
    found = shares("slo-headroom-most", a_job(budget_s=1.5), THREE)
    assert 1 <= found["slow"] <= 25


def test_with_nobody_on_time_the_idle_go_first() -> None:
    """Though the busy fast card would be the least late."""
    pool = a_pool(a_view("busy", FAST, (a_held(first_token_s=NOW_S),)), a_view("slow", SLOW))
    assert shares("slo-headroom-least", a_job(budget_s=0.1), pool) == {"slow": 1000}


def test_without_a_promise_the_fastest_has_the_best_odds() -> None:
    found = shares("slo-headroom-least", a_job(budget_s=float("inf"), due_s=float("inf")), THREE)
    assert late_odds(rated(-500, -1000, -2000)) == pytest.approx([0.82, 0.02 + 0.8 * 2 / 3, 0.02])
    assert found["fast"] > found["middle"] > found["slow"]


def test_equal_replicas_have_equal_odds() -> None:
    assert early_odds(rated(300, 300), "least") == early_odds(rated(300, 300), "most")
    assert late_odds(rated(-300, -300)) == pytest.approx([0.82, 0.82])


def test_time_counts_four_times_as_much_as_gaps() -> None:
    """The first has all the time to spare, the second all of the gap; a dimension that is equal says nothing."""
    first, second = rated(1000, 0)
    unlike = [first._replace(gap_ms=5.0), second._replace(gap_ms=25.0)]
    assert early_odds(unlike, "most") == pytest.approx([0.02 + 0.99 * 0.8, 0.02 + 0.99 * 0.2])
    alike = [first._replace(headroom_ms=0.0, gap_ms=5.0), second._replace(gap_ms=25.0)]
    assert early_odds(alike, "most") == pytest.approx([0.02, 1.01])


def test_readers_who_would_see_tokens_too_slowly_count_as_late() -> None:
    """The slow card takes 20 ms a token. Here the new reader minds, there one who reads already."""
    job = a_job(budget_s=3.0)
    hurried = replace(job, tpot_s=0.015)
    assert shares("slo-headroom-least", job, THREE)["slow"] > 500
    assert shares("slo-headroom-least", hurried, THREE)["slow"] < 30
    assert taken("just-enough", hurried, THREE).replica == "middle"
    reader = a_held("reader", first_token_s=NOW_S, tpot_s=0.015, prompt_tokens=1)
    read = a_pool(*THREE.replicas[:2], a_view("slow", SLOW, (reader,)))
    assert taken("just-enough", job, read).replica == "middle"
    assert taken("just-enough", job, read).offers[2].verdict == "tokens would come 5 ms too slowly"


def test_with_nobody_on_time_slow_tokens_are_the_lesser_evil() -> None:
    """All are busy. The middle card would be late as well, the slow one only slow for its reader."""
    held = (a_held("a", prompt_tokens=1, output_tokens=2.0, first_token_s=NOW_S, tpot_s=0.004),)
    late = (a_held("b", prompt_tokens=1, output_tokens=2.0, first_token_s=NOW_S),)
    pool = a_pool(a_view("late", SLOW, late), a_view("slow", FAST, held))
    job = a_job(budget_s=1.0, due_s=NOW_S + 1.0)
    assert shares("slo-headroom-least", job, pool) == {"slow": 1000}


def test_the_others_are_named_with_their_odds() -> None:
    found = taken("slo-headroom-least", a_job(budget_s=1.5), THREE)
    assert found.replica == "middle"
    assert [(offer.replica, offer.verdict) for offer in found.offers[1:]] == [
        ("fast", "1000 ms to spare, not drawn at odds of 2%"),
        ("slow", "late by 500 ms, not in the draw"),
    ]


def test_a_warm_cache_goes_before_headroom_unless_it_is_far_slower() -> None:
    """All of the prompt, or 80 % of it among those on time; not if the first token would be 5 s later there."""
    job = a_job(prompt_tokens=500, budget_s=3.0)
    has_all = replace(job, hits=((ReplicaId("slow"), 450.0),))
    has_most = replace(job, hits=((ReplicaId("middle"), 370.0),))
    has_half = replace(job, hits=((ReplicaId("middle"), 220.0),))
    assert shares("slo-headroom-most", has_all, THREE)["slow"] >= 970
    assert shares("slo-headroom-most", has_most, THREE)["middle"] >= 970
    assert shares("slo-headroom-most", has_half, THREE) == shares("slo-headroom-most", job, THREE)
    waiting = tuple(a_held(str(number), prompt_tokens=8000) for number in range(3))
    held_up = a_pool(*THREE.replicas[:2], a_view("slow", replace(SLOW, step_tokens=64), waiting))
    assert shares("slo-headroom-most", has_all, held_up)["slow"] < 50


# --- prefix-aware ----------------------------------------------------------------------------------------


def test_prefix_aware_goes_where_most_of_the_prompt_is() -> None:
    job = a_job(prompt_tokens=1000, hits=((ReplicaId("middle"), 200.0), (ReplicaId("slow"), 600.0)))
    found = taken("prefix-aware", job, THREE)
    assert (found.replica, found.reason) == ("slow", "longest-prefix")
    assert found.offers[1].verdict == "400 fewer tokens of the prompt in its cache"


def test_prefix_aware_leaves_less_than_a_tenth_aside() -> None:
    """Where calls hold the fewest tokens: 500 of the prompt here, 500 and one produced there."""
    busy = (a_held(first_token_s=NOW_S, prompt_tokens=500),)
    pool = a_pool(a_view("hit", FAST, busy), a_view("other", FAST, (a_held("still", prompt_tokens=500),)))
    tenth = a_job(prompt_tokens=1000, hits=((ReplicaId("hit"), 90.0),))
    less = a_job(prompt_tokens=1000, hits=((ReplicaId("hit"), 89.0),))
    assert taken("prefix-aware", tenth, pool).replica == "hit"
    found = taken("prefix-aware", less, pool)
    assert (found.replica, found.reason) == ("other", "least-memory")
    assert found.offers[1].verdict == "calls hold 1 more tokens there"


def test_prefix_aware_of_equal_hits_takes_the_shorter_queue() -> None:
    pool = a_pool(a_view("one", FAST, (a_held(),)), a_view("none", FAST))
    job = a_job(hits=((ReplicaId("one"), 400.0), (ReplicaId("none"), 400.0)))
    assert shares("prefix-aware", job, pool) == {"none": 1000}


def test_prefix_aware_draws_among_equals() -> None:
    assert min(shares("prefix-aware", a_job(), THREE).values()) > 250


def test_prefix_aware_forgets_caches_when_queues_are_too_unequal() -> None:
    """Eleven calls more than nowhere: power-of-two, which here sees both."""
    roomy = replace(FAST, max_sequences=64, kv_tokens=10**6)
    for count, replica in ((10, "full"), (11, "empty")):
        held = tuple(a_held(str(number)) for number in range(count))
        pool = a_pool(a_view("empty", roomy), a_view("full", roomy, held))
        job = a_job(hits=((ReplicaId("full"), 400.0),))
        found = taken("prefix-aware", job, pool)
        assert (found.replica, found.policy) == (replica, "prefix-aware")


# --- hexgen-flow -----------------------------------------------------------------------------------------


def test_work_counts_what_is_left_of_every_call() -> None:
    """An answer of 100 tokens takes 1 s there; one was begun 0.4 s ago, one waits in thought, one is overdue."""
    held = (
        a_held("overdue", dispatched_s=NOW_S - 9),
        a_held("running", dispatched_s=NOW_S - 0.4),
        a_held("placed", has_slot=False),
    )
    assert work_ms(a_view(profile=MIDDLE, held=held), NOW_S) == pytest.approx(600 + 1000)


def test_an_idle_fastest_card_is_taken_at_once() -> None:
    assert taken("hexgen-flow", a_job(), THREE).replica == "fast"


def test_work_on_the_fast_card_drives_calls_to_others() -> None:
    """With one call of 0.5 s before it, the fast card has priority 0.3 - 0.7; the idle middle one 0.3 / 2."""
    pool = a_pool(a_view("fast", FAST, (a_held(),)), a_view("middle", MIDDLE))
    found = hexgen_flow(alpha=0.3)(a_job(), pool, NOW_S, Random(1))
    assert found is not None
    assert [offer.replica for offer in found.offers] == ["middle", "fast"]
    assert [offer.score for offer in found.offers] == pytest.approx([-0.15, 0.4])
    assert found.offers[1].verdict == "has 500 ms more work before it"


def test_the_weight_decides_between_a_fast_card_and_little_work() -> None:
    """1 s of work on the fast card, 0.8 s on the slow one: 20 % less work, and four times the time."""
    ahead = a_held(output_tokens=200.0)
    less = a_held("less", output_tokens=40.0)
    pool = a_pool(a_view("fast", FAST, (ahead,)), a_view("slow", SLOW, (less,)))
    chosen = {
        alpha: router(f"hexgen-flow/{alpha}").choose(a_job(), pool, NOW_S, Random(1))
        for alpha in (0.0, 0.1, 0.2, 0.3, 0.5)
    }
    assert [found and found.replica for found in chosen.values()] == ["slow", "slow", "slow", "fast", "fast"]


def test_hexgen_flow_binds_late_and_serves_the_urgent_first() -> None:
    assert router("hexgen-flow").is_late_binding
    assert router("hexgen-flow").line == "latest-finish"
