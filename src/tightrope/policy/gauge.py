"""The ledger of one replica summed up, so that what it does at any moment is read off without a walk over it.

Owns what follows from the held calls whatever the time is: who decodes, in the order in which they end, and sums
over them. Made once for each view and kept with it. What it says about a moment is `load.py`.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

from tightrope.model.fleet import HeldCall, ReplicaView
from tightrope.model.profile import Profile


class Ends(NamedTuple):
    """Moments in order, with the sum of the first k of them for every k."""

    at_s: Sequence[float]
    sums_s: Sequence[float]

    @staticmethod
    def of(moments_s: Iterable[float]) -> Ends:
        """These moments."""
        ordered = sorted(moments_s)
        return Ends(ordered, [0.0, *accumulate(ordered)])

    def left_s(self, now_s: float) -> float:
        """Seconds to each moment that is still to come, summed up."""
        passed = bisect_right(self.at_s, now_s)
        return self.sums_s[-1] - self.sums_s[passed] - (len(self.at_s) - passed) * now_s

    def left_within_s(self, now_s: float, most_s: float) -> float:
        """The same, each counted with at most `most_s`."""
        passed = bisect_right(self.at_s, now_s)
        near = bisect_left(self.at_s, now_s + most_s, passed)
        seconds = self.sums_s[near] - self.sums_s[passed] - (near - passed) * now_s
        return seconds + (len(self.at_s) - near) * most_s


NEVER = Ends((), (0.0,))
FEWEST_STEP_TOKENS = 64
"""Prompt tokens that fit into a step however many sequences decode."""
NO_TIME_S = 1e-9
"""A step of an engine whose every coefficient is 0."""


class Prompts(NamedTuple):
    """Prompts to be computed: their tokens, and the squared tokens that attention costs."""

    tokens: float
    pairs: float


NOTHING = Prompts(0.0, 0.0)


@dataclass(slots=True)
class Gauge:
    """The calls of one replica by what they do, and what holds of them until one begins or ends. Nobody changes it.

    `decoding` have their first token, `prefilling` not yet, in the order in which the engine takes them;
    `queued` were dispatched beyond what it runs at once; `placed` are there in thought only. `ends_s` (parallel
    to `decoding`) are the moments at which one token is left if every step takes `step_s`, and `ends` the same
    in order. `tpot_s` is the shortest gap between tokens that a reader of one of them was promised, `live_tpot_s`
    the same of those whose first token was not late: the others have no promise to lose. `most_context` is the KV
    that the decoding calls read at their ends, `base_ms` a step without KV and prompts, `room` the prompt tokens
    that fit into it, `prefill_ms` the prefill work of others that it is expected to carry. `waiting` sums up the
    queued, `prompts` all that have no first token (tokens). `reserved` are the tokens of memory that all with a
    slot need at most if they end as expected, `promised` the same for their full lengths.
    """

    profile: Profile
    decoding: Sequence[HeldCall]
    prefilling: Sequence[HeldCall]
    queued: Sequence[HeldCall]
    placed: Sequence[HeldCall]
    ends_s: Sequence[float]
    ends: Ends
    tpot_s: float
    live_tpot_s: float
    step_s: float
    most_context: float
    base_ms: float
    room: float
    prefill_ms: float
    waiting: Prompts
    prompts: float
    reserved: float
    promised: float

    @property
    def running(self) -> int:
        """Sequences that the engine works on."""
        return len(self.decoding) + len(self.prefilling)

    @property
    def slots(self) -> int:
        """Calls that were dispatched to it."""
        return len(self.decoding) + len(self.prefilling) + len(self.queued)


def gauge(view: ReplicaView) -> Gauge:
    """The replica's ledger, summed up; kept with the view from the first time on."""
    found = view.memo.get(Gauge)
    if isinstance(found, Gauge):
        return found
    made = view.memo[Gauge] = _gauge(view)
    return made


def step_room(profile: Profile, decoding: int) -> float:
    """Prompt tokens that fit into one step beside `decoding` sequences."""
    room = profile.step_tokens - decoding
    return room if room >= FEWEST_STEP_TOKENS else max(min(FEWEST_STEP_TOKENS, profile.step_tokens), room)


def _gauge(view: ReplicaView) -> Gauge:
    """Part the calls by what they do. Those placed in thought are in no sum."""
    if view.plain is not None:
        return replace(gauge(view.plain), placed=view.held[len(view.plain.held) :])
    decoding: list[HeldCall] = []
    waiting: list[HeldCall] = []
    placed: list[HeldCall] = []
    for call in view.held:
        if not call.has_slot:
            placed.append(call)
        elif call.first_token_s is None:
            waiting.append(call)
        else:
            decoding.append(call)
    first = view.profile.max_sequences - len(decoding)
    if first >= len(waiting):
        return _summed(view.profile, decoding, waiting, (), placed)
    first = max(0, first)
    return _summed(view.profile, decoding, waiting[:first], waiting[first:], placed)


def _summed(
    profile: Profile,
    decoding: Sequence[HeldCall],
    prefilling: Sequence[HeldCall],
    queued: Sequence[HeldCall],
    placed: Sequence[HeldCall],
) -> Gauge:
    """Sum up each part.

    The prefill work of a step is had without history by Little's law: a call that decodes for `o` steps is found
    decoding in proportion to `o`, so the sum of (its prefill work / o) over those found decoding is the prefill
    work that arrives per step. At most a whole step of prompts.
    """
    k, count = profile.coefficients, len(decoding)
    d, half_e = k.d, k.e / 2
    read = 0
    for call in decoding:
        read += call.prompt_tokens
    base_ms = k.a + k.h + k.b * count
    step_s = (base_ms + k.c * read) / 1000 or NO_TIME_S
    ends_s: list[float] = []
    outputs = most = share_ms = 0.0
    for call in decoding:
        output, prompt = call.output_tokens, call.prompt_tokens
        made = output - 1 if output > 2 else 1.0  # one token at least is always left
        ends_s.append((call.first_token_s or 0.0) + (made - 1) * step_s)
        outputs += output
        most += made
        share_ms += prompt * (d + half_e * prompt) / (output if output > 1 else 1.0)
    to_come = prompts = 0.0
    for call in prefilling:
        prompts += call.prompt_tokens
        to_come += call.prompt_tokens + call.output_tokens
    waiting = NOTHING
    if queued:
        waiting = tokens_of(queued)
        to_come += waiting.tokens + sum(call.output_tokens for call in queued)
    return Gauge(
        profile,
        decoding,
        prefilling,
        queued,
        placed,
        ends_s,
        Ends.of(ends_s) if ends_s else NEVER,
        min((call.tpot_s for call in decoding), default=math.inf),
        min(
            (call.tpot_s for call in decoding if (call.first_token_s or 0.0) <= call.due_s), default=math.inf
        ),
        step_s,
        read + most,
        base_ms,
        step_room(profile, count),
        min(share_ms, d * profile.step_tokens),
        waiting,
        waiting.tokens + prompts,
        read + most + count + to_come,
        read + outputs + to_come,
    )


def tokens_of(calls: Iterable[HeldCall]) -> Prompts:
    """The whole prompts of these calls."""
    tokens = pairs = 0.0
    for call in calls:
        prompt = call.prompt_tokens
        tokens += prompt
        pairs += prompt * prompt / 2
    return Prompts(tokens, pairs)
