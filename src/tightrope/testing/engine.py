"""An engine inside the test: it answers by a script, or from the prompt, and fails when it is told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from tightrope.model.errors import EngineFailed
from tightrope.model.outcome import FailureKind, Usage
from tightrope.ports import Chunk, EngineFacts, EngineRequest, Take
from tightrope.testing.answers import Answer, answer_to, count_tokens, cut


@dataclass(frozen=True, slots=True)
class Script:
    """How one call goes. The default is a sound answer made from the prompt.

    `text` is the answer, cut into words; `wait_for` holds the first piece back until it is set. After
    `after_pieces` pieces the call fails with `failure`, or falls silent for ever with `stalls`. `usage` False
    leaves the usage out, as some engines do.
    """

    text: str | None = None
    wait_for: asyncio.Event | None = None
    after_pieces: int = 0
    failure: FailureKind | None = None
    stalls: bool = False
    usage: bool = True


class ScriptedEngine:
    """The Engine port inside the test. A prompt longer than the context fails as on a real engine.

    `script` is what every call does, or a function of the request that says so. `requests` are the calls that
    came, `in_flight` is how many are under way, `cancelled` how many were closed before their end.
    """

    def __init__(
        self,
        script: Script | Callable[[EngineRequest], Script] | None = None,
        *,
        max_sequences: int = 4,
        context_tokens: int = 4096,
    ) -> None:
        self.script = script or Script()
        self.requests: list[EngineRequest] = []
        self.in_flight = 0
        self.cancelled = 0
        self.is_closed = False
        self._facts = EngineFacts(
            build="scripted", max_sequences=max_sequences, context_tokens=context_tokens
        )

    async def generate(self, request: EngineRequest, take: Take) -> None:
        """Give the pieces of `answer` to `take`, as fast as it lets."""
        async with aclosing(self.answer(request)) as pieces:
            async for chunk in pieces:
                behind = take((chunk,))
                if behind is not None:
                    await behind

    async def answer(self, request: EngineRequest) -> AsyncGenerator[Chunk, None]:
        """The answer of the script: a bare role (chat only), the pieces, the end, the usage."""
        self.requests.append(request)
        script = self.script(request) if callable(self.script) else self.script
        self.in_flight += 1
        is_whole = False
        try:
            self._check(request)
            async for chunk in _played(script, request):
                yield chunk
            is_whole = True
        except EngineFailed:
            is_whole = True
            raise
        finally:
            self.in_flight -= 1
            self.cancelled += not is_whole

    async def count_tokens(self, text: str) -> int | None:
        """The words of `text`."""
        return count_tokens(text)

    async def facts(self) -> EngineFacts:
        """What was given to the constructor; the build is `scripted`."""
        return self._facts

    async def close(self) -> None:
        """Remembered in `is_closed`."""
        self.is_closed = True

    def _check(self, request: EngineRequest) -> None:
        limit = self._facts.context_tokens or 0
        if count_tokens(prompt_of(request)) >= limit:
            raise EngineFailed(FailureKind.CONTEXT_TOO_LONG, f"the prompt exceeds {limit} tokens")


def prompt_of(request: EngineRequest) -> str:
    """Everything a request says, as one text."""
    if request.messages is None:
        return request.prompt or ""
    return "\n".join(message.content for message in request.messages)


async def _played(script: Script, request: EngineRequest) -> AsyncGenerator[Chunk, None]:
    if script.wait_for is not None:
        await script.wait_for.wait()
    is_chat = request.messages is not None
    answer = _answer(script, request)
    if is_chat and not _breaks_at(script, 0):
        yield _chunk({"role": "assistant", "content": None}, "", None, is_chat)
    for number, piece in enumerate(answer.pieces):
        if _breaks_at(script, number):
            await _break(script)
        yield _chunk({"content": piece}, piece, None, is_chat)
    if _breaks_at(script, len(answer.pieces)):
        await _break(script)
    yield _chunk({}, "", answer.finish_reason, is_chat)
    if script.usage:
        used = Usage(count_tokens(prompt_of(request)), len(answer.pieces))
        yield Chunk(text="", choices=b"[]", is_content=False, usage=used)


def _answer(script: Script, request: EngineRequest) -> Answer:
    if script.text is not None:
        return cut(script.text, request.max_tokens)
    return answer_to(prompt_of(request), request.max_tokens, request.schema)


def _breaks_at(script: Script, piece: int) -> bool:
    return (script.stalls or script.failure is not None) and piece == script.after_pieces


async def _break(script: Script) -> None:
    if script.stalls:
        await asyncio.Event().wait()
    raise EngineFailed(script.failure or FailureKind.ENGINE_ERROR, "the script says so")


def _chunk(delta: dict[str, str | None], text: str, finish_reason: str | None, is_chat: bool) -> Chunk:
    said = {"delta": delta} if is_chat else {"text": text}
    choice = {"index": 0, **said, "finish_reason": finish_reason}
    return Chunk(
        text=text,
        choices=json.dumps([choice], separators=(",", ":")).encode(),
        is_content=bool(text),
        finish_reason=finish_reason,
    )
