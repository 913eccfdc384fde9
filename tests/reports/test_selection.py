"""Which run is meant: by id, request, prefix, `last`, `last-late`; and which were worst."""

from __future__ import annotations

import pytest

from tests.reports.journals import Journal
from tightrope.kernel.journal import Entry
from tightrope.model.errors import InvalidInput, NotFound
from tightrope.model.ids import RunId
from tightrope.model.outcome import Outcome, Refusal, Verdict
from tightrope.reports.selection import briefs, select, worst


def ended(run: str, request: str, ttft_ms: float, verdict: Verdict) -> list[Entry]:
    journal = Journal(run=RunId(run))
    return journal.at(0).submitted(request=request).at(ttft_ms + 50).finish(verdict, ttft_ms=ttft_ms).entries


REFUSED = Journal(run=RunId("ad-1")).at(0).submitted(request="req-4")
REFUSED.finish(Verdict.MISSED, Outcome.REJECTED, refusal=Refusal.QUEUE_FULL)
ENTRIES = [
    *Journal(run=RunId("ae-1")).at(0).submitted(request="req-0").entries,
    *ended("aa-1", "req-1", 1000, Verdict.MISSED),
    *ended("ab-1", "req-2", 1500, Verdict.MISSED),
    *ended("ac-1", "req-3", 100, Verdict.MET),
    *REFUSED.entries,
]
RUNS = briefs(ENTRIES)


@pytest.mark.parametrize(
    ("query", "run"),
    [
        ("last", "ad-1"),
        ("last-late", "ad-1"),
        ("aa-1", "aa-1"),
        ("req-2", "ab-1"),
        ("ac", "ac-1"),
        ("req-3", "ac-1"),
        ("ae", "ae-1"),
    ],
)
def test_a_run_is_found(query: str, run: str) -> None:
    assert select(RUNS, query).run == run


@pytest.mark.parametrize("query", ["zz", ""])
def test_an_unknown_run_is_not_found(query: str) -> None:
    with pytest.raises(NotFound):
        select(RUNS, query)


def test_an_ambiguous_prefix_lists_the_choices() -> None:
    with pytest.raises(InvalidInput, match=r"fits 5 runs: aa-1, ab-1, ac-1, ad-1, \.\.\."):
        select(RUNS, "a")


def test_without_runs_nothing_is_last() -> None:
    with pytest.raises(NotFound):
        select([], "last")
    with pytest.raises(NotFound):
        select(briefs(ended("aa-1", "", 100, Verdict.MET)), "last-late")


def test_a_repeated_request_id_means_its_latest_run() -> None:
    runs = briefs([*ended("aa-1", "req", 100, Verdict.MET), *ended("ab-1", "req", 100, Verdict.MET)])
    assert select(runs, "req").run == "ab-1"


def test_runs_are_ranked_by_how_late_they_were() -> None:
    assert [run.run for run in worst(RUNS, 9)] == ["ab-1", "aa-1", "ad-1"]
    assert [run.late_ms for run in worst(RUNS, 9)] == [600.0, 100.0, None]
    assert len(worst(RUNS, 1)) == 1
