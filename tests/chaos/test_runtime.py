"""The runtime itself is stopped, killed, started twice, or finds no port, no disk or no sense in its configuration."""

from __future__ import annotations

import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.served import GONE, Served, content_of, is_alive, until, write_config
from tightrope.kernel.journal import Gap, read

Start = Callable[..., Served]


def test_sigterm_lets_running_runs_end_and_takes_no_new_ones(start: Start, tmp_path: Path) -> None:
    write_config(tmp_path)
    served = start().until_ready()
    (engine,) = served.engines()
    engine.fault("pause", after_pieces=2)
    with served.stream() as events:
        seen = [next(events)]
        served.signal(signal.SIGTERM)
        until(lambda: "draining" in served.text)
        refused = served.ask()
        engine.heal()
        seen += list(events)
    assert refused.status_code == 503
    assert refused.headers["x-tightrope-reason"] == "draining"
    assert seen[-1] == "[DONE]"
    assert len(content_of(seen).split()) >= 8
    assert served.wait() == 0


def test_a_second_sigterm_ends_at_once(start: Start, tmp_path: Path) -> None:
    write_config(tmp_path)
    served = start().until_ready()
    served.engines()[0].fault("stall", after_pieces=2)
    with served.stream() as events:
        seen = [next(events), next(events)]
        served.signal(signal.SIGTERM)
        until(lambda: "draining" in served.text)
        served.signal(signal.SIGTERM)
        try:
            seen += list(events)
        except GONE:
            seen.append("cut")
    assert "[DONE]" not in seen
    assert served.wait() == 0


def test_sigterm_while_engines_still_start_ends_them(start: Start, tmp_path: Path) -> None:
    write_config(tmp_path, arguments=["--load-s", "600"])
    served = start().until_listening()
    until(lambda: bool(served.engines()))
    served.signal(signal.SIGTERM)
    assert served.wait() == 0


def test_engines_of_a_killed_runtime_are_adopted_by_the_next_or_ended(start: Start, tmp_path: Path) -> None:
    write_config(tmp_path, replicas=2)
    first = start().until_ready(2)
    kept, unwanted = first.engines()
    for engine in (kept, unwanted):
        engine.fault("stall", after_pieces=2)
    with first.stream() as events:
        next(events)
        first.signal(signal.SIGKILL)
        first.wait()
        with pytest.raises(GONE):
            list(events)
    for engine in (kept, unwanted):
        assert is_alive(engine.pid)
        engine.heal()
    write_config(tmp_path, replicas=1)
    second = start().until_listening()
    third = start()  # finds the folder in use, says so and harms nobody
    second.until_ready(1)
    until(lambda: not is_alive(unwanted.pid))
    assert second.ask().status_code == 200
    assert third.wait() == 2
    assert "in use by another runtime" in third.text
    assert second.engines() == [kept]


def test_a_port_that_is_taken_is_named_and_nothing_is_started(start: Start, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        write_config(tmp_path, port=port)
        served = start()
        assert served.wait() == 5
    assert f"127.0.0.1:{port} is taken" in served.text
    assert served.engines() == []


def test_a_wrong_configuration_is_refused_with_its_place_and_its_cure(start: Start, tmp_path: Path) -> None:
    write_config(tmp_path)
    file = tmp_path / "tightrope.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("accelerators:", "acelerators:"), "utf-8")
    served = start()
    assert served.wait() == 2
    assert "acelerators" in served.text
    assert '"accelerators"' in served.text
    assert "Traceback" not in served.text
    assert served.engines() == []


def test_an_engine_that_cannot_be_run_is_named_and_the_rest_serves(start: Start, tmp_path: Path) -> None:
    write_config(tmp_path)
    file = tmp_path / "tightrope.yaml"
    more = (
        '  broken: {engine: {kind: command, command: [/no/such/engine, "{port}"]}, place: {fast: {min: 1}}}\n'
    )
    file.write_text(file.read_text(encoding="utf-8").replace("models:\n", f"models:\n{more}"), "utf-8")
    served = start().until_listening()
    until(lambda: any("/no/such/engine" in line for line in served.journal_lines()))
    until(lambda: served.ready_replicas() >= 1)
    assert served.ask().status_code == 200


def test_a_journal_that_may_grow_no_further_declares_its_gap_once_it_can(
    start: Start, tmp_path: Path
) -> None:
    write_config(tmp_path)
    served = start().until_ready()
    journal = tmp_path / "tightrope.journal"
    limit = journal.stat().st_size + 40  # room for the beginning of a line, and for no whole one
    resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for _ in range(10):
        assert served.ask().status_code == 200
    assert journal.stat().st_size <= limit
    no_limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, no_limit)
    assert served.ask().status_code == 200
    gaps = [item for item in read(served.journal_lines()) if isinstance(item, Gap)]
    assert len(gaps) == 1
    assert gaps[0].lines > 10


def test_a_store_on_a_full_disk_is_named_before_anything_is_started(start: Start, tmp_path: Path) -> None:
    write_config(tmp_path)
    served = start(file_blocks=2)
    assert served.wait() == 1
    assert "tightrope.sqlite" in served.text
    assert "Traceback" not in served.text
    assert served.engines() == []
