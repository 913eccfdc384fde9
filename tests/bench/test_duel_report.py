"""
Laws of the report of a duel
1. Figures are those of the client, over the time scale, judged as the simulator judges.
2. A round counts unless the processor was too busy.
3. Ratios are over the better mode of the peer, and say when they are no more than bounds.
4. Simulation and reality agree within what is allowed, and only then.
5. Rounds are the same when everything that determines them is.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tightrope.bench.duel import (
    SYSTEMS,
    DuelCell,
    Round,
    check_scenario,
    chosen_systems,
    in_turn,
    round_digest,
)
from tightrope.bench.duel_client import Seen
from tightrope.bench.duel_figures import (
    Work,
    busy_share,
    lateness_p99_s,
    live_figures,
    planned_tokens,
    read_seen,
    records,
    work_of,
)
from tightrope.bench.duel_load import duel_runs
from tightrope.bench.duel_report import DuelReport, averaged, duel_report
from tightrope.bench.duel_text import duel_from_json, duel_json, duel_markdown, duel_summary
from tightrope.bench.library import load_scenario
from tightrope.bench.metrics import Figures, Times
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import AcceleratorName
from tightrope.model.outcome import Outcome
from tightrope.sim.script import RunScript

MIXED = replace(load_scenario("mixed"), duration_s=6.0, warm_up_s=1.0)
RUNS = duel_runs(MIXED, 5.0, 3)


def _whole(run: RunScript, scale: float, ttft_s: float, rest_s: float) -> Seen:
    at_s = run.at_s * scale
    first_s = at_s + scale * ttft_s
    return Seen(run.run, at_s, at_s, first_s, first_s + scale * rest_s, 4, "whole")


# --- figures ---------------------------------------------------------------------------------------------


def test_1_times_are_those_of_the_scenario() -> None:
    seen = [_whole(run, 4.0, 0.25, 0.5) for run in RUNS]
    for record in records(RUNS, seen, 4.0):
        assert record.ttft_s == pytest.approx(0.25)
        assert record.duration_s == pytest.approx(0.75)
        assert record.outcome is Outcome.SUCCEEDED
    found = live_figures(MIXED, RUNS, seen, 4.0, {AcceleratorName("h100"): 3, AcceleratorName("l40s"): 1})
    assert found.runs == sum(run.at_s >= 1.0 for run in RUNS)
    assert found.ttft.p95_s == pytest.approx(0.25)
    assert found.calls == 4
    assert [(one.accelerator, one.share) for one in found.shares] == [("h100", 0.75), ("l40s", 0.25)]


def test_1_a_run_keeps_its_promise_as_in_the_simulator() -> None:
    run = next(run for run in RUNS if run.calls[run.workflow.output][0].output_tokens > 1)
    promised_s = run.slo.ttft_s
    assert promised_s is not None
    early, late = _whole(run, 4.0, promised_s - 0.001, 0.01), _whole(run, 4.0, promised_s + 0.001, 0.01)
    slow = _whole(run, 4.0, 0.1, 60.0)
    broken = replace(early, ending="broken")
    met = [record.is_met for seen in (early, late, slow, broken) for record in records([run], [seen], 4.0)]
    assert met == [True, False, False, False]


def test_1_a_run_that_nobody_wrote_about_is_missed() -> None:
    (record,) = records(RUNS[:1], [], 4.0)
    assert record.outcome is Outcome.EXPIRED
    assert not record.is_met


def test_what_the_client_wrote_is_read_back() -> None:
    lines = ['{"run": "run-1", "planned_s": 2.0, "sent_s": 2.5, "ending": "refused"}', ""]
    (one,) = read_seen(lines)
    assert (one.run, one.sent_s, one.first_s, one.ending) == ("run-1", 2.5, None, "refused")
    assert lateness_p99_s([one]) == 0.5


def test_the_share_of_the_processor_is_that_between_two_readings() -> None:
    before = "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2 3 4 5 6 7 8 9 9\n"
    after = "cpu  150 0 60 830 60 0 0 0 0 0\n"
    assert busy_share(before, after) == pytest.approx(0.6)
    assert busy_share(before, before) == 0.0


def test_the_work_of_an_engine_is_what_it_counts() -> None:
    text = (
        '# TYPE vllm:request_success_total counter\nvllm:request_success_total{model_name="a b"} 3\n'
        'vllm:prompt_tokens_total{model_name="a b"} 100\nvllm:generation_tokens_total{model_name="a b"} 20.0\n'
    )
    assert work_of(text) == Work(3, 120)
    assert work_of(text).since(Work(1, 20)) == Work(2, 100)
    with pytest.raises(InvalidInput, match="does not count"):
        work_of("")


def test_the_planned_work_is_that_of_whole_runs_on_the_steps_that_they_take() -> None:
    seen = [_whole(RUNS[0], 1.0, 0.1, 0.1), replace(_whole(RUNS[1], 1.0, 0.1, 0.1), ending="broken")]
    (rag,) = [run for run in RUNS[:1] if run.workflow.name == "rag"]
    calls = [rag.calls[node.id][0] for node in rag.workflow.nodes if node.id != "retrieve"]
    assert planned_tokens(RUNS[:2], seen) == sum(call.prompt_tokens + call.output_tokens for call in calls)


# --- rounds ----------------------------------------------------------------------------------------------


def _figures(goodput: float, ttft_s: float = 1.0) -> Figures:
    met = round(100 * goodput)
    times = Times(ttft_s, ttft_s, 2 * ttft_s, 3 * ttft_s)
    return Figures(
        runs=100, met=met, goodput=goodput, rejected=0, failed=0, calls=300, ttft=times, e2e=times,
        tpot_p95_s=0.03, waited_mean_s=None, shares=(), scale_95=1.0, scale_99=1.2, accelerator_s_per_good=1.0,
        usd_per_1k_good=1.0, usd_per_1k_runs=1.0, predictions=(), worst_tenant=goodput,
    )  # fmt: skip


def _round(system: str, per_s: float, goodput: float, busy: float = 0.4, ttft_s: float = 1.0) -> Round:
    return Round(
        digest=f"{system}{per_s}", system=system, rate_per_s=per_s, seed=100, time_scale=4.0, busy=busy, own=0.2,
        late_p99_s=0.002, work=1.0, figures=_figures(goodput, ttft_s), took_s=600.0,
    )  # fmt: skip


def _report(*rounds: Round, simulated: tuple[Figures, ...] | None = None) -> DuelReport:
    predicted = {
        (SYSTEMS[one.system].policy, one.rate_per_s, one.seed): simulated or (one.figures,) for one in rounds
    }
    return duel_report(MIXED, rounds, predicted, "a machine")


ROUNDS = (
    _round("foresight", 2.0, 1.0), _round("foresight", 6.0, 0.98), _round("foresight", 12.0, 0.82),
    _round("ray-serve", 2.0, 0.88), _round("ray-serve", 6.0, 0.60), _round("ray-serve", 12.0, 0.10),
    _round("ray-serve-haproxy", 2.0, 0.94), _round("ray-serve-haproxy", 6.0, 0.80),
    _round("ray-serve-haproxy", 12.0, 0.20),
)  # fmt: skip


def test_2_a_round_counts_unless_the_processor_was_too_busy() -> None:
    assert _round("foresight", 1.0, 1.0, busy=0.70).counts
    assert not _round("foresight", 1.0, 1.0, busy=0.71).counts
    page = duel_markdown(_report(_round("foresight", 2.0, 1.0, busy=0.9)))
    assert "**no**" in page


def test_3_ratios_are_over_the_better_mode() -> None:
    by_level = {one.level: one for one in _report(*ROUNDS).ratios}
    at_90 = by_level[0.90]
    assert (at_90.system, at_90.peer, at_90.is_bound) == ("foresight", "ray-serve-haproxy", False)
    assert at_90.value == pytest.approx((6 + 0.08 / 0.16 * 6) / (2 + 0.04 / 0.14 * 4), rel=1e-3)
    assert by_level[0.70].is_bound  # foresight was never below 70 %


def test_3_without_a_peer_there_is_no_ratio() -> None:
    assert _report(*ROUNDS[:3]).ratios == ()


def test_4_agreement_has_limits() -> None:
    live = _round("foresight", 2.0, 0.90, ttft_s=1.0)
    for goodput, ttft_s, agrees in (
        (0.93, 1.0, True),
        (0.94, 1.0, False),
        (0.90, 1.09, True),
        (0.90, 1.11, False),
    ):
        (one,) = _report(live, simulated=(_figures(goodput, ttft_s),)).against
        assert one.agrees == agrees
        assert one.goodput_off == pytest.approx(goodput - 0.90)


def test_4_of_a_policy_that_draws_lots_the_mean_is_compared() -> None:
    plays = (_figures(0.80), _figures(0.90), _figures(1.00))
    assert averaged(plays).goodput == pytest.approx(0.90)
    (one,) = _report(_round("ray-serve", 2.0, 0.90), simulated=plays).against
    assert one.agrees
    assert (one.plays, one.plays_that_agree) == (3, 1)


def test_the_page_and_the_data_hold_every_round() -> None:
    found = _report(*ROUNDS)
    page, data = duel_markdown(found, ["goodput.svg"]), duel_json(found)
    assert duel_from_json(data, "x") == found
    with pytest.raises(InvalidInput, match="x holds no duel"):
        duel_from_json({}, "x")
    assert isinstance(data, dict)
    assert data["schema"] == "tightrope.duel/1"
    rounds = data["rounds"]
    assert isinstance(rounds, list)
    assert len(rounds) == len(ROUNDS)
    for text in (
        "Ray Serve 2.60, HAProxy mode",
        "![goodput by load](goodput.svg)",
        "## Against the simulation",
    ):
        assert text in page
    assert "all 9 rounds count" in duel_summary(found)


def test_a_rate_without_all_seeds_is_left_out() -> None:
    other = replace(_round("foresight", 2.0, 1.0), seed=101, digest="other")
    found = _report(ROUNDS[0], ROUNDS[1], other)
    assert {point.per_s for point in found.live.points} == {2.0}


# --- what is compared ------------------------------------------------------------------------------------


def test_5_a_digest_is_of_everything_that_determines_a_round(tmp_path: Path) -> None:
    (tmp_path / "workflows.py").write_text("one = 1\n")
    cell = DuelCell(MIXED, "ray-serve", 3.0, 100, 4.0, 8)
    same = replace(cell, scenario=replace(MIXED, about="in other words"))
    assert round_digest(same, tmp_path) == round_digest(cell, tmp_path)
    others = [
        replace(cell, system="foresight"), replace(cell, rate_per_s=4.0), replace(cell, seed=101), cell.slower,
        replace(cell, scenario=replace(MIXED, duration_s=7.0)),
    ]  # fmt: skip
    assert len({round_digest(one, tmp_path) for one in (cell, *others)}) == 6


def test_every_system_begins_as_often_as_the_others() -> None:
    assert [in_turn("abc", number)[0] for number in range(4)] == ["a", "b", "c", "a"]
    assert in_turn("abc", 1) == ["b", "c", "a"]


def test_systems_are_known_by_name() -> None:
    assert chosen_systems(()) == tuple(SYSTEMS)
    assert chosen_systems(("ray-serve", "foresight", "ray-serve")) == ("ray-serve", "foresight")
    with pytest.raises(InvalidInput, match=r"no system 'nobody'.*ray-serve-haproxy"):
        chosen_systems(("nobody",))


@pytest.mark.parametrize("name", ["chat", "slow-card", "wrong-all-flattered", "sessions"])
def test_a_scenario_that_a_duel_cannot_play_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"Ray Serve has the workflows|duels have none"):
        check_scenario(load_scenario(name))
