"""The OpenAI engine on the real llama.cpp server: the contract of every engine."""

from __future__ import annotations

import http.client
import os
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from tests.contract.engine_contract import (
    CONTEXT_TOKENS,
    LIMIT_S,
    SLOTS,
    EngineContract,
    EngineUnderTest,
    a_chat,
    answer,
    failure,
)
from tightrope.adapters.engine_openai import OpenAIEngine
from tightrope.adapters.engine_process import free_port
from tightrope.adapters.llamacpp import ServerOptions, command_line, find_server
from tightrope.app.embedded import cache_dir, weights_file
from tightrope.model.outcome import FailureKind

pytestmark = pytest.mark.engine

KEY = "a key of these tests"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A llama.cpp server with the embedded model and a key, for all tests of this file; an error if there is none."""
    cache = cache_dir()
    options = ServerOptions(
        weights_file(cache, "Q4_0"), "small", free_port(), slots=SLOTS, context_tokens=CONTEXT_TOKENS
    )
    log_file = tmp_path_factory.mktemp("llamacpp") / "log"
    with log_file.open("wb") as log:
        server = subprocess.Popen(
            command_line(find_server(None, cache), options),
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LLAMA_API_KEY": KEY},
        )
    address = f"http://127.0.0.1:{options.port}"
    try:
        _wait_until_healthy(address, server, log_file)
        yield address
    finally:
        server.kill()
        server.wait()


def _wait_until_healthy(root: str, server: subprocess.Popen[bytes], log_file: Path) -> None:
    give_up_s = time.monotonic() + LIMIT_S
    while time.monotonic() < give_up_s:
        assert server.poll() is None, f"llama-server ended: {log_file.read_text(errors='replace')[-2000:]}"
        try:
            with urllib.request.urlopen(f"{root}/health", timeout=LIMIT_S):
                return
        except (OSError, http.client.HTTPException):  # not listening yet, still loading, or cut off
            time.sleep(0.02)
    pytest.fail(f"llama-server was not healthy: {log_file.read_text(errors='replace')[-2000:]}")


class TestOpenAIEngineOnLlamaCpp(EngineContract):
    @pytest.fixture
    async def tested(self, root: str) -> AsyncIterator[EngineUnderTest]:
        engine = OpenAIEngine(f"{root}/v1", api_key=KEY)
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:

            async def in_flight() -> int:
                async with session.get(f"{root}/slots") as response:
                    return sum(slot["is_processing"] for slot in await response.json())

            yield EngineUnderTest(engine, in_flight)
        await engine.close()


async def test_tokens_are_counted_as_they_are_used(root: str) -> None:
    engine = OpenAIEngine(f"{root}/v1", api_key=KEY)
    text = "The harbour lies still at dawn."
    chunks = await answer(engine, a_chat(text, max_tokens=1))
    usage = next(chunk.usage for chunk in chunks if chunk.usage is not None)
    tokens = await engine.count_tokens(text)
    assert tokens is not None
    assert tokens < usage.prompt_tokens
    await engine.close()


async def test_the_weights_have_a_digest(root: str) -> None:
    engine = OpenAIEngine(f"{root}/v1", api_key=KEY)
    digests = {(await engine.facts()).digest for _ in range(2)}
    assert len(digests) == 1
    assert all(digests)
    await engine.close()


async def test_a_schema_that_is_none_is_a_bad_request(root: str) -> None:
    engine = OpenAIEngine(f"{root}/v1", api_key=KEY)
    failed = await failure(engine, replace(a_chat(), schema='{"type": "no such type"}'))
    assert failed.kind is FailureKind.BAD_REQUEST
    await engine.close()


async def test_nobody_gets_an_answer_without_the_key(root: str) -> None:
    engine = OpenAIEngine(f"{root}/v1")
    assert "401" in str(await failure(engine, a_chat()))
    await engine.close()
