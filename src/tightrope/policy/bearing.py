"""Bearing: how many calls per second one replica takes if they shall begin, or end, within their budget.

Owns the queue in front of one batching engine whose speed depends on how many it serves. A fleet made of such
numbers is `provision.py`; what a single call will take is `estimate.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tightrope.model.profile import Profile

HALVINGS = 12
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Kind:
    """Calls of like size at one model: their part of all calls, mean tokens, the budget of each (seconds), and
    the gap between tokens (seconds) that their readers were promised. `is_terminal`: only the first token is due.
    """

    share: float
    prompt_tokens: float
    output_tokens: float
    budget_s: float
    tpot_s: float = math.inf
    is_terminal: bool = False


def bearable_per_s(profile: Profile, kind: Kind, attain: float) -> float:
    """The most calls of this kind per second of which a share `attain` is within its budget; 0 if not even a
    single one is.

    A birth-and-death queue: with k calls in the engine it ends mu(k) of them per second (`_ends_per_s`), beyond
    the batch they wait first come, first served, exponentially long (Kleinrock, Queueing Systems I, 3.8). A
    replica takes at most as many at once as leave every reader the promised gap between tokens.
    """
    if math.isinf(kind.budget_s):
        return at_most_per_s(profile, kind)
    batch = most_at_once(profile, kind)
    if batch == 0 or critical_s(profile, kind, 1) > kind.budget_s:
        return 0.0
    ends_per_s = [_ends_per_s(profile, kind, calls) for calls in range(1, batch + 1)]
    takes_s = [critical_s(profile, kind, calls) for calls in range(1, batch + 1)]
    low, high = 0.0, max(ends_per_s)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _late(middle, ends_per_s, takes_s, kind.budget_s) <= 1 - attain:
            low = middle
        else:
            high = middle
    return low


def at_most_per_s(profile: Profile, kind: Kind) -> float:
    """What the replica can do of such calls at all, whoever waits."""
    batch = most_at_once(profile, replace(kind, tpot_s=math.inf))
    return _ends_per_s(profile, kind, batch) if batch else 0.0


def most_at_once(profile: Profile, kind: Kind) -> int:
    """Calls that fit into the memory and the batch, and leave the readers their gap; 0 if not one does."""
    per_call = kind.prompt_tokens + kind.output_tokens
    fits = (
        int(min(profile.max_sequences, profile.kv_tokens / per_call)) if per_call else profile.max_sequences
    )
    low, high = 0, fits
    while low < high:  # the gap grows with the batch
        middle = (low + high + 1) // 2
        if _gap_ms(profile, kind, middle) <= 1000 * kind.tpot_s:
            low = middle
        else:
            high = middle - 1
    return low


def critical_s(profile: Profile, kind: Kind, calls: int) -> float:
    """Seconds until the moment that counts, in a batch of `calls` where everybody's prompt is computed in turn."""
    first_ms = profile.solo_ttft_ms(kind.prompt_tokens) + _step_ms(profile, kind, calls - 1)
    if kind.is_terminal:
        return first_ms / 1000
    return (first_ms + max(0.0, kind.output_tokens - 1) * _gap_ms(profile, kind, calls)) / 1000


def _step_ms(profile: Profile, kind: Kind, calls: int) -> float:
    """What `calls` decoding sequences add to a step."""
    k = profile.coefficients
    return calls * (k.b + k.c * (kind.prompt_tokens + kind.output_tokens / 2))


def _prompt_ms(profile: Profile, kind: Kind) -> float:
    """Machine time of one prompt in a busy engine."""
    k, n = profile.coefficients, kind.prompt_tokens
    return k.d * n + k.e * n * n / 2 + (k.a + k.h) * n / profile.step_tokens


def _gap_ms(profile: Profile, kind: Kind, calls: int) -> float:
    """From token to token in a batch of `calls` that are replaced as they end: their prompts are in it."""
    k, output = profile.coefficients, max(1.0, kind.output_tokens)
    others = max(0, calls - 1) * _prompt_ms(profile, kind) / output
    return k.a + k.h + _step_ms(profile, kind, calls) + others


def _ends_per_s(profile: Profile, kind: Kind, calls: int) -> float:
    """Calls that end per second in a batch of `calls`: what each takes, and at most what the machine can do."""
    gaps = max(0.0, kind.output_tokens - 1)
    whole_ms = profile.solo_ttft_ms(kind.prompt_tokens) + gaps * _gap_ms(profile, kind, calls)
    k = profile.coefficients
    work_ms = _prompt_ms(profile, kind) + gaps * (k.a + k.h + _step_ms(profile, kind, calls)) / calls
    return min(1000 * calls / max(whole_ms, _TINY), 1000 / max(work_ms, _TINY))


def _late(per_s: float, ends_per_s: list[float], takes_s: list[float], budget_s: float) -> float:
    """Share of calls beyond their budget. An arrival sees the queue as it is at a random moment (PASTA)."""
    batch = len(ends_per_s)
    spare_per_s = ends_per_s[-1] - per_s
    if spare_per_s <= 0:
        return 1.0
    weight, whole, late = 1.0, 0.0, 0.0
    for calls in range(batch):  # so many are there as one more comes
        whole += weight
        if takes_s[calls] > budget_s:
            late += weight
        weight *= per_s / ends_per_s[calls]
    waiting = weight * ends_per_s[-1] / spare_per_s  # all of the states in which the batch is full
    left_s = budget_s - takes_s[-1]
    beyond = math.exp(-spare_per_s * left_s) if left_s > 0 else 1.0
    return (late + waiting * beyond) / (whole + waiting)
