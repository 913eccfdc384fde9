"""
Running cells
1. Equal cells give equal figures, in this process or another one; every policy gets the same runs.
2. What is kept is not simulated again; after an interrupt only the rest is.
3. A cell is another one when anything that determines it changes, and only then.
4. A torn line of the file of results is as if it had not been written.
5. Bisection ends and measures every policy on both sides of every level.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.bench.tiny import tiny
from tightrope.bench import run as running
from tightrope.bench.cell import Cell, cell_scripts, limit_per_s, play
from tightrope.bench.intervals import mean
from tightrope.bench.run import Job, JobFailed, Plan, capacity, plan_of, run, run_cells, run_jobs
from tightrope.bench.scenario import Belief, Mishap, Rate
from tightrope.bench.search import LEVELS
from tightrope.bench.store import DETERMINES, Result, Store, code_digest, digest, hashed
from tightrope.model.ids import AcceleratorName, ModelName

CELL = Cell(tiny(), "foresight", 4.0, 100)


def quietly(done: int, total: int, label: str) -> None: ...


# --- 1 ---------------------------------------------------------------------------------------------------


def test_1_equal_cells_give_equal_figures_in_any_process(tmp_path: Path) -> None:
    cells = [replace(CELL, policy=policy) for policy in ("foresight", "power-of-two")]
    found = run_cells(cells, Store(tmp_path, Result), workers=2, tell=quietly)
    for cell in cells:
        assert found[digest(cell)].figures == play(cell).figures


def test_1_a_cell_gives_the_same_journal_twice() -> None:
    first: list[str] = []
    second: list[str] = []
    play(CELL, first.append)
    play(CELL, second.append)
    assert first == second
    assert len(first) > 20


def test_1_every_policy_gets_the_same_runs() -> None:
    one, other = play(CELL), play(replace(CELL, policy="round-robin"))
    assert [(run.run, run.arrived_s, run.slo) for run in one.records] == [
        (run.run, run.arrived_s, run.slo) for run in other.records
    ]
    assert {part.tenant for part in one.parts} == {"a", "b"}
    assert sum(part.figures.runs for part in one.parts) == one.figures.runs


def test_1_another_rate_changes_no_length() -> None:
    scenario = tiny()
    slow, fast = cell_scripts(scenario, 2.0, 100), cell_scripts(scenario, 8.0, 100)
    assert [script.calls for script in slow] == [script.calls for script in fast[: len(slow)]]


def test_1_fixed_lengths_are_all_alike() -> None:
    scripts = cell_scripts(tiny(lengths="fixed"), 4.0, 100)
    assert len({script.calls["answer"][0] for script in scripts}) == 1  # type: ignore[index]


# --- 2 ---------------------------------------------------------------------------------------------------


def test_2_what_is_kept_is_not_simulated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tiny(), workers=1)
    first = run(plan, Store(tmp_path, Result), quietly)

    def fail(*_: object) -> None:
        raise AssertionError("simulated again")

    monkeypatch.setattr(running, "play", fail)
    assert run(plan, Store(tmp_path, Result), quietly) == first
    assert [(point.policy, round(point.share, 6)) for point in first] == [
        ("foresight", 0.2),
        ("power-of-two", 0.2),
        ("foresight", 0.4),
        ("power-of-two", 0.4),
    ]


def test_2_an_interrupted_benchmark_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tiny(), workers=1)
    whole = run(plan, Store(tmp_path / "whole", Result), quietly)

    def interrupted(done: int, total: int, label: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, Store(tmp_path / "broken", Result), interrupted)
    assert len(Store(tmp_path / "broken", Result)) == 3
    told: list[int] = []
    again = run(plan, Store(tmp_path / "broken", Result), lambda done, total, label: told.append(done))
    assert again == whole
    assert told == list(range(3, 9))


def test_2_an_interrupt_leaves_no_process_behind(tmp_path: Path) -> None:
    cells = [replace(CELL, seed=seed) for seed in range(100, 104)]

    def interrupted(done: int, total: int, label: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, Store(tmp_path, Result), workers=2, tell=interrupted)
    assert multiprocessing.active_children() == []
    assert len(Store(tmp_path, Result)) == 1


def _dies_at_first(mark: str, name: str, cell: Cell) -> Result:
    """Ends its process the hard way, unless the file is there that it leaves behind."""
    if not Path(mark).exists():
        Path(mark).touch()
        os._exit(17)
    return Result(name, cell.policy, cell.rate_per_s, cell.seed, play(cell).figures, 0.0)


def _always_dies() -> Result:
    os._exit(17)


def test_2_a_process_that_dies_is_replaced(tmp_path: Path) -> None:
    cells = {digest(cell): cell for cell in (CELL, replace(CELL, seed=101))}
    mark = str(tmp_path / "died")
    jobs = {name: Job(partial(_dies_at_first, mark, name, cell), name) for name, cell in cells.items()}
    found = run_jobs(jobs, Store(tmp_path, Result), workers=2, tell=quietly)
    assert set(found) == set(cells)
    assert multiprocessing.active_children() == []


def test_2_processes_that_keep_dying_are_said_to_do_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "MOST_DEATHS", 0)
    jobs = {name: Job(_always_dies, name) for name in ("one", "other")}
    with pytest.raises(JobFailed, match="exit code 17"):
        run_jobs(jobs, Store(tmp_path, Result), workers=2, tell=quietly)


# --- 3 ---------------------------------------------------------------------------------------------------


def test_3_what_determines_a_cell_is_part_of_its_digest() -> None:
    h100, model = AcceleratorName("h100"), ModelName("Qwen3-8B")
    changed = [
        replace(CELL, policy="power-of-two"),
        replace(CELL, rate_per_s=4.5),
        replace(CELL, seed=101),
        replace(CELL, scenario=tiny(duration_s=5.0)),
        replace(CELL, scenario=tiny(lengths="fixed")),
        replace(CELL, scenario=tiny(beliefs=(Belief(h100, 2.0),))),
        replace(CELL, scenario=tiny(mishaps=(Mishap(1.0, model, h100, 0, "die"),))),
    ]
    assert len({digest(cell) for cell in (CELL, *changed)}) == 1 + len(changed)


def test_3_what_only_chooses_cells_is_not() -> None:
    others = tiny(name="other", about="Other words.", policies=("random",), rates=(Rate(0.5),), seeds=(7,))
    assert digest(replace(CELL, scenario=others)) == digest(CELL)


def test_3_the_code_that_decides_is_part_of_it(tmp_path: Path) -> None:
    file, copy = tmp_path / "decide.py", tmp_path / "copy.py"
    file.write_text("x = 1\n")
    shutil.copy(file, copy)
    before = hashed([("decide.py", file)])
    assert hashed([("decide.py", copy)]) == before
    assert hashed([("other.py", file)]) != before
    file.write_text("x = 2\n")
    assert hashed([("decide.py", file)]) != before
    assert len(code_digest()) == 12


def test_3_every_place_that_is_said_to_determine_results_exists() -> None:
    package = Path(running.__file__).parents[1]
    assert [place for place in DETERMINES if not (package / place).exists()] == []


# --- 4 ---------------------------------------------------------------------------------------------------


def test_4_a_torn_line_is_left_out(tmp_path: Path) -> None:
    store = Store(tmp_path, Result)
    run_cells([CELL], store, workers=1, tell=quietly)
    whole = store.file.read_text()
    store.file.write_text(whole + json.dumps({"type": "Result"}) + "\n" + whole.strip()[:40])
    again = Store(tmp_path, Result)
    assert len(again) == 1
    run_cells([CELL, replace(CELL, seed=101)], again, workers=1, tell=quietly)
    assert len(Store(tmp_path, Result)) == 2


# --- 5 ---------------------------------------------------------------------------------------------------


def test_5_bisection_measures_both_sides_of_every_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cells are real, their goodput is a falling line: what is looked for is known."""
    sample, real = play(CELL), limit_per_s(tiny())

    def line(cell: Cell) -> object:
        share = cell.rate_per_s / real
        goodput = max(0.0, min(1.0, 1.31 - 0.613 * share))
        return replace(sample, figures=replace(sample.figures, goodput=goodput))

    monkeypatch.setattr(running, "play", line)
    plan = Plan(tiny(), ("foresight",), (Rate(0.2), Rate(0.6)), (100,), 1)
    points = capacity(plan, Store(tmp_path, Result), quietly)
    for level in LEVELS:
        found = (1.31 - level) / 0.613
        near = [point.share for point in points if abs(point.share - found) <= 0.031]
        assert min(near) <= found <= max(near)
    assert all(0 <= mean(point.goodputs) <= 1 for point in points)
