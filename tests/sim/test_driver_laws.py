"""
Laws of the virtual driver, over random workflows, runs, faults and distances
1. Every run has one record, in the order asked for, and one FinishRun.
2. What the clients saw is what the kernel came to believe, when nothing is late: verdict, times and tokens.
3. A fresh kernel that is given the events of the journal decides every command again.
4. Equal worlds and scripts give equal records and equal journals, byte by byte.
5. Time never goes back, and nothing about a call is said after it has ended or was cancelled.
6. Every dispatch has one record, with what the script and the kernel said about it.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings

from tests.sim.worlds import Played, play, sessions
from tightrope.kernel.journal import replay
from tightrope.model.ids import CallId
from tightrope.model.messages import CallDone, CallFailed, CancelCall, Dispatch, FinishRun, FirstToken
from tightrope.model.outcome import Outcome, Verdict
from tightrope.sim.workload import RunScript
from tightrope.sim.world import World

Session = tuple[World, list[RunScript]]


@settings(max_examples=10, deadline=None)
@given(sessions())
def test_1_every_run_has_one_record(session: Session) -> None:
    world, scripts = session
    played = play(world, scripts)
    assert [record.run for record in played.records] == [script.run for script in scripts]
    finished = Counter(finish.run for finish in _finishes(played))
    assert finished == Counter(script.run for script in scripts)


@settings(max_examples=25, deadline=None)
@given(sessions(may_go_wrong=False))
def test_2_clients_and_kernel_agree_when_nothing_is_late(session: Session) -> None:
    world, scripts = session
    played = play(world, scripts)
    finish_by_run = {finish.run: finish for finish in _finishes(played)}
    for record in played.records:
        finish = finish_by_run[record.run]
        assert record.outcome == finish.outcome
        assert record.duration_s == finish.duration_s
        assert record.tpot_s == finish.tpot_s
        if finish.ttft_s is not None:
            assert record.ttft_s == finish.ttft_s
        if finish.verdict is not Verdict.NONE:
            assert record.is_met == (finish.verdict is Verdict.MET)
        else:
            assert record.is_met == (record.outcome is Outcome.SUCCEEDED)
        used = sum(call.output_tokens for call in record.calls if call.ended_s is not None)
        assert finish.usage.output_tokens == used


@settings(max_examples=15, deadline=None)
@given(sessions())
def test_3_the_journal_replays(session: Session) -> None:
    assert replay(play(*session).lines) is None


@settings(max_examples=6, deadline=None)
@given(sessions())
def test_4_the_same_again_is_the_same(session: Session) -> None:
    assert play(*session) == play(*session)


@settings(max_examples=15, deadline=None)
@given(sessions())
def test_5_time_goes_forward_and_ended_calls_are_silent(session: Session) -> None:
    said = play(*session).said
    moments = [at_s for at_s, _ in said]
    assert moments == sorted(moments)
    over: set[CallId] = set()
    for _, message in said:
        match message:
            case FirstToken(call):
                assert call not in over
            case CallDone(call) | CallFailed(call):
                assert call not in over
                over.add(call)
            case CancelCall(call):
                over.add(call)
            case _:
                pass


@settings(max_examples=15, deadline=None)
@given(sessions())
def test_6_every_dispatch_has_one_record(session: Session) -> None:
    world, scripts = session
    played = play(world, scripts)
    script_by_run = {script.run: script for script in scripts}
    records = {call.call: call for record in played.records for call in record.calls}
    dispatches = [message for _, message in played.said if isinstance(message, Dispatch)]
    assert {dispatch.call for dispatch in dispatches} == set(records)
    assert sum(len(record.calls) for record in played.records) == len(dispatches)
    for dispatch in dispatches:
        record, item = records[dispatch.call], script_by_run[dispatch.run].calls[dispatch.step][dispatch.item]
        assert record.prompt_tokens == item.prompt_tokens
        assert record.output_tokens == min(item.output_tokens, dispatch.max_tokens)
        assert record.predicted_crit_ms == pytest.approx(record.lx + record.lq + record.lr)
        estimate = dispatch.routed.offers[0].estimate
        critical_ms = estimate.ttft + (0.0 if record.is_terminal else estimate.decode)
        assert record.predicted_crit_ms == pytest.approx(critical_ms)
        moment_s = record.first_s if record.is_terminal else record.ended_s
        if moment_s is not None:
            assert record.measured_crit_ms == pytest.approx(1000 * (moment_s - record.dispatched_s))


def _finishes(played: Played) -> list[FinishRun]:
    return [message for _, message in played.said if isinstance(message, FinishRun)]
