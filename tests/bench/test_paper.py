"""
The experiments of the source paper
1. A burst of few requests is the beginning of one of many under the same seed, and every policy gets the same.
2. What runs on a replica has the age of its start, what waits there has none; no age grows by looking closer.
3. Before an engine that runs one call at a time, Algorithm 1 believes exactly what happens; batching is faster.
4. Routers that bind early let calls queue at replicas, however few run there at once; foresight keeps them.
5. With its buffer the baseline keeps 70 % of the promises at 7 requests, under tuning seeds.
6. The ratio that a change needs is the ratio that makes the change; a policy does not change against itself.
7. The best reading of a family has the highest goodput; of equals the one that is sooner.
8. Everything together: played once, kept, written as JSON and read again, in tables without a gap.
9. The tables of docs/paper.md are those of its data, and the data are of reported seeds only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.builders import H100, MODEL, NOW_S, a_held
from tightrope.bench.intervals import mean
from tightrope.bench.paper import ACTUAL, OURS, Paper, Point, Scope, best_reading, paper
from tightrope.bench.paper_bursts import (
    BASELINE,
    TIGHT_REQUESTS,
    TUNING_SEEDS,
    Bursts,
    Load,
    Setting,
    Site,
    Trial,
    play,
    queued,
    records,
    tune,
)
from tightrope.bench.paper_crowd import crowds
from tightrope.bench.paper_figures import change, elsewhere, goodput, implied_ratio, rows, ttft_s
from tightrope.bench.paper_table import paper_table
from tightrope.model.codec import decode, encode
from tightrope.model.fleet import HeldCall, ReplicaView
from tightrope.model.ids import ReplicaId
from tightrope.policy.fmware import GREEDY, TARGET
from tightrope.sim.world import RunRecord

RAG = Setting("rag", "varied")
SERIAL = Setting("rag", "fixed", Site(1, 1, 1))
LOAD = Load(rate_per_s=20.0, buffer_s=0.4)
SLOW_LOAD = Load(rate_per_s=2.0, buffer_s=4.0)


def lengths(burst: Sequence[RunRecord]) -> list[tuple[float, list[tuple[str, int, int]]]]:
    """What a burst asked for: moments from its first one on, and sizes of calls by step."""
    first_s = burst[0].arrived_s
    return [
        (
            round(run.arrived_s - first_s, 6),
            sorted((call.step, call.prompt_tokens, call.output_tokens) for call in run.calls),
        )
        for run in burst
    ]


# --- 1 ---------------------------------------------------------------------------------------------------


def test_1_a_small_burst_is_the_beginning_of_a_large_one_under_every_policy() -> None:
    few, many = (records(Trial(RAG, LOAD, BASELINE, requests, (100, 101))) for requests in (2, 4))
    others = records(Trial(RAG, LOAD, GREEDY, 4, (100, 101)))
    for small, large, other in zip(few, many, others, strict=True):
        assert lengths(small) == lengths(large)[:2]
        assert lengths(large) == lengths(other)
    assert lengths(many[0]) != lengths(many[1])


# --- 2 ---------------------------------------------------------------------------------------------------


@st.composite
def held_calls(draw: st.DrawFn) -> list[HeldCall]:
    """Calls in order of dispatch, some of which have begun to answer."""
    ages_s = sorted(draw(st.lists(st.floats(0, 50), min_size=1, max_size=6)), reverse=True)
    calls = []
    for place, age_s in enumerate(ages_s):
        answers_s = draw(st.none() | st.floats(0, age_s))
        first_s = None if answers_s is None else NOW_S - answers_s
        calls.append(a_held(str(place), dispatched_s=NOW_S - age_s, first_token_s=first_s))
    return calls


@given(held_calls(), st.integers(1, 6))
def test_2_what_waits_has_no_age_and_nothing_gets_older(held: list[HeldCall], sequences: int) -> None:
    view = ReplicaView(ReplicaId("r"), MODEL, H100.accelerator, H100, held=tuple(held))
    seen = queued(view, sequences, NOW_S)
    assert [call.call for call in seen.held] == [call.call for call in held]
    for before, after in zip(held, seen.held, strict=True):
        assert before.dispatched_s <= after.dispatched_s <= NOW_S
        assert replace(after, dispatched_s=before.dispatched_s) == before
    assert all(call.dispatched_s == NOW_S for call in seen.held[sequences:])
    if len(held) <= sequences and all(call.first_token_s is None for call in held):
        assert seen == view


# --- 3 ---------------------------------------------------------------------------------------------------


def test_3_the_cost_model_is_that_of_a_serial_engine() -> None:
    for crowd in crowds():
        assert crowd.believed_s == pytest.approx(crowd.serial_s, abs=1e-3)
        if crowd.calls == 1:
            assert crowd.batching_s == pytest.approx(crowd.serial_s, abs=1e-3)
        else:
            assert crowd.batching_s < crowd.serial_s


# --- 4 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "waits"), [(BASELINE, False), (GREEDY, False), (OURS, True)])
def test_4_where_calls_wait_for_a_serial_engine(policy: str, waits: bool) -> None:
    (burst,) = records(Trial(SERIAL, SLOW_LOAD, policy, 6, (100,)))
    assert (max(call.waited_s for run in burst for call in run.calls) > 0) == waits
    assert max(run.duration_s for run in burst) > 2 * min(run.duration_s for run in burst)


# --- 5 ---------------------------------------------------------------------------------------------------


def test_5_the_buffer_makes_the_baseline_as_good_as_that_of_the_paper() -> None:
    setting = Setting("rag", "fixed")
    tuned = tune(setting)
    kept = mean(play(Trial(setting, tuned.load, BASELINE, TIGHT_REQUESTS, TUNING_SEEDS)).bursts.goodput)
    assert 0.7 <= kept < 0.8


# --- 6 ---------------------------------------------------------------------------------------------------

shares = st.floats(0.0, 1.0)


@given(st.floats(1.0, 20.0), shares, shares)
def test_6_the_implied_ratio_makes_the_change(ratio: float, before: float, after: float) -> None:
    moved = (after + (1 - after) * ratio) / (before + (1 - before) * ratio) - 1
    found = implied_ratio(moved, before, after)
    if abs(after - before) > 0.01 and ratio > 1.01:
        assert found == pytest.approx(ratio, rel=1e-3)


def test_6_what_no_ratio_gives() -> None:
    assert implied_ratio(-0.307, 0.3, 0.367) is None
    assert implied_ratio(-0.3381, 0.3, 0.7) == pytest.approx(3.07, abs=0.01)


def bursts(goodputs: Sequence[float], ttfts_s: Sequence[float]) -> Bursts:
    """Bursts of which two figures matter."""
    return Bursts(tuple(goodputs), tuple(ttfts_s), tuple(ttfts_s), tuple(ttfts_s), tuple(goodputs))


values = st.lists(st.floats(0.1, 10), min_size=1, max_size=4)


@given(values, st.floats(0.1, 3))
def test_6_a_change_is_relative_and_nothing_against_oneself(ttfts_s: list[float], factor: float) -> None:
    one = Point(RAG, BASELINE, 1, bursts(ttfts_s, ttfts_s))
    other = Point(RAG, GREEDY, 1, bursts(ttfts_s, [factor * value for value in ttfts_s]))
    assert change([one], [one], ttft_s).value == pytest.approx(0)
    moved = change([other], [one], ttft_s)
    assert moved.low == pytest.approx(moved.value) == pytest.approx(moved.high) == pytest.approx(factor - 1)


# --- 7 ---------------------------------------------------------------------------------------------------


def test_7_the_best_reading_is_of_its_family_and_breaks_ties_by_time() -> None:
    found = [
        Point(RAG, BASELINE, 10, bursts([1.0], [0.1])),
        Point(RAG, GREEDY, 10, bursts([0.8, 0.8], [0.5, 0.5])),
        Point(RAG, f"{GREEDY}/late", 10, bursts([0.7, 0.9], [0.9, 0.9])),
        Point(RAG, f"{GREEDY}/bad", 10, bursts([0.7, 0.8], [0.1, 0.1])),
        Point(RAG, f"{TARGET}/good", 10, bursts([0.9], [0.1])),
    ]
    assert best_reading(found, GREEDY) == GREEDY
    assert best_reading(found, TARGET) == f"{TARGET}/good"


# --- 8 ---------------------------------------------------------------------------------------------------

TINY = Scope(
    seeds=(100, 101),
    workflows=("rag",),
    sizes=(1, 15),
    probes=(3,),
    sites=(Site(1, 2, 1),),
    readings=(GREEDY, TARGET, ACTUAL[1]),
    tuning_seeds=(0,),
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Paper, Path]:
    """Two seeds of everything, and where it is kept."""
    folder = tmp_path_factory.mktemp("paper")
    return paper(TINY, folder, 1, lambda done, total, label: None), folder


def test_8_what_is_kept_is_not_played_again(tiny: tuple[Paper, Path]) -> None:
    found, folder = tiny
    missing: list[str] = []

    def tell(done: int, total: int, label: str) -> None:
        if done < total or label:
            missing.append(label)

    assert paper(TINY, folder, 1, tell) == found
    assert missing == []


def test_8_it_can_be_written_and_read_again(tiny: tuple[Paper, Path]) -> None:
    assert decode(Paper, encode(tiny[0])) == tiny[0]


def test_8_every_figure_of_the_paper_stands_beside_ours(tiny: tuple[Paper, Path]) -> None:
    found, _ = tiny
    by_name = {row.name: row for row in rows(found, "rag")}
    assert len(by_name) == 7
    for row in by_name.values():
        assert {BASELINE, GREEDY, OURS} <= row.ours.keys()
    assert by_name["latency"].ours[BASELINE].value == pytest.approx(0)
    assert by_name["fast_share"].said.greedy == 0.70
    text = paper_table(found)
    for said in ("-33.8 %", "-30.7 %", "+26.4 %", "+15.3 %", "-3.7 %", "-18.0 %", "no ratio does"):
        assert said in text
    assert all(line.count("|") > 2 for line in text.splitlines() if line.startswith("|"))


def test_8_elsewhere_the_baseline_is_that_of_the_same_nodes(tiny: tuple[Paper, Path]) -> None:
    found = elsewhere(tiny[0])
    assert {one.site for one in found} == {Site(1, 2, 1)}
    assert {one.policy for one in found} == {BASELINE, GREEDY, TARGET, *ACTUAL, OURS}
    (base,) = (one for one in found if one.policy == BASELINE)
    assert base.goodput.value == base.ttft.value == base.e2e.value == 0
    assert mean([mean(goodput(point.bursts)) for point in tiny[0].sites]) <= 1


# --- 9 ---------------------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs"


def test_9_the_page_shows_its_data() -> None:
    data = (DOCS / "results" / "simulated" / "paper.json").read_text(encoding="utf-8")
    found = decode(Paper, json.loads(data))
    assert paper_table(found) in (DOCS / "paper.md").read_text(encoding="utf-8")
    assert min(found.scope.seeds) >= 100 > max(found.scope.tuning_seeds)
