"""A Ray that Tightrope starts for itself, and one that somebody has started here before: no token is configured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.conftest import _started
from tests.chaos.served import Served, until
from tests.ray.machines import FAST, SLOW
from tests.ray.served import engines, write_config
from tightrope.adapters.engine_process import free_port

pytestmark = pytest.mark.ray

Start = Callable[..., Served]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own: Ray keeps its token there."""
    pytest.importorskip("ray", reason="Ray is not installed: make test-ray")
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")
    return folder


@pytest.fixture
def start(tmp_path: Path, home: Path) -> Iterator[Start]:
    """Starts `tightrope serve` in the test's folder; in the end no process of it may be left."""
    with _started(tmp_path) as begin:
        yield begin


def answers(served: Served) -> bool:
    """Whether both replicas come and a call is answered."""
    served.until_listening()
    until(lambda: served.ready_replicas() == 2)
    return served.ask().status_code == 200


def test_a_ray_of_its_own_ends_with_the_runtime(start: Start, tmp_path: Path) -> None:
    write_config(tmp_path, "local", token=None)
    served = start()
    assert answers(served)
    assert len(engines(tmp_path)) == 2
    served.signal(signal.SIGTERM)
    assert served.wait() == 0
    assert engines(tmp_path) == {}


@pytest.mark.parametrize("has_token", [True, False])
def test_a_ray_that_was_started_here_is_reached_as_it_was_started(
    start: Start, tmp_path: Path, home: Path, has_token: bool
) -> None:
    if has_token:
        (home / ".ray").mkdir()
        (home / ".ray" / "auth_token").write_text("f" * 64)
    with started_here(has_token) as address:
        write_config(tmp_path, address, token=None)
        first = start()
        assert answers(first)
        first.signal(signal.SIGKILL)
        first.wait()
        before = engines(tmp_path)
        second = start()
        assert answers(second)
        assert engines(tmp_path) == before
        second.signal(signal.SIGTERM)
        assert second.wait() == 0
        assert engines(tmp_path) == {}


@contextmanager
def started_here(asks_for_token: bool) -> Iterator[str]:
    """`ray start --head`; its address."""
    port = free_port()
    cards = f'{{"accelerator_type:{FAST}": 2, "accelerator_type:{SLOW}": 2}}'
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}",
        "--include-dashboard=false", f"--resources={cards}",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as ray:
        assert ray.stdout is not None
        said = ""
        for line in ray.stdout:
            said += line
            if "runtime started" in line:
                break
        assert ray.poll() is None, said
        assert ("authentication is enabled" in said) == asks_for_token
        try:
            yield f"127.0.0.1:{port}"
        finally:
            os.kill(ray.pid, signal.SIGTERM)
            ray.communicate(timeout=60)
