"""foresight, the default router: the smallest estimate of a batching engine, plus the harm done to others.

Owns the score J and the harm X. A call is charged for the delay it puts on calls that are there already and
can still be on time. The estimate is `estimate.py`, its inputs are `load.py`; the kernel binds late, and so
replicas without room are candidates too.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from tightrope.model.fleet import HeldCall, Job, PoolView, ReplicaView, Routed
from tightrope.policy.estimate import critical_ms, fits_at_all, has_room, split
from tightrope.policy.load import Load, Standing, load_for, standing, step_room
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

    Counts of those that decode, that prefill, and that wait in the engine; those placed in thought with their
    keys; and for each whose decoding is critical, the tokens it still has to produce.
    """

    decoding: int
    prefilling: int
    queued: int
    placed: tuple[HeldCall, ...]
    critical_left: tuple[float, ...]


def foresight(weighing: Weighing = DEFAULT) -> Choose:
    """Smallest J = l_crit + W * X over all replicas that could ever hold the call; None if there are none."""

    def choose(job: Job, pool: PoolView, now_s: float, _rng: Random) -> Routed | None:
        scored = [
            _score(job, view, now_s, weighing) for view in pool.replicas if fits_at_all(job, view.profile)
        ]
        return _decision(job, scored, now_s) if scored else None

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
    k = now.profile.coefficients
    latest_s = now_s - tolerance_s
    gap_s = (now.step_ms + now.prefill_ms + k.b * len(now.prefilling)) / 1000
    left_by_live: list[float] = []
    decoding = 0
    for call, left in zip(now.decoding, now.output_left, strict=True):
        if call.is_terminal or call.is_hopeless:
            continue
        if call.due_s - left * gap_s >= latest_s:
            decoding += 1
            left_by_live.append(left)
    if not now.prefilling and not now.placed:
        return Exposed(decoding, 0, 0, (), tuple(left_by_live))
    room = step_room(now.profile, len(now.decoding))
    first_s = now.step_ms / 2000
    prompts = [*now.prompt_left, *(call.prompt_tokens for call in (*now.queued, *now.placed))]
    pending = (*now.prefilling, *now.queued, *now.placed)
    live: list[bool] = []
    tokens = 0.0
    for call, prompt in zip(pending, prompts, strict=True):
        tokens += prompt
        first_s += prompt * (k.d + k.e * (call.prompt_tokens - prompt / 2)) / 1000
        steps = tokens / room * now.step_ms / 1000
        rest_s = 0.0 if call.is_terminal else (call.output_tokens - 1) * gap_s
        is_live = not call.is_hopeless and call.due_s - first_s - steps - rest_s >= latest_s
        live.append(is_live)
        if is_live and not call.is_terminal:
            left_by_live.append(call.output_tokens)
    in_engine = len(now.prefilling)
    return Exposed(
        decoding,
        sum(live[:in_engine]),
        sum(live[in_engine : in_engine + len(now.queued)]),
        tuple(
            call
            for call, is_live in zip(now.placed, live[in_engine + len(now.queued) :], strict=True)
            if is_live
        ),
        tuple(left_by_live),
    )


def _decision(job: Job, scored: Sequence[_Scored], now_s: float) -> Routed:
    ranked = heapq.nsmallest(MOST_OFFERS, scored, key=lambda one: one.rank)
    best = ranked[0]
    found = [
        Candidate(one.view, split(job, one.view.profile, one.load), one.score_ms, _loss(best, one))
        for one in ranked
    ]
    return routed("foresight", _reason(job, best, scored, now_s), job, now_s, found)


def _reason(job: Job, best: _Scored, scored: Sequence[_Scored], now_s: float) -> Reason:
    if best.crit_ms > (job.due_s - now_s) * 1000:
        return Reason.LEAST_LATE
    if any(one.crit_ms < best.crit_ms for one in scored):
        return Reason.SPARES_OTHERS
    return Reason.SMALLEST_ESTIMATE


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
