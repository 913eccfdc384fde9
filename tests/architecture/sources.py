"""Where the package's sources lie, and their syntax trees, for the tests of the architecture."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "tightrope"


def modules(*places: str) -> list[Path]:
    """Every Python file under the given places of the package; under all of it when none is given."""
    roots = [PACKAGE / place for place in places] or [PACKAGE]
    return sorted(file for root in roots for file in ([root] if root.suffix else root.rglob("*.py")))


def name(file: Path) -> str:
    """The file as a test shows it."""
    return file.relative_to(PACKAGE).as_posix()


@cache
def tree(file: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything the file imports."""
    for node in ast.walk(tree(file)):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom():
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def dotted(node: ast.expr) -> str:
    """`a.b.c` as it is written, or the empty string when the expression is no plain dotted name."""
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            owner = dotted(node.value)
            return f"{owner}.{node.attr}" if owner else ""
        case _:
            return ""
