"""Engines on other machines: calls across the network, keys, a machine without power, and a cable that is pulled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.chaos.conftest import _started
from tests.chaos.served import Served, until
from tests.ray.lan import Lan, lan, why_not
from tests.ray.machines import FAST, SLOW
from tests.ray.served import CALLERS, LLAMACPP, load, told, write_config

pytestmark = pytest.mark.ray

Start = Callable[..., Served]


@pytest.fixture(scope="module")
def network() -> Iterator[Lan]:
    """One machine with fast cards and one with slow ones."""
    pytest.importorskip("ray", reason="Ray is not installed: make test-ray")
    if (why := why_not()) is not None:
        pytest.skip(why)
    with lan({"one": {FAST: 2}, "two": {SLOW: 2}}) as found:
        yield found


@pytest.fixture
def start(tmp_path: Path, network: Lan) -> Iterator[Start]:
    """Starts `tightrope serve` on this machine; in the end no engine may be left on any."""
    with _started(tmp_path) as begin:
        yield begin
    assert [machine.engines() for machine in network.machines.values()] == [[], []]


def test_calls_go_to_real_engines_there_and_nobody_else_gets_an_answer(
    start: Start, network: Lan, tmp_path: Path
) -> None:
    write_config(tmp_path, network.address, engine=LLAMACPP)
    served = start().until_listening()
    until(lambda: served.ready_replicas() == 2)
    for machine in network.machines.values():
        (command,) = machine.engines()
        assert command[command.index("--host") + 1] == machine.address
        url = f"http://{machine.address}:{command[command.index('--port') + 1]}/v1/completions"
        assert httpx.post(url, json={"prompt": "hello", "max_tokens": 1}, timeout=30).status_code == 401
    with load(served, max_tokens=8) as answers:
        until(lambda: len(answers) > 2 * CALLERS)
    assert {answer.result() for answer in answers} == {200}


@pytest.mark.parametrize("how", ["power", "cable"])
def test_no_run_is_lost_with_a_machine_and_its_replica_comes_back_with_it(
    start: Start, network: Lan, tmp_path: Path, how: str
) -> None:
    write_config(tmp_path, network.address, engine=LLAMACPP)
    served, machine = start().until_listening(), network.machines["one"]
    until(lambda: served.ready_replicas() == 2)
    with load(served, max_tokens=8) as answers:
        until(lambda: len(answers) > 2 * CALLERS)
        if how == "power":
            machine.cut_power()
        else:
            machine.unplug()
        until(lambda: sum(1 for _ in told(served, "ReplicaLost")) == 1)
        after = len(answers)
        until(lambda: len(answers) > after + 2 * CALLERS)
        if how == "power":
            machine.join()
        else:
            machine.plug()  # before Ray has given the node up: its actor and its engine are still there
        until(lambda: served.ready_replicas() == 2)
    assert {answer.result() for answer in answers} == {200}
    assert [len(one.engines()) for one in network.machines.values()] == [1, 1]


def test_an_engine_there_that_asks_for_no_key_is_refused(start: Start, network: Lan, tmp_path: Path) -> None:
    write_config(tmp_path, network.address)
    served = start().until_listening()
    until(lambda: "its engine answers without a key beyond this machine" in served.text)
    assert served.ready_replicas() == 0
