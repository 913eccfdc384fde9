"""
Simulations and benchmarks on the command line
1. `simulate` prints what came of one cell, as a table and as data; its journal can be explained and replayed.
2. `bench` writes a report in Markdown and JSON, goes on where it stopped, and says what moved since an older one.
3. Names that do not exist are answered with those that do, files with their line; exit codes are those of all verbs.
4. Ctrl-C ends it with 130, and with what to type to go on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.bench.tiny import TEXT
from tightrope.app.cli import main
from tightrope.kernel.journal import replay

BENCH = ("bench", "tiny.yaml", "--workers", "1", "--json")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small scenario; the process stands in it, and draws no pictures, which takes longest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tightrope.app.scenario_bench.can_draw", lambda: False)
    (tmp_path / "tiny.yaml").write_text(TEXT)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def data_of(result: Result) -> Any:
    (line,) = result.stdout.splitlines()
    return json.loads(line)["data"]


# --- 1 ---------------------------------------------------------------------------------------------------


def test_1_simulate_says_what_came_of_it(here: Path) -> None:
    result = run("simulate", "tiny.yaml", "--rate", "30%", "--seed", "3", "--json")
    assert result.exit_code == 0, result.stderr
    data = data_of(result)
    assert (data["scenario"], data["policy"], data["seed"]) == ("tiny", "foresight", 3)
    assert data["rate_per_s"] == pytest.approx(0.3 * data["stability_limit_per_s"])
    assert data["figures"]["runs"] == sum(part["figures"]["runs"] for part in data["parts"]) > 0
    for said in ("tiny: foresight at", "30% of the stability limit", "TTFT p50", "share per accelerator"):
        assert said in result.stderr


def test_1_its_journal_can_be_explained_and_replayed(here: Path) -> None:
    result = run("simulate", "tiny.yaml", "--rate", "6 req/s", "--journal", "tiny.journal")
    assert "tightrope explain last-late --journal tiny.journal" in result.stderr
    assert "chat" in run("explain", "last", "--journal", "tiny.journal").stderr
    with (here / "tiny.journal").open() as lines:
        assert replay(lines) is None


def test_1_equal_words_give_equal_data(here: Path) -> None:
    words = ("simulate", "tiny.yaml", "--policy", "random", "--duration", "3s", "--json")
    assert data_of(run(*words)) == data_of(run(*words))


# --- 2 ---------------------------------------------------------------------------------------------------


def test_2_bench_writes_a_report_and_goes_on_where_it_stopped(here: Path) -> None:
    first = run(*BENCH)
    assert first.exit_code == 0, first.stderr
    folder = here / "bench-results" / "tiny"
    page, kept = (folder / "report.md").read_text(), (folder / "cells.jsonl").read_text()
    assert page.startswith("# tiny\n")
    assert json.loads((folder / "report.json").read_text()) == data_of(first)
    assert len([line for line in kept.splitlines() if line]) == 8
    assert "no pictures: they need matplotlib" in first.stderr
    again = run(*BENCH, "--compare", str(folder / "report.json"))
    assert data_of(again) == data_of(first)
    assert "nothing moved beyond its interval" in again.stderr
    assert (folder / "cells.jsonl").read_text() == kept
    more = run(
        *BENCH, "--seeds", "100-102", "--policies", "foresight", "--rates", "20%", "--out", str(folder)
    )
    assert more.exit_code == 0, more.stderr
    assert len([line for line in (folder / "cells.jsonl").read_text().splitlines() if line]) == 9


def test_2_what_moved_is_said(here: Path) -> None:
    old = data_of(run(*BENCH))
    for point in old["report"]["points"]:
        point["goodput"] = {"value": 0.5, "low": 0.4, "high": 0.6}
    (here / "old.json").write_text(json.dumps(old))
    result = run(*BENCH, "--compare", "old.json")
    assert "| foresight | 20% load | goodput | 0.500 [0.400, 0.600] |" in result.stderr


# --- 3 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("bench", "mixd"), 3, "did you mean 'mixed'"),
        (("bench", "nothing-like-it"), 3, "credibility"),
        (("bench", "missing.yaml"), 3, "no scenario 'missing.yaml'"),
        (("bench", "tiny.yaml", "--policies", "forsight"), 2, "did you mean 'foresight'"),
        (("bench", "tiny.yaml", "--rates", "5"), 2, "an arrival rate is written like 6 req/s"),
        (("bench", "tiny.yaml", "--seeds", "x"), 2, "no seed and no range of seeds"),
        (("bench", "tiny.yaml", "--compare", "none.json"), 3, "no report none.json"),
        (("bench", "tiny.yaml", "--compare", "tiny.yaml"), 2, "is no JSON"),
        (("bench", "goodput", "--compare", "none.json"), 2, "looks at one scenario"),
        (("bench", "paper", "--seeds", "x"), 2, "no seed and no range of seeds"),
        (("bench", "live", "--policies", "forsight"), 2, "there is no policy"),
        (("simulate", "mixd"), 3, "did you mean 'mixed'"),
        (("simulate", "tiny.yaml", "--policy", "fmware-*"), 2, "names"),
        (("simulate", "tiny.yaml", "--rate", "50"), 2, "req/s"),
        (("simulate", "tiny.yaml", "--duration", "1s"), 2, "nothing is left"),
        (("simulate", "tiny.yaml", "--journal", "no/folder/j"), 5, "cannot be written"),
    ],
)
def test_3_mistakes_are_answered_with_what_to_write(
    here: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    result = run(*words)
    assert said in result.stderr
    assert result.exit_code == code


def test_3_a_bad_file_is_drawn_with_its_line(here: Path) -> None:
    (here / "tiny.yaml").write_text(TEXT.replace("duration: 4s", "duraton: 4s"))
    result = run("bench", "tiny.yaml")
    assert result.exit_code == 2
    assert "tiny.yaml:10:1  unknown_key" in result.stderr
    assert "duraton: 4s" in result.stderr
    assert 'write "duration"' in result.stderr


# --- 4 ---------------------------------------------------------------------------------------------------


def test_4_ctrl_c_says_how_to_go_on(here: Path) -> None:
    # So many cells that it is still at work when the signal comes, however late that is.
    (here / "long.yaml").write_text(TEXT.replace("seeds: 100-101", "seeds: 100-149"))
    command = [sys.executable, "-m", "tightrope.app.cli", "bench", "long.yaml", "--workers", "2"]
    folder = Path("bench-results") / "long"
    with (
        _heeding_ctrl_c(),
        subprocess.Popen(
            command,
            cwd=here,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE,
            text=True,
        ) as bench,
    ):
        assert bench.stderr is not None
        said = ""
        for line in bench.stderr:
            if "of 200 done" in line and "of 200 done" not in said:
                bench.send_signal(signal.SIGINT)
            said += line
        bench.wait(timeout=180)
    assert bench.returncode == 130, said
    assert f"kept in {folder}; go on with: tightrope bench long.yaml --workers 2" in said
    assert (here / folder / "cells.jsonl").is_file()
    assert "Traceback" not in said


@contextmanager
def _heeding_ctrl_c() -> Iterator[None]:
    """A shell lets what it runs in the background ignore Ctrl-C, and that would be inherited; a handler is not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
