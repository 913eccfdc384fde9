"""`bench overhead`: what a gateway adds to the first token and to every streamed chunk, beside other gateways.

Owns the course, the cores and the processor time of processes. Systems are `overhead_systems.py`, load is
`bench/overhead_load.py`, figures are `bench/overhead.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tightrope.app.cli.frame import Common
from tightrope.app.overhead_systems import (
    SYSTEMS,
    TIGHTROPE,
    ensure_peer,
    set_speed,
    start_engines,
    start_system,
    version,
)
from tightrope.app.programs import ProgramFailed, Programs, end_marked, told_like_ctrl_c, used_seconds
from tightrope.bench.duel_figures import processor_times
from tightrope.bench.overhead import DIRECT, Counted, Overhead, Round, overhead
from tightrope.bench.overhead_load import Load, Seen, Setting
from tightrope.model.errors import TightropeError

_NO_TIME = 0.01
"""So many times as long as else the steps of engines take while calls come alone: what is left is the gateway's."""


def bench_overhead(common: Common, setting: Setting | None = None) -> Overhead:
    """Every system in every round, before the same engines. One that cannot be installed, started or measured is
    reported with the reason, and left out from then on."""
    setting = setting or Setting()
    absent: dict[str, str] = {}
    rounds: list[Round] = []
    for name in SYSTEMS:
        if name in (DIRECT, TIGHTROPE):
            continue
        try:
            ensure_peer(name, common.say)
        except TightropeError as error:
            absent[name] = str(error)
    with _bench(setting) as bench:
        for number in range(setting.rounds):
            for name in setting.order([name for name in SYSTEMS if name not in absent], number):
                common.say(f"round {number + 1} of {setting.rounds}: {name}")
                try:
                    rounds.append(bench.measure(name, seed=number + 1))
                except TightropeError as error:
                    absent[name] = str(error)
                    common.say(f"  {error}")
    return overhead(setting, rounds, {name: version(name) for name in SYSTEMS}, absent)


@contextmanager
def _bench(setting: Setting) -> Iterator[_Bench]:
    mark = f"overhead-{uuid.uuid4().hex}"
    with ExitStack() as stack:
        stack.enter_context(told_like_ctrl_c())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="overhead-")))
        stack.callback(end_marked, mark)
        engines = start_engines(Programs(stack, folder, mark), setting.gap_ms)
        yield _Bench(setting, folder, mark, tuple(engines))


@dataclass(frozen=True, slots=True)
class _Bench:
    """Engines that are ready. Their processes carry `mark`."""

    setting: Setting
    folder: Path
    mark: str
    engines: tuple[int, ...]

    def measure(self, name: str, seed: int) -> Round:
        """One system under all loads, started for it and ended after it."""
        mark = f"{self.mark}-{name}"
        cores = sorted(os.sched_getaffinity(0))
        with ExitStack() as stack:
            folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{name}-", dir=self.folder))
            )
            stack.callback(end_marked, mark)
            started = start_system(Programs(stack, folder, mark), name, self.engines, self.setting.gap_ms)
            system, engines, ports = _Processes(mark, started.session), _Processes(self.mark), started.ports
            set_speed(self.engines, _NO_TIME)
            alone = self._count(system, Load("alone", ports, self.setting, seed))
            set_speed(self.engines, 1.0)
            streams = self._count(system, Load("streams", ports, self.setting, seed))
            one, *others = cores
            if others:
                system.confine([one])
                engines.confine(others)
                stack.callback(engines.confine, cores)
            mixed = self._count(system, Load("mixed", ports, self.setting, seed, tuple(others)))
        return Round(name, streams, alone, mixed, (one,) if others else ())

    def _count(self, system: _Processes, load: Load) -> Counted:
        """Play a load. Raises ProgramFailed when the client does not come to its end."""
        engines = _Processes(self.mark)
        command = [sys.executable, "-m", "tightrope.bench.overhead_load", msgspec.json.encode(load).decode()]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            try:
                before = after = _Clocks.read(system, engines)
                said = ""
                for line in client.stdout or ():
                    if line == "begin\n":
                        before = _Clocks.read(system, engines)
                    elif line == "end\n":
                        after = _Clocks.read(system, engines)
                    else:
                        said = line
            finally:
                client.terminate()
        if not said:
            raise ProgramFailed(
                f"the client of load {load.kind} ended with status {client.returncode} and no result"
            )
        return _counted(msgspec.json.decode(said, type=Seen), before, after)


@dataclass(frozen=True, slots=True)
class _Processes:
    """Those that carry the mark, and those of the session."""

    mark: str
    session: int | None = None

    def used_s(self) -> float:
        """Seconds of processor time so far."""
        return sum(used_seconds(self.mark, self.session).values())

    def confine(self, cores: Sequence[int]) -> None:
        """Let all their threads run on these cores only; what they start inherits it."""
        for pid in used_seconds(self.mark, self.session):
            for thread in Path(f"/proc/{pid}/task").glob("*"):
                with suppress(OSError):
                    os.sched_setaffinity(int(thread.name), cores)


@dataclass(frozen=True, slots=True)
class _Clocks:
    """Seconds of processor time so far: of a system, of the engines, of everything, and of all cores together."""

    system_s: float
    engines_s: float
    busy_s: float
    total_s: float

    @classmethod
    def read(cls, system: _Processes, engines: _Processes) -> _Clocks:
        """Now."""
        used, whole = processor_times(Path("/proc/stat").read_text(encoding="ascii"))
        ticks = os.sysconf("SC_CLK_TCK")
        return cls(system.used_s(), engines.used_s(), used / ticks, whole / ticks)


def _counted(seen: Seen, before: _Clocks, after: _Clocks) -> Counted:
    total_s = after.total_s - before.total_s
    system_s, engines_s = after.system_s - before.system_s, after.engines_s - before.engines_s
    busy_s = after.busy_s - before.busy_s
    foreign_s = max(0.0, busy_s - system_s - engines_s - seen.used_s)
    if not total_s:
        return Counted(seen, system_s, 0.0, 0.0)
    return Counted(seen, system_s, busy_s / total_s, foreign_s / total_s)
