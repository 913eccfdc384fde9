"""A duel: live systems under equal loads on the same emulated engines, and what the simulator says of each.

Owns what is compared, when two rounds are the same, and when one counts. What a round is made of lies in
`duel_load.py` and `duel_figures.py`, what all say together in `duel_report.py`; playing them is the application's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

import tightrope
from tightrope.bench.cell import Cell, bill, cell_world, profiles, window
from tightrope.bench.duel_load import duel_runs
from tightrope.bench.library import DATA, scenarios_folder
from tightrope.bench.metrics import Figures, figures
from tightrope.bench.run import Job, Tell, run_jobs
from tightrope.bench.scenario import Scenario
from tightrope.bench.store import Result, Store, digest, hashed
from tightrope.model.codec import encode
from tightrope.model.errors import InvalidInput
from tightrope.sim.driver import simulate

BUSIEST, BUSIEST_OWN = 0.70, 0.90
"""A round in which the processor was busier than this compares proxies and not decisions, and does not count. Where the
engines are real ones of this machine, their own work is most of it, and nothing can be made slower."""
SLOWER = 1.5
"""It is played again with everything so many times as slow."""
ATTEMPTS = 3
"""So often in all; then it stays as it is, and the report says so."""
ROUNDS_FILE, PREDICTIONS_FILE = "rounds.jsonl", "predictions.jsonl"

_LOAD = ("bench/duel_load.py", "bench/duel_client.py", "bench/duel_figures.py", "bench/metrics.py", "bench/traces.py",
         "bench/workflows.py", "bench/hardware.py", "bench/cell.py", "sim", "model")  # fmt: skip
_ENGINE = ("adapters/engine_emulated.py", "adapters/emulated_answers.py", "adapters/emulated_calls.py",
           "adapters/emulated_desk.py", "adapters/emulated_paced.py",
           "adapters/emulated_clockwork.py", "adapters/emulated_http.py", "adapters/emulated_truth.py",
           "adapters/emulated_wire.py")  # fmt: skip
_OURS = ("policy", "kernel", "flow", "runtime", "gateway", "adapters/engine_openai.py", "adapters/http_stream.py",
         "adapters/sse.py")  # fmt: skip


@dataclass(frozen=True, slots=True)
class System:
    """Something that serves workflows. `policy` is Tightrope's, or the one that the simulator has for a peer's."""

    name: str
    kind: Literal["tightrope", "ray-serve"]
    policy: str
    is_haproxy: bool = False


SYSTEMS: dict[str, System] = {
    one.name: one
    for one in (
        System("foresight", "tightrope", "foresight"),
        System("fmware-greedy", "tightrope", "fmware-greedy"),
        System("fmware-target", "tightrope", "fmware-target"),
        System("power-of-two", "tightrope", "power-of-two"),
        System("ray-serve", "ray-serve", "power-of-two"),
        System("ray-serve-haproxy", "ray-serve", "power-of-two", is_haproxy=True),
    )
}
"""What can be compared, by name: Tightrope under four of its policies, Ray Serve in both of its modes."""
PEERS = ("ray-serve", "ray-serve-haproxy")


@dataclass(frozen=True, slots=True)
class DuelCell:
    """One system under one load; `time_scale` 4 means that everything takes four times as long as it would."""

    scenario: Scenario
    system: str
    rate_per_s: float
    seed: int
    time_scale: float
    tokens_per_chunk: int

    @property
    def busiest(self) -> float:
        """How busy the processor may be."""
        return BUSIEST_OWN if self.scenario.measured else BUSIEST

    @property
    def slower(self) -> DuelCell:
        """The same with more time for everything."""
        return replace(self, time_scale=round(SLOWER * self.time_scale, 3))

    def __str__(self) -> str:
        return f"{self.system} {self.rate_per_s:.2f} runs/s seed {self.seed} at {self.time_scale:g}x"


@dataclass(frozen=True, slots=True)
class Round:
    """What came of a cell. `figures` are in seconds of the scenario: those of the wall over the time scale.

    `busy` is the share of all processors that was in use while runs arrived, by anybody, and `own` the part of it that
    the duel's own programs used. `late_p99_s` is how much later than planned the client sent, on the wall. `work` is
    what engines read and said, in tokens, over what the whole runs need: 1 when every run was whole.
    """

    digest: str
    system: str
    rate_per_s: float
    seed: int
    time_scale: float
    busy: float
    own: float
    late_p99_s: float
    work: float
    figures: Figures
    took_s: float
    busiest: float = BUSIEST

    @property
    def counts(self) -> bool:
        """Whether decisions were compared and not the speed of proxies."""
        return self.busy <= self.busiest


def chosen_systems(names: Sequence[str]) -> tuple[str, ...]:
    """The systems that were asked for, all if none. Raises InvalidInput, which lists them, for an unknown one."""
    unknown = [name for name in names if name not in SYSTEMS]
    if unknown:
        raise InvalidInput(f"a duel knows no system {unknown[0]!r}; name some of: {', '.join(SYSTEMS)}")
    return tuple(dict.fromkeys(names)) or tuple(SYSTEMS)


def check_scenario(scenario: Scenario) -> None:
    """Raises InvalidInput for a scenario with something that live systems are not told of, or workflows not theirs."""
    strange = {stream.workflow for stream in scenario.streams} - {"rag", "shop"}
    if scenario.recording is not None or strange:
        named = scenario.recording or ", ".join(sorted(strange))
        raise InvalidInput(f"Ray Serve has the workflows rag and shop only, and {scenario.name} has {named}")
    if scenario.mishaps or scenario.beliefs or scenario.elastic or scenario.telemetry_delay_s:
        raise InvalidInput(
            f"{scenario.name} has faults, wrong beliefs or an elastic fleet; duels have none of them"
        )


def in_turn(systems: Sequence[str], number: int) -> list[str]:
    """The systems in the order of round `number`: each begins as often as the others."""
    turn = number % len(systems)
    return [*systems[turn:], *systems[:turn]]


# --- what makes two rounds the same ----------------------------------------------------------------------


def round_digest(cell: DuelCell, peer_folder: Path) -> str:
    """Sixteen hex digits over everything that determines a round. What Tightrope decides is no part of a peer's."""
    unnamed = replace(cell, scenario=cell.scenario.unnamed)
    is_peer = SYSTEMS[cell.system].kind == "ray-serve"
    return hashed([("cell", _text(unnamed)), *_sources(peer_folder if is_peer else None)], width=16)


