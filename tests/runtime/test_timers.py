"""Wake-ups come in order, and those of runs that have ended do not pile up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightrope.model.messages import Wake, WakeAt, WakeKind
from tightrope.runtime.timers import FEWEST_DEAD, Timers, owner
from tightrope.testing import ManualClock

DEADLINE = WakeKind.RUN_DEADLINE


def timers(clock: ManualClock) -> tuple[Timers, list[float]]:
    armed: list[float] = []
    return Timers(clock, armed.append), armed


@given(st.lists(st.integers(0, 50)), st.lists(st.integers(1, 20), max_size=10))
def test_every_wake_up_is_delivered_once_in_order_and_never_early(
    moments: list[int], steps: list[int]
) -> None:
    clock = ManualClock()
    kept, _ = timers(clock)
    for number, at_s in enumerate(moments):
        kept.add(WakeAt(at_s, Wake(DEADLINE, f"r{number}")))
    seen: list[str] = []
    for step in (0, *steps, 100):
        clock.advance(step)
        for wake in kept.due():
            assert moments[int(wake.subject[1:])] <= clock.now()
            seen.append(wake.subject)
    assert len(seen) == len(set(seen)) == len(moments)
    assert [moments[int(name[1:])] for name in seen] == sorted(moments)


def test_the_alarm_is_set_for_the_earliest() -> None:
    clock = ManualClock()
    kept, armed = timers(clock)
    for at_s in (5.0, 3.0, 4.0):
        kept.add(WakeAt(at_s, Wake(DEADLINE, f"r{at_s}")))
    assert armed == [5.0, 3.0]
    clock.advance(3.0)
    assert len(list(kept.due())) == 1
    assert armed[-1] == 4.0


@pytest.mark.parametrize("count", [10, 5 * FEWEST_DEAD])
def test_what_belongs_to_a_run_that_has_ended_is_not_delivered_and_not_kept(count: int) -> None:
    clock = ManualClock()
    kept, _ = timers(clock)
    for number in range(count):
        kept.add(WakeAt(600.0, Wake(DEADLINE, f"r{number}")))
        kept.add(WakeAt(60.0, Wake(WakeKind.CALL_SILENT, f"r{number}/answer/0.0")))
        if number:
            kept.forget(f"r{number}")
    assert len(kept._heap) <= 2 * FEWEST_DEAD + 2
    clock.advance(600.0)
    assert [owner(wake) for wake in kept.due()] == ["r0", "r0"]
