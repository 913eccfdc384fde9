"""
What figures say
1. Goodput counts every run that arrived in the window, however it ended.
2. Times and quantiles are those of values that occurred.
3. The smallest factor on promises is the one that so many runs need; runs that failed need one that is not there.
4. Costs are those of the whole fleet over the window.
5. Predictions are compared with what came, and own work with the time alone on the card.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightrope.bench.metrics import Bill, Window, figures, least_scale, predictions, quantile, times
from tightrope.model.ids import AcceleratorName, CallId, ModelName, ReplicaId, RunId, StepId, TenantId
from tightrope.model.outcome import Outcome
from tightrope.model.profile import Coefficients, Profile
from tightrope.model.slo import Slo
from tightrope.sim.world import CallRecord, RunRecord, is_met

MODEL, CARD = ModelName("m"), AcceleratorName("card")
PROFILE = Profile(MODEL, CARD, Coefficients(10.0, 0.1, 0.001, 0.2, 0.0), 2048, 128, 100_000)
TRUTHS = {(MODEL, CARD): PROFILE}
WINDOW = Window(10.0, 20.0)
SLO = Slo(ttft_s=1.0, tpot_s=0.1)


def a_run(
    ttft_s: float | None = 0.5,
    tpot_s: float | None = 0.05,
    outcome: Outcome = Outcome.SUCCEEDED,
    arrived_s: float = 15.0,
    tenant: str = "t",
    calls: tuple[CallRecord, ...] = (),
    slo: Slo = SLO,
) -> RunRecord:
    kept = is_met(slo, outcome, ttft_s, tpot_s, 2.0)
    return RunRecord(
        RunId("r"), "w", TenantId(tenant), arrived_s, slo, outcome, ttft_s, tpot_s, 2.0, kept, calls
    )


def a_call(
    predicted_ms: float, took_ms: float | None, *, is_terminal: bool = True, lx: float = 0.0
) -> CallRecord:
    return CallRecord(
        call=CallId("c"),
        step=StepId("s"),
        model=MODEL,
        replica=ReplicaId("r"),
        accelerator=CARD,
        reason="uniform",
        predicted_crit_ms=predicted_ms,
        lx=lx,
        lq=predicted_ms - lx,
        lr=0.0,
        measured_crit_ms=took_ms,
        dispatched_s=0.0,
        waited_s=0.2,
        slack_s=1.0,
        budget_s=1.0,
        is_terminal=is_terminal,
        first_s=0.1,
        ended_s=None if took_ms is None else 1.0,
        prompt_tokens=100,
        output_tokens=11,
        cached_tokens=0,
    )


def test_1_every_run_of_the_window_counts_and_no_other() -> None:
    records = [
        a_run(),
        a_run(ttft_s=1.5),
        a_run(tpot_s=0.2),
        a_run(None, None, Outcome.REJECTED),
        a_run(None, None, Outcome.FAILED),
        a_run(0.2, None, Outcome.EXPIRED),
        a_run(arrived_s=9.99),
        a_run(arrived_s=20.0),
    ]
    found = figures(records, WINDOW, TRUTHS)
    assert (found.runs, found.met, found.rejected, found.failed) == (6, 1, 1, 2)
    assert found.goodput == pytest.approx(1 / 6)


def test_1_a_window_without_a_run_says_so() -> None:
    found = figures([], WINDOW, TRUTHS, Bill(2, 3.0))
    assert (found.runs, found.goodput, found.ttft.mean_s, found.usd_per_1k_good) == (0, 0.0, None, None)


def test_1_the_worst_tenant_is_the_one_with_the_least_goodput() -> None:
    records = [a_run(tenant="a"), a_run(tenant="a", ttft_s=2.0), a_run(tenant="b")]
    assert figures(records, WINDOW, TRUTHS).worst_tenant == 0.5


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_2_quantiles_are_values_that_occurred_and_in_order(values: list[float]) -> None:
    found = times(values)
    quantiles = (found.p50_s, found.p95_s, found.p99_s)
    assert all(one in values for one in quantiles)
    assert list(quantiles) == sorted(one for one in quantiles if one is not None)
    assert quantile(values, 1.0) == max(values)
    assert quantile(values, 0.0) == min(values)


def test_2_the_place_is_rounded_up() -> None:
    assert quantile(range(1, 101), 0.95) == 95
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert quantile([], 0.5) is None


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=40), st.sampled_from((0.5, 0.9, 0.95, 0.99)))
def test_3_with_the_smallest_factor_so_many_keep_it_and_with_a_smaller_one_not(
    ttft_s: list[float], level: float
) -> None:
    records = [a_run(one) for one in ttft_s]
    scale = least_scale(records, level)
    assert scale is not None
    kept = sum(one <= scale * 1.0 for one in ttft_s)
    fewer = sum(one <= scale * 0.999 for one in ttft_s)
    assert kept >= level * len(ttft_s) - 1e-9
    assert fewer < level * len(ttft_s)


def test_3_failures_and_stalled_streams_cannot_be_bought_off() -> None:
    good = [a_run(0.5)] * 98
    assert least_scale([*good, a_run(tpot_s=0.5), a_run(None, None, Outcome.FAILED)], 0.99) is None
    assert least_scale([*good, a_run(tpot_s=0.5), a_run(None, None, Outcome.FAILED)], 0.95) == 0.5
    assert least_scale([], 0.95) is None


def test_3_without_a_promise_any_factor_does() -> None:
    assert least_scale([a_run(slo=Slo())], 0.99) == 0.0


def test_4_costs_are_those_of_the_fleet_over_the_window() -> None:
    found = figures([a_run(), a_run(ttft_s=3.0)], WINDOW, TRUTHS, Bill(4, 36.0))
    assert found.accelerator_s_per_good == 40.0
    assert found.usd_per_1k_good == pytest.approx(100.0)
    assert found.usd_per_1k_runs == pytest.approx(50.0)


def test_5_predictions_by_kind_of_call() -> None:
    alone_ms = PROFILE.solo_ttft_ms(100)
    calls = [
        a_call(1.5 * alone_ms, 2 * alone_ms, lx=alone_ms),
        a_call(3.0 * alone_ms, 2 * alone_ms, lx=1.5 * alone_ms),
        a_call(10.0, None),
    ]
    (terminal,) = predictions(calls, TRUTHS)
    assert (terminal.is_terminal, terminal.calls) == (True, 2)
    assert terminal.mape == pytest.approx(0.375)
    assert terminal.bias == pytest.approx(0.125)
    assert terminal.own_mape == pytest.approx(0.25)
    assert terminal.queue_error_ms == pytest.approx(0.5 * alone_ms)
    assert terminal.queue_bias_ms == pytest.approx(0.0)


def test_5_calls_before_the_answer_are_measured_to_their_end() -> None:
    alone_ms = PROFILE.solo_ms(100, 11)
    (inner,) = predictions([a_call(alone_ms, alone_ms, is_terminal=False, lx=alone_ms)], TRUTHS)
    assert (inner.is_terminal, inner.mape, inner.own_mape) == (False, 0.0, 0.0)


def test_shares_of_cards_add_up() -> None:
    found = figures([a_run(calls=(a_call(1.0, 1.0), a_call(1.0, 1.0)))], WINDOW, TRUTHS)
    assert [(share.accelerator, share.calls, share.share) for share in found.shares] == [("card", 2, 1.0)]
    assert found.waited_mean_s == pytest.approx(0.2)
