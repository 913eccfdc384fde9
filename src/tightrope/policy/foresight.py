"""foresight, the default router: the smallest estimate of a batching engine, plus the harm done to others.

Owns the score J and which replicas it is worked out for. A call is charged for the delay it puts on calls that
are there already and can still be on time. The estimate is `estimate.py`, the harm `harm.py`; the kernel binds
late, and so replicas without room are candidates too.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from random import Random
from typing import NamedTuple

from tightrope.model.fleet import Job, PoolView, ReplicaView, Routed
from tightrope.model.ids import ReplicaId
from tightrope.model.profile import Profile
from tightrope.policy.estimate import critical_ms, fits_at_all, gap_ms, has_room, split
from tightrope.policy.harm import harm_ms, kept_exposed, overlap_tokens
from tightrope.policy.load import EMPTY, Load, load_for, standing
from tightrope.policy.route import MOST_OFFERS, Candidate, Choose, Reason, Router, routed

FEW_OFFERS = 3
"""In a large pool a decision remembers this many candidates: to put one into words costs as much as to look at one."""
PATIENCE = 10
"""In a kind that is kept in order, so many replicas in a row that are no better than one before end the search."""
SMALL_POOL = 16
"""In larger ones the crowd has no price: the order knows nothing of it, and a less crowded replica is found anyway."""
TYPICAL_PROMPT, TYPICAL_OUTPUT = 1000, 128
"""The call (tokens) by whose score the replicas of a kind are kept in order."""


@dataclass(frozen=True, slots=True)
class Weighing:
    """Settings of the score.

    `harm_weight` W: how much a millisecond of somebody else's delay counts. `tolerance_s`: a held call counts
    as live until its predicted finish is this far behind its latest finish. `crowd_weight`: what each call that
    is there already counts, in steps of the idle card: those that come later find a longer batch. `margin`: a
    call is taken to be on time if it would be so with an estimate that much too small. `tpot_share` of the gap
    that readers were promised may be used up when a call joins; later ones make it longer.
    """

    harm_weight: float = 0.5
    tolerance_s: float = 0.25
    crowd_weight: float = 0.5
    margin: float = 0.1
    tpot_share: float = 0.9


DEFAULT = Weighing()


class Grade(IntEnum):
    """What a call may expect of a replica; the smaller one is always taken."""

    KEEPS = 0
    """It is on time, and nobody's tokens there come too slowly for what was promised."""
    STUTTERS = 1
    """It is on time, and the tokens of its answer or of others come too slowly."""
    LATE = 2


def foresight(weighing: Weighing = DEFAULT) -> Choose:
    """The best grade, and within it the smallest score, over all replicas that could ever hold the call; None if
    there are none. The score is J = l_crit + W * X + the price of the crowd, in ms."""

    def choose(job: Job, pool: PoolView, now_s: float, _rng: Random) -> Routed | None:
        ranked, least_ms = _best(job, pool, now_s, weighing)
        return _decision(job, ranked, least_ms, now_s) if ranked else None

    return choose


class _Scored(NamedTuple):
    """What the call would take on one replica, as it is and alone. The smallest is the best: by the grade, the
    score, the calls it holds, and then the id."""

    grade: Grade
    score_ms: float
    calls: int
    replica: ReplicaId
    crit_ms: float
    alone_ms: float
    hit_tokens: float
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
    if len(pool.replicas) > SMALL_POOL:
        weighing = replace(weighing, crowd_weight=0.0)
    hits = dict(job.hits)
    for alone_ms, views in _fastest_first(job, pool):
        idle = (_grade(job, alone_ms, 0.0, math.inf, now_s, weighing), alone_ms)
        worse, best_here = 0, (Grade.LATE, math.inf)
        for view in views:
            if worse == patience or (not hits and len(best) == most and idle > best[-1][:2]):
                break
            scored = _score(job, view, alone_ms, hits.get(view.id, 0.0), now_s, weighing)
            if scored.crit_ms < least_ms:
                least_ms = scored.crit_ms
            if scored[:2] < best_here:
                worse, best_here = 0, (scored.grade, scored.score_ms)
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


