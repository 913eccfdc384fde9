"""
Laws of the exact programs
1. On engines that serve one call at a time, the program and the engine tried in every order agree.
2. On one such engine with every call there at once, it leaves as few late as Moore and Hodgson.
   (Law B5 of the limits.)
3. Neither beats the linear program.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.bench.instances import CARDS, MODEL, PLAIN, Kind, a_script, a_world, instances, profiles
from tests.policy.builders import H100
from tightrope.bench.calls import planned
from tightrope.bench.exact import batched_best, serial_best
from tightrope.bench.lp_bound import lp_bound
from tightrope.model.errors import InvalidInput
from tightrope.model.slo import Slo
from tightrope.sim.script import CallScript, RunScript
from tightrope.sim.world import World

CLOSE = 1e-5  # seconds or runs: the solver takes a call that ends 1e-6 s too late for one on time
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


def due_later(scripts: list[RunScript], by_s: float) -> list[RunScript]:
    """The runs with every promised moment moved."""
    moved = []
    for script in scripts:
        slo = script.slo
        ttft_s, e2e_s = (None if due_s is None else due_s + by_s for due_s in (slo.ttft_s, slo.e2e_s))
        moved.append(replace(script, slo=replace(slo, ttft_s=ttft_s, e2e_s=e2e_s)))
    return moved


@given(serial)
@settings(max_examples=40)
def test_1_the_program_agrees_with_every_order_tried(load: Load) -> None:
    world, scripts = few(load, 4)
    assume(scripts)
    found = serial_best(world, scripts)
    assert found.is_optimal
    tight, loose = (batched_best(world, due_later(scripts, by_s)).good_runs for by_s in (-CLOSE, CLOSE))
    assert tight <= found.good_runs <= loose


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


@st.composite
def at_once(draw: st.DrawFn) -> Load:
    """Calls of all lengths that come at once to one engine, each with a moment to end by."""
    profile = draw(profiles(CARDS[0], 100_000, Kind(is_serial=True)))
    lengths = draw(st.lists(st.tuples(st.integers(1, 900), st.integers(1, 40)), min_size=1, max_size=7))
    whole_s = sum(profile.solo_ms(prompt, output) for prompt, output in lengths) / 1000
    dues_s = [draw(st.floats(0.05, 1)) * whole_s for _ in lengths]
    world = a_world(profile, replicas=1)
    scripts = [
        a_script(number, CallScript(prompt, output), Slo(e2e_s=due_s))
        for number, ((prompt, output), due_s) in enumerate(zip(lengths, dues_s, strict=True))
    ]
    return world, scripts


@given(at_once())
@settings(max_examples=40)
def test_2_one_engine_with_every_call_there_leaves_as_few_late_as_moore_and_hodgson(load: Load) -> None:
    world, scripts = load
    (profile,) = world.beliefs.values()
    jobs = []
    for script in scripts:
        (call,) = script.calls[script.workflow.output]
        due_s = script.slo.e2e_s or 0.0
        jobs.append((due_s, profile.solo_ms(call.prompt_tokens, call.output_tokens) / 1000))
    tight, loose = ([(due_s + by_s, takes_s) for due_s, takes_s in jobs] for by_s in (-CLOSE, CLOSE))
    assert moore_hodgson(tight) <= serial_best(world, scripts).good_runs <= moore_hodgson(loose)


def moore_hodgson(jobs: list[tuple[float, float]]) -> int:
    """How many of (due, takes) can be on time on one machine: in order of due, throw out the longest when late."""
    kept: list[float] = []
    for due_s, takes_s in sorted(jobs):
        kept.append(takes_s)
        if sum(kept) > due_s:
            kept.remove(max(kept))
    return len(kept)


def test_what_cannot_be_planned_is_refused() -> None:
    call = CallScript(100, 10)
    serial = replace(H100, max_sequences=1, model=MODEL)
    world = a_world(serial, replicas=1)
    scripts = [a_script(number, call, Slo(e2e_s=1.0)) for number in range(16)]
    with pytest.raises(InvalidInput, match="16 calls are too many"):
        serial_best(world, scripts)
    with pytest.raises(InvalidInput, match="7 calls are too many"):
        batched_best(world, scripts[:7])
    with pytest.raises(InvalidInput, match="never late"):
        serial_best(world, [a_script(0, call, Slo())])
    with pytest.raises(InvalidInput, match="not serial"):
        serial_best(a_world(replace(serial, max_sequences=2), replicas=1), scripts[:2])
    with pytest.raises(InvalidInput, match="without noise"):
        serial_best(replace(world, network_s=0.1), scripts[:2])
