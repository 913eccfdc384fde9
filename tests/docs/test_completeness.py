"""Documents that list something list all of it, and what they list exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.architecture.sources import PACKAGE, ROOT
from tests.docs.pages import shown
from tightrope.gateway.errors import ENTRIES
from tightrope.model.outcome import FailureKind, Outcome, Verdict
from tightrope.policy import ROUTERS

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
PARTS = ("Context", "Decision", "Consequences", "Non-goals", "Status")


def test_every_file_in_the_table_of_files_exists() -> None:
    table = CONTRIBUTING.partition("## File -> purpose")[2].partition("\n## ")[0]
    named = re.findall(r"`((?:src|examples|schema|requirements|tests)/[\w./]*)`", table)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_package_is_in_both_tables() -> None:
    levels = CONTRIBUTING.partition("## Who may import whom")[2].partition("\n## ")[0]
    packages = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    assert {name for name in packages if f"`src/tightrope/{name}/`" not in CONTRIBUTING} == set()
    assert {name for name in packages if f"`{name}`" not in levels} == set()


def test_the_page_on_serving_lists_every_error_with_its_status() -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    row_by_code = {
        code: row
        for row in page.splitlines()
        if re.match(r"\| \d{3}", row)
        for code in re.findall(r"`(\w+)`", row)
    }
    assert set(row_by_code) == {entry.code for entry in ENTRIES}
    assert [one.code for one in ENTRIES if str(one.status) not in row_by_code[one.code].split("|")[1]] == []


def test_the_glossary_knows_every_way_to_end() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    ends: list[str] = [*FailureKind, *Outcome, *Verdict]
    assert [end for end in ends if f"`{end}`" not in page] == []


def test_the_readme_names_every_policy() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in ROUTERS if f"`{name}`" not in readme] == []


def test_the_list_of_decisions_has_them_all() -> None:
    listed = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    titles = [page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ") for page in DECISIONS]
    lines = [
        f"{title.partition('. ')[0]}. [{title.partition('. ')[2]}]({page.name})"
        for title, page in zip(titles, DECISIONS, strict=True)
    ]
    assert [line for line in listed.splitlines() if "](" in line] == lines


@pytest.mark.parametrize("page", DECISIONS, ids=shown)
def test_a_decision_has_all_its_parts_in_order(page: Path) -> None:
    assert tuple(re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)) == PARTS
