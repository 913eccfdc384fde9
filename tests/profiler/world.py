"""An engine that follows the step model in virtual time: the truth a profiler has to find."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from tightrope.model.errors import EngineFailed
from tightrope.model.outcome import FailureKind, Usage
from tightrope.model.profile import Coefficients
from tightrope.ports import Chunk, EngineFacts, EngineRequest, Take
from tightrope.testing.clock import ManualClock

TRUTH = Coefficients(a=6.0, b=5.0, c=0.012, d=3.9, e=0.0018)

_TURNS_TO_SETTLE = 30


@dataclass(slots=True)
class Faults:
    """What is wrong with the engine. `dies_after` requests it is gone, `hangs_after` it answers no more."""

    dies_after: int | None = None
    hangs_after: int | None = None
    tells_usage: bool = True
    longest_answer: int | None = None
    refuses_ignore_eos: bool = False
    cached_share: float = 0.0
    is_buffered: bool = False


@dataclass(slots=True)
class _Job:
    prompt_tokens: int
    answer_tokens: int
    chunks: asyncio.Queue[Chunk | None] = field(default_factory=asyncio.Queue)
    computed: int = 0
    made: int = 0


class StepEngine:
    """Continuous batching, chunked prefill in order of arrival, one word a token. Time passes only in steps."""

    def __init__(
        self,
        clock: ManualClock,
        truth: Coefficients = TRUTH,
        step_tokens: int = 64,
        faults: Faults | None = None,
    ) -> None:
        self.prompts: list[str] = []
        self._clock = clock
        self._truth = truth
        self._step_tokens = step_tokens
        self._faults = faults or Faults()
        self._jobs: list[_Job] = []
        self._loop: asyncio.Task[None] | None = None

    async def generate(self, request: EngineRequest, take: Take) -> None:
        assert request.prompt is not None
        self.prompts.append(request.prompt)
        await self._misbehave(request)
        job = _Job(len(request.prompt.split()), min(request.max_tokens, self._faults.longest_answer or 10**9))
        self._jobs.append(job)
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._steps())
        while (chunk := await job.chunks.get()) is not None:
            take((chunk,))

    async def count_tokens(self, text: str) -> int | None:
        return len(text.split())

    async def facts(self) -> EngineFacts:
        return EngineFacts(build="steps 1", digest="abc", max_sequences=4, context_tokens=2048)

    async def close(self) -> None:
        return None

    async def _misbehave(self, request: EngineRequest) -> None:
        count, faults = len(self.prompts), self._faults
        if faults.refuses_ignore_eos and "ignore_eos" in request.extra:
            raise EngineFailed(FailureKind.BAD_REQUEST, "unknown field ignore_eos")
        if faults.dies_after is not None and count > faults.dies_after:
            raise EngineFailed(FailureKind.REPLICA_LOST, "connection refused")
        if faults.hangs_after is not None and count > faults.hangs_after:
            await asyncio.Event().wait()

    async def _steps(self) -> None:
        while self._jobs:
            decoding, chunks = self._next_batch()
            # Whoever reads the last step's tokens, or sends because of them, does so while this step runs.
            for _ in range(_TURNS_TO_SETTLE):
                await asyncio.sleep(0)
            self._clock.advance(self._step_ms(decoding, chunks) / 1000)
            for job, tokens in chunks:
                job.computed += tokens
            for job in [*decoding, *(job for job, _ in chunks if job.computed == job.prompt_tokens)]:
                self._give_token(job)

    def _next_batch(self) -> tuple[list[_Job], list[tuple[_Job, int]]]:
        decoding = [job for job in self._jobs if job.made]
        room = self._step_tokens - len(decoding)
        chunks: list[tuple[_Job, int]] = []
        for job in self._jobs:
            tokens = min(room, job.prompt_tokens - job.computed)
            if tokens > 0:
                chunks.append((job, tokens))
                room -= tokens
        return decoding, chunks

    def _step_ms(self, decoding: list[_Job], chunks: list[tuple[_Job, int]]) -> float:
        context = sum(job.prompt_tokens + job.made for job in decoding)
        pairs = sum(tokens * (job.computed + tokens / 2) for job, tokens in chunks)
        return self._truth.step_ms(len(decoding), context, sum(tokens for _, tokens in chunks), pairs)

    def _give_token(self, job: _Job) -> None:
        job.made += 1
        is_last = job.made == job.answer_tokens
        if not self._faults.is_buffered:
            job.chunks.put_nowait(_content())
        if is_last:
            for _ in range(job.made if self._faults.is_buffered else 0):
                job.chunks.put_nowait(_content())
            cached = int(self._faults.cached_share * job.prompt_tokens)
            usage = Usage(job.prompt_tokens, job.made, cached) if self._faults.tells_usage else None
            job.chunks.put_nowait(Chunk("", b"[]", is_content=False, usage=usage))
            job.chunks.put_nowait(None)
            self._jobs.remove(job)


def _content() -> Chunk:
    return Chunk("word ", b"[]", is_content=True)