def _text(cell: DuelCell) -> bytes:
    return repr(encode(cell)).encode()


@cache
def _sources(peer_folder: Path | None) -> tuple[tuple[str, Path], ...]:
    package, data = Path(tightrope.__file__).parent, scenarios_folder() / DATA
    parts = (*_LOAD, *_ENGINE, *(_OURS if peer_folder is None else ()))
    files = [file for part in parts for file in _files(package / part)]
    named = [(file.relative_to(package).as_posix(), file) for file in files]
    named += [(file.name, file) for file in _files(data)]
    if peer_folder is not None:
        named += [(file.name, file) for file in _files(peer_folder) if file.suffix in {".py", ".txt"}]
    return tuple(sorted(named))


def _files(place: Path) -> Iterable[Path]:
    if place.is_file():
        return [place]
    return (file for file in place.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


# --- what the simulator says -----------------------------------------------------------------------------


Load = tuple[str, float, int]
"""A policy, runs per second, and a seed."""


PLAYS = 5
"""A policy that draws lots is simulated so often, with other lots each time: live, nobody knows which were drawn."""
_DRAWS_LOTS = "power-of-two"


def predictions(
    scenario: Scenario, loads: Sequence[Load], store: Store[Result], workers: int, tell: Tell
) -> dict[Load, tuple[Figures, ...]]:
    """The same runs under the same policies, simulated, some several times; what the store has is not done again."""
    names = {
        (load, play): _prediction_digest(scenario, load, play)
        for load in loads
        for play in range(PLAYS if load[0] == _DRAWS_LOTS else 1)
    }
    jobs = {
        name: Job(
            partial(_predicted, name, scenario, load, play), f"{load[0]} {load[1]:.2f} runs/s seed {load[2]}"
        )
        for (load, play), name in names.items()
    }
    found = run_jobs(jobs, store, workers, tell)
    return {
        load: tuple(found[name].figures for (other, _), name in names.items() if other == load)
        for load in loads
    }


def _prediction_digest(scenario: Scenario, load: Load, play: int) -> str:
    policy, rate_per_s, seed = load
    return digest(Cell(scenario, policy, rate_per_s, seed), "duel", play, sources=("bench/duel_load.py",))


def _predicted(name: str, scenario: Scenario, load: Load, play: int) -> Result:
    policy, rate_per_s, seed = load
    began_s = time.process_time()
    runs = duel_runs(scenario, rate_per_s, seed)
    world = cell_world(Cell(scenario, policy, rate_per_s, seed), runs)
    settings = replace(world.settings, seed=seed + 1000 * play)
    records = simulate(replace(world, settings=settings), runs)
    found = figures(records, window(scenario), profiles(scenario), bill(scenario))
    return Result(name, policy, rate_per_s, seed, found, round(time.process_time() - began_s, 3))
