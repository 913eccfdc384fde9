"""Carries the pieces of a run to one client: when headers go out, when silence is broken, when to give up.

Owns back-pressure and the end of a stream. What a frame looks like is `wire.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from tightrope.gateway.errors import ApiError, of_error
from tightrope.gateway.exchange import EVENTS, ClientGone, Exchange
from tightrope.gateway.wire import COMMENT, Frames
from tightrope.model.errors import TightropeError
from tightrope.model.outcome import Usage
from tightrope.runtime.client import RunHandle

log = logging.getLogger(__name__)

T = TypeVar("T")


async def stream(
    exchange: Exchange,
    handle: RunHandle,
    frames: Frames,
    headers: Callable[[], Mapping[str, str]],
    silence_s: float | None,
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
    try:
        await _deliver(exchange, outbox, handle, frames, headers, silence_s)
    finally:
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


async def _deliver(
    exchange: Exchange,
    outbox: _Outbox,
    handle: RunHandle,
    frames: Frames,
    headers: Callable[[], Mapping[str, str]],
    silence_s: float | None,
) -> None:
    keepalive_s = exchange.settings.keepalive_s
    left_s = silence_s
    while True:
        wait_s = keepalive_s if left_s is None else min(keepalive_s, left_s)
        data = await outbox.take(wait_s)
        if data or outbox.is_ended:
            if data:
                await _send(exchange, data, headers)
            if outbox.is_ended and outbox.is_empty:
                await _close(exchange, outbox, frames, headers)
                return
            left_s = silence_s
            continue
        if left_s is not None and (left_s := left_s - wait_s) <= 0:
            handle.cancel("the client's patience ended")
            outbox.end(
                ApiError("deadline_exceeded", f"no output for {silence_s:g} s, the client's own limit")
            )
            continue
        await _send(exchange, COMMENT, headers)


async def _send(exchange: Exchange, data: bytes, headers: Callable[[], Mapping[str, str]]) -> None:
    try:
        async with asyncio.timeout(exchange.settings.stall_s):
            if not exchange.has_begun:
                await exchange.begin(200, EVENTS, headers())
            await exchange.send(data)
    except TimeoutError:
        raise ClientGone("the client does not read") from None


async def _close(
    exchange: Exchange, outbox: _Outbox, frames: Frames, headers: Callable[[], Mapping[str, str]]
) -> None:
    if outbox.error is not None and not exchange.has_begun:
        await exchange.fail(outbox.error, headers())
        return
    if outbox.error is not None:
        await _send(exchange, frames.failed(outbox.error, outbox.usage), headers)
    with suppress(TimeoutError):
        async with asyncio.timeout(exchange.settings.stall_s):
            await exchange.send(b"", is_last=True)


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

    async def take(self, wait_s: float) -> bytes:
        """All that is there, waiting at most `wait_s` for it; b"" if there is nothing. Raises ClientGone."""
        if not self._data and not self.is_ended and not self._is_abandoned:
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
        if self._is_abandoned:
            raise ClientGone("the client has left")
        taken = bytes(self._data)
        self._data.clear()
        self._room.set()
        return taken
