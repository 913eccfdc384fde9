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
from itertools import islice
from random import Random
from typing import NamedTuple

from tightrope.model.fleet import Job, PoolView, ReplicaView, Routed
from tightrope.model.ids import ReplicaId
from tightrope.model.profile import Profile
from tightrope.policy.estimate import critical_ms, fits_at_all, gap_ms, has_room, has_slot, split
from tightrope.policy.harm import harm_ms, kept_exposed, overlap_tokens
from tightrope.policy.load import EMPTY, Load, load_for, standing
from tightrope.policy.route import MOST_OFFERS, Candidate, Choose, Rank, Reason, Room, Router, routed
from tightrope.policy.utilisation import gate

NAME = "foresight"

FEW_OFFERS = 3
"""In a large pool a decision remembers this many candidates: to put one into words costs as much as to look at one."""
FIRST_OF_KIND = 10
"""Of a kind that is kept in order, so many replicas are looked at, ..."""
PATIENCE = 5
"""... and no further one after so many in a row that are no better than one before."""
SMALL_POOL = 16
"""In larger ones the crowd has no price: the order knows nothing of it, and a less crowded replica is found anyway."""
SHORT_PROMPT, LONG_PROMPT, MIDDLE_PROMPT = 600, 2200, 1300
"""Of the calls (tokens) by whose scores the replicas of a kind are kept in order; the middle parts the two."""
TYPICAL_PROMPT, TYPICAL_OUTPUT = 1000, 128


@dataclass(frozen=True, slots=True)
class Weighing:
    """Settings of the score.

    `harm_weight` W: how much a millisecond of somebody else's delay counts. `tolerance_s`: a held call counts
    as live until its predicted finish is this far behind its latest finish. `crowd_weight`: what each call that
    is there already counts, in steps of the idle card: those that come later find a longer batch.
    `on_time_factor`: how many times as much both count for a call that keeps all promises anyway. `margin`: a
    call is taken to be on time if it would be so with an estimate that much too small; a margin that was learned
    of the replica goes before. `tpot_share` of the gap that readers were promised may be used up where a call
    keeps all promises; later ones make it longer. Where more than `live_share` of it, or `hopeless_share` for a
    call that cannot be on time any more, would be used up, the call waits.
    """

    harm_weight: float = 0.5
    tolerance_s: float = 0.25
    crowd_weight: float = 0.5
    on_time_factor: float = 2.0
    margin: float = 0.1
    tpot_share: float = 0.9
    live_share: float = 1.0
    hopeless_share: float = 0.5


DEFAULT = Weighing()


class Grade(IntEnum):
    """What a call may expect of a replica; the smaller one is always taken."""

    KEEPS = 0
    """It is on time, and nobody's tokens there come too slowly for what was promised."""
    STUTTERS = 1
    """It is on time, and the tokens of its answer or of others come too slowly."""
    LATE = 2


def foresight(weighing: Weighing = DEFAULT, name: str = NAME) -> Choose:
    """The best grade, and within it the smallest score, over all replicas that could ever hold the call; None if
    there are none. The score is J = l_crit + W * X + the price of the crowd, in ms; the last two count
    more where the call keeps all promises. W falls to 0 in a pool that is offered more than it can do."""

    def choose(job: Job, pool: PoolView, now_s: float, _rng: Random) -> Routed | None:
        ranked, least_ms = _best(job, pool, now_s, _eased(weighing, pool))
        return _decision(name, job, ranked, least_ms, now_s) if ranked else None

    return choose


def _eased(weighing: Weighing, pool: PoolView) -> Weighing:
    """The weights as they count in this pool."""
    if len(pool.replicas) > SMALL_POOL:
        weighing = replace(weighing, crowd_weight=0.0)
    share = gate(pool.utilisation)
    return weighing if share == 1 else replace(weighing, harm_weight=share * weighing.harm_weight)


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
    the kinds in order, only the first of each are looked at.
    """
    best: list[_Scored] = []
    least_ms = math.inf
    most, patience = (FEW_OFFERS, PATIENCE) if pool.kinds else (MOST_OFFERS, len(pool.replicas))
    first = FIRST_OF_KIND if pool.kinds else None
    hits = dict(job.hits)
    least_margin = 0.0 if any(view.margin is not None for view in pool.replicas[:1]) else weighing.margin
    for alone_ms, views in _fastest_first(job, pool):
        idle = (_grade(job, alone_ms * (1 + least_margin), 0.0, math.inf, now_s, weighing), alone_ms)
        worse, best_here = 0, (Grade.LATE, math.inf)
        for view in islice(views, first):
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
    kinds = [(kind.profile, kind.orders[_order(job)]) for kind in pool.kinds] or _by_profile(pool.replicas)
    found = [
        (critical_ms(job, profile, EMPTY), views) for profile, views in kinds if fits_at_all(job, profile)
    ]
    found.sort(key=lambda pair: pair[0])
    return found


def _order(job: Job) -> int:
    """Which of the orders that `promise` gives is for this call."""
    if not job.is_terminal:
        return 2
    return 0 if job.prompt_tokens <= MIDDLE_PROMPT else 1


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
    margin = weighing.margin if view.margin is None else view.margin
    grade = _grade(job, crit_ms * (1 + margin), gap, tpot_ms, now_s, weighing)
    if grade is Grade.KEEPS:
        harm *= weighing.on_time_factor
    score_ms = gap if grade is Grade.STUTTERS else crit_ms + harm
    if grade is Grade.LATE and gap > weighing.tpot_share * tpot_ms:
        score_ms *= gap / (weighing.tpot_share * tpot_ms)
    return _Scored(grade, score_ms, len(view.held), view.id, crit_ms, alone_ms, hit_tokens, load, view)


def _gap_ms(job: Job, profile: Profile, load: Load, hit_tokens: float) -> float:
    """The mean gap between tokens there, the call's own prompt included, which others wait for too."""
    k, x = profile.coefficients, max(0.0, job.prompt_tokens - hit_tokens)
    own = (k.d * x + k.e * x * (hit_tokens + x / 2)) / max(1.0, job.output_tokens)
    return gap_ms(profile, load, job.prompt_tokens, job.output_tokens) + own


