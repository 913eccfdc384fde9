"""One HTTP/1.1 POST on a connection of its own, its answer given on while it comes.

Answers of engines come in thousands of pieces of a few hundred bytes, so a piece costs one callback here: it
wakes no task and waits in no queue. Owns the connection and the framing of HTTP; what the bytes mean is the
reader's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

CONNECT_LIMIT_S = 5.0


class NotHttp(Exception):
    """What came is no answer in HTTP/1.1."""


class AnswerReader(Protocol):
    """Who reads an answer. Whatever it raises ends the exchange and is raised by `post`."""

    @property
    def is_over(self) -> bool:
        """Whether nothing that may still come matters."""
        ...

    def head(self, status: int, media: str) -> None:
        """The answer begins; `media` is its type in lower case, without parameters."""
        ...

    def body(self, data: bytes) -> Awaitable[None] | None:
        """The next part of the body. Gives what to wait for before more is read, if anything."""
        ...

    def end(self, broken: OSError | None) -> None:
        """The body has ended: where its framing says so, or at the end of the connection, or `broken`."""
        ...


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a server listens: what to connect to, what stands in the Host header, and what its paths begin with."""

    host: str
    port: int
    name: str
    path: str
    tls: ssl.SSLContext | None

    @classmethod
    def of(cls, url: str) -> Origin:
        """Of an `http://` or `https://` address. Raises ValueError for anything else."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http:// or https:// address")
        is_tls = parts.scheme == "https"
        return cls(
            host=parts.hostname,
            port=parts.port or (443 if is_tls else 80),
            name=parts.netloc.rpartition("@")[2],
            path=parts.path,
            tls=ssl.create_default_context() if is_tls else None,
        )


def head_of_post(origin: Origin, path: str, headers: Mapping[str, str]) -> bytes:
    """Everything before the length of the body, the same for all requests. Raises ValueError for line breaks."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {origin.name}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header of a request has a line break in it")
    return "\r\n".join([*lines, "Content-Length: "]).encode("latin-1")


class HttpStreams:
    """Exchanges with one server. Connections are never used twice: llama.cpp closes one after each stream without
    saying so, others close idle ones, and a request sent just then would look as if the server had died.
    """

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._open: set[_Connection] = set()

    async def post(self, head: bytes, body: bytes, reader: AnswerReader) -> None:
        """Send one request and give its answer to `reader`; returns when the reader or the answer is over.

        Sets no limit on how long that takes. Cancelling it closes the connection at once. Raises OSError when the
        connection fails before an answer has begun, NotHttp, and what the reader raises.
        """
        connection = _Connection(reader)
        self._open.add(connection)
        try:
            await self._connect(connection)
            connection.send(b"%b%d\r\n\r\n%b" % (head, len(body), body))
            await connection.over
        finally:
            self._open.discard(connection)
            connection.leave()

    def close(self) -> None:
        """Break off everything that is under way."""
        for connection in list(self._open):
            connection.break_off(ConnectionAbortedError("the connection was closed here"))

    async def _connect(self, connection: _Connection) -> None:
        origin = self._origin
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                await asyncio.get_running_loop().create_connection(
                    lambda: connection, origin.host, origin.port, ssl=origin.tls
                )
        except TimeoutError as error:
            raise TimeoutError(f"no connection within {CONNECT_LIMIT_S:g} s") from error


class _Connection(asyncio.Protocol):
    """Feeds what comes through the parser of HTTP to the reader. `over` is done at the end."""

    def __init__(self, reader: AnswerReader) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reader = reader
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._lost: OSError | None = None
        self._media = ""
        self._parts: list[bytes] = []
        self._has_begun = self._is_head_due = False
        self._is_framed = False
        self._is_complete = False

    def send(self, data: bytes) -> None:
        """Send the request."""
        if self._transport is not None:
            self._transport.write(data)

    def leave(self) -> None:
        """Close at once, in the middle of an answer too: that tells the server that nobody reads any more."""
        if not self.over.cancel() and not self.over.cancelled():
            self.over.exception()  # whoever was cancelled in the same moment does not ask for it
        if self._waiting is not None:
            self._waiting.cancel()
        if self._transport is not None:
            self._transport.abort()

    def break_off(self, error: OSError) -> None:
        """End as if the connection had failed."""
        self._lost = self._lost or error
        if self._waiting is None:
            self._end(self._lost)

    # --- what asyncio calls --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The request can be sent."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """One piece of the answer, or several."""
        if self.over.done():
            return
        try:
            self._parser.feed_data(data)
            wait = self._give_on()
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(NotHttp(str(error) or type(error).__name__))
        except Exception as error:  # noqa: BLE001 - whoever waits for this exchange has to hear of it
            self._fail(error)
        else:
            if wait is not None:
                self._hold(wait)
            elif self._is_complete or self._reader.is_over:
                self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side has closed, or the connection failed."""
        if isinstance(exc, OSError):
            lost = exc
        elif not self._has_begun:
            lost = ConnectionResetError("it was closed before an answer came")
        else:
            lost = ConnectionResetError("it was closed in the middle of the answer")
        is_whole = exc is None and self._has_begun and not self._is_framed
        self._is_complete = self._is_complete or is_whole
        self._lost = self._lost or lost
        if self._waiting is None:
            self._end(None if self._is_complete else self._lost)

    # --- what httptools calls ------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header of the answer."""
        key = name.lower()
        if key == b"content-type":
            self._media = value.decode("latin-1").partition(";")[0].strip().lower()
        elif key in (b"content-length", b"transfer-encoding"):
            self._is_framed = True

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._parts.append(body)

    def on_headers_complete(self) -> None:
        """Informational answers (1xx) are passed over."""
        if not self._has_begun and self._parser.get_status_code() >= 200:
            self._has_begun = self._is_head_due = True

    def on_message_complete(self) -> None:
        """The framing says that the body has ended."""
        self._is_complete = self._has_begun

    # --- the way on ----------------------------------------------------------------------------------

    def _give_on(self) -> Awaitable[None] | None:
        # Not from within the parser, which would hide what the reader raises.
        if self._is_head_due:
            self._is_head_due = False
            self._reader.head(self._parser.get_status_code(), self._media)
        if not self._parts:
            return None
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        return self._reader.body(data)

    def _hold(self, wait: Awaitable[None]) -> None:
        """Read nothing more until `wait` is over."""
        if self._transport is not None:
            self._transport.pause_reading()
        self._waiting = asyncio.ensure_future(wait)
        self._waiting.add_done_callback(self._go_on)

    def _go_on(self, waited: asyncio.Future[None]) -> None:
        self._waiting = None
        if waited.cancelled():
            self.over.cancel()
        elif (error := waited.exception()) is not None:
            self._fail(error)
        elif self._is_complete or self._reader.is_over:
            self._end(None)
        elif self._lost is not None:
            self._end(self._lost)
        elif self._transport is not None:
            self._transport.resume_reading()

    def _end(self, broken: OSError | None) -> None:
        if self.over.done():
            return
        try:
            if broken is not None and not self._has_begun:
                raise broken
            self._reader.end(broken)
        except Exception as error:  # noqa: BLE001 - whoever waits for this exchange has to hear of it
            self._fail(error)
        else:
            self.over.set_result(None)

    def _fail(self, error: BaseException) -> None:
        if not self.over.done():
            self.over.set_exception(error)
