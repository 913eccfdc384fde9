"""The fleet in sentences: every reason has its words, and a run that waited for a start says so."""

from __future__ import annotations

import pytest

from tests.reports.journals import Journal
from tightrope.model.fleet import FleetPlan, ReplicaSpec
from tightrope.model.ids import AcceleratorName, ModelName, ReplicaId
from tightrope.model.messages import (
    FleetPlanned,
    NoteScaling,
    ProvisioningSet,
    ReplicaLost,
    ReplicaReady,
    ReplicaStopped,
    StartReplica,
    StopReplica,
)
from tightrope.model.outcome import Verdict
from tightrope.model.provision import Bounds, Provisioning, ScaleAction
from tightrope.policy.provision import ScaleReason
from tightrope.reports.cause import cause
from tightrope.reports.explain import explain
from tightrope.reports.fleet import AGAINST, BECAUSE, fleet_lines, sentence
from tightrope.reports.render import render

TINY, FAST = ModelName("tiny"), AcceleratorName("fast")
REPLICA = ReplicaId("tiny-fast-1")
SPEC = ReplicaSpec(REPLICA, TINY, FAST)
UP = NoteScaling(
    ScaleAction.UP, TINY, FAST, 0, 1, "from-zero", (("demand", 1.97), ("bears", 0.0), ("risk", 0.0), ("waiting", 2.0))
)  # fmt: skip


def test_every_reason_has_its_words() -> None:
    assert {*BECAUSE, *AGAINST} == set(ScaleReason)


@pytest.mark.parametrize(
    ("note", "words"),
    [
        (
            UP,
            ("tiny on fast goes from 0 to 1 replica: calls wait and it has no replica (1.97 calls/s asked for, bears 0"
             " calls/s, 2 waiting)"),
        ),
        (
            NoteScaling(ScaleAction.HOLD, TINY, FAST, 2, 3, "no-card", (("share", 0.8), ("risk", 0.12))),
            ("tiny on fast stays at 2, 3 wanted: there is no free card (80% of it can be borne at all,"
             " 12% predicted late)"),
        ),
        (
            NoteScaling(ScaleAction.DOWN, TINY, FAST, 3, 2, "cheaper", (("saves", 1.25),), is_advice=True),
            "advice only: tiny on fast goes from 3 to 2 replicas: these cards do the same for less (saves 1.25 USD/h)",
        ),
        (
            NoteScaling(ScaleAction.HOLD, TINY, FAST, 1, 1, "blind"),
            "tiny on fast stays at 1: its replicas hold calls and say nothing",
        ),
    ],
)  # fmt: skip
def test_a_change_is_one_sentence_with_its_reason_and_its_numbers(note: NoteScaling, words: str) -> None:
    assert sentence(note) == words


def test_the_life_of_a_fleet_is_told_in_order() -> None:
    journal = Journal()
    journal.event(FleetPlanned(FleetPlan(()))).event(
        ProvisioningSet(Provisioning(bounds=(Bounds(TINY, FAST, 0, 2),)))
    )
    journal.at(100).command(UP, StartReplica(SPEC)).at(2600).event(ReplicaReady(REPLICA))
    journal.at(3000).event(ReplicaLost(REPLICA, "exit 9")).command(StopReplica(REPLICA))
    journal.event(ReplicaStopped(REPLICA))
    lines = fleet_lines(journal.entries)
    assert [line.kind for line in lines] == [
        "planned", "provisioned", "scaled", "ordered", "ready", "lost", "ending", "ended",
    ]  # fmt: skip
    assert lines[0].text == "planned from the start: no replica"
    assert lines[1].text == "the provisioner acts by least-cost, every 5 s: tiny on fast 0 to 2"
    assert lines[4].text == "tiny-fast-1 is ready, 2.5 s after the order"
    assert {line.model for line in lines[2:]} == {"tiny"}


def test_a_run_that_waited_for_a_start_says_so_and_how_to_have_one_always() -> None:
    journal = Journal().submitted().ready("intent").prepared("intent")
    journal.command(UP, StartReplica(SPEC)).at(2600).event(ReplicaReady(REPLICA))
    journal.dispatch("intent", "tiny-fast-1", model="tiny", waited_ms=2600)
    journal.at(2700).first_token("intent").at(2800).done("intent").ready("route").case("route", "chat")
    journal.ready("answer").prepared("answer").dispatch("answer", "big-1", budget_ms=900)
    journal.at(2900).first_token("answer").at(3000).done("answer").finish(Verdict.MISSED, ttft_ms=2900.0)
    explained = explain(journal.entries, journal.run)
    text = render(explained)
    assert "the fleet meanwhile" in text
    assert "2600  tiny-fast-1 is ready, 2.6 s after the order" in text
    found = cause(explained)
    assert "waited 2600 ms in the line while a replica of tiny was started" in found.sentence
    assert found.next == "keep one of tiny: write a min for it, or a floor for tenant shop"
