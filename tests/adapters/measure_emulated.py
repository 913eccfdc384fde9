"""What emulated engines cost: processor time of a chunk, and the share of a core that five of them take.

Run it with `python -m tests.adapters.measure_emulated --seconds 15`: the fleet `mixed` of the benchmark, 100 streams
in all, each of 300 tokens over a prompt of 1,000, one token in a chunk, again and again. No test: nothing is judged.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial

import msgspec
import psutil

from tightrope.adapters.engine_process import free_port
from tightrope.bench.hardware import profile
from tightrope.model.profile import Profile
from tightrope.sim.engine import Truth

FLEET = (
    ("Qwen3-8B", "h100"),
    ("Qwen3-8B", "l40s"),
    ("Qwen3-8B", "l40s"),
    ("Qwen3-1.7B", "l40s"),
    ("Qwen3-1.7B", "b60"),
)
PROMPT_TOKENS = 1000
OUTPUT_TOKENS = 300


@dataclass
class Replica:
    """One engine in a process of its own, and what it has sent."""

    profile: Profile
    port: int
    process: subprocess.Popen[str]
    chunks: int = 0


class Stream(asyncio.Protocol):
    """A reader that counts events and asks again at the end of each answer."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        said = f'<emulate tokens="{OUTPUT_TOKENS}"/>'.ljust(4 * PROMPT_TOKENS, "x")
        messages = [{"role": "user", "content": said}]
        body = json.dumps({"model": "m", "stream": True, "messages": messages, "max_tokens": OUTPUT_TOKENS})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: m\r\ncontent-length: {len(body)}\r\n\r\n"
        self._request = (head + body).encode()
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._replica.chunks += data.count(b"data: {")
        if b"[DONE]" in data:
            self._ask()

    def _ask(self) -> None:
        assert isinstance(self._transport, asyncio.WriteTransport)
        self._transport.write(self._request)


def start(model: str, card: str) -> Replica:
    """One engine of the fleet; it listens before this returns."""
    known, port = profile(model, card), free_port()
    truth = msgspec.json.encode(Truth(known, noise=0.02)).decode()
    command = [sys.executable, "-m", "tightrope.adapters.engine_emulated", "--port", str(port), "--name", "m"]
    process = subprocess.Popen([*command, "--truth", truth], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return Replica(known, port, process)


def cpu_s(replica: Replica) -> float:
    """Processor seconds of its process so far."""
    times = psutil.Process(replica.process.pid).cpu_times()
    return float(times.user + times.system)


async def measure(replicas: list[Replica], streams: int, seconds: float) -> None:
    """Drive them and say what it cost; the first two seconds do not count."""
    loop = asyncio.get_running_loop()
    counts = Counter(number % len(replicas) for number in range(streams))
    for number, count in counts.items():
        replica = replicas[number]
        for _ in range(count):
            await loop.create_connection(partial(Stream, replica), "127.0.0.1", replica.port)
    await asyncio.sleep(2)
    before = [(cpu_s(replica), replica.chunks, loop.time()) for replica in replicas]
    await asyncio.sleep(seconds)
    cores, chunks_per_s = 0.0, 0.0
    for replica, (began_cpu_s, began_chunks, began_s) in zip(replicas, before, strict=True):
        passed_s = loop.time() - began_s
        share = (cpu_s(replica) - began_cpu_s) / passed_s
        rate = (replica.chunks - began_chunks) / passed_s
        known = replica.profile
        print(f"{known.model:12} {known.accelerator:6} {rate:7.0f} chunks/s {share:7.1%} of a core "
              f"{1e6 * share / max(1.0, rate):6.1f} us/chunk")  # fmt: skip
        cores, chunks_per_s = cores + share, chunks_per_s + rate
    print(
        f"{'all':19} {chunks_per_s:7.0f} chunks/s {cores:7.1%} of a core {1e6 * cores / chunks_per_s:6.1f} us/chunk"
    )


def main() -> None:
    """Start, measure, end."""
    parser = argparse.ArgumentParser(prog="python -m tests.adapters.measure_emulated", description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--streams", type=int, default=100)
    options = parser.parse_args()
    replicas = [start(model, card) for model, card in FLEET]
    try:
        asyncio.run(measure(replicas, options.streams, options.seconds))
    finally:
        for replica in replicas:
            replica.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            for replica in replicas:
                replica.process.wait(5)


if __name__ == "__main__":
    main()
