"""Becomes an engine: the few steps between the birth of a process and the engine's own first instruction.

Run by path as `python -I -S launch.py ORDER`, with the order as JSON. It writes the record first, so that
there is no moment in which an engine runs and nobody could know of it. Standard library only, and little of
it: it runs before every start of a replica.
"""

import json
import os
import sys

NOT_FOUND = 127
PR_SET_PDEATHSIG = 1
SIGKILL = 9


def main() -> None:
    """Record, join the control group, pin, and turn into the command; status 127 if that cannot be run."""
    order = json.loads(sys.argv[1])
    if order["die_with_parent"]:
        _die_with(order["parent"])
    _record(order["record_file"], order["record"])
    if order["join_file"]:
        with open(order["join_file"], "w", encoding="ascii") as tasks:  # noqa: PTH123 (pathlib costs 10 ms)
            tasks.write(str(os.getpid()))
    if order["cores"]:
        os.sched_setaffinity(0, order["cores"])
    command = order["command"]
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(NOT_FOUND)


def _die_with(parent: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def _record(record_file: str, record: dict[str, object]) -> None:
    with open("/proc/self/stat", encoding="ascii", errors="replace") as stat:  # noqa: PTH123
        start_ticks = int(stat.read().rpartition(")")[2].split()[19])
    whole = record | {"pid": os.getpid(), "start_ticks": start_ticks}
    draft = f"{record_file}.{os.getpid()}"
    with open(draft, "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(whole, file)
    os.replace(draft, record_file)  # noqa: PTH105


if __name__ == "__main__":
    main()
