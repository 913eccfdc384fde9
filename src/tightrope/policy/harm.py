"""Harm: the delay that one more call would put on those of a replica that can still be on time.

Owns which calls can (`Exposed`) and what each of them would suffer. How much that counts against a replica is
`foresight.py`; what the calls are doing is `load.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress, zip_longest
from typing import NamedTuple

from tightrope.model.fleet import HeldCall, Job, ReplicaView
from tightrope.policy.gauge import NEVER, Ends
from tightrope.policy.load import Standing


class Exposed(NamedTuple):
    """The live calls of a replica whose critical part is not over, by how one more call would delay them.

    How many decode and how many prefill; those placed in thought, whose keys decide. Of those whose decoding is
    critical: the ends of the ones that decode, and the lengths of the ones that will. What the engine queues
    itself goes first anyway.
    """

    decoding: int
    prefilling: int
    placed: Sequence[HeldCall]
    ends: Ends
    outputs: Sequence[float]


def harm_ms(job: Job, now: Standing, others: Exposed) -> float:
    """X: milliseconds of delay, summed over the live calls of the replica.

    Our prompt stalls every call that decodes or waits behind us, and half as long one that is in prefill
    itself; our decoding slows down the decoding of all that it overlaps.
    """
    k = now.gauge.profile.coefficients
    prompt, output = job.prompt_tokens, job.output_tokens
    stalled = others.decoding + others.prefilling / 2
    if others.placed:
        key = (job.is_hopeless, job.due_s)
        stalled += sum((call.is_hopeless, call.due_s) > key for call in others.placed)
    stall = k.d * prompt + k.e * prompt * prompt / 2
    slowed = overlap_tokens(output, now, others) * (k.b + k.c * (prompt + output / 2))
    return stall * stalled + slowed


def overlap_tokens(output: float, now: Standing, others: Exposed) -> float:
    """Tokens that the others produce, critically, while one more call produces `output` of its own."""
    overlap = 0.0
    if others.decoding:
        step_s = now.gauge.step_s
        beyond_first_s = others.ends.left_within_s(now.now_s, (output - 1) * step_s)
        overlap = others.decoding + beyond_first_s / step_s
    for expected in others.outputs:
        overlap += min(expected, output)
    return overlap


# --- who can still be on time ----------------------------------------------------------------------------


class _Kept(NamedTuple):
    """What was found for a view, and until when it holds."""

    tolerance_s: float
    until_s: float
    exposed: Exposed


def kept_exposed(view: ReplicaView, now: Standing, tolerance_s: float) -> Exposed:
    """The same as `exposed`, worked out again only when some call may have changed sides."""
    kept = view.memo.get(_Kept)
    if isinstance(kept, _Kept) and now.now_s < kept.until_s and kept.tolerance_s == tolerance_s:
        return kept.exposed
    found, nearest_s = _exposed(now, tolerance_s, _kept_readers(view, now, tolerance_s))
    view.memo[_Kept] = _Kept(tolerance_s, now.now_s + nearest_s / _fastest(now), found)
    return found


def exposed(now: Standing, tolerance_s: float) -> Exposed:
    """Which calls there can still be on time, if nothing more is sent there.

    A terminal call has no critical part left once its first token is out. Finishes are predicted with the
    prompts in front of each call and the step time of all that run, waiting for a free sequence aside.
    """
    return _exposed(now, tolerance_s, _readers(now, tolerance_s))[0]


class _Readers(NamedTuple):
    """Of the live calls that decode: their ends, and by how many seconds the nearest of all is away from changing
    sides."""

    now_s: float
    tolerance_s: float
    ends: Ends
    nearest_s: float


def _kept_readers(view: ReplicaView, now: Standing, tolerance_s: float) -> _Readers:
    """They do not change with what is placed there in thought."""
    if view.plain is None:
        return _readers(now, tolerance_s)
    kept = view.plain.memo.get(_Readers)
    if isinstance(kept, _Readers) and kept[:2] == (now.now_s, tolerance_s):
        return kept
    made = view.plain.memo[_Readers] = _readers(now, tolerance_s)
    return made


def _readers(now: Standing, tolerance_s: float) -> _Readers:
    sums, now_s = now.gauge, now.now_s
    step_s, latest_s, gap_s = sums.step_s, now_s - tolerance_s, _gap_s(now)
    nearest_s = math.inf
    ends_s = []
    for call, end_s in zip(sums.decoding, sums.ends_s, strict=True):
        if call.is_terminal or call.is_hopeless:
            continue
        spare_s = call.due_s - latest_s - gap_s
        if end_s > now_s:
            spare_s -= gap_s * (end_s - now_s) / step_s
        if spare_s >= 0:
            ends_s.append(end_s)
        if -nearest_s < spare_s < nearest_s:
            nearest_s = abs(spare_s)
    return _Readers(now_s, tolerance_s, Ends.of(ends_s) if ends_s else NEVER, nearest_s)


def _exposed(now: Standing, tolerance_s: float, readers: _Readers) -> tuple[Exposed, float]:
    """The same, and by how many seconds the call that is nearest to changing sides is away from it."""
    sums, ends = now.gauge, readers.ends
    pending = (*sums.prefilling, *sums.queued, *sums.placed)
    if not pending:
        return Exposed(len(ends.at_s), 0, (), ends, ()), readers.nearest_s
    spare = _spare_s(now, pending, now.now_s - tolerance_s, _gap_s(now))
    live = [one_s >= 0 for one_s in spare]
    found = Exposed(
        len(ends.at_s),
        sum(live[: len(sums.prefilling)]),
        tuple(compress(sums.placed, live[len(pending) - len(sums.placed) :])),
        ends,
        [call.output_tokens for call in compress(pending, live) if not call.is_terminal],
    )
    return found, min(readers.nearest_s, *map(abs, spare))


def _gap_s(now: Standing) -> float:
    """Seconds from one token to the next when all that is in prefill decodes too."""
    sums = now.gauge
    return (now.step_ms + sums.prefill_ms + sums.profile.coefficients.b * len(sums.prefilling)) / 1000


def _spare_s(now: Standing, pending: Sequence[HeldCall], latest_s: float, gap_s: float) -> list[float]:
    """By how much each call without a first token is expected inside its latest finish, in the order in which
    they get it; minus infinity for a hopeless one."""
    k = now.gauge.profile.coefficients
    step_s = now.step_ms / 1000
    token_s = step_s / now.gauge.room
    waited_s = step_s / 2
    spare: list[float] = []
    for call, left in zip_longest(pending, now.prompt_left):
        prompt = call.prompt_tokens if left is None else left
        waited_s += prompt * (token_s + (k.d + k.e * (call.prompt_tokens - prompt / 2)) / 1000)
        rest_s = 0.0 if call.is_terminal else (call.output_tokens - 1) * gap_s
        spare.append(-math.inf if call.is_hopeless else call.due_s - waited_s - rest_s - latest_s)
    return spare


def _fastest(now: Standing) -> float:
    """The most that the time to spare of any call there can change in a second.

    A call loses time as it passes, or gains as much as others' prompts were counted for and do not come; on top,
    steps become longer with every token of context.
    """
    sums = now.gauge
    if not sums.decoding:
        return 3.0
    growth = sums.profile.coefficients.c * len(sums.decoding) / (1000 * sums.step_s)
    longest = 1 + max(0.0, sums.ends.at_s[-1] - now.now_s) / sums.step_s
    for call in (*sums.prefilling, *sums.queued, *sums.placed):
        longest = max(longest, call.output_tokens)
    return 3.0 + _gap_s(now) / sums.step_s + longest * growth
