"""Profile: the fitted numbers of one model on one kind of accelerator.

Owns the step-time model. What a call will take on a loaded replica is `policy/estimate.py`; measuring and
fitting is `profiler/`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tightrope.model.ids import AcceleratorName, ModelName


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Step time of a continuously batching engine, in milliseconds:

        step_ms = (a + h) + b*B + c*KV + d*N + e*G

    B sequences decoding, KV tokens of context they read, N prompt tokens in the step, G the sum over their
    chunks of len * (context before the chunk + len / 2). Units: a, h ms per step; b ms per sequence; c ms per
    token of context; d ms per prompt token; e ms per squared token. `h` is the overhead of the host, apart
    from the card, 0 where `a` was measured on the host itself. Form: DistServe (2401.09670), Vidur (2405.05465).
    """

    a: float
    b: float
    c: float
    d: float
    e: float
    h: float = 0.0

    def step_ms(
        self, sequences: float, context_tokens: float, prompt_tokens: float = 0, pairs: float = 0
    ) -> float:
        """One engine step, in milliseconds."""
        return (
            self.a
            + self.h
            + self.b * sequences
            + self.c * context_tokens
            + self.d * prompt_tokens
            + self.e * pairs
        )

    def scaled(self, factor: float) -> Coefficients:
        """The same card, `factor` times as slow."""
        return Coefficients(*(factor * value for value in (self.a, self.b, self.c, self.d, self.e, self.h)))


@dataclass(frozen=True, slots=True)
class FitError:
    """Mean absolute percentage error of the fit on held-out samples, as ratios (0.1 is 10 %), and their count."""

    prefill: float
    decode: float
    mixed: float
    samples: int


@dataclass(frozen=True, slots=True)
class Profile:
    """What the policies believe about (model, accelerator).

    `step_tokens` C is the token budget of a step, `max_sequences` R the most sequences at once, `kv_tokens` K
    the context memory, `load_s` the time from order to ready. `default_prompt` and `default_output` are the
    fixed token counts of the source paper's profile. `digest` and `engine` name the weights and the build,
    `grid` the loads that were measured.
    """

    model: ModelName
    accelerator: AcceleratorName
    coefficients: Coefficients
    step_tokens: int
    max_sequences: int
    kv_tokens: int
    load_s: float = 0.0
    memory_bytes: int = 0
    digest: str = ""
    engine: str = ""
    measured_at: str = ""
    grid: str = ""
    error: FitError | None = None
    default_prompt: int = 1024
    default_output: int = 128

    def solo_ttft_ms(self, prompt_tokens: float, hit_tokens: float = 0) -> float:
        """Time to the first token of one call alone on the replica, in milliseconds."""
        k = self.coefficients
        x = max(0.0, prompt_tokens - hit_tokens)
        steps = max(1, math.ceil(x / self.step_tokens))
        return steps * (k.a + k.h) + k.d * x + k.e * x * (hit_tokens + x / 2)

    def solo_decode_ms(self, prompt_tokens: float, output_tokens: float) -> float:
        """Time from the first to the last token of one call alone on the replica, in milliseconds."""
        k = self.coefficients
        gaps = max(0.0, output_tokens - 1)
        return gaps * (k.a + k.h + k.b + k.c * (prompt_tokens + output_tokens / 2))

    def solo_ms(self, prompt_tokens: float, output_tokens: float) -> float:
        """One whole call alone on the replica, in milliseconds."""
        return self.solo_ttft_ms(prompt_tokens) + self.solo_decode_ms(prompt_tokens, output_tokens)
