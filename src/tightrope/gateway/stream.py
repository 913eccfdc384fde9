"""Carries the pieces of a run to one client: when headers go out, when silence is broken, when to give up.

Owns back-pressure and the end of a stream. What a frame looks like is `wire.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tightrope.gateway.errors import ApiError, of_error
from tightrope.gateway.exchange import EVENTS, ClientGone, Exchange
from tightrope.gateway.wire import COMMENT, Frames
from tightrope.model.errors import TightropeError
from tightrope.model.outcome import Usage
from tightrope.runtime.client import RunHandle

log = logging.getLogger(__name__)

T = TypeVar("T")

Headers = Callable[[bool], Mapping[str, str]]
"""Makes the headers of an answer at the moment it begins; told whether it begins with content."""


async def stream(
    exchange: Exchange, handle: RunHandle, frames: Frames, headers: Headers, silence_s: float | None
) -> None:
    """Send a run as a stream. The head, made by `headers`, goes out with the first byte of the output, so that
    a failure before it still has a status code of its own; after `keepalive_s` of silence it goes out early.

    `silence_s` is the longest pause the client bears (None: any); beyond it the run is cancelled. Raises
    ClientGone when the client has left or does not read; the caller then cancels the run.
    """
    outbox = _Outbox(exchange.settings.buffer_bytes)
    tasks = [
        asyncio.ensure_future(_fill(outbox, handle, frames)),
        asyncio.ensure_future(_watch(outbox, exchange)),
    ]
    alarm = _Alarm()
    try:
        async with asyncio.timeout(None) as limit:
            await _Delivery(exchange, outbox, handle, frames, headers, alarm, limit).run(silence_s)
    except TimeoutError:
        raise ClientGone("the client does not read") from None
    finally:
        alarm.stop()
        await _end(tasks)


async def unless_gone(exchange: Exchange, wanted: Coroutine[Any, Any, T]) -> T:
    """The result of `wanted`. Raises ClientGone as soon as the client leaves, and ends `wanted` then."""
    working = asyncio.ensure_future(wanted)
    watching = asyncio.ensure_future(exchange.gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        await _end([working, watching])


@dataclass(frozen=True, slots=True)
class _Delivery:
    """The way of the frames from the box to the client. `limit` ends it when the client does not read."""

    exchange: Exchange
    outbox: _Outbox
    handle: RunHandle
    frames: Frames
    headers: Headers
    alarm: _Alarm
    limit: asyncio.Timeout

    async def run(self, silence_s: float | None) -> None:
        """Send everything, and comments where there is nothing to send."""
        keepalive_s = self.exchange.settings.keepalive_s
        left_s = silence_s
        while True:
            wait_s = keepalive_s if left_s is None else min(keepalive_s, left_s)
            data = await self._take(wait_s)
            if data:
                await self._send(data)
            if self.outbox.is_ended and self.outbox.is_empty:
                await self._close()
                return
            if data:
                left_s = silence_s
            elif left_s is None or (left_s := left_s - wait_s) > 0:
                await self._send(COMMENT)
            else:
                self.handle.cancel("the client's patience ended")
                cause = f"no output for {silence_s:g} s, the client's own limit"
                self.outbox.end(ApiError("deadline_exceeded", cause))

    async def _take(self, wait_s: float) -> bytes:
        self.alarm.set(wait_s, self.outbox.wake)
        try:
            return await self.outbox.take()
        finally:
            self.alarm.clear()

    async def _send(self, data: bytes, *, is_last: bool = False) -> None:
        self.alarm.set(self.exchange.settings.stall_s, self._give_up)
        if not self.exchange.has_begun:
            await self.exchange.begin(200, EVENTS, self.headers(data is not COMMENT))
        await self.exchange.send(data, is_last=is_last)
        self.alarm.clear()

    async def _close(self) -> None:
        error = self.outbox.error
        if error is not None and not self.exchange.has_begun:
            await self.exchange.fail(error, self.headers(False))
            return
        await self._send(b"" if error is None else self.frames.failed(error, self.outbox.usage), is_last=True)

    def _give_up(self) -> None:
        self.limit.reschedule(asyncio.get_running_loop().time())


async def _fill(outbox: _Outbox, handle: RunHandle, frames: Frames) -> None:
    try:
        async for chunk in handle.pieces():
            await outbox.put(frames.of(chunk))
        await outbox.put(frames.closing(handle.usage))
        outbox.end(None)
    except TightropeError as error:
        outbox.end(of_error(error), handle.usage)
    except Exception:
        log.exception("run %s: the stream broke", handle.run)
        outbox.end(ApiError("internal_error"), handle.usage)


async def _watch(outbox: _Outbox, exchange: Exchange) -> None:
    await exchange.gone()
    outbox.abandon()


async def _end(tasks: Iterable[asyncio.Future[Any]]) -> None:
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)


class _Outbox:
    """Frames on their way to the client, glued together while it is slower than the engine; bounded."""

    def __init__(self, limit_bytes: int) -> None:
        self.error: ApiError | None = None
        self.usage = Usage()
        self.is_ended = False
        self._limit_bytes = limit_bytes
        self._data = bytearray()
        self._is_abandoned = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    @property
    def is_empty(self) -> bool:
        """Whether everything was taken."""
        return not self._data

    async def put(self, frame: bytes) -> None:
        """Add a frame; waits while the box is full."""
        if not frame:
            return
        await self._room.wait()
        self._data += frame
        if len(self._data) >= self._limit_bytes:
            self._room.clear()
        self._news.set()

    def end(self, error: ApiError | None, usage: Usage | None = None) -> None:
        """Nothing more will come. The first end counts."""
        if not self.is_ended:
            self.is_ended = True
            self.error = error
            self.usage = usage or Usage()
        self._news.set()

    def abandon(self) -> None:
        """Nobody will take anything any more."""
        self._is_abandoned = True
        self._news.set()

    def wake(self) -> None:
        """Let a `take` that waits return without anything."""
        self._news.set()

    async def take(self) -> bytes:
        """All that is there; waits for something, the end or `wake`. Raises ClientGone when abandoned."""
        if not (self._data or self.is_ended or self._is_abandoned):
            self._news.clear()
            await self._news.wait()
        if self._is_abandoned:
            raise ClientGone("the client has left")
        taken = bytes(self._data)
        self._data.clear()
        self._room.set()
        return taken


class _Alarm:
    """One timer for a whole stream, moved on only when it fires: a piece costs no timer of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._at_s: float | None = None
        self._ring: Callable[[], None] = self.clear
        self._timer: asyncio.TimerHandle | None = None

    def set(self, in_s: float, ring: Callable[[], None]) -> None:
        """Ring once after so many seconds, instead of what was set before."""
        self._at_s = self._loop.time() + in_s
        self._ring = ring
        if self._timer is None or self._timer.when() > self._at_s:
            self._move(self._at_s)

    def clear(self) -> None:
        """Do not ring."""
        self._at_s = None

    def stop(self) -> None:
        """Give the timer back."""
        self.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _move(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(at_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._at_s is None:
            return
        if self._loop.time() < self._at_s:
            self._move(self._at_s)
            return
        self._at_s = None
        self._ring()
