"""What every Engine promises; `test_engine_*.py` runs it over each implementation.

1. An answer is pieces of text, then one reason why it ended, then the usage, which matches the limits.
2. The raw choices of every piece are JSON and say what the piece says.
3. Closing the iterator, or cancelling who waits for it, ends the request on the engine.
4. An answer to a schema is JSON of that shape.
5. A prompt that does not fit is refused as CONTEXT_TOO_LONG.
6. As many calls as the engine has slots are answered side by side, and one can follow another at once.
7. Tokens are counted as the engine counts them, and the engine says how many sequences it takes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import pytest

from tightrope.model.errors import EngineFailed
from tightrope.model.outcome import FailureKind
from tightrope.ports import Chunk, Engine, EngineRequest, Message

LIMIT_S = 120.0
SLOTS = 4
CONTEXT_TOKENS = 2048
SHAPE = '{"type": "object", "properties": {"topic": {"enum": ["orders", "returns"]}}, "required": ["topic"]}'


@dataclass(frozen=True)
class EngineUnderTest:
    """An engine with SLOTS slots of CONTEXT_TOKENS, and how many requests it works on at this moment."""

    engine: Engine
    in_flight: Callable[[], Awaitable[int]]


def a_chat(text: str = "Say something about the sea.", max_tokens: int = 12) -> EngineRequest:
    return EngineRequest("small", max_tokens, messages=(Message("user", text),), temperature=0.0)


def a_completion(text: str = "The sea is", max_tokens: int = 12) -> EngineRequest:
    return EngineRequest("small", max_tokens, prompt=text, temperature=0.0)


def an_endless_call() -> EngineRequest:
    return EngineRequest(
        "small", CONTEXT_TOKENS - 64, prompt="1 2 3 4", temperature=0.0, extra={"ignore_eos": "true"}
    )


async def pieces(engine: Engine, request: EngineRequest) -> AsyncGenerator[Chunk, None]:
    """The pieces of an answer, to be iterated over; closing this cancels the call."""
    taken: asyncio.Queue[Chunk | None] = asyncio.Queue()

    def take(pieces: Sequence[Chunk]) -> None:
        for piece in pieces:
            taken.put_nowait(piece)

    call = asyncio.create_task(engine.generate(request, take))
    call.add_done_callback(lambda _: taken.put_nowait(None))
    try:
        while (chunk := await taken.get()) is not None:
            yield chunk
        await call
    finally:
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


async def answer(engine: Engine, request: EngineRequest) -> list[Chunk]:
    async with asyncio.timeout(LIMIT_S):
        return [chunk async for chunk in pieces(engine, request)]


async def failure(engine: Engine, request: EngineRequest) -> EngineFailed:
    return (await broken_answer(engine, request))[1]


async def broken_answer(engine: Engine, request: EngineRequest) -> tuple[list[Chunk], EngineFailed]:
    """What came before the failure, and the failure."""
    chunks = []
    try:
        async with asyncio.timeout(LIMIT_S):
            async for chunk in pieces(engine, request):
                chunks.append(chunk)  # noqa: PERF401 (it is kept when the stream fails)
    except EngineFailed as failed:
        return chunks, failed
    pytest.fail("the answer came to a good end")


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that will come true, asking again every few milliseconds."""
    async with asyncio.timeout(LIMIT_S):
        while not await condition():  # noqa: ASYNC110 (it happens in another process)
            await asyncio.sleep(0.005)


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


