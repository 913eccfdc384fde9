"""The fleet in sentences: every reason has its words, and a run that waited for a start says so."""

from __future__ import annotations

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
from tightrope.reports.cause import cause
from tightrope.reports.explain import explain
from tightrope.reports.fleet import fleet_lines
from tightrope.reports.render import render

TINY, FAST = ModelName("tiny"), AcceleratorName("fast")
REPLICA = ReplicaId("tiny-fast-1")
SPEC = ReplicaSpec(REPLICA, TINY, FAST)
UP = NoteScaling(
    ScaleAction.UP, TINY, FAST, 0, 1, "from-zero", (("demand", 1.97), ("bears", 0.0), ("risk", 0.0), ("waiting", 2.0))
)  # fmt: skip


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
