"""
Distances to the limits of a scenario
1. Nothing that was played passes what was found, and nothing at all passes the bound; shares are at most 1.
2. What is kept is not searched or bounded again.
3. The page names every load, every policy and the limits.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.tiny import tiny
from tightrope.bench import distances as module
from tightrope.bench.distances import Distances, distances, distances_markdown, ratio_interval, shortened
from tightrope.bench.run import Plan
from tightrope.bench.scenario import Rate

pytest.importorskip("scipy")
SCENARIO = tiny(duration_s=3.0, warm_up_s=0.5)
PLAN = Plan(SCENARIO, ("foresight", "round-robin"), (Rate(0.3),), (100, 101), 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("limit")


@pytest.fixture(scope="module")
def found(folder: Path) -> Distances:
    return distances(PLAN, ("foresight",), 2, folder, lambda done, total, label: None)


def test_1_nobody_passes_a_limit(found: Distances) -> None:
    (limit,) = found.limits
    assert limit.bound is not None
    assert [row.policy for row in found.rows] == ["foresight", "round-robin"]
    for row in found.rows:
        assert row.goodput <= limit.found <= limit.bound + 1e-9
        assert row.of_found.value <= 1.0
        assert row.of_bound is not None
        assert row.of_bound.value <= 1.0


def test_2_what_is_kept_is_not_done_again(
    found: Distances, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr(module, "climb", fail)
    again = distances(PLAN, ("foresight",), 2, folder, lambda done, total, label: None)
    assert again == found
    assert sorted(file.name for file in folder.iterdir()) == ["bounds.jsonl", "cells.jsonl", "searches.jsonl"]


def test_3_the_page_names_all_of_it(found: Distances) -> None:
    page = distances_markdown(found)
    for said in (
        "# Limits of tiny",
        "| 30% | foresight |",
        "| 30% | round-robin |",
        "*found*",
        "*bound*",
        "2 steps",
    ):
        assert said in page
    without = replace(found, limits=tuple(replace(limit, bound=None) for limit in found.limits))
    assert "*bound*" not in distances_markdown(without)


def test_a_ratio_is_that_of_sums_and_1_where_there_is_nothing_to_reach() -> None:
    assert ratio_interval([1.0, 0.0], [1.0, 1.0]).value == 0.5
    assert ratio_interval([0.0, 0.0], [0.0, 0.0]).value == 1.0


def test_2_the_sources_that_limits_depend_on_exist() -> None:
    package = Path(module.__file__).parents[1]
    sources = (*module.SEARCH_SOURCES, *module.BOUND_SOURCES)
    assert [place for place in sources if not (package / place).is_file()] == []


def test_limits_are_looked_for_in_short_loads() -> None:
    assert shortened(tiny()).duration_s == module.LASTS_S
