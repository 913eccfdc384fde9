"""Nothing in the package runs what it was sent, and only the configuration reads the environment."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.architecture.sources import dotted, imported, modules, name, tree

# The last one is the program of an engine: its key comes as that of every llama.cpp does.
READERS = {"app/config.py", "app/embedded.py", "adapters/xllamacpp_server.py"}
SERIALISERS = {"dill", "marshal", "pickle", "shelve"}
CALLS = {"compile", "eval", "exec", "os.popen", "os.system", "__import__"}

every = pytest.mark.parametrize("file", modules(), ids=name)


@every
def test_no_serialiser_that_runs_code(file: Path) -> None:
    assert [found for found in imported(file) if found[1].partition(".")[0] in SERIALISERS] == []


@every
def test_no_text_becomes_code_or_a_shell_command(file: Path) -> None:
    calls = [node for node in ast.walk(tree(file)) if isinstance(node, ast.Call)]
    assert [call.lineno for call in calls if dotted(call.func) in CALLS or _asks_for_a_shell(call)] == []


@every
def test_only_the_configuration_reads_the_environment(file: Path) -> None:
    if name(file) in READERS:
        return
    assert [line for line in _environment_reads(tree(file)) if not _is_colour_choice(file, line)] == []


def _asks_for_a_shell(call: ast.Call) -> bool:
    return any(option.arg == "shell" and not _is_false(option.value) for option in call.keywords)


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def _environment_reads(module: ast.Module) -> list[int]:
    named = {"environ", "environb", "getenv", "getenvb"}
    lines = [
        node.lineno for node in ast.walk(module) if isinstance(node, ast.Attribute) and node.attr in named
    ]
    froms = [node for node in ast.walk(module) if isinstance(node, ast.ImportFrom) and node.module == "os"]
    return lines + [node.lineno for node in froms if any(alias.name in named for alias in node.names)]


def _is_colour_choice(file: Path, line: int) -> bool:
    return name(file).startswith("app/cli") and "NO_COLOR" in file.read_text().splitlines()[line - 1]
