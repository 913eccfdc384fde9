"""A part of one processor core for each engine: how unequal cards are made out of one machine.

Owns the three mechanisms (control groups v1 and v2, stopping and continuing) and the choice of a core. Which
share an engine gets is said by others.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from tightrope.adapters.process import Process

SMALLEST_SHARE = 0.01

# The kernel refuses quotas below 1 ms, so small shares need the longer period. The short one makes a slowed
# engine look like a slower card instead of a fast one with pauses.
_PERIOD_US = 10_000
_LONG_PERIOD_US = 100_000
_SMALLEST_QUOTA_US = 1_000

_REMOVAL_TRIES = 200
_REMOVAL_WAIT_S = 0.01


@dataclass(frozen=True, slots=True)
class QuotaV1:
    """Control groups v1, `cpu` controller; groups are made below `folder`."""

    folder: Path

    def __str__(self) -> str:
        return f"processor quota of control groups v1 in {self.folder}"


@dataclass(frozen=True, slots=True)
class QuotaV2:
    """Control groups v2 with the `cpu` controller enabled for children of `folder`."""

    folder: Path

    def __str__(self) -> str:
        return f"processor quota of control groups v2 in {self.folder}"


@dataclass(frozen=True, slots=True)
class DutyCycle:
    """SIGSTOP and SIGCONT, 50 times a second, by a small process beside each engine."""

    def __str__(self) -> str:
        return "stopping and continuing the engine 50 times a second"


Mechanism = QuotaV1 | QuotaV2 | DutyCycle


@dataclass(frozen=True, slots=True)
class Placement:
    """What a process does before it becomes an engine: write its id to `join_file`, pin itself to `cores`."""

    join_file: Path | None = None
    cores: tuple[int, ...] = ()


class ProcessorShares:
    """The shares of a cluster's engines, each under a key that is a plain file name.

    `folder` holds what outlives the runtime; `prefix` keeps the groups of two state directories apart.
    """

    def __init__(
        self, mechanism: Mechanism, folder: Path, prefix: str, cores: Sequence[int] | None = None
    ) -> None:
        self.mechanism = mechanism
        self._folder = folder
        self._prefix = prefix
        self._cores = tuple(cores) if cores is not None else tuple(sorted(os.sched_getaffinity(0)))
        self._held_by_key: dict[str, tuple[int, float]] = {}
        self._cycler_by_key: dict[str, subprocess.Popen[bytes]] = {}

    def place(self, key: str, share: float | None) -> Placement:
        """Reserve a core for an engine that is about to start. Raises OSError when the system refuses."""
        self._check(share)
        if share is None:
            self._held_by_key.pop(key, None)
            return Placement()
        core = self._core_for(key)
        self._held_by_key[key] = (core, share)
        match self.mechanism:
            case QuotaV1() | QuotaV2():
                self._write_quota(key, share)
                return Placement(self._group(key) / "cgroup.procs", (core,))
            case DutyCycle():
                self._write_share_file(key, share)
                return Placement(None, (core,))
            case _:
                assert_never(self.mechanism)

    def apply(self, key: str, share: float | None, process: Process) -> None:
        """Give a running engine a share, its first or another one; None frees it. Raises OSError."""
        placement = self.place(key, share)
        _pin(process, placement.cores or self._cores)
        match self.mechanism:
            case QuotaV1() | QuotaV2():
                if placement.join_file is not None:
                    placement.join_file.write_text(str(process.pid), encoding="ascii")
                elif self._group(key).exists():
                    self._write_quota(key, None)
            case DutyCycle():
                if placement.cores:
                    self._start_cycler(key, process)
                else:
                    self._write_share_file(key, 1.0)
            case _:
                assert_never(self.mechanism)

    def follow(self, key: str, process: Process) -> None:
        """Complete `place` after the engine has started; only the duty cycle has something left to do."""
        if isinstance(self.mechanism, DutyCycle) and key in self._held_by_key:
            self._start_cycler(key, process)

    async def release(self, key: str) -> None:
        """Forget an engine that has ended and remove what was made for it. Strays in its group are killed."""
        self._held_by_key.pop(key, None)
        match self.mechanism:
            case QuotaV1() | QuotaV2():
                await _remove_group(self._group(key))
            case DutyCycle():
                cycler = self._cycler_by_key.pop(key, None)
                if cycler is not None:
                    await asyncio.to_thread(cycler.wait)
                for file in (self._share_file(key), self._lock_file(key)):
                    file.unlink(missing_ok=True)
            case _:
                assert_never(self.mechanism)

    def core_of(self, key: str) -> int | None:
        """The core an engine is pinned to; None where it is free."""
        held = self._held_by_key.get(key)
        return held[0] if held is not None else None

    def _check(self, share: float | None) -> None:
        if share is not None and not SMALLEST_SHARE <= share <= 1:
            raise ValueError(f"a share of a core lies between {SMALLEST_SHARE} and 1, not {share}")

    def _core_for(self, key: str) -> int:
        """The core it has; else the one with the most room, so that two cards disturb each other least."""
        held = self._held_by_key.get(key)
        if held is not None:
            return held[0]
        load_by_core = dict.fromkeys(self._cores, 0.0)
        for core, taken in self._held_by_key.values():
            load_by_core[core] += taken
        return min(self._cores, key=lambda core: (load_by_core[core], core))

    def _group(self, key: str) -> Path:
        match self.mechanism:
            case QuotaV1(folder) | QuotaV2(folder):
                return folder / f"tightrope-{self._prefix}-{key}"
            case DutyCycle():
                raise AssertionError("the duty cycle has no groups")
            case _:
                assert_never(self.mechanism)

    def _write_quota(self, key: str, share: float | None) -> None:
        group = self._group(key)
        group.mkdir(exist_ok=True)
        period_us, quota_us = quota(share)
        if isinstance(self.mechanism, QuotaV2):
            text = f"{quota_us if quota_us > 0 else 'max'} {period_us}"
            (group / "cpu.max").write_text(text, encoding="ascii")
            return
        # A shorter period under the old quota could be more than the parent allows: lift the quota first.
        for name, value in (("quota", -1), ("period", period_us), ("quota", quota_us)):
            (group / f"cpu.cfs_{name}_us").write_text(str(value), encoding="ascii")

    def _share_file(self, key: str) -> Path:
        return self._folder / f"{key}.share"

    def _lock_file(self, key: str) -> Path:
        return self._folder / f"{key}.share.lock"

    def _write_share_file(self, key: str, share: float) -> None:
        draft = self._share_file(key).with_suffix(".draft")
        draft.write_text(str(share), encoding="ascii")
        draft.replace(self._share_file(key))

    def _start_cycler(self, key: str, process: Process) -> None:
        running = self._cycler_by_key.get(key)
        if running is not None and running.poll() is None:
            return
        script = Path(__file__).with_name("duty_cycle.py")
        arguments = [str(process.pid), str(process.start_ticks), str(self._share_file(key))]
        # The lock is taken here and handed on, so that it is held from the first moment to the cycler's last.
        lock = os.open(self._lock_file(key), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._cycler_by_key[key] = subprocess.Popen(
                [sys.executable, "-I", "-S", str(script), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(lock,),
            )
        except BlockingIOError:
            return  # one that an earlier runtime left is at work
        finally:
            os.close(lock)


def find_mechanism(
    mounts: str | None = None, own_groups: str | None = None, *, root: Path = Path("/")
) -> Mechanism:
    """The best mechanism that this machine allows. The arguments stand in for the texts under /proc in tests.

    `mounts` is /proc/self/mountinfo, `own_groups` is /proc/self/cgroup, `root` is where mount points begin.
    """
    mounts = _read("/proc/self/mountinfo") if mounts is None else mounts
    own_groups = _read("/proc/self/cgroup") if own_groups is None else own_groups
    own_by_controllers = _own_groups(own_groups)
    for point, top, kind, options in _group_mounts(mounts):
        own = own_by_controllers.get("" if kind == "cgroup2" else options.get("cpu", "-"))
        if own is None:
            continue
        folder = root / point.lstrip("/") / _below(own, top)
        if kind == "cgroup" and _can_make_group(folder, "cpu.cfs_quota_us"):
            return QuotaV1(folder)
        if kind == "cgroup2":
            for candidate in (folder, folder.parent) if _below(own, top) else (folder,):
                if _can_make_group(candidate, "cpu.max"):
                    return QuotaV2(candidate)
    return DutyCycle()


def quota(share: float | None) -> tuple[int, int]:
    """Period and quota in microseconds; the quota is -1 where nothing is limited."""
    if share is None:
        return _PERIOD_US, -1
    period_us = _PERIOD_US if share * _PERIOD_US >= _SMALLEST_QUOTA_US else _LONG_PERIOD_US
    return period_us, max(_SMALLEST_QUOTA_US, round(share * period_us))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _own_groups(text: str) -> dict[str, str]:
    """`4:cpu,cpuacct:/path` -> {"cpu": "/path", "cpuacct": "/path"}; version 2 has no controller names."""
    own = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    return own


def _group_mounts(text: str) -> list[tuple[str, str, str, Mapping[str, str]]]:
    """(mount point, its top within the hierarchy, file system, controllers by name), version 1 before 2."""
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if kind and kind[0] in ("cgroup", "cgroup2"):
            found.append((fields[4], fields[3], kind[0], {name: name for name in kind[-1].split(",")}))
    return sorted(found, key=lambda mount: mount[2])


def _below(own: str, top: str) -> str:
    """The way from a mount point to our own group; inside a container the mount may begin at our group."""
    return own.removeprefix("/" if top == "/" else top).lstrip("/") if own.startswith(top) else ""


def _can_make_group(folder: Path, file: str) -> bool:
    trial = folder / f"tightrope-trial-{os.getpid()}"
    try:
        trial.mkdir()
    except OSError:
        return False
    try:
        return os.access(trial / file, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK)
    finally:
        with suppress(OSError):
            trial.rmdir()


def _pin(process: Process, cores: Sequence[int]) -> None:
    """Pin every thread; threads that start later inherit it from the one that starts them."""
    with suppress(OSError):
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), cores)


async def _remove_group(group: Path) -> None:
    for _ in range(_REMOVAL_TRIES):
        if _is_removed(group):
            return
        _kill_members(group)
        await asyncio.sleep(_REMOVAL_WAIT_S)


def _is_removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _kill_members(group: Path) -> None:
    with suppress(OSError):
        for pid in (group / "cgroup.procs").read_text(encoding="ascii").split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
