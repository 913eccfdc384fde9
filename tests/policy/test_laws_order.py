"""
Laws of the line
R7. No hopeless call goes before a live one, and every call is in the line once.
1. Among live calls the earliest latest finish goes first; by arrival, the one that was ready first.
2. The order is total: it does not depend on how the calls came.
3. A call is hopeless only if it is expected late on an idle card; it stays so, and never is without a deadline.
4. Moore and Hodgson's rule gives up as few as any choice must, on one machine with all calls present.
5. Whatever it keeps is on time in order of due time; what has no deadline is never given up for itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.builders import a_job, jobs, numbers
from tightrope.model.fleet import Job
from tightrope.model.ids import CallId
from tightrope.policy.order import Claim, Line, demoted, is_hopeless, line_key

lines = st.lists(jobs(), max_size=8).map(
    lambda found: [replace(job, call=CallId(f"c{index}")) for index, job in enumerate(found)]
)


claims = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 15)), max_size=8).map(
    lambda pairs: [Claim(due, work, CallId(f"c{index}")) for index, (due, work) in enumerate(pairs)]
)


@given(lines)
def test_r7_live_calls_go_first(waiting: list[Job]) -> None:
    line = sorted(waiting, key=lambda job: line_key(job, "latest-finish"))
    assert [job.is_hopeless for job in line] == sorted(job.is_hopeless for job in waiting)
    assert {job.call for job in line} == {job.call for job in waiting}


@given(lines)
def test_1_the_earliest_latest_finish_goes_first(waiting: list[Job]) -> None:
    line = sorted(waiting, key=lambda job: line_key(job, "latest-finish"))
    live = [job.due_s for job in line if not job.is_hopeless]
    assert live == sorted(live)


def test_1_by_arrival_only_readiness_counts() -> None:
    early = a_job(call=CallId("z"), ready_s=1.0, due_s=9.0, is_hopeless=True)
    late = a_job(call=CallId("a"), ready_s=2.0, due_s=3.0)
    assert line_key(early, "arrival") < line_key(late, "arrival")
    assert line_key(late, "latest-finish") < line_key(early, "latest-finish")


@pytest.mark.parametrize("line", ["arrival", "latest-finish", "fewest-late"])
@given(waiting=lines)
def test_2_the_order_is_total(line: Line, waiting: list[Job]) -> None:
    turned = waiting[::-1]
    assert sorted(waiting, key=lambda job: line_key(job, line)) == sorted(
        turned, key=lambda job: line_key(job, line)
    )
    assert len({line_key(job, line) for job in waiting}) == len(waiting)


@given(numbers(0, 50), numbers(0, 20), numbers(0, 50), numbers(0, 50))
def test_3_hopeless_is_late_even_on_an_idle_card(
    due_s: float, crit_s: float, one_s: float, other_s: float
) -> None:
    early_s, later_s = sorted((one_s, other_s))
    if is_hopeless(due_s, crit_s, early_s):
        assert early_s + crit_s > due_s
        assert is_hopeless(due_s, crit_s, later_s)
    assert not is_hopeless(math.inf, crit_s, one_s)


def test_3_example() -> None:
    """A run due at 2 s whose last node needs 0.1 s: at 1.95 s it is lost, at 1.8 s it is not."""
    assert is_hopeless(2.0, 0.1, 1.95)
    assert not is_hopeless(2.0, 0.1, 1.8)


def are_all_on_time(kept: Iterable[Claim], start_s: float) -> bool:
    at_s = start_s
    for claim in sorted(kept):
        at_s += claim.work_s
        if at_s > claim.due_s:
            return False
    return True


@given(claims, st.integers(0, 10))
def test_4_no_choice_leaves_fewer_late(found: list[Claim], start_s: int) -> None:
    fewest = next(
        count
        for count in range(len(found) + 1)
        if any(are_all_on_time(kept, start_s) for kept in combinations(found, len(found) - count))
    )
    assert len(demoted(found, start_s)) == fewest
    assert demoted(found[::-1], start_s) == demoted(found, start_s)


@given(claims, st.integers(0, 10))
def test_5_what_is_kept_is_on_time(found: list[Claim], start_s: int) -> None:
    given_up = demoted(found, start_s)
    assert given_up <= {claim.call for claim in found}
    assert are_all_on_time([claim for claim in found if claim.call not in given_up], start_s)
    assert demoted([claim._replace(due_s=math.inf) for claim in found], start_s) == set()


def test_4_example() -> None:
    """Plain order of due time would have A and B on time, and nobody else."""
    table = {"A": (200, 120), "B": (450, 300), "C": (480, 80), "D": (520, 150), "E": (700, 100)}
    found = [Claim(due, work, CallId(name)) for name, (due, work) in table.items()]
    assert demoted(found, 0) == {"B"}
    assert demoted(found, 81) == {"A", "B"}