def _grade(job: Job, surely_ms: float, gap: float, tpot_ms: float, now_s: float, weighing: Weighing) -> Grade:
    if surely_ms > (job.due_s - now_s) * 1000:
        return Grade.LATE
    return Grade.STUTTERS if gap > weighing.tpot_share * tpot_ms else Grade.KEEPS


# --- who may go now ---------------------------------------------------------------------------------------


def welcome(weighing: Weighing = DEFAULT) -> Room:
    """Late binding: the engine has room, and those who read there in time keep what they were promised per token.

    A stream that was broken is lost to no purpose if the call that broke it is late anyway, so a hopeless call
    goes only where plenty of the promise is left. Where nothing runs that is in time, everybody may go.
    """

    def is_welcome(job: Job, view: ReplicaView, now_s: float) -> bool:
        if not has_room(job, view, now_s):
            return False
        now = standing(view, now_s)
        if not now.gauge.running:
            return True
        tpot_s, share = min(job.tpot_s, now.gauge.live_tpot_s), weighing.live_share
        if job.is_hopeless:
            tpot_s, share = now.gauge.live_tpot_s, weighing.hopeless_share
        if math.isinf(tpot_s) or math.isinf(share):
            return True
        return _gap_ms(job, view.profile, load_for(job, now), 0.0) <= share * 1000 * tpot_s

    return is_welcome


def _has_slot(job: Job, view: ReplicaView, _now_s: float) -> bool:
    return has_slot(job, view)


# --- a large pool, kept in order --------------------------------------------------------------------------


def promise(view: ReplicaView, now_s: float) -> Rank:
    """What three calls would score there, but for what is the same on all replicas of its kind: one that ends with
    its first token after a short prompt, one after a long prompt, and a whole one.

    While prompts are being computed that falls as time passes, and then stays until the ledger changes.
    """
    k = view.profile.coefficients
    if not view.held:
        step_ms = k.a + k.h
        return Rank((step_ms, step_ms, (1 + TYPICAL_OUTPUT) * step_ms))
    now = standing(view, now_s)
    sums, others = now.gauge, kept_exposed(view, now, DEFAULT.tolerance_s)
    tokens = now.left.tokens + sums.waiting.tokens
    prompts_ms = tokens * (now.step_ms / sums.room + k.d)
    begin_ms = 1.5 * now.step_ms + prompts_ms
    weight = DEFAULT.harm_weight * DEFAULT.on_time_factor
    stall = weight * k.d * (others.decoding + others.prefilling / 2)
    overlap = weight * overlap_tokens(TYPICAL_OUTPUT, now, others)
    gap_ms = (
        now.step_ms + k.b * (len(sums.prefilling) + len(sums.queued)) + k.c * sums.prompts + sums.prefill_ms
    )
    scores_ms = (
        begin_ms + SHORT_PROMPT * stall + overlap * (k.b + k.c * SHORT_PROMPT),
        begin_ms + LONG_PROMPT * stall + overlap * (k.b + k.c * LONG_PROMPT),
        begin_ms + TYPICAL_OUTPUT * gap_ms + TYPICAL_PROMPT * stall + overlap * (k.b + k.c * TYPICAL_PROMPT),
    )
    return Rank(scores_ms, now_s + prompts_ms / 1000 if tokens > len(sums.prefilling) else None)


def _router(name: str, weighing: Weighing) -> Router:
    return Router(
        name,
        foresight(weighing, name),
        welcome(weighing),
        "latest-finish",
        is_late_binding=True,
        rank=promise,
        is_pacing=True,
    )


def _variant(name: str, weighing: Weighing = DEFAULT) -> Router:
    return _router(f"{NAME}/{name}", weighing)


FORESIGHT = _router(NAME, DEFAULT)

NO_LIMIT = math.inf
LESSENED = (
    _variant("no-harm", replace(DEFAULT, harm_weight=0.0)),
    _variant("no-crowd", replace(DEFAULT, crowd_weight=0.0)),
    _variant("own-speed", replace(DEFAULT, on_time_factor=1.0)),
    _variant("no-waiting", replace(DEFAULT, live_share=NO_LIMIT, hopeless_share=NO_LIMIT)),
    _variant("no-tpot", replace(DEFAULT, tpot_share=NO_LIMIT, live_share=NO_LIMIT, hopeless_share=NO_LIMIT)),
    replace(_variant("first-come"), line="arrival"),
    replace(_variant("no-pace"), is_pacing=False),
    replace(_variant("early"), room=_has_slot, is_late_binding=False, rank=None),
)
"""Each without one of the parts, to tell what the part is worth."""
EXTENDED = (
    replace(_variant("moore-hodgson"), line="fewest-late"),
    replace(_variant("margin"), has_margins=True),
    replace(_variant("utilisation-gate"), has_utilisation=True),
)
"""Each with one more, which the kernel keeps for it."""
FORESIGHT_VARIANTS = (*LESSENED, *EXTENDED)


# --- words ------------------------------------------------------------------------------------------------


def _decision(name: str, job: Job, ranked: Sequence[_Scored], least_ms: float, now_s: float) -> Routed:
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
    return routed(name, reason, job, now_s, found)


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
