"""What every Cluster promises; `test_cluster_*.py` runs it over each implementation.

1. A started replica is told ready, with the sequences its engine takes, and from then on has an address.
2. A replica whose engine is killed is told lost, with the reason, and has no address any more.
3. A replica that is stopped is told stopped; so is one that nobody knows.
4. A replica that was lost or stopped can be started again.
5. Replicas do not disturb each other.
6. `close` ends the watch, also in the middle of a start, and what is started after it is lost.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import aiohttp
import pytest

from tightrope.adapters.process import Process
from tightrope.model.fleet import ReplicaSpec
from tightrope.model.ids import AcceleratorName, ModelName, ReplicaId
from tightrope.model.messages import ReplicaLost, ReplicaReady, ReplicaStopped
from tightrope.ports import Cluster

LIMIT_S = 120.0
SLOTS = 3

Told = ReplicaReady | ReplicaLost | ReplicaStopped


@dataclass(frozen=True)
class ClusterUnderTest:
    """A cluster whose engines have SLOTS slots.

    `order` gives the spec of a replica that can be started, `kill` ends the engine behind it as kill -9 does.
    """

    cluster: Cluster
    order: Callable[[str], Awaitable[ReplicaSpec]]
    kill: Callable[[ReplicaId], Awaitable[None]]


def a_spec(id: str = "small-0", accelerator: str = "plain", url: str | None = None) -> ReplicaSpec:  # noqa: A002
    return ReplicaSpec(ReplicaId(id), ModelName("small"), AcceleratorName(accelerator), url)


async def next_of(watch: AsyncIterator[Told]) -> Told:
    async with asyncio.timeout(LIMIT_S):
        return await anext(watch)


class OwnCluster(Cluster, Protocol):
    """A cluster that runs its engines itself, on this machine."""

    def process_id(self, replica: ReplicaId) -> int: ...


def under_test(cluster: OwnCluster, accelerator: str = "plain") -> ClusterUnderTest:
    async def order(name: str) -> ReplicaSpec:
        return a_spec(name, accelerator)

    async def kill(replica: ReplicaId) -> None:
        os.kill(cluster.process_id(replica), signal.SIGKILL)

    return ClusterUnderTest(cluster, order, kill)


async def ready(cluster: OwnCluster, spec: ReplicaSpec) -> Process:
    """Start a replica, wait until it is ready, and return its process."""
    await cluster.start(spec)
    told = await next_of(cluster.watch())
    assert told == ReplicaReady(spec.id, SLOTS), told
    process = Process.of(cluster.process_id(spec.id))
    assert process is not None
    return process


async def gone(*processes: Process) -> None:
    async with asyncio.timeout(LIMIT_S):
        for process in processes:
            await process.ended()


async def answers(url: str) -> bool:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/models") as response:
        return response.status == 200


class ClusterContract:
    """Subclasses give the fixture `tested`."""

    async def test_1_2_4_a_replica_is_ready_then_lost_then_ready_again(
        self, tested: ClusterUnderTest
    ) -> None:
        cluster, watch = tested.cluster, tested.cluster.watch()
        spec = await tested.order("small-0")
        with pytest.raises(KeyError):
            cluster.url(spec.id)
        await cluster.start(spec)
        assert await next_of(watch) == ReplicaReady(spec.id, SLOTS)
        assert await answers(cluster.url(spec.id))
        await tested.kill(spec.id)
        lost = await next_of(watch)
        assert isinstance(lost, ReplicaLost)
        assert lost.replica == spec.id
        assert lost.why
        with pytest.raises(KeyError):
            cluster.url(spec.id)
        await cluster.start(await tested.order("small-0"))
        assert await next_of(watch) == ReplicaReady(spec.id, SLOTS)
        assert await answers(cluster.url(spec.id))

    async def test_3_5_a_stop_is_told_and_leaves_the_others_alone(self, tested: ClusterUnderTest) -> None:
        cluster, watch = tested.cluster, tested.cluster.watch()
        stays, goes = await tested.order("small-0"), await tested.order("small-1")
        for spec in (stays, goes):
            await cluster.start(spec)
        ready = {(await next_of(watch)).replica for _ in range(2)}
        assert ready == {stays.id, goes.id}
        assert cluster.url(stays.id) != cluster.url(goes.id)
        await cluster.stop(goes.id)
        assert await next_of(watch) == ReplicaStopped(goes.id)
        with pytest.raises(KeyError):
            cluster.url(goes.id)
        assert await answers(cluster.url(stays.id))

    async def test_3_a_stop_of_what_nobody_knows_is_told_too(self, tested: ClusterUnderTest) -> None:
        await tested.cluster.stop(ReplicaId("nobody/0"))
        assert await next_of(tested.cluster.watch()) == ReplicaStopped(ReplicaId("nobody/0"))

    async def test_4_a_start_right_after_a_stop_comes_after_it(self, tested: ClusterUnderTest) -> None:
        cluster, watch = tested.cluster, tested.cluster.watch()
        spec = await tested.order("small-0")
        await cluster.start(spec)
        await cluster.stop(spec.id)
        await cluster.start(spec)
        assert await next_of(watch) == ReplicaStopped(spec.id)
        assert await next_of(watch) == ReplicaReady(spec.id, SLOTS)

    async def test_6_close_in_the_middle_of_a_start_ends_the_watch(self, tested: ClusterUnderTest) -> None:
        spec = await tested.order("small-0")
        await tested.cluster.start(spec)
        async with asyncio.timeout(LIMIT_S):
            await tested.cluster.close()
            assert [told async for told in tested.cluster.watch()] == [ReplicaStopped(spec.id)]
            assert [told async for told in tested.cluster.watch()] == []
        with pytest.raises(KeyError):
            tested.cluster.url(spec.id)
