"""`tightrope serve` on three nodes: actors, engines, a node and the runtime itself are killed under load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.conftest import _started
from tests.chaos.served import Served, content_of, until
from tests.ray.machines import Machines
from tests.ray.served import CALLERS, engines, load, told, worker_of, write_config
from tightrope.adapters.process import Process

pytestmark = pytest.mark.ray

Start = Callable[..., Served]


@pytest.fixture
def start(tmp_path: Path, machines: Machines) -> Iterator[Start]:
    """Starts `tightrope serve` in the test's folder; in the end it is ended, and no engine may be left."""
    with _started(tmp_path) as begin:
        yield begin
    assert engines(tmp_path) == {}


def ready(served: Served, replicas: int) -> Served:
    served.until_listening()
    until(lambda: served.ready_replicas() >= replicas)
    return served


def count(served: Served, kind: str) -> int:
    return sum(1 for _ in told(served, kind))


@pytest.mark.parametrize("victim", ["engine", "actor"])
def test_no_run_is_lost_with_a_replica_when_there_is_another(
    start: Start, machines: Machines, tmp_path: Path, victim: str
) -> None:
    write_config(tmp_path, machines.address, arguments=["--delay-ms", "20"])
    served = ready(start(), 2)
    with load(served) as answers:
        until(lambda: len(answers) > 2 * CALLERS)
        engine = min(engines(tmp_path))
        os.kill(engine if victim == "engine" else worker_of(engine).pid, signal.SIGKILL)
        until(lambda: count(served, "ReplicaLost") == 1)
        until(lambda: served.ready_replicas() == 2)
        after = len(answers)
        until(lambda: len(answers) > after + 2 * CALLERS)
    assert {answer.result() for answer in answers} == {200}
    assert len(engines(tmp_path)) == 2
    assert engine not in engines(tmp_path)


def test_no_run_is_lost_with_a_node_and_its_replica_comes_back_with_another(
    start: Start, machines: Machines, tmp_path: Path
) -> None:
    write_config(tmp_path, machines.address, arguments=["--delay-ms", "20"])
    served = ready(start(), 2)
    with load(served) as answers:
        until(lambda: len(answers) > 2 * CALLERS)
        machines.kill("two")
        try:
            until(lambda: count(served, "ReplicaLost") >= 1)
            until(lambda: len(engines(tmp_path)) == 1)
        finally:
            machines.add("two", slow=2)
        until(lambda: served.ready_replicas() == 2)
    assert {answer.result() for answer in answers} == {200}
    assert len(engines(tmp_path)) == 2


def test_a_killed_runtime_finds_its_replicas_and_ends_those_nobody_wants(
    start: Start, machines: Machines, tmp_path: Path
) -> None:
    write_config(tmp_path, machines.address, fasts=2)
    first = ready(start(), 3)
    before = {Process.of(pid) for pid in engines(tmp_path)}
    first.signal(signal.SIGKILL)
    first.wait()
    assert all(process is not None and process.is_alive() for process in before)
    write_config(tmp_path, machines.address, fasts=1)
    second = ready(start(), 2)
    until(lambda: len(engines(tmp_path)) == 2)
    assert {Process.of(pid) for pid in engines(tmp_path)} <= before
    assert second.ask().status_code == 200
    assert count(second, "ReplicaLost") == 0


def test_a_replica_that_is_not_planned_any_more_drains_before_it_ends(
    start: Start, machines: Machines, tmp_path: Path
) -> None:
    write_config(tmp_path, machines.address, slows=0, arguments=["--delay-ms", "100"])
    served = ready(start(), 1)
    with served.stream() as events:
        seen = [next(events)]
        served.signal(signal.SIGTERM)
        until(lambda: "draining" in served.text)
        seen += list(events)
    assert seen[-1] == "[DONE]"
    assert len(content_of(seen).split()) >= 8
    assert served.wait() == 0
    assert engines(tmp_path) == {}


def test_a_fleet_on_ray_comes_when_it_is_asked_and_goes_when_it_is_not(
    start: Start, machines: Machines, tmp_path: Path
) -> None:
    write_config(tmp_path, machines.address, is_elastic=True, arguments=["--delay-ms", "20"])
    served = start().until_listening()
    statuses = []
    for _ in range(2):
        assert engines(tmp_path) == {}
        with load(served) as answers:
            until(lambda: len(answers) > 2 * CALLERS)
        statuses += [answer.result() for answer in answers]
        until(lambda: engines(tmp_path) == {})
    assert set(statuses) == {200}
    assert count(served, "ReplicaLost") == 0
    assert count(served, "ReplicaReady") >= 2
    until(lambda: count(served, "ReplicaStopped") == count(served, "ReplicaReady"))


def test_serving_goes_on_without_the_process_that_speaks_to_ray(
    start: Start, machines: Machines, tmp_path: Path
) -> None:
    write_config(tmp_path, machines.address)
    served = ready(start(), 2)
    (hands,) = hands_of(served)
    os.kill(hands, signal.SIGKILL)
    assert served.ask().status_code == 200
    until(lambda: hands_of(served) not in ([], [hands]))
    (engine, _) = engines(tmp_path)
    os.kill(engine, signal.SIGKILL)
    until(lambda: count(served, "ReplicaLost") == 1)
    until(lambda: served.ready_replicas() == 2)


def test_a_profile_is_measured_on_a_node(machines: Machines, tmp_path: Path) -> None:
    write_config(tmp_path, machines.address)
    command = [sys.executable, "-m", "tightrope.app.cli", "--config", str(tmp_path / "tightrope.yaml")]
    ended = subprocess.run(
        [*command, "profile", "small", "--on", "slow", "--quick"], capture_output=True, text=True, check=False
    )
    assert "did not start" not in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr
    assert engines(tmp_path) == {}


def hands_of(served: Served) -> list[int]:
    children = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split()
    return [
        int(pid)
        for pid in children
        if b"tightrope.adapters.ray_hands" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
