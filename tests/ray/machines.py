"""A Ray cluster on one machine, in a process of its own: nodes that can be added, killed and frozen.

Run by path it is that process: it takes commands by lines on standard input and ends with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKEN = "a-token-of-these-tests-alone-0123456789"
FAST, SLOW = "fast", "slow"
STORE_BYTES = 100 * 2**20


@dataclass(frozen=True)
class Machines:
    """The cluster; nodes by name. `address` is what `cluster.ray.address` takes."""

    process: subprocess.Popen[str]
    address: str

    def add(self, node: str, **cards: int) -> None:
        """Have a node join, with so many cards of each kind."""
        self._do("add", node, {f"accelerator_type:{name}": count for name, count in cards.items()})

    def kill(self, node: str) -> None:
        """End all of Ray's processes of a node as a power cut does."""
        self._do("kill", node)

    def remove(self, node: str) -> None:
        """Have a node leave in order."""
        self._do("remove", node)

    def raylet(self, node: str) -> int:
        """The process of a node that starts its workers."""
        return int(self._do("raylet", node))

    def _do(self, *words: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["done"]


@contextmanager
def started(**cards: dict[str, int]) -> Iterator[Machines]:
    """A cluster of a head without cards, `one` with two fast cards and `two` with two slow ones, or the nodes given."""
    variables = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_raylet_start_wait_time_s": "120",  # on a busy machine Ray gives up too soon
    }
    with subprocess.Popen(
        [sys.executable, str(Path(__file__))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["done"]
        machines = Machines(process, address)
        try:
            for name, held in (cards or {"one": {FAST: 2}, "two": {SLOW: 2}}).items():
                machines.add(name, **held)
            yield machines
        finally:
            process.stdin.close()
            process.wait(60)


def main() -> None:
    """The process that holds the cluster."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from ray.cluster_utils import Cluster

    def say(done: object) -> None:
        answers.write(json.dumps({"done": done}) + "\n")
        answers.flush()

    head = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = {}
    say(cluster.address)
    try:
        for line in sys.stdin:
            what, name, *rest = json.loads(line)
            match what:
                case "add":
                    nodes[name] = cluster.add_node(
                        num_cpus=1, resources=rest[0], object_store_memory=STORE_BYTES
                    )
                    say(name)
                case "kill" | "remove":
                    cluster.remove_node(nodes.pop(name), allow_graceful=what == "remove")
                    say(name)
                case "raylet":
                    say(nodes[name].all_processes["raylet"][0].process.pid)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
