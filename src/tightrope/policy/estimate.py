"""What one call would take on one replica: lx, lq, lr, in milliseconds.

Owns the latency model of a batching engine with chunked prefill and the questions that go with it: does the
call fit, is there room now. What the replica is doing is `load.py`. Engine formulas are in milliseconds, runs
count in seconds; `typical_s` is the only thing here that crosses over.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from tightrope.model.fleet import Estimate, Job, ReplicaView
from tightrope.model.profile import Profile
from tightrope.policy.gauge import gauge, step_room
from tightrope.policy.load import (
    EMPTY,
    Load,
    Standing,
    is_memory_enough,
    load_for,
    memory_peak,
    standing,
    waiting_ahead,
)

__all__ = [
    "decode_ms",
    "estimate",
    "estimate_at",
    "first_token_ms",
    "fits_at_all",
    "has_room",
    "has_slot",
    "memory_peak",
    "split",
    "ttft_ms",
    "typical_s",
    "typical_times_s",
]

STEPS_AHEAD = 2
"""How many steps of prompts an engine is given in advance. With one it often begins a step before it has heard of
the next call, and a part of the card is idle; with many a call is bound long before it is its turn."""


def estimate(job: Job, view: ReplicaView, now_s: float) -> Estimate:
    """What the call would take there if it were dispatched now, behind what goes first."""
    return estimate_at(job, standing(view, now_s))


def estimate_at(job: Job, now: Standing) -> Estimate:
    """The same, for a replica whose standing is known already."""
    return split(job, now.gauge.profile, load_for(job, now))


def first_token_ms(job: Job, view: ReplicaView, now_s: float) -> float:
    """Milliseconds to the first token of the call if it were dispatched there now."""
    return ttft_ms(view.profile, load_for(job, standing(view, now_s)), job.prompt_tokens)


def split(
    job: Job, profile: Profile, load: Load, alone_ms: float | None = None, hit_tokens: float = 0.0
) -> Estimate:
    """The estimate under this load, in parts: the same function on three loads.

    `lx` on the empty replica, which is `alone_ms` where that is known already and nothing of the prompt is in its
    cache (`hit_tokens`); `lq` what the line in front adds to that; `lr` what the running calls add to both. A call
    that is terminal counts until its first token, any other until its end.
    """
    ttft = ttft_ms(profile, load, job.prompt_tokens, hit_tokens)
    decode = decode_ms(profile, load, job.prompt_tokens, job.output_tokens)
    whole = ttft if job.is_terminal else ttft + decode
    alone = critical_ms(job, profile, EMPTY, hit_tokens) if alone_ms is None or hit_tokens else alone_ms
    in_line = critical_ms(job, profile, load.without_running(), hit_tokens) if load.has_line else alone
    lq = in_line - alone if in_line > alone else 0.0
    lr = whole - alone - lq
    return Estimate(alone, lq, lr if lr > 0 else 0.0, ttft, decode)


def ttft_ms(
    profile: Profile, load: Load, prompt_tokens: float, hit_tokens: float = 0.0, correction: float = 1.0
) -> float:
    """Milliseconds to the first token under this load.

    `hit_tokens` of the prompt are in the replica's cache and need not be computed; `correction` scales the
    computing by what was learned of this replica's prefill.
    """
    k = profile.coefficients
    x = prompt_tokens - hit_tokens if prompt_tokens > hit_tokens else 0.0
    tokens = load.queued_tokens + x
    steps = math.ceil(tokens / step_room(profile, load.decoding)) or 1
    pairs = x * (hit_tokens + x / 2) + load.queued_pairs
    step = k.a + k.h + k.b * load.decoding + k.c * load.context_tokens
    return load.resid_ms + load.slot_ms + correction * (steps * step + k.d * tokens + k.e * pairs)


def decode_ms(
    profile: Profile, load: Load, prompt_tokens: float, output_tokens: float, correction: float = 1.0
) -> float:
    """Milliseconds from the first token to the last, among those that decode then; 0 for a single token."""
    if output_tokens <= 1:
        return 0.0
    return correction * (output_tokens - 1) * gap_ms(profile, load, prompt_tokens, output_tokens)


def gap_ms(profile: Profile, load: Load, prompt_tokens: float, output_tokens: float) -> float:
    """Milliseconds from one token of the call to the next, among those that decode then."""
    k = profile.coefficients
    sequences = load.decoding + load.prefilling + load.waiting + 1
    context = load.context_tokens + load.queued_context + prompt_tokens + output_tokens / 2
    return k.a + k.h + k.b * sequences + k.c * context + load.prefill_ms


def critical_ms(job: Job, profile: Profile, load: Load, hit_tokens: float = 0.0) -> float:
    """Milliseconds until the moment of this call that counts for the SLO."""
    ttft = ttft_ms(profile, load, job.prompt_tokens, hit_tokens)
    if job.is_terminal:
        return ttft
    return ttft + decode_ms(profile, load, job.prompt_tokens, job.output_tokens)


def fits_at_all(job: Job, profile: Profile) -> bool:
    """Could an empty replica hold the prompt and the answer that memory is reserved for?"""
    return job.prompt_tokens + job.output_high <= profile.kv_tokens


def has_room(job: Job, view: ReplicaView, now_s: float) -> bool:
    """Late binding: would the engine begin with this call at once, or nearly so?

    A free sequence, memory to the end, and at most STEPS_AHEAD steps of prompt work in front of it and with it;
    a longer prompt goes when nothing is in front. An idle replica has room for all that fits.
    """
    return has_room_at(job, standing(view, now_s))


def has_room_at(job: Job, now: Standing) -> bool:
    """The same, for a replica whose standing is known already."""
    sums = now.gauge
    if not fits_at_all(job, sums.profile):
        return False
    if not sums.running:
        return True
    ahead = waiting_ahead(job, sums)
    if sums.running + len(ahead) >= sums.profile.max_sequences:
        return False
    in_front = now.left.tokens - now.overdue + sum(call.prompt_tokens for call in ahead)
    if in_front > 0 and in_front + job.prompt_tokens > STEPS_AHEAD * sums.profile.step_tokens:
        return False
    return is_memory_enough(job, now, ahead)


def has_slot(job: Job, view: ReplicaView) -> bool:
    """Early binding: a free sequence, and memory for all, as if no held call had made progress."""
    sums = gauge(view)
    if sums.slots >= view.profile.max_sequences:
        return False
    own = (float(job.prompt_tokens), float(job.output_high))
    if sums.promised + sum(own) <= view.profile.kv_tokens:  # never below the peak
        return True
    calls = [(float(call.prompt_tokens), call.output_tokens) for call in view.held if call.has_slot]
    return memory_peak([*calls, own]) <= view.profile.kv_tokens


def typical_s(
    prompt_tokens: int, output_tokens: float, is_terminal: bool, profiles: Iterable[Profile]
) -> float:
    """t*: seconds such a call takes alone on the best of these cards; 0 without any."""
    first_s, whole_s = typical_times_s(prompt_tokens, output_tokens, profiles)
    return first_s if is_terminal else whole_s


def typical_times_s(
    prompt_tokens: int, output_tokens: float, profiles: Iterable[Profile]
) -> tuple[float, float]:
    """The same to the first token and to the end, each on the card that is best for it."""
    first_ms = whole_ms = math.inf
    for profile in profiles:
        ttft_alone_ms = profile.solo_ttft_ms(prompt_tokens)
        alone_ms = ttft_alone_ms + profile.solo_decode_ms(prompt_tokens, output_tokens)
        first_ms, whole_ms = min(first_ms, ttft_alone_ms), min(whole_ms, alone_ms)
    return (0.0, 0.0) if first_ms == math.inf else (first_ms / 1000, whole_ms / 1000)
