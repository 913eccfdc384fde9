"""
Laws of the line
R7. No hopeless call goes before a live one, and every call is in the line once.
1. Among live calls the earliest latest finish goes first; by arrival, the one that was ready first.
2. The order is total: it does not depend on how the calls came.
3. A call is hopeless only if it is expected late on an idle card; it stays so, and never is without a deadline.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.builders import a_job, jobs, numbers
from tightrope.model.fleet import Job
from tightrope.model.ids import CallId
from tightrope.policy.order import Line, is_hopeless, line_key

lines = st.lists(jobs(), max_size=8).map(
    lambda found: [replace(job, call=CallId(f"c{index}")) for index, job in enumerate(found)]
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


@pytest.mark.parametrize("line", ["arrival", "latest-finish"])
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
