"""The gateway over the real client, driver and kernel, with an engine inside the test."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.gateway.world import Caller, chat, until
from tightrope.adapters.telemetry import Telemetry
from tightrope.gateway.app import Settings, build_app
from tightrope.gateway.keys import Keyring, mint
from tightrope.gateway.offers import offers
from tightrope.kernel.kernel import Kernel
from tightrope.kernel.state import KernelSettings
from tightrope.model.fleet import Accelerator, FleetPlan, ReplicaSpec
from tightrope.model.ids import AcceleratorName, ModelName, ReplicaId, TenantId
from tightrope.model.messages import (
    AcceleratorRegistered,
    Command,
    Event,
    FleetPlanned,
    ProfileLoaded,
    ReplicaLost,
    ReplicaReady,
    ReplicaStopped,
    TenantRegistered,
    WorkflowDeployed,
)
from tightrope.model.outcome import FailureKind
from tightrope.model.slo import Tenant
from tightrope.runtime.client import Client, plain_workflows
from tightrope.runtime.driver import Driver
from tightrope.testing.builders import a_chain, a_profile
from tightrope.testing.engine import Script, ScriptedEngine

SHOP = TenantId("shop")
PEPPER = b"p" * 32
KEY, RECORD = mint(SHOP, "admin", 0.0, None, PEPPER)
BEARER = {"authorization": f"Bearer {KEY}"}


class Monotonic:
    """The time of this machine."""

    def now(self) -> float:
        return time.monotonic()


class NoJournal:
    """Notes nothing."""

    def event(self, event: Event, at_s: float) -> None: ...
    def command(self, command: Command, at_s: float) -> None: ...
    def flush(self, at_s: float) -> None: ...
    def close(self) -> None: ...


@dataclass
class ReadyCluster:
    """Replicas that are there as soon as they are ordered."""

    told: asyncio.Queue[ReplicaReady] = field(default_factory=asyncio.Queue)

    async def start(self, spec: ReplicaSpec) -> None:
        await self.told.put(ReplicaReady(spec.id, 4))

    async def stop(self, replica: ReplicaId) -> None: ...

    async def watch(self) -> AsyncIterator[ReplicaReady | ReplicaLost | ReplicaStopped]:
        while True:
            yield await self.told.get()

    def url(self, replica: ReplicaId) -> str:
        return "http://inside/v1"

    async def close(self) -> None: ...


@dataclass
class Served:
    """Everything a test looks at."""

    app: Any
    engine: ScriptedEngine
    driver: Driver
    telemetry: Telemetry

    async def post(self, body: object) -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url="http://gateway", headers=BEARER
        ) as client:
            return await client.post("/v1/chat/completions", json=body)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    engine, telemetry = ScriptedEngine(), Telemetry()
    cluster = ReadyCluster()
    driver = Driver(
        Kernel(KernelSettings()), Monotonic(), NoJournal(), (cluster,), lambda _: cluster, lambda *_: engine,
        (telemetry.observe,),
    )  # fmt: skip
    chain = a_chain(name="rag")
    tenant = Tenant(SHOP, models=(ModelName("small"),), workflows=("rag",))
    known = (chain, *plain_workflows({ModelName("small"): 64}))
    driver.post(TenantRegistered(tenant))
    driver.post(AcceleratorRegistered(Accelerator(AcceleratorName("slow"))))
    driver.post(ProfileLoaded(a_profile()))
    for workflow in known:
        driver.post(WorkflowDeployed(workflow))
    driver.start()
    spec = ReplicaSpec(ReplicaId("small-1"), ModelName("small"), AcceleratorName("slow"))
    driver.post(FleetPlanned(FleetPlan((spec,))))
    await until(lambda: bool(driver.kernel.state.pool(ModelName("small")).ready()))
    catalogue = {SHOP: offers(tenant, {"rag": chain.slo}, 0)}
    app = build_app(
        Client(driver, [tenant], known), Keyring([RECORD], PEPPER).authenticate, lambda who: catalogue.get(who, {}),
        Settings(), telemetry, lambda: True,
    )  # fmt: skip
    yield Served(app, engine, driver, telemetry)
    await driver.close()


def said(sent: str) -> str:
    """The content of a stream, after checking that it ended well."""
    *events, done = [line.removeprefix("data: ") for line in sent.strip().split("\n\n")]
    assert done == "[DONE]"
    return "".join(
        choice["delta"].get("content") or "" for event in events for choice in json.loads(event)["choices"]
    )


async def test_a_workflow_streams_what_its_last_node_says(served: Served) -> None:
    served.engine.script = lambda request: Script(
        "a draft" if len(served.engine.requests) == 1 else "the answer"
    )
    response = await served.post(chat("workflow/rag", stream=True))
    assert response.status_code == 200
    assert said(response.text) == "the answer"
    assert "ttft;dur=" in response.headers["server-timing"]
    assert len(served.engine.requests) == 2


async def test_a_plain_model_answers_whole_and_streamed_alike(served: Served) -> None:
    served.engine.script = Script("one two three")
    whole = (await served.post(chat("small"))).json()
    streamed = await served.post(chat("small", stream=True))
    assert whole["choices"][0]["message"]["content"] == said(streamed.text) == "one two three"
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"]["completion_tokens"] > 0


async def test_what_a_plain_model_is_asked_reaches_its_engine(served: Served) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    await served.post(chat("small", tools=tools, temperature=0.5, stop=["END"], max_tokens=5))
    (request,) = served.engine.requests
    assert json.loads(request.extra["tools"]) == tools
    assert (request.temperature, request.stop, request.max_tokens) == (0.5, ("END",), 5)
    assert request.messages is not None
    assert request.messages[0].content == "How are you?"


async def test_a_completion_is_a_prompt(served: Served) -> None:
    served.engine.script = Script("upon a time")
    transport = httpx.ASGITransport(served.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=BEARER) as client:
        response = await client.post("/v1/completions", json={"model": "small", "prompt": "Once"})
    assert response.json()["choices"][0]["text"] == "upon a time"
    assert served.engine.requests[0].prompt == "Once"


async def test_an_engine_that_refuses_the_prompt_is_the_callers_fault(served: Served) -> None:
    served.engine.script = Script(failure=FailureKind.CONTEXT_TOO_LONG)
    response = await served.post(chat("small", stream=True))
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_too_long")


async def test_a_failure_in_the_middle_is_told_in_the_stream(served: Served) -> None:
    served.engine.script = Script("one two three four", after_pieces=2, failure=FailureKind.REPLICA_LOST)
    response = await served.post(chat("small", stream=True))
    assert response.status_code == 200
    last = json.loads(response.text.strip().rpartition("data: ")[2])
    assert last["error"]["code"] == "replica_lost"
    assert "[DONE]" not in response.text


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_client_that_leaves_frees_the_engine(served: Served, is_streamed: bool) -> None:
    served.engine.script = Script("one two three", wait_for=asyncio.Event())
    caller = Caller(served.app, chat("small", stream=is_streamed), BEARER)
    await until(lambda: served.engine.in_flight == 1)
    caller.leave()
    await caller.end()
    await until(lambda: served.engine.in_flight == 0)
    assert served.engine.cancelled == 1
    assert served.driver.runs_underway == 0


async def test_the_metrics_tell_of_the_run(served: Served) -> None:
    await served.post(chat("workflow/rag", stream=True))
    text = served.telemetry.exposition()[0].decode()
    assert (
        'tightrope_workflow_runs_total{outcome="succeeded",slo="met",tenant="shop",workflow="rag"} 1.0'
        in text
    )
    assert 'tightrope_replica_state{accelerator="slow",model="small",state="ready"} 1.0' in text
    assert 'tightrope_queue_depth{tenant="shop"} 0.0' in text
    assert "tightrope_gateway_overhead_seconds_count 1.0" in text
