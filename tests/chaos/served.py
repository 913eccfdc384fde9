"""`tightrope serve` as a process of its own, its engines as processes of theirs, and the means to hurt them.

Every process started here carries a mark in its environment, by which whatever is left over is found.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

import tightrope

LIMIT_S = 120.0
"""How long a test waits for what must happen; many times what it takes."""
GONE = (httpx.NetworkError, httpx.RemoteProtocolError)
"""What a client sees of a server that was killed: its connection refused, reset or ended too soon."""
MARK = "CHAOS_MARK"

CONFIG = """
version: 1
server: {{listen: "127.0.0.1:{port}", auth: none, drain: {drain}}}
accelerators:
  fast: {{count: 8}}
cluster: {{local: {{state: ./state}}}}
models:
  small:
    engine: {{kind: command, command: {command}}}
    place: {{fast: {{min: {replicas}}}}}
journal: {{path: {journal}}}
"""


@dataclass(frozen=True)
class EngineProcess:
    """One engine, as the record of its replica names it."""

    pid: int
    port: int

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def fault(self, kind: str, **fields: object) -> None:
        """From now on its answers go wrong like this; see `tightrope.testing.server`."""
        url = f"http://127.0.0.1:{self.port}/faults"
        httpx.post(url, json={"kind": kind, **fields}, timeout=LIMIT_S).raise_for_status()

    def heal(self) -> None:
        """From now on its answers are sound. One that does not listen (yet, or any more) has no faults."""
        with suppress(*GONE):
            httpx.delete(f"http://127.0.0.1:{self.port}/faults", timeout=LIMIT_S).raise_for_status()

    def busy(self) -> int:
        """Requests under way there; none while it does not listen."""
        try:
            slots = httpx.get(f"http://127.0.0.1:{self.port}/slots", timeout=LIMIT_S).json()
        except GONE:
            return 0
        return sum(slot["is_processing"] for slot in slots)


class Served:
    """A running `tightrope serve`. What it says is in `said`."""

    def __init__(self, folder: Path, mark: str, file_blocks: int | None = None) -> None:
        self.folder = folder
        self.mark = mark
        self.said: list[str] = []
        command = [sys.executable, "-m", "tightrope.app.cli", "serve"]
        self.process = subprocess.Popen(
            [*_limited(file_blocks), *command, "--config", str(folder / "tightrope.yaml")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(mark),
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)

    @property
    def text(self) -> str:
        return "".join(self.said)

    @property
    def root(self) -> str:
        """Where it listens."""
        line = next(line for line in self.said if "listening on" in line)
        return line.partition("listening on ")[2].partition("/v1")[0]

    def until_listening(self) -> Served:
        until(lambda: "listening on" in self.text or self.process.poll() is not None)
        assert self.process.poll() is None, self.text
        return self

    def until_ready(self, replicas: int = 1) -> Served:
        """Wait until so many engines answer."""
        self.until_listening()
        until(lambda: len(self.engines()) >= replicas and self.ready_replicas() >= replicas)
        return self

    def ready_replicas(self) -> int:
        """Replicas told ready and not lost since, by the last session of the journal."""
        ready: set[str] = set()
        for line in self.journal_lines():
            if '"head"' in line:
                ready.clear()
            for kind, change in (("ReplicaReady", ready.add), ("ReplicaLost", ready.discard)):
                if f'"{kind}"' in line and '"event"' in line:
                    change(json.loads(line)["event"]["replica"])
        return len(ready)

    def runs_begun(self) -> int:
        """Requests that became runs, by the journal."""
        return sum('"RunSubmitted"' in line for line in self.journal_lines())

    def runs_ended(self) -> int:
        return sum('"FinishRun"' in line for line in self.journal_lines())

    def journal_lines(self) -> list[str]:
        """The lines that are there whole; the last one may be on its way to the disk."""
        file = self.folder / "tightrope.journal"
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
        return lines if not lines or lines[-1].endswith("\n") else lines[:-1]

    def engines(self) -> list[EngineProcess]:
        """The engines that are recorded and alive, by the name of their replica."""
        found = []
        for file in sorted((self.folder / "state" / "replicas").glob("*.json")):
            try:
                record = json.loads(file.read_text(encoding="utf-8"))
            except FileNotFoundError:  # its engine is gone, and was forgotten since the folder was read
                continue
            if is_alive(record["pid"]):
                found.append(EngineProcess(record["pid"], record["port"]))
        return found

    # --- requests --------------------------------------------------------------------------------------

    def ask(self, prompt: str = "hello", *, model: str = "small", **fields: Any) -> httpx.Response:
        """A chat request that is not streamed."""
        body = {"model": model, "messages": [{"role": "user", "content": prompt}], **fields}
        return httpx.post(f"{self.root}/v1/chat/completions", json=body, timeout=LIMIT_S)

    @contextmanager
    def stream(self, prompt: str = "hello") -> Iterator[Iterator[str]]:
        """A streamed chat request: the data of its events, one after the other."""
        body = {"model": "small", "messages": [{"role": "user", "content": prompt}], "stream": True}
        url = f"{self.root}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=LIMIT_S) as response:
            assert response.status_code == 200, response.read()
            yield (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))

    # --- the end ---------------------------------------------------------------------------------------

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit code."""
        code = self.process.wait(LIMIT_S)
        self._reader.join(LIMIT_S)
        return code

    def end(self) -> None:
        """End it orderly and in a hurry, and by force what is left."""
        try:
            until(self._has_ended)
        finally:
            self.process.kill()
            self.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()

    def _has_ended(self) -> bool:
        # Two signals that are sent at once may arrive as one, so they are sent until it is over.
        self.signal(signal.SIGTERM)
        return self.process.poll() is not None


def _limited(file_blocks: int | None) -> list[str]:
    """What stands before a command so that none of its files grows beyond so many blocks of 512 or 1024 bytes."""
    if file_blocks is None:
        return []
    # Without byte code: Python would keep what it could write of it, and later processes would stumble over it.
    return ["sh", "-c", f'ulimit -f {file_blocks}; export PYTHONDONTWRITEBYTECODE=1; exec "$@"', "sh"]


def content_of(events: Sequence[str]) -> str:
    """The text of streamed events."""
    deltas = [json.loads(event) for event in events if event != "[DONE]"]
    choices = [choice for event in deltas for choice in event.get("choices", [])]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def write_config(
    folder: Path,
    *,
    replicas: int = 1,
    port: int = 0,
    drain: str = "60s",
    journal: str = "./tightrope.journal",
    arguments: Sequence[str] = (),
) -> None:
    """A configuration whose engines are scripted servers."""
    command = [sys.executable, "-m", "tightrope.testing.server", "--port", "{port}", *arguments]
    text = CONFIG.format(
        port=port, drain=drain, replicas=replicas, journal=journal, command=json.dumps(command)
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tightrope.yaml").write_text(text, encoding="utf-8")


def environment(mark: str) -> dict[str, str]:
    source = str(Path(tightrope.__file__).parents[1])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIGHTROPE_")}
    return {**kept, MARK: mark, "PYTHONPATH": source, "PYTHONUNBUFFERED": "1"}


def new_mark() -> str:
    return uuid.uuid4().hex


def marked(mark: str) -> list[int]:
    """The processes that live and carry this mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or not is_alive(int(entry.name)):
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def until(condition: Callable[[], bool]) -> None:
    """Look again and again until the condition holds. Fails after LIMIT_S."""
    end_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end_s, "what had to happen did not"
        time.sleep(0.02)