def _score(
    job: Job, view: ReplicaView, alone_ms: float, hit_tokens: float, now_s: float, weighing: Weighing
) -> _Scored:
    load, crit_ms, harm, gap, tpot_ms = EMPTY, alone_ms, 0.0, 0.0, 1000 * job.tpot_s
    if view.held:
        now = standing(view, now_s)
        load = load_for(job, now)
        harm = weighing.harm_weight * harm_ms(job, now, kept_exposed(view, now, weighing.tolerance_s))
        harm += weighing.crowd_weight * view.profile.solo_ttft_ms(0) * len(view.held)
        tpot_ms = min(tpot_ms, 1000 * now.gauge.tpot_s)
    if view.held or hit_tokens:
        crit_ms = critical_ms(job, view.profile, load, hit_tokens)
    if tpot_ms < math.inf:
        gap = _gap_ms(job, view.profile, load, hit_tokens)
    grade = _grade(job, crit_ms, gap, tpot_ms, now_s, weighing)
    score_ms = gap if grade is Grade.STUTTERS else crit_ms + harm
    if grade is Grade.LATE and gap > weighing.tpot_share * tpot_ms:
        score_ms *= gap / (weighing.tpot_share * tpot_ms)
    return _Scored(grade, score_ms, len(view.held), view.id, crit_ms, alone_ms, hit_tokens, load, view)


def _gap_ms(job: Job, profile: Profile, load: Load, hit_tokens: float) -> float:
    """The mean gap between tokens there, the call's own prompt included, which others wait for too."""
    k, x = profile.coefficients, max(0.0, job.prompt_tokens - hit_tokens)
    own = (k.d * x + k.e * x * (hit_tokens + x / 2)) / max(1.0, job.output_tokens)
    return gap_ms(profile, load, job.prompt_tokens, job.output_tokens) + own


def _grade(job: Job, crit_ms: float, gap: float, tpot_ms: float, now_s: float, weighing: Weighing) -> Grade:
    if crit_ms * (1 + weighing.margin) > (job.due_s - now_s) * 1000:
        return Grade.LATE
    return Grade.STUTTERS if gap > weighing.tpot_share * tpot_ms else Grade.KEEPS


# --- a large pool, kept in order --------------------------------------------------------------------------


def promise(view: ReplicaView, now_s: float) -> tuple[float, float]:
    """About what a call of typical size would score there soon: one that ends with its first token, and a whole one.

    Soon is a step from now: what the step that runs computes is done then, and an order that counted it would be
    wrong for most of the time until the ledger changes again.
    """
    k = view.profile.coefficients
    if not view.held:
        first_ms = math.ceil(TYPICAL_PROMPT / view.profile.step_tokens) * (k.a + k.h)
        return first_ms, first_ms + TYPICAL_OUTPUT * (k.a + k.h)
    now = standing(view, now_s)
    sums, others = now.gauge, kept_exposed(view, now, DEFAULT.tolerance_s)
    context = now.context_tokens + sums.prompts - sums.waiting.tokens
    step_ms = sums.base_ms + k.b * len(sums.prefilling) + k.c * context
    queued = sums.waiting.tokens + max(0.0, now.left.tokens - sums.room)
    tokens = queued + TYPICAL_PROMPT
    overlap = overlap_tokens(TYPICAL_OUTPUT, now, others)
    live = others.decoding + len(others.outputs)
    harm = live * k.d * TYPICAL_PROMPT + overlap * (k.b + k.c * TYPICAL_PROMPT)
    first_ms = (math.ceil(tokens / sums.room) + 0.5) * step_ms + k.d * queued
    first_ms += DEFAULT.harm_weight * harm
    return first_ms, first_ms + TYPICAL_OUTPUT * (step_ms + sums.prefill_ms)


FORESIGHT = Router(
    "foresight",
    foresight(),
    has_room,
    "latest-finish",
    is_late_binding=True,
    rank=promise,
    is_pacing=True,
)


# --- words ------------------------------------------------------------------------------------------------


def _decision(job: Job, ranked: Sequence[_Scored], least_ms: float, now_s: float) -> Routed:
    best = ranked[0]
    found = [
        Candidate(
            one.view,
            split(job, one.view.profile, one.load, one.alone_ms, one.hit_tokens),
            one.score_ms,
            _loss(best, one),
        )
        for one in ranked
    ]
    if best.crit_ms > (job.due_s - now_s) * 1000:
        reason = Reason.LEAST_LATE
    else:
        reason = Reason.SPARES_OTHERS if least_ms < best.crit_ms else Reason.SMALLEST_ESTIMATE
    return routed("foresight", reason, job, now_s, found)


def _loss(best: _Scored, other: _Scored) -> str:
    if other.grade > best.grade:
        return "would be late" if other.grade is Grade.LATE else "tokens would come too slowly there"
    slower_ms = other.crit_ms - best.crit_ms
    harm_ms = other.score_ms - best.score_ms - slower_ms
    if slower_ms >= 0.5 and slower_ms >= harm_ms:
        return f"slower by {slower_ms:.0f} ms"
    if harm_ms >= 0.5:
        return f"harms others by {harm_ms:.0f} ms more"
    return "equal, but holds more calls" if other.calls > best.calls else "equal, later in id order"
