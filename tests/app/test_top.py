"""
`top` on the command line
1. Read once, or as it grows and cut wherever, a journal gives one and the same view; equal files give equal text.
2. A torn last line is waited for, a file that was replaced is read anew, and only its last session counts.
3. It goes on until Ctrl-C, and shows what has come.
4. What is no journal is refused with its reason; with --json there is one object.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench.tiny import tiny
from tightrope.app.cli import main
from tightrope.app.top import Followed, last_head, watch
from tightrope.bench.cell import cell_scripts
from tightrope.bench.day import Ask, day_world
from tightrope.bench.scenario import Elastic
from tightrope.kernel.journal import Head, head_line, read
from tightrope.kernel.state import KernelSettings
from tightrope.model.errors import InvalidInput, NotFound
from tightrope.model.ids import AcceleratorName
from tightrope.reports.top import Top, follow
from tightrope.reports.top_text import render
from tightrope.sim.driver import simulate


@cache
def journal_text() -> str:
    """A few seconds of an elastic fleet, simulated."""
    cards = (AcceleratorName("h100"), AcceleratorName("l40s"))
    ask = Ask(tiny(elastic=Elastic(tuple((card, 1.0) for card in cards))), 5.0, 1)
    runs = cell_scripts(ask.scenario, ask.rate_per_s, 1)
    lines: list[str] = []
    simulate(day_world(ask, runs), runs, journal=lines.append)
    return "".join(lines)


def whole() -> Top:
    """What the journal says in the end."""
    found = follow(read(journal_text().splitlines(keepends=True)))
    assert found is not None
    return found


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    file = tmp_path / "day.journal"
    file.write_text(journal_text())
    return file


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


# --- 1, 2 ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(cuts=st.lists(st.floats(0, 1), max_size=5))
def test_1_and_2_cut_wherever_the_view_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[float]
) -> None:
    data = journal_text().encode()
    file = tmp_path_factory.mktemp("cut") / "day.journal"
    file.touch()
    followed = Followed(file)
    begin = 0
    for end in [*sorted(round(cut * len(data)) for cut in cuts), len(data)]:
        with file.open("ab") as out:
            out.write(data[begin:end])
        begin = end
        followed.read()
    assert followed.top(None) == whole()
    followed.close()


def test_1_once_is_stable(journal: Path) -> None:
    first, second = (run("top", "--once", "--journal", str(journal)) for _ in range(2))
    assert first.exit_code == 0, first.stderr
    assert first.stderr == second.stderr
    assert first.stdout == ""
    assert first.stderr == render(whole()) + "\n"
    for said in ("USD/h", "draining", "Qwen3-8B", "provisioner least-cost, act", "under way", "on time"):
        assert said in first.stderr


def test_2_a_torn_line_is_no_damage(journal: Path) -> None:
    with journal.open("a") as out:
        out.write('{"t":1,"event":{"type":"Fir')
    assert run("top", "--once", "--journal", str(journal)).stderr == render(whole()) + "\n"


def test_2_only_the_last_session_counts(journal: Path) -> None:
    with journal.open("a") as out:
        out.write('{"t":1,"eve\n' + head_line(Head(KernelSettings(), 0.0, 5.0)))
    result = run("top", "--once", "--journal", str(journal))
    assert result.exit_code == 0
    assert "no run has come" in result.stderr
    assert "session of 0:00" in result.stderr


def test_2_a_file_that_was_replaced_is_read_anew(journal: Path) -> None:
    followed = Followed(journal)
    followed.read()
    other = journal.with_suffix(".new")
    other.write_text(head_line(Head(KernelSettings(), 0.0, 0.0)))
    other.rename(journal)
    followed.read()
    assert followed.top(None).runs == ()
    journal.write_text("")
    followed.read()
    with pytest.raises(NotFound, match="holds no session yet"):
        followed.top(None)
    journal.write_text(journal_text())
    followed.read()
    assert followed.top(None) == whole()
    journal.unlink()
    followed.read()
    assert followed.top(None) == whole()
    followed.close()


@given(before=st.text("a\n", max_size=30), sessions=st.integers(0, 3), after=st.text("b\n", max_size=30))
def test_2_the_last_head_is_found_wherever_pieces_end(
    tmp_path_factory: pytest.TempPathFactory, before: str, sessions: int, after: str
) -> None:
    file = tmp_path_factory.mktemp("heads") / "x"
    head = '{"schema":1}\n'
    text = before + "\n" + (head + "a\n") * sessions + after
    file.write_text(text)
    with pytest.MonkeyPatch.context() as patch, file.open("rb") as data:
        for size in (1, 3, 16, 1000):
            patch.setattr("tightrope.app.top.PIECE_BYTES", size)
            assert last_head(data) == max(0, text.rfind("\n" + head) + 1 if sessions else 0)


# --- 3 ---------------------------------------------------------------------------------------------------


def test_3_it_shows_what_has_come_until_ctrl_c(journal: Path) -> None:
    text = journal_text()
    half = text.index("\n", len(text) // 2) + 1
    journal.write_text(text[:half])
    followed = Followed(journal)
    followed.read()
    shown: list[str] = []

    def wait() -> None:
        if len(shown) == 2:
            raise KeyboardInterrupt
        with journal.open("a") as out:
            out.write(text[half:])

    watch(followed, shown.append, wait)
    followed.close()
    before = follow(read(text[:half].splitlines(keepends=True)))
    assert before is not None
    assert shown == [render(before), render(whole())]


# --- 4 ---------------------------------------------------------------------------------------------------


def test_4_json_is_one_object(journal: Path) -> None:
    result = run("top", "--journal", str(journal), "--json")
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert found["schema"] == "tightrope.top/1"
    assert [row["model"] for row in found["data"]["models"]] == ["Qwen3-8B"]
    assert sum(row["ended"] for row in found["data"]["runs"]) == sum(row.ended for row in whole().runs)
    assert found["data"]["said"][-1]["action"] == "up"


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (None, 3, "there is no journal"),
        ("", 3, "holds no session yet"),
        (head_line(Head(KernelSettings(), 0.0, 0.0)) + "{broken\n{broken\n", 2, "line 2 of the journal"),
    ],
)
def test_4_what_is_no_journal_is_refused(tmp_path: Path, text: str | None, code: int, said: str) -> None:
    file = tmp_path / "x.journal"
    if text is not None:
        file.write_text(text)
    result = run("top", "--once", "--journal", str(file))
    assert result.exit_code == code
    assert said in result.stderr


def test_4_without_a_journal_the_configured_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    models = "models: {m: {engine: {kind: openai}, replicas: [{url: 'http://127.0.0.1:1/v1', place: a}]}}"
    (tmp_path / "tightrope.yaml").write_text(
        f"version: 1\naccelerators: {{a: {{}}}}\n{models}\njournal: {{path: here.journal}}\n"
    )
    result = run("top", "--once")
    assert result.exit_code == 3
    assert "here.journal" in result.stderr
    (tmp_path / "here.journal").write_text(journal_text())
    assert run("top", "--once").stderr == render(whole()) + "\n"


def test_4_damage_that_comes_later_is_said() -> None:
    with pytest.raises(InvalidInput, match="line 2"):
        list(read([head_line(Head(KernelSettings(), 0.0, 0.0)), "{broken\n", '{"t":1}\n']))
