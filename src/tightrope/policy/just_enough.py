"""just-enough: of the replicas that keep the call's promise, the one that keeps it with the least to spare.

The rule of GoodServe (2605.16867), "just-enough instance selection" among unequal cards, and of PolyServe
(2507.17769), the highest load that still attains the promise. Owns the rule and the moment it aims at. Moving
running calls and groups of servers by promise, which those systems add, are not here.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from tightrope.model.fleet import Estimate, Job, PoolView, ReplicaView, Routed
from tightrope.policy.baselines import room
from tightrope.policy.estimate import estimate, has_slot
from tightrope.policy.route import MOST_OFFERS, Candidate, Reason, Router, routed


def limit_ms(job: Job, now_s: float) -> float:
    """Milliseconds that the call may still take: to the end of its budget or its latest finish, if that is
    sooner. Below zero if it is too late; infinite without a promise."""
    return (min(job.ready_s + job.budget_s, job.due_s) - now_s) * 1000


class Priced(NamedTuple):
    """A replica with a free slot, and what the call would take there."""

    view: ReplicaView
    estimate: Estimate


def priced(job: Job, pool: PoolView, now_s: float) -> list[Priced]:
    """Every replica with a free slot, in id order."""
    free = [view for view in pool.replicas if has_slot(job, view)]
    return [Priced(view, estimate(job, view, now_s)) for view in sorted(free, key=lambda view: view.id)]


def choose_just_enough(job: Job, pool: PoolView, now_s: float, _rng: Random) -> Routed | None:
    """The largest estimate within the limit; if none is, or there is no limit, the smallest of all."""
    free = priced(job, pool, now_s)
    limit = limit_ms(job, now_s)
    within = [one for one in free if one.estimate.crit <= limit < math.inf]
    if within:
        beyond = [one for one in free if one.estimate.crit > limit]
        found = [*_slowest_first(within), *_fastest_first(beyond, limit)]
        return routed("just-enough", Reason.FULLEST_ON_TIME, job, now_s, found)
    if not free:
        return None
    reason = Reason.SMALLEST_ESTIMATE if math.isinf(limit) else Reason.LEAST_LATE
    return routed("just-enough", reason, job, now_s, _fastest_first(free, limit))


JUST_ENOUGH = Router("just-enough", choose_just_enough, room, "arrival")


def _slowest_first(within: Sequence[Priced]) -> list[Candidate]:
    """The largest estimate first; of equal ones that with more calls, then by id."""
    ranked = heapq.nsmallest(
        MOST_OFFERS, within, key=lambda one: (-one.estimate.crit, -len(one.view.held), one.view.id)
    )
    most = ranked[0].estimate.crit
    return [
        Candidate(
            one.view, one.estimate, -one.estimate.crit, f"{most - one.estimate.crit:.0f} ms more to spare"
        )
        for one in ranked
    ]


def _fastest_first(beyond: Sequence[Priced], limit: float) -> list[Candidate]:
    """The smallest estimate first; of equal ones that with fewer calls, then by id."""
    ranked = heapq.nsmallest(
        MOST_OFFERS, beyond, key=lambda one: (one.estimate.crit, len(one.view.held), one.view.id)
    )
    return [
        Candidate(one.view, one.estimate, one.estimate.crit, _lateness(one.estimate.crit, limit))
        for one in ranked
    ]


def _lateness(crit_ms: float, limit: float) -> str:
    return "slower" if math.isinf(limit) else f"over its time by {crit_ms - limit:.0f} ms"
