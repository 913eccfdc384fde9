"""The driver and its clusters: ready, lost, ordered again, and news that come at a bad moment."""

from __future__ import annotations

import asyncio

import pytest

from tests.runtime.world import a_world, is_ready, until, within
from tightrope.model.fleet import FleetPlan
from tightrope.model.ids import ReplicaId
from tightrope.model.messages import FleetPlanned, ReplicaReady
from tightrope.model.outcome import FailureKind, Outcome
from tightrope.runtime.client import RunFailed
from tightrope.testing import ManualClock, Script, ScriptedEngine, a_chain

ONE = a_chain("answer")


async def test_a_run_that_came_before_its_replica_was_ready_is_served_then() -> None:
    async with a_world(ONE, waits_for_replicas=False) as world:
        handle = world.submit()
        assert handle.finish is None
        assert (await within(handle.result())).finish.outcome is Outcome.SUCCEEDED


async def test_the_calls_of_a_lost_replica_are_moved_and_its_engine_is_closed() -> None:
    engines = {"a": ScriptedEngine(Script(stalls=True)), "b": ScriptedEngine(Script(text="one two"))}
    async with a_world(ONE, engines=engines) as world:
        handle = world.submit()
        await until(lambda: engines["a"].in_flight == 1)
        world.cluster.lose("a")
        assert (await within(handle.result())).text == "one two"
        assert engines["a"].is_closed


async def test_a_lone_replica_that_is_lost_and_comes_back_serves_what_waited() -> None:
    clock = ManualClock()
    engine = ScriptedEngine(
        lambda _: Script(stalls=True) if len(engine.requests) == 1 else Script(text="one two")
    )
    async with a_world(ONE, engines={"a": engine}, clock=clock) as world:
        first = world.submit()
        await until(lambda: engine.in_flight == 1)
        world.cluster.lose("a")
        await until(lambda: not is_ready(world.driver, "a"))
        second = world.submit()
        clock.advance(0.5)
        world.driver.wake_due()
        for handle in (first, second):
            assert (await within(handle.result())).text == "one two"
        assert world.cluster.started == ["a", "a"]


async def test_a_stream_is_told_why_when_its_replica_is_lost() -> None:
    engine = ScriptedEngine(Script(text="one two three", stalls=True, after_pieces=2))
    async with a_world(ONE, engines={"a": engine}) as world:
        handle = world.submit()
        await within(anext(handle.pieces()))
        await until(lambda: engine.in_flight == 1)
        world.cluster.lose("a", "its process was killed by signal 9")
        with pytest.raises(RunFailed, match="signal 9") as caught:
            await within(handle.result())
        assert caught.value.finish.failure is FailureKind.REPLICA_LOST


async def test_a_replica_that_cannot_be_started_is_tried_again() -> None:
    clock = ManualClock()
    async with a_world(ONE, clock=clock) as world:
        world.cluster.refuses = "there is no such program"
        world.cluster.lose("a")
        await until(lambda: not is_ready(world.driver, "a"))
        clock.advance(0.5)
        world.driver.wake_due()
        await until(lambda: len(world.cluster.started) == 2)
        world.cluster.refuses = None
        handle = world.submit()
        await until(lambda: not world.driver.kernel.state.pool(ONE.required_models()[0]).ready())
        while handle.finish is None and len(world.cluster.started) < 3:
            clock.advance(0.5)
            world.driver.wake_due()
            await asyncio.sleep(0)
        assert (await within(handle.result())).finish.outcome is Outcome.SUCCEEDED


async def test_a_replica_that_died_before_it_could_be_used_does_not_end_the_watch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = ManualClock()
    async with a_world(ONE, clock=clock) as world:
        world.cluster.holds_back = True
        world.cluster.lose("a")
        await until(lambda: not is_ready(world.driver, "a"))
        clock.advance(0.5)
        world.driver.wake_due()
        await until(lambda: len(world.cluster.started) == 2)
        # Ready is told, and its address is gone before anybody asks for it.
        world.cluster._told.put_nowait(ReplicaReady(ReplicaId("a"), 4))
        await until(lambda: "cannot be used" in caplog.text)
        world.cluster.holds_back = False
        clock.advance(1.0)
        world.driver.wake_due()
        assert (await within(world.submit().result())).finish.outcome is Outcome.SUCCEEDED


async def test_a_replica_that_is_no_longer_planned_finishes_its_call_before_it_is_stopped() -> None:
    gate = asyncio.Event()
    engine = ScriptedEngine(Script(text="one two", wait_for=gate))
    async with a_world(ONE, engines={"a": engine}) as world:
        handle = world.submit()
        await until(lambda: engine.in_flight == 1)
        world.driver.post(FleetPlanned(FleetPlan(())))
        assert world.cluster.stopped == []
        gate.set()
        assert (await within(handle.result())).text == "one two"
        await until(lambda: world.cluster.stopped == ["a"])


async def test_no_replica_gets_more_calls_than_it_takes_at_once() -> None:
    gate = asyncio.Event()
    engine = ScriptedEngine(Script(text="one", wait_for=gate))
    async with a_world(ONE, engines={"a": engine}) as world:
        handles = [world.submit() for _ in range(9)]
        await until(lambda: engine.in_flight > 0)
        for _ in range(50):
            await asyncio.sleep(0)
        assert 1 <= engine.in_flight <= 4
        gate.set()
        for handle in handles:
            await within(handle.result())
        assert len(engine.requests) == 9
