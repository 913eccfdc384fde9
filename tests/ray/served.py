"""`tightrope serve` with replicas on Ray: its configuration, its engines, and what its journal says of them."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.chaos.served import Served, is_alive, until
from tests.ray.machines import FAST, SLOW, TOKEN
from tightrope.adapters.process import Process

CALLERS = 4

CONFIG = """
version: 1
server: {{listen: "127.0.0.1:0", auth: none, drain: 60s}}
accelerators:
  {fast}: {{count: 2, cost: 2 USD/h}}
  {slow}: {{count: 2, cost: 1 USD/h}}
cluster:
  local: {{state: ./state}}
  ray: {ray}
models:
  small:
    engine: {engine}
    place: {{{fast}: {{min: {fasts}}}, {slow}: {{min: {slows}}}}}
"""
LLAMACPP = '{kind: llamacpp, weights: "embedded:Q4_0", context: 4096 tok, slots: 4}'
FROM_ZERO = """
    place: {{{fast}: {{min: 0, max: 1}}, {slow}: {{min: 0, max: 2}}}}
provisioner: {{mode: act, every: 1s, idle_after: 5s, cooldown: 1s}}
"""
ELASTIC = CONFIG[: CONFIG.rindex("    place:")].rstrip() + FROM_ZERO


def write_config(
    folder: Path,
    address: str,
    *,
    fasts: int = 1,
    slows: int = 1,
    arguments: Sequence[str] = (),
    is_elastic: bool = False,
    token: str | None = TOKEN,
    engine: str | None = None,
) -> None:
    """A configuration with engines on Ray: those given, or scripted servers with a word on their command line, by which
    they are found."""
    command = [
        sys.executable,
        "-X",
        f"tag={tag(folder)}",
        "-m",
        "tightrope.testing.server",
        "--host",
        "{host}",
        "--port",
        "{port}",
        *arguments,
    ]
    text = (ELASTIC if is_elastic else CONFIG).format(
        ray=json.dumps({"address": address} | ({} if token is None else {"token": token})),
        engine=engine or f"{{kind: command, command: {json.dumps(command)}}}",
        fast=FAST,
        slow=SLOW,
        fasts=fasts,
        slows=slows,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tightrope.yaml").write_text(text, encoding="utf-8")


def tag(folder: Path) -> str:
    """What marks the engines of this folder's runtime."""
    return folder.absolute().as_posix().strip("/").replace("/", "-")


def engines(folder: Path) -> dict[int, int]:
    """The engines that live: port by process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_alive(int(entry.name)):
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if f"tag={tag(folder)}" in words and "tightrope.testing.server" in words:
                found[int(entry.name)] = int(words[words.index("--port") + 1])
    return found


def worker_of(engine: int) -> Process:
    """The actor above an engine: it holds the other ends of the pipes of the engine's keeper."""
    keeper = _parent(engine)
    pipe = os.readlink(f"/proc/{keeper}/fd/0")  # noqa: PTH115
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == keeper:
            continue
        try:
            held = [str(fd.readlink()) for fd in (entry / "fd").iterdir()]
        except OSError:
            continue
        found = Process.of(int(entry.name))
        if pipe in held and found is not None:
            return found
    raise AssertionError(f"nobody holds the lifeline of the keeper {keeper}")


def _parent(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("PPid:")).split()[1])


def told(served: Served, kind: str) -> Iterator[tuple[float, str]]:
    """When, in monotonic seconds of this machine, replicas were told ready, lost or stopped, and which."""
    for line in served.journal_lines():
        if f'"{kind}"' in line and '"event"' in line:
            whole = json.loads(line)
            yield whole["t"], whole["event"]["replica"]


@contextmanager
def load(served: Served, **fields: Any) -> Iterator[list[Future[int]]]:
    """Callers that ask one call after the other, until the block is over; the status of each answer."""
    answers: list[Future[int]] = []
    is_over = False

    def ask_on(pool: ThreadPoolExecutor) -> None:
        if not is_over:
            answer = pool.submit(lambda: served.ask(**fields).status_code)
            answers.append(answer)
            answer.add_done_callback(lambda _: ask_on(pool))

    with ThreadPoolExecutor(CALLERS) as pool:
        for _ in range(CALLERS):
            ask_on(pool)
        yield answers
        is_over = True
        until(lambda: all(answer.done() for answer in answers))


def now_s() -> float:
    """The clock that journals are written by."""
    return time.monotonic()
