"""One HTTP request and its answer over ASGI: head, body, and the client that may leave.

Owns limits on what is read, and the headers that stand on every answer. What is answered is `app.py`'s.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tightrope.gateway.errors import ApiError
from tightrope.gateway.server import EXTENSION, Line
from tightrope.gateway.wire import error_body
from tightrope.model.outcome import Usage

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
"""As ASGI 3 has them."""

JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits of the gateway. Sizes in bytes, times in seconds.

    `keepalive_s` is the silence after which a stream sends headers and a comment, `stall_s` how long a reader
    may take nothing, `body_silence_s` how long a sender may send nothing.
    """

    max_body_bytes: int = 8 * 2**20
    max_header_bytes: int = 32 * 2**10
    keepalive_s: float = 15.0
    stall_s: float = 30.0
    body_silence_s: float = 30.0
    has_timing_header: bool = True
    has_metrics: bool = True


class ClientGone(Exception):
    """Nobody listens any more."""


class Exchange:
    """One request. Exactly one answer is sent, by `answer`, `fail`, or `begin` and `send`."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings) -> None:
        self.settings = settings
        self.headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        self.request_id = request_id(self.headers)
        self.arrived_s = time.perf_counter()
        self.has_begun = False
        self._has_unread_body = scope["method"] == "POST"
        self._receive = receive
        self._send = send
        self._line: Line | None = scope.get("extensions", {}).get(EXTENSION, {}).get("line")

    def header(self, name: bytes) -> str | None:
        """The value of a header that stands there exactly once, else None."""
        found = [value for key, value in self.headers if key == name]
        return found[0].decode("latin-1") if len(found) == 1 else None

    def check_head(self) -> None:
        """Raises ApiError(headers_too_large)."""
        if sum(len(name) + len(value) for name, value in self.headers) > self.settings.max_header_bytes:
            raise ApiError("headers_too_large")

    async def body(self) -> bytes:
        """The whole JSON body. Raises ApiError when it is too large, no JSON or too slow, ClientGone."""
        media = (self.header(b"content-type") or JSON).partition(";")[0].strip().lower()
        if media != JSON:
            raise ApiError("unsupported_media_type")
        declared = self.header(b"content-length")
        if declared is not None and declared.isascii() and declared.isdigit():
            self._check_size(int(declared[:20]))
        received = bytearray()
        while True:
            message = await self._next_part()
            received += message.get("body", b"")
            self._check_size(len(received))
            if not message.get("more_body", False):
                self._has_unread_body = False
                return bytes(received)

    @contextmanager
    def watched(self) -> Iterator[asyncio.Future[None]]:
        """Something that is done as soon as the client has left. Only after the body has been read."""
        if self._line is not None:
            self._line.listen()
            yield self._line.gone
            return
        watching = asyncio.ensure_future(self._gone())
        # Whoever has stopped watching does not ask how that ended.
        watching.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        try:
            yield watching
        finally:
            watching.cancel()

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def answer(
        self, status: int, body: bytes, media: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a whole answer."""
        await self.begin(status, media, {"content-length": str(len(body)), **(headers or {})})
        await self.send(body, is_last=True)

    async def fail(
        self, error: ApiError, headers: Mapping[str, str] | None = None, usage: Usage | None = None
    ) -> None:
        """Send an error as the whole answer."""
        await self.answer(
            error.entry.status, error_body(error, usage), JSON, {**(headers or {}), **error_headers(error)}
        )

    async def begin(self, status: int, media: str, headers: Mapping[str, str]) -> None:
        """Send the head of an answer."""
        self.has_begun = True
        head = {
            "content-type": media,
            "x-request-id": self.request_id,
            "cache-control": "no-store",
            **headers,
        }
        if self._has_unread_body:
            # What is left of the body will not be read, so nothing can follow it on this connection.
            head["connection"] = "close"
        raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in head.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def send(self, data: bytes, *, is_last: bool = False) -> None:
        """Send a part of the body; waits while the client reads more slowly than we write."""
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})

    def send_now(self, data: bytes) -> bool:
        """Send a part of the body if that needs no waiting; False if it does, and nothing is sent then."""
        return self._line is not None and self._line.send_now(data)

    async def _next_part(self) -> Message:
        try:
            async with asyncio.timeout(self.settings.body_silence_s):
                message = await self._receive()
        except TimeoutError:
            raise ApiError("invalid_request", "the body stopped arriving") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message

    def _check_size(self, size: int) -> None:
        limit = self.settings.max_body_bytes
        if size > limit:
            raise ApiError("body_too_large", f"the limit is {limit} bytes")


def request_id(headers: list[tuple[bytes, bytes]]) -> str:
    """The client's own id if it sent one that is plain, else a new one that sorts by time (UUIDv7)."""
    given = [value for name, value in headers if name == b"x-request-id"]
    if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]):
        return given[0].decode()
    stamp = (time.time_ns() // 1_000_000) << 80
    chance = secrets.randbits(80) & ~(0xF << 76) & ~(0x3 << 62)
    return str(uuid.UUID(int=stamp | chance | (0x7 << 76) | (0x2 << 62)))


def error_headers(error: ApiError) -> dict[str, str]:
    """What the OpenAI clients obey: whether to ask again, and when."""
    entry = error.entry
    headers = {"x-should-retry": "true" if entry.is_retryable else "false"}
    if entry.is_retryable:
        headers["retry-after-ms"] = str(max(1, round(error.retry_after_s * 1000)))
        headers["retry-after"] = str(max(1, -int(-error.retry_after_s // 1)))
    if entry.status in (429, 503):
        headers["x-tightrope-reason"] = entry.code
    return headers
