"""A session with a fleet that comes and goes, read from its journal: what was lost, and who was there when."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reports.journals import Journal
from tightrope.bench.elastic import Count, Elastic, Part, elastic, steps
from tightrope.bench.plots import can_draw
from tightrope.model.fleet import Accelerator, ReplicaSpec
from tightrope.model.ids import AcceleratorName, ModelName, ReplicaId, RunId
from tightrope.model.messages import (
    AcceleratorRegistered,
    NoteScaling,
    ReplicaLost,
    ReplicaReady,
    ReplicaStopped,
    StartReplica,
    StopReplica,
)
from tightrope.model.outcome import FailureKind, Outcome, Verdict
from tightrope.model.provision import ScaleAction

REPLICA = ReplicaId("big-slow-1")
SPEC = ReplicaSpec(REPLICA, ModelName("big"), AcceleratorName("slow"))
PARTS = (Part("burst", 0.0, 8.0), Part("calm", 8.0, 10.0))


def session() -> Journal:
    """A replica is ordered at 1 s, ready at 3 s, answers a run at 4 s and is there until 7 s."""
    journal = Journal().event(AcceleratorRegistered(Accelerator(SPEC.accelerator, 3600.0))).submitted()
    note = NoteScaling(ScaleAction.UP, SPEC.model, SPEC.accelerator, 0, 1, "from-zero")
    journal.ready("answer").prepared("answer").at(1000).command(note, StartReplica(SPEC))
    journal.at(3000).event(ReplicaReady(REPLICA)).dispatch("answer", REPLICA, waited_ms=3000)
    return journal


def read(journal: Journal) -> Elastic:
    return elastic(journal.entries, journal.origin_s, PARTS)


def ended(journal: Journal) -> Journal:
    return journal.event(ReplicaStopped(REPLICA))


def test_a_sound_session_has_its_runs_its_replicas_and_their_price() -> None:
    journal = (
        session().at(3500).first_token("answer").at(4000).done("answer").finish(Verdict.MET, ttft_ms=3500)
    )
    found = read(ended(journal.at(7000).command(StopReplica(REPLICA))))
    assert found.is_sound
    assert found.outcomes == (("succeeded", 1),)
    assert (found.met, found.promised) == (1, 1)
    assert [run.ttft_s for run in found.runs_of("burst")] == [3.5]
    assert found.runs_of("calm") == []
    assert found.counts == (
        Count(1.0, "big", "slow", 0, 1),
        Count(3.0, "big", "slow", 1, 0),
        Count(7.0, "big", "slow", 0, 0),
    )
    assert [start.took_s for start in found.starts] == [2.0]
    assert (found.usd, found.usd_at_most) == (6.0, 10.0)
    assert found.said[0].text == "big on slow goes from 0 to 1 replica: calls wait and it has no replica"
    assert steps(found.counts, 10.0) == {
        ("big", "slow"): ([0.0, 1.0, 3.0, 7.0, 10.0], [0, 0, 1, 0, 0], [0, 1, 0, 0, 0])
    }


@pytest.mark.parametrize("end", [StopReplica(REPLICA), ReplicaLost(REPLICA, "exit 9")])
def test_a_call_that_was_there_as_its_replica_went_was_aborted(end: StopReplica | ReplicaLost) -> None:
    journal = session().at(3500)
    journal.event(end) if isinstance(end, ReplicaLost) else journal.command(end)
    journal.at(9000).finish(Verdict.MISSED, ttft_ms=8000)
    found = read(journal)
    assert (found.aborted_calls, found.lost_runs, found.is_sound) == (1, 0, False)


@pytest.mark.parametrize(
    ("outcome", "failure", "is_lost"),
    [
        (Outcome.EXPIRED, FailureKind.EXPIRED, True),
        (Outcome.CANCELLED, None, True),
        (Outcome.FAILED, FailureKind.REPLICA_LOST, True),
        (Outcome.FAILED, FailureKind.TIMEOUT, False),  # a limit of its own workflow
    ],
)
def test_a_run_without_an_answer_for_want_of_a_replica_was_lost(
    outcome: Outcome, failure: FailureKind | None, is_lost: bool
) -> None:
    journal = session().at(4000).done("answer").finish(Verdict.MISSED, outcome, failure=failure)
    assert read(journal).lost_runs == is_lost


def test_a_run_that_never_ended_was_lost() -> None:
    assert read(session()).lost_runs == 1


def test_what_was_before_the_session_does_not_count() -> None:
    journal = session().at(4000).done("answer").finish(Verdict.MET, ttft_ms=3500)
    found = elastic(journal.entries, journal.origin_s + 0.5, PARTS)
    assert found.runs == ()
    assert RunId("run_1") == journal.run


@pytest.mark.skipif(not can_draw(), reason="needs matplotlib")
def test_the_picture_is_drawn(tmp_path: Path) -> None:
    from tightrope.bench.elastic_plot import draw_elastic

    journal = (
        session().at(3500).first_token("answer").at(4000).done("answer").finish(Verdict.MET, ttft_ms=3500)
    )
    drawn = draw_elastic(read(journal), tmp_path / "elastic")
    assert [file.name for file in drawn] == ["elastic.png", "elastic.svg"]
    assert all(file.stat().st_size > 10_000 for file in drawn)
