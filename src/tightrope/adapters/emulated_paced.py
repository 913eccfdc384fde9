"""The calls of an engine that says what it is told, each token in the moment in which a real engine makes one.

For every call, llama.cpp's server is given a prompt of as many tokens, and made to answer as many; when one of them
comes, so many of the answer's own go out. So a real engine can be loaded with calls whose lengths and answers are
known beforehand. Owns the exchange with that server; how answers are written is `emulated_desk.py`.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from random import Random

import msgspec

from tightrope.adapters.emulated_desk import Call, Desk
from tightrope.adapters.emulated_http import Reply
from tightrope.adapters.emulated_wire import Asked, Refused
from tightrope.adapters.http_stream import HttpStreams, NotHttp, Origin, head_of_post
from tightrope.adapters.sse import EventReader
from tightrope.sim.engine import Occupancy

EVENT_LIMIT_BYTES = 2**20
WORDS = range(1000, 40_000)
"""Numbers of tokens that every vocabulary of some size has, and none of which means anything special."""


class PacedCalls:
    """Every call of one engine before the server at `url`, which serves `slots` of them at once."""

    def __init__(self, url: str, slots: int, desk: Desk) -> None:
        origin = Origin.of(url)
        self._streams = HttpStreams(origin)
        self._head = head_of_post(origin, "/completion", {"Content-Type": "application/json"})
        self._slots = slots
        self._desk = desk
        self._call_by_task: dict[asyncio.Task[None], Call] = {}

    def begin(self, asked: Asked, reply: Reply) -> None:
        """Take a call and answer it as the server makes tokens. Raises Refused when it cannot be answered."""
        call = self._desk.take(asked, reply)
        if asked.is_streamed:
            reply.begin()
        task = asyncio.get_running_loop().create_task(self._pace(call))
        self._call_by_task[task] = call
        task.add_done_callback(self._call_by_task.pop)

        def leave() -> None:
            task.cancel()

        reply.on_gone = leave

    def slow_down(self, factor: float) -> None:  # noqa: ARG002
        """Refused: the speed is that of the server."""
        raise _NO_FAULTS

    def hang(self) -> None:
        """Refused; stop the server instead."""
        raise _NO_FAULTS

    def resume(self) -> None:
        """Refused, as nothing was stopped here."""
        raise _NO_FAULTS

    def occupancy(self) -> Occupancy:
        """What the server works on and holds, as far as its calls came this way."""
        calls = self._call_by_task.values()
        held = sum(call.asked.prompt_tokens + call.sent for call in calls)
        return Occupancy(min(len(calls), self._slots), max(0, len(calls) - self._slots), held)

    async def _pace(self, call: Call) -> None:
        try:
            await self._streams.post(self._head, _body(call), _Pace(call, self._desk))
        except (OSError, NotHttp, Refused) as error:
            refused = (
                error if isinstance(error, Refused) else Refused(502, f"the engine behind fails: {error}")
            )
            if call.asked.is_streamed:
                call.reply.end(b"data: " + refused.body + b"\n\n")
            else:
                call.reply.send(refused.status, refused.body)


_NO_FAULTS = Refused(409, "this engine is paced by a real one and has that one's faults only")


def _body(call: Call) -> bytes:
    asked = call.asked
    rng = Random(zlib.crc32(asked.last_message.encode()))
    return msgspec.json.encode(
        {
            "prompt": rng.choices(WORDS, k=asked.prompt_tokens),
            "n_predict": call.answer.tokens,
            "ignore_eos": True,
            "cache_prompt": False,
            "stream": True,
        }
    )


class _Event(msgspec.Struct):
    """What matters of an event of llama.cpp's own stream."""

    tokens_predicted: int = 0
    stop: bool = False


_decode: Callable[[bytes], _Event] = msgspec.json.Decoder(_Event).decode


class _Pace:
    """Reads the server's stream and lets as many tokens of the answer out. The last ones go at its end: a server keeps
    a token back while it is half a letter.
    """

    def __init__(self, call: Call, desk: Desk) -> None:
        self.is_over = False
        self._call, self._desk = call, desk
        self._events = EventReader(EVENT_LIMIT_BYTES)
        self._status = 0
        self._refusal = bytearray()

    def head(self, status: int, media: str) -> None:  # noqa: ARG002
        """A stream, or an error?"""
        self._status = status

    def body(self, data: bytes) -> None:
        """More tokens, or more of an error."""
        if self._status != 200:
            self._refusal += data
            return
        for event in self._events.feed(data):
            try:
                one = _decode(event)
            except msgspec.MsgspecError as error:
                raise Refused(502, f"the engine behind sends what is no event: {error}") from error
            if one.stop:
                self.is_over = True
                self._desk.finish(self._call)
                return
            self._desk.tell(self._call, min(one.tokens_predicted, self._call.answer.tokens - 1))

    def end(self, broken: OSError | None) -> None:
        """Raises Refused unless the answer was whole."""
        if self.is_over:
            return
        said = bytes(self._refusal[:300]).decode(errors="replace") or str(broken or "it ended too early")
        raise Refused(502, f"the engine behind answers {self._status}: {said}")
