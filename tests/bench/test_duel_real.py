"""
Laws of the duel on real engines
1. Its fleet is what was measured, and nothing of a table of cards; a faster engine bears more.
2. Prompts and answers have the part of their length that is asked for, and a token at least; nothing else of a run is
   changed.
3. What was measured is said in the rows of the report.
4. The processor may be busier than in a duel of emulated engines: most of its work is that of the engines.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.bench.tiny import own_profiles
from tightrope.bench.cell import Cell, accelerators, cell_scripts, cell_world, limit_per_s, profiles
from tightrope.bench.duel import BUSIEST, BUSIEST_OWN, DuelCell
from tightrope.bench.duel_load import duel_runs
from tightrope.bench.duel_real import MODEL, SHARES, SHRINK, real_scenario
from tightrope.bench.library import load_scenario
from tightrope.bench.scenario import Scenario
from tightrope.bench.setting import setting
from tightrope.sim.script import CallScript, RunScript

REAL = real_scenario(own_profiles())


def test_1_the_fleet_is_what_was_measured() -> None:
    fast, slow = own_profiles()
    assert profiles(REAL) == {(MODEL, fast.accelerator): fast, (MODEL, slow.accelerator): slow}
    assert [(card.name, card.count) for card in accelerators(REAL)] == [(name, 1) for name in SHARES]
    world = cell_world(Cell(REAL, "foresight", 1.0, 0), ())
    assert {spec.accelerator for spec in world.replicas} == set(SHARES)
    assert world.beliefs == profiles(REAL)
    slower = replace(fast, coefficients=fast.coefficients.scaled(2.0))
    assert limit_per_s(real_scenario((slower, slow))) < limit_per_s(REAL)


def test_2_prompts_and_answers_are_shorter() -> None:
    whole = cell_scripts(replace(REAL, shrink=1.0), 1.0, 5, count=40)
    short = cell_scripts(REAL, 1.0, 5, count=40)
    for one, other in zip(whole, short, strict=True):
        assert (one.run, one.at_s, one.cases) == (other.run, other.at_s, other.cases)
        for before, after in zip(items(one), items(other), strict=True):
            for name in ("prompt_tokens", "output_tokens"):
                assert getattr(after, name) == max(1, round(SHRINK * getattr(before, name)))
            assert after.seconds == before.seconds
    assert all(item.prompt_tokens >= 8 for run in duel_runs(REAL, 1.0, 5) for item in prompts(run))


def items(run: RunScript) -> list[CallScript]:
    """Every call of a run."""
    return [item for found in run.calls.values() for item in found]


def prompts(run: RunScript) -> list[CallScript]:
    """Those of its calls that read something."""
    return [item for item in items(run) if item.prompt_bytes]


def test_3_the_report_says_what_was_measured() -> None:
    rows = dict(setting(REAL))
    assert rows["measured"].startswith("own on fast reads 100 tokens in ")
    assert rows["load"].endswith("lengths drawn from data, 3.125% of that")


@pytest.mark.parametrize(("scenario", "most"), [(REAL, BUSIEST_OWN), (load_scenario("mixed"), BUSIEST)])
def test_4_engines_of_this_machine_may_use_it(scenario: Scenario, most: float) -> None:
    assert DuelCell(scenario, "foresight", 1.0, 100, 1.0, 1).busiest == most
