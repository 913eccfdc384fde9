"""
Laws of the utilisation of a pool
1. It is the work of the last seconds over their length, whatever was offered before.
2. A machine more never makes the work of a call larger for the pool; equal machines share it evenly.
3. The gate falls from 1 to 0 between its ends and never rises with utilisation.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.builders import H100, L40S, numbers, profiles
from tightrope.model.profile import Profile
from tightrope.policy.utilisation import GATE_FROM, GATE_TO, WINDOW_S, Offered, gate, pool_work_ms, work_ms


@given(st.lists(st.tuples(numbers(0, 5), numbers(0, 2000)), max_size=40), numbers(0, 20))
def test_1_only_the_last_seconds_count(calls: list[tuple[float, float]], rest_s: float) -> None:
    offered, noted, now_s = Offered(), list[tuple[float, float]](), 0.0
    for after_s, ms in calls:
        now_s += after_s
        noted.append((now_s, ms))
        offered.note(ms, now_s)
        if after_s > 3:
            offered.utilisation(now_s)
    now_s += rest_s
    expected = sum(ms for at_s, ms in noted if at_s > now_s - WINDOW_S) / (1000 * WINDOW_S)
    assert offered.utilisation(now_s) == pytest.approx(expected, abs=1e-9)


@given(profiles(), st.integers(1, 4), st.integers(1, 3000), numbers(1, 400))
def test_2_machines_share_the_work(card: Profile, count: int, prompt: int, output: float) -> None:
    alone_ms = work_ms(card, prompt, output)
    assert pool_work_ms({card: count}, prompt, output) == pytest.approx(alone_ms / count)
    assert pool_work_ms({card: count, H100: 1}, prompt, output) < alone_ms / count


def test_2_example() -> None:
    fast_ms, slow_ms = work_ms(H100, 1000, 100), work_ms(L40S, 1000, 100)
    assert pool_work_ms({H100: 1, L40S: 2}, 1000, 100) == pytest.approx(1 / (1 / fast_ms + 2 / slow_ms))
    assert pool_work_ms({}, 1000, 100) == 0.0


@given(numbers(0, 3), numbers(0, 3))
def test_3_the_gate_closes(one: float, other: float) -> None:
    less, more = sorted((one, other))
    assert 1 >= gate(less) >= gate(more) >= 0
    assert gate(GATE_FROM) == gate(0.0) == 1
    assert gate(GATE_TO) == gate(2.0) == 0
    assert gate((GATE_FROM + GATE_TO) / 2) == pytest.approx(0.5)
