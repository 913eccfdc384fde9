"""prefix-aware: where most of the prompt has been computed before, while queues are about equally long.

The rule of Ray Serve's `PrefixCacheAffinityRouter` (2.60), with the settings of its guide. Owns the rule; what
replicas have in their caches is known from `prefix.py` and comes with the call. Ray counts the characters it
ever sent to a replica where this counts the tokens that calls hold there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import NamedTuple

from tightrope.model.fleet import Job, PoolView, ReplicaView, Routed
from tightrope.model.ids import ReplicaId
from tightrope.policy.baselines import choose_power_of_two, room
from tightrope.policy.estimate import estimate, has_slot
from tightrope.policy.load import standing
from tightrope.policy.prefix import CERTAINTY
from tightrope.policy.route import MOST_OFFERS, Candidate, Reason, Router, routed

NAME = "prefix-aware"
IMBALANCED = 10
"""Calls between the longest and the shortest queue above which only queues count (`imbalanced_threshold`)."""
MATCH = 0.1
"""Share of the prompt from which on a cache is worth going there (`match_rate_threshold`)."""


def choose_prefix_aware(job: Job, pool: PoolView, now_s: float, rng: Random) -> Routed | None:
    """The longest cached prefix if it is a tenth of the prompt; else the fewest tokens held by calls.

    Of equals the fewest calls, then chance. With queues too unequal it is power-of-two.
    """
    counts = [len(view.held) for view in pool.replicas]
    if counts and max(counts) - min(counts) > IMBALANCED:
        found = choose_power_of_two(job, pool, now_s, rng)
        return replace(found, policy=NAME) if found is not None else None
    hits = dict(job.hits)
    free = [_lookup(view, hits, now_s) for view in pool.replicas if has_slot(job, view)]
    if not free:
        return None
    most = max(one.hit_tokens for one in free)
    is_match = most / CERTAINTY >= MATCH * job.prompt_tokens
    ranked = _ranked(free, is_match, rng)
    reason = Reason.LONGEST_PREFIX if is_match else Reason.LEAST_MEMORY
    found_here = [
        Candidate(
            one.view, estimate(job, one.view, now_s), _score(one, is_match), _loss(one, ranked[0], is_match)
        )
        for one in ranked
    ]
    return routed(NAME, reason, job, now_s, found_here)


PREFIX_AWARE = Router(NAME, choose_prefix_aware, room, "arrival")


class _Known(NamedTuple):
    """A replica with a free slot: tokens of the prompt in its cache, and tokens its calls hold."""

    view: ReplicaView
    hit_tokens: float
    held_tokens: float


def _lookup(view: ReplicaView, hits: Mapping[ReplicaId, float], now_s: float) -> _Known:
    return _Known(view, hits.get(view.id, 0.0), held_tokens(view, now_s))


def held_tokens(view: ReplicaView, now_s: float) -> float:
    """Tokens of context that the calls there hold: whole prompts, and what they have produced so far."""
    now = standing(view, now_s)
    return now.context_tokens + now.gauge.prompts


def _score(one: _Known, is_match: bool) -> float:
    return -one.hit_tokens if is_match else one.held_tokens


def _ranked(free: Sequence[_Known], is_match: bool, rng: Random) -> list[_Known]:
    """The best first. A number drawn for each breaks ties at random, in id order so that only the seed decides."""
    in_order = sorted(free, key=lambda one: one.view.id)
    return sorted(in_order, key=lambda one: (_score(one, is_match), len(one.view.held), rng.random()))[
        :MOST_OFFERS
    ]


def _loss(one: _Known, best: _Known, is_match: bool) -> str:
    if is_match and one.hit_tokens < best.hit_tokens:
        return f"{best.hit_tokens - one.hit_tokens:.0f} fewer tokens of the prompt in its cache"
    if not is_match and one.held_tokens > best.held_tokens:
        return f"calls hold {one.held_tokens - best.held_tokens:.0f} more tokens there"
    return "more calls" if len(one.view.held) > len(best.view.held) else "as good, not drawn"
