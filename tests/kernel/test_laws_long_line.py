"""
Laws of a long line
1. Whatever happens, the tables hold, and all runs end: the laws of the kernel's state machine, with every line long.
2. An overload is served to its end; no replica that could begin at once idles for long while calls wait.
3. While the line is long, an event looks at a handful of calls, however many wait.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import settings

from tests.kernel.test_machine import KernelMachine
from tightrope.bench.kernel import MODEL, SEQUENCES, Flood
from tightrope.kernel import placing
from tightrope.model.fleet import Job, PoolView, Routed


class LongLines(KernelMachine):
    """The same machine; a line of two is a long one."""

    def __init__(self) -> None:
        super().__init__()
        self.usual, placing.LONG_LINE = placing.LONG_LINE, 1

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            placing.LONG_LINE = self.usual


LongLines.TestCase.settings = settings(max_examples=40, stateful_step_count=60, deadline=None)
TestLongLines = LongLines.TestCase


@pytest.mark.parametrize("policy", ["foresight", "power-of-two"])
def test_2_an_overload_is_served_to_its_end_with_all_hands(policy: str) -> None:
    flood = Flood(policy, replicas=3, runs=200, load=2.0, seed=1)
    pool, busy = flood.kernel.state.pool(MODEL), []
    while flood.finished < flood.runs:
        flood.step()
        if len(pool.line) > 2 * placing.LONG_LINE:
            held = sum(len(replica.held) for replica in pool.replicas.values())
            busy.append(held / (SEQUENCES * len(pool.replicas)))
    flood.kernel.check()
    assert len(busy) > 300
    assert sum(busy) / len(busy) > 0.9


def test_3_an_event_looks_at_a_handful_of_calls() -> None:
    flood = Flood("foresight", replicas=3, runs=200, load=2.0, seed=1)
    router = flood.kernel.state.router
    asked: list[int] = []

    def choose(job: Job, pool: PoolView, now_s: float, rng: Random) -> Routed | None:
        asked[-1] += 1
        return router.choose(job, pool, now_s, rng)

    flood.kernel.state.router = replace(router, choose=choose)
    line = flood.kernel.state.pool(MODEL).line
    while flood.finished < flood.runs:
        asked.append(0)
        was_long = len(line) > placing.LONG_LINE + 1
        flood.step()
        if not (was_long and len(line) > placing.LONG_LINE):
            asked.pop()
    assert len(asked) > 300
    assert max(asked) <= placing.LONG_LINE
    assert sum(asked) / len(asked) < 6
