"""Pinned packages: files of a package index, taken only when their hash is the one we know.

Owns running pip and other programs for an installation and saying in one sentence why it failed. Which
packages there are stands in `embedded_parts/`; what is done with them is decided in `embedded.py`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tightrope.model.errors import TightropeError

PARTS = Path(__file__).parent / "embedded_parts"

PAUSES_S = (5.0, 20.0)
"""Before each further attempt at what pip could not get: a network, or an index, may be away for a moment."""

_THIS_PYTHON = Path(sys.executable)
_LASTING = ("No module named pip", "No space left")
_UNREACHABLE = (
    "NewConnectionError",
    "Temporary failure",
    "ConnectTimeout",
    "ProxyError",
    "Connection refused",
)


class InstallationFailed(TightropeError):
    """Something the embedded default needs cannot be had here; the message names the reason and the cure."""


def download(requirements: str, folder: Path, *options: str, python: Path = _THIS_PYTHON) -> Path:
    """The one package file that `requirements` names, put into `folder`. Raises InstallationFailed."""
    _pip(python, requirements, "download", "--dest", str(folder), *options)
    return next(folder.iterdir())


def install(requirements: str, *options: str, python: Path = _THIS_PYTHON) -> None:
    """Install what `requirements` names, all of it and nothing else. Raises InstallationFailed."""
    _pip(python, requirements, "install", *options)


def run(command: list[str], cure: str) -> None:
    """Run a program to its end. Raises InstallationFailed with `cure` and the end of what it printed."""
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    if said.returncode:
        tail = (said.stdout + said.stderr).strip()[-800:]
        raise InstallationFailed(f"{Path(command[0]).name} failed: {tail}\n  {cure}")


def _pip(python: Path, requirements: str, verb: str, *options: str) -> None:
    command = [str(python), "-m", "pip", verb, "--quiet", "--disable-pip-version-check", "--no-input"]
    pinned = ["--no-deps", "--require-hashes", "--requirement", str(PARTS / requirements)]
    for pause_s in (*PAUSES_S, None):
        said = subprocess.run([*command, *options, *pinned], capture_output=True, text=True, check=False)
        if not said.returncode:
            return
        # A file that was cut off on its way has another hash, so that is no lasting reason.
        if pause_s is None or any(sign in said.stderr for sign in _LASTING):
            raise InstallationFailed(pip_sentence(requirements, said.stderr))
        time.sleep(pause_s)


def pip_sentence(requirements: str, said: str) -> str:
    """Why pip failed and what to do about it, from what it printed on standard error."""
    last = next((line for line in reversed(said.splitlines()) if "ERROR" in line), said.strip()[-300:])
    if "No module named pip" in said:
        return "this Python has no pip; install it with `python -m ensurepip`"
    if "DO NOT MATCH THE HASHES" in said:
        return (
            f"the package index offers another file than {requirements} pins and it was not taken; "
            "look at pip's index settings"
        )
    if "No space left" in said:
        return "the disk is full; free some space and start again"
    if any(sign in said for sign in _UNREACHABLE):
        return f"the package index cannot be reached; look at the network and at pip's settings ({last})"
    return f"pip could not get what {requirements} names; look at the network and at pip's settings ({last})"
