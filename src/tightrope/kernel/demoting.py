"""Demotion: which waiting calls stand behind the live ones, those without hope and those given up for others.

Owns when that is looked at and what is known of the pool then. The rules are `policy/order.py`; the walk along the
line is `placing.py`.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, replace
from heapq import nsmallest
from itertools import islice

from tightrope.kernel.state import Call, Pool, State
from tightrope.model.errors import TightropeBug
from tightrope.model.fleet import Job
from tightrope.policy.estimate import typical_s
from tightrope.policy.load import standing
from tightrope.policy.order import Claim, demoted, is_hopeless

MOST_PARTED = 256
"""So many calls are chosen among, those with the earliest latest finish; behind them all are live for now."""


def is_lost(state: State, call: Call, now_s: float) -> bool:
    """Whether a waiting call can no longer be on time anywhere."""
    if call.job is None or call.model is None:
        return False
    profiles = state.pool_profiles(call.model)
    if call.usual_on is not profiles:
        job, call.usual_on = call.job, profiles
        call.usual_s = typical_s(job.prompt_tokens, job.output_tokens, job.is_terminal, profiles)
    return is_hopeless(call.last_chance_s, call.usual_s, now_s)


def part_line(state: State, pool: Pool, now_s: float) -> None:
    """Choose anew which calls are given up so that most are on time. Does nothing for other lines."""
    if state.router.line != "fewest-late" or not pool.line or not pool.roster:
        return
    machine = _machine(pool, now_s)
    claims: list[Claim] = []
    lost: list[Call] = []
    for call in nsmallest(MOST_PARTED, _savable(state, pool), key=_latest_finish):
        if is_lost(state, call, now_s):
            lost.append(call)
        else:
            claims.append(machine.claim(call))
    given_up = demoted(claims, machine.free_s)
    for call in lost:
        _move(state, pool, call, is_hopeless=True, is_demoted=False)
    for claim in claims:
        is_demoted = claim.call in given_up
        _move(state, pool, state.calls[claim.call], is_hopeless=is_demoted, is_demoted=is_demoted)


def _savable(state: State, pool: Pool) -> Iterator[Call]:
    """The first live calls, and the first of those that were given up."""
    for _, call_id in pool.line[:MOST_PARTED]:
        call = state.calls[call_id]
        if _job(call).is_hopeless:
            break
        yield call
    for _, call_id in islice(pool.demoted, MOST_PARTED):
        yield state.calls[call_id]


def _latest_finish(call: Call) -> tuple[float, str]:
    return _job(call).due_s, call.id


def _move(state: State, pool: Pool, call: Call, is_hopeless: bool, is_demoted: bool) -> None:
    """Let the call stand where it belongs."""
    job = _job(call)
    if (job.is_hopeless, call.is_demoted) == (is_hopeless, is_demoted):
        return
    state.dequeue(call)
    call.job = replace(job, is_hopeless=is_hopeless)
    state.enqueue(call)
    call.is_demoted = is_demoted
    if is_demoted:
        insort(pool.demoted, (job.due_s, call.id))


def _job(call: Call) -> Job:
    if call.job is None:
        raise TightropeBug(f"{call.id} has no job to wait with")
    return call.job


# --- the pool as one machine -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Machine:
    """All ready replicas together: seconds per prompt token and per squared token, the gap between two tokens of an
    answer, and the moment at which the prompts that were dispatched are done."""

    token_s: float
    pair_s: float
    gap_s: float
    free_s: float

    def claim(self, call: Call) -> Claim:
        """The prompt of the call, done so early that what counts of the answer is on time as well."""
        job = _job(call)
        n = job.prompt_tokens
        decode_s = 0.0 if job.is_terminal else max(0.0, job.output_tokens - 1) * self.gap_s
        return Claim(call.last_chance_s - decode_s, n * self.token_s + n * n / 2 * self.pair_s, call.id)


def _machine(pool: Pool, now_s: float) -> _Machine:
    """Prompts are shared out as the replicas are fast, each beside what it decodes now."""
    speed = pair_ms = gap_ms = tokens = pairs = 0.0
    for view in pool.roster:
        now, k = standing(view, now_s), view.profile.coefficients
        own = 1 / (now.step_ms / now.gauge.room + k.d)
        speed += own
        pair_ms += own * k.e
        gap_ms += own * (now.step_ms + now.gauge.prefill_ms)
        tokens += now.left.tokens + now.gauge.waiting.tokens
        pairs += now.left.pairs + now.gauge.waiting.pairs
    token_s, pair_s = 1 / speed / 1000, pair_ms / speed / len(pool.roster) / 1000
    return _Machine(token_s, pair_s, gap_ms / speed / 1000, now_s + tokens * token_s + pairs * pair_s)
