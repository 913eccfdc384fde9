"""The public face of the package: its names, its types, its version."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from types import ModuleType

import tightrope
from tests.architecture.sources import PACKAGE, ROOT


def test_public_names_are_sorted_and_each_exists() -> None:
    assert list(tightrope.__all__) == sorted(set(tightrope.__all__))
    assert [name for name in tightrope.__all__ if not hasattr(tightrope, name)] == []


def test_the_package_alone_imports_nothing_of_ours() -> None:
    code = "import sys, tightrope; print([name for name in sys.modules if name.startswith('tightrope.')])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_nothing_is_public_by_accident() -> None:
    held = {name for name, value in vars(tightrope).items() if not isinstance(value, ModuleType)}
    assert {name for name in held if not name.startswith("_")} - {"annotations"} <= set(tightrope.__all__)


def test_types_are_there_for_users() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_the_change_log_knows_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
