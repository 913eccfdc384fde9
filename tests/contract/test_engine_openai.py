"""The OpenAI engine on the scripted server: the contract of engines, and every way an answer goes wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import pytest
from aiohttp import web

from tests.contract.engine_contract import (
    CONTEXT_TOKENS,
    SLOTS,
    EngineContract,
    EngineUnderTest,
    a_chat,
    a_completion,
    answer,
    broken_answer,
    failure,
    text_of,
    until,
)
from tightrope.adapters.engine_openai import EVENT_LIMIT_BYTES, OpenAIEngine
from tightrope.adapters.engine_process import free_port
from tightrope.model.errors import EngineFailed
from tightrope.model.outcome import FailureKind, Usage
from tightrope.ports import EngineFacts, EngineRequest, Message
from tightrope.testing import answer_to
from tightrope.testing.server import Fault, ScriptedServer

PROMPT = "tell me of the harbour at dawn, and of the boats"


class TestOpenAIEngineOnTheScriptedServer(EngineContract):
    @pytest.fixture
    async def tested(self) -> AsyncIterator[EngineUnderTest]:
        async with ScriptedServer(slots=SLOTS, context_tokens=CONTEXT_TOKENS, delay_ms=1.0) as server:
            engine = OpenAIEngine(server.url)

            async def in_flight() -> int:
                return server.in_flight

            yield EngineUnderTest(engine, in_flight)
            await engine.close()


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as server:
        yield server


@pytest.fixture
async def engine(server: ScriptedServer) -> AsyncIterator[OpenAIEngine]:
    engine = OpenAIEngine(server.url)
    yield engine
    await engine.close()


def with_fault(fault: Fault) -> EngineRequest:
    return replace(a_chat(PROMPT), extra={"fault": msgspec.json.encode(fault).decode()})


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        (Fault("drop"), FailureKind.REPLICA_LOST, "the connection to"),
        (Fault("drop", 3), FailureKind.REPLICA_LOST, "the connection to"),
        (Fault("die"), FailureKind.REPLICA_LOST, "the connection to"),
        (Fault("die", 3), FailureKind.REPLICA_LOST, "the connection to"),
        (Fault("unfinished", 3), FailureKind.REPLICA_LOST, "broke off before its end"),
        (Fault("unfinished"), FailureKind.REPLICA_LOST, "broke off before its end"),
        (Fault("status", status=500), FailureKind.ENGINE_ERROR, "answered 500: a fault that was asked for"),
        (Fault("status", status=503), FailureKind.ENGINE_ERROR, "is busy, it answered 503"),
        (Fault("status", status=429), FailureKind.ENGINE_ERROR, "is busy, it answered 429"),
        (Fault("status", status=302), FailureKind.ENGINE_ERROR, "answered 302"),
        (Fault("status", status=400), FailureKind.BAD_REQUEST, "answered 400: a fault"),
        (Fault("status", status=404), FailureKind.BAD_REQUEST, "answered 404"),
        (
            Fault("status", status=400, message="maximum context length is 512 tokens"),
            FailureKind.CONTEXT_TOO_LONG,
            "512 tokens",
        ),
        (Fault("malformed", 3), FailureKind.ENGINE_ERROR, "no piece of an answer"),
        (Fault("error", 3), FailureKind.ENGINE_ERROR, "broke its answer off: a fault"),
        (Fault("plain"), FailureKind.ENGINE_ERROR, "no event stream"),
    ],
    ids=lambda value: f"{value.kind}-{value.status}-{value.after_pieces}" if isinstance(value, Fault) else "",
)
async def test_every_failure_has_its_kind(
    engine: OpenAIEngine, fault: Fault, kind: FailureKind, says: str
) -> None:
    failed = await failure(engine, with_fault(fault))
    assert failed.kind is kind
    assert says in str(failed)


async def test_what_came_before_a_failure_has_been_given_out(engine: OpenAIEngine) -> None:
    seen, _ = await broken_answer(engine, with_fault(Fault("drop", 3)))
    assert text_of(seen) == "".join(answer_to(PROMPT, 12).pieces[:3])


async def test_choices_that_are_null_are_an_empty_piece(engine: OpenAIEngine) -> None:
    chunks = await answer(engine, with_fault(Fault("nulls", 2)))
    assert sum(chunk.choices == b"[]" and chunk.usage is None for chunk in chunks) == 1
    assert text_of(chunks) == answer_to(PROMPT, 12).text


async def test_nobody_listening_is_a_lost_replica() -> None:
    engine = OpenAIEngine(f"http://127.0.0.1:{free_port()}/v1")
    assert (await failure(engine, a_chat())).kind is FailureKind.REPLICA_LOST
    with pytest.raises(EngineFailed) as caught:
        await engine.facts()
    assert caught.value.kind is FailureKind.REPLICA_LOST
    assert await engine.count_tokens("one") is None
    await engine.close()


async def test_a_server_that_goes_away_ends_every_stream_as_lost(
    server: ScriptedServer, engine: OpenAIEngine
) -> None:
    stalled = [asyncio.create_task(failure(engine, with_fault(Fault("stall", n)))) for n in (0, 2)]

    async def are_asked() -> bool:
        return server.in_flight == len(stalled)

    await until(are_asked)
    await server.go_away()
    assert [(await task).kind for task in stalled] == [FailureKind.REPLICA_LOST] * 2


async def test_an_echo_of_the_prompt_is_not_quoted(engine: OpenAIEngine) -> None:
    for fault in (
        Fault("status", status=400, message=f"bad input: {PROMPT}"),
        Fault("status", status=500, message=f"cannot read {PROMPT[5:35]!r}"),
        Fault("error", 1, message=f"stopped at {PROMPT}"),
    ):
        assert "harbour" not in str(await failure(engine, with_fault(fault)))


async def test_a_long_message_of_the_engine_is_cut(engine: OpenAIEngine) -> None:
    failed = await failure(engine, with_fault(Fault("status", message="x" * 5000)))
    assert len(str(failed)) < 400


# --- servers of other kinds, byte by byte ------------------------------------------------------------------

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(*routes: web.RouteDef) -> AsyncIterator[OpenAIEngine]:
    app = web.Application()
    app.add_routes(routes)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    engine = OpenAIEngine(f"http://127.0.0.1:{runner.addresses[0][1]}/v1/", api_key="sesame")
    try:
        yield engine
    finally:
        await engine.close()
        await runner.cleanup()


def streaming(*parts: bytes, content_type: str = "text/event-stream") -> web.RouteDef:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": content_type})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        return response

    return web.post("/v1/completions", handle)


async def test_a_stream_is_read_whatever_its_line_ends_and_cuts() -> None:
    stream = (
        b"\xef\xbb\xbf: hello\r\n\r\n"
        + 'data: {"choices": [{"index": 0,\r\ndata: "text": "früh"}]}\r\n\r\n'.encode()
        + b": ping\n\n"
        + 'event: x\nid: 7\ndata:{"choices": [{"index": 0, "text": " dämmert"}]}\n\n'.encode()
        + b'data: {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}\n\n'
        + b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2,'
        + b' "prompt_tokens_details": {"cached_tokens": 3}}}\n\ndata: [DONE]\n\n'
    )
    one_byte_at_a_time = [stream[at : at + 1] for at in range(len(stream))]
    for parts in ([stream], one_byte_at_a_time):
        async with serving(streaming(*parts)) as engine:
            chunks = await answer(engine, a_completion())
        assert text_of(chunks) == "früh dämmert"
        assert chunks[-1].usage == Usage(5, 2, 3)


async def test_a_stream_without_its_closing_mark_is_whole_once_it_has_its_end() -> None:
    event = b'data: {"choices": [{"index": 0, "text": "sea", "finish_reason": "stop"}]}'
    for parts in ([event, b"\n\n"], [event]):
        async with serving(streaming(*parts)) as engine:
            assert text_of(await answer(engine, a_completion())) == "sea"


async def test_a_stream_that_ends_inside_an_event_is_lost() -> None:
    async with serving(streaming(b'data: {"choices": [{"index": 0, "te')) as engine:
        assert (await failure(engine, a_completion())).kind is FailureKind.REPLICA_LOST


@pytest.mark.parametrize(
    "chat_delta",
    [
        {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]},
        {"refusal": "no"},
        {"reasoning_content": "hm"},
    ],
    ids=["tool-call", "refusal", "reasoning"],
)
async def test_pieces_without_text_can_be_content(chat_delta: dict[str, object]) -> None:
    choices = json.dumps([{"index": 0, "delta": chat_delta, "finish_reason": None, "own": [1.50, 2]}])

    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(
            text=f'data: {{"choices": {choices}}}\n\n'
            'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n',
            content_type="text/event-stream",
        )

    async with serving(web.post("/v1/chat/completions", handle)) as engine:
        first, last = await answer(engine, a_chat())
    assert (first.is_content, first.text, first.choices.decode()) == (True, "", choices)
    assert (last.is_content, last.finish_reason) == (False, "stop")


async def test_an_endless_event_is_an_error_and_not_an_endless_memory() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: ")
        while True:
            await response.write(b"x" * 2**20)

    async with serving(web.post("/v1/completions", handle)) as engine:
        failed = await failure(engine, a_completion())
    assert failed.kind is FailureKind.ENGINE_ERROR
    assert str(EVENT_LIMIT_BYTES) in str(failed)


async def test_an_answer_that_is_no_stream_is_an_error() -> None:
    async with serving(streaming(b'{"choices": []}', content_type="application/json")) as engine:
        failed = await failure(engine, a_completion())
    assert failed.kind is FailureKind.ENGINE_ERROR
    assert "did not stream" in str(failed)


async def test_the_request_carries_everything_and_extras_cannot_turn_streaming_off() -> None:
    asked: list[dict[str, object]] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        asked.append({**await request.json(), "key": request.headers["Authorization"]})
        return web.Response(text="data: [DONE]\n\n", content_type="text/event-stream")

    request = EngineRequest(
        "m",
        7,
        messages=(Message("system", "s"), Message("user", '[{"type": "text", "text": "t"}]', is_json=True)),
        temperature=0.5,
        stop=("x",),
        schema='{"type": "object"}',
        extra={"seed": "7", "tools": '[{"a": 1.0}]', "stream": "false", "max_tokens": "9"},
    )
    async with serving(web.post("/v1/chat/completions", handle)) as engine:
        assert await answer(engine, request) == []
    assert asked == [
        {
            "model": "m",
            "max_tokens": 7,
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "t"}]},
            ],
            "temperature": 0.5,
            "stop": ["x"],
            "stream": True,
            "stream_options": {"include_usage": True},
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
            },
            "seed": 7,
            "tools": [{"a": 1.0}],
            "key": "Bearer sesame",
        }
    ]


async def test_a_server_without_tokenizer_is_asked_once() -> None:
    async with serving() as engine:
        assert [await engine.count_tokens("one two") for _ in range(2)] == [None, None]
        assert await engine.facts() == EngineFacts()


async def test_vllm_is_understood() -> None:
    async def count(request: web.Request) -> web.StreamResponse:
        assert (await request.json())["prompt"] == "one two"
        return web.json_response({"count": 2, "max_model_len": 2048, "tokens": [1, 2], "token_strs": None})

    async def models(request: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "list", "data": [{"id": "m", "max_model_len": 2048}]})

    async def version(request: web.Request) -> web.StreamResponse:
        return web.json_response({"version": "0.32.0"})

    async with serving(
        web.post("/tokenize", count), web.get("/v1/models", models), web.get("/version", version)
    ) as engine:
        assert await engine.count_tokens("one two") == 2
        assert await engine.facts() == EngineFacts(build="0.32.0", context_tokens=2048)
