"""foresight, the default router: the smallest estimate of a batching engine, plus the harm done to others.

Owns the score J and which replicas it is worked out for. A call is charged for the delay it puts on calls that
are there already and can still be on time. The estimate is `estimate.py`, the harm `harm.py`; the kernel binds
late, and so replicas without room are candidates too.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from tightrope.model.fleet import Job, PoolView, ReplicaView, Routed
from tightrope.model.ids import ReplicaId
from tightrope.model.profile import Profile
from tightrope.policy.estimate import critical_ms, fits_at_all, has_room, split
from tightrope.policy.harm import harm_ms, kept_exposed, overlap_tokens
from tightrope.policy.load import EMPTY, Load, load_for, standing
from tightrope.policy.route import MOST_OFFERS, Candidate, Choose, Reason, Router, routed

FEW_OFFERS = 3
"""In a large pool a decision remembers this many candidates: to put one into words costs as much as to look at one."""
PATIENCE = 4
"""In a kind that is kept in order, so many replicas in a row that are no better than one before end the search."""
TYPICAL_PROMPT, TYPICAL_OUTPUT = 1000, 128
"""The call (tokens) by whose score the replicas of a kind are kept in order."""


@dataclass(frozen=True, slots=True)
class Weighing:
    """Settings of the score.

    `harm_weight` W: how much a millisecond of somebody else's delay counts. `tolerance_s`: a held call counts
    as live until its predicted finish is this far behind its latest finish.
    """

    harm_weight: float = 0.5
    tolerance_s: float = 0.25


DEFAULT = Weighing()


def foresight(weighing: Weighing = DEFAULT) -> Choose:
    """Smallest J = l_crit + W * X over all replicas that could ever hold the call; None if there are none."""

    def choose(job: Job, pool: PoolView, now_s: float, _rng: Random) -> Routed | None:
        ranked, least_ms = _best(job, pool, now_s, weighing)
        return _decision(job, ranked, least_ms, now_s) if ranked else None

    return choose


class _Scored(NamedTuple):
    """What the call would take on one replica, as it is and alone. The smallest is the best: by the score, then
    the calls it holds, then the id."""

    score_ms: float
    calls: int
    replica: ReplicaId
    crit_ms: float
    alone_ms: float
    load: Load
    view: ReplicaView


def _best(job: Job, pool: PoolView, now_s: float, weighing: Weighing) -> tuple[list[_Scored], float]:
    """The best few of those that could hold the call, in order, and the smallest estimate of all looked at.

    No replica beats its own idle card, so the fastest kinds are looked at first, and the search ends at one that
    would lose against all of the best few even if it were idle. That changes no result. Where the kernel keeps
    the kinds in order, a kind is also left after PATIENCE replicas in a row that are no better than one before.
    """
    best: list[_Scored] = []
    least_ms = math.inf
    most, patience = (FEW_OFFERS, PATIENCE) if pool.kinds else (MOST_OFFERS, len(pool.replicas))
    for alone_ms, views in _fastest_first(job, pool):
        worse, least_here_ms = 0, math.inf
        for view in views:
            if worse == patience or (len(best) == most and alone_ms > best[-1].score_ms):
                break
            scored = _score(job, view, alone_ms, now_s, weighing)
            if scored.crit_ms < least_ms:
                least_ms = scored.crit_ms
            if scored.score_ms < least_here_ms:
                worse, least_here_ms = 0, scored.score_ms
            else:
                worse += 1
            if len(best) < most:
                insort(best, scored)
            elif scored < best[-1]:
                best.pop()
                insort(best, scored)
    return best, least_ms


def _fastest_first(job: Job, pool: PoolView) -> list[tuple[float, Sequence[ReplicaView]]]:
    """The kinds that could hold the call, with the milliseconds it would take there if nothing else did."""
    order = 0 if job.is_terminal else 1
    kinds = [(kind.profile, kind.orders[order]) for kind in pool.kinds] or _by_profile(pool.replicas)
    found = [
        (critical_ms(job, profile, EMPTY), views) for profile, views in kinds if fits_at_all(job, profile)
    ]
    found.sort(key=lambda pair: pair[0])
    return found


def _by_profile(views: Iterable[ReplicaView]) -> list[tuple[Profile, Sequence[ReplicaView]]]:
    """All replicas by kind, those that hold the fewest calls first."""
    alike: dict[int, list[ReplicaView]] = {}  # by identity: replicas of a kind share one profile
    for view in sorted(views, key=lambda view: len(view.held)):
        alike.setdefault(id(view.profile), []).append(view)
    return [(found[0].profile, found) for found in alike.values()]


def _score(job: Job, view: ReplicaView, alone_ms: float, now_s: float, weighing: Weighing) -> _Scored:
    if not view.held:
        return _Scored(alone_ms, 0, view.id, alone_ms, alone_ms, EMPTY, view)
    now = standing(view, now_s)
    load = load_for(job, now)
    crit_ms = critical_ms(job, view.profile, load)
    harm = harm_ms(job, now, kept_exposed(view, now, weighing.tolerance_s))
    score_ms = crit_ms + weighing.harm_weight * harm
    return _Scored(score_ms, len(view.held), view.id, crit_ms, alone_ms, load, view)


# --- a large pool, kept in order --------------------------------------------------------------------------


def promise(view: ReplicaView, now_s: float) -> tuple[float, float]:
    """About what a call of typical size would score there soon: one that ends with its first token, and a whole one.

    Soon is when the prompts that are being computed are done: they take a tenth of a second, and an order that
    counted them would be wrong for most of the time until the ledger changes again.
    """
    k = view.profile.coefficients
    if not view.held:
        first_ms = math.ceil(TYPICAL_PROMPT / view.profile.step_tokens) * (k.a + k.h)
        return first_ms, first_ms + TYPICAL_OUTPUT * (k.a + k.h)
    now = standing(view, now_s)
    sums, others = now.gauge, kept_exposed(view, now, DEFAULT.tolerance_s)
    context = now.context_tokens + sums.prompts - sums.waiting.tokens
    step_ms = sums.base_ms + k.b * len(sums.prefilling) + k.c * context
    tokens = sums.waiting.tokens + TYPICAL_PROMPT
    overlap = overlap_tokens(TYPICAL_OUTPUT, now, others)
    live = others.decoding + len(others.outputs)
    harm = live * k.d * TYPICAL_PROMPT + overlap * (k.b + k.c * TYPICAL_PROMPT)
    first_ms = (math.ceil(tokens / sums.room) + 0.5) * step_ms + k.d * sums.waiting.tokens
    first_ms += DEFAULT.harm_weight * harm
    return first_ms, first_ms + TYPICAL_OUTPUT * (step_ms + sums.prefill_ms)


FORESIGHT = Router("foresight", foresight(), has_room, "latest-finish", is_late_binding=True, rank=promise)


# --- words ------------------------------------------------------------------------------------------------


def _decision(job: Job, ranked: Sequence[_Scored], least_ms: float, now_s: float) -> Routed:
    best = ranked[0]
    found = [
        Candidate(
            one.view, split(job, one.view.profile, one.load, one.alone_ms), one.score_ms, _loss(best, one)
        )
        for one in ranked
    ]
    if best.crit_ms > (job.due_s - now_s) * 1000:
        reason = Reason.LEAST_LATE
    else:
        reason = Reason.SPARES_OTHERS if least_ms < best.crit_ms else Reason.SMALLEST_ESTIMATE
    return routed("foresight", reason, job, now_s, found)


def _loss(best: _Scored, other: _Scored) -> str:
    slower_ms = other.crit_ms - best.crit_ms
    harm_ms = other.score_ms - best.score_ms - slower_ms
    if slower_ms >= 0.5 and slower_ms >= harm_ms:
        return f"slower by {slower_ms:.0f} ms"
    if harm_ms >= 0.5:
        return f"harms others by {harm_ms:.0f} ms more"
    return "equal, but holds more calls" if other.calls > best.calls else "equal, later in id order"
