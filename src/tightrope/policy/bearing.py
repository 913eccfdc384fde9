"""Bearing: how many calls per second one replica takes if they shall begin, or end, within their budget.

Owns the queue in front of one batching engine whose speed depends on how many it serves. A fleet made of such
numbers is `provision.py`; what a single call will take is `estimate.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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

    A birth-and-death queue: with k calls in the engine it ends mu(k) of them per second (`_Batch.ends_per_s`), beyond
    the batch they wait first come, first served, exponentially long (Kleinrock, Queueing Systems I, 3.8). A
    replica takes at most as many at once as leave every reader the promised gap between tokens.
    """
    if math.isinf(kind.budget_s):
        return at_most_per_s(profile, kind)
    batch = _Batch.of(profile, kind)
    most = batch.most(kind.tpot_s)
    if most == 0 or batch.takes_s(1, kind.is_terminal) > kind.budget_s:
        return 0.0
    ends_per_s = [batch.ends_per_s(calls) for calls in range(1, most + 1)]
    in_time = sum(batch.takes_s(calls, kind.is_terminal) <= kind.budget_s for calls in range(1, most + 1))
    left_s = kind.budget_s - batch.takes_s(most, kind.is_terminal)
    low, high = 0.0, max(ends_per_s)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _late(middle, ends_per_s, in_time, left_s) <= 1 - attain:
            low = middle
        else:
            high = middle
    return low


def at_most_per_s(profile: Profile, kind: Kind) -> float:
    """What the replica can do of such calls at all, whoever waits."""
    batch = _Batch.of(profile, kind)
    return batch.ends_per_s(batch.fits) if batch.fits else 0.0


def most_at_once(profile: Profile, kind: Kind) -> int:
    """Calls that fit into the memory and the batch, and leave the readers their gap; 0 if not one does."""
    return _Batch.of(profile, kind).most(kind.tpot_s)


def critical_s(profile: Profile, kind: Kind, calls: int) -> float:
    """Seconds until the moment that counts, in a batch of `calls` where everybody's prompt is computed in turn."""
    return _Batch.of(profile, kind).takes_s(calls, kind.is_terminal)


class _Batch(NamedTuple):
    """A batch of equal calls that are replaced as they end, in milliseconds.

    `first` a prompt alone takes, `prompt` its machine time in a busy engine, `step` a step without sequences, `each`
    what one decoding sequence adds to it. `gaps` between tokens has each answer, `fits` calls are in it at most.
    """

    first: float
    prompt: float
    step: float
    each: float
    gaps: float
    fits: int

    @staticmethod
    def of(profile: Profile, kind: Kind) -> _Batch:
        k, n, output = profile.coefficients, kind.prompt_tokens, kind.output_tokens
        computing = k.d * n + k.e * n * n / 2
        per_call = n + output
        fits = (
            int(min(profile.max_sequences, profile.kv_tokens / per_call))
            if per_call
            else profile.max_sequences
        )
        return _Batch(
            profile.solo_ttft_ms(n),
            computing + (k.a + k.h) * n / profile.step_tokens,
            k.a + k.h,
            k.b + k.c * (n + output / 2),
            max(0.0, output - 1),
            fits,
        )

    def gap_ms(self, calls: int) -> float:
        """From token to token; the prompts of those that follow the ones that end are in it."""
        return self.step + calls * self.each + (calls - 1) * self.prompt / (self.gaps + 1)

    def takes_s(self, calls: int, is_terminal: bool) -> float:
        """Until the moment of a call that counts."""
        first_ms = self.first + (calls - 1) * self.each
        return (first_ms if is_terminal else first_ms + self.gaps * self.gap_ms(calls)) / 1000

    def ends_per_s(self, calls: int) -> float:
        """Calls that end per second: what each takes, and at most what the machine can do."""
        whole_ms = self.first + self.gaps * self.gap_ms(calls)
        work_ms = self.prompt + self.gaps * (self.step / calls + self.each)
        return min(1000 * calls / max(whole_ms, _TINY), 1000 / max(work_ms, _TINY))

    def most(self, tpot_s: float) -> int:
        """Calls at once that leave every reader such a gap between tokens; 0 if not one does."""
        spare = 1000 * tpot_s - self.gap_ms(1)
        if spare < 0 or not self.fits:
            return 0
        more = self.each + self.prompt / (self.gaps + 1)
        return min(self.fits, 1 + int(spare / more)) if more > 0 and spare < math.inf else self.fits


def _late(per_s: float, ends_per_s: Sequence[float], in_time: int, left_s: float) -> float:
    """Share of calls beyond their budget. An arrival sees the queue as it is at a random moment (PASTA).

    Alone in the engine with up to `in_time` calls it is within its budget, and in a full batch, `left_s` before that.
    """
    spare_per_s = ends_per_s[-1] - per_s
    if spare_per_s <= 0:
        return 1.0
    weight, whole, early = 1.0, 0.0, 0.0
    for calls, each_per_s in enumerate(ends_per_s):  # so many are there as one more comes
        whole += weight
        if calls < in_time:
            early += weight
        weight *= per_s / each_per_s
    waiting = weight * ends_per_s[-1] / spare_per_s  # all of the states in which the batch is full
    beyond = math.exp(-spare_per_s * left_s) if left_s > 0 else 1.0
    return (whole - early + waiting * beyond) / (whole + waiting)
