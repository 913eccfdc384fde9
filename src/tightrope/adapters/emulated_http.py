"""HTTP/1.1 for an emulated engine: requests in, whole answers or streams out, a client that leaves.

Owns connections: keep-alive, requests one after the other, the limit of a body. As light as Python can be, because
emulated engines share the machine with what is measured over them. What is asked and answered is left to others.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

import httptools
import msgspec

BODY_LIMIT_BYTES = 16 * 2**20
JSON = "application/json"

_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n"
)


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request, read to its end. `is_local`: it came over the loopback address."""

    method: str
    path: str
    body: bytes
    is_local: bool


class Reply:
    """The answer to one request: either `send`, or `begin`, any number of `write`, and `end`."""

    __slots__ = ("_connection", "_keeps_alive", "on_gone")

    def __init__(self, connection: Connection, keeps_alive: bool) -> None:
        self._connection = connection
        self._keeps_alive = keeps_alive
        self.on_gone: Callable[[], None] | None = None
        """Called once if the client leaves before the end."""

    def send(self, status: int, body: bytes, content_type: str = JSON) -> None:
        """The whole answer at once."""
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {content_type}\r\n"
            f"content-length: {len(body)}\r\n{self._closing()}\r\n"
        )
        self._finish(head.encode() + body)

    def begin(self) -> None:
        """The head of a stream of events."""
        self._connection.write(_STREAM_HEAD + self._closing().encode() + b"\r\n")

    def write(self, data: bytes) -> None:
        """More of the stream; `data` is not empty."""
        self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self, data: bytes) -> None:
        """The last of the stream; `data` is not empty."""
        self._finish(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))

    def _closing(self) -> str:
        return "" if self._keeps_alive else "connection: close\r\n"

    def _finish(self, data: bytes) -> None:
        self.on_gone = None
        self._connection.write(data)
        self._connection.answered(self._keeps_alive)


class Connection(asyncio.Protocol):
    """One client. `handle` is called for each request, the next one only after the answer to the one before."""

    def __init__(self, handle: Callable[[HttpRequest, Reply], None]) -> None:
        self._handle = handle
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._is_local = False
        self._waiting: deque[tuple[HttpRequest, bool]] = deque()
        self._reply: Reply | None = None
        self._url, self._body = b"", bytearray()
        self._is_taking = False

    def write(self, data: bytes) -> None:
        """Bytes for the client; nothing if it is gone."""
        if self._transport is not None:
            self._transport.write(data)

    def answered(self, keeps_alive: bool) -> None:
        """The request in hand has its answer: take the next one, or close."""
        self._reply = None
        if not keeps_alive:
            self._waiting.clear()
            self._close()
        self._take()

    # --- what asyncio calls ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        # Transports of uvloop are no subclass.
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self._is_local = bool(peer) and ipaddress.ip_address(peer[0]).is_loopback

    def connection_lost(self, _: Exception | None) -> None:
        """The client has left."""
        self._transport = None
        self._waiting.clear()
        reply, self._reply = self._reply, None
        if reply is not None and reply.on_gone is not None:
            reply.on_gone()

    def data_received(self, data: bytes) -> None:
        """More of what it sends."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._refuse(400, f"this is no HTTP request: {error}")
        except httptools.HttpParserUpgrade:
            pass  # refused as soon as its head was read

    # --- what httptools calls ----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url, self._body = b"", bytearray()

    def on_url(self, url: bytes) -> None:
        """A piece of its target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; only one matters here."""
        if name.lower() == b"expect" and value.lower() == b"100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        self._body += body
        if len(self._body) > BODY_LIMIT_BYTES:
            self._body.clear()
            self._refuse(413, f"the body is larger than {BODY_LIMIT_BYTES} bytes; send less")

    def on_message_complete(self) -> None:
        """The request is read."""
        if self._transport is None:
            return
        if self._parser.should_upgrade():
            self._refuse(400, "this server speaks HTTP/1.1 only; leave the upgrade header out")
            return
        path = self._url.partition(b"?")[0].decode("latin-1")
        method = self._parser.get_method().decode("latin-1")
        request = HttpRequest(method, path, bytes(self._body), self._is_local)
        self._waiting.append((request, self._parser.should_keep_alive()))
        self._take()

    # --- inside ------------------------------------------------------------------------------------------

    def _take(self) -> None:
        """Hand on what waits, as long as each is answered at once."""
        if self._is_taking:
            return
        self._is_taking = True
        while self._waiting and self._reply is None:
            request, keeps_alive = self._waiting.popleft()
            self._reply = Reply(self, keeps_alive)
            self._handle(request, self._reply)
        self._is_taking = False

    def _refuse(self, status: int, message: str) -> None:
        """Answer what is no request, unless something else is being answered, and close."""
        if self._transport is None:
            return
        if self._reply is None:
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
            Reply(self, keeps_alive=False).send(status, msgspec.json.encode({"error": error}))
        else:
            self._close()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()
