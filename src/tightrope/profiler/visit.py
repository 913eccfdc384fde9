"""Visit: one reading of one grid point.

Owns what is sent when at a point, and what the tokens' moments tell. The order of visits is `measure.py`.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Sequence
from itertools import pairwise, takewhile

from tightrope.model.errors import ProfilingFailed
from tightrope.profiler.grid import Point
from tightrope.profiler.probe import Call, Probe
from tightrope.profiler.reading import Decode, Reading

_TRIES = 3
_FEWEST_GAPS = 2
_SHORTEST_GAP_MS = 0.02
_CACHED_SHARE = 0.1
_ORDINARY = 1.5
_CACHED_TOKENS = 4


async def visit(probe: Probe, point: Point, pass_index: int, gaps: int, step_tokens: int) -> Reading:
    """One reading of a point; again with longer answers, or other prompts, where the first try shows too little."""
    problem = ""
    for _ in range(_TRIES):
        attempt = _Attempt(probe, point, gaps, step_tokens)
        try:
            await attempt.run()
        except ExceptionGroup as group:
            raise group.exceptions[0] from group.exceptions[0].__cause__
        problem = attempt.problem()
        if not problem:
            return attempt.reading(pass_index)
        gaps *= 2
    raise ProfilingFailed(f"{point}: {problem}")


class _Attempt:
    """Streams that decode, a fresh prompt among them, and what their tokens tell."""

    def __init__(self, probe: Probe, point: Point, gaps: int, step_tokens: int) -> None:
        self._probe = probe
        self._point = point
        self._gaps = gaps
        self._step_tokens = step_tokens
        self._streams = [probe.open(str(point)) for _ in range(point.streams)]
        self._fresh = probe.open(str(point))

    async def run(self) -> None:
        """Send everything and wait for all answers. Raises what the requests raise, as a group."""
        point = self._point
        async with asyncio.TaskGroup() as requests:
            for stream in self._streams:
                requests.create_task(self._probe.run(stream, point.context_tokens, self._stream_tokens()))
            await self._probe.until(self._are_streams_steady)
            # A token has just come, so a step has just begun: the prompt waits for the whole of it.
            await self._probe.run(self._fresh, point.prompt_tokens, self._gaps + 1)

    def problem(self) -> str:
        """Why this attempt cannot be used; "" when it can."""
        if any(call.cached_tokens > _most_cached(call) for call in self._calls()):
            return (
                "the engine answers fresh prompts from a cache; start it without prompt caching to measure it"
            )
        windows = [(self._calls(), *self._after())]
        if self._streams:
            windows.append((self._streams, *self._before()))
        gaps_by_call = [_gaps_ms(call, *window) for calls, *window in windows for call in calls]
        if min(len(gaps) for gaps in gaps_by_call) < _FEWEST_GAPS:
            return "too few tokens to time; the engine stops before max_tokens"
        if min(_middle_mean(gaps) for gaps in gaps_by_call) < _SHORTEST_GAP_MS:
            return "tokens come all at once; something on the way holds the stream back"
        return ""

    def reading(self, pass_index: int) -> Reading:
        """What was measured. Only when there is no problem."""
        before = self._decode(self._streams, *self._before()) if self._streams else None
        steps, prompt_steps = self._steps(before.gap_ms) if before else (0.0, 0)
        middle_s = (self._fresh.sent_s + self._fresh.first_s) / 2
        return Reading(
            point=self._point,
            pass_index=pass_index,
            prompt_tokens=float(self._fresh.prompt_tokens - self._fresh.cached_tokens),
            ttft_ms=(self._fresh.first_s - self._fresh.sent_s) * 1000,
            steps=steps,
            prompt_steps=prompt_steps,
            context_tokens=float(sum(stream.context_at(middle_s) for stream in self._streams)),
            before=before,
            after=self._decode(self._calls(), *self._after()),
        )

    def _calls(self) -> list[Call]:
        return [self._fresh, *self._streams]

    def _stream_tokens(self) -> int:
        """Enough to outlast the prompts of the other streams, the fresh prompt, and both windows around it."""
        point = self._point
        steps = (point.streams - 1) * math.ceil(point.context_tokens / self._step_tokens)
        steps += math.ceil(point.prompt_tokens / self._step_tokens)
        return 2 * self._gaps + steps + 6

    def _are_streams_steady(self) -> bool:
        """Have all of them decoded together for long enough, or can it not happen any more?"""
        if any(stream.is_over for stream in self._streams):
            return True
        if not all(stream.token_s for stream in self._streams):
            return False
        all_since_s = max((stream.first_s for stream in self._streams), default=0.0)
        return all(
            sum(at_s > all_since_s for at_s in stream.token_s) >= self._gaps for stream in self._streams
        )

    def _before(self) -> tuple[float, float]:
        return max(stream.first_s for stream in self._streams), self._fresh.sent_s

    def _after(self) -> tuple[float, float]:
        return self._fresh.first_s, min(call.token_s[-1] for call in self._calls())

    def _decode(self, calls: Sequence[Call], from_s: float, to_s: float) -> Decode:
        middle_s = (from_s + to_s) / 2
        gaps = [gap for call in calls for gap in _gaps_ms(call, from_s, to_s)]
        return Decode(
            gap_ms=_middle_mean(gaps),
            sequences=float(len(calls)),
            context_tokens=float(sum(call.context_at(middle_s) for call in calls)),
        )

    def _steps(self, gap_ms: float) -> tuple[float, int]:
        """Engine steps from sending to the first token, and how many of them computed the prompt.

        Every step gives each stream one token. The step that was under way when the prompt was sent counts
        by the part of it that was left. Leading steps of ordinary length had nothing of the prompt in them.
        """
        sent_s, first_s = self._fresh.sent_s, self._fresh.first_s
        stream = max(self._streams, key=lambda call: max(at_s for at_s in call.token_s if at_s <= sent_s))
        earlier = [at_s for at_s in stream.token_s if at_s <= sent_s]
        # The stream's token of the prompt's last step may be read a little after the prompt's own.
        during = [at_s for at_s in stream.token_s if sent_s < at_s <= first_s + gap_ms / 2000]
        lengths_ms = [(to_s - from_s) * 1000 for from_s, to_s in pairwise([earlier[-1], *during])]
        ordinary = sum(1 for _ in takewhile(lambda length: length < _ORDINARY * gap_ms, lengths_ms[:-1]))
        left = min(1.0, (during[0] - sent_s) * 1000 / gap_ms) if ordinary else 1.0
        return left + len(during) - 1, len(during) - ordinary


def _gaps_ms(call: Call, from_s: float, to_s: float) -> list[float]:
    inside = [at_s for at_s in call.token_s if from_s <= at_s <= to_s]
    return [(later - earlier) * 1000 for earlier, later in pairwise(inside)]


def _middle_mean(values: Sequence[float]) -> float:
    """Mean of the middle half: a preempted step does not count, the grain of a processor quota averages out."""
    ordered = sorted(values)
    cut = len(ordered) // 4
    return statistics.fmean(ordered[cut : len(ordered) - cut])


def _most_cached(call: Call) -> float:
    """Two prompts may begin with the same few tokens by chance."""
    return max(_CACHED_TOKENS, _CACHED_SHARE * call.prompt_tokens)
