"""Laws of the client's line

1. A piece is sent in the moment it comes, before any task runs, once the answer has begun.
2. What a client is sent is the same, whoever sends it: the line or the task of the request.
3. While a client is behind, pieces wait, and come in order when it reads again.
4. A client that leaves ends all that it has asked for, what waits behind another request included.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from tests.gateway.world import (
    HELLO,
    FakeRuns,
    World,
    chat,
    completion_piece,
    finish,
    is_silent,
    piece,
    until,
)
from tightrope.gateway.app import Settings
from tightrope.gateway.server import Protocol
from tightrope.runtime.client import Chunk


class Wire(asyncio.Transport):
    """A connection that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    @property
    def body(self) -> bytes:
        """What came after the head, without its framing."""
        _, _, rest = b"".join(self.written).partition(b"\r\n\r\n")
        parts = []
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            parts.append(rest[: int(size, 16)])
            rest = rest[int(size, 16) + 2 :]
        return b"".join(parts)


class Client:
    """One connection to the application, without a socket. `is_own`: by our own protocol."""

    def __init__(self, world: World, *, is_own: bool = True) -> None:
        kind: Any = Protocol if is_own else "httptools"
        config = uvicorn.Config(
            world.app, http=kind, log_level="error", access_log=False, lifespan="off", ws="none"
        )
        config.load()
        self.wire = Wire()
        self.protocol: Any = config.http_protocol_class(config, ServerState(), {})  # type: ignore[call-arg]
        self.protocol.connection_made(self.wire)

    def ask(self, **fields: object) -> None:
        body = json.dumps(chat(**{"stream": True, **fields})).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer tenant:shop\r\n"
        self.protocol.data_received(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))


def silent_world() -> World:
    return World(FakeRuns(is_silent))


async def begun(world: World, client: Client, **fields: object) -> None:
    """A stream whose first piece is out."""
    client.ask(**fields)
    await until(lambda: bool(world.runs.handles))
    world.runs.handles[0].push(HELLO[1])
    await until(lambda: b"Hel" in b"".join(client.wire.written))
    for _ in range(5):
        await asyncio.sleep(0)


async def test_1_a_piece_is_sent_in_the_moment_it_comes() -> None:
    world = silent_world()
    client = Client(world)
    await begun(world, client)
    world.runs.handles[0].push(HELLO[2])
    assert b'"lo"' in client.wire.body
    world.runs.handles[0].end(finish())
    await until(lambda: client.wire.body.endswith(b"[DONE]\n\n"))


PIECES = (
    *HELLO,
    piece({"content": "a\nb"}),
    completion_piece("c"),
    Chunk("", b"[]", False),
    Chunk("d", b'[{"index": 0,\n"delta": {"content": "d"}}]', True),
)


@pytest.mark.parametrize("model", ["small", "workflow/rag"])
@pytest.mark.parametrize(
    "pieces", [PIECES, PIECES[::-1], PIECES[3:], ()], ids=["all", "back", "late", "none"]
)
async def test_2_what_is_sent_does_not_depend_on_who_sends(pieces: Sequence[Chunk], model: str) -> None:
    bodies = []
    for is_own in (True, False):
        world = silent_world()
        client = Client(world, is_own=is_own)
        client.ask(model=model, stream_options={"include_usage": True})
        await until(lambda world=world: bool(world.runs.handles))  # type: ignore[misc]
        for chunk in pieces:
            world.runs.handles[0].push(chunk)
            for _ in range(4):
                await asyncio.sleep(0)
        world.runs.handles[0].end(finish())
        await until(lambda client=client: client.wire.body.endswith(b"[DONE]\n\n"))  # type: ignore[misc]
        created = json.loads(client.wire.body.partition(b"data: ")[2].partition(b"\n")[0])["created"]
        bodies.append(client.wire.body.replace(b'"created":%d' % created, b'"created":0'))
    assert bodies[0] == bodies[1]


async def test_2_a_server_without_a_line_is_served_as_asgi_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tightrope.gateway.server._is_as_known", lambda _: False)
    world = World()
    client = Client(world)
    client.ask()
    await until(lambda: client.wire.body.endswith(b"[DONE]\n\n"))
    assert b'"Hel"' in client.wire.body


async def test_3_pieces_wait_for_a_client_that_is_behind() -> None:
    world = silent_world()
    client = Client(world)
    await begun(world, client)
    client.protocol.pause_writing()
    before = len(client.wire.written)
    for number in range(5):
        world.runs.handles[0].push(piece({"content": f"<{number}>"}))
        await asyncio.sleep(0)
    assert len(client.wire.written) == before
    client.protocol.resume_writing()
    await until(lambda: b"<4>" in client.wire.body)
    await asyncio.sleep(0)
    world.runs.handles[0].push(piece({"content": "<5>"}))
    world.runs.handles[0].end(finish())
    await until(lambda: client.wire.body.endswith(b"[DONE]\n\n"))
    places = [client.wire.body.index(b"<%d>" % number) for number in range(6)]
    assert places == sorted(places)


async def test_3_a_client_that_stays_behind_loses_its_run() -> None:
    world = World(FakeRuns(is_silent), settings=Settings(stall_s=0.01))
    client = Client(world)
    await begun(world, client)
    client.protocol.pause_writing()
    world.runs.handles[0].push(HELLO[2])
    await until(lambda: bool(world.runs.cancelled))


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_4_a_client_that_leaves_ends_its_run(is_streamed: bool) -> None:
    world = silent_world()
    client = Client(world)
    client.ask(stream=is_streamed)
    await until(lambda: bool(world.runs.handles))
    client.protocol.connection_lost(None)
    await until(lambda: bool(world.runs.cancelled))


async def test_4_a_client_that_leaves_after_the_answer_has_begun_ends_its_run() -> None:
    world = silent_world()
    client = Client(world)
    await begun(world, client)
    client.protocol.connection_lost(ConnectionResetError())
    world.runs.handles[0].push(HELLO[2])
    await until(lambda: bool(world.runs.cancelled))
    assert b'"lo"' not in client.wire.body


async def test_4_a_client_that_leaves_with_a_second_request_in_line_ends_its_run() -> None:
    world = silent_world()
    client = Client(world)
    await begun(world, client)
    client.ask()
    client.protocol.connection_lost(None)
    await until(lambda: bool(world.runs.cancelled))
    assert len(world.runs.handles) == 1


async def test_4_requests_in_a_row_leave_no_lines_behind() -> None:
    world = World()
    client = Client(world)
    for number in range(3):
        client.ask()
        await until(lambda number=number: b"".join(client.wire.written).count(b"[DONE]") == number + 1)  # type: ignore[misc]
        await asyncio.sleep(0)
    assert len(client.protocol._lines) == 1
