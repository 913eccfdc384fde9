"""The official OpenAI client against a real server on a real socket cannot tell the difference."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import uvicorn
from openai import AsyncOpenAI

from tests.gateway.world import (
    HELLO,
    LIMIT_S,
    Script,
    World,
    chat,
    completion_piece,
    finish,
    is_silent,
    piece,
    says,
    until,
)
from tightrope.gateway.app import Settings
from tightrope.gateway.server import Protocol
from tightrope.model.errors import Rejected
from tightrope.model.outcome import FailureKind, Outcome
from tightrope.runtime.client import RunHandle, RunRequest

ASK = [{"role": "user", "content": "How are you?"}]


@pytest.fixture
def world() -> World:
    return World(settings=Settings(stall_s=0.3))


@pytest.fixture(params=["httptools", Protocol], ids=["any-server", "own-protocol"])
async def address(world: World, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        # A connection is not closed for being idle: a request that is sent just then would fail.
        config = uvicorn.Config(
            world.app, http=request.param, lifespan="off", ws="none", log_level="error", access_log=False,
            timeout_keep_alive=600,
        )  # fmt: skip
        server = uvicorn.Server(config)
        serving = asyncio.ensure_future(server.serve([listening]))
        await until(lambda: server.started)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        server.should_exit = True
        await serving


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=address, api_key="tenant:shop", max_retries=0) as opened:
        yield opened


async def test_a_stream_is_read_to_its_end(client: Any) -> None:
    stream = await client.chat.completions.create(
        model="workflow/rag", messages=ASK, stream=True, stream_options={"include_usage": True}
    )  # fmt: skip
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (20, 5)


async def test_a_stream_without_usage_has_none(client: Any) -> None:
    stream = await client.chat.completions.create(model="small", messages=ASK, stream=True)
    assert [(chunk.usage, len(chunk.choices)) async for chunk in stream] == [(None, 1)] * 4


async def test_a_whole_answer(client: Any) -> None:
    raw = await client.chat.completions.with_raw_response.create(model="workflow/rag", messages=ASK)
    answer = raw.parse()
    assert answer.choices[0].message.content == "Hello"
    assert (answer.object, answer.choices[0].finish_reason) == ("chat.completion", "stop")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert answer._request_id == raw.headers["x-request-id"]


async def test_completions_streamed_and_whole(client: Any, world: World) -> None:
    world.runs.script = says(
        (completion_piece("Once"), completion_piece(" more"), completion_piece("", "stop"))
    )
    whole = await client.completions.create(model="small", prompt="x")
    assert whole.choices[0].text == "Once more"
    stream = await client.completions.create(model="small", prompt="x", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Once more"


async def test_the_models_are_listed(client: Any) -> None:
    assert [model.id async for model in client.models.list()] == ["small", "workflow/rag"]


async def test_tool_calls_reach_the_client(client: Any, world: World) -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    world.runs.script = says((piece({"role": "assistant", "tool_calls": [call]}), piece({}, "tool_calls")))
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    whole = await client.chat.completions.create(model="small", messages=ASK, tools=tools)
    assert whole.choices[0].message.tool_calls[0].function.arguments == '{"x":1}'
    async with client.chat.completions.stream(model="small", messages=ASK) as stream:
        final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].function.name == "f"


def fails(failure: FailureKind) -> Script:
    return says((), finish(Outcome.FAILED, failure=failure))


def refuses(code: str) -> Script:
    def script(_: RunHandle, __: RunRequest) -> None:
        raise Rejected(code, "not now", 0.001)

    return script


@pytest.mark.parametrize(
    ("script", "kind", "code"),
    [
        (refuses("queue_full"), openai.RateLimitError, "queue_full"),
        (refuses("no_replica"), openai.InternalServerError, "no_replica"),
        (fails(FailureKind.CONTEXT_TOO_LONG), openai.BadRequestError, "context_too_long"),
        (fails(FailureKind.REPLICA_LOST), openai.InternalServerError, "replica_lost"),
        (says((), finish(Outcome.EXPIRED)), openai.InternalServerError, "deadline_exceeded"),
    ],
)
@pytest.mark.parametrize("is_streamed", [True, False])
async def test_errors_are_of_the_right_class(
    client: Any,
    world: World,
    script: Script,
    kind: type[openai.APIStatusError],
    code: str,
    is_streamed: bool,
) -> None:
    world.runs.script = script
    with pytest.raises(kind) as raised:
        await client.chat.completions.create(model="small", messages=ASK, stream=is_streamed)
    assert raised.value.code == code


async def test_wrong_names_and_keys_are_of_the_right_class(client: Any) -> None:
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="none", messages=ASK)
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="nobody").models.list()
    with pytest.raises(openai.PermissionDeniedError):
        await client.with_options(api_key="metrics:shop").models.list()


async def test_a_stream_that_breaks_raises(client: Any, world: World) -> None:
    world.runs.script = says(HELLO[:2], finish(Outcome.FAILED, failure=FailureKind.REPLICA_LOST))
    stream = await client.chat.completions.create(model="small", messages=ASK, stream=True)
    assert await anext(stream)
    assert (await anext(stream)).choices[0].delta.content == "Hel"
    with pytest.raises(openai.APIError, match="A replica was lost"):
        await anext(stream)


async def test_the_client_asks_again_when_told_to_and_only_then(client: Any, world: World) -> None:
    patient = client.with_options(max_retries=2)
    world.runs.script = refuses("queue_full")
    with pytest.raises(openai.RateLimitError):
        await patient.chat.completions.create(model="small", messages=ASK)
    assert len(world.runs.requests) == 3
    world.runs.script = fails(FailureKind.ENGINE_ERROR)
    with pytest.raises(openai.InternalServerError):
        await patient.chat.completions.create(model="small", messages=ASK)
    assert len(world.runs.requests) == 4


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_client_that_gives_up_cancels_its_run(client: Any, world: World, is_streamed: bool) -> None:
    world.runs.script = is_silent
    asking = asyncio.ensure_future(
        client.chat.completions.create(model="small", messages=ASK, stream=is_streamed)
    )
    await asyncio.wait_for(world.runs.submitted.wait(), LIMIT_S)
    asking.cancel()
    await until(lambda: bool(world.runs.cancelled))
    assert world.runs.handles[0].finish is not None


async def test_a_stream_that_is_closed_early_cancels_its_run(client: Any, world: World) -> None:
    def script(handle: RunHandle, _: RunRequest) -> None:
        for chunk in HELLO[:2]:
            handle.push(chunk)

    world.runs.script = script
    stream = await client.chat.completions.create(model="small", messages=ASK, stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content == "Hel":
            break
    await stream.close()
    await until(lambda: bool(world.runs.cancelled))


async def test_answers_in_a_row_share_a_connection(client: Any, world: World) -> None:
    for _ in range(5):
        await client.chat.completions.create(model="small", messages=ASK)
    assert len(world.runs.requests) == 5


async def test_a_socket_that_nobody_reads_loses_its_run(address: str, world: World) -> None:
    world.runs.script = is_silent
    host, port = address.removeprefix("http://").removesuffix("/v1").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    body = json.dumps(chat(stream=True))
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer tenant:shop\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
    await asyncio.wait_for(world.runs.submitted.wait(), LIMIT_S)
    for _ in range(30):
        world.runs.handles[0].push(piece({"content": "x" * 1_000_000}))
    await until(lambda: bool(world.runs.cancelled))
    assert not reader.at_eof()
    writer.close()
