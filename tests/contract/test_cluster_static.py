"""The cluster of fixed addresses: the contract of every cluster, and servers that are not well."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from aiohttp import web

from tests.contract.cluster_contract import (
    SLOTS,
    ClusterContract,
    ClusterUnderTest,
    a_spec,
    next_of,
)
from tightrope.adapters.cluster_static import StaticCluster
from tightrope.adapters.engine_process import free_port
from tightrope.model.fleet import ReplicaSpec
from tightrope.model.ids import ReplicaId
from tightrope.model.messages import ReplicaLost, ReplicaReady
from tightrope.testing.server import ScriptedServer

SOON_S = 0.02


class TestStaticCluster(ClusterContract):
    @pytest.fixture
    async def tested(self) -> AsyncIterator[ClusterUnderTest]:
        cluster = StaticCluster(probe_every_s=SOON_S)
        servers: dict[ReplicaId, ScriptedServer] = {}
        async with AsyncExitStack() as stack:

            async def order(name: str) -> ReplicaSpec:
                server = await stack.enter_async_context(ScriptedServer(slots=SLOTS))
                servers[ReplicaId(name)] = server
                return a_spec(name, url=server.url)

            async def kill(replica: ReplicaId) -> None:
                await servers[replica].go_away()

            yield ClusterUnderTest(cluster, order, kill)
            await cluster.close()


@pytest.fixture
async def cluster() -> AsyncIterator[StaticCluster]:
    cluster = StaticCluster(probe_every_s=SOON_S, start_limit_s=0.2)
    yield cluster
    await cluster.close()


async def test_a_server_that_comes_late_is_waited_for() -> None:
    cluster, port = StaticCluster(probe_every_s=SOON_S), free_port()
    await cluster.start(a_spec(url=f"http://127.0.0.1:{port}/v1"))
    async with ScriptedServer(port=port, slots=SLOTS, load_s=0.1):
        assert await next_of(cluster.watch()) == ReplicaReady(ReplicaId("small-0"), SLOTS)
        await cluster.close()


async def test_an_address_where_nobody_listens_is_lost_and_says_so(cluster: StaticCluster) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    await cluster.start(a_spec(url=url))
    lost = await next_of(cluster.watch())
    assert isinstance(lost, ReplicaLost)
    assert url.removesuffix("/v1") in lost.why


async def test_a_replica_without_address_is_lost_and_says_so(cluster: StaticCluster) -> None:
    await cluster.start(a_spec())
    assert await next_of(cluster.watch()) == ReplicaLost(
        ReplicaId("small-0"), "it has no address; give it a `url`"
    )


async def test_a_server_that_only_lists_models_is_ready_until_it_refuses() -> None:
    cluster = StaticCluster(probe_every_s=SOON_S, api_key_for=lambda _: "sesame")
    status = 200

    async def models(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer sesame"
        return web.json_response({"data": []}, status=status)

    app = web.Application()
    app.add_routes([web.get("/v1/models", models)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    await cluster.start(a_spec(url=f"http://127.0.0.1:{runner.addresses[0][1]}/v1"))
    watch = cluster.watch()
    assert await next_of(watch) == ReplicaReady(ReplicaId("small-0"), None)
    status = 500
    lost = await next_of(watch)
    assert isinstance(lost, ReplicaLost)
    assert "answered 500" in lost.why
    await cluster.close()
    await runner.cleanup()
