"""The cluster of local processes: the contract of every cluster, and the ways a process can disappoint."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.contract.cluster_contract import (
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
from tests.contract.engine_contract import broken_answer, until
from tightrope.adapters.cluster_local import LocalCluster
from tightrope.adapters.engine_openai import OpenAIEngine
from tightrope.adapters.engine_process import free_port
from tightrope.adapters.process import Process
from tightrope.adapters.processor_share import DutyCycle, QuotaV1
from tightrope.model.errors import InvalidInput
from tightrope.model.fleet import Accelerator, ReplicaSpec
from tightrope.model.ids import AcceleratorName, ReplicaId
from tightrope.model.messages import ReplicaLost, ReplicaReady, ReplicaStopped
from tightrope.model.outcome import FailureKind
from tightrope.ports import EngineRequest
from tightrope.testing.server import ScriptedServer

PLAIN, HALF, QUARTER = (AcceleratorName(name) for name in ("plain", "half", "quarter"))
ACCELERATORS = {
    PLAIN: Accelerator(PLAIN),
    HALF: Accelerator(HALF, share=0.5),
    QUARTER: Accelerator(QUARTER, share=0.25),
}
SMALL = ReplicaId("small-0")

Command = Callable[[ReplicaSpec, int], Sequence[str]]
Open = Callable[..., LocalCluster]


def server_command(*options: str) -> Command:
    return lambda spec, port: [*command(spec, port), *options]


@pytest.fixture
async def open_cluster(tmp_path: Path) -> AsyncIterator[Open]:
    """Opens clusters on one state directory; all are closed at the end, and nothing may be left."""
    opened: list[LocalCluster] = []

    def open_again(command_for: Command | None = None, **settings: object) -> LocalCluster:
        cluster = LocalCluster(
            tmp_path / "state",
            command_for or command,
            accelerators=ACCELERATORS,
            log_dir=tmp_path / "logs",
            **settings,  # type: ignore[arg-type]
        )
        opened.append(cluster)
        return cluster

    yield open_again
    for cluster in opened:
        await cluster.close()
    assert [file.name for file in (tmp_path / "state" / "replicas").iterdir()] == ["lock"]


class TestLocalCluster(ClusterContract):
    @pytest.fixture
    async def tested(self, open_cluster: Open) -> ClusterUnderTest:
        return under_test(open_cluster())


async def lost(cluster: LocalCluster, spec: ReplicaSpec) -> str:
    """Start a replica that cannot live; why it is lost."""
    await cluster.start(spec)
    told = await next_of(cluster.watch())
    assert isinstance(told, ReplicaLost), told
    return told.why


# --- starts that fail --------------------------------------------------------------------------------------


async def test_a_command_that_does_not_exist_is_named(open_cluster: Open) -> None:
    why = await lost(open_cluster(lambda _, __: ["/no/such/engine", "--fast"]), a_spec())
    assert "ended with status 127" in why
    assert "cannot run /no/such/engine: No such file or directory" in why


async def test_an_engine_that_exits_at_once_is_quoted(open_cluster: Open) -> None:
    cluster = open_cluster(lambda _, __: ["sh", "-c", "echo loading; echo no weights here >&2; exit 3"])
    why = await lost(cluster, a_spec())
    assert "ended with status 3" in why
    assert "loading | no weights here" in why
    assert str(cluster.log_file(SMALL)) in why


async def test_an_engine_that_is_never_healthy_is_ended(open_cluster: Open) -> None:
    cluster = open_cluster(lambda _, __: ["sleep", "1000"], start_limit_s=0.1)
    await cluster.start(a_spec())
    process = await until_it_runs(cluster)
    told = await next_of(cluster.watch())
    assert isinstance(told, ReplicaLost)
    assert "not healthy after 0.1 s" in told.why
    assert not process.is_alive()


async def test_a_command_that_cannot_be_made_is_told(open_cluster: Open) -> None:
    def no_command(spec: ReplicaSpec, port: int) -> Sequence[str]:
        raise InvalidInput("no weights for small; run `make setup`")

    assert "no weights for small; run `make setup`" in await lost(open_cluster(no_command), a_spec())


async def test_a_replica_of_somebody_else_is_not_started(open_cluster: Open) -> None:
    assert "somebody else" in await lost(open_cluster(), a_spec(url="http://127.0.0.1:1/v1"))


async def test_a_port_taken_in_between_is_given_up_for_another(open_cluster: Open) -> None:
    # The other server answers /health as well, and is still not taken for ours.
    async with ScriptedServer() as other:
        ports = iter([int(other.root.rpartition(":")[2])])
        cluster = open_cluster(find_port=lambda: next(ports, None) or free_port())
        await ready(cluster, a_spec())
        assert cluster.url(SMALL) != other.url


async def test_ports_that_are_always_taken_are_named(open_cluster: Open) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        why = await lost(open_cluster(find_port=lambda: port), a_spec())
    assert f"port {port} was taken by another process" in why


async def test_a_state_directory_has_one_owner(open_cluster: Open) -> None:
    open_cluster()
    with pytest.raises(InvalidInput, match="in use by another runtime"):
        open_cluster()


# --- ends --------------------------------------------------------------------------------------------------


async def test_close_ends_everything_the_engines_started(open_cluster: Open, tmp_path: Path) -> None:
    helper = tmp_path / "helper"
    cluster = open_cluster(
        lambda spec, port: [
            "sh",
            "-c",
            f"sleep 1000 & echo $! > {helper}; exec {shlex.join(command(spec, port))}",
        ]
    )
    engine = await ready(cluster, a_spec())
    started = Process.of(int(helper.read_text()))
    assert started is not None
    await cluster.close()
    assert not engine.is_alive()
    await gone(started)


async def test_an_engine_that_ignores_sigterm_is_killed(open_cluster: Open) -> None:
    cluster = open_cluster(server_command("--ignore-sigterm"), stop_grace_s=0.1)
    engine = await ready(cluster, a_spec())
    await cluster.stop(SMALL)
    assert await next_of(cluster.watch()) == ReplicaStopped(SMALL)
    assert not engine.is_alive()


async def test_a_stopped_process_can_still_be_ended(open_cluster: Open) -> None:
    cluster = open_cluster()
    engine = await ready(cluster, a_spec())
    engine.signal_group(signal.SIGSTOP)
    await cluster.stop(SMALL)
    assert await next_of(cluster.watch()) == ReplicaStopped(SMALL)
    assert not engine.is_alive()


async def test_a_killed_engine_is_lost_with_its_signal_and_its_last_words(open_cluster: Open) -> None:
    cluster = open_cluster()
    engine = await ready(cluster, a_spec())
    engine.signal_group(signal.SIGKILL)
    told = await next_of(cluster.watch())
    assert isinstance(told, ReplicaLost)
    assert "was ended by SIGKILL" in told.why
    assert "small is listening" in told.why


# --- the death of the runtime ------------------------------------------------------------------------------

RUNTIME = Path(__file__).with_name("doomed_runtime.py")


@pytest.fixture
def killed_runtime(tmp_path: Path) -> Iterator[Callable[..., list[Process]]]:
    """Runs a runtime with these replicas until all are ready, kills it with SIGKILL; their processes."""
    left: list[Process] = []

    def run(*replicas: str, mechanism: str = "found", dies: str = "lives") -> list[Process]:
        path = os.pathsep.join(place for place in sys.path if place)
        with subprocess.Popen(
            [sys.executable, str(RUNTIME), str(tmp_path), mechanism, dies, *replicas],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        ) as runtime:
            assert runtime.stdout is not None
            processes = [Process.of(int(pid)) for pid in runtime.stdout.readline().split()]
            runtime.kill()
        found = [process for process in processes if process is not None]
        assert len(found) == len(replicas)
        left.extend(found)
        return found

    yield run
    for process in left:
        assert not process.is_alive()


@pytest.mark.parametrize("mechanism", ["found", "duty-cycle"])
async def test_the_engines_of_a_killed_runtime_are_adopted_or_ended(
    killed_runtime: Callable[..., list[Process]], open_cluster: Open, mechanism: str
) -> None:
    kept, changed, unclaimed = killed_runtime("kept", "changed", "unclaimed", mechanism=mechanism)
    assert all(process.is_alive() for process in (kept, changed, unclaimed))

    def another_command(spec: ReplicaSpec, port: int) -> Sequence[str]:
        return [*command(spec, port), *(["--name", "changed"] if spec.id == "changed" else [])]

    cluster = open_cluster(another_command, mechanism=DutyCycle() if mechanism == "duty-cycle" else None)
    assert await ready(cluster, a_spec("kept", "half")) == kept
    assert await answers(cluster.url(ReplicaId("kept")))
    assert await ready(cluster, a_spec("changed", "half")) != changed
    assert not changed.is_alive()
    assert await cluster.end_unclaimed() == ("unclaimed",)
    assert not unclaimed.is_alive()
    assert kept.is_alive()
    kept.signal_group(signal.SIGKILL)
    assert await next_of(cluster.watch()) == ReplicaLost(
        ReplicaId("kept"),
        f"its process is gone; {cluster.log_file(ReplicaId('kept'))} ends with: "
        + cluster.log_file(ReplicaId("kept")).read_text().strip(),
    )


async def test_what_a_killed_runtime_left_can_be_stopped_without_being_adopted(
    killed_runtime: Callable[..., list[Process]], open_cluster: Open
) -> None:
    (left,) = killed_runtime("small-0")
    cluster = open_cluster()
    await cluster.stop(SMALL)
    assert await next_of(cluster.watch()) == ReplicaStopped(SMALL)
    assert not left.is_alive()


async def test_engines_can_be_made_to_die_with_their_runtime(
    killed_runtime: Callable[..., list[Process]], open_cluster: Open
) -> None:
    (engine,) = killed_runtime("small-0", dies="dies")
    await gone(engine)
    await open_cluster().end_unclaimed()


# --- shares ------------------------------------------------------------------------------------------------


async def test_shares_are_pinned_apart_and_quotas_can_change(open_cluster: Open) -> None:
    cluster = open_cluster()
    half = await ready(cluster, a_spec("half-0", "half"))
    quarter = await ready(cluster, a_spec("quarter-0", "quarter"))
    cores = [os.sched_getaffinity(process.pid) for process in (half, quarter)]
    assert [len(pinned) for pinned in cores] == [1, 1]
    if len(os.sched_getaffinity(0)) > 1:
        assert cores[0] != cores[1]
    mechanism = cluster._shares.mechanism
    if isinstance(mechanism, QuotaV1):
        assert [quota_of(process) for process in (half, quarter)] == [5000, 2500]
        cluster.set_share(ReplicaId("half-0"), 0.3)
        assert quota_of(half) == 3000
        cluster.set_share(ReplicaId("half-0"), None)
        assert quota_of(half) == -1
        assert os.sched_getaffinity(half.pid) == os.sched_getaffinity(0)
        groups = [group_of(process) for process in (half, quarter)]
        await cluster.close()
        assert not any(group.exists() for group in groups)
    assert str(mechanism) == cluster.share_mechanism


async def test_a_duty_cycle_stops_and_continues_and_leaves_nothing(open_cluster: Open) -> None:
    cluster = open_cluster(mechanism=DutyCycle())
    engine = await ready(cluster, a_spec("quarter-0", "quarter"))
    cycler = cluster._shares._cycler_by_key["quarter-0"]
    for state in "TST":
        await until_state(engine, state)
    cluster.set_share(ReplicaId("quarter-0"), 0.9)
    assert await answers(cluster.url(ReplicaId("quarter-0")))
    await cluster.close()
    assert cycler.returncode == 0


async def test_a_share_is_never_asked_for_an_unknown_replica(open_cluster: Open) -> None:
    with pytest.raises(KeyError):
        open_cluster().set_share(ReplicaId("nobody"), 0.5)


def group_of(process: Process) -> Path:
    lines = Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()
    own = next(line.split(":", 2)[2] for line in lines if "cpu" in line.split(":")[1].split(","))
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    mount = next(line for line in mounts if " - cgroup " in line and "cpu" in line.split()[-1].split(","))
    return Path(mount.split()[4]) / own.lstrip("/")


def quota_of(process: Process) -> int:
    return int((group_of(process) / "cpu.cfs_quota_us").read_text())


async def until_state(process: Process, state: str) -> None:
    async def is_in_it() -> bool:
        return process_state(process) == state

    await until(is_in_it)


def process_state(process: Process) -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


async def until_it_runs(cluster: LocalCluster) -> Process:
    found: list[Process] = []

    async def is_running() -> bool:
        with suppress(KeyError):
            process = Process.of(cluster.process_id(SMALL))
            found.extend([process] if process is not None else [])
        return bool(found)

    await until(is_running)
    return found[0]


# --- together with the engine ------------------------------------------------------------------------------


async def test_an_engine_that_dies_in_an_answer_fails_the_call_and_loses_the_replica(
    open_cluster: Open,
) -> None:
    fault = '{"kind": "die", "after_pieces": 3}'
    cluster = open_cluster(
        lambda _, port: [
            sys.executable,
            "-m",
            "tightrope.testing.server",
            "--port",
            str(port),
            "--fault",
            fault,
        ]
    )
    await cluster.start(a_spec())
    watch = cluster.watch()
    assert isinstance(await next_of(watch), ReplicaReady)
    engine = OpenAIEngine(cluster.url(SMALL))
    pieces, failed = await broken_answer(engine, EngineRequest("small", 16, prompt="the sea"))
    assert len(pieces) == 3
    assert failed.kind is FailureKind.REPLICA_LOST
    told = await next_of(watch)
    assert isinstance(told, ReplicaLost)
    assert "SIGKILL" in told.why
    await engine.close()
