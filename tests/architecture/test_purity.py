"""
Laws of the pure packages: model, policy, kernel, profiler/fit.py
1. They import the standard library and Tightrope, nothing else.
2. They import no module that knows the time, the machine, the network or other threads.
3. They never ask what time it is, draw from the global random generator, print, or open a file.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.architecture.sources import dotted, imported, modules, name, tree

PURE = modules("model", "policy", "kernel", "profiler/fit.py")
WORLDLY = {
    "asyncio", "concurrent", "ctypes", "fcntl", "glob", "http", "io", "logging", "multiprocessing", "os",
    "pathlib", "queue", "secrets", "select", "shutil", "signal", "socket", "sqlite3", "subprocess",
    "tempfile", "threading", "time", "urllib", "uuid",
}  # fmt: skip
ASKS = {"open", "print", "input", "breakpoint"}
CLOCKS = {"now", "utcnow", "today"}

pure = pytest.mark.parametrize("file", PURE, ids=name)


def test_the_pure_packages_are_found() -> None:
    assert {file.parent.name for file in PURE} >= {"model", "policy", "kernel", "profiler"}


@pure
def test_1_only_the_standard_library_is_imported(file: Path) -> None:
    known = sys.stdlib_module_names | {"tightrope"}
    assert [found for found in imported(file) if found[1].partition(".")[0] not in known] == []


@pure
def test_2_no_module_of_the_outer_world_is_imported(file: Path) -> None:
    assert [found for found in imported(file) if found[1].partition(".")[0] in WORLDLY] == []


@pure
def test_3_no_clock_no_global_chance_no_output(file: Path) -> None:
    assert [
        found for found in imported(file) if found[1].startswith("random.") and found[1] != "random.Random"
    ] == []
    assert [ast.unparse(node) for node in ast.walk(tree(file)) if _reaches_out(node)] == []


def _reaches_out(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=called)):
            return called in ASKS
        case ast.Call(func=ast.Attribute(attr=called) as owner) if called in CLOCKS:
            return dotted(owner.value).rpartition(".")[2] in {"datetime", "date"}
        case ast.Attribute(value=ast.Name(id="random"), attr=used):
            return used != "Random"
        case _:
            return False
