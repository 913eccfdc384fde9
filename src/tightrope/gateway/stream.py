"""Carries the pieces of a run to one client: when headers go out, when silence is broken, when to give up.

Owns back-pressure and the end of a stream. What a frame looks like is `wire.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from tightrope.gateway.errors import ApiError, of_error
from tightrope.gateway.exchange import EVENTS, ClientGone, Exchange
from tightrope.gateway.wire import COMMENT, Frames
from tightrope.model.errors import TightropeError
from tightrope.runtime.client import Chunk, RunHandle

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
    try:
        with exchange.watched() as gone:
            gone.add_done_callback(lambda _: handle.nudge())
            async with asyncio.timeout(None) as limit:
                delivery = _Delivery(exchange, handle, frames, headers, gone, alarm, limit, silence_s)
                await delivery.run()
    except TimeoutError:
        raise ClientGone("the client does not read") from None
    finally:
        alarm.stop()


async def unless_gone(exchange: Exchange, wanted: Coroutine[Any, Any, T]) -> T:
    """The result of `wanted`. Raises ClientGone as soon as the client leaves, and ends `wanted` then."""
    working = asyncio.ensure_future(wanted)
    try:
        with exchange.watched() as gone:
            await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


class _Delivery:
    """The way of the pieces to the client. `gone` is done when the client has left, `limit` ends the delivery when it
    does not read.

    Pieces are sent in the moment they come while nothing has to be waited for, else by the task of the request.
    """

    def __init__(
        self,
        exchange: Exchange,
        handle: RunHandle,
        frames: Frames,
        headers: Headers,
        gone: asyncio.Future[None],
        alarm: _Alarm,
        limit: asyncio.Timeout,
        silence_s: float | None,
    ) -> None:
        self._exchange = exchange
        self._handle = handle
        self._frames = frames
        self._headers = headers
        self._gone = gone
        self._alarm = alarm
        self._limit = limit
        self._silence_s = silence_s
        self._left_s = silence_s
        self._nudge = handle.nudge

    async def run(self) -> None:
        """Send everything, and comments where there is nothing to send."""
        while True:
            try:
                data = await self._next()
            except TightropeError as error:
                await self._break(of_error(error))
                return
            except ClientGone:
                raise
            except Exception:
                log.exception("run %s: the stream broke", self._handle.run)
                await self._break(ApiError("internal_error"))
                return
            if self._handle.is_over:
                await self._send(data + self._frames.closing(self._handle.usage), is_last=True)
                return
            if data:
                await self._send(data)
                self._left_s = self._silence_s
                self._handle.pass_on(self._sent_now)
            elif self._is_patient():
                await self._send(COMMENT)
            else:
                self._handle.cancel("the client's patience ended")
                cause = f"no output for {self._silence_s:g} s, the client's own limit"
                await self._break(ApiError("deadline_exceeded", cause))
                return

    async def _next(self) -> bytes:
        """The frames of what has come; b"" after a silence, and at the end."""
        handle, alarm, is_gone = self._handle, self._alarm, self._gone.done
        alarm.set(self._wait_s, self._nudge)
        data = b""
        while not is_gone():
            if data or handle.is_over or alarm.has_rung:
                alarm.clear()
                return data
            data = self._framed(await handle.some())
        raise ClientGone("the client has left")

    def _framed(self, pieces: Sequence[Chunk]) -> bytes:
        return b"".join([self._frames.of(piece) for piece in pieces])

    @property
    def _wait_s(self) -> float:
        keepalive_s = self._exchange.settings.keepalive_s
        return keepalive_s if self._left_s is None else min(keepalive_s, self._left_s)

    def _is_patient(self) -> bool:
        """Whether the client bears more of the silence that has just lasted so long."""
        if self._left_s is not None:
            self._left_s -= self._wait_s
        return self._left_s is None or self._left_s > 0

    def _sent_now(self, pieces: Sequence[Chunk]) -> bool:
        """Whether pieces that come after others could be sent without waiting for the client."""
        try:
            data = self._framed(pieces)
        except Exception:  # noqa: BLE001 - the task that reads them then meets the same, and says so
            return False
        if data and not self._exchange.send_now(data):
            return False
        self._left_s = self._silence_s
        self._alarm.set(self._wait_s, self._nudge)
        return True

    async def _send(self, data: bytes, *, is_last: bool = False) -> None:
        exchange, alarm = self._exchange, self._alarm
        alarm.set(exchange.settings.stall_s, self._give_up)
        if not exchange.has_begun:
            await exchange.begin(200, EVENTS, self._headers(data is not COMMENT))
        await exchange.send(data, is_last=is_last)
        alarm.clear()

    async def _break(self, error: ApiError) -> None:
        if self._exchange.has_begun:
            await self._send(self._frames.failed(error, self._handle.usage), is_last=True)
        else:
            await self._exchange.fail(error, self._headers(False))

    def _give_up(self) -> None:
        self._limit.reschedule(asyncio.get_running_loop().time())


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
