"""The direction of imports, as the contracts in pyproject.toml state it, holds in the sources."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib

from tests.architecture.sources import PACKAGE, ROOT, modules

CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


LINT = """
import sys
from importlinter.cli import lint_imports
sys.exit(lint_imports(config_filename=sys.argv[1], no_cache=True, no_logo=True))
"""


def test_every_contract_on_imports_is_kept() -> None:
    # In a process of its own: the linter sets up logging anew, which would silence the loggers of other tests.
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", LINT, str(ROOT / "pyproject.toml")]
    linted = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout


def test_every_package_has_its_level() -> None:
    levels = next(contract for contract in CONTRACTS if contract["type"] == "layers")["layers"]
    placed = {name.strip(" ()") for level in levels for name in level.split("|")}
    packages = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in modules()} - {"__init__"}
    assert packages <= placed


def test_no_package_of_ours_may_import_the_application() -> None:
    barred = next(
        contract for contract in CONTRACTS if contract.get("forbidden_modules") == ["tightrope.app"]
    )
    packages = {f"tightrope.{file.parent.name}" for file in PACKAGE.glob("*/__init__.py")}
    assert packages - {"tightrope.app"} <= set(barred["source_modules"])
