"""Grid: which loads an engine is measured under.

Owns the points of the quick and the full grid and what each one reads. Running them is `measure.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

FULL = "full"
"""Name of the grid that every other one is a part of."""

_PROMPTS = (16, 64, 256, 512, 1024, 2048, 4096, 8192)
_CONTEXTS = (32, 128, 512, 2048, 8192)
_MIXED_PROMPTS = (64, 256, 1024)
_FALLBACK_STEP_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Point:
    """While `streams` sequences of about `context_tokens` decode, a fresh prompt of about `prompt_tokens` comes.

    Without streams it reads one prefill; with them one decode at that many streams and one mixed step time.
    Every point reads a decode with its own prompt's sequence among the streams. Lengths are what is aimed
    at; what was sent is counted by the engine.
    """

    streams: int
    context_tokens: int
    prompt_tokens: int

    def __str__(self) -> str:
        if self.streams == 0:
            return f"prompt of {self.prompt_tokens} tokens alone"
        return f"prompt of {self.prompt_tokens} tokens, {self.streams} streams at {self.context_tokens}"


@dataclass(frozen=True, slots=True)
class Grid:
    """Points, how often each is measured, and when to give up.

    The whole grid is gone through `passes` times, the first `discarded_passes` only to warm up; passes
    beyond the first kept one are left out when they would end after `budget_s`. `gaps` is the number of
    token gaps behind one decode time; `request_limit_s` ends a request that hangs. A grid that is not
    `strict` warns where others refuse.
    """

    name: str
    points: tuple[Point, ...]
    passes: int
    discarded_passes: int
    gaps: int
    request_limit_s: float
    budget_s: float
    strict: bool

    @staticmethod
    def quick() -> Grid:
        """The fewest points that tell the five coefficients apart: seconds, also on a third of a processor."""
        points = (Point(0, 0, 16), Point(3, 16, 48), Point(0, 0, 256), Point(1, 24, 80))
        return Grid(
            name="quick",
            points=points,
            passes=3,
            discarded_passes=0,
            gaps=6,
            request_limit_s=30.0,
            budget_s=7.0,
            strict=False,
        )

    @staticmethod
    def full(context: int, slots: int) -> Grid:
        """All prompt lengths, contexts and powers of two of streams that fit `slots` sequences of `context` tokens."""
        alone = tuple(Point(0, 0, tokens) for tokens in _PROMPTS if tokens + _room(16) <= context)
        streams = [count for count in (2**i for i in range(16)) if count < slots]
        if slots > 1 and slots - 1 not in streams:
            streams.append(slots - 1)
        mixed = tuple(
            Point(count, length, tokens)
            for count in streams
            for length in _CONTEXTS
            for tokens in _MIXED_PROMPTS
            if max(length, tokens) + _room(16) + (count * length + tokens) // _FALLBACK_STEP_TOKENS <= context
        )
        return Grid(
            name=FULL,
            points=alone + mixed,
            passes=6,
            discarded_passes=1,
            gaps=16,
            request_limit_s=300.0,
            budget_s=float("inf"),
            strict=True,
        )

    def fitted_to(self, max_sequences: int | None, context_tokens: int | None) -> Grid:
        """The same grid without the points that an engine of so many sequences and so much context cannot hold."""
        points = tuple(
            point
            for point in self.points
            if (max_sequences is None or point.streams < max_sequences)
            and (
                context_tokens is None
                or max(point.context_tokens, point.prompt_tokens) + _room(self.gaps) <= context_tokens
            )
        )
        return replace(self, points=points)


def _room(gaps: int) -> int:
    """Tokens of context to leave free for the answers and for prompts that turn out longer than aimed at."""
    return 2 * gaps + 48
