"""The scripted engine: the contract of every engine, and the scripts it knows."""

from __future__ import annotations

import asyncio

import pytest

from tests.contract.engine_contract import (
    CONTEXT_TOKENS,
    SLOTS,
    EngineContract,
    EngineUnderTest,
    a_chat,
    answer,
    broken_answer,
    failure,
    text_of,
    until,
)
from tightrope.model.outcome import FailureKind
from tightrope.testing import Script, ScriptedEngine


class TestScriptedEngine(EngineContract):
    @pytest.fixture
    def tested(self) -> EngineUnderTest:
        engine = ScriptedEngine(
            lambda request: Script(stalls=request.prompt == "1 2 3 4", after_pieces=2),
            max_sequences=SLOTS,
            context_tokens=CONTEXT_TOKENS,
        )

        async def in_flight() -> int:
            return engine.in_flight

        return EngineUnderTest(engine, in_flight)


async def test_the_same_prompt_has_the_same_answer_in_every_engine() -> None:
    first, second = [text_of(await answer(ScriptedEngine(), a_chat("the same"))) for _ in range(2)]
    assert first == second
    assert first != text_of(await answer(ScriptedEngine(), a_chat("another")))


async def test_a_script_gives_the_text() -> None:
    engine = ScriptedEngine(Script(text="just this"))
    assert text_of(await answer(engine, a_chat())) == "just this"
    assert engine.requests == [a_chat()]


async def test_a_script_fails_after_the_pieces_it_names() -> None:
    script = Script(text="a b c", after_pieces=2, failure=FailureKind.REPLICA_LOST)
    seen, failed = await broken_answer(ScriptedEngine(script), a_chat())
    assert text_of(seen) == "a b"
    assert failed.kind is FailureKind.REPLICA_LOST
    assert "the script says so" in str(failed)


async def test_a_script_waits_for_its_event() -> None:
    gate = asyncio.Event()
    engine = ScriptedEngine(Script(wait_for=gate))
    reader = asyncio.create_task(answer(engine, a_chat()))

    async def is_asked() -> bool:
        return engine.in_flight == 1

    await until(is_asked)
    assert not reader.done()
    gate.set()
    assert text_of(await reader)
    assert (engine.in_flight, engine.cancelled) == (0, 0)


async def test_a_script_fails_before_its_first_piece() -> None:
    engine = ScriptedEngine(Script(failure=FailureKind.ENGINE_ERROR))
    assert (await failure(engine, a_chat())).kind is FailureKind.ENGINE_ERROR
