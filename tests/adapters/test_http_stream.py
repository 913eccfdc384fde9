"""One answer over HTTP, as servers of every kind send it

1. What a server sends reaches the reader in order and whole, however it is cut and framed.
2. An answer that breaks off is told as broken, once; one whose framing says that it is whole is not.
3. A reader that is behind is given nothing more, and the server is made to wait.
4. Whatever the reader raises is raised by `post`; leaving closes the connection.
5. A connection is used again after a whole answer, and only then. A request that meets one which the server has
   closed is sent once more; one that was answered in part never is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tightrope.adapters.http_stream import HttpStreams, NotHttp, Origin, head_of_post

LIMIT_S = 30.0
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Reader:
    """Notes what it is told. `until` is what it waits for after each part; `stop_at` ends it."""

    def __init__(self, until: asyncio.Event | None = None, stop_at: bytes | None = None) -> None:
        self.heads: list[tuple[int, str]] = []
        self.data = bytearray()
        self.ends: list[OSError | None] = []
        self.is_over = False
        self.has_data = asyncio.Event()
        self.until, self.stop_at = until, stop_at

    def head(self, status: int, media: str) -> None:
        self.heads.append((status, media))

    def body(self, data: bytes) -> Awaitable[None] | None:
        self.data += data
        self.has_data.set()
        self.is_over = self.stop_at is not None and self.stop_at in self.data
        return None if self.until is None else self._wait(self.until)

    def end(self, broken: OSError | None) -> None:
        self.ends.append(broken)

    async def _wait(self, until: asyncio.Event) -> None:
        await until.wait()


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[tuple[HttpStreams, bytes]]:
    """A server that does what the script says after it has read a request of two bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # also the end of the test
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    origin = Origin.of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    streams = HttpStreams(origin)
    async with server:
        yield streams, head_of_post(origin, "/v1/x", {})
        await streams.close()


def sends(*parts: bytes, closes: bool = False) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        if not closes:
            await reader.read()

    return script


async def read(script: Script, reader: Reader | None = None) -> Reader:
    reader = reader or Reader()
    async with asyncio.timeout(LIMIT_S), serving(script) as (streams, head):
        await streams.post(head, b"{}", reader)
    return reader


ANSWER = CHUNKED + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        (ANSWER,),
        tuple(ANSWER[at : at + 1] for at in range(len(ANSWER))),
        (b"HTTP/1.1 100 Continue\r\n\r\n", ANSWER),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + ANSWER,),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\ncontent-type:text/event-stream\r\n\r\nhello", b" world"),
    ],
    ids=["at-once", "byte-by-byte", "after-100", "after-103", "with-length"],
)
async def test_1_an_answer_is_whole_however_it_comes(parts: tuple[bytes, ...]) -> None:
    reader = await read(sends(*parts))
    assert reader.heads == [(200, "text/event-stream")]
    assert reader.data == b"hello world"
    assert reader.ends == [None]


async def test_2_without_framing_the_end_of_the_connection_is_the_end_of_the_answer() -> None:
    reader = await read(sends(b"HTTP/1.0 200 OK\r\n\r\nhello", closes=True))
    assert bytes(reader.data) == b"hello"
    assert reader.ends == [None]


@pytest.mark.parametrize(
    "answer", [CHUNKED + b"5\r\nhel", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel"]
)
async def test_2_an_answer_that_breaks_off_is_broken(answer: bytes) -> None:
    reader = await read(sends(answer, closes=True))
    assert reader.data == b"hel"
    assert len(reader.ends) == 1
    assert isinstance(reader.ends[0], OSError)


async def test_2_no_answer_at_all_is_raised() -> None:
    reader = Reader()
    with pytest.raises(OSError, match="closed by the other side"):
        await read(sends(closes=True), reader)
    assert not reader.heads
    assert not reader.ends


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"]
)
async def test_2_what_is_no_http_is_raised(answer: bytes) -> None:
    with pytest.raises(NotHttp):
        await read(sends(answer))


async def test_3_a_reader_that_is_behind_makes_the_server_wait() -> None:
    sent = 0
    total = 64 * 2**20
    gate = asyncio.Event()
    reader = Reader(until=gate)

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while sent < total:
            writer.write(b"x" * 2**20)
            await writer.drain()
            sent += 2**20

    async with asyncio.timeout(LIMIT_S), serving(script) as (streams, head):
        call = asyncio.create_task(streams.post(head, b"{}", reader))
        await reader.has_data.wait()
        given = len(reader.data)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert len(reader.data) == given
        assert sent < total / 2
        gate.set()
        await call
    assert len(reader.data) == total
    assert reader.ends == [None]


async def test_3_what_came_before_a_break_is_told_after_the_reader_has_caught_up() -> None:
    gate = asyncio.Event()
    reader = Reader(until=gate)
    async with asyncio.timeout(LIMIT_S), serving(sends(ANSWER, closes=True)) as (streams, head):
        call = asyncio.create_task(streams.post(head, b"{}", reader))
        await reader.has_data.wait()
        await streams.close()
        await asyncio.sleep(0)
        assert not call.done()
        gate.set()
        await call
    assert bytes(reader.data) == b"hello world"
    assert len(reader.ends) == 1


async def test_4_a_reader_that_has_enough_ends_the_exchange() -> None:
    reader = await read(sends(CHUNKED, b"5\r\nhello\r\n"), Reader(stop_at=b"hel"))
    assert reader.ends == [None]


