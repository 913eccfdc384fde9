"""Slows an engine down by stopping and continuing it, 50 times a second.

Run by path as `python -I -S duty_cycle.py PID START_TICKS SHARE_FILE`. A process of its own, so that the
death of the runtime never leaves an engine stopped: it goes on with the share in the file and ends with the
engine. It inherits the lock that says so, and that goes with it.
"""

import os
import signal
import sys
import time

PERIOD_S = 0.02


def main() -> None:
    """Stop and continue the process group until its leader has ended, or until SIGTERM; leave it running."""
    pid, start_ticks, share_file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    signal.signal(signal.SIGTERM, _leave)
    try:
        while is_same(pid, start_ticks):
            work_s = PERIOD_S * read_share(share_file)
            if work_s < PERIOD_S:
                os.killpg(pid, signal.SIGSTOP)
                time.sleep(PERIOD_S - work_s)
                os.killpg(pid, signal.SIGCONT)
            time.sleep(work_s)
    except ProcessLookupError:
        pass
    finally:
        if is_same(pid, start_ticks):
            os.killpg(pid, signal.SIGCONT)


def is_same(pid: int, start_ticks: int) -> bool:
    """Whether the process that started then still runs."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:  # noqa: PTH123
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] not in "ZX" and int(fields[19]) == start_ticks


def read_share(share_file: str) -> float:
    """The share of a core in the file, from 0.01 to 1; 1 where there is none."""
    try:
        with open(share_file, encoding="ascii") as file:  # noqa: PTH123
            return min(1.0, max(0.01, float(file.read())))
    except (OSError, ValueError):
        return 1.0


def _leave(_number: int, _frame: object) -> None:
    sys.exit(0)


if __name__ == "__main__":
    main()
