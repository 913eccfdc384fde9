"""What a replica is doing at one moment, read from its gauge and the time that has passed.

Owns the progress of held calls (`Standing`) and its sum as one more call would meet it (`Load`). Reading the
latter as milliseconds is `estimate.py`; what may be placed is asked there too. Both are made for every candidate of
a decision and therefore not frozen dataclasses, which cost three times as much to make.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

from tightrope.model.fleet import HeldCall, Job, ReplicaView
from tightrope.model.ids import CallId
from tightrope.policy.gauge import NOTHING, Gauge, Prompts, gauge, tokens_of

OVERDUE_S, OVERDUE = 0.05, 0.5
"""A first token is overdue so long after it was expected, and so much of the time from dispatch until then."""


@dataclass(slots=True)
class Standing:
    """A gauge read at `now_s`. Nobody changes it.

    `context_tokens` is the KV that the decoding calls read, `step_ms` a step without prompts, `prompt_left`
    (tokens, parallel to the gauge's `prefilling`) what is still to be computed of each prompt, and `left` their
    sum. `overdue` tokens of them are of prompts that must long be done, though nothing was heard. All of them are
    expectations.
    """

    gauge: Gauge
    now_s: float
    context_tokens: float
    step_ms: float
    prompt_left: Sequence[float]
    left: Prompts
    overdue: float = 0.0

    @property
    def output_left(self) -> list[float]:
        """Tokens left of each decoding call, parallel to the gauge's `decoding`; one at least."""
        step_s, now_s = self.gauge.step_s, self.now_s
        return [1.0 + (end_s - now_s) / step_s if end_s > now_s else 1.0 for end_s in self.gauge.ends_s]


@dataclass(slots=True)
class Load:
    """What a call meets on a replica: the symbols of the latency model. Nobody changes it.

    `decoding` B calls reading `context_tokens` KV. `prefilling` Np and `waiting` Nw calls go first, with
    `queued_context` prompt tokens in all, of which `queued_tokens` Q are still to be computed, at a cost
    of `queued_pairs` squared tokens. `resid_ms` until the running step ends, `slot_ms` until a sequence is
    free. `prefill_ms` is pi: the prefill work of others that a decoding step carries.
    """

    decoding: int = 0
    context_tokens: float = 0.0
    prefilling: int = 0
    waiting: int = 0
    queued_tokens: float = 0.0
    queued_pairs: float = 0.0
    queued_context: float = 0.0
    resid_ms: float = 0.0
    slot_ms: float = 0.0
    prefill_ms: float = 0.0

    @property
    def has_line(self) -> bool:
        """Whether anything has to be waited for that is not running."""
        return bool(
            self.prefilling or self.waiting or self.queued_tokens or self.queued_context or self.slot_ms
        )

    def without_running(self) -> Load:
        """The same line in front of an engine that decodes nothing."""
        return Load(
            prefilling=self.prefilling,
            waiting=self.waiting,
            queued_tokens=self.queued_tokens,
            queued_pairs=self.queued_pairs,
            queued_context=self.queued_context,
            slot_ms=self.slot_ms,
        )


EMPTY = Load()


def standing(view: ReplicaView, now_s: float) -> Standing:
    """What the replica does at `now_s`, as far as our own dispatches and first tokens tell.

    Progress is time passed over predicted step time, and never beyond the expected end: one token at least is
    always left. Prompts are computed one after the other, in order of dispatch. `now_s` is not before the last
    of them. Kept with the view until the next moment.
    """
    found = view.memo.get(Standing)
    if isinstance(found, Standing) and found.now_s == now_s:
        return found
    made = view.memo[Standing] = _standing(view, now_s)
    return made


def _standing(view: ReplicaView, now_s: float) -> Standing:
    sums = gauge(view)
    if view.plain is not None:
        now = standing(view.plain, now_s)
        return Standing(sums, now_s, now.context_tokens, now.step_ms, now.prompt_left, now.left, now.overdue)
    context, step_ms = _step(sums, now_s)
    if not sums.prefilling:
        return Standing(sums, now_s, context, step_ms, (), NOTHING)
    return Standing(sums, now_s, context, step_ms, *_prefilled(sums, step_ms, now_s))


def step_ms(view: ReplicaView, now_s: float) -> float:
    """A step without prompts at `now_s`: all of `standing` that is had without looking at each prompt."""
    return _step(gauge(view.plain or view), now_s)[1]


def next_overdue(view: ReplicaView, now_s: float) -> tuple[float, CallId] | None:
    """When the next first token there is overdue, and of which call; None if none can become so."""
    if not gauge(view).prefilling:
        return None
    return min((moment for moment in _overdue(standing(view, now_s)) if moment[0] > now_s), default=None)


def next_word_s(view: ReplicaView, now_s: float) -> float:
    """When something should be heard of what it holds: a first token, with what that may be late, or an end. May have
    passed; infinite if it holds nothing."""
    now = standing(view, now_s)
    firsts = (moment_s for moment_s, _ in _overdue(now))
    return min((*firsts, *now.gauge.ends.at_s[:1]), default=math.inf)


def _overdue(now: Standing) -> Iterator[tuple[float, CallId]]:
    """When the first token of each call in prefill is overdue."""
    spans = zip(now.gauge.prefilling, _spans_s(now.gauge, now.step_ms), strict=True)
    return ((_overdue_s(call, done_s), call.call) for call, (_, done_s) in spans)


def _overdue_s(call: HeldCall, done_s: float) -> float:
    """When it can no longer be explained by the estimate that nothing is heard of a prompt that should be done."""
    return done_s + OVERDUE_S + OVERDUE * (done_s - call.dispatched_s)


def load_for(job: Job, now: Standing) -> Load:
    """What this call would meet there: all that was dispatched, and what is placed in thought but goes first.

    Of equal keys the one that was placed before goes first.
    """
    sums = now.gauge
    decoding, prefilling = len(sums.decoding), len(sums.prefilling)
    if not decoding and not prefilling and not sums.placed:
        return EMPTY
    ahead, waiting, prompts = sums.queued, sums.waiting, sums.prompts
    if sums.placed:
        ahead = waiting_ahead(job, sums)
        waiting = tokens_of(ahead)
        prompts += waiting.tokens - sums.waiting.tokens
    return Load(
        decoding,
        now.context_tokens,
        prefilling,
        len(ahead),
        now.left.tokens + waiting.tokens,
        now.left.pairs + waiting.pairs,
        prompts,
        now.step_ms / 2 if decoding or prefilling else 0.0,
        _slot_ms(job, now, ahead),
        sums.prefill_ms,
    )


def waiting_ahead(job: Job, sums: Gauge) -> Sequence[HeldCall]:
    """Calls without a sequence of their own that will be served before this one."""
    if not sums.placed:
        return sums.queued
    key = (job.is_hopeless, job.due_s)
    return (*sums.queued, *(call for call in sums.placed if (call.is_hopeless, call.due_s) <= key))


def memory_peak(calls: Iterable[tuple[float, float]]) -> float:
    """Most tokens of memory that calls, given as (held, still to come), ever need together.

    All grow by one token a step; one that ends gives back what it held (Past-Future scheduler, 2507.10150).
    """
    held = peak = 0.0
    for count, (own, left) in enumerate(sorted(calls, key=itemgetter(1), reverse=True), start=1):
        held += own
        if held + count * left > peak:
            peak = held + count * left
    return peak


def memory_now(now: Standing, ahead: Iterable[HeldCall]) -> list[tuple[float, float]]:
    """(held, still to come) of the running calls, smallest rest first, and then of those that go ahead."""
    sums = now.gauge
    running: list[tuple[float, float]] = []
    for call, left in zip(sums.decoding, now.output_left, strict=True):
        made = call.output_tokens - left
        running.append((call.prompt_tokens + made if made > 0 else float(call.prompt_tokens), left))
    running += [(float(call.prompt_tokens), call.output_tokens) for call in sums.prefilling]
    running.sort(key=itemgetter(1))
    return running + [(float(call.prompt_tokens), call.output_tokens) for call in ahead]


def is_memory_enough(job: Job, now: Standing, ahead: Sequence[HeldCall]) -> bool:
    """Does the memory hold to the end, with this call and those ahead of it added?"""
    sums = now.gauge
    bound = sums.reserved + job.prompt_tokens + job.output_high  # never below the peak
    if sums.placed:
        for call in ahead:
            if not call.has_slot:
                bound += call.prompt_tokens + call.output_tokens
    if bound <= sums.profile.kv_tokens:
        return True
    return _fits(job, memory_now(now, ahead), sums.profile.kv_tokens)


# --- progress ------------------------------------------------------------------------------------------


def _step(sums: Gauge, now_s: float) -> tuple[float, float]:
    """The KV that the decoding calls read at `now_s` (tokens), and a step without prompts then (ms)."""
    context = sums.most_context
    if context:
        context -= sums.ends.left_s(now_s) / sums.step_s
    return context, sums.base_ms + sums.profile.coefficients.c * context


def _prefilled(sums: Gauge, step_ms: float, now_s: float) -> tuple[list[float], Prompts, float]:
    """Prompt tokens left of each call in prefill: first dispatched, first computed. Their sum, and those overdue."""
    prompt_left: list[float] = []
    tokens = pairs = overdue = 0.0
    for call, (start_s, free_s) in zip(sums.prefilling, _spans_s(sums, step_ms), strict=True):
        prompt = call.prompt_tokens
        if now_s <= start_s:
            left: float = prompt
        else:
            left = prompt * ((free_s - now_s) / (free_s - start_s)) if now_s < free_s else 0.0
            if left < 1:
                left = min(1.0, prompt)
                if now_s >= _overdue_s(call, free_s):
                    overdue += left
        prompt_left.append(left)
        tokens += left
        pairs += left * (prompt - left / 2)  # left * (done + left / 2)
    return prompt_left, Prompts(tokens, pairs), overdue


def _spans_s(sums: Gauge, step_ms: float) -> Iterator[tuple[float, float]]:
    """From when to when each prompt is computed."""
    k, room = sums.profile.coefficients, sums.room
    free_s = 0.0
    for call in sums.prefilling:
        prompt = call.prompt_tokens
        work_ms = -(-prompt // room) * step_ms + prompt * (k.d + k.e * prompt / 2)
        start_s = max(call.dispatched_s, free_s)
        free_s = start_s + work_ms / 1000
        yield start_s, free_s


# --- waiting for a sequence ----------------------------------------------------------------------------


def _slot_ms(job: Job, now: Standing, ahead: Sequence[HeldCall]) -> float:
    """Until a sequence, and the memory for it, is free, those ahead being served first."""
    sums = now.gauge
    has_sequence = len(sums.decoding) + len(sums.prefilling) + len(ahead) < sums.profile.max_sequences
    has_memory = is_memory_enough(job, now, ahead)
    if has_sequence and has_memory:
        return 0.0
    steps = 0.0 if has_sequence else _steps_to_sequence(now, ahead)
    if not has_memory:
        steps = max(steps, _steps_to_memory(job, now, ahead))
    return steps * (now.step_ms + sums.prefill_ms)


def _steps_to_sequence(now: Standing, ahead: Sequence[HeldCall]) -> float:
    """Steps until a sequence is free that nobody ahead takes: each of them takes the first free one."""
    sums = now.gauge
    ends = [*now.output_left, *(call.output_tokens for call in sums.prefilling)]
    free = sorted([*ends, *([0.0] * (sums.profile.max_sequences - len(ends)))])
    for call in ahead:
        heapq.heapreplace(free, free[0] + call.output_tokens)
    return free[0]


def _steps_to_memory(job: Job, now: Standing, ahead: Sequence[HeldCall]) -> float:
    """Steps until so many running calls have ended that the rest leaves room. The peak falls with each that ends."""
    calls = memory_now(now, ahead)
    most = now.gauge.profile.kv_tokens
    ended = bisect_left(range(1, now.gauge.running), True, key=lambda ended: _fits(job, calls[ended:], most))
    return calls[ended][1] if now.gauge.running else 0.0


def _fits(job: Job, calls: Sequence[tuple[float, float]], most_tokens: int) -> bool:
    """Whether these and the job never need more. What they hold already is the least that they need."""
    if sum(map(itemgetter(0), calls)) + job.prompt_tokens > most_tokens:
        return False
    return memory_peak([*calls, (float(job.prompt_tokens), float(job.output_high))]) <= most_tokens
