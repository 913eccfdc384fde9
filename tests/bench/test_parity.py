"""
Laws of parity, over sessions of which the simulator made the journal
1. The world and the scripts read from a journal, played, give the records of the session again.
2. Simulated engines answer the calls that they really got as they were answered.
3. Calibration finds how much slower engines were than their profiles say.
4. A session agrees with its own simulation; one whose engines were slower does only when that is calibrated.
5. Engines that were faster than their profiles, by a factor, are found to be so by that factor, not by what queues make
   of it: every call meets what it met live.
Further: what went wrong in a session is known, and a journal that cannot tell everything is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import assume, given, settings

from tests.sim.worlds import a_script, a_world, play, sessions
from tightrope.bench.parity import parity
from tightrope.bench.parity_engines import (
    answered,
    answered_in_simulation,
    calibrated_slowness,
    engine_parts,
    truths,
)
from tightrope.bench.parity_text import parity_table
from tightrope.bench.recorded import Session, session, world
from tightrope.kernel.journal import Gap, entries, event_line, gap_line
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import ReplicaId
from tightrope.model.messages import CallDone, CallFailed
from tightrope.model.outcome import FailureKind, Outcome
from tightrope.model.slo import Slo
from tightrope.sim.driver import simulate
from tightrope.sim.workload import CallScript, RunScript
from tightrope.sim.world import Fault, RunRecord, World
from tightrope.testing import a_chain

KEPT = Path(__file__).parents[1] / "parity" / "session.jsonl"
CLOSE_S = 1e-6
ONE = (1,)
"""Seeds: profiles here have no error, so that steps have no noise."""
Load = tuple[World, list[RunScript]]


@settings(max_examples=12, deadline=None)
@given(sessions(may_go_wrong=False))
def test_1_a_session_read_from_its_journal_plays_again(load: Load) -> None:
    played = play(*load)
    found = session(played.lines)
    assume(not any(run.is_disturbed for run in found.runs))
    again = simulate(world(found, truths(found.profiles, 1.0)), found.scripts)
    record_by_run = {record.run: record for record in again}
    for record in played.records:
        assert_same(record, record_by_run[record.run])


def assert_same(record: RunRecord, again: RunRecord) -> None:
    assert (again.outcome, again.is_met, again.tenant) == (record.outcome, record.is_met, record.tenant)
    assert again.slo == record.slo
    assert again.ttft_s == pytest.approx(record.ttft_s, abs=CLOSE_S)
    assert again.duration_s == pytest.approx(record.duration_s, abs=CLOSE_S)
    assert [
        (call.call, call.replica, call.prompt_tokens, call.output_tokens, call.reason) for call in again.calls
    ] == [
        (call.call, call.replica, call.prompt_tokens, call.output_tokens, call.reason)
        for call in record.calls
    ]


@settings(max_examples=12, deadline=None)
@given(sessions(may_go_wrong=False))
def test_2_engines_answer_again_as_they_did(load: Load) -> None:
    found = session(play(*load).lines)
    simulated = answered_in_simulation(found, 1.0)
    for live in answered(found):
        again = simulated[live.call.call]
        assert again.first_s == pytest.approx(live.first_s, abs=CLOSE_S)
        assert again.rest_s == pytest.approx(live.rest_s, abs=CLOSE_S)


@pytest.mark.parametrize("slowness", [0.8, 1.0, 1.3])
def test_3_calibration_finds_how_slow_engines_were(slowness: float) -> None:
    found = session(lines_of(crowd(12), slowness))
    runs = {run.script.run for run in found.runs[:6]}
    assert calibrated_slowness(found, runs) == pytest.approx(slowness, rel=0.02)


def test_4_a_session_agrees_with_its_own_simulation() -> None:
    found = parity(lines_of(crowd(12), 1.0), seeds=ONE)
    assert found.holds
    assert found.left_out == 0
    assert found.raw.agreement.error.p95_ttft_s == pytest.approx(0.0, abs=CLOSE_S)
    assert "every command again" in parity_table(found)
    assert "they agree" in parity_table(found)


def test_4_slower_engines_agree_only_when_that_is_calibrated() -> None:
    found = parity(lines_of(crowd(24), 1.4), seeds=ONE)
    assert found.difference is None
    assert not found.raw.agreement.agrees
    assert not found.holds
    assert found.calibrated.agreement.agrees
    assert found.calibrated.slowness == pytest.approx(1.4, rel=0.02)
    assert found.raw.agreement.seeds_that_agree == found.raw.agreement.seeds == 1
    assert found.calibration_runs == 8
    assert found.calibrated.agreement.runs == 16
    assert "they do NOT agree" in parity_table(found)
    for part in found.raw.engines:
        assert part.live_gap_ms > part.simulated_gap_ms


@pytest.mark.parametrize("slowness", [0.8, 0.9])
def test_5_calls_meet_what_they_met_live(slowness: float) -> None:
    found = session(lines_of(crowd(12), slowness))
    for part in engine_parts(found, 1.0, {run.script.run for run in found.runs}):
        assert part.live_first_ms / part.simulated_first_ms == pytest.approx(slowness, rel=0.02)
        assert part.live_gap_ms / part.simulated_gap_ms == pytest.approx(slowness, rel=0.02)


@pytest.mark.parametrize("slowness", [0.5, 1.0, 2.0])
def test_what_was_answered_live_is_answered_though_others_were_given_up(slowness: float) -> None:
    found = kept()
    assert any(call.given_up_s is not None for call in found.calls)
    simulated = answered_in_simulation(found, slowness)
    assert {one.call.call for one in answered(found)} <= set(simulated)


def test_only_runs_from_a_moment_on_are_compared() -> None:
    scripts = crowd(12)
    lines = lines_of(scripts, 1.0)
    from_s = sorted(script.at_s for script in scripts)[3]
    assert parity(lines, from_s, ONE).raw.agreement.runs == 9
    with pytest.raises(InvalidInput, match="too few"):
        parity(lines, scripts[-1].at_s + 1.0)


def crowd(count: int) -> list[RunScript]:
    """Runs of two calls that come faster than two replicas can serve them at once."""
    rng = Random(5)
    found, at_s = [], 0.0
    for number in range(count):
        at_s += rng.expovariate(2.0)
        calls = {
            node.id: (CallScript(rng.randint(100, 900), rng.randint(5, 60), prompt_bytes=1200),)
            for node in FLOW.nodes
        }
        found.append(replace(a_script(FLOW, at_s=at_s, number=number), calls=calls))
    return found


FLOW = a_chain("draft", "answer", slo=Slo(ttft_s=1.2))


def lines_of(scripts: Sequence[RunScript], slowness: float) -> list[str]:
    """The journal of a session whose kernel believes the profiles, on engines so much slower."""
    plain = a_world(FLOW, replicas="s0:small@fast s1:small@slow")
    return play(replace(plain, truths=truths(plain.beliefs, slowness)), scripts).lines


# --- what goes wrong -------------------------------------------------------------------------------------


def test_what_went_wrong_is_known_and_the_session_can_be_played_all_the_same() -> None:
    found = kept()
    disturbed = {run.script.run for run in found.runs if run.is_disturbed}
    given_up = {call.run for call in found.calls if call.given_up_s is not None}
    assert given_up & disturbed
    assert disturbed < {run.script.run for run in found.runs}
    untouched = [run for run in found.runs if not run.is_disturbed and run.finish is not None]
    assert {run.finish.outcome for run in untouched if run.finish} <= {Outcome.SUCCEEDED, Outcome.REJECTED}
    assert {call.ended_s is None for call in found.calls if call.given_up_s is not None} == {True}


def kept() -> Session:
    return session(KEPT.read_text(encoding="utf-8").splitlines())


def test_a_replica_that_was_lost_is_lost_again() -> None:
    scripts = crowd(12)
    fault = Fault(scripts[2].at_s + 0.1, ReplicaId("s0"), "die")
    plain = replace(a_world(FLOW, replicas="s0:small@fast s1:small@slow"), faults=(fault,))
    played = play(plain, scripts)
    found = session(played.lines)
    assert found.losses == (fault,)
    assert any(call.given_up_s == fault.at_s for call in found.calls)
    again = simulate(world(found, truths(found.profiles, 1.0)), found.scripts)
    for record, other in zip(played.records, again, strict=True):
        assert_same(record, other)


def test_runs_in_which_something_failed_are_played_but_not_compared() -> None:
    lines = lines_of(crowd(12), 1.0)
    done = next(entry for entry in entries(lines) if isinstance(entry.message, CallDone))
    assert isinstance(done.message, CallDone)
    failed = event_line(CallFailed(done.message.call, FailureKind.ENGINE_ERROR, "it choked"), done.at_s)
    number = lines.index(event_line(done.message, done.at_s))
    found = parity([*lines[:number], failed, *lines[number + 1 :]], seeds=ONE)
    assert (found.left_out, found.raw.agreement.runs, found.everyone.runs) == (1, 11, 12)
    assert "with 1 more runs" in parity_table(found)


def test_a_journal_that_cannot_tell_everything_is_refused() -> None:
    lines = lines_of(crowd(3), 1.0)
    for damaged, why in (
        ([], "empty"),
        (lines[1:], "one head"),
        (lines + lines, "one head"),
        ([*lines, gap_line(Gap(1.0, 2.0, 3))], "gap"),
    ):
        with pytest.raises(InvalidInput, match=why):
            session(damaged)


def test_another_decision_is_shown() -> None:
    lines = lines_of(crowd(6), 1.0)
    number = next(number for number, line in enumerate(lines) if '"Dispatch"' in line)
    lines[number] = lines[number].replace('"max_tokens":', '"max_tokens":1')
    found = parity(lines, seeds=ONE)
    assert found.difference is not None
    assert not found.holds
    assert "DIFFERENT" in parity_table(found)
