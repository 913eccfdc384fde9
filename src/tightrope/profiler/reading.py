"""Readings: what one visit to a grid point measured, and the step samples that many visits give.

Pure. Owns the medians over visits and what an engine's step budget must be. Measuring is `measure.py`,
fitting `fit.py`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields

from tightrope.profiler.fit import StepSample
from tightrope.profiler.grid import Point


@dataclass(frozen=True, slots=True)
class Decode:
    """A token gap in ms while `sequences` decode over `context_tokens` in all."""

    gap_ms: float
    sequences: float
    context_tokens: float


@dataclass(frozen=True, slots=True)
class Reading:
    """One visit to a point.

    `prompt_tokens` were computed in `ttft_ms`. By the tokens that streams gained meanwhile (0 without
    streams) these were `steps` engine steps, the last `prompt_steps` of them with a part of the prompt; the
    streams read `context_tokens` in each. `before` and `after` are the decoding around it.
    """

    point: Point
    pass_index: int
    prompt_tokens: float
    ttft_ms: float
    steps: float
    prompt_steps: int
    context_tokens: float
    before: Decode | None
    after: Decode | None


def typical(readings: Sequence[Reading]) -> Reading:
    """The field-wise median of several visits to one point."""
    first = readings[0]
    return Reading(
        point=first.point,
        pass_index=first.pass_index,
        prompt_tokens=statistics.median(reading.prompt_tokens for reading in readings),
        ttft_ms=statistics.median(reading.ttft_ms for reading in readings),
        steps=statistics.median(reading.steps for reading in readings),
        prompt_steps=statistics.median_low([reading.prompt_steps for reading in readings]),
        context_tokens=statistics.median(reading.context_tokens for reading in readings),
        before=_typical_decode([reading.before for reading in readings if reading.before]),
        after=_typical_decode([reading.after for reading in readings if reading.after]),
    )


def samples_of(reading: Reading, step_tokens: int) -> list[StepSample]:
    """The step samples of one point: a prefill or a mixed one, and the decodes around it."""
    n = reading.prompt_tokens
    alone = reading.point.streams == 0
    arrival = StepSample(
        kind="prefill" if alone else "mixed",
        measured_ms=reading.ttft_ms,
        sequences=float(reading.point.streams),
        context_tokens=reading.context_tokens,
        prompt_tokens=n,
        pairs=n * n / 2,
        steps=max(1, math.ceil(n / step_tokens)) if alone else reading.steps,
    )
    decodes = [decode for decode in (reading.before, reading.after) if decode is not None]
    return [arrival, *(_decode_sample(decode) for decode in decodes)]


def infer_step_tokens(readings: Sequence[Reading]) -> int | None:
    """The step budget that explains how many steps prompts took; None when every prompt fitted into one step.

    A prompt of n tokens in s steps, B sequences taking a token each: n/s <= C - B < n/(s - 1). The power
    of two in the common interval is taken where there is one, as engines are set to such, else its lower end.
    """
    lower, upper = 1.0, math.inf
    for reading in readings:
        if reading.prompt_steps >= 1:
            lower = max(lower, reading.prompt_tokens / reading.prompt_steps + reading.point.streams)
        if reading.prompt_steps >= 2:
            upper = min(upper, reading.prompt_tokens / (reading.prompt_steps - 1) + reading.point.streams)
    if math.isinf(upper):
        return None
    power = 2 ** math.ceil(math.log2(lower))
    return int(power) if power <= upper else math.ceil(lower)


def _typical_decode(decodes: Sequence[Decode]) -> Decode | None:
    if not decodes:
        return None
    values = (
        statistics.median(getattr(decode, field.name) for decode in decodes) for field in fields(Decode)
    )
    return Decode(*values)


def _decode_sample(decode: Decode) -> StepSample:
    return StepSample(
        kind="decode",
        measured_ms=decode.gap_ms,
        sequences=decode.sequences,
        context_tokens=decode.context_tokens,
    )
