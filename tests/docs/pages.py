"""The documents people read, and the fenced blocks in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.architecture.sources import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"`(?P<file>[\w./-]+)`:$")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block. `line` is that of its first line; `file` what the text above it calls it, or ""."""

    language: str
    text: str
    line: int
    file: str


def shown(page: Path) -> str:
    """The page as a test shows it."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[Block]:
    """Every fenced block of one language, in order."""
    whole = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(whole):
        before = whole[: match.start()]
        named = _FILE.search(before.rstrip())
        line = before.count("\n") + 2
        found.append(Block(match["language"], match["text"], line, named["file"] if named else ""))
    return [block for block in found if block.language == language]
