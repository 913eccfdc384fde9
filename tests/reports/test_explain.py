"""
Laws of an explanation
1. The phases of a step add up to its time, and the steps on the path plus the rest to the whole.
2. An output node under a time-to-first-token promise ends with its first token.
3. A candidate's lx + lq + lr is its estimate; its margin is the slack less the estimate.
4. The critical step is the one that overran its budget most; without one, the longest.
5. Every end is explained: late, on time, refused, failed, cancelled, expired, still running.
6. Every number is JSON.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reports.journals import RUN, Journal, late_run, offer, shop_workflow
from tightrope.model.errors import NotFound
from tightrope.model.fleet import Estimate
from tightrope.model.ids import ReplicaId, RunId, StepId
from tightrope.model.messages import (
    CallFailed,
    CancelCall,
    Prepare,
    PrepareFailed,
    ReplicaLost,
    RunCancelled,
    Settlement,
    SettleStep,
)
from tightrope.model.outcome import FailureKind, Outcome, Refusal, Usage, Verdict
from tightrope.model.slo import Slo
from tightrope.reports.cause import cause
from tightrope.reports.explain import Explanation, Row, as_json, explain
from tightrope.reports.render import render


def explained(journal: Journal) -> Explanation:
    return explain(journal.entries, RUN)


def row(explanation: Explanation, node: str) -> Row:
    return next(row for row in explanation.rows if row.node == node)


def adds_up(explanation: Explanation) -> bool:
    """Law 1."""
    rows = all(
        abs(
            one.prepare_ms
            + one.queue_ms
            + one.lost_ms
            + one.prefill_ms
            + one.decode_ms
            + one.code_ms
            + one.join_ms
            - one.used_ms
        )
        < 0.002
        and abs(one.end_ms - one.ready_ms - one.used_ms) < 0.002
        for one in explanation.rows
    )
    on_path = sum(one.used_ms for one in explanation.rows if one.is_on_path)
    return (
        rows
        and abs(on_path - explanation.accounted_ms) < 0.002
        and abs(explanation.accounted_ms + explanation.unaccounted_ms - explanation.event_ms) < 0.002
    )


def two_steps(intent_ms: float, line_ms: float, first_ms: float, rest_ms: float, slo: Slo) -> Journal:
    """intent, then the answer in the other case, with these times."""
    journal = Journal().at(0).submitted(slo).ready("intent").prepared("intent")
    journal.dispatch("intent", "tiny-1").at(intent_ms / 2).first_token("intent")
    journal.at(intent_ms).done("intent").ready("route").case("route", "chat")
    journal.command(SettleStep(RUN, StepId("search"), Settlement.SKIPPED)).ready("answer").prepared("answer")
    journal.at(intent_ms + line_ms).dispatch("answer", "big-1", waited_ms=line_ms)
    journal.at(intent_ms + line_ms + first_ms).first_token("answer")
    return journal.at(intent_ms + line_ms + first_ms + rest_ms).done("answer")


# --- the known late run ----------------------------------------------------------------------------------


def test_a_late_run_is_taken_apart() -> None:
    found = explained(late_run())
    assert (found.event, found.event_ms, found.outcome, found.verdict) == (
        "ttft",
        1300.0,
        "succeeded",
        "missed",
    )
    assert [one.node for one in found.rows] == ["intent", "route", "search", "answer"]
    intent, answer = row(found, "intent"), row(found, "answer")
    assert (intent.prepare_ms, intent.queue_ms, intent.prefill_ms, intent.decode_ms) == (
        2.0,
        10.0,
        50.0,
        38.0,
    )
    assert (intent.used_ms, intent.budget_ms, intent.left_ms) == (100.0, 150.0, 50.0)
    assert (answer.prepare_ms, answer.queue_ms, answer.prefill_ms, answer.decode_ms) == (
        1.0,
        199.0,
        800.0,
        0.0,
    )
    assert (row(found, "search").code_ms, row(found, "route").used_ms) == (198.0, 1.0)
    assert found.cases == ("route.browse",)
    assert found.unaccounted_ms == 0.0
    assert adds_up(found)


def test_the_late_run_is_blamed_on_the_prediction() -> None:
    why = cause(explained(late_run()))
    assert why.sentence == (
        "Late by 400 ms on ttft: big-slow was predicted to begin after 100 ms and began after 800 ms"
        " (100 prompt tokens estimated, 150 real); big-fast, estimated at 140 ms, was passed over (slower by 40 ms)."
    )
    assert "tightrope profile big --on slow --verify" in why.next


def test_the_late_run_is_drawn() -> None:
    text = render(explained(late_run()))
    lines = text.splitlines()
    assert "shop" in lines[0]
    assert "2 model calls" in lines[0]
    assert (
        "SLO  ttft 900 ms · measured 1300 ms · MISSED by 400 ms · 100.0 % of the time accounted for" in lines
    )
    table = [line.split() for line in lines if line.startswith(("intent", "answer"))]
    assert table[0] == ["intent", "tiny-1", "0", "100", "2", "10", "50", "38", "100", "150", "+50"]
    assert table[1][:9] == ["answer", "*", "big-slow", "300", "1300", "1", "199", "800", "1000"]
    assert "predicted 100 ms -> measured 800 ms" in text
    assert "route decision for intent" not in text
    assert "route decision for intent" in render(explained(late_run()), all_decisions=True)
    assert max(map(len, lines)) <= 140


# --- 1, 2 ------------------------------------------------------------------------------------------------

times = st.floats(0.1, 5000.0)


@settings(deadline=None)
@given(
    times, times, times, times, st.sampled_from([Slo(ttft="900ms"), Slo(e2e="2s"), Slo(), Slo(tpot="9ms")])
)
def test_1_parts_add_up(intent_ms: float, line_ms: float, first_ms: float, rest_ms: float, slo: Slo) -> None:
    journal = two_steps(intent_ms, line_ms, first_ms, rest_ms, slo)
    first_content_ms = intent_ms + line_ms + first_ms
    found = explained(journal.finish(Verdict.NONE, ttft_ms=first_content_ms))
    assert adds_up(found)
    assert found.accounted_share == pytest.approx(1.0, abs=1e-3)


def test_1_time_between_steps_is_shown_as_unaccounted() -> None:
    journal = (
        Journal().at(0).submitted().at(40).ready("intent").prepared("intent").dispatch("intent", "tiny-1")
    )
    journal.at(100).done("intent").at(130).ready("answer").prepared("answer").dispatch("answer", "big-1")
    journal.at(400).first_token("answer").at(500).done("answer").finish(ttft_ms=400.0)
    found = explained(journal)
    assert found.unaccounted_ms == 70.0
    assert adds_up(found)


def test_2_the_promise_decides_where_the_output_ends() -> None:
    ttft = explained(two_steps(100, 0, 200, 300, Slo(ttft="900ms")).finish(ttft_ms=300.0))
    e2e = explained(two_steps(100, 0, 200, 300, Slo(e2e="900ms")).finish(ttft_ms=300.0))
    assert (ttft.event, row(ttft, "answer").end_ms, row(ttft, "answer").decode_ms) == ("ttft", 300.0, 0.0)
    assert (e2e.event, row(e2e, "answer").end_ms, row(e2e, "answer").decode_ms) == ("e2e", 600.0, 300.0)


def test_2_of_two_promises_the_broken_one_is_followed() -> None:
    slo = Slo(ttft="900ms", e2e="500ms")
    found = explained(two_steps(100, 0, 200, 300, slo).finish(Verdict.MISSED, ttft_ms=300.0))
    assert found.event == "e2e"
    assert found.missed is not None
    assert (found.missed.name, found.missed.late_ms) == ("e2e", 100.0)


def test_2_an_answer_that_is_held_back_counts_from_its_end() -> None:
    """An answer with a shape is checked before it reaches the client: its content comes when it is done."""
    found = explained(two_steps(100, 0, 200, 300, Slo(ttft="900ms")).finish(ttft_ms=600.0))
    assert (row(found, "answer").prefill_ms, row(found, "answer").decode_ms) == (200.0, 300.0)


# --- attempts, fan-outs ----------------------------------------------------------------------------------


def test_failed_attempts_are_lost_time() -> None:
    journal = (
        Journal().at(0).submitted().ready("answer").at(10).prepared("answer").dispatch("answer", "big-1")
    )
    journal.at(210).event(CallFailed(journal.call("answer"), FailureKind.ENGINE_ERROR, "500 from the engine"))
    journal.at(310).dispatch("answer", "big-2", attempt=1, waited_ms=30)
    journal.at(410).first_token("answer", attempt=1).at(500).done("answer", attempt=1).finish(ttft_ms=410.0)
    found = row(explained(journal), "answer")
    assert (found.lost_ms, found.queue_ms, found.prefill_ms) == (270.0, 30.0, 100.0)
    assert found.remark == "attempt 1 on big-1 failed: engine_error: 500 from the engine"
    assert found.replicas == ("big-1", "big-2")


def test_calls_on_a_lost_replica_end_with_it() -> None:
    journal = Journal().at(0).submitted().ready("answer").prepared("answer").dispatch("answer", "big-1")
    journal.at(150).event(ReplicaLost(ReplicaId("big-1"), "killed")).dispatch("answer", "big-2", attempt=1)
    journal.at(250).first_token("answer", attempt=1).at(300).done("answer", attempt=1).finish(ttft_ms=250.0)
    found = row(explained(journal), "answer")
    assert (found.lost_ms, found.prefill_ms) == (150.0, 100.0)
    assert "replica_lost: killed" in found.remark


def test_a_fan_out_shows_the_item_that_was_waited_for_and_the_wait_of_its_join() -> None:
    journal = Journal().at(0).submitted().ready("intent").prepared("intent", items=3)
    for item, replica in enumerate(("a", "b", "c")):
        journal.dispatch("intent", replica, item=item)
    journal.at(50).first_token("intent", 0).at(80).done("intent", 0)
    journal.at(60).first_token("intent", 1).at(120).done("intent", 1)
    journal.at(200).command(CancelCall(journal.call("intent", 2), "the join did not wait for it"))
    journal.command(SettleStep(RUN, StepId("intent"), Settlement.JOINED))
    journal.ready("answer").prepared("answer").dispatch("answer", "big-1")
    journal.at(300).first_token("answer").at(400).done("answer").finish(ttft_ms=300.0)
    found = explained(journal)
    assert row(found, "intent").remark.startswith("2 of 3 items")
    assert row(found, "intent").used_ms == 200.0
    assert adds_up(found)


def test_the_path_leads_through_steps_that_were_skipped() -> None:
    """`answer` reads only what a case may skip: it was made ready by the switch that skipped it."""
    intent, search, answer = shop_workflow().nodes
    answer = replace(answer, inputs=tuple(one for one in answer.inputs if one[0] == "notes"))
    workflow = replace(shop_workflow(), nodes=(intent, search, answer))
    journal = (
        Journal(workflow).at(0).submitted().ready("intent").prepared("intent").dispatch("intent", "tiny-1")
    )
    journal.at(100).done("intent").ready("route").at(101).case("route", "chat")
    journal.command(SettleStep(RUN, StepId("search"), Settlement.SKIPPED)).ready("answer").prepared("answer")
    journal.dispatch("answer", "big-1").at(300).first_token("answer").at(400).done("answer").finish(
        ttft_ms=300.0
    )
    found = explained(journal)
    assert [one.node for one in found.rows if one.is_on_path] == ["intent", "route", "answer"]
    assert found.unaccounted_ms == 0.0


def test_steps_that_held_nobody_up_are_marked() -> None:
    journal = Journal().at(0).submitted().ready("intent").prepared("intent").dispatch("intent", "tiny-1")
    journal.ready("search").prepared("search").code("search").at(30).done("search", usage=Usage())
    journal.at(100).done("intent").ready("answer").prepared("answer").dispatch("answer", "big-1")
    journal.at(300).first_token("answer").at(400).done("answer").finish(ttft_ms=300.0)
    found = explained(journal)
    assert [one.node for one in found.rows if one.is_on_path] == ["intent", "answer"]
    assert "(search)" in render(found)


# --- 3, 4 ------------------------------------------------------------------------------------------------

parts = st.floats(0.0, 1e5)


@settings(deadline=None)
@given(parts, parts, parts, st.floats(-1e5, 1e5))
def test_3_estimates_and_margins_add_up(lx: float, lq: float, lr: float, slack_ms: float) -> None:
    journal = Journal().at(0).submitted().ready("answer").prepared("answer")
    estimate = Estimate(lx, lq, lr, lx + lq + lr, 10.0)
    journal.dispatch("answer", "big-1", slack_ms=slack_ms, estimate=estimate)
    (decision,) = explained(journal).decisions
    (one,) = decision.candidates
    assert one.lx_ms + one.lq_ms + one.lr_ms == pytest.approx(one.estimate_ms, abs=0.002)
    assert one.margin_ms == pytest.approx(slack_ms - one.estimate_ms, abs=0.002)


def test_3_without_a_promise_there_is_no_margin() -> None:
    journal = Journal().at(0).submitted(Slo()).ready("answer").prepared("answer")
    journal.dispatch("answer", "big-1", slack_ms=float("inf"), budget_ms=float("inf"))
    journal.at(100).first_token("answer").at(200).done("answer").finish(Verdict.NONE, ttft_ms=100.0)
    found = explained(journal)
    assert found.decisions[0].candidates[0].margin_ms is None
    assert row(found, "answer").left_ms is None
    assert "no deadline" in render(found)
    assert cause(found).sentence.startswith("No SLO was promised: the answer came after 100 ms.")


def test_4_the_largest_overrun_is_critical_even_when_another_step_was_longer() -> None:
    journal = Journal().at(0).submitted().ready("intent").prepared("intent")
    journal.dispatch("intent", "tiny-1", budget_ms=50).at(250).done("intent").ready("answer").prepared(
        "answer"
    )
    journal.dispatch("answer", "big-1", budget_ms=600).at(900).first_token("answer").at(950).done("answer")
    found = explained(journal.finish(ttft_ms=900.0))
    assert found.critical == "intent"
    assert row(found, "intent").left_ms == -200.0


# --- 5 ---------------------------------------------------------------------------------------------------


def test_5_waiting_in_the_line_is_named() -> None:
    journal = two_steps(100, 900, 100, 100, Slo(ttft="900ms")).finish(Verdict.MISSED, ttft_ms=1100.0)
    why = cause(explained(journal))
    assert why.sentence == (
        "Late by 200 ms on ttft: answer waited 900 ms in the line because no replica of big had room."
    )
    assert why.next == "add a replica of big, or lower the load"


def test_5_failed_attempts_are_named() -> None:
    journal = Journal().at(0).submitted().ready("answer").prepared("answer").dispatch("answer", "big-1")
    journal.at(800).event(CallFailed(journal.call("answer"), FailureKind.TIMEOUT, "took too long"))
    journal.dispatch("answer", "big-2", attempt=1).at(900 + 10).first_token("answer", attempt=1)
    journal.at(950).done("answer", attempt=1).finish(Verdict.MISSED, ttft_ms=910.0)
    why = cause(explained(journal))
    assert (
        "answer lost 800 ms to attempts that failed (attempt 1 on big-1 failed: timeout: took too long)"
        in why.sentence
    )


def test_5_a_longer_answer_than_expected_is_named() -> None:
    journal = Journal().at(0).submitted(Slo(e2e="900ms")).ready("answer").prepared("answer")
    estimate = Estimate(500.0, 0.0, 0.0, 100.0, 400.0)
    journal.dispatch("answer", "big-1", budget_ms=900, slack_ms=900, estimate=estimate)
    journal.at(100).first_token("answer").at(1400).done("answer", usage=Usage(100, 64))
    why = cause(explained(journal.finish(Verdict.MISSED, ttft_ms=100.0)))
    assert (
        "predicted to write for 400 ms on big-1 and wrote for 1300 ms (20 tokens expected, 64 written)"
        in why.sentence
    )
    assert why.next == "lower max_tokens of answer if answers need not be that long"


def test_5_slow_code_is_named() -> None:
    journal = Journal().at(0).submitted(Slo(ttft="200ms")).ready("search").prepared("search").code("search")
    journal.at(500).done("search", usage=Usage()).ready("answer").prepared("answer")
    journal.dispatch("answer", "big-1", budget_ms=-1).at(501).first_token("answer").at(510).done("answer")
    found = explained(journal.finish(Verdict.MISSED, ttft_ms=501.0))
    assert row(found, "search").code_ms == 500.0
    assert found.accounted_ms == 501.0


def test_5_a_target_out_of_reach_is_named() -> None:
    journal = Journal().at(0).submitted(Slo(ttft="50ms")).ready("answer").prepared("answer")
    estimate = Estimate(100.0, 0.0, 0.0, 100.0, 10.0)
    journal.dispatch("answer", "big-1", budget_ms=50, slack_ms=50, estimate=estimate)
    journal.at(100).first_token("answer").at(110).done("answer").finish(Verdict.MISSED, ttft_ms=100.0)
    why = cause(explained(journal))
    assert why.sentence == (
        "Late by 50 ms on ttft: when answer was placed, 0 ms after the arrival, even the best replica, big-1,"
        " was expected to need 100 ms and the rest of the run 100 ms more: 50 ms too late."
    )
    assert why.next == "relax ttft beyond 100 ms, lower the load, or serve big on a faster accelerator"


def test_5_a_small_excess_is_not_blamed_for_a_large_delay() -> None:
    """The first call was hopeless when it was placed; that a later one took a little longer is no cause."""
    journal = Journal().at(0).submitted(Slo(ttft="100ms")).ready("intent").prepared("intent")
    estimate = Estimate(900.0, 0.0, 0.0, 800.0, 100.0)
    journal.dispatch("intent", "tiny-1", slack_ms=-200, budget_ms=50, estimate=estimate)
    journal.at(810).first_token("intent").at(920).done("intent").ready("answer").prepared("answer")
    journal.dispatch("answer", "big-1", slack_ms=-820, budget_ms=0).at(1020).first_token("answer")
    found = explained(journal.at(1100).done("answer").finish(Verdict.MISSED, ttft_ms=1020.0))
    assert cause(found).sentence.startswith(
        "Late by 920 ms on ttft: when intent was placed, 0 ms after the arrival"
    )


def test_5_a_run_on_time_says_how_far() -> None:
    found = explained(two_steps(100, 0, 200, 300, Slo(ttft="900ms")).finish(ttft_ms=300.0))
    assert cause(found).sentence == (
        "On time: ttft 600 ms inside. answer took most of it, 200 ms, mostly until its first token."
    )


def test_5_a_refused_run_names_the_rule_and_when_to_come_back() -> None:
    journal = Journal().at(0).submitted()
    journal.finish(
        Verdict.MISSED,
        Outcome.REJECTED,
        refusal=Refusal.QUEUE_FULL,
        message="shop has 50 calls waiting, its limit is 50",
        retry_after_s=2.5,
    )
    found = explained(journal)
    why = cause(found)
    assert why.sentence == (
        "Refused before any work (queue_full): shop has 50 calls waiting, its limit is 50."
    )
    assert why.next == "come back in 2500 ms, or raise limits.queue of tenant shop"
    assert (found.rows, found.event_ms, found.missed) == ((), 0.0, None)
    assert "rejected" in render(found)


def test_5_a_failed_run_names_the_step_and_the_failure() -> None:
    journal = Journal().at(0).submitted().ready("answer").prepared("answer").dispatch("answer", "big-1")
    journal.at(100).event(CallFailed(journal.call("answer"), FailureKind.BAD_OUTPUT, "no JSON in it"))
    journal.finish(
        Verdict.MISSED, Outcome.FAILED, failure=FailureKind.BAD_OUTPUT, step="answer", message="no JSON in it"
    )
    found = explained(journal)
    assert cause(found).sentence == "answer failed with bad_output: no JSON in it."
    assert row(found, "answer").lost_ms == 100.0
    assert adds_up(found)


def test_5_inputs_that_cannot_be_built_are_named() -> None:
    journal = Journal().at(0).submitted().ready("answer").at(5)
    journal.event(PrepareFailed(RUN, StepId("answer"), FailureKind.BAD_INPUT, "intent has no field kind"))
    journal.finish(
        Verdict.MISSED, Outcome.FAILED, failure=FailureKind.BAD_INPUT, step="answer", message="no field"
    )
    found = explained(journal)
    assert row(found, "answer").remark == "intent has no field kind"
    assert cause(found).sentence == "answer failed with bad_input: no field."


def test_5_a_cancelled_run_says_why() -> None:
    journal = Journal().at(0).submitted().ready("answer").prepared("answer").dispatch("answer", "big-1")
    journal.at(70).event(RunCancelled(RUN, "the client left"))
    journal.command(CancelCall(journal.call("answer"), "the client left")).finish(
        Verdict.NONE, Outcome.CANCELLED
    )
    found = explained(journal)
    assert cause(found).sentence == "Cancelled after 70 ms: the client left."
    assert adds_up(found)


def test_5_an_expired_run_says_where_its_time_went() -> None:
    journal = Journal().at(0).submitted().ready("answer").prepared("answer").at(60_000)
    found = explained(journal.finish(Verdict.MISSED, Outcome.EXPIRED, failure=FailureKind.EXPIRED))
    assert cause(found).sentence == (
        "Ended by its hard deadline after 60000 ms; answer took 60000 ms of it, mostly waiting in the line."
    )
    assert row(found, "answer").queue_ms == 60_000.0


def test_5_a_run_under_way_is_explained_as_far_as_it_came() -> None:
    journal = Journal().at(0).submitted().ready("answer").at(20).prepared("answer")
    found = explained(journal)
    assert (found.outcome, found.event_ms) == ("running", 20.0)
    assert cause(found).sentence == "Still running after 20 ms."
    assert adds_up(found)


def test_5_other_runs_do_not_mix_in() -> None:
    other = Journal(shop_workflow(), RunId("run_10"), origin_s=1000.0)
    other.at(1).submitted().ready("intent").at(5).command(Prepare(RunId("run_10"), StepId("answer")))
    entries = sorted((*late_run().entries, *other.entries), key=lambda entry: entry.at_s)
    assert explain(entries, RUN) == explained(late_run())


def test_5_an_unknown_run_is_not_found() -> None:
    with pytest.raises(NotFound):
        explain(late_run().entries, RunId("run_"))


# --- 6 ---------------------------------------------------------------------------------------------------


def test_6_an_explanation_is_json_without_infinities() -> None:
    fast = offer("big-fast", "fast", Estimate(1.0, 2.0, 3.0, 6.0, 0.0), "later")
    journal = Journal().at(0).submitted(Slo()).ready("answer").prepared("answer")
    journal.dispatch("answer", "big-1", slack_ms=float("inf"), budget_ms=float("inf"), others=(fast,))
    for found in (explained(journal), explained(late_run())):
        plain = as_json(found)
        assert isinstance(plain, dict)
        text = json.dumps(plain, allow_nan=False)
        assert "inf" not in text.replace("info", "")
        assert plain["run"] == RUN
        assert "type" not in plain
