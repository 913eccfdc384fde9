"""
Laws of the roster
1. It shows what was put last and not dropped since, in id order.
2. Whatever was put and dropped before, every order of a kind is that of sorting its replicas anew.
3. A small pool has no kinds, nor has one whose router does not rank.
R10. In a pool kept in order foresight chooses as it does among all replicas when kinds are no larger than its
patience; in larger ones its score is within 5 % of that in 99 % of decisions.
4. However large the pool, a decision looks at 40 replicas at most.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.builders import NOW_S, a_random_card, a_random_held, a_view
from tightrope.bench.decision import SteadyPool
from tightrope.kernel.roster import FEW, Roster
from tightrope.model.fleet import Job, PoolView, ReplicaView
from tightrope.model.ids import ModelName
from tightrope.policy import ROUTERS, router
from tightrope.policy.foresight import FORESIGHT, PATIENCE, promise
from tightrope.policy.gauge import Gauge

MODEL = ModelName("m")
CARDS = [a_random_card(Random(seed), f"card{seed}", True) for seed in range(5)]


def a_random_view(rng: Random, number: int) -> ReplicaView:
    held = tuple(a_random_held(rng, f"{number}/{n}", 5 - n, True) for n in range(rng.choice([0, 1, 3])))
    return a_view(f"r{number:03}", rng.choice(CARDS), held)


def a_pool(roster: Roster, now_s: float = NOW_S) -> PoolView:
    return PoolView(MODEL, roster, 0, roster.kinds(now_s))


@given(st.integers(0, 2**32))
def test_1_2_it_is_as_if_made_anew(seed: int) -> None:
    rng, roster, shown = Random(seed), Roster(promise), dict[str, ReplicaView]()
    for _ in range(80):
        view = a_random_view(rng, rng.randrange(3 * FEW))
        if rng.random() < 0.75:
            roster.put(view)
            shown[view.id] = view
        else:
            roster.drop(view.id)
            shown.pop(view.id, None)
        if rng.random() < 0.1:
            roster.kinds(NOW_S)
    assert list(roster) == [shown[id_] for id_ in sorted(shown)]
    assert [roster[at] for at in range(len(roster))] == list(roster)
    assert all(roster.of(view.id) is view for view in roster)
    for place in (0, 1, 2):
        expected = {
            card.accelerator: sorted(
                (view for view in shown.values() if view.profile is card),
                key=lambda view: (promise(view, NOW_S).scores_ms[place], len(view.held), view.id),
            )
            for card in CARDS
        }
        for kind in roster.kinds(NOW_S):
            assert list(kind.orders[place]) == expected.pop(kind.profile.accelerator)
        assert len(roster) <= FEW or not any(expected.values())


@given(st.integers(0, 2**32), st.floats(0.001, 0.5))
def test_2_scores_fall_in_order_and_then_stand(seed: int, after_s: float) -> None:
    rng, now_s = Random(seed), NOW_S + after_s
    views = [a_random_view(rng, number) for number in range(2 * FEW)]
    views[0] = replace(views[0], profile=replace(CARDS[0]))  # the only one of its kind
    roster = Roster(promise, views)
    roster.settle(NOW_S)

    def score_ms(view: ReplicaView) -> float:
        scores_ms, falls_until_s = promise(view, NOW_S)
        falls_s = 0.0 if falls_until_s is None else min(after_s, falls_until_s - NOW_S)
        return scores_ms[0] - 1000 * falls_s

    assert sum(len(kind.orders[0]) for kind in roster.kinds(now_s)) == len(views)
    for kind in roster.kinds(now_s):
        scores = [score_ms(view) for view in kind.orders[0]]
        assert scores == pytest.approx(sorted(scores))


def test_3_few_replicas_have_no_kinds_and_neither_has_a_router_that_does_not_rank() -> None:
    views = [a_random_view(Random(1), number) for number in range(FEW + 1)]
    assert Roster(promise, views[:FEW]).kinds(NOW_S) == ()
    assert len(Roster(promise, views).kinds(NOW_S)) == 1
    assert Roster(router("power-of-two").rank, views).kinds(NOW_S) == ()


@given(st.integers(0, 2**32))
def test_r10_small_kinds_are_looked_at_as_a_whole(seed: int) -> None:
    rng = Random(seed)
    views = [
        replace(a_random_view(rng, number), profile=CARDS[number % len(CARDS)])
        for number in range(len(CARDS) * PATIENCE)
    ]
    roster, world = Roster(promise, views), SteadyPool("foresight", 1, 1, rng)
    assert all(len(kind.orders[0]) == PATIENCE for kind in roster.kinds(NOW_S))
    for _ in range(10):
        job = replace(world.next_job(), is_hopeless=rng.random() < 0.1)
        kept = FORESIGHT.choose(job, a_pool(roster), NOW_S, rng)
        full = FORESIGHT.choose(job, PoolView(MODEL, tuple(views)), NOW_S, rng)
        assert (kept and kept.replica) == (full and full.replica)
        assert (kept and kept.reason) == (full and full.reason)


def test_r10_large_kinds_cost_next_to_nothing() -> None:
    losses = [loss for cell in ((64, 8), (200, 8), (64, 40), (400, 20)) for loss in _losses(*cell, 100)]
    assert min(losses) >= 0
    assert sum(losses) < 0.005 * len(losses)
    assert sum(loss > 0.05 for loss in losses) <= 0.01 * len(losses)


def _losses(replicas: int, calls: int, decisions: int) -> list[float]:
    """By how much the score of each decision is above that of the best replica of all."""
    world, losses = SteadyPool("foresight", replicas, calls, Random(3)), []
    for _ in range(decisions):
        job = world.next_job()
        full = PoolView(MODEL, tuple(world.roster))
        kept = a_pool(world.roster, world.now_s)
        losses.append(_score(job, kept, world.now_s) / _score(job, full, world.now_s) - 1)
        world.decide()
    return losses


def _score(job: Job, pool: PoolView, now_s: float) -> float:
    found = ROUTERS["foresight"].choose(job, pool, now_s, Random(1))
    assert found is not None
    return found.offers[0].score


def test_4_a_decision_among_ten_thousand_looks_at_forty() -> None:
    """The sums of a ledger are made when a replica is looked at, and kept with its view."""
    world = SteadyPool("foresight", 10_000, 4, Random(1))
    pool, seen = a_pool(world.roster), 0
    for view in world.roster:
        view.memo.clear()
    busy = [view for view in world.roster if view.held]
    for _ in range(50):
        FORESIGHT.choose(world.next_job(), pool, world.now_s, Random(1))
        looked_at = [view for view in busy if view.memo]
        assert 2 <= len(looked_at) <= 40
        seen += len(looked_at)
        for view in looked_at:
            assert Gauge in view.memo
            view.memo.clear()
    assert seen / 50 < 20
