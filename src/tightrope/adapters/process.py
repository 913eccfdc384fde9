"""Processes of this machine by their identity: a process id together with the moment it started.

Owns waiting for the end of any process, own child or not, and ending a whole process group. Knows nothing of
replicas.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Process:
    """One process for ever: `start_ticks` is its start in clock ticks since the boot named by `boot`.

    A process id alone may be given to another process later; the three together are not.
    """

    pid: int
    start_ticks: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that runs under `pid` now; None if there is none, or only its remains (a zombie)."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        # The name in parentheses may itself contain spaces and parentheses.
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]), boot_id())

    def is_alive(self) -> bool:
        """Whether exactly this process still runs."""
        return Process.of(self.pid) == self

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the process and everything it started in its group; nothing if all have ended."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    async def ended(self) -> None:
        """Return as soon as the process has ended. Own children still have to be reaped after it."""
        try:
            watched = os.pidfd_open(self.pid)
        except (OSError, AttributeError):
            await self._ended_by_polling()
            return
        try:
            # The process may have gone, and its id been given away, before the descriptor was opened.
            if self.is_alive():
                await _readable(watched)
        finally:
            os.close(watched)

    async def _ended_by_polling(self) -> None:
        while self.is_alive():  # noqa: ASYNC110 (there is no event to wait on)
            await asyncio.sleep(_POLL_S)


def boot_id() -> str:
    """What tells this boot of the machine from every other one; "" where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def listens(group: int, port: int) -> bool:
    """Whether a process of this process group holds the TCP port. True where the system does not tell."""
    try:
        sockets = _listening_sockets(port)
    except OSError:
        return True
    for pid in _members(group):
        with suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    if str(descriptor.readlink()) in sockets:
                        return True
    return False


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    is_readable = asyncio.Event()
    loop.add_reader(descriptor, is_readable.set)
    try:
        await is_readable.wait()
    finally:
        loop.remove_reader(descriptor)


def _listening_sockets(port: int) -> set[str]:
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(FileNotFoundError):
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                # local address, state 0A (listening), inode
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    return sockets


def _members(group: int) -> list[int]:
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if os.getpgid(int(entry.name)) == group:
                    members.append(int(entry.name))
    return members
