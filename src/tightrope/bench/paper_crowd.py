"""How long calls take in company: what Algorithm 1 believes of a card, and what engines make of it.

Owns the comparison that explains where the serial cost model is right. Nobody routes here: so many equal calls are
put on one idle replica at one moment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random

from tightrope.bench.intervals import mean
from tightrope.bench.library import hardware
from tightrope.bench.paper_bursts import AT_ONCE, FAST, LARGE, SLOW
from tightrope.model.ids import CallId
from tightrope.model.profile import Profile
from tightrope.sim.engine import LastOut, Request, SimEngine, Truth

SIZES = (1, 2, 4, 8, 16)
PROMPT_TOKENS, OUTPUT_TOKENS = 2200, 210
"""About an answer of the large model in `rag`."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """Mean seconds to the end of `calls` equal calls on a replica that was idle.

    `believed_s` is the mean of lx + lq + lr, `serial_s` on an engine that runs one at a time, `batching_s` on one
    with continuous batching.
    """

    accelerator: str
    calls: int
    believed_s: float
    serial_s: float
    batching_s: float


def crowds() -> tuple[Crowd, ...]:
    """The fast and the slow card, from one call to a crowd."""
    return tuple(_crowd(hardware().profile(LARGE, card), calls) for card in (FAST, SLOW) for calls in SIZES)


def _crowd(profile: Profile, calls: int) -> Crowd:
    alone_s = profile.solo_ms(PROMPT_TOKENS, OUTPUT_TOKENS) / 1000
    return Crowd(
        accelerator=profile.accelerator,
        calls=calls,
        believed_s=round(alone_s * (calls + 1) / 2, 4),
        serial_s=round(_mean_end_s(replace(profile, max_sequences=1), calls), 4),
        batching_s=round(_mean_end_s(replace(profile, max_sequences=AT_ONCE), calls), 4),
    )


def _mean_end_s(profile: Profile, calls: int) -> float:
    engine = SimEngine(Truth(profile), Random(0))
    for number in range(calls):
        engine.submit(Request(CallId(str(number)), PROMPT_TOKENS, OUTPUT_TOKENS), 0.0)
    ends_s: list[float] = []
    while (next_s := engine.next_s()) < math.inf:
        ends_s += [out.at_s for out in engine.advance(next_s) if isinstance(out, LastOut)]
    return mean(ends_s)
