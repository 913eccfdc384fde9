"""
Laws of the search
B1. It never beats the linear program.
B4. What it finds is never worse than any policy it starts from.
1. Equal arguments find the equal assignment, and following that gives the best again.
2. Following what a policy chose gives what it gave, if the policy sends a call as soon as any replica has room.
3. Every call goes where it is assigned.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench.instances import Kind, ask, instances
from tests.sim.worlds import BIG, a_script, a_world
from tightrope.bench.clairvoyant import Budget, Found, climb, follow, reached, search
from tightrope.bench.lp_bound import lp_bound
from tightrope.bench.metrics import Window
from tightrope.model.codec import decode, encode
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import StepId
from tightrope.model.slo import Slo
from tightrope.model.workflow import Workflow
from tightrope.sim.driver import simulate
from tightrope.sim.script import CallScript, RunScript
from tightrope.sim.world import World

CLOSE = 1e-5
STARTS = ("foresight", "power-of-two")
Load = tuple[World, list[RunScript]]


@given(instances(Kind(most_runs=6)))
@settings(max_examples=8)
def test_b1_b4_the_search_is_below_the_bound_and_never_worse_than_a_start(load: Load) -> None:
    world, scripts = load
    found = search(world, scripts, STARTS, Budget(steps=3))
    assert found.best.good_runs <= lp_bound(world, scripts, 100.0).good_runs + CLOSE
    assert [climbed.start.policy for climbed in found.climbs] == list(STARTS)
    assert all(climbed.best.score >= climbed.start.score for climbed in found.climbs)
    assert found.best.score == max(climbed.best.score for climbed in found.climbs)
    assert found.best.goodput >= max(climbed.start.goodput for climbed in found.climbs) - 1e-3


@given(instances(Kind(most_runs=6)), st.integers(0, 9))
@settings(max_examples=8)
def test_1_what_is_found_can_be_had_again(load: Load, seed: int) -> None:
    world, scripts = load
    climbed = climb(world, scripts, "round-robin", Budget(steps=3), seed=seed)
    assert climb(world, scripts, "round-robin", Budget(steps=3), seed=seed) == climbed
    if climbed.assignment is not None:
        records = follow(world, scripts, "round-robin", climbed.assignment)
        assert reached("round-robin", records) == climbed.best


@given(instances(), st.sampled_from(["round-robin", "least-tokens", "shortest-queue"]))
@settings(max_examples=20)
def test_2_following_a_policy_gives_what_it_gave(load: Load, policy: str) -> None:
    world, scripts = load
    world = replace(world, settings=replace(world.settings, router=policy))
    records = simulate(world, scripts)
    assignment = {call.call.rpartition(".")[0]: call.replica for record in records for call in record.calls}
    again = follow(world, scripts, policy, assignment)
    assert [record.duration_s for record in again] == [record.duration_s for record in records]
    assert reached(policy, again) == reached(policy, records)


@given(instances(), st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_3_every_call_goes_where_it_is_assigned(load: Load, rng: Random) -> None:
    world, scripts = load
    replicas = [spec.id for spec in world.replicas]
    assignment = {
        f"{script.run}/{step}/{item}": rng.choice(replicas)
        for script in scripts
        for step, items in script.calls.items()
        for item in range(len(items))
    }
    for record in follow(world, scripts, "foresight", assignment):
        assert [call.replica for call in record.calls] == [
            assignment[call.call.rpartition(".")[0]] for call in record.calls
        ]


def test_the_search_finds_better_than_policies_and_the_bound_leaves_it_room() -> None:
    node = ask("out", stream=True, model=BIG)
    flow = Workflow("chat", (node,), node.id)
    world = a_world(flow, replicas="b0:big@fast b1:big@slow")
    scripts = [
        a_script(flow, number=number, at_s=0.01 * number, slo=Slo(ttft_s=0.1), out=CallScript(500, 20))
        for number in range(16)
    ]
    told: list[int] = []
    found = search(
        world,
        scripts,
        ("foresight", "round-robin"),
        Budget(steps=20),
        on_step=lambda number, _best: told.append(number),
    )
    assert told == [*range(1, 21), *range(1, 21)]
    assert max(climbed.start.goodput for climbed in found.climbs) < found.best.goodput
    assert found.best.goodput < lp_bound(world, scripts, bin_ms=25.0).goodput < 1
    assert decode(Found, encode(found)) == found


def test_only_runs_of_the_window_count() -> None:
    flow = Workflow("chat", (ask("out", model=BIG),), StepId("out"))
    world = a_world(flow, replicas="b0:big@fast b1:big@slow")
    slos = [Slo(e2e_s=0.001), Slo(e2e_s=9.0), Slo(e2e_s=0.001)]
    scripts = [a_script(flow, number=n, at_s=float(n), slo=slo) for n, slo in enumerate(slos)]
    (climbed,) = search(world, scripts, ["foresight"], Budget(steps=1), Window(1.0, 2.0)).climbs
    assert (climbed.start.runs, climbed.start.good_runs) == (1, 1)


def test_a_search_without_a_start_is_refused() -> None:
    flow = Workflow("chat", (ask("out", model=BIG),), StepId("out"))
    with pytest.raises(InvalidInput, match="at least one policy"):
        search(a_world(flow), [], [], Budget(steps=1))
