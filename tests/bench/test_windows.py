"""Which calls of a run must be made, and between which moments."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.bench.instances import CARDS, MODEL, ask
from tests.bench.instances import a_script as a_dull_script
from tests.bench.instances import a_world as a_dull_world
from tests.policy.builders import code
from tightrope.bench.course import course
from tightrope.bench.windows import Duty, RunDuties, duties, machines_of
from tightrope.model.ids import StepId
from tightrope.model.profile import Coefficients, Profile
from tightrope.model.slo import Limits, Slo
from tightrope.model.workflow import (
    Case,
    Node,
    OnError,
    Switch,
    Timeouts,
    Workflow,
)
from tightrope.sim.script import CallScript, RunScript
from tightrope.sim.world import World

CARD = Profile(MODEL, CARDS[0], Coefficients(a=10, b=0, c=0, d=0.1, e=0), 1000, 8, 10_000)
CALL = CallScript(prompt_tokens=100, output_tokens=4)
FIRST_MS, WHOLE_MS = 20.0, 50.0
"""What CALL takes alone on CARD."""


def a_flow(*nodes: Node, switches: tuple[Switch, ...] = ()) -> Workflow:
    return Workflow("flow", nodes, nodes[-1].id, switches=switches)


def a_world(flow: Workflow) -> World:
    return a_dull_world(CARD, replicas=1, workflows=(flow,))


def a_script(flow: Workflow, slo: Slo, **calls: CallScript) -> RunScript:
    plain = a_dull_script(0, CALL, slo, at_s=1.0, flow=flow)
    return replace(plain, calls={step: (calls.get(step, CALL),) for step in plain.calls})


def needs(world: World, script: RunScript) -> RunDuties:
    (found,) = duties(world, [script], machines_of(world))
    return found


def by_step(world: World, script: RunScript) -> dict[str, Duty]:
    return {duty.step: duty for own in needs(world, script).by_step for duty in own.duties}


def test_a_call_starts_after_the_longest_way_to_it_and_ends_before_the_longest_way_from_it() -> None:
    flow = a_flow(
        code("look"), ask("short", "look"), ask("long", "look"), ask("out", "short", "long", stream=True)
    )
    script = a_script(
        flow, Slo(ttft_s=1.0, tpot_s=0.03), look=CallScript(seconds=0.3), long=CallScript(100, 14)
    )
    found = by_step(a_world(flow), script)
    assert set(found) == {"short", "long", "out"}
    assert found["short"].start_ms == found["long"].start_ms == pytest.approx(1300)
    assert found["out"].start_ms == pytest.approx(1300 + 150)
    assert found["short"].last_by_ms == found["long"].last_by_ms == pytest.approx(2000 - FIRST_MS)
    assert found["out"].first_by_ms == pytest.approx(2000)
    assert found["out"].last_by_ms == pytest.approx(2000 + 3 * 30)


def test_what_no_reader_sees_early_counts_to_its_end() -> None:
    flow = a_flow(ask("out"))
    found = by_step(a_world(flow), a_script(flow, Slo(ttft_s=1.0)))
    assert found["out"].last_by_ms == pytest.approx(2000)
    assert found["out"].gaps == 3


def test_without_a_promise_about_gaps_only_the_prompt_of_an_answer_counts() -> None:
    flow = a_flow(ask("out", stream=True))
    found = by_step(a_world(flow), a_script(flow, Slo(ttft_s=1.0)))
    assert found["out"].gaps == 0


def test_a_card_that_stutters_is_no_place_for_an_answer() -> None:
    flow = a_flow(ask("out", stream=True))
    assert needs(a_world(flow), a_script(flow, Slo(ttft_s=1.0, tpot_s=0.0101))).is_possible
    assert not needs(a_world(flow), a_script(flow, Slo(ttft_s=1.0, tpot_s=0.0099))).is_possible


def test_only_the_branch_that_is_taken_counts_and_only_what_the_answer_waits_for() -> None:
    way = Switch(
        StepId("way"), (Case("long", "first.x == 1", 0.5), Case("short", None, 0.5)), (StepId("first"),)
    )
    flow = a_flow(
        ask("first"),
        ask("more", case=("way", "long")),
        ask("aside"),
        ask("out", "more?", stream=True),
        switches=(way,),
    )
    script = a_script(flow, Slo(ttft_s=1.0))
    short = by_step(a_world(flow), replace(script, cases={way.id: "short"}))
    long = by_step(a_world(flow), replace(script, cases={way.id: "long"}))
    assert set(short) == {"first", "out"}
    assert set(long) == {"first", "more", "out"}
    assert short["out"].start_ms == pytest.approx(1000 + WHOLE_MS)
    assert long["out"].start_ms == pytest.approx(1000 + 2 * WHOLE_MS)


def test_an_answer_is_as_long_as_its_node_and_its_tenant_allow() -> None:
    flow = a_flow(ask("out"))
    script = a_script(flow, Slo(e2e_s=9.0), out=CallScript(100, 500))
    world = a_world(flow)
    (tenant,) = world.tenants
    strict = replace(world, tenants=(replace(tenant, limits=Limits(output_tokens=7)),))
    assert by_step(world, script)["out"].output_tokens == 64
    assert by_step(strict, script)["out"].output_tokens == 7


def test_a_step_that_may_be_given_up_in_time_does_not_count() -> None:
    hasty = replace(ask("first"), timeouts=Timeouts(total_s=0.5), on_error=OnError("skip"))
    flow = a_flow(hasty, ask("next", "first"), ask("out", "next?", stream=True))
    world = a_world(flow)
    assert set(by_step(world, a_script(flow, Slo(ttft_s=1.0)))) == {"out"}
    assert set(by_step(world, a_script(flow, Slo(ttft_s=0.5)))) == {"first", "next", "out"}


def test_the_course_of_a_run_ends_with_its_answer() -> None:
    flow = a_flow(ask("first"), ask("out", "first"))
    stages = course(a_script(flow, Slo(e2e_s=1.0)))
    assert [(stage.step, stage.waits_for, stage.needed) for stage in stages] == [
        ("first", (), 1),
        ("out", (0,), 1),
    ]


def test_a_run_to_which_no_moment_is_promised_needs_nothing() -> None:
    flow = a_flow(ask("out"))
    assert needs(a_world(flow), a_script(flow, Slo())) == RunDuties(
        a_script(flow, Slo()).run, (), is_possible=True
    )
