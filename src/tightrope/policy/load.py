"""What a replica is doing at one moment, worked out from its ledger and the time that has passed.

Owns the progress of held calls (`Standing`) and its sum as one more call would meet it (`Load`). Reading the
latter as milliseconds is `estimate.py`; what may be placed is asked there too. Both are made once for every
replica and decision: named tuples, because those cost a quarter of a frozen dataclass to make.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tightrope.model.fleet import HeldCall, Job, ReplicaView
from tightrope.model.profile import Profile

FEWEST_STEP_TOKENS = 64
"""Prompt tokens that fit into a step however many sequences decode."""


class Standing(NamedTuple):
    """The calls of one replica by what they are doing, each with what is left of it.

    `decoding` have their first token, `prefilling` not yet, in the order in which the engine takes them;
    `queued` were dispatched beyond what it runs at once; `placed` are there in thought only. `output_left`
    (tokens, parallel to `decoding`) and `prompt_left` (tokens, parallel to `prefilling`) are expectations.
    `context_tokens` is the KV that the decoding calls read, `step_ms` a step without prompts, `prefill_ms`
    the prefill work that such a step is expected to carry on top, `reserved` the tokens of memory that all
    calls with a slot will need at most, if they end as expected.
    """

    profile: Profile
    decoding: Sequence[HeldCall]
    output_left: Sequence[float]
    prefilling: Sequence[HeldCall]
    prompt_left: Sequence[float]
    queued: Sequence[HeldCall]
    placed: Sequence[HeldCall]
    context_tokens: float
    step_ms: float
    prefill_ms: float
    reserved: float

    @property
    def running(self) -> int:
        """Sequences that the engine works on."""
        return len(self.decoding) + len(self.prefilling)


class Load(NamedTuple):
    """What a call meets on a replica: the symbols of the latency model.

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

    def without_running(self) -> Load:
        """The same line in front of an engine that decodes nothing."""
        return self._replace(decoding=0, context_tokens=0.0, resid_ms=0.0, prefill_ms=0.0)


EMPTY = Load()


def step_room(profile: Profile, decoding: int) -> float:
    """Prompt tokens that fit into one step beside `decoding` sequences."""
    return max(min(FEWEST_STEP_TOKENS, profile.step_tokens), profile.step_tokens - decoding)


def standing(view: ReplicaView, now_s: float) -> Standing:
    """What the replica does at `now_s`, as far as our own dispatches and first tokens tell.

    Progress is time passed over predicted step time, and never beyond the expected end: one token at least is
    always left. Prompts are computed one after the other, in order of dispatch.
    """
    profile = view.profile
    limit = profile.max_sequences
    decoding: list[HeldCall] = []
    prefilling: list[HeldCall] = []
    queued: list[HeldCall] = []
    placed: list[HeldCall] = []
    prompts = 0
    for call in view.held:
        if not call.has_slot:
            placed.append(call)
        elif call.first_token_s is not None:
            decoding.append(call)
            prompts += call.prompt_tokens
        elif len(prefilling) < limit:
            prefilling.append(call)
        else:
            queued.append(call)
    while prefilling and len(prefilling) + len(decoding) > limit:
        queued.insert(0, prefilling.pop())
    output_left, context, prefill_ms = _decoded(profile, decoding, prompts, now_s)
    k = profile.coefficients
    step_ms = k.a + k.h + k.b * len(decoding) + k.c * context
    prompt_left = _prefilled(profile, prefilling, len(decoding), step_ms, now_s)
    reserved = context + sum(output_left)
    for call in prefilling:
        reserved += call.prompt_tokens + call.output_tokens
    for call in queued:
        reserved += call.prompt_tokens + call.output_tokens
    return Standing(
        profile,
        decoding,
        output_left,
        prefilling,
        prompt_left,
        queued,
        placed,
        context,
        step_ms,
        prefill_ms,
        reserved,
    )


def load_for(job: Job, now: Standing) -> Load:
    """What this call would meet there: all that was dispatched, and what is placed in thought but goes first.

    Of equal keys the one that was placed before goes first.
    """
    running = len(now.decoding) + len(now.prefilling)
    if not running and not now.placed:
        return EMPTY
    tokens = pairs = context = 0.0
    for call, left in zip(now.prefilling, now.prompt_left, strict=True):
        tokens += left
        pairs += left * (call.prompt_tokens - left / 2)  # left * (done + left / 2)
        context += call.prompt_tokens
    ahead = waiting_ahead(job, now)
    for call in ahead:
        prompt = call.prompt_tokens
        tokens += prompt
        pairs += prompt * prompt / 2
        context += prompt
    return Load(
        len(now.decoding),
        now.context_tokens,
        len(now.prefilling),
        len(ahead),
        tokens,
        pairs,
        context,
        now.step_ms / 2 if running else 0.0,
        _slot_ms(job, now, ahead),
        now.prefill_ms,
    )


def waiting_ahead(job: Job, now: Standing) -> Sequence[HeldCall]:
    """Calls without a sequence of their own that will be served before this one."""
    if not now.placed:
        return now.queued
    key = (job.is_hopeless, job.due_s)
    return (*now.queued, *(call for call in now.placed if (call.is_hopeless, call.due_s) <= key))