class EngineContract:
    """Subclasses give the fixture `tested`."""

    @pytest.mark.parametrize("ask", [a_chat, a_completion], ids=["chat", "completion"])
    async def test_1_an_answer_is_text_then_its_end_then_its_usage(
        self, tested: EngineUnderTest, ask: Callable[[], EngineRequest]
    ) -> None:
        request = ask()
        chunks = await answer(tested.engine, request)
        assert text_of(chunks).strip()
        ends = [place for place, chunk in enumerate(chunks) if chunk.finish_reason is not None]
        usages = [place for place, chunk in enumerate(chunks) if chunk.usage is not None]
        contents = [place for place, chunk in enumerate(chunks) if chunk.is_content]
        assert len(ends) == len(usages) == 1
        assert max(contents) <= ends[0] <= usages[0]
        usage = chunks[usages[0]].usage
        assert usage is not None
        assert 1 <= usage.output_tokens <= request.max_tokens
        assert usage.prompt_tokens >= 3

    async def test_1_an_answer_that_reaches_its_limit_says_so(self, tested: EngineUnderTest) -> None:
        chunks = await answer(tested.engine, a_chat(max_tokens=1))
        assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["length"]

    @pytest.mark.parametrize("ask", [a_chat, a_completion], ids=["chat", "completion"])
    async def test_2_the_raw_choices_say_what_the_piece_says(
        self, tested: EngineUnderTest, ask: Callable[[], EngineRequest]
    ) -> None:
        for chunk in await answer(tested.engine, ask()):
            choices = json.loads(chunk.choices)
            said = "".join(
                choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices
            )
            assert said == chunk.text
            assert chunk.is_content == bool(said)
            assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == (
                [chunk.finish_reason] if chunk.finish_reason else []
            )

    async def test_3_leaving_in_the_middle_ends_the_request(self, tested: EngineUnderTest) -> None:
        async with asyncio.timeout(LIMIT_S), aclosing(pieces(tested.engine, an_endless_call())) as chunks:
            await anext(chunks)
            assert await tested.in_flight() == 1
        await until(lambda: _is_idle(tested))

    async def test_3_cancelling_a_reader_ends_the_request(self, tested: EngineUnderTest) -> None:
        reader = asyncio.create_task(answer(tested.engine, an_endless_call()))
        await until(lambda: _is_busy(tested))
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await until(lambda: _is_idle(tested))

    async def test_3_an_engine_answers_after_a_cancelled_request(self, tested: EngineUnderTest) -> None:
        async with asyncio.timeout(LIMIT_S), aclosing(pieces(tested.engine, an_endless_call())) as chunks:
            await anext(chunks)
        assert text_of(await answer(tested.engine, a_chat())).strip()

    async def test_4_an_answer_to_a_schema_has_its_shape(self, tested: EngineUnderTest) -> None:
        request = EngineRequest(
            "small", 32, messages=(Message("user", "Where is my parcel?"),), temperature=0.0, schema=SHAPE
        )
        assert json.loads(text_of(await answer(tested.engine, request)))["topic"] in ("orders", "returns")

    async def test_5_a_prompt_that_does_not_fit_is_refused(self, tested: EngineUnderTest) -> None:
        failed = await failure(tested.engine, a_chat("word " * (2 * CONTEXT_TOKENS)))
        assert failed.kind is FailureKind.CONTEXT_TOO_LONG
        assert "word word" not in str(failed)

    async def test_6_calls_are_answered_side_by_side(self, tested: EngineUnderTest) -> None:
        requests = [a_chat(f"Count to {number}.", 8) for number in range(SLOTS)]
        answers = await asyncio.gather(*(answer(tested.engine, request) for request in requests))
        assert all(chunks[-1].usage is not None for chunks in answers)

    async def test_6_calls_can_follow_each_other_at_once(self, tested: EngineUnderTest) -> None:
        for _ in range(3):
            assert await tested.engine.count_tokens("one two")
            for ask in (a_chat, a_completion):
                assert await answer(tested.engine, ask(max_tokens=1))

    async def test_7_the_engine_counts_tokens(self, tested: EngineUnderTest) -> None:
        few, many = [await tested.engine.count_tokens(text) for text in ("one two", "one two three four")]
        assert few is not None
        assert many is not None
        assert 2 <= few < many
        assert await tested.engine.count_tokens("") == 0

    async def test_7_the_engine_says_what_it_is(self, tested: EngineUnderTest) -> None:
        facts = await tested.engine.facts()
        assert facts.max_sequences == SLOTS
        assert facts.context_tokens == CONTEXT_TOKENS
        assert facts.build


async def _is_idle(tested: EngineUnderTest) -> bool:
    return await tested.in_flight() == 0


async def _is_busy(tested: EngineUnderTest) -> bool:
    return await tested.in_flight() > 0
