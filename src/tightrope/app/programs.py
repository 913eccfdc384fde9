"""Programs that a benchmark compares: started in groups of their own, ended in order, and none is left behind.

Every program carries a mark in its environment, which its children inherit wherever they go. So also what a killed
benchmark left, or what a program has set apart from itself, is found and ended. What the programs are is said by
`contenders.py` and the files of each benchmark.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tightrope.model.errors import TightropeError

MARK = "BENCH_OF"
_PAUSE_S = 0.1
_LAST_LINES = 12


class ProgramFailed(TightropeError):
    """A program did not do its part; the message ends with what it printed last."""


@dataclass(frozen=True, slots=True)
class Programs:
    """The programs of one round. `folder` gets what they print; `mark` tells them from those of other benchmarks."""

    stack: ExitStack
    folder: Path
    mark: str

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        variables: Sequence[str] = (),
        ends_with_input: bool = False,
    ) -> Program:
        """Start a program; it is told to end, and waited for, when the stack unwinds.

        `variables` are `NAME=value`. With `ends_with_input` it is told by the end of its input, else by SIGTERM.
        """
        log = self.folder / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["env", f"{MARK}={self.mark}", *variables, *command],
                stdin=subprocess.PIPE if ends_with_input else subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        program = Program(name, process, log)
        self.stack.callback(program.end)
        return program


@dataclass(frozen=True, slots=True)
class Program:
    """One that was started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def end(self, within_s: float = 60.0) -> None:
        """Tell it to end; kill its group when it does not."""
        if self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()
        else:
            self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(within_s)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def until(self, is_ready: Callable[[], bool], within_s: float) -> None:
        """Wait until it is ready. Raises ProgramFailed when it has ended, or is not ready in time."""
        limit_s = time.monotonic() + within_s
        while not is_ready():
            if self.process.poll() is not None:
                raise ProgramFailed(f"{self.name} has ended by itself; {self._said()}")
            if time.monotonic() > limit_s:
                raise ProgramFailed(f"{self.name} is not ready after {within_s:g} s; {self._said()}")
            time.sleep(_PAUSE_S)

    def has_said(self, line: str) -> bool:
        """Whether it has printed this line."""
        return line in self.log.read_text(encoding="utf-8", errors="replace").splitlines()

    def _said(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        return f"its last words, in {self.log}:\n" + "\n".join(lines)


def answers(url: str) -> bool:
    """Whether there is a 200 at this address."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def text_at(url: str) -> str:
    """What is read there. Raises ProgramFailed."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return bytes(response.read()).decode()
    except OSError as error:
        raise ProgramFailed(f"{url} does not answer: {error}") from error


def end_marked(mark: str) -> int:
    """Kill every process that carries the mark; how many there were."""
    wanted = f"{MARK}={mark}".encode()
    found = [pid for pid in _processes() if wanted in _environment(pid)]
    for pid in found:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return len(found)


def used_seconds(mark: str, session: int | None = None) -> dict[int, float]:
    """Processor seconds that each process with the mark, or of the session, has used since it began.

    Some write over their environment, others leave their session.
    """
    wanted = f"{MARK}={mark}".encode()
    found = {}
    for pid in _processes():
        fields = _stat(pid)
        if fields and (wanted in _environment(pid) or int(fields[3]) == session):
            found[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def _stat(pid: int) -> list[str]:
    """The fields of a process's `stat` from its state on; none when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    return stat.rpartition(")")[2].split()


@contextmanager
def told_like_ctrl_c() -> Iterator[None]:
    """While it runs, SIGTERM is what Ctrl-C is: programs are ended in order, and what has ended is kept."""
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _processes() -> list[int]:
    own = os.getpid()
    return [
        int(place.name)
        for place in Path("/proc").iterdir()
        if place.name.isdecimal() and int(place.name) != own
    ]


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
