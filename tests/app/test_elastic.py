"""A fleet that is at zero, serves who comes, and is at zero again: real processes, a clock moved by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from click.testing import CliRunner

from tests.runtime.world import until, within
from tightrope.app.cli import main
from tightrope.app.compose import Runtime, compose
from tightrope.app.config import LOCAL_TENANT, parse_config
from tightrope.app.serve import gateway, is_ready
from tightrope.gateway.keys import without_keys
from tightrope.kernel.journal import replay
from tightrope.model.fleet import ReplicaState
from tightrope.model.messages import Command, Event, NoteScaling, ReplicaLost, ReplicaStopped, StartReplica
from tightrope.model.outcome import Outcome
from tightrope.ports import Message
from tightrope.runtime.client import PLAIN_CHAT, RunInputs, RunRequest
from tightrope.testing import ManualClock

TEXT = """
version: 1
server: {{listen: "127.0.0.1:0", auth: none}}
accelerators: {{fast: {{cost: 3 USD/h, count: 2}}, slow: {{cost: 1 USD/h, count: 2}}}}
cluster: {{local: {{state: ./state}}}}
models:
  small:
    engine: {{kind: command, command: {command}}}
    place: {{fast: {{min: 0, max: 2}}, slow: {{min: 0, max: 2}}}}
provisioner: {{mode: act, every: 5s, idle_after: 60s, cooldown: 20s}}
"""
ENGINE = [sys.executable, "-m", "tightrope.testing.server", "--port", "{port}"]


class Elastic:
    """The runtime, its clock, and what has been told."""

    def __init__(self, runtime: Runtime, clock: ManualClock, told: list[Event | Command]) -> None:
        self.runtime = runtime
        self.clock = clock
        self.told = told

    @property
    def replicas(self) -> list[str]:
        return list(self.runtime.driver.kernel.state.replicas)

    @property
    def starting(self) -> bool:
        states = [replica.state for replica in self.runtime.driver.kernel.state.replicas.values()]
        return ReplicaState.STARTING in states

    def count(self, kind: type[Event | Command]) -> int:
        return sum(isinstance(message, kind) for message in self.told)

    async def answer(self, question: str) -> str:
        inputs = RunInputs(messages=(Message("user", question),))
        handle = self.runtime.client.submit(RunRequest(LOCAL_TENANT, f"{PLAIN_CHAT}small", inputs))
        result = await within(handle.result())
        assert result.finish.outcome is Outcome.SUCCEEDED
        return result.text

    async def pass_time_until(self, condition: Callable[[], bool]) -> None:
        """Round after round; processes that are starting get the real time they need."""
        for _ in range(200):
            if condition():
                return
            await within(self.runtime.driver.until_ordered())
            await until(lambda: not self.starting)
            self.clock.advance(5.0)
            self.runtime.driver.wake_due()
        raise AssertionError("what had to happen did not")


@asynccontextmanager
async def an_elastic_fleet(folder: Path, command: list[str] = ENGINE) -> AsyncIterator[Elastic]:
    """A started runtime without a replica. At its end its tables hold together, and its journal replays."""
    file = folder / "tightrope.yaml"
    file.write_text(TEXT.format(command=json.dumps(command)))
    told: list[Event | Command] = []
    clock = ManualClock()
    runtime = compose(
        parse_config(file.read_text(), file, {}).config,
        [],
        die_with_parent=True,
        observers=(lambda message, _: told.append(message),),
        clock=clock,
    )
    try:
        await within(runtime.start())
        yield Elastic(runtime, clock, told)
        runtime.driver.kernel.check()
    finally:
        await within(runtime.close())
    assert replay(runtime.config.journal.path.read_text().splitlines()) is None


async def test_at_zero_a_model_is_offered_and_the_server_is_ready(tmp_path: Path) -> None:
    async with an_elastic_fleet(tmp_path) as fleet:
        app = gateway(fleet.runtime, without_keys)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert fleet.replicas == []
            assert (await client.get("/readyz")).status_code == 200
            models = (await client.get("/v1/models")).json()["data"]
            assert [model["id"] for model in models] == ["small"]
            asked = {"model": "small", "messages": [{"role": "user", "content": "hello"}]}
            answer = await within(client.post("/v1/chat/completions", json=asked, timeout=None))
            assert answer.status_code == 200
            assert answer.json()["choices"][0]["message"]["content"]


async def test_a_fleet_wakes_serves_and_goes_to_zero_again_and_again(tmp_path: Path) -> None:
    async with an_elastic_fleet(tmp_path) as fleet:
        for question in ("how are you?", "and now?", "and now?"):
            assert await fleet.answer(question)  # the process of the one before may still be ending
            (replica,) = fleet.replicas
            assert replica.startswith("small-slow-")  # the cheaper card
            await fleet.pass_time_until(lambda: fleet.replicas == [])
            assert is_ready(fleet.runtime)
        await until(lambda: fleet.count(ReplicaStopped) == fleet.count(StartReplica))
        assert fleet.count(ReplicaLost) == 0
    shown = CliRunner().invoke(main, ["explain", "--fleet", "--config", str(tmp_path / "tightrope.yaml")])
    assert shown.exit_code == 0, shown.output
    assert "small on slow goes from 0 to 1 replica: calls wait and it has no replica" in shown.output
    assert "small on slow goes from 1 to 0 replicas: nothing has come for a while" in shown.output


async def test_where_engines_do_not_start_the_server_is_not_ready_and_goes_on_trying(tmp_path: Path) -> None:
    async with an_elastic_fleet(tmp_path, [sys.executable, "-c", "exit(3)", "{port}"]) as fleet:
        inputs = RunInputs(messages=(Message("user", "hello"),))
        handle = fleet.runtime.client.submit(RunRequest(LOCAL_TENANT, f"{PLAIN_CHAT}small", inputs))
        await until(lambda: fleet.count(ReplicaLost) == 1)
        assert not is_ready(fleet.runtime)
        while fleet.count(ReplicaLost) < 6:
            lost = fleet.count(ReplicaLost)
            await fleet.pass_time_until(lambda: fleet.count(ReplicaLost) > lost)  # noqa: B023
        cards = {note.accelerator for note in fleet.told if isinstance(note, NoteScaling)}
        assert cards == {"fast", "slow"}  # where one kind does not come up the other one is tried
        assert handle.finish is None
        handle.cancel("the test is over")
