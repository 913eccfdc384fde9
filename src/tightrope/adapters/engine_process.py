"""An engine's process from outside: how it ended and what it said last, in words, and whether its port is free.

Sent by value to the nodes of a Ray cluster, so it needs the standard library only.
"""

from __future__ import annotations

import os
import random
import signal
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

_PORTS = range(20_000, 30_000)
"""Below those that systems give to outgoing connections: such a one may take a port before the engine listens."""
_TAIL_BYTES = 4096
_TAIL_LINES = 5
_TAIL_CHARACTERS = 600


def how_it_ended(status: int) -> str:
    """The exit status, or the negative number of the signal, as a part of a sentence."""
    return f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"


def last_lines(log_file: Path) -> str:
    """The end of a log as a part of a sentence; "" if it says nothing."""
    try:
        with log_file.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    told = [line.strip() for line in lines if line.strip()][-_TAIL_LINES:]
    return f"; {log_file} ends with: {' | '.join(told)[-_TAIL_CHARACTERS:]}" if told else ""


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port of this address, by default the loopback, that nobody holds at this moment. Raises OSError."""
    return free_ports(1, host)[0]


def free_ports(count: int, host: str = "") -> list[int]:
    """Different TCP ports of this address, by default of all, that nobody holds at this moment.

    Raises OSError when there are not so many.
    """
    found: list[int] = []
    with ExitStack() as held:
        for port in random.sample(_PORTS, len(_PORTS)):
            if len(found) == count:
                break
            trial = held.enter_context(socket.socket())
            with suppress(OSError):
                trial.bind((host, port))
                found.append(port)
    if len(found) < count:
        raise OSError(
            f"{count} free ports from {_PORTS.start} to {_PORTS.stop - 1} are needed, not {len(found)}"
        )
    return found


def is_taken(host: str, port: int) -> bool:
    """Whether somebody holds the port."""
    with socket.socket() as trial:
        # As servers do, so that connections of the engine that has just ended do not count.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError:
            return True
    return False
