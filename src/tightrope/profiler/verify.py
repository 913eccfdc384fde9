"""Verify: does the profile predict what the engine does with prompts it was not measured on?

Owns the fresh prompts, the order in which they reach the engine, and the error by number of streams. The
prediction itself is handed in: it is the router's, composed by the application.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from tightrope.model.errors import InvalidInput
from tightrope.model.ids import ModelName
from tightrope.ports import Clock, Engine
from tightrope.profiler.probe import Call, Probe

STREAMS = (1, 2, 4)
ALLOWED_MEDIAN_ERROR = 0.20

Arrival = Literal["together", "joining"]


@dataclass(frozen=True, slots=True)
class Others:
    """What else is on the engine when a prompt comes.

    `decoding_tokens` has the context of each stream that decodes, `ahead_tokens` the length of each prompt
    that came just before and of which nothing is computed yet.
    """

    decoding_tokens: tuple[int, ...] = ()
    ahead_tokens: tuple[int, ...] = ()


Predict = Callable[[int, Others], float]
"""Prompt tokens and what else is there -> predicted TTFT in ms."""


@dataclass(frozen=True, slots=True)
class Check:
    """One fresh prompt: alone or among `streams` in all, that came together or that it joined."""

    streams: int
    arrival: Arrival
    prompt_tokens: int
    predicted_ms: float
    measured_ms: float

    @property
    def error(self) -> float:
        """Signed relative error; positive where the prediction was too high."""
        return self.predicted_ms / self.measured_ms - 1


@dataclass(frozen=True, slots=True)
class StreamError:
    """Errors of prediction at one number of streams, as ratios. `bias` is the median signed error."""

    streams: int
    checks: int
    median_error: float
    p90_error: float
    bias: float


@dataclass(frozen=True, slots=True)
class Verification:
    """All checks, and their error by number of streams."""

    checks: tuple[Check, ...]
    by_streams: tuple[StreamError, ...]

    @property
    def is_accepted(self) -> bool:
        """Is the median error small enough at every number of streams?"""
        return all(row.median_error <= ALLOWED_MEDIAN_ERROR for row in self.by_streams)


async def verify(
    engine: Engine,
    *,
    model: ModelName,
    step_tokens: int,
    predict: Predict,
    clock: Clock,
    streams: Sequence[int] = STREAMS,
    rounds: int = 5,
    shortest_tokens: int = 24,
    longest_tokens: int = 200,
    answer_tokens: int = 8,
    request_limit_s: float = 60.0,
    seed: int = 0,
) -> Verification:
    """Measured against predicted TTFT of fresh prompts of random lengths, on an engine nobody else uses.

    At each number of streams k, in each round: k prompts that come together, and (k > 1) one that joins k - 1
    streams. Prompts that come together are handed over as the router does it: the next one when it fits into
    a step with what the engine still has to compute, else when the prompt before it has its first token.
    Raises ProfilingFailed when the engine dies, stalls or answers nonsense.
    """
    if not (streams and rounds > 0 and 0 < shortest_tokens <= longest_tokens):
        raise InvalidInput("nothing to verify: give streams, rounds and a range of prompt lengths above zero")
    rng = Random(f"{seed} {clock.now()!r}")
    rehearsal = _Rehearsal(
        Probe(engine, model, clock, rng, request_limit_s),
        lambda: round(math.exp(rng.uniform(math.log(shortest_tokens), math.log(longest_tokens)))),
        predict,
        step_tokens,
        answer_tokens,
    )
    try:
        return _summed(await rehearsal.all_checks(streams, rounds), streams)
    except ExceptionGroup as group:
        raise group.exceptions[0] from group.exceptions[0].__cause__


class _Rehearsal:
    """Sends prompts as the router would and compares."""

    def __init__(
        self, probe: Probe, draw: Callable[[], int], predict: Predict, step_tokens: int, answer_tokens: int
    ) -> None:
        self._probe = probe
        self._draw_tokens = draw
        self._predict = predict
        self._step_tokens = step_tokens
        self._answer_tokens = answer_tokens

    async def all_checks(self, streams: Sequence[int], rounds: int) -> list[Check]:
        await self._probe.warm_up()
        checks: list[Check] = []
        for _ in range(rounds):
            for count in streams:
                checks += await self._together(count)
                if count > 1:
                    checks.append(await self._joining(count))
        return checks

    async def _together(self, count: int) -> list[Check]:
        lengths = [self._draw_tokens() for _ in range(count)]
        calls = [self._probe.open(f"{count} prompts together") for _ in lengths]
        came_s = calls[0].sent_s
        async with asyncio.TaskGroup() as requests:
            for i, length in enumerate(lengths):
                before = list(zip(calls[:i], lengths, strict=False))
                await self._probe.until(lambda before=before, length=length: self._is_room(before, length))  # type: ignore[misc]
                requests.create_task(self._probe.run(calls[i], length, self._answer_tokens))
        counted = [call.prompt_tokens for call in calls]
        return [
            self._check("together", count, call, came_s, Others(ahead_tokens=tuple(counted[:i])))
            for i, call in enumerate(calls)
        ]

    async def _joining(self, count: int) -> Check:
        """Streams live until the fresh prompt has its answer: their length is for the longest it may take."""
        place = f"a prompt that joins {count - 1} streams"
        streams = [self._probe.open(place) for _ in range(count - 1)]
        fresh, fresh_tokens = self._probe.open(place), self._draw_tokens()
        lengths = [self._draw_tokens() for _ in streams]
        stream_tokens = 2 * self._answer_tokens + sum(
            math.ceil(length / self._step_tokens) for length in (*lengths, fresh_tokens)
        )
        async with asyncio.TaskGroup() as requests:
            for stream, length in zip(streams, lengths, strict=True):
                requests.create_task(self._probe.run(stream, length, stream_tokens))
            await self._probe.until(lambda: all(len(call.token_s) > 1 or call.is_over for call in streams))
            await self._probe.run(fresh, fresh_tokens, 2)
        contexts = tuple(call.context_at(fresh.sent_s) for call in streams)
        return self._check("joining", count, fresh, fresh.sent_s, Others(decoding_tokens=contexts))

    def _is_room(self, before: Sequence[tuple[Call, int]], length: int) -> bool:
        unfinished = sum(tokens for call, tokens in before if not (call.token_s or call.is_over))
        return unfinished == 0 or unfinished + length <= self._step_tokens

    def _check(self, arrival: Arrival, count: int, call: Call, came_s: float, others: Others) -> Check:
        return Check(
            streams=count,
            arrival=arrival,
            prompt_tokens=call.prompt_tokens,
            predicted_ms=self._predict(call.prompt_tokens, others),
            measured_ms=(call.first_s - came_s) * 1000,
        )


def _summed(checks: Sequence[Check], streams: Sequence[int]) -> Verification:
    rows = [_row(count, [check.error for check in checks if check.streams == count]) for count in streams]
    return Verification(tuple(checks), tuple(rows))


def _row(streams: int, errors: Sequence[float]) -> StreamError:
    sizes = sorted(abs(error) for error in errors)
    return StreamError(
        streams=streams,
        checks=len(sizes),
        median_error=statistics.median(sizes),
        p90_error=sizes[math.ceil(0.9 * len(sizes)) - 1],
        bias=statistics.median(errors),
    )
