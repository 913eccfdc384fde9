"""
The scenarios that are shipped
1. Each file can be read, is called like its scenario, and says in one sentence what it is for.
2. Each can be simulated: runs arrive, are promised something, and end.
3. The names of evaluation have their files.
"""

from __future__ import annotations

import pytest

from tightrope.bench.cell import Cell, cell_scripts, cell_world, limit_per_s
from tightrope.bench.library import load_scenario, policies, scenario_names, scenarios_folder
from tightrope.bench.setting import setting
from tightrope.model.errors import InvalidInput, NotFound
from tightrope.model.outcome import Outcome
from tightrope.policy import ROUTERS
from tightrope.sim.driver import simulate

NAMES = scenario_names()
CLUSTERS = ("mixed", "paper-two-node", "mild", "strong", "uniform")
LOADS = ("burst", "azure", "diurnal", "sessions", "tau2", "tenants-27", "compare", "overload")
SCALES = ("fleet-64", "fleet-1k", "fleet-10k")
MOST_REPLICAS = 100
"""Larger fleets are read and not simulated here."""


@pytest.mark.parametrize("name", NAMES)
def test_1_and_2_each_file_is_a_scenario_that_can_be_simulated(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    assert scenario.about.endswith(".")
    assert scenario.policies[0] == "foresight"
    assert dict(setting(scenario))["fleet"]
    if sum(placement.count for placement in scenario.fleet) > MOST_REPLICAS:
        return
    runs = cell_scripts(scenario, 2.0, 100, count=6)
    assert all(run.slo.ttft_s is not None and run.slo.tpot_s == 0.1 for run in runs)
    records = simulate(cell_world(Cell(scenario, "foresight", 2.0, 100), runs), runs)
    assert {record.outcome for record in records} == {Outcome.SUCCEEDED}


def test_2_the_limit_grows_with_the_fleet() -> None:
    small, large = limit_per_s(load_scenario("fleet-64")), limit_per_s(load_scenario("fleet-1k"))
    assert large == pytest.approx(small * 1000 / 64, rel=0.02)


def test_3_what_is_to_be_shown_has_its_scenarios() -> None:
    assert set(NAMES) >= {*CLUSTERS, *LOADS, *SCALES, *(f"{name}-fixed" for name in CLUSTERS)}


def test_a_scenario_can_be_a_file_of_ones_own() -> None:
    assert load_scenario(str(scenarios_folder() / "mixed.yaml")) == load_scenario("mixed")


def test_a_name_that_is_none_is_answered_with_the_nearest_and_all() -> None:
    with pytest.raises(NotFound, match="did you mean 'mixed'") as caught:
        load_scenario("mixd")
    assert all(name in str(caught.value) for name in NAMES)


def test_policies_are_named_by_pattern_or_refused_with_a_list() -> None:
    assert policies(["foresight", "hexgen-flow/*"])[:2] == ("foresight", "hexgen-flow/0.0")
    with pytest.raises(InvalidInput, match="did you mean 'foresight'") as caught:
        policies(["forsight"])
    assert all(name in str(caught.value) for name in ROUTERS)
