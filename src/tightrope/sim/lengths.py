"""How large the calls of a node really are, and how long its code takes.

Owns what is drawn for one item. Which steps a run has, and from which streams of chance, is `workload.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import assert_never

from tightrope.model.ids import StepId
from tightrope.sim.script import CallScript

BYTES_PER_TOKEN = 4.0
BYTES_SPREAD = 0.08
"""Relative deviation of the bytes of a token from prompt to prompt: the kernel sees bytes and has to learn."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Every call alike."""

    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Lognormal lengths with these means and sigmas; no answer is longer than `output_most`."""

    prompt_mean: float
    output_mean: float
    output_most: int
    prompt_sigma: float = 0.35
    output_sigma: float = 0.4


@dataclass(frozen=True, slots=True)
class Sampled:
    """A random one of `seen` pairs of prompt and output tokens, prompts scaled, outputs cut."""

    seen: tuple[tuple[int, int], ...]
    prompt_scale: float = 1.0
    output_most: int = 600


@dataclass(frozen=True, slots=True)
class ByCase:
    """Lengths that depend on the case that a switch takes."""

    switch: StepId
    of: Mapping[str, Fixed | Lognormal | Sampled]


@dataclass(frozen=True, slots=True)
class CodeTime:
    """Lognormal seconds of a function; `sigma` 0 is always the same."""

    mean_s: float
    sigma: float = 0.2


Lengths = Fixed | Lognormal | Sampled | ByCase | CodeTime


def draw(lengths: Lengths, cases: Mapping[StepId, str], rng: Random) -> CallScript:
    """One item in a run that takes these cases."""
    match lengths:
        case Fixed(prompt_tokens, output_tokens):
            return CallScript(
                prompt_tokens, output_tokens, prompt_bytes=round(BYTES_PER_TOKEN * prompt_tokens)
            )
        case Lognormal():
            prompt = _lognormal(lengths.prompt_mean, lengths.prompt_sigma, rng)
            output = _lognormal(lengths.output_mean, lengths.output_sigma, rng)
            return _call(prompt, min(output, lengths.output_most), rng)
        case Sampled(seen, prompt_scale, output_most):
            prompt, output = rng.choice(seen)
            return _call(prompt * prompt_scale, min(output, output_most), rng)
        case ByCase(switch, of):
            return draw(of[cases[switch]], cases, rng)
        case CodeTime(mean_s, sigma):
            return CallScript(seconds=_lognormal(mean_s, sigma, rng))
        case _:
            assert_never(lengths)


def always_the_mean(lengths: Lengths) -> Lengths:
    """The same node in deterministic mode: every call has the mean lengths, and code its mean time."""
    match lengths:
        case Fixed():
            return lengths
        case ByCase(switch, of):
            return ByCase(switch, {case: _fixed(own) for case, own in of.items()})
        case CodeTime(mean_s):
            return CodeTime(mean_s, 0.0)
        case Lognormal() | Sampled():
            return _fixed(lengths)
        case _:
            assert_never(lengths)


def _call(prompt: float, output: float, rng: Random) -> CallScript:
    prompt_tokens, output_tokens = max(1, round(prompt)), max(1, round(output))
    prompt_bytes = round(prompt_tokens * _lognormal(BYTES_PER_TOKEN, BYTES_SPREAD, rng))
    return CallScript(prompt_tokens, output_tokens, prompt_bytes=prompt_bytes)


def _lognormal(mean: float, sigma: float, rng: Random) -> float:
    return mean * math.exp(rng.gauss(0.0, sigma) - sigma * sigma / 2)


def _fixed(lengths: Fixed | Lognormal | Sampled) -> Fixed:
    match lengths:
        case Fixed():
            return lengths
        case Lognormal():
            output = min(lengths.output_mean, lengths.output_most)
            return Fixed(max(1, round(lengths.prompt_mean)), max(1, round(output)))
        case Sampled(seen, prompt_scale, output_most):
            prompt = prompt_scale * fmean(prompt for prompt, _ in seen)
            output = fmean(min(output, output_most) for _, output in seen)
            return Fixed(max(1, round(prompt)), max(1, round(output)))
        case _:
            assert_never(lengths)
