"""The virtual driver in readable cases: one thing happens, and the clients see what follows from it."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import pytest

from tests.sim.worlds import BIG, FAST, SMALL, START_S, Played, a_profile, a_script, a_world, play
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import ReplicaId, StepId
from tightrope.model.messages import (
    CallFailed,
    CancelCall,
    Command,
    Dispatch,
    Event,
    FinishRun,
    FirstToken,
    ReplicaReady,
)
from tightrope.model.outcome import FailureKind, Outcome, Verdict
from tightrope.model.slo import Limits, Slo
from tightrope.model.workflow import Timeouts, Workflow
from tightrope.sim.driver import simulate
from tightrope.sim.engine import Truth
from tightrope.sim.promise import alone_s
from tightrope.sim.workload import CallScript
from tightrope.sim.world import Fault
from tightrope.testing import a_chain, a_node

M = TypeVar("M", bound=Event | Command)
S0 = ReplicaId("s0")
ASK = CallScript(prompt_tokens=400, output_tokens=20, prompt_bytes=1600)


def a_chat(slo: Slo | None = None) -> Workflow:
    """One streamed call of the small model."""
    return a_chain("answer", slo=slo, max_tokens=64)


def test_a_run_alone_takes_what_its_calls_take_alone() -> None:
    flow = a_chain("draft", "answer", max_tokens=64)
    world = a_world(flow)
    script = a_script(flow, at_s=1.0, draft=CallScript(900, 30), answer=CallScript(700, 25))
    record = simulate(world, [script])[0]
    card = a_profile(SMALL, FAST)
    assert record.ttft_s == pytest.approx(alone_s(script, {SMALL: [card]}))
    assert record.ttft_s == pytest.approx((card.solo_ms(900, 30) + card.solo_ttft_ms(700)) / 1000)
    assert record.duration_s == pytest.approx((card.solo_ms(900, 30) + card.solo_ms(700, 25)) / 1000)
    assert record.tpot_s == pytest.approx(card.solo_decode_ms(700, 25) / 1000 / 24)
    assert [call.step for call in record.calls] == ["draft", "answer"]
    assert [call.is_terminal for call in record.calls] == [False, True]
    assert record.calls[0].measured_crit_ms == pytest.approx(card.solo_ms(900, 30))


def test_an_answer_that_is_not_streamed_is_read_at_its_end() -> None:
    flow = Workflow("chat", (a_node("answer", reads=(), max_tokens=64),), StepId("answer"), Slo(ttft_s=5))
    record = simulate(a_world(flow), [a_script(flow)])[0]
    assert record.ttft_s == record.duration_s
    assert record.tpot_s == 0.0
    assert record.is_met


def test_an_answer_ends_at_the_limit_of_its_node() -> None:
    flow = a_chain("answer", max_tokens=16)
    record = simulate(a_world(flow), [a_script(flow, answer=CallScript(10, 500))])[0]
    assert record.calls[0].output_tokens == 16


def test_the_way_to_the_engine_and_back_is_paid_twice() -> None:
    flow = a_chat()
    near = simulate(a_world(flow), [a_script(flow)])[0]
    far = simulate(a_world(flow, network_s=0.05), [a_script(flow)])[0]
    assert near.ttft_s is not None
    assert far.ttft_s == pytest.approx(near.ttft_s + 0.1)
    assert far.duration_s == pytest.approx(near.duration_s + 0.1)
    assert far.tpot_s == pytest.approx(near.tpot_s)


def test_slow_telemetry_deceives_the_kernel_and_not_the_reader() -> None:
    flow = a_chat(Slo(ttft_s=0.1))
    world = a_world(flow, telemetry_s=0.2)
    scripts = [a_script(flow, answer=CallScript(400, 60, prompt_bytes=1600))]
    punctual, late = play(replace(world, telemetry_s=0.0), scripts), play(world, scripts)
    assert late.records == punctual.records
    assert late.records[0].is_met
    assert _of(FirstToken, late)[0][0] == pytest.approx(_of(FirstToken, punctual)[0][0] + 0.2)
    assert _of(FinishRun, late)[0][1].verdict is Verdict.MISSED


def test_a_slow_replica_takes_as_many_times_as_long_from_then_on() -> None:
    flow = a_chat()
    world = a_world(flow, faults=(Fault(1.0, S0, "slow", 4.0), Fault(9.0, S0, "slow", 1.0)))
    scripts = [a_script(flow, at_s=at_s, number=number) for number, at_s in enumerate((0.0, 2.0, 10.0))]
    before, during, after = simulate(world, scripts)
    assert before.ttft_s is not None
    assert during.ttft_s == pytest.approx(4 * before.ttft_s)
    assert during.duration_s == pytest.approx(4 * before.duration_s)
    assert after.duration_s == pytest.approx(before.duration_s)


def test_calls_of_a_replica_that_dies_are_moved() -> None:
    flow = a_chain("draft", "answer", max_tokens=64)
    world = a_world(flow, replicas="s0:small@fast s1:small@fast", faults=(Fault(0.05, S0, "die"),))
    record = simulate(world, [a_script(flow)])[0]
    assert record.outcome is Outcome.SUCCEEDED
    lost, moved, answer = record.calls
    assert (lost.replica, lost.ended_s, lost.measured_crit_ms) == ("s0", None, None)
    assert (moved.step, moved.replica, moved.dispatched_s) == ("draft", "s1", 0.05)
    assert answer.step == "answer"


def test_a_replica_that_died_comes_back_after_its_start() -> None:
    flow = a_chat()
    world = a_world(flow, faults=(Fault(1.0, S0, "die"), Fault(2.0, S0, "die")))
    played = play(world, [a_script(flow), a_script(flow, at_s=1.1, number=1)])
    ready = [(at_s, event.replica) for at_s, event in _of(ReplicaReady, played)]
    # Lost at 1, ordered anew half a second later, lost again while it starts, ordered anew after a longer pause.
    back_s, replica = ready[-1]
    assert replica == S0
    assert back_s == pytest.approx(2.0 + 1.0 + START_S)
    assert played.records[1].calls[0].dispatched_s == back_s


def test_a_death_takes_back_what_was_on_its_way() -> None:
    flow = a_chat()
    world = a_world(
        flow, network_s=0.5, replicas="s0:small@fast s1:small@fast", faults=(Fault(0.1, S0, "die"),)
    )
    played = play(world, [a_script(flow, at_s=0.05)])
    calls = played.records[0].calls
    assert [call.replica for call in calls] == ["s0", "s1"]
    assert calls[1].dispatched_s == 0.1


def test_a_call_that_is_given_up_leaves_its_engine() -> None:
    flow = a_chain("answer", max_tokens=4000)
    flow = replace(flow, nodes=(replace(flow.nodes[0], timeouts=Timeouts(attempt_s=0.5)),))
    one_seat = {kind: Truth(a_profile(*kind, max_sequences=1)) for kind in ((SMALL, FAST), (BIG, FAST))}
    world = a_world(flow, truths=one_seat)
    long, short = CallScript(10, 4000, prompt_bytes=40), CallScript(10, 5, prompt_bytes=40)
    played = play(world, [a_script(flow, answer=long), a_script(flow, at_s=0.1, number=1, answer=short)])
    cancelled = _of(CancelCall, played)[0]
    assert played.records[0].outcome is Outcome.FAILED
    assert played.records[1].calls[0].dispatched_s == cancelled[0] == 0.5


def test_what_does_not_fit_the_memory_is_refused_by_the_engine() -> None:
    flow = a_chat()
    small = {kind: Truth(a_profile(*kind, kv_tokens=300)) for kind in ((SMALL, FAST), (BIG, FAST))}
    played = play(a_world(flow, truths=small), [a_script(flow)])
    assert played.records[0].outcome is Outcome.FAILED
    assert [event.failure for _, event in _of(CallFailed, played)] == [FailureKind.CONTEXT_TOO_LONG]


def test_a_refused_run_has_a_record_too() -> None:
    flow = a_chat(Slo(ttft_s=1.0))
    world = a_world(flow)
    tenant = replace(world.tenants[0], limits=Limits(concurrent=1))
    first, refused = simulate(replace(world, tenants=(tenant,)), [a_script(flow), a_script(flow, number=1)])
    assert first.is_met
    assert (refused.outcome, refused.is_met, refused.duration_s) == (Outcome.REJECTED, False, 0.0)


def test_the_fleet_of_the_world_is_up_when_it_begins() -> None:
    flow = a_chat()
    played = play(a_world(flow, replicas="s0:small@fast s1:small@slow"), [a_script(flow)])
    assert [(at_s, event.replica) for at_s, event in _of(ReplicaReady, played)] == [(0.0, "s0"), (0.0, "s1")]
    assert _of(Dispatch, played)[0][0] == 0.0


def test_worlds_that_lack_something_are_refused() -> None:
    flow, other = a_chat(), a_chain("draft", "answer")
    world = a_world(flow)
    with pytest.raises(InvalidInput, match="does not hold chain@"):
        simulate(world, [a_script(other)])
    with pytest.raises(InvalidInput, match="does not hold s9"):
        simulate(replace(world, faults=(Fault(0.0, ReplicaId("s9"), "die"),)), [])
    with pytest.raises(InvalidInput, match="nothing says how small behaves on fast"):
        simulate(replace(world, truths={}), [])
    with pytest.raises(InvalidInput, match="how long a replica takes to start on fast"):
        simulate(replace(world, start_s={}), [])
    with pytest.raises(InvalidInput, match="same id"):
        simulate(world, [a_script(flow), a_script(flow)])


def _of(kind: type[M], played: Played) -> list[tuple[float, M]]:
    return [(at_s, message) for at_s, message in played.said if isinstance(message, kind)]
