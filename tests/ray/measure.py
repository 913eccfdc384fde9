"""Figures of failures on Ray: how soon a loss is told, how soon the replica is back, and what became of the runs.

`python -m tests.ray.measure --out docs/results/ray.json` starts three nodes on this machine and `tightrope serve` under
load, and kills engines, actors, a node and the runtime. As root it goes on with machines that have their own networks:
one loses its power, or its cable. Nothing here is asserted; the tests beside it do that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.chaos.served import Served, marked, new_mark, until
from tests.ray.lan import Lan, lan, why_not
from tests.ray.machines import FAST, SLOW, Machines, started
from tests.ray.served import LLAMACPP, engines, load, now_s, told, worker_of, write_config
from tightrope.adapters.process import Process

REPLICAS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5, help="how often each is killed")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, started() as machines:
        figures = measure(Path(folder), machines, options.times)
    if (why := why_not()) is None:
        with tempfile.TemporaryDirectory() as folder, lan({"one": {FAST: 2}, "two": {SLOW: 2}}) as network:
            figures["several_machines"] = measure_machines(Path(folder), network, options.times)
    else:
        print(f"not measured: {why}", file=sys.stderr)
    text = json.dumps(figures, indent=1) + "\n"
    print(text, end="")
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


def measure(folder: Path, machines: Machines, times: int) -> dict[str, object]:
    """Everything, one after the other, on one state folder."""
    mark = new_mark()
    write_config(folder, machines.address, fasts=2, arguments=["--delay-ms", "20"])
    served = Served(folder, mark).until_listening()
    try:
        until(lambda: served.ready_replicas() == REPLICAS)
        statuses: Counter[int] = Counter()
        kills = {
            "engine": _killed(served, times, lambda: os.kill(min(engines(folder)), signal.SIGKILL), statuses),
            "actor": _killed(
                served, times, lambda: os.kill(worker_of(min(engines(folder))).pid, signal.SIGKILL), statuses
            ),
            "node": _killed(
                served, times, lambda: machines.kill("two"), statuses, lambda: machines.add("two", slow=2)
            ),
        }
        restarts, doubled, served = _restarted(served, times)
    finally:
        served.end()
    until(lambda: not marked(mark))
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, with three Ray nodes on it",
        "engines": "test servers that answer at 20 ms a piece",
        **_told(kills, statuses),
        "runtime_killed": {
            "restart_to_all_adopted": _summary(restarts),
            "engines_started_twice": doubled,
            "engines_left_in_the_end": len(engines(folder)),
        },
    }


def measure_machines(folder: Path, network: Lan, times: int) -> dict[str, object]:
    """One of two machines, each with a real engine, goes away and comes back."""
    mark = new_mark()
    write_config(folder, network.address, engine=LLAMACPP)
    served, one = Served(folder, mark).until_listening(), network.machines["one"]
    try:
        until(lambda: served.ready_replicas() == len(network.machines))
        statuses: Counter[int] = Counter()
        kills = {
            "power": _killed(served, times, one.cut_power, statuses, one.join, max_tokens=8),
            "cable": _killed(served, times, one.unplug, statuses, one.plug, max_tokens=8),
        }
    finally:
        served.end()
    until(lambda: not marked(mark))
    left = sum(len(machine.engines()) for machine in network.machines.values())
    return {"engines": "llama.cpp", **_told(kills, statuses), "engines_left_in_the_end": left}


def _told(kills: Mapping[str, Mapping[str, list[float]]], statuses: Counter[int]) -> dict[str, object]:
    return {
        "seconds": {
            name: {what: _summary(values) for what, values in one.items()} for name, one in kills.items()
        },
        "runs": {"answered": statuses.pop(200, 0), "failed": sum(statuses.values())},
    }


def _killed(
    served: Served,
    times: int,
    kill: Callable[[], None],
    statuses: Counter[int],
    returns: Callable[[], None] | None = None,
    **asked: int,
) -> dict[str, list[float]]:
    """Kill again and again under load: when the loss was told, and when all was ready again; from the kill, or from
    what `returns` once the loss is known."""
    lost_s, ready_s = [], []
    for _ in range(times):
        lost, ready = _count(served, "ReplicaLost"), _count(served, "ReplicaReady")
        with load(served, **asked) as answers:
            from_s = now_s()
            kill()
            lost_s.append(_next_s(served, "ReplicaLost", lost) - from_s)
            if returns is not None:
                from_s = now_s()
                returns()
            ready_s.append(_next_s(served, "ReplicaReady", ready) - from_s)
        statuses.update(answer.result() for answer in answers)
    again = "until_ready_again" if returns is None else "from_its_return_until_ready"
    return {"until_told_lost": lost_s, again: ready_s}


def _restarted(served: Served, times: int) -> tuple[list[float], int, Served]:
    """Kill the runtime and start it again: when all replicas were ready, and engines that were not there before."""
    restarts, doubled = [], 0
    for _ in range(times):
        before = {Process.of(pid) for pid in engines(served.folder)}
        ready = _count(served, "ReplicaReady")
        served.signal(signal.SIGKILL)
        served.wait()
        begun_s = now_s()
        served = Served(served.folder, served.mark)
        restarts.append(_next_s(served, "ReplicaReady", ready + REPLICAS - 1) - begun_s)
        doubled += len({Process.of(pid) for pid in engines(served.folder)} - before)
    return restarts, doubled, served


def _count(served: Served, kind: str) -> int:
    return sum(1 for _ in told(served, kind))


def _next_s(served: Served, kind: str, seen: int) -> float:
    """When the next one was told after so many."""
    until(lambda: _count(served, kind) > seen)
    return [at_s for at_s, _ in told(served, kind)][seen]


def _summary(values: list[float]) -> dict[str, object]:
    return {
        "times": len(values),
        "median": round(statistics.median(values), 2),
        "worst": round(max(values), 2),
    }


if __name__ == "__main__":
    main()
