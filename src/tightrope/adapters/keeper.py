"""Keeps one engine process on a node of a Ray cluster, and never leaves it behind.

A program of its own, `python -I -S -c SOURCE ORDER`, between a Ray worker and the engine: its standard input is
the lifeline. It ends the engine's whole family when it is told to, and when the lifeline breaks because the
worker is gone, however that died. Standard library only: nodes need Ray and the engine, not this package.
"""

import ctypes
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

NOT_FOUND = 127
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Start the engine of the order, say its process id and later how it ended, one line of JSON each."""
    order = json.loads(sys.argv[1])
    if os.fork():
        os._exit(0)  # Ray kills the children of a worker that ends, and what they started would stay
    os.setsid()
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # what the engine's children leave behind comes to us
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    keeper = os.getpid()
    engine = os.fork()
    if engine == 0:
        _become(order, keeper, libc.prctl)
    say(pid=engine)
    status, is_ordered = _until_over(engine, woken)
    if status is None:
        status = _end(engine, float(order["grace_s"]) if is_ordered else 0.0, woken)
    _end_family(engine)
    say(status=status)


def say(**told: object) -> None:
    """Tell the worker, if it is still there."""
    with suppress(OSError):
        os.write(1, json.dumps(told).encode() + b"\n")


def _become(order: dict[str, object], keeper: int, prctl: Callable[[int, int], int]) -> NoReturn:
    """Turn into the engine, which dies should even the keeper be killed."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(1)
    log = os.open(str(order["log"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    variables, command = order["variables"], order["command"]
    assert isinstance(variables, dict)
    assert isinstance(command, list)
    for name, value in variables.items():
        os.putenv(name, value)  # not on the command line, which every user of the node can read
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode())
        os._exit(NOT_FOUND)


def _until_over(engine: int, woken: int) -> tuple[int | None, bool]:
    """The engine's status if it ended by itself; else None, and whether it was told to end."""
    while True:
        readable = select.select([0, woken], [], [])[0]
        if woken in readable:
            status = _reaped(engine, woken)
            if status is not None:
                return status, False
        if 0 in readable:
            return None, bool(os.read(0, 1))


def _reaped(engine: int, woken: int) -> int | None:
    """Bury every child that has ended; the engine's status if it is among them."""
    with suppress(BlockingIOError):
        os.read(woken, 4096)
    found = None
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == engine:
                found = os.waitstatus_to_exitcode(ended[1])
    return found


def _end(engine: int, grace_s: float, woken: int) -> int:
    """SIGTERM, and SIGKILL to what is left after the grace; the engine's status."""
    if grace_s > 0:
        os.killpg(engine, signal.SIGTERM)
        os.killpg(engine, signal.SIGCONT)
    until_s = time.monotonic() + grace_s
    while (left_s := until_s - time.monotonic()) > 0:
        select.select([woken], [], [], left_s)
        status = _reaped(engine, woken)
        if status is not None:
            return status
    os.killpg(engine, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(engine, 0)[1])


def _end_family(engine: int) -> None:
    """Kill what the engine started: its group, and every orphan that came to us, until nobody is left."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(engine, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            for child in _children():
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            os.waitpid(-1, 0)


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as listed:  # noqa: PTH123
        return [int(pid) for pid in listed.read().split()]


if __name__ == "__main__":
    main()
