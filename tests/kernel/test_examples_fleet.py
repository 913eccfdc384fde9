"""The life of replicas: ordered, drained before they are stopped, ejected and let back in, ordered again."""

from __future__ import annotations

import pytest

from tests.kernel.script import Script, changed, dispatched, finish, of, one, wake_at
from tightrope.kernel.health import EJECT_AFTER
from tightrope.model.fleet import ReplicaState
from tightrope.model.ids import ReplicaId
from tightrope.model.messages import (
    Dispatch,
    ReplicaReady,
    ReplicaStopped,
    StartReplica,
    StopReplica,
    WakeKind,
)
from tightrope.model.outcome import FailureKind, Outcome
from tightrope.model.workflow import Retry
from tightrope.testing import a_chain

ONE = a_chain("answer")


def state_of(script: Script, replica: str) -> ReplicaState:
    return script.kernel.state.replicas[ReplicaId(replica)].state


# --- plans ---------------------------------------------------------------------------------------------


def test_a_plan_orders_what_is_missing_and_nothing_twice() -> None:
    script = Script(ONE, replicas="")
    assert [command.spec.id for command in of(StartReplica, script.plan("a b"))] == ["a", "b"]
    assert [command.spec.id for command in of(StartReplica, script.plan("a b c"))] == ["c"]


def test_calls_wait_for_the_first_replica_to_be_ready() -> None:
    script = Script(ONE, replicas="")
    script.plan("a")
    assert of(Dispatch, script.submit()) == []
    assert dispatched(script.ready("a")).replica == "a"


def test_a_replica_that_is_no_longer_planned_finishes_its_calls_before_it_is_stopped() -> None:
    script = Script(ONE, replicas="a b")
    calls = [dispatched(script.submit(f"r{number}")) for number in range(2)]
    on_b = next(call for call in calls if call.replica == "b")
    commands = script.plan("a")
    assert commands == []
    assert state_of(script, "b") is ReplicaState.DRAINING
    assert dispatched(script.submit("r2")).replica == "a"
    commands = script.done(on_b)
    assert finish(commands).outcome is Outcome.SUCCEEDED
    assert one(StopReplica, commands).replica == "b"


def test_an_idle_replica_that_is_no_longer_planned_is_stopped_at_once() -> None:
    script = Script(ONE, replicas="a b")
    assert [command.replica for command in of(StopReplica, script.plan("a"))] == ["b"]


def test_a_replica_that_is_planned_again_while_it_drains_stays() -> None:
    script = Script(ONE, replicas="a")
    call = dispatched(script.submit())
    script.plan("")
    assert script.plan("a") == []
    assert of(StopReplica, script.done(call)) == []
    assert dispatched(script.submit("r2")).replica == "a"


def test_a_draining_replica_that_dies_gives_its_calls_back_and_is_not_ordered_again() -> None:
    script = Script(ONE, replicas="a b")
    calls = [dispatched(script.submit(f"r{number}")) for number in range(2)]
    script.plan("a")
    commands = script.lost("b")
    moved = dispatched(commands)
    assert moved.run == next(call.run for call in calls if call.replica == "b")
    assert moved.replica == "a"
    assert ReplicaId("b") not in script.kernel.state.replicas


def test_a_replica_that_ended_without_being_asked_is_ordered_again() -> None:
    script = Script(ONE, replicas="a")
    commands = script.tell(ReplicaStopped(ReplicaId("a")))
    assert wake_at(commands, WakeKind.REPLICA_RESTART) > script.now_s
    assert one(StartReplica, script.wake(WakeKind.REPLICA_RESTART)).spec.id == "a"


def test_a_replica_that_cannot_start_is_tried_again_ever_more_slowly() -> None:
    script = Script(ONE, replicas="a")
    pauses_s = []
    for _ in range(10):
        pauses_s.append(wake_at(script.lost("a"), WakeKind.REPLICA_RESTART) - script.now_s)
        script.wake(WakeKind.REPLICA_RESTART)
    assert pauses_s[:3] == pytest.approx([0.5, 1.0, 2.0])
    assert pauses_s[-1] == pytest.approx(30.0)


def test_the_pause_before_a_restart_is_short_again_only_after_an_answer() -> None:
    script = Script(ONE, replicas="a")
    script.lost("a")
    script.wake(WakeKind.REPLICA_RESTART)
    script.ready("a")
    assert wake_at(script.lost("a"), WakeKind.REPLICA_RESTART) - script.now_s == pytest.approx(1.0)
    script.wake(WakeKind.REPLICA_RESTART)
    script.ready("a")
    script.done(dispatched(script.submit()))
    assert wake_at(script.lost("a"), WakeKind.REPLICA_RESTART) - script.now_s == pytest.approx(0.5)


