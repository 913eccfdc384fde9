"""
Laws of the summary
1. Every run that ended is in one line, and the total is over all of them.
2. Percentiles are times that occurred.
3. Shares of a line sum to 1.
4. Prediction errors compare the moment that counts: first token for the output under a TTFT promise, else the end.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reports.journals import Journal, late_run
from tightrope.kernel.journal import Entry
from tightrope.model.fleet import Estimate
from tightrope.model.ids import RunId
from tightrope.model.outcome import Outcome, Refusal, Verdict
from tightrope.reports.summary import as_json, percentile, summarize


def run_of(
    name: str, ttft_ms: float | None, verdict: Verdict, outcome: Outcome, tenant: str = "shop"
) -> list[Entry]:
    journal = Journal(run=RunId(name)).at(0).submitted(tenant=tenant).at(1000)
    refusal = Refusal.QUEUE_FULL if outcome is Outcome.REJECTED else None
    return journal.finish(verdict, outcome, ttft_ms=ttft_ms, refusal=refusal, tenant=tenant).entries


def test_1_runs_are_counted_by_tenant_and_workflow() -> None:
    entries = [
        *run_of("a", 100, Verdict.MET, Outcome.SUCCEEDED),
        *run_of("b", 300, Verdict.MISSED, Outcome.SUCCEEDED),
        *run_of("c", None, Verdict.MISSED, Outcome.REJECTED),
        *run_of("d", 200, Verdict.NONE, Outcome.SUCCEEDED, tenant="research"),
        *Journal(run=RunId("e")).at(0).submitted().entries,
    ]
    found = summarize(entries)
    research, shop = found.lines
    assert (shop.tenant, shop.workflow, shop.runs, shop.promised, shop.met) == ("shop", "shop", 3, 3, 1)
    assert shop.attainment == pytest.approx(1 / 3)
    assert (shop.succeeded, shop.rejected) == (2, 1)
    assert (shop.ttft_p50_ms, shop.ttft_p95_ms, shop.ttft_mean_ms) == (100.0, 300.0, 200.0)
    assert (research.runs, research.promised, research.attainment) == (1, 0, None)
    assert (found.total.runs, found.total.met, found.running) == (4, 1, 1)


def test_1_an_empty_journal_has_an_empty_table() -> None:
    found = summarize([])
    assert (found.lines, found.total.runs, found.total.ttft_p50_ms, found.errors) == ((), 0, None, ())


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_2_percentiles_occurred(values: list[float], part: float) -> None:
    found = percentile(values, part)
    assert found in values
    assert found is not None
    assert sum(value <= found for value in values) >= part * len(values)


def test_3_and_4_calls_are_shared_and_compared() -> None:
    found = summarize(late_run().entries)
    (line,) = found.lines
    assert [(share.accelerator, share.calls, share.share) for share in line.shares] == [("slow", 2, 1.0)]
    (error,) = found.errors
    # intent: 70 predicted, 88 measured to its end; answer: 100 predicted, 800 measured to its first token
    assert error.calls == 2
    assert error.mean == pytest.approx(((88 - 70) / 88 + (800 - 100) / 800) / 2)
    assert error.median == pytest.approx((88 - 70) / 88)
    assert error.bias == pytest.approx(((70 / 88 - 1) + (100 / 800 - 1)) / 2)


def test_4_calls_that_failed_are_not_compared() -> None:
    journal = Journal().at(0).submitted().ready("answer").prepared("answer")
    journal.dispatch("answer", "big-1", estimate=Estimate(1.0, 0.0, 0.0, 1.0, 0.0)).at(10)
    assert summarize(journal.finish(Verdict.MISSED, Outcome.EXPIRED).entries).errors == ()


def test_a_summary_is_json() -> None:
    assert json.dumps(as_json(summarize(late_run().entries)), allow_nan=False)
