"""The cluster of Ray actors: the contract of every cluster, and the ways actors and nodes can disappoint."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.contract.cluster_contract import (
    SLOTS,
    ClusterContract,
    ClusterUnderTest,
    a_spec,
    answers,
    gone,
    next_of,
    ready,
    under_test,
)
from tests.contract.doomed_runtime import command
from tests.contract.engine_contract import until
from tests.ray.machines import TOKEN, Machines
from tightrope.adapters.cluster_ray import Listen, RayCluster, RayPlace
from tightrope.adapters.process import Process
from tightrope.model.errors import InvalidInput
from tightrope.model.fleet import ReplicaSpec
from tightrope.model.ids import ReplicaId
from tightrope.model.messages import ReplicaLost, ReplicaReady, ReplicaStopped
from tightrope.testing.server import ScriptedServer

pytestmark = pytest.mark.ray

SMALL = ReplicaId("small-0")
RUNTIME = Path(__file__).with_name("doomed_runtime.py")

Open = Callable[..., RayCluster]


def small_server(spec: ReplicaSpec, listen: Listen) -> Sequence[str]:
    return command(spec, listen.port)


def one_card(spec: ReplicaSpec) -> Mapping[str, Any]:
    return {"resources": {f"accelerator_type:{spec.accelerator}": 1}}


@pytest.fixture
async def open_cluster(tmp_path: Path, machines: Machines) -> AsyncIterator[Open]:
    """Opens clusters on one state directory; all are closed at the end, and nothing may be left."""
    opened: list[RayCluster] = []

    def open_again(command_for: Any = small_server, **settings: Any) -> RayCluster:
        cluster = RayCluster(
            RayPlace(machines.address, TOKEN),
            tmp_path / "state",
            command_for,
            resources_for=settings.pop("resources_for", one_card),
            **settings,
        )
        opened.append(cluster)
        return cluster

    yield open_again
    for cluster in opened:
        await cluster.close()


class TestRayCluster(ClusterContract):
    @pytest.fixture
    async def tested(self, open_cluster: Open) -> ClusterUnderTest:
        return under_test(open_cluster(), "fast")


async def lost(cluster: RayCluster) -> str:
    """Why the next thing that is told is a loss."""
    told = await next_of(cluster.watch())
    assert isinstance(told, ReplicaLost), told
    return told.why


def parent(process: Process) -> Process:
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = Process.of(int(next(line for line in status.splitlines() if line.startswith("PPid:")).split()[1]))
    assert found is not None
    return found


async def actor(cluster: RayCluster, replica: ReplicaId) -> Process:
    """The worker process that is the actor of a replica."""
    found = Process.of(int(await cluster._link.call(str(replica), "worker")))
    assert found is not None
    return found


# --- starts ------------------------------------------------------------------------------------------------


async def test_an_engine_that_exits_at_once_is_quoted(open_cluster: Open) -> None:
    cluster = open_cluster(lambda _, __: ["sh", "-c", "echo loading; echo no weights here >&2; exit 3"])
    await cluster.start(a_spec(accelerator="fast"))
    why = await lost(cluster)
    assert "ended with status 3" in why
    assert "loading | no weights here" in why


async def test_a_command_that_does_not_exist_is_named(open_cluster: Open) -> None:
    cluster = open_cluster(lambda _, __: ["/no/such/engine"])
    await cluster.start(a_spec(accelerator="fast"))
    assert "cannot run /no/such/engine: No such file or directory" in await lost(cluster)


async def test_a_command_that_cannot_be_made_is_told(open_cluster: Open) -> None:
    def no_command(spec: ReplicaSpec, listen: Listen) -> Sequence[str]:
        raise InvalidInput("no weights for small; run `make setup`")

    cluster = open_cluster(no_command)
    await cluster.start(a_spec(accelerator="fast"))
    assert "no weights for small; run `make setup`" in await lost(cluster)


async def test_a_replica_of_somebody_else_is_not_started(open_cluster: Open) -> None:
    cluster = open_cluster()
    await cluster.start(a_spec(url="http://127.0.0.1:1/v1"))
    assert "somebody else" in await lost(cluster)


async def test_an_engine_that_is_never_healthy_is_ended(open_cluster: Open) -> None:
    cluster = open_cluster(lambda _, __: ["sleep", "1000"], start_limit_s=20.0)
    await cluster.start(a_spec(accelerator="fast"))
    engine = await until_it_runs(cluster)
    assert "its engine is not healthy" in await lost(cluster)
    await gone(engine)


async def test_a_start_without_room_says_why_and_goes_on_when_a_node_joins(
    open_cluster: Open, machines: Machines
) -> None:
    hasty = open_cluster(start_limit_s=3.0)
    await hasty._link.ask("names")
    await hasty.start(a_spec("hasty", "late"))
    assert "no node has 1 accelerator_type:late" in await lost(hasty)
    cluster = open_cluster()
    await cluster.start(a_spec(accelerator="late"))
    await asyncio.to_thread(machines.add, "three", late=1)
    try:
        assert await next_of(cluster.watch()) == ReplicaReady(SMALL, SLOTS)
        full = open_cluster(start_limit_s=3.0)
        await full._link.ask("names")
        await full.start(a_spec("small-1", "late"))
        assert "0 of 1 accelerator_type:late" in await lost(full)
    finally:
        await cluster.close()
        await asyncio.to_thread(machines.remove, "three")


async def test_cards_of_one_replica_are_on_one_node(open_cluster: Open) -> None:
    cluster = open_cluster(
        resources_for=lambda spec: {"resources": {f"accelerator_type:{spec.accelerator}": 2}},
        start_limit_s=20.0,
    )
    engine = await ready(cluster, a_spec(accelerator="fast"))
    await cluster.start(a_spec("small-1", "fast"))
    assert "it needs 2 accelerator_type:fast, and free is 0 of 2" in await lost(cluster)
    assert engine.is_alive()


async def test_a_port_taken_in_between_is_given_up_for_another(open_cluster: Open) -> None:
    # The other server answers /health as well, and is still not taken for ours.
    async with ScriptedServer() as other:
        taken = other.root.rpartition(":")[2]
        tries: list[int] = []

        def server(spec: ReplicaSpec, listen: Listen) -> Sequence[str]:
            if listen.port not in tries:
                tries.append(listen.port)
            made = command(spec, listen.port)
            return [*made[:-1], taken] if tries[0] == listen.port else made

        cluster = open_cluster(server)
        await cluster.start(a_spec(accelerator="fast"))
        # The port that the actor chose is free, so the engine's own mistake is not taken for a collision.
        assert "Address already in use" in await lost(cluster)


# --- ends --------------------------------------------------------------------------------------------------


async def test_a_killed_engine_is_lost_with_its_signal_and_its_last_words(open_cluster: Open) -> None:
    cluster = open_cluster()
    engine = await ready(cluster, a_spec(accelerator="fast"))
    os.kill(engine.pid, signal.SIGKILL)
    why = await lost(cluster)
    assert "was ended by SIGKILL" in why
    assert "small is listening" in why


@pytest.mark.parametrize("who", ["the actor", "the keeper"])
async def test_an_engine_and_all_it_started_die_with_its_supervisor(
    open_cluster: Open, tmp_path: Path, who: str
) -> None:
    # Whoever kills the keeper too is not spared what has left the engine's process group.
    cluster = open_cluster(with_a_helper(tmp_path / "helper", is_apart=who == "the actor"))
    engine = await ready(cluster, a_spec(accelerator="fast"))
    helper = Process.of(int((tmp_path / "helper").read_text()))
    assert helper is not None
    victim = parent(engine) if who == "the keeper" else await actor(cluster, SMALL)
    os.kill(victim.pid, signal.SIGKILL)
    assert ("its actor is gone" if who == "the actor" else "killed together with its keeper") in await lost(
        cluster
    )
    await gone(engine, helper)


async def test_close_ends_everything_the_engines_started(open_cluster: Open, tmp_path: Path) -> None:
    cluster = open_cluster(with_a_helper(tmp_path / "helper"))
    engine = await ready(cluster, a_spec(accelerator="fast"))
    helper = Process.of(int((tmp_path / "helper").read_text()))
    assert helper is not None
    await cluster.close()
    assert not engine.is_alive()
    await gone(helper)


async def test_an_engine_that_ignores_sigterm_is_killed(open_cluster: Open) -> None:
    cluster = open_cluster(
        lambda spec, listen: [*small_server(spec, listen), "--ignore-sigterm"], stop_grace_s=0.1
    )
    engine = await ready(cluster, a_spec(accelerator="fast"))
    await cluster.stop(SMALL)
    assert await next_of(cluster.watch()) == ReplicaStopped(SMALL)
    assert not engine.is_alive()


async def test_a_lost_node_is_told_and_a_new_one_takes_its_replicas(
    open_cluster: Open, machines: Machines
) -> None:
    machines.add("three", late=1)
    cluster = open_cluster()
    engine = await ready(cluster, a_spec(accelerator="late"))
    await asyncio.to_thread(machines.kill, "three")
    why = await lost(cluster)
    assert "does not answer" in why or "gone" in why
    await gone(engine)
    await cluster.start(a_spec(accelerator="late"))
    await asyncio.to_thread(machines.add, "four", late=1)
    try:  # for a while Ray may still place actors on the node that is gone; the kernel orders again
        while (told := await next_of(cluster.watch())) != ReplicaReady(SMALL, SLOTS):
            assert isinstance(told, ReplicaLost)
            await cluster.start(a_spec(accelerator="late"))
    finally:
        await cluster.close()
        await asyncio.to_thread(machines.remove, "four")


async def test_a_silent_replica_is_lost_and_not_doubled_when_it_wakes(open_cluster: Open) -> None:
    cluster = open_cluster()
    engine = await ready(cluster, a_spec(accelerator="fast"))
    worker = await actor(cluster, SMALL)
    for process in (engine, worker):
        os.kill(process.pid, signal.SIGSTOP)
    assert "does not answer" in await lost(cluster)
    await cluster.start(a_spec(accelerator="fast"))
    assert await next_of(cluster.watch()) == ReplicaReady(SMALL, SLOTS)
    assert cluster.process_id(SMALL) != engine.pid
    await gone(engine, worker)


# --- the death of the runtime, and of its connection ---------------------------------------------------------


async def test_replicas_serve_on_while_the_connection_with_ray_is_made_anew(open_cluster: Open) -> None:
    cluster = open_cluster()
    engine = await ready(cluster, a_spec(accelerator="fast"))
    hands = cluster._link._hands
    assert hands is not None
    hands.kill()
    await hands.wait()
    assert await answers(cluster.url(SMALL))
    await cluster.stop(SMALL)
    assert await next_of(cluster.watch()) == ReplicaStopped(SMALL)
    await gone(engine)


async def test_the_engines_of_a_killed_runtime_are_adopted_or_ended(
    open_cluster: Open, tmp_path: Path, machines: Machines
) -> None:
    names = ("kept", "changed", "unclaimed", "waiting")
    cards = ("fast", "fast", "slow", "nowhere")
    kept, changed, unclaimed = await asyncio.to_thread(
        killed_runtime, machines.address, tmp_path, dict(zip(names, cards, strict=True))
    )
    assert all(process.is_alive() for process in (kept, changed, unclaimed))

    def another_command(spec: ReplicaSpec, listen: Listen) -> Sequence[str]:
        return [*small_server(spec, listen), *(["--name", "changed"] if spec.id == "changed" else [])]

    cluster = open_cluster(another_command)
    assert await ready(cluster, a_spec("kept", "fast")) == kept
    assert await answers(cluster.url(ReplicaId("kept")))
    assert await ready(cluster, a_spec("changed", "fast")) != changed
    assert not changed.is_alive()
    assert await cluster.end_unclaimed() == ("unclaimed", "waiting")
    assert not unclaimed.is_alive()
    assert kept.is_alive()
    os.kill(kept.pid, signal.SIGKILL)
    assert "was ended by SIGKILL" in await lost(cluster)


async def test_what_a_killed_runtime_left_can_be_stopped_without_being_adopted(
    open_cluster: Open, tmp_path: Path, machines: Machines
) -> None:
    (left,) = await asyncio.to_thread(killed_runtime, machines.address, tmp_path, {"small-0": "fast"})
    cluster = open_cluster()
    await cluster.stop(SMALL)
    assert await next_of(cluster.watch()) == ReplicaStopped(SMALL)
    assert not left.is_alive()


def killed_runtime(address: str, folder: Path, card_by_replica: Mapping[str, str]) -> list[Process]:
    """Run a runtime with these replicas until all that can be are ready, kill it; their processes."""
    path = os.pathsep.join(place for place in sys.path if place)
    words = [f"{name}={card}" for name, card in card_by_replica.items()]
    with subprocess.Popen(
        [sys.executable, str(RUNTIME), address, str(folder / "state"), *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as runtime:
        assert runtime.stdout is not None
        found = [Process.of(int(pid)) for pid in runtime.stdout.readline().split()]
        runtime.kill()
    return [process for process in found if process is not None]


def with_a_helper(file: Path, *, is_apart: bool = True) -> Callable[[ReplicaSpec, Listen], Sequence[str]]:
    """A command whose engine has a child that would outlive it, in its process group or apart from it."""
    return lambda spec, listen: [
        "sh",
        "-c",
        f"{'setsid' if is_apart else ''} sleep 1000 & echo $! > {file}; exec {shlex.join(small_server(spec, listen))}",
    ]


async def until_it_runs(cluster: RayCluster) -> Process:
    found: list[Process] = []

    async def is_running() -> bool:
        with suppress(KeyError):
            process = Process.of(cluster.process_id(SMALL))
            found.extend([process] if process is not None else [])
        return bool(found)

    await until(is_running)
    return found[0]
