"""The fleet that follows the load: ordered as runs come, drained when it is not needed, left alone in doubt."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kernel.script import BEST_EFFORT, TENANT, Script, dispatched, finish, of, one, wake_at
from tightrope.kernel.journal import replay
from tightrope.kernel.provision import BLIND_AFTER_S, FAILING_AFTER
from tightrope.model.fleet import Accelerator, ReplicaState
from tightrope.model.ids import AcceleratorName, ModelName, ReplicaId, StepId
from tightrope.model.messages import (
    CancelCall,
    Command,
    Dispatch,
    DrainRequested,
    NoteScaling,
    ReplicaStopped,
    StartReplica,
    StopReplica,
    Wake,
    WakeAt,
    WakeKind,
    Woke,
)
from tightrope.model.outcome import Outcome, Refusal
from tightrope.model.provision import Bounds, Floor, Provisioning, ProvisionMode, ScaleAction
from tightrope.model.slo import Slo
from tightrope.model.workflow import InputSpec, Workflow
from tightrope.testing import a_chain, a_node, a_profile

ONE = a_chain("answer")
TWO = Workflow(
    "two",
    (a_node("draft", model="small"), a_node("answer", reads=("draft",), model="big", stream=True)),
    StepId("answer"),
    Slo(ttft_s=10.0),
    inputs=(InputSpec("question", "last_user_message"),),
)
SLOW, FAST = AcceleratorName("slow"), AcceleratorName("fast")
PROMISED = Slo(ttft_s=10.0)


def a_script(*workflows: Workflow, replicas: str = "", cards: int = 9, **changes: Any) -> Script:
    """No replica at first; the fast card is twice as fast and four times as dear."""
    accelerators = (Accelerator(SLOW, 1.0, count=cards), Accelerator(FAST, 4.0, count=cards))
    profiles = [
        a_profile(model, card, speed=speed)
        for model in ("small", "big")
        for card, speed in ((SLOW, 1), (FAST, 2))
    ]
    return Script(
        *(workflows or (ONE,)), replicas=replicas, profiles=profiles, accelerators=accelerators, **changes
    )


def a_provisioning(*bounds: Bounds, **changes: Any) -> Provisioning:
    """Up to three slow replicas of the small model."""
    return Provisioning(bounds=bounds or (up_to(3),), **changes)


def up_to(most: int, model: str = "small", card: AcceleratorName = SLOW, least: int = 0) -> Bounds:
    return Bounds(ModelName(model), card, least, most)


WATCHED = a_provisioning(policy="static")
"""What is asked is noted, and nothing is done."""


def notes(commands: list[Command]) -> list[tuple[str, int, int, str]]:
    """What was said about the fleet."""
    return [(note.action.value, note.had, note.wants, note.reason) for note in of(NoteScaling, commands)]


def started(commands: list[Command]) -> list[str]:
    return [command.spec.id for command in of(StartReplica, commands)]


def state_of(script: Script, replica: str) -> ReplicaState:
    return script.kernel.state.replicas[ReplicaId(replica)].state


def a_round(script: Script) -> list[Command]:
    """The next time that the provisioner looks."""
    return script.wake(WakeKind.PROVISION)


def fails(script: Script, replica: str) -> None:
    """The replica is lost until nobody counts on it."""
    for _ in range(FAILING_AFTER):
        if state_of(script, replica) is ReplicaState.LOST:
            script.wake(WakeKind.REPLICA_RESTART)
        script.lost(replica)


# --- from zero -------------------------------------------------------------------------------------------


def test_a_run_that_finds_no_replica_orders_one_and_waits_for_it() -> None:
    script = a_script()
    assert notes(script.provision(a_provisioning())) == []
    commands = script.submit(slo=PROMISED)
    assert notes(commands) == [("up", 0, 1, "from-zero")]
    assert started(commands) == ["small-slow-1"]
    assert of(Dispatch, commands) == []
    script.after(20.0)
    call = dispatched(script.ready("small-slow-1"))
    assert finish(script.done(call)).outcome is Outcome.SUCCEEDED


@pytest.mark.parametrize("slo", [BEST_EFFORT, Slo(ttft_s=0.05), Slo(e2e_s=60.0)])
def test_a_replica_is_ordered_whatever_was_promised(slo: Slo) -> None:
    script = a_script()
    script.provision(a_provisioning())
    assert started(script.submit(slo=slo)) == ["small-slow-1"]
    assert finish(script.done(dispatched(script.ready("small-slow-1")))).outcome is Outcome.SUCCEEDED


def test_nothing_is_ordered_while_nobody_comes() -> None:
    script = a_script(TWO)
    script.provision(a_provisioning(up_to(2), up_to(2, "big")))
    assert [notes(a_round(script)) for _ in range(30)] == [[]] * 30


def test_nothing_more_is_ordered_while_the_first_one_starts() -> None:
    script = a_script()
    script.provision(a_provisioning())
    script.submit("r1", slo=PROMISED)
    assert started(script.submit("r2", slo=PROMISED)) == []
    assert started(a_round(script)) == []


def test_the_models_of_all_steps_are_ordered_together() -> None:
    script = a_script(TWO)
    script.provision(a_provisioning(up_to(1), up_to(1, "big")))
    commands = script.submit(slo=PROMISED)
    assert started(commands) == ["small-slow-1", "big-slow-1"]
    assert {note.reason for note in of(NoteScaling, commands)} == {"from-zero"}
    script.ready("big-slow-1:big")
    draft = dispatched(script.ready("small-slow-1"))
    answer = dispatched(script.done(draft))
    assert answer.replica == "big-slow-1"
    assert finish(script.done(answer)).outcome is Outcome.SUCCEEDED


def test_calls_that_waited_before_anybody_provisioned_are_seen() -> None:
    script = a_script(replicas="a")
    script.lost("a")
    script.submit(slo=PROMISED)
    script.plan("")  # nobody brings it back
    assert started(script.provision(a_provisioning())) == ["small-slow-1"]


@pytest.mark.parametrize(
    "provisioning", [None, a_provisioning(up_to(0)), a_provisioning(up_to(3, "big")), Provisioning()]
)
def test_without_bounds_a_run_is_refused_as_before(provisioning: Provisioning | None) -> None:
    script = a_script()
    if provisioning is not None:
        script.provision(provisioning)
    assert finish(script.submit(slo=PROMISED)).refusal is Refusal.NO_REPLICA


def test_the_least_is_ordered_before_anybody_asks() -> None:
    script = a_script()
    commands = script.provision(a_provisioning(up_to(3, least=2)))
    assert notes(commands) == [("up", 0, 2, "below-least")]
    assert started(commands) == ["small-slow-1", "small-slow-2"]
    assert wake_at(commands, WakeKind.PROVISION) == 5.0


def test_a_floor_is_there_before_anybody_asks() -> None:
    script = a_script()
    assert started(script.provision(a_provisioning(floors=(Floor(TENANT, 0.1),)))) == ["small-slow-1"]


# --- fewer -----------------------------------------------------------------------------------------------


def two_at_work() -> tuple[Script, list[Dispatch]]:
    """Two replicas with a call each, of which only one may stay."""
    script = a_script(replicas="a b")
    script.provision(WATCHED)
    calls = [dispatched(script.submit(f"r{number}", slo=PROMISED)) for number in range(2)]
    assert {call.replica for call in calls} == {"a", "b"}
    commands = script.provision(a_provisioning(up_to(1)))
    assert notes(commands) == [("down", 2, 1, "unneeded")]
    assert of(StopReplica, commands) == []
    assert of(CancelCall, commands) == []
    return script, calls


def test_a_replica_that_goes_finishes_its_calls() -> None:
    script, calls = two_at_work()
    assert {state_of(script, "a"), state_of(script, "b")} == {ReplicaState.READY, ReplicaState.DRAINING}
    goes = next(call for call in calls if state_of(script, call.replica) is ReplicaState.DRAINING)
    stays = next(call for call in calls if call is not goes)
    assert dispatched(script.submit("r2", slo=PROMISED)).replica == stays.replica
    for _ in range(5):
        assert of(StopReplica, a_round(script)) == []
    commands = script.done(goes)
    assert finish(commands).outcome is Outcome.SUCCEEDED
    assert one(StopReplica, commands).replica == goes.replica
    assert of(CancelCall, script.said) == []


def test_an_idle_one_goes_before_one_at_work() -> None:
    script = a_script(replicas="a b")
    script.provision(WATCHED)
    busy = dispatched(script.submit(slo=PROMISED)).replica
    commands = script.provision(a_provisioning(up_to(1)))
    assert [command.replica for command in of(StopReplica, commands)] == [{"a": "b", "b": "a"}[busy]]


def test_one_that_drains_is_kept_instead_of_a_new_one() -> None:
    script = a_script(replicas="a b", slots=1)
    calls = [dispatched(script.submit(f"r{number}", slo=PROMISED)) for number in range(2)]
    script.provision(a_provisioning(policy="queue-length"))
    drained = next(call for call in calls if state_of(script, call.replica) is ReplicaState.DRAINING)
    for number in range(2, 5):
        script.submit(f"r{number}", slo=PROMISED)
    commands = a_round(script)
    assert notes(commands) == [("up", 1, 3, "target")]
    assert started(commands) == ["small-slow-1"]
    assert state_of(script, drained.replica) is ReplicaState.READY
    assert dispatched(script.done(drained)).replica == drained.replica


def test_the_last_one_goes_when_nobody_has_come_for_long() -> None:
    script = a_script()
    script.provision(a_provisioning())
    script.submit(slo=PROMISED)
    script.done(dispatched(script.ready("small-slow-1")))
    stopped_s = None
    while stopped_s is None and script.now_s < 900:
        if of(StopReplica, a_round(script)):
            stopped_s = script.now_s
    assert stopped_s is not None
    assert stopped_s >= Provisioning().idle_after_s
    assert notes(script.said)[-1] == ("down", 1, 0, "idle")
    assert started(script.submit("r2", slo=PROMISED)) != []


def test_a_name_is_not_given_again_before_its_replica_has_ended() -> None:
    script = a_script()
    script.provision(a_provisioning(up_to(1, least=1)))
    script.ready("small-slow-1")
    script.plan("")
    assert [command.replica for command in of(StopReplica, script.said)] == ["small-slow-1"]
    assert started(a_round(script)) == ["small-slow-2"]
    script.ready("small-slow-2")
    script.tell(ReplicaStopped(ReplicaId("small-slow-1")))
    assert state_of(script, "small-slow-2") is ReplicaState.READY
    script.plan("")
    assert started(a_round(script)) == ["small-slow-1"]
    assert script.tell(ReplicaStopped(ReplicaId("small-slow-2"))) == []
    script.ready("small-slow-1")
    assert wake_at(script.tell(ReplicaStopped(ReplicaId("small-slow-1"))), WakeKind.REPLICA_RESTART) > 0


def test_nor_is_that_of_one_that_failed() -> None:
    script = a_script()
    script.provision(a_provisioning())
    script.submit(slo=PROMISED)
    fails(script, "small-slow-1")
    assert [command.replica for command in of(StopReplica, a_round(script))] == ["small-slow-1"]
    assert started(a_round(script)) == ["small-slow-2"]
    assert script.tell(ReplicaStopped(ReplicaId("small-slow-1"))) == []
    assert dispatched(script.ready("small-slow-2")).replica == "small-slow-2"


# --- what stands in the way ------------------------------------------------------------------------------


def test_there_is_no_card() -> None:
    script = a_script(cards=0)
    script.provision(a_provisioning())
    assert notes(script.submit(slo=PROMISED)) == []  # nothing can be planned at all
    script = a_script(cards=1)
    commands = script.provision(a_provisioning(up_to(3, least=2)))
    assert notes(commands) == [("up", 0, 1, "below-least"), ("hold", 1, 2, "no-card")]
    assert notes(a_round(script)) == []  # it is said once


def test_what_cannot_be_had_is_looked_for_once_a_round() -> None:
    script = a_script(TWO, cards=0)
    script.provision(a_provisioning(up_to(2), up_to(2, "big")))

    def looks() -> float:
        assert script.kernel.state.provisioned is not None
        return script.kernel.state.provisioned.memory["turn"]

    before = looks()
    for number in range(20):
        script.submit(f"r{number}", slo=PROMISED)
    assert looks() == before + 1
    a_round(script)
    script.submit("r20", slo=PROMISED)
    assert looks() == before + 3


def test_cards_of_others_are_not_taken() -> None:
    script = a_script(ONE, TWO, replicas="b:big@slow", cards=1)
    commands = script.provision(a_provisioning(up_to(1, least=1)))
    assert notes(commands) == [("hold", 0, 1, "no-card")]
    assert started(commands) == []


def test_the_budget_is_kept() -> None:
    script = a_script()
    commands = script.provision(a_provisioning(up_to(3, least=3), max_usd_per_h=2.5))
    assert notes(commands) == [("up", 0, 2, "below-least"), ("hold", 2, 3, "budget")]


def test_advice_is_given_once_and_nothing_is_done() -> None:
    script = a_script(replicas="a b")
    script.provision(WATCHED)
    script.done(dispatched(script.submit(slo=PROMISED)))
    commands = script.provision(a_provisioning(up_to(1), mode=ProvisionMode.ADVISE))
    assert notes(commands) == [("down", 2, 1, "unneeded")]
    assert one(NoteScaling, commands).is_advice
    assert of(StopReplica, commands) == []
    assert state_of(script, "a") is state_of(script, "b") is ReplicaState.READY
    assert [notes(a_round(script)) for _ in range(3)] == [[], [], []]
    assert wake_at(a_round(script), WakeKind.PROVISION) == script.now_s + 5.0


def test_where_scaling_is_only_advised_a_run_without_a_replica_is_refused() -> None:
    script = a_script()
    commands = script.provision(a_provisioning(up_to(3, least=1), mode=ProvisionMode.ADVISE))
    assert [(note.action, note.is_advice) for note in of(NoteScaling, commands)] == [(ScaleAction.UP, True)]
    assert started(commands) == []
    assert finish(script.submit(slo=PROMISED)).refusal is Refusal.NO_REPLICA
    script.plan("a")  # somebody takes the advice
    script.ready("a")
    assert notes(a_round(script)) == []
    assert finish(script.done(dispatched(script.submit("r2", slo=PROMISED)))).outcome is Outcome.SUCCEEDED


def test_a_server_that_shuts_down_changes_nothing() -> None:
    script = a_script(replicas="a")
    script.provision(a_provisioning(up_to(3, least=1)))
    call = dispatched(script.submit(slo=PROMISED))
    script.tell(DrainRequested())
    script.plan("")
    for _ in range(3):
        (wake,) = a_round(script)
        assert isinstance(wake, WakeAt)
    assert finish(script.submit("r2", slo=PROMISED)).refusal is Refusal.DRAINING
    commands = script.done(call)
    assert (started(commands), notes(commands)) == ([], [])


def test_what_does_not_come_up_is_ordered_on_another_card() -> None:
    script = a_script()
    script.provision(a_provisioning(up_to(2), up_to(2, card=FAST)))
    assert started(script.submit(slo=PROMISED)) == ["small-slow-1"]
    for _ in range(FAILING_AFTER):
        assert started(a_round(script)) == []
        script.lost("small-slow-1")
        if state_of(script, "small-slow-1") is ReplicaState.LOST:
            last = script.wake(WakeKind.REPLICA_RESTART)
            assert started(last) == ["small-slow-1"]
    commands = a_round(script)
    assert started(commands) == ["small-fast-1"]
    call = dispatched(script.ready("small-fast-1@fast"))
    assert call.replica == "small-fast-1"
    assert notes(a_round(script)) == [("down", 1, 0, "unneeded")]
    assert ReplicaId("small-slow-1") not in script.kernel.state.replicas
    assert finish(script.done(call)).outcome is Outcome.SUCCEEDED


def test_one_that_fails_goes_before_one_that_starts() -> None:
    script = a_script()
    script.provision(a_provisioning(up_to(2, least=2)))
    fails(script, "small-slow-1")
    script.wake(WakeKind.REPLICA_RESTART)  # both of them are starting now
    script.submit(slo=PROMISED)
    commands = script.provision(a_provisioning(up_to(2)))
    assert notes(commands) == [("down", 2, 1, "unneeded")]
    assert [command.replica for command in of(StopReplica, commands)] == ["small-slow-1"]
    assert state_of(script, "small-slow-2") is ReplicaState.STARTING


def test_one_that_is_lost_once_is_waited_for() -> None:
    script = a_script()
    script.provision(a_provisioning(up_to(2), up_to(2, card=FAST)))
    script.submit(slo=PROMISED)
    script.lost("small-slow-1")
    assert started(a_round(script)) == []
    assert started(script.wake(WakeKind.REPLICA_RESTART)) == ["small-slow-1"]
    assert of(Dispatch, script.ready("small-slow-1")) != []


# --- blind -----------------------------------------------------------------------------------------------


def test_silence_of_busy_replicas_stops_all_changes_and_is_said_once() -> None:
    script = a_script(replicas="a b")
    script.provision(WATCHED)
    call = dispatched(script.submit(slo=PROMISED))
    script.after(BLIND_AFTER_S + 1)
    assert notes(script.provision(a_provisioning(up_to(1)))) == [("hold", 2, 2, "blind")]
    assert notes(a_round(script)) == []
    script.first_token(call)
    assert notes(a_round(script)) == [("down", 2, 1, "unneeded")]


def test_an_engine_that_is_as_slow_as_it_should_be_is_not_silent() -> None:
    slow = a_profile("small", SLOW, speed=0.005)
    script = Script(ONE, replicas="a", profiles=[slow], accelerators=(Accelerator(SLOW, 1.0, count=1),))
    script.provision(a_provisioning(up_to(1, least=1)))
    call = dispatched(script.submit(slo=PROMISED))
    script.after(BLIND_AFTER_S / 2)
    script.first_token(call)
    script.after(BLIND_AFTER_S + 5)
    assert notes(a_round(script)) == []
    script.after(300.0)
    assert notes(a_round(script)) == [("hold", 1, 1, "blind")]


def test_it_is_said_again_after_it_was_over() -> None:
    script = a_script(replicas="a")
    script.provision(a_provisioning())
    call = dispatched(script.submit(slo=PROMISED))
    said = []
    for heard in (False, False, False, True, False, False, False):
        if heard:
            script.first_token(call)
        said.append(notes(a_round(script)))
    blind = [("hold", 1, 1, "blind")]
    assert said == [[], [], blind, [], [], blind, []]


def test_idle_replicas_are_not_expected_to_say_anything() -> None:
    script = a_script(replicas="a")
    script.provision(a_provisioning(up_to(1, least=1)))
    script.after(100.0)
    assert notes(a_round(script)) == []


@pytest.mark.parametrize("slo", [BEST_EFFORT, Slo(ttft_s=0.001), PROMISED])
def test_a_call_that_was_just_dispatched_blinds_nobody(slo: Slo) -> None:
    script = a_script(replicas="a")
    script.provision(a_provisioning(up_to(1, least=1)))
    script.after(100.0)
    dispatched(script.submit(slo=slo))
    assert notes(a_round(script)) == []


def test_what_is_there_when_provisioning_begins_is_not_idle_yet() -> None:
    script = a_script(replicas="a")
    script.after(500.0)
    script.provision(a_provisioning())
    while script.now_s < 500 + Provisioning().idle_after_s - 5:
        assert notes(a_round(script)) == []
    a_round(script)
    assert notes(script.said) == [("down", 1, 0, "idle")]


def test_calls_that_were_under_way_when_provisioning_begins_blind_nobody() -> None:
    script = a_script(replicas="a")
    dispatched(script.submit(slo=PROMISED))
    script.after(60.0)
    assert notes(script.provision(a_provisioning())) == []
    assert [notes(a_round(script)) for _ in range(3)] == [[], [], [("hold", 1, 1, "blind")]]


# --- settings --------------------------------------------------------------------------------------------


def test_new_settings_end_the_rounds_of_the_old_ones() -> None:
    script = a_script()
    first = one(WakeAt, script.provision(a_provisioning(every_s=5.0)))
    second = one(WakeAt, script.provision(a_provisioning(up_to(3, least=1), every_s=7.0))[-1:])
    assert first.wake != second.wake
    assert (first.at_s, second.at_s) == (5.0, 7.0)
    script.after(5.0)
    assert script.tell(Woke(first.wake)) == []
    script.after(2.0)
    assert wake_at(script.tell(Woke(second.wake)), WakeKind.PROVISION) == 14.0


def test_a_round_that_nobody_ordered_is_none() -> None:
    script = a_script()
    assert script.tell(Woke(Wake(WakeKind.PROVISION, "0"))) == []


def test_replicas_that_somebody_planned_are_counted() -> None:
    script = a_script(replicas="a b")
    assert notes(script.provision(a_provisioning(up_to(3, least=3)))) == [("up", 2, 3, "below-least")]


# --- the journal -----------------------------------------------------------------------------------------


def a_session() -> Script:
    """Two models that come, fail, are blind, drain and are set anew."""
    script = a_script(TWO, ONE, slots=2)
    bounds = (up_to(2), up_to(2, card=FAST), up_to(2, "big"))
    script.provision(a_provisioning(*bounds, max_usd_per_h=9.0, floors=()))
    for number in range(4):
        script.submit(f"r{number}", slo=PROMISED)
        script.after(0.3)
    script.lost("small-slow-1")
    script.wake(WakeKind.REPLICA_RESTART)
    script.lost("small-slow-1")
    a_round(script)
    for replica in [spec.spec for spec in of(StartReplica, script.said)]:
        script.ready(f"{replica.id}:{replica.model}@{replica.accelerator}")
    done = set[str]()
    for number in range(24):
        for call in of(Dispatch, script.said):
            if call.call not in done and number % 3 == 0:
                done.add(call.call)
                script.first_token(call)
                script.done(call)
        a_round(script)
        if number == 8:
            script.provision(a_provisioning(*bounds[:2], policy="queue-length", mode=ProvisionMode.ADVISE))
        if number == 12:
            script.provision(a_provisioning(up_to(1), up_to(1, card=FAST), policy="ray-serve"))
    script.tell(DrainRequested())
    a_round(script)
    return script


def test_the_journal_replays() -> None:
    script = a_session()
    assert replay(script.lines) is None
    reasons = {note.reason for note in of(NoteScaling, script.said)}
    assert "from-zero" in reasons
    assert len(reasons) >= 3
    assert script.lines == a_session().lines
