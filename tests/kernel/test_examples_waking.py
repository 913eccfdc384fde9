"""Models without a replica: when one is started for them, who waits for it, and what happens by the way."""

from __future__ import annotations

from tests.kernel.script import TENANT, Script, asking, dispatched, finish, of
from tightrope.model.fleet import Accelerator, FleetPlan
from tightrope.model.ids import AcceleratorName, ModelName, ReplicaId
from tightrope.model.messages import (
    AcceleratorRegistered,
    Command,
    DrainRequested,
    FleetPlanned,
    NoteScaling,
    ProvisioningSet,
    ReplicaStopped,
    StartReplica,
    StopReplica,
    WakeKind,
)
from tightrope.model.outcome import Outcome, Refusal
from tightrope.model.provision import Bounds, Floor, Provisioning, ProvisionMode, ScaleAction
from tightrope.model.slo import Slo
from tightrope.testing import a_chain

SMALL, BIG = ModelName("small"), ModelName("big")
SLOW, FAST = AcceleratorName("slow"), AcceleratorName("fast")
ONE = a_chain("answer")
TWO = asking(a_chain("draft", "answer"), "answer", model=BIG)
TIGHT = Slo(ttft_s=0.001)
"""Nobody can keep it: calls under it are hopeless as they come."""


def a_script(*, least: int = 0, **settings: object) -> Script:
    """Nobody is there at first; up to two replicas of each model may be on each of two kinds of card."""
    script = Script(ONE, TWO, replicas="")
    for name, usd_per_h in ((FAST, 3.0), (SLOW, 1.0)):
        script.tell(AcceleratorRegistered(Accelerator(name, usd_per_h, count=4)))
    bounds = tuple(
        Bounds(model, card, least if card == SLOW else 0, 2, load_s=5.0)
        for model in (SMALL, BIG)
        for card in (FAST, SLOW)
    )
    values = {"bounds": bounds, "every_s": 5.0, "idle_after_s": 20.0, "cooldown_s": 10.0, **settings}
    script.tell(ProvisioningSet(Provisioning(**values)))  # type: ignore[arg-type]
    return script


def a_round(script: Script) -> list[Command]:
    return script.wake(WakeKind.PROVISION)


def started(commands: list[Command]) -> list[str]:
    return [command.spec.id for command in of(StartReplica, commands)]


def scaled(commands: list[Command], action: ScaleAction) -> list[NoteScaling]:
    return [note for note in of(NoteScaling, commands) if note.action is action]


def test_a_run_starts_all_models_that_it_will_come_to() -> None:
    script = a_script()
    assert started(script.submit(workflow=TWO)) == ["small-slow-1", "big-slow-1"]


def test_a_call_that_can_only_be_late_is_served_too() -> None:
    script = a_script()
    assert started(script.submit(workflow=ONE, slo=TIGHT)) == ["small-slow-1"]
    call = dispatched(script.ready("small-slow-1@slow"))
    assert finish(script.done(call)).outcome is Outcome.SUCCEEDED


def test_a_floor_has_its_replica_before_anybody_asked() -> None:
    script = a_script(floors=(Floor(TENANT, 0.5),))
    assert started(script.said) == ["small-slow-1", "big-slow-1"]


def test_in_mode_advise_a_model_without_replicas_is_refused_and_not_waited_for() -> None:
    script = a_script(mode=ProvisionMode.ADVISE)
    ended = finish(script.submit(workflow=ONE))
    assert (ended.outcome, ended.refusal) == (Outcome.REJECTED, Refusal.NO_REPLICA)


def test_advice_is_given_once() -> None:
    script = a_script(mode=ProvisionMode.ADVISE, floors=(Floor(TENANT, 0.5),))
    assert [note.wants for note in scaled(script.said, ScaleAction.UP)] == [1, 1]
    assert of(NoteScaling, a_round(script)) == []
    assert started(script.said) == []


