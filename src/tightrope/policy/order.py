"""The waiting line of a pool: who goes next, and who has no chance any more.

Owns the key of the line, the test for hopelessness and the choice of those that are given up so that the others
are on time. Where the next call goes is `route.py`; keeping the line is the kernel's.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Literal, NamedTuple, assert_never

from tightrope.model.fleet import Job
from tightrope.model.ids import CallId

Line = Literal["arrival", "latest-finish", "fewest-late"]

OPTIMISM = 0.7
"""Share of the usual time within which a call is taken to be able to end: lengths are guesses, and demoting a
call that could have been on time costs more than trying one that could not."""


def line_key(job: Job, line: Line) -> tuple[float | str, ...]:
    """Smallest first. Ties end with the id of the call, so that two lines of the same calls are the same.

    `arrival`: in the order in which calls became ready. `latest-finish`: what can still be on time before
    what cannot, and then the earliest latest finish first. `fewest-late`: the same, and what cannot is chosen
    over the whole line (`demoted`).
    """
    match line:
        case "arrival":
            return (job.ready_s, job.call)
        case "latest-finish" | "fewest-late":
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


class Claim(NamedTuple):
    """What a live call asks of a machine: `work_s` seconds of it, done by `due_s`."""

    due_s: float
    work_s: float
    call: CallId


def demoted(claims: Iterable[Claim], start_s: float) -> set[CallId]:
    """Moore and Hodgson's rule: those to give up so that a machine free at `start_s` does the others in time.

    In order of due time, the one with the most work is given up whenever one would be late. On one machine with
    all calls present nothing leaves fewer late; with unequal machines and calls to come it is a heuristic.
    """
    kept: list[tuple[float, CallId, Claim]] = []
    given_up: set[CallId] = set()
    at_s = start_s
    for claim in sorted(claims):
        heappush(kept, (-claim.work_s, claim.call, claim))
        at_s += claim.work_s
        if at_s > claim.due_s:
            _, call, largest = heappop(kept)
            given_up.add(call)
            at_s -= largest.work_s
    return given_up
