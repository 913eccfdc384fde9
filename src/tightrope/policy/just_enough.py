"""just-enough: of the replicas that keep what was promised, the one that keeps it with the least to spare.

The rule of GoodServe (2605.16867), "just-enough instance selection" among unequal cards, and of PolyServe
(2507.17769), the highest load that still attains the promise. Owns the rule and the limits it aims at. Moving
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
from tightrope.policy.route import MOST_OFFERS, Candidate, Choose, Reason, Router, routed

NAME = "just-enough"
PARTS = (1.0, 0.9, 0.8, 0.7, 0.5)
"""Parts of its limits that a call may be expected to use; each is a variant. An estimate is too small half of
the time, and whoever goes there later makes the call slower."""


class Priced(NamedTuple):
    """A replica with a free slot, what the call would take there, and by how many milliseconds a gap between
    tokens would be shorter than the most impatient reader there can bear (0 if nobody minds)."""

    view: ReplicaView
    estimate: Estimate
    gap_spare_ms: float


def just_enough(part: float = 1.0, name: str = NAME) -> Choose:
    """The largest estimate within this part of the limits; if none is, or there is no limit, the smallest."""

    def choose(job: Job, pool: PoolView, now_s: float, _rng: Random) -> Routed | None:
        free = priced(job, pool, now_s, part)
        limit = part * limit_ms(job, now_s)
        within = [one for one in free if one.estimate.crit <= limit < math.inf and one.gap_spare_ms >= 0]
        if within:
            chosen = {one.view.id for one in within}
            beyond = [one for one in free if one.view.id not in chosen]
            found = [*_slowest_first(within), *_fastest_first(beyond, limit)]
            return routed(name, Reason.FULLEST_ON_TIME, job, now_s, found)
        if not free:
            return None
        reason = Reason.SMALLEST_ESTIMATE if math.isinf(limit) else Reason.LEAST_LATE
        return routed(name, reason, job, now_s, _fastest_first(free, limit))

    return choose


JUST_ENOUGH = Router(NAME, just_enough(), room, "arrival")

JUST_ENOUGH_VARIANTS = tuple(
    Router(name, just_enough(part, name), room, "arrival") for part in PARTS for name in (f"{NAME}/{part}",)
)


def limit_ms(job: Job, now_s: float) -> float:
    """Milliseconds that the call may still take: to the end of its budget or its latest finish, if that is
    sooner. Below zero if it is too late; infinite without a promise."""
    return (min(job.ready_s + job.budget_s, job.due_s) - now_s) * 1000


def priced(job: Job, pool: PoolView, now_s: float, part: float = 1.0) -> list[Priced]:
    """Every replica with a free slot, in id order. Gaps may take this part of what was promised."""
    free = sorted((view for view in pool.replicas if has_slot(job, view)), key=lambda view: view.id)
    found = []
    for view in free:
        cost = estimate(job, view, now_s)
        found.append(Priced(view, cost, _gap_spare_ms(job, view, cost, part)))
    return found


def _gap_spare_ms(job: Job, view: ReplicaView, cost: Estimate, part: float) -> float:
    limit_s = min(job.tpot_s, min((call.tpot_s for call in view.held), default=math.inf))
    if math.isinf(limit_s):
        return 0.0
    return part * limit_s * 1000 - cost.decode / max(1.0, job.output_tokens - 1)


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
    return [Candidate(one.view, one.estimate, one.estimate.crit, _excess(one, limit)) for one in ranked]


def _excess(one: Priced, limit: float) -> str:
    if one.estimate.crit > limit:
        return f"over its time by {one.estimate.crit - limit:.0f} ms"
    if one.gap_spare_ms < 0:
        return f"tokens would come {-one.gap_spare_ms:.0f} ms too slowly"
    return "slower"
