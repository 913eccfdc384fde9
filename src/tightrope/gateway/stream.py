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
    alarm = _Alarm()
    watching = asyncio.ensure_future(exchange.gone())
    watching.add_done_callback(lambda _: handle.nudge())
    try:
        async with asyncio.timeout(None) as limit:
            await _Delivery(exchange, handle, frames, headers, watching, alarm, limit).run(silence_s)
    except TimeoutError:
        raise ClientGone("the client does not read") from None
    finally:
        alarm.stop()
        await _end([watching])


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
    """The way of the pieces to the client. `watching` is done when the client has left, `limit` ends the delivery
    when it does not read.
    """

    exchange: Exchange
    handle: RunHandle
    frames: Frames
    headers: Headers
    watching: asyncio.Future[None]
    alarm: _Alarm
    limit: asyncio.Timeout

    async def run(self, silence_s: float | None) -> None:
        """Send everything, and comments where there is nothing to send."""
        keepalive_s = self.exchange.settings.keepalive_s
        left_s = silence_s
        while True:
            wait_s = keepalive_s if left_s is None else min(keepalive_s, left_s)
            try:
                data = await self._next(wait_s)
            except TightropeError as error:
                await self._break(of_error(error))
                return
            except ClientGone:
                raise
            except Exception:
                log.exception("run %s: the stream broke", self.handle.run)
                await self._break(ApiError("internal_error"))
                return
            if self.handle.is_over:
                await self._send(data + self.frames.closing(self.handle.usage), is_last=True)
                return
            if data:
                await self._send(data)
                left_s = silence_s
            elif left_s is None or (left_s := left_s - wait_s) > 0:
                await self._send(COMMENT)
            else:
                self.handle.cancel("the client's patience ended")
                cause = f"no output for {silence_s:g} s, the client's own limit"
                await self._break(ApiError("deadline_exceeded", cause))
                return

    async def _next(self, wait_s: float) -> bytes:
        """The frames of what has come; b"" after `wait_s` without any, and at the end."""
        handle, alarm, is_gone = self.handle, self.alarm, self.watching.done
        alarm.set(wait_s, handle.nudge)
        data = b""
        while not is_gone():
            if data or handle.is_over or alarm.has_rung:
                alarm.clear()
                return data
            data = b"".join([self.frames.of(piece) for piece in await handle.some()])
        raise ClientGone("the client has left")

    async def _send(self, data: bytes, *, is_last: bool = False) -> None:
        exchange, alarm = self.exchange, self.alarm
        alarm.set(exchange.settings.stall_s, self._give_up)
        if not exchange.has_begun:
            await exchange.begin(200, EVENTS, self.headers(data is not COMMENT))
        await exchange.send(data, is_last=is_last)
        alarm.clear()

    async def _break(self, error: ApiError) -> None:
        if self.exchange.has_begun:
            await self._send(self.frames.failed(error, self.handle.usage), is_last=True)
        else:
            await self.exchange.fail(error, self.headers(False))

    def _give_up(self) -> None:
        self.limit.reschedule(asyncio.get_running_loop().time())


async def _end(tasks: Iterable[asyncio.Future[Any]]) -> None:
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)


class _Alarm:
    """One timer for a whole stream, moved on only when it fires: a piece costs no timer of its own."""

    def __init__(self) -> None:
        self.has_rung = False
        self._loop = asyncio.get_running_loop()
        self._at_s: float | None = None
        self._ring: Callable[[], None] = self.clear
        self._timer: asyncio.TimerHandle | None = None

    def set(self, in_s: float, ring: Callable[[], None]) -> None:
        """Ring once after so many seconds, instead of what was set before."""
        self.has_rung = False
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
        self.has_rung = True
        self._ring()
