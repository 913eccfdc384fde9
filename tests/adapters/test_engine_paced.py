"""
Laws of an engine that is paced by a real one
1. It asks the server for as many tokens as the answer has, after a prompt of as many as the call's.
2. A token goes out when the server has made it, and not before; the answer is the one that was ordered, to the end.
3. What was answered is counted, streamed or whole.
4. Of a client that leaves, the server hears.
5. What the server refuses, or breaks off, is an error of this engine.
6. There are no faults on command, and options that mean nothing here are refused.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from tightrope.adapters.emulated_truth import Setting
from tightrope.adapters.engine_emulated import EmulatedEngine, listening, option_parser, setting_of
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import AcceleratorName, ModelName
from tightrope.model.profile import Coefficients, Profile
from tightrope.sim.engine import Truth

TRUTH = Truth(
    Profile(
        ModelName("own"),
        AcceleratorName("fast"),
        Coefficients(a=1.0, b=1.0, c=0.0, d=1.0, e=0.0),
        step_tokens=64,
        max_sequences=2,
        kv_tokens=4096,
    )
)


@dataclass
class Server:
    """Stands for llama.cpp: makes a token whenever it is told to."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    tokens: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 200

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """One answer, a token at a time; a negative number breaks it off."""
        self.asked.append(await request.json())
        if self.status != 200:
            return web.json_response({"error": {"message": "no slot"}}, status=self.status)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        try:
            while (made := await self.tokens.get()) >= 0:
                is_last = made == self.asked[-1]["n_predict"]
                event = {"content": "x", "tokens_predicted": made, "stop": is_last}
                await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
                if is_last:
                    return response
            assert request.transport is not None
            request.transport.abort()
        except (asyncio.CancelledError, ConnectionResetError):
            self.left.set()
            raise
        return response


@dataclass
class Bench:
    """An engine before such a server, and a client."""

    server: Server
    root: str
    session: aiohttp.ClientSession

    def ask(self, *, is_streamed: bool, tokens: int = 3) -> Any:
        """A chat that orders its answer."""
        order = f"<emulate tokens='{tokens}' text='abcdefghijkl'/>"
        body = {
            "model": "own",
            "stream": is_streamed,
            "max_tokens": 50,
            "messages": [{"role": "user", "content": f"some words {order}"}],
        }
        return self.session.post(f"{self.root}/v1/chat/completions", json=body)

    async def count(self, name: str) -> int:
        """One of the engine's numbers."""
        async with self.session.get(f"{self.root}/metrics") as response:
            lines = (await response.text()).splitlines()
        (value,) = (line.rpartition(" ")[2] for line in lines if line.startswith(f"vllm:{name}{{"))
        return int(float(value))


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    server = Server()
    app = web.Application()
    app.router.add_post("/completion", server.complete)
    async with AsyncExitStack() as stack:
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        engine = EmulatedEngine(Setting("own", TRUTH, paced_by=f"http://127.0.0.1:{port}"))
        root = await stack.enter_async_context(listening(engine))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Bench(server, root, session)


def text_of(line: bytes) -> str:
    """What an event says."""
    choices = json.loads(line.removeprefix(b"data: "))["choices"]
    return str(choices[0]["delta"].get("content") or "") if choices else ""


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """What is said, piece by piece."""
    async for line in response.content:
        if line.startswith(b"data: {") and (said := text_of(line.strip())):
            yield said


async def test_1_and_2_a_token_for_a_token(bench: Bench) -> None:
    async with bench.ask(is_streamed=True) as response:
        pieces = events(response)
        said = ""
        for made in (1, 2):
            bench.server.tokens.put_nowait(made)
            said += await anext(pieces)
            assert len(said) == 4 * made
        bench.server.tokens.put_nowait(3)
        assert said + "".join([piece async for piece in pieces]) == "abcdefghijkl"
    (asked,) = bench.server.asked
    assert asked["n_predict"] == 3
    assert asked["ignore_eos"]
    assert len(asked["prompt"]) == await bench.count("prompt_tokens_total")


async def test_2_what_a_server_kept_back_comes_at_the_end(bench: Bench) -> None:
    async with bench.ask(is_streamed=True) as response:
        bench.server.tokens.put_nowait(3)
        assert "".join([piece async for piece in events(response)]) == "abcdefghijkl"


async def test_3_whole_answers_are_counted_too(bench: Bench) -> None:
    for made in (1, 3):
        bench.server.tokens.put_nowait(made)
    async with bench.ask(is_streamed=False) as response:
        assert (await response.json())["choices"][0]["message"]["content"] == "abcdefghijkl"
    assert await bench.count("generation_tokens_total") == 3
    assert await bench.count("request_success_total") == 1
    assert await bench.count("num_requests_running") == 0


async def test_4_the_server_hears_of_a_client_that_leaves(bench: Bench) -> None:
    response = await bench.ask(is_streamed=True)
    bench.server.tokens.put_nowait(1)
    await anext(events(response))
    assert await bench.count("num_requests_running") == 1
    response.close()
    async with asyncio.timeout(20):
        await bench.server.left.wait()
    assert await bench.count("request_success_total") == 0


async def test_5_what_the_server_refuses_is_an_error(bench: Bench) -> None:
    bench.server.status = 503
    async with bench.ask(is_streamed=False) as response:
        assert response.status == 502
        assert "the engine behind answers 503" in (await response.json())["error"]["message"]
    async with bench.ask(is_streamed=True) as response:
        assert b'"error"' in await response.read()


async def test_5_what_the_server_breaks_off_is_an_error(bench: Bench) -> None:
    bench.server.tokens.put_nowait(1)
    bench.server.tokens.put_nowait(-1)
    async with bench.ask(is_streamed=True) as response:
        assert b'"error"' in await response.read()
    assert await bench.count("request_success_total") == 0


@pytest.mark.parametrize("fault", ["hang", "resume", "slow"])
async def test_6_it_has_no_faults_of_its_own(bench: Bench, fault: str) -> None:
    async with bench.session.post(f"{bench.root}/emulated/{fault}", json={"factor": 2.0}) as response:
        assert response.status == 409


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--paced-by", "ftp://x"], "--paced-by must be an http:// address"),
        (["--paced-by", "http://x", "--time-scale", "2"], "--time-scale must be 1 with --paced-by"),
        (["--paced-by", "http://x", "--start-up", "2"], "--start-up must be 0 with --paced-by"),
    ],
)
def test_6_options_that_mean_nothing_here(options: list[str], sentence: str) -> None:
    truth = msgspec.json.encode(TRUTH).decode()
    words = ["--port", "1", "--name", "own", "--truth", truth, *options]
    with pytest.raises(InvalidInput, match=sentence):
        setting_of(option_parser().parse_args(words))
