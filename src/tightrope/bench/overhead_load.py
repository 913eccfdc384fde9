"""The client of `bench overhead`, a process of its own: streams at once, one call after the other, calls at a rate.

Owns what is asked, and what is seen of the answers on the wire, as cheaply as Python can. Prints `begin` and `end`
around the time that counts, then what it saw as JSON. What follows from it is `overhead.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Literal, cast

import httptools
import msgspec
import uvloop

MODEL = "emulated"
LoadKind = Literal["streams", "alone", "mixed"]
GIVE_UP_S = 20.0
"""When an answer counts as failed."""
WARM_UP_CALLS = 20
_PAUSE_S = 0.01
"""After a call that failed, so that a server that refuses is not asked without end."""

_PROMPT = "A passage that is put before the question, as callers do. " * 16
_CONTENT = re.compile(rb'"content": ?"[^"]')


@dataclass(frozen=True, slots=True)
class Setting:
    """How much is asked. Answers of `chunks` pieces, `gap_ms` apart; `streams` of them at once, counted for `count_s`
    after `warm_up_s`; `calls` one after the other; `rate` calls per second on one core. Every system is measured once
    in each of `rounds`."""

    chunks: int = 64
    gap_ms: float = 5.0
    streams: int = 64
    rate: float = 300.0
    calls: int = 200
    warm_up_s: float = 1.0
    count_s: float = 4.0
    rounds: int = 2

    def order(self, systems: Sequence[str], number: int) -> list[str]:
        """The systems of one round: forth, then back, so that none is always measured after the same other one."""
        return list(systems) if number % 2 == 0 else list(reversed(systems))


@dataclass(frozen=True, slots=True)
class Load:
    """What to ask of whom. Connections go to `ports` in turn.

    `streams`: so many answers at once, each begun at random up to two gaps after the one before. `mixed`: beside them
    calls for one token at the rate, at random. `alone`: one call for one token after the other, so many whole and as
    many streamed. `cores`: where the client may run.
    """

    kind: LoadKind
    ports: tuple[int, ...]
    setting: Setting = Setting()
    seed: int = 1
    cores: tuple[int, ...] = ()


@dataclass(slots=True)
class Seen:
    """What came in the time that counts. Times in ms from the moment of asking, for calls at a rate from the moment
    at which they were due; `pieces` are events with text; `used_s` is the client's own processor time."""

    whole_ms: list[float] = field(default_factory=list)
    alone_first_ms: list[float] = field(default_factory=list)
    stream_first_ms: list[float] = field(default_factory=list)
    short_first_ms: list[float] = field(default_factory=list)
    pieces: int = 0
    count_s: float = 0.0
    used_s: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)


def request(port: int, tokens: int, is_streamed: bool) -> bytes:
    """The bytes of one call for so many tokens."""
    content = f'{_PROMPT}<emulate tokens="{tokens}"/>'
    asked = {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "stream": is_streamed,
    }
    body = json.dumps(asked).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class AskFailed(Exception):
    """There was no whole answer."""


@dataclass(slots=True)
class Tally:
    """Pieces with text that came over all connections."""

    pieces: int = 0


