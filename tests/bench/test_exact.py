"""
Laws of the exact programs
1. On engines that serve one call at a time, the program and the engine tried in every order agree.
2. On one such engine with every call there at once, it leaves as few late as Moore and Hodgson.
3. Neither beats the linear program.
"""

from __future__ import annotations

from hypothesis import assume, given, settings

from tests.bench.instances import PLAIN, Kind, instances
from tightrope.bench.calls import planned
from tightrope.bench.exact import batched_best, serial_best
from tightrope.bench.lp_bound import lp_bound
from tightrope.model.errors import InvalidInput
from tightrope.sim.script import RunScript
from tightrope.sim.world import World

CLOSE = 1e-5
serial = instances(Kind(PLAIN, most_runs=3, most_replicas=2, is_plain=True, is_serial=True))
batching = instances(Kind(PLAIN, most_runs=3, most_replicas=2, is_plain=True))
Load = tuple[World, list[RunScript]]


def few(load: Load, most: int) -> Load:
    """As many of the runs as have `most` calls together."""
    world, scripts = load
    while True:
        try:
            planned(world, scripts, most)
        except InvalidInput:
            scripts = scripts[:-1]
        else:
            return world, scripts


@given(serial)
@settings(max_examples=40)
def test_1_the_program_agrees_with_every_order_tried(load: Load) -> None:
    world, scripts = few(load, 4)
    assume(scripts)
    found = serial_best(world, scripts)
    assert found.is_optimal
    assert found.good_runs == batched_best(world, scripts).good_runs


@given(serial)
@settings(max_examples=40)
def test_3_the_serial_optimum_is_below_the_bound(load: Load) -> None:
    world, scripts = few(load, 7)
    assume(scripts)
    assert serial_best(world, scripts).good_runs <= lp_bound(world, scripts, 50.0).good_runs + CLOSE


@given(batching)
@settings(max_examples=40)
def test_3_the_best_order_on_batching_engines_is_below_the_bound(load: Load) -> None:
    world, scripts = few(load, 4)
    assume(scripts)
    assert batched_best(world, scripts).good_runs <= lp_bound(world, scripts, 50.0).good_runs + CLOSE
