"""Machines on one machine: each a network stack and a Ray node of its own, behind a cable that can be pulled.

They share the processor and the disk, and nothing of the network. Needs root and iproute2.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import SystemRandom

from tests.chaos.served import until
from tests.ray.machines import TOKEN

RAY_PORT = 6390
VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "RAY_raylet_start_wait_time_s": "120",
}


def why_not() -> str | None:
    """Why there can be no such machines here; None if there can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "machines with networks of their own need root and iproute2"
    tried = subprocess.run(["ip", "netns", "add", f"probe-{os.getpid()}"], check=False, capture_output=True)
    if tried.returncode != 0:
        return f"no network namespaces here: {tried.stderr.decode().strip()}"
    _ip("netns", "del", f"probe-{os.getpid()}")
    return None


@dataclass
class Machine:
    """One machine of the network: its namespace, its address, the near end of its cable, and its cards."""

    name: str
    address: str
    cable: str
    head: str
    cards: Mapping[str, int]
    nodes: list[subprocess.Popen[str]] = field(default_factory=list)

    def join(self) -> None:
        """Have its Ray node join."""
        resources = json.dumps({f"accelerator_type:{name}": count for name, count in self.cards.items()})
        self.nodes.append(
            _ray_start(
                ["ip", "netns", "exec", self.name],
                f"--address={self.head}",
                f"--node-ip-address={self.address}",
                f"--resources={resources}",
            )
        )

    def unplug(self) -> None:
        """Pull the cable: nothing arrives any more, and nobody is told."""
        _ip("link", "set", self.cable, "down")

    def plug(self) -> None:
        """Put it back."""
        _ip("link", "set", self.cable, "up")

    def cut_power(self) -> None:
        """End everything that runs there, at once."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not self.processes())

    def end(self) -> None:
        """End what runs there, and forget the programs that were started from here."""
        self.cut_power()
        for node in self.nodes:
            _end(node)

    def processes(self) -> list[int]:
        """What runs there."""
        return [int(word) for word in _ip("netns", "pids", self.name).split()]

    def engines(self) -> list[list[str]]:
        """The command lines of the engines there."""
        lines = []
        for pid in self.processes():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                if "--host" in words and "-c" not in words:  # the keeper of an engine has it in its order
                    lines.append(words)
        return lines


@dataclass(frozen=True)
class Lan:
    """The head of Ray is on this machine, without cards; the others are behind cables."""

    address: str
    machines: Mapping[str, Machine]


@contextmanager
def lan(cards_by_machine: Mapping[str, Mapping[str, int]]) -> Iterator[Lan]:
    """Machines with these cards, whose nodes have joined."""
    number = SystemRandom().randrange(1, 250)
    bridge, net = f"lan{number}", f"10.213.{number}"
    head = f"{net}.1:{RAY_PORT}"
    with ExitStack() as stack:
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{net}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        machines = {}
        for place, (name, cards) in enumerate(cards_by_machine.items(), 11):
            machine = Machine(f"lan{number}-{name}", f"{net}.{place}", f"lan{number}c{place}", head, cards)
            _wire(stack, machine, bridge)
            machines[name] = machine
        node = _ray_start(
            [],
            "--head",
            f"--node-ip-address={net}.1",
            f"--port={RAY_PORT}",
            "--num-cpus=0",
            "--include-dashboard=false",
        )
        stack.callback(_end, node)
        for machine in machines.values():
            machine.join()
        yield Lan(head, machines)


def _wire(stack: ExitStack, machine: Machine, bridge: str) -> None:
    space = machine.name
    _ip("netns", "add", space)
    stack.callback(_ip, "netns", "del", space)
    stack.callback(machine.end)
    _ip("link", "add", machine.cable, "type", "veth", "peer", "name", "eth0", "netns", space)
    _ip("link", "set", machine.cable, "master", bridge, "up")
    _ip("-n", space, "addr", "add", f"{machine.address}/24", "dev", "eth0")
    _ip("-n", space, "link", "set", "eth0", "up")
    _ip("-n", space, "link", "set", "lo", "up")


def _ray_start(before: list[str], *arguments: str) -> subprocess.Popen[str]:
    ray = str(Path(sys.executable).with_name("ray"))
    node = subprocess.Popen(
        [*before, ray, "start", "--block", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **VARIABLES},
    )
    assert node.stdout is not None
    said = ""
    for line in node.stdout:
        said += line
        if "Ray runtime started" in line:
            return node
    raise AssertionError(said)


def _end(node: subprocess.Popen[str]) -> None:
    node.terminate()
    node.communicate(timeout=60)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
