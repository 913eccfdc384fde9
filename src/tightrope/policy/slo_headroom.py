"""slo-headroom-least and -most: replicas drawn by how much time a call would have to spare there.

After llm-d's predicted-latency routing (llm-d-router 0.11: `prefix-cache-affinity-filter`,
`slo-headroom-tier-filter`, `latency-scorer` and `weighted-random-picker`, with their defaults). Owns gates, tiers
and odds. Predictions are `estimate.py`, in place of a model learned online.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from random import Random
from typing import Literal, NamedTuple

from tightrope.model.fleet import Estimate, Job, PoolView, ReplicaView, Routed
from tightrope.model.ids import ReplicaId
from tightrope.policy.baselines import room
from tightrope.policy.just_enough import limit_ms, priced
from tightrope.policy.prefix import CERTAINTY
from tightrope.policy.route import MOST_OFFERS, Candidate, Choose, Reason, Router, routed

Strategy = Literal["least", "most"]

EXPLORE_LATE = 0.01
"""Chance of drawing among the replicas expected late though others are not: one that recovers is noticed."""
STRICT, LOOSE = 0.99, 0.8
"""Shares of the prompt that must be in a cache for a replica to go before others: of all, and within a tier."""
EXPLORE_COLD = 0.01
"""Chance of passing over such a gate, so that others come to have the prompt too."""
PENALTY_MS = 5000.0
"""A gate stays open if its fastest replica is this much slower to the first token than the fastest of all."""
TIME_WEIGHT = 0.8
"""Of the headroom in time (`ttftWeight`); the rest is that of the headroom in gaps (`tpotWeight`)."""
LOWEST_ODDS = 0.02
EARLY_SPREAD = 0.99
LATE_SPREAD = 0.8
"""Odds go from the lowest to that plus the spread of the tier."""


class Rated(NamedTuple):
    """A replica with a free slot: the milliseconds the call has to spare there (below zero: late), the same of
    the gap between two tokens, and the share of its prompt that is in the cache."""

    view: ReplicaView
    estimate: Estimate
    headroom_ms: float
    gap_ms: float = 0.0
    cached: float = 0.0

    @property
    def is_early(self) -> bool:
        """Is everything that was promised expected to be kept?"""
        return self.headroom_ms >= 0 and self.gap_ms >= 0


class Tier(NamedTuple):
    """Who is drawn from, and with which odds."""

    members: Sequence[Rated]
    odds: Sequence[float]
    is_explored: bool = False


def slo_headroom(strategy: Strategy, explore_late: float = EXPLORE_LATE) -> Choose:
    """Draw among the replicas on time, with the best odds for the tightest (`least`) or roomiest (`most`).

    With nobody on time, among the idle ones, else among all, with the best odds for the least late. A call
    without a promise is late everywhere, by what it takes: the fastest has the best odds.
    """
    name = f"slo-headroom-{strategy}"

    def choose(job: Job, pool: PoolView, now_s: float, rng: Random) -> Routed | None:
        rated = rate(job, pool, now_s)
        if not rated:
            return None
        tier = tier_of(gated(rated, STRICT, rng), strategy, explore_late, rng)
        place = rng.choices(range(len(tier.members)), tier.odds)[0]
        reason = Reason.EXPLORED if tier.is_explored else Reason.DRAWN_BY_HEADROOM
        return routed(name, reason, job, now_s, _candidates(rated, tier, place))

    return choose


SLO_HEADROOM = (
    Router("slo-headroom-least", slo_headroom("least"), room, "arrival"),
    Router("slo-headroom-most", slo_headroom("most"), room, "arrival"),
)


def rate(job: Job, pool: PoolView, now_s: float) -> list[Rated]:
    """Every replica with a free slot, in id order, with its headroom: the limit of the call, 0 if it has none,
    less its estimate."""
    limit = limit_ms(job, now_s)
    if math.isinf(limit):
        limit = 0.0
    share_by_id = {replica: hit / (CERTAINTY * job.prompt_tokens) for replica, hit in job.hits}
    return [
        Rated(view, found, limit - found.crit, gap_ms, share_by_id.get(view.id, 0.0))
        for view, found, gap_ms in priced(job, pool, now_s)
    ]


def gated(rated: Sequence[Rated], least_cached: float, rng: Random) -> Sequence[Rated]:
    """Those that have at least this share of the prompt; all of them if nobody has, if chance wants others to
    be tried, or if going there would cost too much time."""
    warm = [one for one in rated if one.cached >= least_cached]
    if not warm or rng.random() < EXPLORE_COLD:
        return rated
    fastest = min(one.estimate.ttft for one in rated)
    return warm if min(one.estimate.ttft for one in warm) <= fastest + PENALTY_MS else rated


def tier_of(rated: Sequence[Rated], strategy: Strategy, explore_late: float, rng: Random) -> Tier:
    """Those on time, or rarely, and if there are none, those that are late."""
    early: Sequence[Rated] = [one for one in rated if one.is_early]
    late: Sequence[Rated] = [one for one in rated if not one.is_early]
    is_explored = bool(early and late) and rng.random() < explore_late
    if early and not is_explored:
        early = gated(early, LOOSE, rng)
        return Tier(early, early_odds(early, strategy))
    members = _mildest(gated(late, LOOSE, rng))
    return Tier(members, late_odds(members), is_explored)


def _mildest(late: Sequence[Rated]) -> Sequence[Rated]:
    """Of those that are late the idle ones; if there are none, those with only the gaps too long, or only the
    time, or all: the first kind that there is."""
    idle = [one for one in late if not one.view.held]
    if idle:
        return idle
    return [one for one in late if one.headroom_ms >= 0] or [one for one in late if one.gap_ms >= 0] or late


def early_odds(rated: Sequence[Rated], strategy: Strategy) -> list[float]:
    """Odds that rise (`most`) or fall (`least`) with the headroom, from end to end of those given."""
    shares = _blended([one.headroom_ms for one in rated], [one.gap_ms for one in rated], where_equal=0.5)
    return [LOWEST_ODDS + EARLY_SPREAD * (share if strategy == "most" else 1 - share) for share in shares]


def late_odds(rated: Sequence[Rated]) -> list[float]:
    """Odds that fall with what is missing, whatever the strategy: the least late is best."""
    missing = [min(0.0, one.headroom_ms) for one in rated]
    gaps = [min(0.0, one.gap_ms) for one in rated]
    return [LOWEST_ODDS + LATE_SPREAD * share for share in _blended(missing, gaps, where_equal=1.0)]


def _blended(times_ms: Sequence[float], gaps_ms: Sequence[float], where_equal: float) -> list[float]:
    """Where each lies between the smallest (0) and the largest (1) in both; what is equal for all says nothing."""
    if max(gaps_ms) == min(gaps_ms):
        return _shares(times_ms, where_equal)
    if max(times_ms) == min(times_ms):
        return _shares(gaps_ms, where_equal)
    pairs = zip(_shares(times_ms, where_equal), _shares(gaps_ms, where_equal), strict=True)
    return [TIME_WEIGHT * time + (1 - TIME_WEIGHT) * gap for time, gap in pairs]


def _shares(values: Sequence[float], where_equal: float) -> list[float]:
    """Where each value lies between the smallest (0) and the largest (1)."""
    low, spread = min(values), max(values) - min(values)
    return [(value - low) / spread if spread > 0 else where_equal for value in values]


def _candidates(rated: Sequence[Rated], tier: Tier, place: int) -> list[Candidate]:
    """The one drawn, then the rest of its tier by their odds, then the others by their headroom."""
    odds_by_id = {one.view.id: odds for one, odds in zip(tier.members, tier.odds, strict=True)}
    drawn = tier.members[place]
    rest = heapq.nsmallest(
        MOST_OFFERS - 1,
        (one for one in rated if one is not drawn),
        key=lambda one: (-odds_by_id.get(one.view.id, 0.0), -one.headroom_ms, one.view.id),
    )
    return [
        Candidate(one.view, one.estimate, -odds_by_id.get(one.view.id, 0.0), _loss(one, odds_by_id))
        for one in (drawn, *rest)
    ]


def _loss(one: Rated, odds_by_id: dict[ReplicaId, float]) -> str:
    share = odds_by_id.get(one.view.id, 0.0) / sum(odds_by_id.values())
    spare = f"{one.headroom_ms:.0f} ms to spare"
    if one.headroom_ms < 0:
        spare = f"late by {-one.headroom_ms:.0f} ms"
    elif one.gap_ms < 0:
        spare = f"tokens {-one.gap_ms:.0f} ms too slow"
    return f"{spare}, not drawn at odds of {share:.0%}" if share else f"{spare}, not in the draw"
