"""Laws of a stream

1. Nothing is on the wire before the output has begun, so a failure until then has a status code.
2. After a while of silence the head and a comment go out; from then on errors are in the stream.
3. `[DONE]` means success and nothing else.
4. A client that leaves cancels its run, before the first byte and after it, streamed or not.
5. A reader that stalls holds the run back, and loses it in the end.
"""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.gateway.world import (
    HELLO,
    LIMIT_S,
    USAGE_PIECE,
    Caller,
    FakeRuns,
    World,
    chat,
    finish,
    is_silent,
    piece,
    until,
)
from tightrope.gateway.app import Settings
from tightrope.gateway.wire import COMMENT, DONE
from tightrope.model.outcome import FailureKind, Outcome
from tightrope.runtime.client import Chunk, RunHandle

QUICK = Settings(keepalive_s=0.01)
LOST = finish(Outcome.FAILED, failure=FailureKind.REPLICA_LOST, message="replica big-3 is gone")


def silent_world(settings: Settings | None = None) -> World:
    return World(FakeRuns(is_silent), settings=settings or Settings())


async def calling(world: World, **fields: object) -> tuple[Caller, RunHandle]:
    """A streamed request whose run has begun and said nothing yet."""
    caller = Caller(world.app, chat(**{"stream": True, **fields}))
    await asyncio.wait_for(world.runs.submitted.wait(), LIMIT_S)
    return caller, world.runs.handles[0]


async def rest(caller: Caller) -> bytes:
    """Everything until the answer is complete."""
    parts = []
    while True:
        message = await caller.next()
        parts.append(message.get("body", b""))
        if message["type"] == "http.response.body" and not message["more_body"]:
            await caller.end()
            return b"".join(parts)


async def test_1_a_failure_before_the_output_has_a_status() -> None:
    caller, handle = await calling(silent_world())
    handle.end(LOST)
    status, headers = await caller.head()
    assert (status, headers["content-type"]) == (502, "application/json")
    assert json.loads(await caller.part())["error"]["code"] == "replica_lost"
    await caller.end()


async def test_1_the_head_goes_out_with_the_first_content() -> None:
    caller, handle = await calling(silent_world())
    for _ in range(20):
        await asyncio.sleep(0)
    assert caller.sent.empty()
    handle.push(HELLO[0])
    handle.push(HELLO[1])
    status, headers = await caller.head()
    assert status == 200
    assert "ttft;dur=" in headers["server-timing"]
    assert b'"Hel"' in await caller.part()
    handle.end(finish())
    assert (await rest(caller)).endswith(DONE)


async def test_2_silence_is_broken_by_the_head_and_comments() -> None:
    caller, handle = await calling(silent_world(QUICK))
    status, headers = await caller.head()
    assert (status, "ttft" in headers["server-timing"]) == (200, False)
    assert await caller.part() == COMMENT
    assert await caller.part() == COMMENT
    handle.end(LOST)
    sent = (await rest(caller)).replace(COMMENT, b"")
    event = json.loads(sent.removeprefix(b"data: "))
    assert event["error"]["code"] == "replica_lost"
    assert DONE not in sent


async def test_2_comments_do_not_stand_inside_events() -> None:
    caller, handle = await calling(silent_world(QUICK))
    assert await caller.head()
    for chunk in HELLO:
        handle.push(chunk)
        assert await caller.part()
    handle.end(finish())
    blocks = (await rest(caller)).split(b"\n\n")
    assert all(block.startswith((b"data: ", b": ")) for block in blocks if block)


async def test_3_a_stream_that_breaks_ends_with_its_error() -> None:
    caller, handle = await calling(silent_world())
    handle.push(piece({"role": "assistant", "content": "Hel"}))
    await caller.head()
    handle.end(LOST)
    sent = await rest(caller)
    last = json.loads(sent.strip().rpartition(b"data: ")[2])
    assert last["error"]["usage"] == {"prompt_tokens": 20, "completion_tokens": 5}
    assert DONE not in sent


