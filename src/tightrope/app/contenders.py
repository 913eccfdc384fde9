"""What comparisons with other systems have in common: emulated engines, `tightrope serve`, environments of peers.

Owns how each is started and when it is ready. What is compared, and how it is set, is said by `duel_systems.py` and
`overhead_systems.py`; starting and ending processes is `programs.py`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tightrope.adapters.emulated_truth import Setting, command_line
from tightrope.adapters.engine_process import free_ports
from tightrope.adapters.store_sqlite import SqliteStore
from tightrope.app import pinned
from tightrope.app.embedded import Say, cache_dir
from tightrope.app.programs import Program, Programs, answers
from tightrope.bench.library import scenarios_folder
from tightrope.model.errors import NotFound
from tightrope.model.json import Json
from tightrope.model.profile import Profile

HOST = "127.0.0.1"
READY_WITHIN_S = 60.0


def start_engines(programs: Programs, settings: Sequence[Setting]) -> list[int]:
    """An emulated engine for each setting, all ready; their ports. Raises ProgramFailed."""
    ports = free_ports(len(settings))
    started = [
        programs.start(f"engine-{number}-{setting.name}", command_line(setting, port))
        for number, (setting, port) in enumerate(zip(settings, ports, strict=True), start=1)
    ]
    until_healthy(started, ports)
    return ports


def until_healthy(started: Sequence[Program], ports: Sequence[int]) -> None:
    """Return when the engine at each of these ports says that it is well. Raises ProgramFailed."""
    for program, port in zip(started, ports, strict=True):
        program.until(partial(answers, f"http://{HOST}:{port}/health"), READY_WITHIN_S)


def tightrope_command(folder: Path, config: Mapping[str, Json], profiles: Iterable[Profile]) -> list[str]:
    """The start line of `tightrope serve` with this configuration in `folder`, which believes these profiles."""
    state = folder / "state"
    state.mkdir()
    store = SqliteStore(state / "tightrope.sqlite")
    for profile in profiles:
        store.save_profile(profile)
    store.close()
    file = folder / "tightrope.yaml"
    kept = {"cluster": {"local": {"state": "./state"}}, "journal": {"path": "./tightrope.journal"}}
    file.write_text(json.dumps({"version": 1, **config, **kept}, indent=1), encoding="utf-8")
    return [sys.executable, "-m", "tightrope.app.cli", "--config", str(file), "serve"]


def peer_folder(name: str) -> Path:
    """Where a peer lies: its requirements, and its application if it has one. Raises NotFound outside of a checkout."""
    folder = scenarios_folder().parent / "baselines" / name
    if not folder.is_dir():
        raise NotFound(f"there is no {folder}; run this from a checkout of the project")
    return folder


def ensure_environment(name: str, requirements: Path, say: Say, size: str = "") -> Path:
    """The folder with the programs of an environment that has all of `requirements`, made in the user's cache as
    `name` when it is missing or has others. Raises InstallationFailed."""
    folder = cache_dir() / name
    installed = folder / "installed.txt"
    if not installed.is_file() or installed.read_bytes() != requirements.read_bytes():
        say(f"installing {name} into {folder} ({size}once)")
        shutil.rmtree(folder, ignore_errors=True)
        pinned.run([sys.executable, "-m", "venv", str(folder)], "Debian: apt-get install python3-venv")
        pinned.install(str(requirements), python=folder / "bin" / "python")
        shutil.copyfile(requirements, installed)
    return folder / "bin"
