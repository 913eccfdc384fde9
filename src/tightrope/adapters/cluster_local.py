"""Replicas as processes of this machine: one engine process per replica.

Owns the life of these processes: start, readiness, death, stop, and what becomes of them when the runtime
itself is killed (they live on, and are adopted or ended at the next start). Does not watch whether a ready
engine answers well: that shows in its calls.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec

from tightrope.adapters.cluster_work import ClusterWork, Told
from tightrope.adapters.engine_process import free_port, how_it_ended, is_taken, last_lines
from tightrope.adapters.health import max_sequences, probe, probing_session
from tightrope.adapters.process import Process, boot_id, listens
from tightrope.adapters.processor_share import Mechanism, Placement, ProcessorShares, find_mechanism
from tightrope.adapters.replica_record import RecordFolder, digest_of, key_of
from tightrope.model.errors import TightropeError
from tightrope.model.fleet import Accelerator, ReplicaSpec
from tightrope.model.ids import AcceleratorName, ReplicaId
from tightrope.model.messages import ReplicaLost, ReplicaReady, ReplicaStopped

HOST = "127.0.0.1"

# A port that was free a moment ago may be taken when the engine binds it.
_PORT_TRIES = 3

_FIRST_WAIT_S = 0.02
_LONGEST_WAIT_S = 0.25


class LocalCluster:
    """The Cluster port over processes of this machine.

    `command_for(spec, port)` is the argument list of an engine that listens on that port of 127.0.0.1; it may
    raise a TightropeError, which is told as ReplicaLost. `accelerators` give the processor shares. A replica
    that is not healthy after `start_limit_s` is lost; one that ignores SIGTERM for `stop_grace_s` is killed.
    With `die_with_parent` an engine is killed by the system as soon as the thread that started it ends.
    Raises InvalidInput when another runtime uses `state_dir`.
    """

    def __init__(
        self,
        state_dir: Path,
        command_for: Callable[[ReplicaSpec, int], Sequence[str]],
        *,
        accelerators: Mapping[AcceleratorName, Accelerator],
        log_dir: Path,
        health_path_for: Callable[[ReplicaSpec], str] = lambda _: "/health",
        start_limit_s: float = 120.0,
        stop_grace_s: float = 5.0,
        die_with_parent: bool = False,
        mechanism: Mechanism | None = None,
        find_port: Callable[[], int] = free_port,
    ) -> None:
        self._records = RecordFolder(state_dir / "replicas")
        self._log_dir = log_dir
        log_dir.mkdir(parents=True, exist_ok=True)
        self._command_for = command_for
        self._accelerators = accelerators
        self._health_path_for = health_path_for
        self._start_limit_s = start_limit_s
        self._stop_grace_s = stop_grace_s
        self._die_with_parent = die_with_parent
        self._find_port = find_port
        prefix = hashlib.sha256(str(state_dir.absolute()).encode()).hexdigest()[:8]
        self._shares = ProcessorShares(mechanism or find_mechanism(), self._records.folder, prefix)
        self._replica_by_id: dict[ReplicaId, _Replica] = {}
        self._work = ClusterWork()
        self._opened: aiohttp.ClientSession | None = None
        self._is_closed = False

    # --- the port ----------------------------------------------------------------------------------------

    async def start(self, spec: ReplicaSpec) -> None:
        """Begin to bring a replica up, or adopt the process that an earlier runtime left under this id."""
        if self._is_closed:
            self._work.tell(ReplicaLost(spec.id, "the cluster is closed"))
            return
        earlier = self._replica_by_id.get(spec.id)
        if earlier is not None and not earlier.stop_asked.is_set():
            if earlier.is_ready:
                self._work.tell(ReplicaReady(spec.id, earlier.max_sequences))
            return
        replica = _Replica(spec)
        self._replica_by_id[spec.id] = replica
        self._work.spawn(self._live(replica, earlier))

    async def stop(self, replica: ReplicaId) -> None:
        """End a replica with SIGTERM, with SIGKILL if that does not help; `watch` tells when it is gone."""
        known = self._replica_by_id.get(replica)
        if known is not None:
            known.stop_asked.set()
        else:
            self._work.spawn(self._stop_unknown(replica))

    def watch(self) -> AsyncIterator[Told]:
        """What happens to replicas, once and in order; ends after `close`."""
        return self._work.watch()

    def url(self, replica: ReplicaId) -> str:
        """Base address of a ready replica. Raises KeyError if it is not ready."""
        known = self._replica_by_id[replica]
        if not known.is_ready or known.running is None:
            raise KeyError(replica)
        return known.running.url

    async def close(self) -> None:
        """End every replica, started or only recorded, also in the middle of a start."""
        if self._is_closed:
            return
        self._is_closed = True
        for replica in self._replica_by_id.values():
            replica.stop_asked.set()
        await self._work.done()
        await self.end_unclaimed()
        if self._opened is not None:
            await self._opened.close()
        self._records.close()
        self._work.end()

    # --- beyond the port ---------------------------------------------------------------------------------

    async def end_unclaimed(self) -> tuple[ReplicaId, ...]:
        """End every process that an earlier runtime left and nobody has asked for since; their ids.

        To be called once all replicas of the plan have been asked for with `start`.
        """
        claimed = {key_of(replica) for replica in self._replica_by_id}
        ended = []
        for key, record in self._records.all():
            if key in claimed:
                continue
            if record is not None and record.process.is_alive():
                await self._end(record.process)
                ended.append(record.spec.id)
            await self._forget(key)
        return tuple(ended)

    def set_share(self, replica: ReplicaId, share: float | None) -> None:
        """Change the processor share of a running replica, from 0.01 to 1 of one core; None frees it.

        Raises KeyError if it has no process, OSError if the system refuses.
        """
        running = self._replica_by_id[replica].running
        if running is None:
            raise KeyError(replica)
        self._shares.apply(key_of(replica), share, running.process)

    @property
    def share_mechanism(self) -> str:
        """How processor shares are made on this machine, for people."""
        return str(self._shares.mechanism)

    def process_id(self, replica: ReplicaId) -> int:
        """The process behind a replica. Raises KeyError if it has none."""
        running = self._replica_by_id[replica].running
        if running is None:
            raise KeyError(replica)
        return running.process.pid

    def log_file(self, replica: ReplicaId) -> Path:
        """Where the output of a replica's present process goes; the one before has the suffix `.1`."""
        return self._log_dir / f"{key_of(replica)}.log"

    # --- the life of one replica -------------------------------------------------------------------------

    async def _live(self, replica: _Replica, earlier: _Replica | None) -> None:
        if earlier is not None:
            await earlier.is_over.wait()
        why: str | None = "the runtime stopped watching it"
        try:
            why = await self._serve(replica)
        except (TightropeError, OSError) as error:
            why = f"it could not be started: {error}"
        finally:
            replica.is_ready = False
            replica.running = None
            replica.is_over.set()
            if self._replica_by_id.get(replica.spec.id) is replica:
                del self._replica_by_id[replica.spec.id]
            told = ReplicaStopped(replica.spec.id) if why is None else ReplicaLost(replica.spec.id, why)
            self._work.tell(told)

    async def _serve(self, replica: _Replica) -> str | None:
        """From the order to the end: None if it was stopped, else why it is lost."""
        if replica.spec.url is not None:
            return "it has an address of its own, so somebody else runs it"
        key = key_of(replica.spec.id)
        why: str | None = "no port could be had"
        for _ in range(_PORT_TRIES):
            if replica.stop_asked.is_set():
                return None
            running = await self._adopt(replica.spec) or self._launch(replica.spec)
            replica.running = running
            why = await self._attend(replica, running)
            replica.running = None
            port_was_taken = not replica.is_ready and is_taken(HOST, running.port)
            await self._forget(key)
            if why is None or not port_was_taken:
                return why
            why = f"its port {running.port} was taken by another process; {why}"
        return why

    async def _attend(self, replica: _Replica, running: _Running) -> str | None:
        """Watch a process until it ends or shall end; it has ended when this returns."""
        ended = asyncio.create_task(running.process.ended())
        stop = asyncio.create_task(replica.stop_asked.wait())
        ready = asyncio.create_task(self._until_ready(running, self._health_path_for(replica.spec)))
        try:
            await asyncio.wait(
                {ended, stop, ready}, timeout=self._start_limit_s, return_when=asyncio.FIRST_COMPLETED
            )
            if ready.done() and not ended.done() and not stop.done():
                replica.max_sequences = ready.result()
                replica.is_ready = True
                self._work.tell(ReplicaReady(replica.spec.id, replica.max_sequences))
                await asyncio.wait({ended, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ended, stop, ready):
                task.cancel()
            await asyncio.gather(ended, stop, ready, return_exceptions=True)
        return await self._conclude(replica, running)

    async def _conclude(self, replica: _Replica, running: _Running) -> str | None:
        has_ended = not running.process.is_alive()
        await self._end(running.process)
        status = running.reap()
        if replica.stop_asked.is_set():
            return None
        tail = last_lines(self.log_file(replica.spec.id))
        if has_ended:
            return f"its process {status}{tail}"
        return f"it was not healthy after {self._start_limit_s:g} s ({running.last_health}){tail}"

    async def _until_ready(self, running: _Running, path: str) -> int | None:
        """Wait for a good answer that comes from our own process; what it says of its slots."""
        wait_s = _FIRST_WAIT_S
        while True:
            health = await probe(self._session(), f"http://{HOST}:{running.port}{path}")
            running.last_health = health.said
            if health.state == "well" and listens(running.process.pid, running.port):
                return await max_sequences(running.url)
            await asyncio.sleep(wait_s)
            wait_s = min(_LONGEST_WAIT_S, 1.3 * wait_s)

    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            self._opened = probing_session()
        return self._opened

    # --- processes ---------------------------------------------------------------------------------------

    async def _adopt(self, spec: ReplicaSpec) -> _Running | None:
        """The living process recorded under this id if it runs the same command; another one is ended."""
        key = key_of(spec.id)
        record = self._records.read(key)
        if record is None:
            return None
        if record.process.is_alive():
            if record.command_digest == digest_of(self._command_for(spec, record.port)):
                running = _Running(record.process, record.port)
                self._shares.apply(key, self._share(spec), record.process)
                return running
            await self._end(record.process)
        await self._forget(key)
        return None

    def _launch(self, spec: ReplicaSpec) -> _Running:
        key = key_of(spec.id)
        port = self._port()
        command = [str(argument) for argument in self._command_for(spec, port)]
        log_file = self.log_file(spec.id)
        if log_file.exists():
            log_file.replace(log_file.with_suffix(".log.1"))
        with log_file.open("wb") as log:
            placement = self._shares.place(key, self._share(spec))
            order = self._order(spec, port, command, placement)
            # The launcher turns into the engine and keeps its process id, so that the record is right from
            # the first moment on. The start is not moved to a thread: `die_with_parent` is about that thread.
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py")), order],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = Process.of(child.pid) or Process(child.pid, 0, "")
        self._shares.follow(key, process)
        return _Running(process, port, child)

    def _order(self, spec: ReplicaSpec, port: int, command: list[str], placement: Placement) -> str:
        order = {
            "parent": os.getpid(),
            "die_with_parent": self._die_with_parent,
            "record_file": str(self._records.file(key_of(spec.id))),
            "record": {
                "boot": boot_id(),
                "port": port,
                "command_digest": digest_of(command),
                "spec": spec,
            },
            "join_file": str(placement.join_file) if placement.join_file is not None else None,
            "cores": placement.cores,
            "command": command,
        }
        return msgspec.json.encode(order).decode()

    def _port(self) -> int:
        taken = {replica.running.port for replica in self._replica_by_id.values() if replica.running}
        for _ in range(_PORT_TRIES):
            port = self._find_port()
            if port not in taken:
                return port
        raise OSError("no port was found that no other replica has")

    def _share(self, spec: ReplicaSpec) -> float | None:
        accelerator = self._accelerators.get(spec.accelerator)
        return accelerator.share if accelerator is not None else None

    async def _stop_unknown(self, replica: ReplicaId) -> None:
        key = key_of(replica)
        record = self._records.read(key)
        if record is not None:
            await self._end(record.process)
            await self._forget(key)
        self._work.tell(ReplicaStopped(replica))

    async def _end(self, process: Process) -> None:
        """End a process and all of its group; nothing if the process is not the one that was recorded."""
        if process.is_alive():
            process.signal_group(signal.SIGTERM)
            process.signal_group(signal.SIGCONT)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._stop_grace_s):
                    await process.ended()
            if process.is_alive():
                process.signal_group(signal.SIGKILL)
                await process.ended()

    async def _forget(self, key: str) -> None:
        await self._shares.release(key)
        self._records.remove(key)


@dataclass(slots=True)
class _Running:
    """One engine process. `child` is None for an adopted one, which the system reaps."""

    process: Process
    port: int
    child: subprocess.Popen[bytes] | None = None
    last_health: str = "it was not asked yet"

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/v1"

    def reap(self) -> str:
        """How the process ended, for people. What it started and left behind in its group is killed."""
        if self.child is None:
            return "is gone"
        # Before the child is reaped its id cannot belong to anybody else, so the group is surely its own.
        self.process.signal_group(signal.SIGKILL)
        return how_it_ended(self.child.wait())


@dataclass(slots=True)
class _Replica:
    """A replica from the order to its end, over all processes that are tried for it."""

    spec: ReplicaSpec
    running: _Running | None = None
    is_ready: bool = False
    max_sequences: int | None = None
    stop_asked: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)