def memory_peak(calls: Iterable[tuple[float, float]]) -> float:
    """Most tokens of memory that calls, given as (held, still to come), ever need together.

    All grow by one token a step; one that ends gives back what it held (Past-Future scheduler, 2507.10150).
    """
    held = peak = 0.0
    for count, (own, left) in enumerate(sorted(calls, key=lambda pair: -pair[1]), start=1):
        held += own
        peak = max(peak, held + count * left)
    return peak


def memory_now(now: Standing, ahead: Iterable[HeldCall]) -> list[tuple[float, float]]:
    """(held, still to come) of the running calls, smallest rest first, and then of those that go ahead."""
    running = [
        (call.prompt_tokens + max(0.0, call.output_tokens - left), left)
        for call, left in zip(now.decoding, now.output_left, strict=True)
    ]
    running += [(float(call.prompt_tokens), call.output_tokens) for call in now.prefilling]
    running.sort(key=lambda pair: pair[1])
    return running + [(float(call.prompt_tokens), call.output_tokens) for call in ahead]


def is_memory_enough(job: Job, now: Standing, ahead: Sequence[HeldCall]) -> bool:
    """Does the memory hold to the end, with this call and those ahead of it added?"""
    bound = now.reserved + job.prompt_tokens + job.output_high  # never below the peak
    for call in ahead:
        if not call.has_slot:
            bound += call.prompt_tokens + call.output_tokens
    if bound <= now.profile.kv_tokens:
        return True
    return _peak_with(job, memory_now(now, ahead)) <= now.profile.kv_tokens


# --- progress ------------------------------------------------------------------------------------------


def _decoded(
    profile: Profile, decoding: Sequence[HeldCall], prompts: int, now_s: float
) -> tuple[list[float], float, float]:
    """Tokens left of each, the context they all hold, and pi, the prefill work that a step carries.

    Pi is had without history by Little's law: a call that decodes for `o` steps is found decoding in
    proportion to `o`, so the sum of (its prefill work / o) over those found decoding is the prefill work that
    arrives per step. At most a whole step of prompts.
    """
    if not decoding:
        return [], 0.0, 0.0
    k = profile.coefficients
    step_s = (k.a + k.h + k.b * len(decoding) + k.c * prompts) / 1000
    left: list[float] = []
    context = float(prompts)
    prefill_ms = 0.0
    for call in decoding:
        expected = call.output_tokens
        most = expected - 1 if expected > 2 else 1.0
        done = 1 + (now_s - (call.first_token_s or 0.0)) / step_s if step_s > 0 else most
        if done > most:
            done = most
        elif done < 1:
            done = 1.0
        left.append(expected - done if expected - done > 1 else 1.0)
        context += done
        prompt = call.prompt_tokens
        prefill_ms += prompt * (k.d + k.e * prompt / 2) / (expected if expected > 1 else 1.0)
    return left, context, min(prefill_ms, k.d * profile.step_tokens)


def _prefilled(
    profile: Profile, prefilling: Sequence[HeldCall], decoding: int, step_ms: float, now_s: float
) -> list[float]:
    """Prompt tokens left of each call in prefill: first dispatched, first computed."""
    k = profile.coefficients
    room = step_room(profile, decoding)
    left: list[float] = []
    free_s = 0.0
    for call in prefilling:
        prompt = call.prompt_tokens
        work_ms = -(-prompt // room) * step_ms + prompt * (k.d + k.e * prompt / 2)
        start_s = max(free_s, call.dispatched_s)
        free_s = start_s + work_ms / 1000
        share = (free_s - now_s) / (free_s - start_s) if free_s > start_s else 0.0
        left.append(max(min(1.0, prompt), prompt * min(1.0, share)))
    return left


# --- waiting for a sequence ----------------------------------------------------------------------------


def _slot_ms(job: Job, now: Standing, ahead: Sequence[HeldCall]) -> float:
    """Until a sequence, and the memory for it, is free, those ahead being served first."""
    has_sequence = now.running + len(ahead) < now.profile.max_sequences
    has_memory = is_memory_enough(job, now, ahead)
    if has_sequence and has_memory:
        return 0.0
    ends = [*now.output_left, *(call.output_tokens for call in now.prefilling)]
    steps = 0.0 if has_sequence else _steps_to_sequence(now.profile.max_sequences, ends, ahead)
    if not has_memory:
        steps = max(steps, _steps_to_memory(job, now, ahead))
    return steps * (now.step_ms + now.prefill_ms)


def _steps_to_sequence(limit: int, ends: Sequence[float], ahead: Sequence[HeldCall]) -> float:
    """Steps until a sequence is free that nobody ahead takes: each of them takes the first free one."""
    free = sorted([*ends, *([0.0] * (limit - len(ends)))])
    for call in ahead:
        heapq.heapreplace(free, free[0] + call.output_tokens)
    return free[0]


def _steps_to_memory(job: Job, now: Standing, ahead: Sequence[HeldCall]) -> float:
    """Steps until so many running calls have ended that the rest leaves room."""
    calls = memory_now(now, ahead)
    steps = 0.0
    for ended in range(1, now.running + 1):
        steps = calls[ended - 1][1]
        if _peak_with(job, calls[ended:]) <= now.profile.kv_tokens:
            break
    return steps


def _peak_with(job: Job, calls: Sequence[tuple[float, float]]) -> float:
    return memory_peak([*calls, (float(job.prompt_tokens), float(job.output_high))])
