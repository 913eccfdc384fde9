"""
Laws of the client of a duel
1. A request is sent at its moment, whatever has become of those before it.
2. Times count from the start of the load, and the first content is what has words in it.
3. An answer is whole when it came to its end with all of its words; everything else is told by its kind.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager

from tightrope.bench.duel_client import Planned, Seen, planned_request, play

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def _event(text: str | None) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


def _chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


def _sends(*parts: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
        writer.close()

    return serve


@asynccontextmanager
async def _server(serve: Serve) -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def _planned(port: int, *moments_s: float, answer_bytes: int = 8) -> list[Planned]:
    lines: Sequence[dict[str, object]] = [
        {
            "run": f"run-{at}",
            "at_s": at_s,
            "headers": {"x-a": "1"},
            "body": {"q": 1},
            "answer_bytes": answer_bytes,
        }
        for at, at_s in enumerate(moments_s)
    ]
    return [planned_request(json.dumps(line), "127.0.0.1", port) for line in lines]


async def _seen(serve: Serve, answer_bytes: int = 8, patience_s: float = 10.0) -> Seen:
    async with _server(serve) as port:
        planned = _planned(port, 0.0, answer_bytes=answer_bytes)
        (one,) = await play(planned, "127.0.0.1", port, patience_s)
    return one


async def test_1_a_request_is_sent_although_the_first_is_never_answered() -> None:
    came = asyncio.Event()
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        await reader.readuntil(b"\r\n\r\n")
        count += 1
        if count == 1:
            await came.wait()
        else:
            came.set()
            writer.write(HEAD + _chunked(_event("four"), _event("more"), DONE))
            await writer.drain()
        writer.close()

    async with _server(serve) as port:
        first, second = await play(_planned(port, 0.0, 0.01), "127.0.0.1", port, 10.0)
    assert (first.ending, second.ending) == ("broken", "whole")
    assert first.sent_s is not None
    assert second.sent_s is not None
    assert second.sent_s >= 0.01


async def test_2_the_first_content_is_what_has_words() -> None:
    gate = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + _chunked(_event(""), _event(None))[:-5])  # without the chunk that ends all
        await writer.drain()
        gate.set()
        writer.write(_chunked(_event("four"), _event("more"), DONE))
        await writer.drain()
        writer.close()

    one = await _seen(serve)
    assert gate.is_set()
    assert one.ending == "whole"
    assert one.text_bytes == 8
    assert one.sent_s is not None
    assert one.first_s is not None
    assert one.end_s is not None
    assert 0 <= one.sent_s <= one.first_s <= one.end_s


async def test_2_events_may_be_cut_anywhere() -> None:
    whole = _event("four") + _event("more") + DONE
    pieces = [whole[at : at + 3] for at in range(0, len(whole), 3)]
    assert (await _seen(_sends(HEAD, _chunked(*pieces)))).ending == "whole"
    assert (await _seen(_sends(PLAIN, *pieces))).ending == "whole"


async def test_3_an_answer_that_is_too_short_is_broken() -> None:
    one = await _seen(_sends(HEAD, _chunked(_event("four"), DONE)), answer_bytes=80)
    assert (one.ending, one.message) == ("broken", "4 of 80 bytes")


async def test_3_an_answer_without_its_end_is_broken() -> None:
    one = await _seen(_sends(HEAD + _chunked(_event("four"), _event("more"))[:-5]))
    assert one.ending == "broken"
    assert one.text_bytes == 8


async def test_3_an_error_in_the_stream_breaks_it() -> None:
    error = b'data: {"error": {"message": "the replica was lost"}}\n\n'
    one = await _seen(_sends(HEAD, _chunked(_event("four"), _event("more"), error, DONE)))
    assert one.ending == "broken"
    assert "the replica was lost" in one.message


async def test_3_another_status_is_a_refusal() -> None:
    one = await _seen(_sends(b"HTTP/1.1 429 Too Many\r\nContent-Length: 4\r\n\r\nlater"))
    assert (one.ending, one.message) == ("refused", "429 later")


async def test_3_a_system_that_is_not_there_breaks_it() -> None:
    async with _server(_sends()) as port:
        pass
    (one,) = await play(_planned(port, 0.0), "127.0.0.1", port, 10.0)
    assert one.ending == "broken"
    assert "Connect" in one.message


async def test_3_what_takes_longer_than_the_client_waits_is_unfinished() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client leaves
        writer.close()

    one = await _seen(serve, patience_s=0.01)
    assert one.ending == "unfinished"
    assert one.end_s is None