def test_a_new_replica_has_a_name_of_its_own_until_the_one_before_has_ended() -> None:
    script = a_script()
    script.submit(workflow=ONE)
    script.done(dispatched(script.ready("small-slow-1@slow")))
    while not of(StopReplica, script.said):
        a_round(script)
    assert started(script.submit("r2", workflow=ONE)) == ["small-slow-2"]
    assert script.tell(ReplicaStopped(ReplicaId("small-slow-1"))) == []
    assert dispatched(script.ready("small-slow-2@slow")).run == "r2"


def test_a_replica_that_was_stopped_from_outside_is_lost() -> None:
    script = a_script()
    script.submit(workflow=ONE)
    call = dispatched(script.ready("small-slow-1@slow"))
    assert of(StopReplica, script.tell(ReplicaStopped(ReplicaId("small-slow-1")))) == []
    script.wake(WakeKind.REPLICA_RESTART)
    again = dispatched(script.ready("small-slow-1@slow"))
    assert (again.run, again.attempt) == (call.run, 1)


def test_of_a_lost_replica_that_is_not_wanted_any_more_nothing_is_left() -> None:
    script = a_script()
    script.submit(workflow=ONE)
    script.ready("small-slow-1@slow")
    script.lost("small-slow-1")
    assert [stop.replica for stop in of(StopReplica, script.plan(""))] == ["small-slow-1"]
    assert script.tell(ReplicaStopped(ReplicaId("small-slow-1"))) == []


def test_where_one_kind_of_card_does_not_come_up_another_one_is_taken() -> None:
    script = a_script()
    script.submit(workflow=ONE)
    script.lost("small-slow-1")
    script.wake(WakeKind.REPLICA_RESTART)
    script.lost("small-slow-1")
    said = a_round(script)
    assert started(said) == ["small-fast-1"]
    assert dispatched(script.ready("small-fast-1@fast")).replica == "small-fast-1"


def test_a_replica_that_drains_stays_for_a_call_that_finds_no_other_and_serves_it_at_once() -> None:
    script = a_script()
    script.submit(workflow=ONE)
    script.ready("small-slow-1@slow")
    script.tell(FleetPlanned(FleetPlan(())))
    assert dispatched(script.submit("r2", workflow=ONE)).replica == "small-slow-1"


def test_replicas_that_hold_calls_are_not_called_silent_as_soon_as_they_have_them() -> None:
    script = a_script()
    script.submit(workflow=ONE)
    script.done(dispatched(script.ready("small-slow-1@slow")))
    script.after(15.0)
    dispatched(script.submit("r2", workflow=ONE))
    assert of(NoteScaling, a_round(script)) == []


def test_a_run_under_way_gets_its_model_while_the_server_shuts_down() -> None:
    script = a_script()
    script.submit(workflow=TWO)
    draft = dispatched(script.ready("small-slow-1@slow"))
    script.plan("small-slow-1@slow")  # as if nobody had asked the other model for long
    assert script.tell(DrainRequested()) == []
    assert started(script.done(draft)) == ["big-slow-2"]
    script.done(dispatched(script.ready("big-slow-2@slow")))
    script.after(100.0)
    assert of(StopReplica, a_round(script)) == []


def test_nobody_is_waited_for_when_the_runs_are_over() -> None:
    script = a_script(idle_after_s=6.0, cooldown_s=1.0, every_s=2.0)
    script.submit(workflow=ONE)
    script.done(dispatched(script.ready("small-slow-1@slow")))
    while not of(StopReplica, script.said):
        a_round(script)
    assert script.now_s < 30.0  # as long as a model is expected to be asked after a run has come
    assert started([command for _ in range(5) for command in a_round(script)]) == []


def test_a_fleet_that_nobody_asks_for_a_while_goes_to_zero() -> None:
    script = a_script()
    script.submit(workflow=ONE)
    script.done(dispatched(script.ready("small-slow-1@slow")))
    while not of(StopReplica, script.said):
        a_round(script)
    assert script.now_s < 2 * 20.0  # not so long after `idle_after`
    assert script.kernel.state.replicas == {}
