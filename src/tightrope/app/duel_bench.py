"""`bench duel`: Tightrope and Ray Serve under the same load on the same emulated engines, one after the other.

Owns the course of a round and of all rounds, what is kept of them, and the files of the report. The programs are
`duel_systems.py`, the load and its figures `bench/duel_load.py` and `bench/duel_figures.py`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tightrope.app import ray_serve
from tightrope.app.cli.frame import Answer, Common
from tightrope.app.contenders import HOST, peer_folder
from tightrope.app.duel_engines import Endpoint, measured_engines, start_engines
from tightrope.app.duel_systems import start_system
from tightrope.app.embedded import Say
from tightrope.app.programs import (
    ProgramFailed,
    Programs,
    end_marked,
    text_at,
    told_like_ctrl_c,
    used_seconds,
)
from tightrope.app.progress import bar
from tightrope.app.scenario_bench import RESULTS, Options, in_words, resumable, write_page, writing_into
from tightrope.bench import duel_real
from tightrope.bench.cell import limit_per_s
from tightrope.bench.duel import (
    ATTEMPTS,
    PREDICTIONS_FILE,
    ROUNDS_FILE,
    SYSTEMS,
    DuelCell,
    Round,
    check_scenario,
    chosen_systems,
    in_turn,
    predictions,
    round_digest,
)
from tightrope.bench.duel_client import Seen
from tightrope.bench.duel_figures import (
    Work,
    busy_share,
    lateness_p99_s,
    live_figures,
    planned_tokens,
    read_seen,
    work_of,
)
from tightrope.bench.duel_load import duel_runs, requests
from tightrope.bench.duel_report import LEVELS, DuelReport, duel_report
from tightrope.bench.duel_text import duel_json, duel_markdown, duel_summary
from tightrope.bench.intervals import mean
from tightrope.bench.library import load_scenario
from tightrope.bench.plots import NO_PICTURES, can_draw, draw
from tightrope.bench.run import per_s_of
from tightrope.bench.scenario import Rate, Scenario
from tightrope.bench.scenario_form import parse_rate, parse_seeds
from tightrope.bench.search import next_shares
from tightrope.bench.store import Result, Store, code_digest
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import AcceleratorName
from tightrope.model.units import seconds
from tightrope.sim.script import RunScript

TIME_SCALE = 4.0
TOKENS_PER_CHUNK = 8
SHARES = (0.15, 0.25, 0.40, 0.70, 0.85, 0.95)
SEEDS = (100,)
TOLERANCE = 0.05
"""Bisection ends when two rates around a level are this close; a live round takes minutes."""
PATIENCE_S = 60.0
"""So long after the last arrival, in seconds of the scenario, the client waits for what is still under way."""
_WARM_UP_GAP_S = 0.5
_WORKERS = 2
_STAT = Path("/proc/stat")


@dataclass(frozen=True, slots=True)
class Duel:
    """What is compared, and where its files go."""

    scenario: Scenario
    systems: tuple[str, ...]
    rates: tuple[Rate, ...]
    seeds: tuple[int, ...]
    time_scale: float
    folder: Path

    @property
    def mark(self) -> str:
        """What the programs of this duel carry."""
        return str(self.folder.resolve())


def bench_duel(common: Common, options: Options) -> Answer:
    """Play what is missing, simulate the same, write the report. Interrupted, it goes on where it stopped."""
    duel = _planned(options, common.say)
    if any(SYSTEMS[name].kind == "ray-serve" for name in duel.systems):
        ray_serve.ensure_ray(common.say)
    end_marked(duel.mark)  # what a killed duel has left
    store = Store(duel.folder, Round, ROUNDS_FILE)
    with told_like_ctrl_c(), resumable(common, "duel", options, duel.folder):
        _say_how_long(common, duel)
        rounds = _rounds(common, duel, store, options.is_capacity)
        found = _report(common, duel, rounds)
    files = _write(duel, found)
    text = [duel_summary(found), *(() if can_draw() else (NO_PICTURES,))]
    return Answer(duel_json(found), "\n\n".join([*text, f"written: {', '.join(map(str, files))}"]))


def _planned(options: Options, say: Say) -> Duel:
    """What was asked for; real engines are measured last, as that takes a while. Raises InvalidInput."""
    is_real = options.which == duel_real.NAME
    if is_real and options.time_scale not in (None, 1.0):
        raise InvalidInput("real engines are as fast as they are; leave out --time-scale")
    emulated = None if is_real else load_scenario(options.which, [duel_real.NAME])
    if emulated is not None:
        check_scenario(emulated)
    systems = chosen_systems(options.policies)
    shares = duel_real.LOADS if is_real else SHARES
    rates = tuple(map(parse_rate, options.rates)) or tuple(Rate(share=share) for share in shares)
    usual = duel_real.SEEDS if is_real else SEEDS
    seeds = parse_seeds(list(options.seeds.split(","))) if options.seeds else usual
    length_s = seconds(options.duration) if options.duration else None
    folder = options.out or RESULTS / f"duel-{duel_real.NAME if emulated is None else emulated.name}"
    scenario = emulated or duel_real.real_scenario(measured_engines(folder, say))
    if length_s is not None:
        scenario = replace(scenario, duration_s=length_s, warm_up_s=min(scenario.warm_up_s, length_s / 5))
    time_scale = options.time_scale or (1.0 if is_real else TIME_SCALE)
    return Duel(scenario, systems, rates, seeds, time_scale, folder)


def _say_how_long(common: Common, duel: Duel) -> None:
    rounds = len(duel.systems) * len(duel.rates) * len(duel.seeds)
    minutes = rounds * (duel.scenario.duration_s * duel.time_scale + 60) / 60
    common.say(
        f"{duel.scenario.name}: {rounds} rounds, {minutes:.0f} minutes if none has to be repeated; stability limit "
        f"{limit_per_s(duel.scenario):.2f} runs/s, everything {duel.time_scale:g} times as slow"
    )


# --- all rounds ------------------------------------------------------------------------------------------


def _rounds(common: Common, duel: Duel, store: Store[Round], is_capacity: bool) -> list[Round]:
    """Every system at every rate with every seed, in turn; then at the rates that bisection asks for."""
    limit = limit_per_s(duel.scenario)
    shares = [round(per_s_of(rate, limit) / limit, 4) for rate in duel.rates]
    wanted = [(name, share) for share in shares for name in duel.systems]
    found: dict[tuple[str, float], list[Round]] = {}
    while wanted:
        number = 0
        for share in sorted({share for _, share in wanted}):
            systems = [name for name, other in wanted if other == share]
            for seed in duel.seeds:
                for name in in_turn(systems, number):
                    cell = DuelCell(
                        duel.scenario, name, round(share * limit, 6), seed, duel.time_scale, TOKENS_PER_CHUNK
                    )
                    found.setdefault((name, share), []).append(_counting(common, duel, store, cell))
                number += 1
        wanted = _next(found, duel.systems) if is_capacity else []
    return [one for rounds in found.values() for one in rounds]


def _next(
    found: Mapping[tuple[str, float], Sequence[Round]], systems: Sequence[str]
) -> list[tuple[str, float]]:
    return [
        (name, share)
        for name in systems
        for share in next_shares(
            {
                share: mean([one.figures.goodput for one in rounds])
                for (other, share), rounds in found.items()
                if other == name
            },
            LEVELS,
            TOLERANCE,
        )
        if (name, share) not in found
    ]


def _counting(common: Common, duel: Duel, store: Store[Round], cell: DuelCell) -> Round:
    """The round of a cell; played again with more time for everything while the processor was too busy."""
    found = _kept(common, duel, store, cell)
    again = 0 if cell.scenario.measured else ATTEMPTS - 1
    for _ in range(again):
        if not found.counts:
            cell = cell.slower
            found = _kept(common, duel, store, cell)
    return found


def _kept(common: Common, duel: Duel, store: Store[Round], cell: DuelCell) -> Round:
    name = round_digest(cell, peer_folder(ray_serve.FOLDER))
    found = store.get(name)
    if found is None:
        found = _tried_twice(common, duel, cell, name)
        store.keep(found)
        common.say(_said(cell, found))
    return found


def _tried_twice(common: Common, duel: Duel, cell: DuelCell, name: str) -> Round:
    """A program that fails once, on a machine that was busy for a moment, does not end a benchmark of hours."""
    try:
        return _played(duel, cell, name)
    except ProgramFailed as failed:
        common.say(f"{cell}: {failed}\ntrying it once more")
        return _played(duel, cell, name)


def _said(cell: DuelCell, found: Round) -> str:
    figures = found.figures
    ttft = f"{figures.ttft.mean_s:.2f} s" if figures.ttft.mean_s is not None else "none"
    busy = f"processor {found.busy:.0%} busy, {found.own:.0%} by the duel" + (
        "" if found.counts else f", more than {found.busiest:.0%}: does not count"
    )
    ends = f", {figures.failed} failed" if figures.failed else ""
    return f"{cell}: {figures.goodput:.1%} of {figures.runs} runs in time{ends}, mean TTFT {ttft}, {busy}"


# --- one round -------------------------------------------------------------------------------------------


def _played(duel: Duel, cell: DuelCell, name: str) -> Round:
    began_s = time.monotonic()
    folder = duel.folder / "rounds" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folder = folder.resolve()
    runs, first = duel_runs(cell.scenario, cell.rate_per_s, cell.seed), _first_runs(cell)
    with ExitStack() as stack:
        stack.callback(end_marked, duel.mark)
        programs = Programs(stack, folder, duel.mark)
        endpoints = start_engines(programs, cell)
        port = start_system(programs, cell, [*first, *runs], endpoints)
        _warm_up(programs, cell, first, port)
        earlier = _works(endpoints)
        seen, used = _load(programs, cell, runs, port)
        done = [now.since(then) for now, then in zip(_works(endpoints), earlier, strict=True)]
    _tidy(folder)
    planned = planned_tokens(runs, seen)
    return Round(
        digest=name,
        system=cell.system,
        rate_per_s=cell.rate_per_s,
        seed=cell.seed,
        time_scale=cell.time_scale,
        busy=round(used.busy, 4),
        own=round(used.own, 4),
        late_p99_s=round(lateness_p99_s(seen), 6),
        work=round(sum(one.tokens for one in done) / planned, 6) if planned else 0.0,
        figures=live_figures(cell.scenario, runs, seen, cell.time_scale, _calls_by_card(endpoints, done)),
        took_s=round(time.monotonic() - began_s, 3),
        busiest=cell.busiest,
    )


def _first_runs(cell: DuelCell) -> list[RunScript]:
    """A run through each branch of each workflow, whatever the load has of them."""
    first: dict[tuple[str, str], RunScript] = {}
    for run in duel_runs(cell.scenario, 1.0, 0):
        first.setdefault((run.workflow.name, str(sorted(run.cases.items()))), run)
    return [replace(run, at_s=_WARM_UP_GAP_S * number) for number, run in enumerate(first.values())]


def _warm_up(programs: Programs, cell: DuelCell, runs: Sequence[RunScript], port: int) -> None:
    """Play the first runs, all of which must be whole. Raises ProgramFailed."""
    seen = _client(programs, "warm-up", runs, port, cell.time_scale, lambda: None)
    broken = [one for one in seen if one.ending != "whole"]
    if broken:
        raise ProgramFailed(
            f"{cell.system} does not answer as it should: {broken[0].ending} {broken[0].message}; "
            f"what the programs said is in {programs.folder}"
        )


@dataclass(slots=True)
class _Used:
    """Shares of all processors while runs arrived: in use by anybody, and by the programs of the duel."""

    busy: float = 0.0
    own: float = 0.0


def _load(
    programs: Programs, cell: DuelCell, runs: Sequence[RunScript], port: int
) -> tuple[list[Seen], _Used]:
    """What the client saw, and how busy the processors were while runs arrived."""
    used = _Used()

    def watch() -> None:
        before, own_before = _STAT.read_text(), used_seconds(programs.mark)
        length_s = cell.scenario.duration_s * cell.time_scale
        time.sleep(length_s)
        used.busy = busy_share(before, _STAT.read_text())
        own_s = sum(now_s - own_before.get(pid, 0.0) for pid, now_s in used_seconds(programs.mark).items())
        used.own = own_s / length_s / (os.cpu_count() or 1)

    return _client(programs, "load", runs, port, cell.time_scale, watch), used


def _client(
    programs: Programs,
    name: str,
    runs: Sequence[RunScript],
    port: int,
    time_scale: float,
    meanwhile: Callable[[], None],
) -> list[Seen]:
    """Play the runs from a process of its own; `meanwhile` is called as soon as its clock runs."""
    plan, out = programs.folder / f"{name}.plan", programs.folder / f"{name}.jsonl"
    with plan.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(asdict(one)) + "\n" for one in requests(runs, time_scale))
    words = [str(plan), HOST, str(port), str(out), f"{PATIENCE_S * time_scale:g}"]
    program = programs.start(name, [sys.executable, "-m", "tightrope.bench.duel_client", *words])
    program.until(lambda: program.has_said("began"), PATIENCE_S)
    meanwhile()
    last_s = max(run.at_s for run in runs) + 2 * PATIENCE_S
    try:
        program.process.wait(last_s * time_scale)
    except subprocess.TimeoutExpired:
        raise ProgramFailed(f"the client does not end; what it said is in {program.log}") from None
    if program.process.returncode:
        raise ProgramFailed(f"the client has failed; what it said is in {program.log}")
    return read_seen(out.read_text("utf-8").splitlines())


def _works(endpoints: Sequence[Endpoint]) -> list[Work]:
    return [work_of(text_at(f"{endpoint.root}/metrics")) for endpoint in endpoints]


def _calls_by_card(endpoints: Sequence[Endpoint], done: Sequence[Work]) -> Counter[AcceleratorName]:
    counts: Counter[AcceleratorName] = Counter()
    for endpoint, work in zip(endpoints, done, strict=True):
        counts[endpoint.accelerator] += work.calls
    return counts


def _tidy(folder: Path) -> None:
    """What the client saw and what programs said stays; what is large and can be made again goes."""
    for file in (*folder.glob("*.plan"), *folder.glob("*.journal")):
        file.unlink()
    shutil.rmtree(folder / "state", ignore_errors=True)


# --- the report ------------------------------------------------------------------------------------------


def _report(common: Common, duel: Duel, rounds: Sequence[Round]) -> DuelReport:
    loads = list(dict.fromkeys((SYSTEMS[one.system].policy, one.rate_per_s, one.seed) for one in rounds))
    store = Store(duel.folder, Result, PREDICTIONS_FILE)
    with bar(common, "simulated", label="starting") as tell:
        predicted = predictions(duel.scenario, loads, store, _WORKERS, in_words(common, tell))
    return duel_report(duel.scenario, rounds, predicted, machine(), code=code_digest())


def machine() -> str:
    """The processor, its cores and the Python."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]  # fmt: skip
    return f"{names[0] if names else 'unknown processor'}, {len(names)} cores, Python {platform.python_version()}"


def _write(duel: Duel, found: DuelReport) -> list[Path]:
    with writing_into(duel.folder):
        pictures = draw(found.live, duel.folder) if can_draw() else []
    shown = [file.name for file in pictures if file.suffix == ".svg"]
    return [*write_page(duel.folder, duel_markdown(found, shown), duel_json(found)), *pictures]
