"""The Ray actor behind one replica: it holds a place on a node and supervises the engine there.

Owns what happens on the node: a free port, the keeper with the engine, its log, how it ended. Knows nothing of
Ray; `ray_hands.py` makes an actor of the class and sends it by value, so nodes need not have this package.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tightrope.adapters.engine_process import free_port, how_it_ended, is_taken, last_lines
from tightrope.adapters.process import boot_id, listens


class ReplicaActor:
    """One replica. Every method is quick but `ended`, which returns when the engine has ended."""

    def __init__(self, name: str, keeper_source: str) -> None:
        self._name = name
        self._keeper_source = keeper_source
        self._engine: dict[str, object] | None = None
        self._lifeline: asyncio.WriteTransport | None = None
        self._how: asyncio.Future[dict[str, object]] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def beat(self) -> bool:
        """That the actor is there."""
        return True

    async def worker(self) -> int:
        """The process that is the actor."""
        return os.getpid()

    async def facts(self) -> dict[str, object]:
        """On which machine this is, and what was told about the engine that runs, None if there is none."""
        return {"machine": machine(), "engine": self._engine}

    async def free_port(self, host: str) -> int:
        """A TCP port of this address that nobody holds at this moment."""
        return free_port(host)

    async def begin(
        self, command: list[str], variables: dict[str, str], grace_s: float, told: Mapping[str, object]
    ) -> int:
        """Start the engine and keep what is `told` about it for whoever adopts it; its process id."""
        log = _log_folder() / f"tightrope-{self._name}.log"
        if log.exists():
            log.replace(log.with_suffix(".log.1"))
        order = {"command": command, "variables": variables, "grace_s": grace_s, "log": str(log)}
        keeper = subprocess.Popen(  # noqa: ASYNC220 - the actor has nothing else to do meanwhile
            [sys.executable, "-I", "-S", "-c", self._keeper_source, json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        said = await self._connect(keeper)
        await asyncio.to_thread(keeper.wait)  # its second self goes on and belongs to nobody
        pid = int(json.loads(await said.readline())["pid"])
        self._engine = {**told, "pid": pid, "log": str(log)}
        self._how = asyncio.get_running_loop().create_future()
        self._watching = asyncio.create_task(self._watch(said, self._how, pid, log))
        return pid

    async def listens(self, port: int) -> bool:
        """Whether it is our engine that holds the port."""
        return self._engine is not None and listens(int(str(self._engine["pid"])), port)

    async def is_taken(self, host: str, port: int) -> bool:
        """Whether somebody holds the port now that our engine has ended."""
        return is_taken(host, port)

    async def ended(self) -> dict[str, object]:
        """How the engine ended, for people, once it has; `tail` is what it said last."""
        if self._how is None:
            return {"how": "was never started", "tail": ""}
        return await asyncio.shield(self._how)

    async def end(self) -> None:
        """End the engine with SIGTERM, with SIGKILL after its grace; return when it is gone."""
        if self._how is not None and self._lifeline is not None:
            with suppress(OSError):
                self._lifeline.write(b".")
            await asyncio.shield(self._how)

    async def _connect(self, keeper: subprocess.Popen[bytes]) -> asyncio.StreamReader:
        loop = asyncio.get_running_loop()
        said = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(said), keeper.stdout)
        self._lifeline, _ = await loop.connect_write_pipe(asyncio.Protocol, keeper.stdin)
        return said

    async def _watch(
        self, said: asyncio.StreamReader, how: asyncio.Future[dict[str, object]], pid: int, log: Path
    ) -> None:
        line = await said.readline()
        status = json.loads(line)["status"] if line else None
        if status is None:  # the engine dies with its keeper; what it started does not
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        if self._lifeline is not None:
            self._lifeline.close()
        self._engine = None
        how.set_result({"how": _in_words(status), "tail": last_lines(log)})


def machine() -> str:
    """What tells this machine's loopback address from every other one: its boot and its network namespace."""
    try:
        return f"{boot_id()} {os.readlink('/proc/self/ns/net')}"  # noqa: PTH115
    except OSError:
        return boot_id()


def _log_folder() -> Path:
    """Beside Ray's own logs of this session, where its dashboard finds it; else the temporary folder."""
    with suppress(OSError):
        folder = Path("/proc/self/fd/1").readlink().parent
        if folder.name == "logs" and os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.gettempdir())


def _in_words(status: int | None) -> str:
    if status is None:
        return "was killed together with its keeper"
    return how_it_ended(status)
