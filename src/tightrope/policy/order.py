"""The waiting line of a pool: who goes next, and who has no chance any more.

Owns the key of the line and the test for hopelessness. Where the next call goes is `route.py`; keeping the
line is the kernel's.
"""

from __future__ import annotations

from typing import Literal, assert_never

from tightrope.model.fleet import Job

Line = Literal["arrival", "latest-finish"]

OPTIMISM = 0.7
"""Share of the usual time within which a call is taken to be able to end: lengths are guesses, and demoting a
call that could have been on time costs more than trying one that could not."""


def line_key(job: Job, line: Line) -> tuple[float | str, ...]:
    """Smallest first. Ties end with the id of the call, so that two lines of the same calls are the same.

    `arrival`: in the order in which calls became ready. `latest-finish`: what can still be on time before
    what cannot, and then the earliest latest finish first.
    """
    match line:
        case "arrival":
            return (job.ready_s, job.call)
        case "latest-finish":
            return (float(job.is_hopeless), job.due_s, job.ready_s, job.call)
        case _:
            assert_never(line)


def is_hopeless(due_s: float, best_crit_s: float, now_s: float) -> bool:
    """Can the call no longer be on time, even on the best card with nothing else to do?

    `best_crit_s` is its usual critical time there. Earliest-deadline order alone collapses in overload, one
    late call making the next one late; so a hopeless call goes behind all others, is still served, and counts
    as missed if late. A call without a deadline (infinite `due_s`) is never hopeless.
    """
    return now_s + OPTIMISM * best_crit_s > due_s
