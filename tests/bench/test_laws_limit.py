"""
Laws of the limits
B1. Every schedule of the simulator is a point of the linear program, so none beats it.
B2. The bound never rises when a promise is tightened, and never falls when a replica is added.
B3. Halving the bins never raises it.
B6. The stability limit is the optimum of its linear program (that it is linear in replicas and in speed is in
    `test_laws_capacity.py`).
Further: merging equal replicas changes nothing; any prices of the rows prove a bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from tests.bench.instances import CARDS, MODEL, PLAIN, Kind, a_script, a_world, instances
from tests.bench.test_laws_capacity import kinds_of_call, pools
from tests.bench.traced_engine import Schedule, Trace, point
from tests.sim.worlds import sessions
from tightrope.bench import exact
from tightrope.bench.calls import planned
from tightrope.bench.capacity import Demand, pool_limit, work_ms
from tightrope.bench.exact import played
from tightrope.bench.lp_bound import certified, lp_bound, solve
from tightrope.bench.lp_program import program
from tightrope.bench.windows import RunDuties, duties, machines_of
from tightrope.model.ids import CallId, ReplicaId
from tightrope.model.profile import Coefficients, Profile
from tightrope.model.slo import Slo
from tightrope.sim import fleet
from tightrope.sim.driver import simulate
from tightrope.sim.script import CallScript, RunScript
from tightrope.sim.world import World

CLOSE = 1e-5
Load = tuple[World, list[RunScript]]
loads = st.one_of(instances(), sessions(may_go_wrong=False))


@given(loads, st.sampled_from([50.0, 370.0]), st.booleans())
@settings(max_examples=50)
def test_b1_every_schedule_of_a_policy_is_a_point(load: Load, bin_ms: float, merged: bool) -> None:
    world, scripts = load
    trace = Trace()
    with patch.object(fleet, "SimEngine", trace.engine):
        records = simulate(world, scripts)
    good = [record.is_met for record in records]
    ended = [call.call for record in records for call in record.calls if call.ended_s is not None]
    assert_is_a_point(world, scripts, trace, good, ended, bin_ms, merged=merged)


@given(instances(Kind(PLAIN, is_plain=True)), st.randoms(use_true_random=False), st.booleans())
def test_b1_every_schedule_without_a_policy_is_a_point(load: Load, rng: Random, merged: bool) -> None:
    world, scripts = load
    calls = planned(world, scripts, most_calls=100)
    orders: dict[ReplicaId, tuple[CallId, ...]] = dict.fromkeys(calls.truth_by_replica, ())
    for call in calls.calls:
        replica = rng.choice(call.replicas)
        orders[replica] += (call.id,)
    trace = Trace()
    with patch.object(exact, "SimEngine", trace.engine):
        good = played(calls, orders)
    assert_is_a_point(world, scripts, trace, good, [call.id for call in calls.calls], 50.0, merged=merged)


@given(st.integers(10, 60), st.integers(12, 40), st.sampled_from([0.0, 0.02]), st.sampled_from([150, 2048]))
@settings(max_examples=30)
def test_b1_calls_put_out_and_computed_again_are_a_point(
    spare_tokens: int, output_tokens: int, per_context: float, step_tokens: int
) -> None:
    """Three calls whose prompts fit the memory together, and whose answers do not."""
    card = Coefficients(a=5, b=0.5, c=per_context, d=0.05, e=1e-5)
    memory = 300 + min(spare_tokens, 3 * output_tokens - 10)
    world = a_world(Profile(MODEL, CARDS[0], card, step_tokens, 8, memory), replicas=1)
    scripts = [a_script(number, CallScript(100, output_tokens), Slo(e2e_s=3.0)) for number in range(3)]
    calls = planned(world, scripts, most_calls=3)
    ids = tuple(call.id for call in calls.calls)
    trace = Trace()
    with patch.object(exact, "SimEngine", trace.engine):
        good = played(calls, {world.replicas[0].id: ids})
    assert any(not chunk.is_first for step in trace.steps[0] for chunk in step.chunks)
    assert all(good)
    assert_is_a_point(world, scripts, trace, good, ids, 50.0, merged=True)


def assert_is_a_point(
    world: World,
    scripts: Sequence[RunScript],
    trace: Trace,
    good: Sequence[bool],
    ended: Sequence[CallId],
    bin_ms: float,
    *,
    merged: bool,
) -> None:
    machines = machines_of(world, merged=merged)
    runs = duties(world, scripts, machines)
    made = program(machines, runs, bin_ms)
    steps = dict(
        zip((spec.id for spec in world.replicas), trace.steps, strict=False)
    )  # later ones are restarts
    x, lost = point(made, machines, runs, Schedule(steps, _duty_by_call(runs, ended, good), good))
    assert lost < CLOSE
    assert (x <= made.upper + CLOSE).all()
    excess = made.matrix @ x - made.limits
    assert set(made.family[excess > CLOSE]) == set()
    assert np.abs(excess[made.is_equal]).max(initial=0.0) < CLOSE
    assert sum(good) <= solve(made).good_runs + CLOSE


def _duty_by_call(
    runs: Sequence[RunDuties], ended: Sequence[CallId], good: Sequence[bool]
) -> dict[CallId, int]:
    """The calls that ended well and did a duty of a good run."""
    call_by_item = {call.rpartition(".")[0]: call for call in ended}
    every = [
        (f"{run.run}/{duty.step}/{duty.item}", is_good)
        for run, is_good in zip(runs, good, strict=True)
        for group in run.by_step
        for duty in group.duties
    ]
    return {
        call_by_item[item]: number
        for number, (item, is_good) in enumerate(every)
        if is_good and item in call_by_item
    }


@given(instances(), st.floats(0.5, 1), st.sampled_from([100.0, 370.0]))
@settings(max_examples=30)
def test_b2_tighter_promises_never_raise_it(load: Load, factor: float, bin_ms: float) -> None:
    world, scripts = load
    tighter = [replace(script, slo=_scaled(script.slo, factor)) for script in scripts]
    bound = lp_bound(world, scripts, bin_ms).good_runs
    assert lp_bound(world, tighter, bin_ms).good_runs <= bound + CLOSE


def _scaled(slo: Slo, factor: float) -> Slo:
    ttft_s, tpot_s, e2e_s = (
        None if target is None else factor * target for target in (slo.ttft_s, slo.tpot_s, slo.e2e_s)
    )
    return Slo(ttft_s=ttft_s, tpot_s=tpot_s, e2e_s=e2e_s)


@given(instances(), st.sampled_from([100.0, 370.0]))
@settings(max_examples=30)
def test_b2_one_more_replica_never_lowers_it(load: Load, bin_ms: float) -> None:
    world, scripts = load
    more = replace(world, replicas=(*world.replicas, replace(world.replicas[0], id=ReplicaId("more"))))
    bound = lp_bound(world, scripts, bin_ms).good_runs
    assert lp_bound(more, scripts, bin_ms).good_runs >= bound - CLOSE


@given(instances(), st.sampled_from([100.0, 370.0]))
@settings(max_examples=30)
def test_b3_halving_the_bins_never_raises_it(load: Load, bin_ms: float) -> None:
    world, scripts = load
    bound = lp_bound(world, scripts, bin_ms).good_runs
    assert lp_bound(world, scripts, bin_ms / 2).good_runs <= bound + CLOSE


@given(instances(), st.sampled_from([100.0, 370.0]))
@settings(max_examples=30)
def test_merging_equal_replicas_changes_nothing(load: Load, bin_ms: float) -> None:
    world, scripts = load
    bound = lp_bound(world, scripts, bin_ms).good_runs
    assert lp_bound(world, scripts, bin_ms, merged=False).good_runs == pytest.approx(bound, abs=CLOSE)


@given(instances(), st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_any_prices_prove_a_bound(load: Load, rng: Random) -> None:
    world, scripts = load
    machines = machines_of(world)
    made = program(machines, duties(world, scripts, machines), 100.0)
    prices = np.array([rng.choice([0.0, 1.0, rng.uniform(-1, 3)]) for _ in made.limits])
    assert certified(made, prices) >= solve(made).good_runs - CLOSE


@given(kinds_of_call, pools)
@settings(max_examples=40)
def test_b6_the_stability_limit_is_the_optimum_of_its_program(
    kinds: list[Demand], pool: list[Profile]
) -> None:
    """max lam such that sum_g z[v,g] = lam calls[v] and sum_v work[v,g] z[v,g] <= 1000 x replicas of g."""
    groups = Counter(pool)
    width = 1 + len(kinds) * len(groups)
    asked, offered = np.zeros((len(kinds), width)), np.zeros((len(groups), width))
    for v, kind in enumerate(kinds):
        asked[v, 0] = -kind.calls
        for g, profile in enumerate(groups):
            asked[v, 1 + v * len(groups) + g] = 1.0
            offered[g, 1 + v * len(groups) + g] = work_ms(profile, kind) / 1000
    cost = np.zeros(width)
    cost[0] = -1.0
    found = linprog(
        cost, A_ub=offered, b_ub=list(groups.values()), A_eq=asked, b_eq=np.zeros(len(kinds)), method="highs"
    )
    assert pool_limit(kinds, pool) == pytest.approx(-found.fun, rel=1e-6)