async def test_3_a_broken_runtime_does_not_look_like_success(caplog: pytest.LogCaptureFixture) -> None:
    caller, handle = await calling(silent_world(), model="small")
    handle.push(HELLO[1])
    await caller.head()
    handle.push(Chunk("x", "no bytes", True))  # type: ignore[arg-type]
    sent = await rest(caller)
    assert DONE not in sent
    assert b"internal_error" in sent
    assert "the stream broke" in caplog.text


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_4_leaving_before_the_first_byte_cancels(is_streamed: bool) -> None:
    world = silent_world()
    caller, handle = await calling(world, stream=is_streamed)
    caller.leave()
    await caller.end()
    assert world.runs.cancelled == ["the client has left"]
    assert handle.finish is not None
    assert caller.sent.empty()


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_4_leaving_in_the_middle_cancels(is_streamed: bool) -> None:
    world = silent_world()
    caller, handle = await calling(world, stream=is_streamed)
    handle.push(HELLO[1])
    if is_streamed:
        await caller.head()
        await caller.part()
    caller.leave()
    await caller.end()
    assert len(world.runs.cancelled) == 1


async def test_4_a_thousand_clients_that_leave_leave_nothing() -> None:
    world = silent_world()
    callers = [Caller(world.app, chat(stream=bool(number % 2))) for number in range(1000)]
    await until(lambda: len(world.runs.handles) == 1000)
    before = len(asyncio.all_tasks())
    for number, (caller, handle) in enumerate(zip(callers, world.runs.handles, strict=True)):
        if number % 3:
            handle.push(HELLO[1])
        caller.leave()
    await asyncio.wait_for(asyncio.gather(*(caller.task for caller in callers)), LIMIT_S)
    assert all(handle.finish is not None for handle in world.runs.handles)
    assert len(world.runs.cancelled) == 1000
    assert len(asyncio.all_tasks()) <= before - 1000


async def test_4_the_end_of_an_answer_cancels_nothing() -> None:
    world = World()
    caller = Caller(world.app, chat(stream=True))
    assert (await rest(caller)).endswith(DONE)
    assert world.runs.cancelled == []


async def test_4_a_request_that_is_given_up_by_the_server_cancels_its_run() -> None:
    world = silent_world()
    caller, _ = await calling(world)
    caller.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller.task
    assert len(world.runs.cancelled) == 1


async def test_5_a_stalled_reader_holds_the_run_back_then_gets_everything() -> None:
    world = silent_world()
    caller, handle = await calling(world)
    caller.reading.clear()
    big = piece({"content": "x" * 100_000})
    for _ in range(3):
        handle.push(big)
    assert handle.is_full
    for _ in range(20):
        await asyncio.sleep(0)
    handle.push(big)
    for _ in range(20):
        await asyncio.sleep(0)
    assert caller.sent.empty()
    caller.reading.set()
    handle.end(finish())
    sent = await rest(caller)
    assert sent.count(b"x" * 100_000) == 4
    assert sent.endswith(DONE)


async def test_5_a_reader_that_stalls_too_long_loses_the_run() -> None:
    world = silent_world(Settings(stall_s=0.01))
    caller, handle = await calling(world)
    caller.reading.clear()
    handle.push(HELLO[1])
    await caller.end()
    assert len(world.runs.cancelled) == 1


async def test_the_patience_of_a_client_ends_its_stream() -> None:
    world = silent_world()
    caller = Caller(world.app, chat(stream=True), {"x-stainless-read-timeout": "0.01"})
    status, _ = await caller.head()
    assert status == 504
    assert json.loads(await caller.part())["error"]["code"] == "deadline_exceeded"
    assert world.runs.cancelled == ["the client's patience ended"]
    await caller.end()


async def test_patience_begins_anew_with_every_byte() -> None:
    world = silent_world(QUICK)
    caller = Caller(world.app, chat(stream=True), {"x-stainless-read-timeout": "60"})
    assert (await caller.head())[0] == 200
    handle = world.runs.handles[0]
    for _ in range(3):
        assert await caller.part() == COMMENT
    for chunk in (*HELLO, USAGE_PIECE):
        handle.push(chunk)
    handle.end(finish())
    assert (await rest(caller)).endswith(DONE)
