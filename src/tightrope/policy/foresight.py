"""foresight, the default router: the smallest estimate of a batching engine, plus the harm done to others.

Owns the score J and the harm X. A call is charged for the delay it puts on calls that are there already and
can still be on time. The estimate is `estimate.py`, its inputs are `load.py`; the kernel binds late, and so
replicas without room are candidates too.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, zip_longest
from random import Random
from typing import NamedTuple

from tightrope.model.fleet import HeldCall, Job, PoolView, ReplicaView, Routed
from tightrope.policy.estimate import critical_ms, fits_at_all, has_room, split
from tightrope.policy.load import EMPTY, Load, Standing, load_for, standing, step_room
from tightrope.policy.route import MOST_OFFERS, Candidate, Choose, Reason, Router, routed


@dataclass(frozen=True, slots=True)
class Weighing:
    """Settings of the score.

    `harm_weight` W: how much a millisecond of somebody else's delay counts. `tolerance_s`: a held call counts
    as live until its predicted finish is this far behind its latest finish.
    """

    harm_weight: float = 0.5
    tolerance_s: float = 0.25


DEFAULT = Weighing()


class Exposed(NamedTuple):
    """The live calls of a replica whose critical part is not over, by how one more call would delay them.

    How many decode and how many prefill; those placed in thought, whose keys decide; and for each whose
    decoding is critical, the tokens it still has to produce. What the engine queues itself goes first anyway.
    """

    decoding: int
    prefilling: int
    placed: Sequence[HeldCall]
    critical_left: Sequence[float]


def foresight(weighing: Weighing = DEFAULT) -> Choose:
    """Smallest J = l_crit + W * X over all replicas that could ever hold the call; None if there are none."""

    def choose(job: Job, pool: PoolView, now_s: float, _rng: Random) -> Routed | None:
        ranked, least_ms = _best(job, pool, now_s, weighing)
        return _decision(job, ranked, least_ms, now_s) if ranked else None

    return choose


FORESIGHT = Router("foresight", foresight(), has_room, "latest-finish", is_late_binding=True)


class _Scored(NamedTuple):
    view: ReplicaView
    load: Load
    crit_ms: float
    score_ms: float

    @property
    def rank(self) -> tuple[float, int, str]:
        return (self.score_ms, len(self.view.held), self.view.id)


def _best(job: Job, pool: PoolView, now_s: float, weighing: Weighing) -> tuple[list[_Scored], float]:
    """The best eight of all that could hold the call, in order, and the smallest estimate of all.

    No replica beats its own idle card, so the fastest cards are looked at first, and the search ends at a card
    that would lose against the eighth best even if it were idle. That changes no result.
    """
    best: list[_Scored] = []
    least_ms = math.inf
    for alone_ms, view in _fastest_first(job, pool):
        if len(best) == MOST_OFFERS and alone_ms > best[-1].score_ms:
            break
        scored = _score(job, view, now_s, weighing)
        least_ms = min(least_ms, scored.crit_ms)
        if len(best) < MOST_OFFERS or scored.rank < best[-1].rank:
            insort(best, scored, key=lambda one: one.rank)
            del best[MOST_OFFERS:]
    return best, least_ms


def _fastest_first(job: Job, pool: PoolView) -> list[tuple[float, ReplicaView]]:
    """Who could hold the call, with the milliseconds it would take there if nothing else did."""
    alone_by_card: dict[int, float] = {}  # by identity: replicas of a card share one profile
    found = []
    for view in pool.replicas:
        profile = view.profile
        alone_ms = alone_by_card.get(id(profile))
        if alone_ms is None:
            alone_ms = critical_ms(job, profile, EMPTY) if fits_at_all(job, profile) else math.inf
            alone_by_card[id(profile)] = alone_ms
        if alone_ms < math.inf:
            found.append((alone_ms, view))
    found.sort(key=lambda pair: (pair[0], len(pair[1].held)))
    return found


def _score(job: Job, view: ReplicaView, now_s: float, weighing: Weighing) -> _Scored:
    now = standing(view, now_s)
    load = load_for(job, now)
    crit_ms = critical_ms(job, view.profile, load)
    if not view.held:
        return _Scored(view, load, crit_ms, crit_ms)
    harm = harm_ms(job, now, exposed(now, now_s, weighing.tolerance_s))
    return _Scored(view, load, crit_ms, crit_ms + weighing.harm_weight * harm)


def harm_ms(job: Job, now: Standing, others: Exposed) -> float:
    """X: milliseconds of delay, summed over the live calls of the replica.

    Our prompt stalls every call that decodes or waits behind us, and half as long one that is in prefill
    itself; our decoding slows down the decoding of all that it overlaps.
    """
    k = now.profile.coefficients
    prompt = job.prompt_tokens
    stall = k.d * prompt + k.e * prompt * prompt / 2
    key = (job.is_hopeless, job.due_s)
    behind = sum((call.is_hopeless, call.due_s) > key for call in others.placed)
    stalled = others.decoding + others.prefilling / 2 + behind
    output = job.output_tokens
    overlap = sum(min(output, left) for left in others.critical_left)
    return stall * stalled + overlap * (k.b + k.c * (prompt + output / 2))


def exposed(now: Standing, now_s: float, tolerance_s: float) -> Exposed:
    """Which calls there can still be on time, if nothing more is sent there.

    A terminal call has no critical part left once its first token is out. Finishes are predicted with the
    prompts in front of each call and the step time of all that run, waiting for a free sequence aside.
    """
    latest_s = now_s - tolerance_s
    gap_s = (now.step_ms + now.prefill_ms + now.profile.coefficients.b * len(now.prefilling)) / 1000
    critical_left = [
        left
        for call, left in zip(now.decoding, now.output_left, strict=True)
        if not call.is_terminal and not call.is_hopeless and call.due_s - left * gap_s >= latest_s
    ]
    decoding = len(critical_left)
    pending = [*now.prefilling, *now.queued, *now.placed]
    if not pending:
        return Exposed(decoding, 0, (), critical_left)
    live = _live(now, pending, latest_s, gap_s)
    critical_left += [call.output_tokens for call in compress(pending, live) if not call.is_terminal]
    placed = list(compress(now.placed, live[len(pending) - len(now.placed) :]))
    return Exposed(decoding, sum(live[: len(now.prefilling)]), placed, critical_left)


def _live(now: Standing, pending: Sequence[HeldCall], latest_s: float, gap_s: float) -> list[bool]:
    """Which of the calls without a first token, in the order in which they get it, can still be on time."""
    k = now.profile.coefficients
    step_s = now.step_ms / 1000
    token_s = step_s / step_room(now.profile, len(now.decoding))
    waited_s = step_s / 2
    live: list[bool] = []
    for call, left in zip_longest(pending, now.prompt_left):
        prompt = call.prompt_tokens if left is None else left
        waited_s += prompt * (token_s + (k.d + k.e * (call.prompt_tokens - prompt / 2)) / 1000)
        rest_s = 0.0 if call.is_terminal else (call.output_tokens - 1) * gap_s
        live.append(not call.is_hopeless and call.due_s - waited_s - rest_s >= latest_s)
    return live


def _decision(job: Job, ranked: Sequence[_Scored], least_ms: float, now_s: float) -> Routed:
    best = ranked[0]
    found = [
        Candidate(one.view, split(job, one.view.profile, one.load), one.score_ms, _loss(best, one))
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
    return (
        "equal, but holds more calls"
        if len(other.view.held) > len(best.view.held)
        else "equal, later in id order"
    )
