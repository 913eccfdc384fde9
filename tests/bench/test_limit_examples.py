"""The bound on loads small enough to see why it is what it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import linprog

from tests.bench.instances import CARDS, FLOWS, MODEL, a_script, a_world
from tightrope.bench.calls import planned
from tightrope.bench.exact import batched_best, played
from tightrope.bench.lp_bound import lp_bound
from tightrope.bench.metrics import Window
from tightrope.model.errors import InvalidInput
from tightrope.model.profile import Coefficients, Profile
from tightrope.model.slo import Slo
from tightrope.sim.driver import simulate
from tightrope.sim.script import CallScript
from tightrope.sim.world import Fault

CARD = Profile(MODEL, CARDS[0], Coefficients(a=10, b=0.1, c=0, d=0.2, e=0), 2048, 128, 100_000)


def test_one_share_for_a_whole_call_is_no_bound_and_two_are() -> None:
    """An engine ends both calls in time; shares of whole calls would say that it cannot."""
    world = a_world(CARD, replicas=1)
    scripts = [
        a_script(1, CallScript(2000, 41), Slo(e2e_s=1.265 - 0.42), at_s=0.42),
        a_script(2, CallScript(20, 41), Slo(e2e_s=1.265 - 0.84), at_s=0.84),
    ]
    assert batched_best(world, scripts).good_runs == 2
    assert lp_bound(world, scripts, bin_ms=420.0).goodput == pytest.approx(1.0)
    assert one_share_goodput() == pytest.approx(0.777, abs=5e-4)


def one_share_goodput() -> float:
    """The same two calls, each with one share a bin for its work, its steps and its time. In ms, bins of 420.

    Columns: the shares of call 1 in bins 1, 2, 3, those of call 2 in bins 2, 3, and the steps in bins 1, 2, 3.
    """
    long, short = 410 + 40 * 10.1, 14 + 40 * 10.1
    work, steps = (400 + 40 * 0.1, 4 + 40 * 0.1), 41
    a = np.array([
        [1, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0, 0],
        [work[0], 0, 0, 0, 0, 10, 0, 0],
        [0, work[0], 0, work[1], 0, 0, 10, 0],
        [0, 0, work[0], 0, work[1], 0, 0, 10],
        [steps, 0, 0, 0, 0, -1, 0, 0],
        [0, steps, 0, 0, 0, 0, -1, 0],
        [0, 0, steps, 0, 0, 0, 0, -1],
        [0, 0, 0, steps, 0, 0, -1, 0],
        [0, 0, 0, 0, steps, 0, 0, -1],
    ])  # fmt: skip
    limits = [1, 1, 420, 420, 420, 0, 0, 0, 0, 0]
    upper = [420 / long, 420 / long, 5 / long, 420 / short, 5 / short, None, None, None]
    found = linprog([-1] * 5 + [0] * 3, A_ub=a, b_ub=limits, bounds=[(0, most) for most in upper])
    return -float(found.fun) / 2


def test_a_run_that_is_late_even_alone_counts_for_nothing() -> None:
    world = a_world(CARD, replicas=3)
    alone_s = CARD.solo_ms(500, 20) / 1000
    scripts = [
        a_script(0, CallScript(500, 20), Slo(e2e_s=0.99 * alone_s)),
        a_script(1, CallScript(500, 20), Slo(e2e_s=1.01 * alone_s)),
    ]
    assert lp_bound(world, scripts).good_runs == pytest.approx(1.0)


@pytest.mark.parametrize("at_s", [0.1, 1 / 3, 7.7])
def test_a_promise_of_exactly_the_time_alone_can_be_kept(at_s: float) -> None:
    world = a_world(CARD, replicas=1)
    scripts = [a_script(0, CallScript(500, 20), Slo(e2e_s=CARD.solo_ms(500, 20) / 1000), at_s=at_s)]
    assert lp_bound(world, scripts).good_runs == pytest.approx(1.0)


def test_the_way_to_the_engine_and_back_counts() -> None:
    world = a_world(CARD, replicas=1, network_s=0.05)
    alone_s = CARD.solo_ms(500, 20) / 1000
    for slo_s, good in ((alone_s + 0.099, 0), (alone_s + 0.101, 1)):
        scripts = [a_script(0, CallScript(500, 20), Slo(e2e_s=slo_s))]
        assert lp_bound(world, scripts).good_runs == pytest.approx(good)
        assert sum(record.is_met for record in simulate(world, scripts)) == good


def test_a_join_that_may_let_items_go_needs_only_some() -> None:
    """One of three items takes five seconds; the join takes the other two after 50 ms, and the run is on time."""
    flow = next(flow for flow in FLOWS if flow.name == "some")
    world = a_world(CARD, replicas=1, workflows=(flow,))
    short, long = CallScript(20, 2), CallScript(20, 64)
    script = a_script(0, short, Slo(ttft_s=0.2), flow=flow)
    script = replace(script, calls={**script.calls, flow.nodes[0].id: (short, short, long)})
    (record,) = simulate(world, [script])
    assert record.is_met
    assert CARD.solo_ms(20, 64) > 200
    assert lp_bound(world, [script], bin_ms=50.0).good_runs == pytest.approx(1.0)


def test_twice_the_work_that_fits_is_half_of_it_good() -> None:
    """Prompts of 100 ms each, ten within half a second on one machine of whole steps: five fit."""
    card = replace(CARD, coefficients=Coefficients(a=0.01, b=0, c=0, d=0.1, e=0), step_tokens=1000)
    world = a_world(card, replicas=1)
    scripts = [a_script(number, CallScript(1000, 1), Slo(e2e_s=0.5)) for number in range(10)]
    assert lp_bound(world, scripts, bin_ms=500.0).good_runs == pytest.approx(5.0, abs=1e-2)
    assert lp_bound(a_world(card, replicas=2), scripts).goodput == pytest.approx(1.0, abs=1e-2)


def test_only_runs_of_the_window_count() -> None:
    world = a_world(CARD, replicas=1)
    scripts = [
        a_script(number, CallScript(100, 2), Slo(e2e_s=1.0), at_s=float(number)) for number in range(4)
    ]
    bound = lp_bound(world, scripts, window=Window(1.0, 3.0))
    assert bound.runs == 2
    assert bound.goodput == pytest.approx(1.0)
    assert lp_bound(world, scripts, window=Window(9.0, 10.0)).runs == 0
    assert lp_bound(world, []).goodput == 1.0


def test_a_stopped_solver_leaves_a_bound_that_is_not_called_the_optimum() -> None:
    world = a_world(CARD, replicas=1)
    scripts = [a_script(number, CallScript(2000, 20), Slo(e2e_s=0.7)) for number in range(6)]
    whole, stopped = lp_bound(world, scripts), lp_bound(world, scripts, limit_s=0.0)
    assert whole.is_optimal
    assert not stopped.is_optimal
    assert whole.good_runs < stopped.good_runs <= 6
    assert lp_bound(world, scripts, limit_s=60.0) == whole


def test_a_world_of_chance_and_failure_is_said_to_be_bounded_without_them() -> None:
    world = a_world(CARD, replicas=1)
    scripts = [a_script(0, CallScript(10, 2), Slo(e2e_s=1.0))]
    noisy = {kind: replace(truth, noise=0.1) for kind, truth in world.truths.items()}
    assert lp_bound(world, scripts).is_certain
    assert not lp_bound(replace(world, truths=noisy), scripts).is_certain
    slow = Fault(0.0, world.replicas[0].id, "slow", 2.0)
    assert not lp_bound(replace(world, faults=(slow,)), scripts).is_certain


def test_steps_that_cost_nothing_are_refused() -> None:
    free = replace(CARD, coefficients=Coefficients(a=0, b=0.1, c=0, d=0.2, e=0))
    with pytest.raises(InvalidInput, match="costs nothing"):
        lp_bound(a_world(free, replicas=1), [a_script(0, CallScript(10, 2), Slo(e2e_s=1.0))])


def test_an_order_that_waits_for_itself_ends_nothing() -> None:
    flow = next(flow for flow in FLOWS if flow.name == "chain")
    world = a_world(CARD, replicas=1, workflows=(flow,))
    load = planned(world, [a_script(0, CallScript(10, 2), Slo(e2e_s=9.0), flow=flow)], 6)
    first, answer = (call.id for call in load.calls)
    assert played(load, {world.replicas[0].id: (first, answer)}) == [True]
    assert played(load, {world.replicas[0].id: (answer, first)}) == [False]
