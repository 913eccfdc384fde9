"""The engines of a duel: emulated ones of a scenario, or real ones of this machine that say what they are told.

Owns how they are set and started, and the measurement of the real ones.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tightrope.adapters.emulated_truth import Setting
from tightrope.adapters.engine_process import free_ports
from tightrope.adapters.process import Process
from tightrope.adapters.processor_share import ProcessorShares, find_mechanism
from tightrope.app import contenders
from tightrope.app.compose import engine_command
from tightrope.app.config import Config, parse_config
from tightrope.app.contenders import HOST
from tightrope.app.embedded import Say, cache_dir, ensure_engine
from tightrope.app.profiling import measure_pair
from tightrope.app.programs import ProgramFailed, Programs
from tightrope.bench.cell import Cell, cell_world
from tightrope.bench.duel import DuelCell
from tightrope.bench.duel_real import CONTEXT_TOKENS, MODEL, SHARES, SLOTS
from tightrope.bench.scenario import Scenario
from tightrope.model.codec import decode, encode
from tightrope.model.errors import InvalidInput
from tightrope.model.fleet import ReplicaSpec
from tightrope.model.ids import AcceleratorName, ModelName
from tightrope.model.json import Json
from tightrope.model.profile import Profile
from tightrope.sim.engine import Truth
from tightrope.sim.world import World

PROFILES_FILE = "profiles.json"
SCHEMA = "tightrope.duel-profiles/1"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An engine: what it serves, on which card, and where."""

    model: ModelName
    accelerator: AcceleratorName
    root: str

    @property
    def url(self) -> str:
        """Its base address."""
        return f"{self.root}/v1"


def world_of(scenario: Scenario) -> World:
    """The world of a scenario without any load: its replicas, what is true of them and what is believed."""
    return cell_world(Cell(scenario, "foresight", 1.0, 0), ())


def start_engines(programs: Programs, cell: DuelCell) -> list[Endpoint]:
    """One engine for each replica of the scenario, all ready; the same for every system. Raises ProgramFailed."""
    world = world_of(cell.scenario)
    truths = [world.truths[spec.model, spec.accelerator] for spec in world.replicas]
    if cell.scenario.measured:
        settings = _paced(programs, world.replicas, truths)
    else:
        settings = [
            Setting(spec.model, truth, time_scale=cell.time_scale, tokens_per_chunk=cell.tokens_per_chunk)
            for spec, truth in zip(world.replicas, truths, strict=True)
        ]
    ports = contenders.start_engines(programs, settings)
    return [
        Endpoint(spec.model, spec.accelerator, f"http://{HOST}:{port}")
        for spec, port in zip(world.replicas, ports, strict=True)
    ]


# --- real engines ----------------------------------------------------------------------------------------


def _paced(programs: Programs, replicas: Sequence[ReplicaSpec], truths: Sequence[Truth]) -> list[Setting]:
    """A llama.cpp server for each replica, with its part of a core, and what stands before it."""
    config = _config(programs.folder / "engines")
    shares = ProcessorShares(find_mechanism(), programs.folder, f"duel-{free_ports(1)[0]}")
    ports = free_ports(len(replicas))
    started = []
    for spec, port in zip(replicas, ports, strict=True):
        key = str(spec.accelerator)
        programs.stack.callback(_release, shares, key)  # after the engine has ended
        program = programs.start(f"llama-{key}", engine_command(config, spec, port))
        process = Process.of(program.process.pid)
        if process is None:
            raise ProgramFailed(f"{program.name} has ended at once; what it said is in {program.log}")
        shares.apply(key, SHARES[spec.accelerator], process)
        started.append(program)
    contenders.until_healthy(started, ports)
    return [
        Setting(spec.model, truth, paced_by=f"http://{HOST}:{port}")
        for spec, truth, port in zip(replicas, truths, ports, strict=True)
    ]


def _release(shares: ProcessorShares, key: str) -> None:
    asyncio.run(shares.release(key))


def measured_engines(folder: Path, say: Say) -> tuple[Profile, ...]:
    """The profiles of the real engines, measured where `folder` has none yet: rounds that shall be compared are of one
    measurement. Raises InvalidInput for a file that is none, ProfilingFailed, EngineFailed."""
    ensure_engine(cache_dir(), say)
    file = folder / PROFILES_FILE
    if file.is_file():
        return _read(file)
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(folder / "profiling")
    found = []
    for card, share in SHARES.items():
        say(f"profiling the engine with {share:.0%} of a core")
        measured = asyncio.run(
            measure_pair(config, MODEL, card, quick=True, check=False, fresh=True, progress=lambda *_: None)
        )
        if measured.profiled.refusal is not None:
            raise ProgramFailed(f"the engine on {card} cannot be measured now: {measured.profiled.refusal}")
        found.append(measured.profiled.profile)
    tree = {"schema": SCHEMA, "profiles": [cast(Json, encode(profile)) for profile in found]}
    file.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    return tuple(found)


def _read(file: Path) -> tuple[Profile, ...]:
    try:
        tree = json.loads(file.read_text("utf-8"))
        if tree["schema"] == SCHEMA:
            return tuple(decode(Profile, one) for one in tree["profiles"])
    except (ValueError, KeyError, TypeError, InvalidInput):
        pass  # half written, or of somebody else
    raise InvalidInput(
        f"{file} holds no profiles of a duel ({SCHEMA}); delete it, and they are measured anew"
    )


def _config(state: Path) -> Config:
    """A configuration of these engines alone."""
    tree = {
        "version": 1,
        "accelerators": {
            card: {"memory": "1GB", "count": 1, "share": f"{share:.0%}"} for card, share in SHARES.items()
        },
        "models": {
            MODEL: {
                "engine": {
                    "kind": "llamacpp",
                    "weights": "embedded:Q4_0",
                    "slots": SLOTS,
                    "context": f"{SLOTS * CONTEXT_TOKENS} tok",
                    "args": {"no-cache-prompt": True},
                },
                "place": {card: {"min": 1} for card in SHARES},
            }
        },
        "cluster": {"local": {"state": str(state)}},
    }
    return parse_config(json.dumps(tree), state / "duel.yaml", {}).config