class Asker(asyncio.Protocol):
    """One connection to a server, opened anew when it was closed; one call at a time."""

    def __init__(self, port: int, tally: Tally) -> None:
        self.port = port
        self._tally = tally
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answered: asyncio.Future[tuple[float, float]] | None = None
        self._first_s: float | None = None
        self._rest = b""

    async def ask(self, call: bytes) -> tuple[float, float]:
        """The moments of the first piece with text and of the end. Raises AskFailed."""
        try:
            async with asyncio.timeout(GIVE_UP_S):
                return await self._ask(call)
        except TimeoutError:
            self.close()
            raise AskFailed(f"no answer within {GIVE_UP_S:g} s") from None
        except OSError as error:
            raise AskFailed(f"no connection: {error.strerror}") from error

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    async def _ask(self, call: bytes) -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        if self._transport is None:
            await loop.create_connection(lambda: self, "127.0.0.1", self.port)
        self._parser = httptools.HttpResponseParser(self)
        self._first_s, self._rest = None, b""
        self._answered = loop.create_future()
        cast("asyncio.Transport", self._transport).write(call)
        return await self._answered

    # --- what asyncio and httptools call -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The server has accepted."""
        # Transports of uvloop are no subclass.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _: Exception | None) -> None:
        """The server has hung up."""
        self._transport = None
        self._fail("the connection was closed in the middle")

    def data_received(self, data: bytes) -> None:
        """More of the answer."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"no HTTP: {error}")
            self.close()

    def on_body(self, body: bytes) -> None:
        """Count the events that are whole now."""
        *events, self._rest = (self._rest + body).split(b"\n\n")
        pieces = sum(1 for event in events if _CONTENT.search(event))
        if pieces and self._first_s is None:
            self._first_s = time.monotonic()
        self._tally.pieces += pieces

    def on_message_complete(self) -> None:
        """The answer is whole."""
        status = self._parser.get_status_code()
        if not self._parser.should_keep_alive():
            self.close()
        if status != 200:
            self._fail(f"status {status}: {self._rest[:120].decode(errors='replace')}")
        elif self._answered is not None and not self._answered.done():
            now_s = time.monotonic()
            self._answered.set_result((now_s if self._first_s is None else self._first_s, now_s))

    def _fail(self, why: str) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(AskFailed(why))


# --- the loads -------------------------------------------------------------------------------------------


class _Client:
    """One load being played."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.seen = Seen()
        self.is_counting = False
        self.is_over = False
        self.tally = Tally()
        self._failures: Counter[str] = Counter()
        self._rng = Random(load.seed)
        self._idle: list[Asker] = []
        self._opened = 0

    async def play(self) -> Seen:
        """All of it."""
        if self.load.kind == "alone":
            await self._alone()
        else:
            async with asyncio.TaskGroup() as tasks:
                for number in range(self.load.setting.streams):
                    tasks.create_task(self._keep_streaming(Random(f"{self.load.seed} {number}")))
                if self.load.kind == "mixed":
                    tasks.create_task(self._at_a_rate(tasks))
                await asyncio.sleep(self.load.setting.warm_up_s)
                async with self._counting():
                    await asyncio.sleep(self.load.setting.count_s)
                self.is_over = True
        self.seen.failures = dict(self._failures)
        return self.seen

    @asynccontextmanager
    async def _counting(self) -> AsyncIterator[None]:
        pieces, began_s, used_s = self.tally.pieces, time.monotonic(), time.process_time()
        print("begin", flush=True)
        self.is_counting = True
        yield
        self.is_counting = False
        print("end", flush=True)
        self.seen.pieces = self.tally.pieces - pieces
        self.seen.count_s, self.seen.used_s = time.monotonic() - began_s, time.process_time() - used_s

    async def _alone(self) -> None:
        asker = self._asker()
        for found, is_streamed in ((self.seen.whole_ms, False), (self.seen.alone_first_ms, True)):
            call = request(asker.port, 1, is_streamed)
            for number in range(-WARM_UP_CALLS, self.load.setting.calls):
                times_ms = await self._asked(asker, call, time.monotonic())
                if times_ms is not None and number >= 0:
                    found.append(times_ms[0] if is_streamed else times_ms[1])
        print("begin\nend", flush=True)

    async def _keep_streaming(self, rng: Random) -> None:
        asker = self._asker()
        call = request(asker.port, self.load.setting.chunks, True)
        while not self.is_over:
            # Engines begin new calls between steps: asking at random moments keeps a small delay from hiding there.
            await asyncio.sleep(rng.uniform(0, 2 * self.load.setting.gap_ms / 1000))
            counts = self.is_counting
            times_ms = await self._asked(asker, call, time.monotonic())
            if times_ms is not None and counts:
                self.seen.stream_first_ms.append(times_ms[0])

    async def _at_a_rate(self, tasks: asyncio.TaskGroup) -> None:
        due_s = time.monotonic()
        while not self.is_over:
            due_s += self._rng.expovariate(self.load.setting.rate)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            tasks.create_task(self._short(due_s, self.is_counting))

    async def _short(self, due_s: float, counts: bool) -> None:
        asker = self._idle.pop() if self._idle else self._asker()
        times_ms = await self._asked(asker, request(asker.port, 1, True), due_s)
        if times_ms is not None and counts:
            self.seen.short_first_ms.append(times_ms[0])
        self._idle.append(asker)

    async def _asked(self, asker: Asker, call: bytes, from_s: float) -> tuple[float, float] | None:
        """Times in ms to the first piece and to the end; None for a call that failed, which is counted."""
        try:
            first_s, end_s = await asker.ask(call)
        except AskFailed as failed:
            self._failures[str(failed)] += 1
            await asyncio.sleep(_PAUSE_S)
            return None
        return 1000 * (first_s - from_s), 1000 * (end_s - from_s)

    def _asker(self) -> Asker:
        port = self.load.ports[self._opened % len(self.load.ports)]
        self._opened += 1
        return Asker(port, self.tally)


def main() -> int:
    """Play the load that the one argument describes."""
    load = msgspec.json.decode(sys.argv[1], type=Load)
    if load.cores:
        os.sched_setaffinity(0, load.cores)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        seen = runner.run(_Client(load).play())
    print(msgspec.json.encode(seen).decode(), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
