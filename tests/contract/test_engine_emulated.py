"""The OpenAI engine on an emulated one: the contract of every engine."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.contract.engine_contract import CONTEXT_TOKENS, SLOTS, EngineContract, EngineUnderTest
from tightrope.adapters.emulated_truth import Setting
from tightrope.adapters.engine_emulated import EmulatedEngine, listening
from tightrope.adapters.engine_openai import OpenAIEngine
from tightrope.model.ids import AcceleratorName, ModelName
from tightrope.model.profile import Coefficients, Profile
from tightrope.sim.engine import Truth


class TestOpenAIEngineOnTheEmulatedOne(EngineContract):
    @pytest.fixture
    async def tested(self) -> AsyncIterator[EngineUnderTest]:
        profile = Profile(
            ModelName("small"),
            AcceleratorName("card"),
            Coefficients(a=1.0, b=0.01, c=0.0001, d=0.01, e=0.0),
            step_tokens=512,
            max_sequences=SLOTS,
            kv_tokens=SLOTS * CONTEXT_TOKENS,
        )
        setting = Setting("small", Truth(profile), context_tokens=CONTEXT_TOKENS)
        async with listening(EmulatedEngine(setting)) as root, aiohttp.ClientSession() as session:
            engine = OpenAIEngine(f"{root}/v1")

            async def in_flight() -> int:
                async with session.get(f"{root}/metrics") as response:
                    lines = (await response.text()).splitlines()
                values = [line.rpartition(" ")[2] for line in lines if line.startswith("vllm:num_requests")]
                return sum(map(int, values))

            yield EngineUnderTest(engine, in_flight)
            await engine.close()