@pytest.mark.parametrize("when", ["head", "body", "later", "end"])
async def test_4_what_a_reader_raises_is_raised(when: str) -> None:
    class Fails(Reader):
        def head(self, status: int, media: str) -> None:
            self._fail("head")

        def body(self, data: bytes) -> Awaitable[None] | None:
            self._fail("body")
            return self._later()

        async def _later(self) -> None:
            self._fail("later")

        def end(self, broken: OSError | None) -> None:
            self._fail("end")

        def _fail(self, now: str) -> None:
            if now == when:
                raise LookupError(now)

    with pytest.raises(LookupError, match=when):
        await read(sends(ANSWER), Fails())


async def test_4_leaving_closes_the_connection() -> None:
    is_closed = asyncio.Event()
    reader = Reader()

    async def script(requests: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"5\r\nhello\r\n")
        try:
            await requests.read()
        finally:
            is_closed.set()

    async with asyncio.timeout(LIMIT_S), serving(script) as (streams, head):
        call = asyncio.create_task(streams.post(head, b"{}", reader))
        await reader.has_data.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await is_closed.wait()


WRITTEN = {
    "part": ANSWER[:-14],
    "ration": ANSWER.replace(b"\r\n", b"\r\nKeep-Alive: timeout=5, max=100\r\n", 1),
}
"""What is answered instead of the whole answer."""


class Counting:
    """A server that notes on which connection each request came, and does with the n-th request what `does[n]` says."""

    def __init__(self, *does: str) -> None:
        self.does = does
        self.requests: list[int] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        mine = self.connections
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(2)
                self.requests.append(mine)
                what = self.does[len(self.requests) - 1]
                if what == "vanish":
                    break
                writer.write(WRITTEN.get(what, ANSWER))
                await writer.drain()
                if what in ("part", "close"):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


async def asked(server: Counting, times: int, *, stop_at: bytes | None = None) -> list[Reader]:
    """So many requests, one after the other."""
    readers = [Reader(stop_at=stop_at) for _ in range(times)]
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    origin = Origin.of(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    streams = HttpStreams(origin)
    async with asyncio.timeout(LIMIT_S), listening:
        try:
            for reader in readers:
                await streams.post(head_of_post(origin, "/", {}), b"{}", reader)
        finally:
            await streams.close()
    return readers


@pytest.mark.parametrize("stop_at", [None, b"world"], ids=["to-the-end", "reader-has-enough"])
async def test_5_a_connection_is_used_again(stop_at: bytes | None) -> None:
    server = Counting("answer", "answer", "answer")
    readers = await asked(server, 3, stop_at=stop_at)
    assert server.requests == [1, 1, 1]
    assert all(bytes(reader.data) == b"hello world" and reader.ends == [None] for reader in readers)


async def test_5_a_connection_that_costs_the_server_a_thread_is_not_used_again() -> None:
    server = Counting("ration", "ration", "answer")
    readers = await asked(server, 3)
    assert server.requests == [1, 2, 3]
    assert all(bytes(reader.data) == b"hello world" for reader in readers)


async def test_5_a_connection_that_the_server_closes_after_each_answer_costs_nothing_but_itself() -> None:
    server = Counting("close", "close", "close")
    readers = await asked(server, 3)
    assert server.requests == [1, 2, 3]
    assert all(bytes(reader.data) == b"hello world" for reader in readers)


async def test_5_a_request_that_vanishes_on_a_used_connection_is_sent_once_more() -> None:
    server = Counting("answer", "vanish", "answer")
    readers = await asked(server, 2)
    assert server.requests == [1, 1, 2]
    assert [len(reader.heads) for reader in readers] == [1, 1]


async def test_5_a_request_that_vanishes_on_a_new_connection_is_not() -> None:
    server = Counting("answer", "vanish", "vanish", "answer")
    with pytest.raises(OSError, match="closed"):
        await asked(server, 2)
    assert server.requests == [1, 1, 2]


async def test_5_a_request_that_was_answered_in_part_is_not_sent_again() -> None:
    server = Counting("answer", "part", "answer")
    readers = await asked(server, 2)
    assert server.requests == [1, 1]
    assert isinstance(readers[1].ends[0], OSError)


async def test_5_a_server_that_closes_at_once_is_lost_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    listening = await asyncio.start_server(close, "127.0.0.1", 0)
    origin = Origin.of(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    streams = HttpStreams(origin)
    connect = streams._connect

    async def connect_and_dawdle() -> object:
        connection = await connect()
        while connection.lost is None:  # noqa: ASYNC110 - whoever is late finds it closed
            await asyncio.sleep(0)
        return connection

    monkeypatch.setattr(streams, "_connect", connect_and_dawdle)
    async with asyncio.timeout(LIMIT_S), listening:
        with pytest.raises(OSError, match=r"closed|reset"):
            await streams.post(head_of_post(origin, "/", {}), b"{}", Reader())


def test_an_address_names_its_place() -> None:
    origin = Origin.of("https://user@models.example:8443/api/v1")
    assert (origin.host, origin.port, origin.name) == ("models.example", 8443, "models.example:8443")
    assert origin.tls is not None
    plain = Origin.of("http://[::1]/v1")
    assert (plain.host, plain.port, plain.name, plain.tls) == ("::1", 80, "[::1]", None)
    for text in ("models.example", "ftp://models.example", "http://"):
        with pytest.raises(ValueError, match="no http"):
            Origin.of(text)
    with pytest.raises(ValueError, match="line break"):
        head_of_post(plain, "/", {"Authorization": "Bearer a\r\nX: y"})
