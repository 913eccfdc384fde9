"""HTTP/1.1 POSTs whose answers are given on while they come.

Answers of engines come in thousands of pieces of a few hundred bytes, so a piece costs one callback here: it
wakes no task and waits in no queue. Owns the connection and the framing of HTTP; what the bytes mean is the
reader's.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

CONNECT_LIMIT_S = 5.0
REUSE_WITHIN_S = 2.0
"""A connection that was idle for longer is not used again: servers close theirs after five seconds and more."""
_LINGER_S = 1.0
"""How long the last bytes of an answer may take of which everything that matters has come."""


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
    lines = [f"POST {path} HTTP/1.1", f"Host: {origin.name}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header of a request has a line break in it")
    return "\r\n".join([*lines, "Content-Length: "]).encode("latin-1")


class HttpStreams:
    """Exchanges with one server, each on a connection that no other uses meanwhile.

    A server may close an idle connection, and a request sent just then looks as if the server had died. So one that
    fails on a used connection before any answer is sent once more, on a new one.

    A server that says for how long it keeps a connection (`Keep-Alive`), as llama.cpp does, mostly gives each a thread,
    of which it has few. Its connections are closed after each answer.
    """

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._open: set[_Connection] = set()
        self._idle: list[_Connection] = []

    async def post(self, head: bytes, body: bytes, reader: AnswerReader) -> None:
        """Send one request and give its answer to `reader`; returns when the reader or the answer is over.

        Sets no limit on how long that takes. Cancelling it closes the connection at once. Raises OSError when the
        connection fails before an answer has begun, NotHttp, and what the reader raises.
        """
        request = b"%b%d\r\n\r\n%b" % (head, len(body), body)
        used = self._take_idle()
        if used is not None:
            exchange = _Exchange(used, reader)
            try:
                await self._play(exchange, request)
            except OSError:
                if exchange.has_answer or exchange.is_broken_off:
                    raise
            else:
                return
        await self._play(_Exchange(await self._connect(), reader), request)

    async def close(self) -> None:
        """Break off everything that is under way, and give every connection back."""
        for connection in list(self._open):
            if connection.exchange is not None:
                connection.exchange.break_off(ConnectionAbortedError("the connection was closed here"))
            connection.abort()
        await asyncio.sleep(0)  # a transport lets go of its socket in the next turn of the loop

    async def _play(self, exchange: _Exchange, request: bytes) -> None:
        try:
            if exchange.connection.lost is not None:  # in the moment in which it was made
                raise exchange.connection.lost
            exchange.connection.write(request)
            await exchange.over
        finally:
            exchange.leave(self._park)

    async def _connect(self) -> _Connection:
        origin = self._origin
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self._open, self._idle), origin.host, origin.port, ssl=origin.tls
                )
        except TimeoutError as error:
            raise TimeoutError(f"no connection within {CONNECT_LIMIT_S:g} s") from error
        return connection

    def _take_idle(self) -> _Connection | None:
        """The one that was used last, if that was just now."""
        self._drop_stale()
        return self._idle.pop() if self._idle else None

    def _park(self, connection: _Connection) -> None:
        self._drop_stale()
        connection.park()

    def _drop_stale(self) -> None:
        while self._idle and self._idle[0].is_stale:
            self._idle.pop(0).abort()


class _Connection(asyncio.Protocol):
    """One connection and the exchange that is on it, if there is one. While it is open it is in `open_ones`, and in
    `idle` while it waits for an exchange.
    """

    def __init__(self, open_ones: set[_Connection], idle: list[_Connection]) -> None:
        self.exchange: _Exchange | None = None
        self.lost: OSError | None = None
        self._open, self._idle = open_ones, idle
        self._loop = asyncio.get_running_loop()
        self._parked_s = 0.0
        self._transport: asyncio.Transport | None = None

    @property
    def is_stale(self) -> bool:
        """Whether it has been idle for so long that the other side may be about to close it."""
        return self._loop.time() - self._parked_s > REUSE_WITHIN_S

    def park(self) -> None:
        """Wait for another exchange."""
        self.exchange = None
        if self.lost is None:
            self._parked_s = self._loop.time()
            self._idle.append(self)

    def write(self, data: bytes) -> None:
        """Send it."""
        if self._transport is not None:
            self._transport.write(data)

    def pause(self) -> None:
        """Read nothing more."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Go on reading."""
        if self._transport is not None:
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    # --- what asyncio calls --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A request can be sent."""
        self._open.add(self)
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """A part of an answer; of none, if nobody has asked."""
        if self.exchange is None:
            self.abort()
        else:
            self.exchange.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side has closed, or the connection failed."""
        self._open.discard(self)
        self.lost = (
            exc if isinstance(exc, OSError) else ConnectionResetError("it was closed by the other side")
        )
        if self.exchange is not None:
            self.exchange.lose(self.lost, is_orderly=exc is None)
        if self in self._idle:
            self._idle.remove(self)


class _Exchange:
    """Feeds what comes through the parser of HTTP to the reader. `over` is done at the end.

    `has_answer`: something has come; `is_broken_off`: it was ended from here.
    """

    def __init__(self, connection: _Connection, reader: AnswerReader) -> None:
        self.connection = connection
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.has_answer = self.is_broken_off = False
        self._reader = reader
        self._parser = httptools.HttpResponseParser(self)
        self._waiting: asyncio.Future[None] | None = None
        self._lost: OSError | None = None
        self._park: Callable[[_Connection], None] | None = None
        self._media = ""
        self._parts: list[bytes] = []
        self._has_begun = self._is_head_due = False
        self._is_framed = self._is_rationed = False
        self._is_complete = self._keeps_alive = False
        connection.exchange = self

    def leave(self, park: Callable[[_Connection], None]) -> None:
        """Nobody waits for it any more. The connection is parked as soon as all has come, if it may be used again;
        else it is closed at once, in the middle of an answer too: that tells the server that nobody reads it.
        """
        is_well = self.over.done() and not self.over.cancelled() and self.over.exception() is None
        self.over.cancel()
        if self._waiting is not None:
            self._waiting.cancel()
        if not is_well or not self._is_framed or self._is_rationed or self._lost is not None:
            self.connection.abort()
        elif self._is_complete:
            self._end_with(park)
        else:
            self._park = park
            asyncio.get_running_loop().call_later(_LINGER_S, self._stop_lingering)

    def break_off(self, error: OSError) -> None:
        """End as if the connection had failed."""
        self.is_broken_off = True
        self._lost = self._lost or error
        if self._waiting is None:
            self._end(self._lost)

    def feed(self, data: bytes) -> None:
        """One piece of the answer, or several."""
        self.has_answer = True
        if self._park is not None:
            self._linger(data)
            return
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

    def lose(self, error: OSError, *, is_orderly: bool) -> None:
        """The connection is gone; without framing that is the end of the answer if the other side closed it."""
        self._lost = self._lost or error
        if is_orderly and self._has_begun and not self._is_framed:
            self._is_complete = True
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
        elif key == b"keep-alive":
            self._is_rationed = True

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._parts.append(body)

    def on_headers_complete(self) -> None:
        """Informational answers (1xx) are passed over."""
        if not self._has_begun and self._parser.get_status_code() >= 200:
            self._has_begun = self._is_head_due = True

    def on_message_complete(self) -> None:
        """The framing says that the body has ended."""
        if self._has_begun:
            self._is_complete = True
            self._keeps_alive = self._parser.should_keep_alive()

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
        self.connection.pause()
        self._waiting = asyncio.ensure_future(wait)
        self._waiting.add_done_callback(self._go_on)

    def _go_on(self, waited: asyncio.Future[None]) -> None:
        self._waiting = None
        if waited.cancelled():
            self.over.cancel()
            return
        self.connection.resume()
        if (error := waited.exception()) is not None:
            self._fail(error)
        elif self._is_complete or self._reader.is_over:
            self._end(None)
        elif self._lost is not None:
            self._end(self._lost)

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

    # --- after the end -------------------------------------------------------------------------------

    def _linger(self, data: bytes) -> None:
        """What is left of an answer that nobody needs any more."""
        park, self._parts = self._park, []
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.connection.abort()
            return
        if self._is_complete and park is not None:
            self._end_with(park)

    def _end_with(self, park: Callable[[_Connection], None]) -> None:
        self._park = None
        if self._keeps_alive:
            park(self.connection)
        else:
            self.connection.abort()

    def _stop_lingering(self) -> None:
        if self._park is not None:
            self._park = None
            self.connection.abort()
