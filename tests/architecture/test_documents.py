"""Files that people read: links lead somewhere, and nothing private or passing is in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT

FOLDERS = ("baselines", "src", "tests", "docs", "examples", "requirements", "scenarios")
TEXT = {
    ".cfg",
    ".css",
    ".html",
    ".in",
    ".json",
    ".js",
    ".md",
    ".py",
    ".sh",
    ".sql",
    ".toml",
    ".txt",
    ".yaml",
    ".yml",
    "",
}
PROSE = {".md", ".py"}

# In pieces, so that this file does not hold what it looks for.
REGISTRIES = [".".join(host) for host in (
    ("pypi", "org"), ("pythonhosted", "org"), ("registry", "npmjs"), ("deb", "debian"), ("crates", "io"),
)]  # fmt: skip
PLACES = [
    "/".join(place) for place in (("", "work", ""), ("", "root", ""), ("", "tmp", "venv"), ("", "tmp", "whl"))
]
TICKET = re.compile(
    r"\b(?:issue|ticket|milestone|pull request|PR)s?\s+#?\d+|(?<![\w&/#])#\d{1,5}\b", re.IGNORECASE
)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")


def _files() -> list[Path]:
    top = [file for file in ROOT.iterdir() if file.is_file()]
    deep = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*") if file.is_file()]
    return sorted(file for file in top + deep if file.suffix in TEXT and "__pycache__" not in file.parts)


def _shown(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


FILES = _files()
every = pytest.mark.parametrize("file", FILES, ids=_shown)


@every
def test_no_address_of_a_registry_or_of_one_machine(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert [found for found in (*REGISTRIES, *PLACES) if found in text] == []


@pytest.mark.parametrize("file", [file for file in FILES if file.suffix in PROSE], ids=_shown)
def test_no_ticket_numbers(file: Path) -> None:
    assert TICKET.findall(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("file", [file for file in FILES if file.suffix == ".md"], ids=_shown)
def test_links_lead_to_files_that_exist(file: Path) -> None:
    links = LINK.findall(file.read_text(encoding="utf-8"))
    assert [link for link in links if not (file.parent / link).exists()] == []