def test_a_lost_replica_that_is_no_longer_planned_is_not_ordered_again() -> None:
    script = Script(ONE, replicas="a b")
    script.lost("b")
    script.plan("a")
    assert script.wake(WakeKind.REPLICA_RESTART) == []


def test_readiness_of_a_replica_that_nobody_ordered_is_ignored() -> None:
    script = Script(ONE, replicas="a")
    assert script.tell(ReplicaReady(ReplicaId("stranger"))) == []


# --- ejection ------------------------------------------------------------------------------------------


def failing(script: Script, replica: str, times: int) -> None:
    """Let so many calls in a row fail on this replica, and all others succeed."""
    number = 0
    while times:
        call = dispatched(script.submit(f"f{script.now_s:.3f}-{number}"))
        number += 1
        if call.replica == replica:
            times -= 1
            script.failed(call)
        else:
            script.done(call)


def test_a_replica_that_fails_five_times_in_a_row_gets_no_calls_for_a_while() -> None:
    script = Script(ONE, replicas="a b")
    failing(script, "a", EJECT_AFTER - 1)
    assert state_of(script, "a") is ReplicaState.READY
    failing(script, "a", 1)
    assert state_of(script, "a") is ReplicaState.EJECTED
    calls = [dispatched(script.submit(f"r{number}")) for number in range(4)]
    assert {call.replica for call in calls} == {"b"}


def test_a_success_forgives_the_failures_before_it() -> None:
    script = Script(ONE, replicas="a", slots=8)
    failing(script, "a", EJECT_AFTER - 1)
    script.done(dispatched(script.submit("good")))
    failing(script, "a", EJECT_AFTER - 1)
    assert state_of(script, "a") is ReplicaState.READY


def test_an_ejected_replica_is_let_back_in_and_stays_out_longer_the_next_time() -> None:
    script = Script(ONE, replicas="a b")
    times_out_s = []
    for failures in (EJECT_AFTER, 1):  # the first call after a time out is the proof
        failing(script, "a", failures)
        before_s = script.now_s
        script.wake(WakeKind.REPLICA_READMIT)
        times_out_s.append(script.now_s - before_s)
        assert state_of(script, "a") is ReplicaState.READY
    assert times_out_s == pytest.approx([30.0, 60.0])


def test_half_of_a_pool_at_most_is_out_for_long() -> None:
    script = Script(ONE, replicas="a b")
    failing(script, "a", EJECT_AFTER)
    failing(script, "b", EJECT_AFTER)
    before_s = script.now_s
    script.wake(WakeKind.REPLICA_READMIT)
    assert script.now_s - before_s == pytest.approx(1.0)
    assert (state_of(script, "a"), state_of(script, "b")) == (ReplicaState.EJECTED, ReplicaState.READY)


def test_bad_requests_and_bad_answers_do_not_speak_against_a_replica() -> None:
    script = Script(ONE, replicas="a")
    for number, kind in enumerate([FailureKind.BAD_REQUEST, FailureKind.CONTEXT_TOO_LONG] * EJECT_AFTER):
        script.failed(dispatched(script.submit(f"r{number}")), kind)
    assert state_of(script, "a") is ReplicaState.READY


def test_a_broken_connection_pauses_a_replica_until_it_is_known_what_happened() -> None:
    script = Script(ONE, replicas="a")
    call = dispatched(script.submit())
    assert of(Dispatch, script.failed(call, FailureKind.REPLICA_LOST)) == []
    assert state_of(script, "a") is ReplicaState.EJECTED
    again = dispatched(script.wake(WakeKind.REPLICA_READMIT))
    assert script.now_s == pytest.approx(1.0)
    assert finish(script.done(again)).outcome is Outcome.SUCCEEDED


def test_an_ejected_replica_that_is_lost_after_all_is_ordered_again() -> None:
    script = Script(ONE, replicas="a")
    script.failed(dispatched(script.submit()), FailureKind.REPLICA_LOST)
    script.lost("a")
    assert state_of(script, "a") is ReplicaState.LOST
    assert script.wake(WakeKind.REPLICA_READMIT) == []
    assert one(StartReplica, script.wake(WakeKind.REPLICA_RESTART)).spec.id == "a"


def test_a_retry_avoids_the_replica_that_failed_while_there_is_another() -> None:
    script = Script(changed(ONE, "answer", retry=Retry(times=1)), replicas="a b")
    first = dispatched(script.submit())
    script.failed(first)
    assert dispatched(script.wake(WakeKind.CALL_RETRY)).replica != first.replica


def test_a_retry_uses_the_replica_that_failed_when_there_is_no_other() -> None:
    script = Script(changed(ONE, "answer", retry=Retry(times=1)), replicas="a")
    script.failed(dispatched(script.submit()))
    assert dispatched(script.wake(WakeKind.CALL_RETRY)).replica == "a"
