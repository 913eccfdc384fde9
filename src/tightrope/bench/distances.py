"""How far the policies of a scenario are from its limits, at several loads and seeds, in parallel processes.

Owns which searches, bounds and plain simulations are made, and the report of them. The limits themselves are
`clairvoyant.py` (can be reached) and `lp_bound.py` (cannot be passed; needs scipy, the extra `limit`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tightrope.bench.cell import Cell, cell_scripts, cell_world, window
from tightrope.bench.clairvoyant import Budget, Reached, climb
from tightrope.bench.intervals import Interval, bootstrap, draws, mean
from tightrope.bench.report_text import table
from tightrope.bench.run import Job, Plan, Tell, per_s_of, run_cells, run_jobs
from tightrope.bench.scenario import Scenario
from tightrope.bench.store import Result, Store, digest
from tightrope.model.codec import encode
from tightrope.model.json import Json

if TYPE_CHECKING:
    from tightrope.bench.lp_bound import LpBound

LASTS_S, WARM_UP_S = 50.0, 10.0
"""Length of the load, for a search simulates it hundreds of times and the program grows with it."""
LOADS = (0.8, 0.9, 1.0)
SEEDS = (100, 101, 102)
STARTS = ("foresight", "power-of-two")
"""The policies that searches begin with."""
STEPS = 150
BOUND_S = 300.0
"""Solving a program ends after so long; what it has proved until then holds."""
SEARCH_SOURCES = ("bench/clairvoyant.py",)
BOUND_SOURCES = ("bench/course.py", "bench/lp_bound.py", "bench/lp_program.py", "bench/windows.py")
"""Files on which what was found and what bounds depend, beside those that every simulation depends on."""
NO_BOUND = "no bound: it needs scipy, which the extra `limit` of tightrope installs"


@dataclass(frozen=True, slots=True)
class Sought:
    """What one search gave: the policy by itself, and the best that came of moving calls from there."""

    digest: str
    start: Reached
    best: Reached
    steps: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Bounded:
    """What no scheduler passes."""

    digest: str
    goodput: float
    runs: int
    bin_ms: float
    is_optimal: bool
    is_certain: bool


@dataclass(frozen=True, slots=True)
class Distance:
    """A policy at one load: mean goodput over the seeds, over what was found, and over the bound (None: no bound)."""

    policy: str
    load: float
    goodput: float
    of_found: Interval
    of_bound: Interval | None


@dataclass(frozen=True, slots=True)
class Limit:
    """The limits of a scenario at one load, and their means over seeds."""

    load: float
    per_s: float
    found: float
    bound: float | None
    is_optimal: bool


@dataclass(frozen=True, slots=True)
class Distances:
    """All of it. `steps` of every search, from each of `starts`."""

    scenario: str
    seeds: tuple[int, ...]
    starts: tuple[str, ...]
    steps: int
    limits: tuple[Limit, ...]
    rows: tuple[Distance, ...]


def shortened(scenario: Scenario) -> Scenario:
    """The scenario for as long as limits are looked for."""
    return replace(scenario, duration_s=LASTS_S, warm_up_s=WARM_UP_S)


def distances(plan: Plan, starts: Sequence[str], steps: int, folder: Path, tell: Tell) -> Distances:
    """Search, bound and play at every rate and seed of the plan; what is kept in `folder` is not done again."""
    limit = plan.limit_per_s
    loads = [per_s_of(rate, limit) / limit for rate in plan.rates]
    cells = {
        (load, seed): Cell(plan.scenario, starts[0], round(load * limit, 6), seed)
        for load in loads
        for seed in plan.seeds
    }
    policies = tuple(dict.fromkeys((*starts, *plan.policies)))
    every = [replace(cell, policy=policy) for cell in cells.values() for policy in policies]
    played = run_cells(every, Store(folder, Result), plan.workers, tell)
    bounds = _bounds(cells.values(), folder, plan.workers, tell) if can_bound() else {}
    searches = {
        _search_digest(own, steps): Job(
            partial(_sought, _search_digest(own, steps), own, steps),
            f"search from {start} at {own.rate_per_s:.2f} req/s seed {own.seed}",
        )
        for cell in cells.values()
        for start in starts
        for own in [replace(cell, policy=start)]
    }
    sought = run_jobs(searches, Store(folder, Sought, "searches.jsonl"), plan.workers, tell)
    by_cell = {key: _at(cell, policies, starts, steps, played, sought, bounds) for key, cell in cells.items()}
    return Distances(
        plan.scenario.name,
        plan.seeds,
        tuple(starts),
        steps,
        tuple(_limit(load, limit, [by_cell[load, seed] for seed in plan.seeds]) for load in loads),
        tuple(
            _distance(policy, load, [by_cell[load, seed] for seed in plan.seeds])
            for load in loads
            for policy in policies
        ),
    )


def can_bound() -> bool:
    """Whether scipy is there."""
    return find_spec("scipy") is not None


# --- jobs ------------------------------------------------------------------------------------------------


def _bounds(cells: Iterable[Cell], folder: Path, workers: int, tell: Tell) -> dict[str, Bounded]:
    jobs = {
        _bound_digest(cell): Job(
            partial(_bounded, _bound_digest(cell), cell),
            f"bound at {cell.rate_per_s:.2f} req/s seed {cell.seed}",
        )
        for cell in cells
    }
    return run_jobs(jobs, Store(folder, Bounded, "bounds.jsonl"), workers, tell)


def _bound_digest(cell: Cell) -> str:
    """The same for every policy: the bound knows none."""
    return digest(replace(cell, policy=""), "bound", sources=BOUND_SOURCES)


def _search_digest(cell: Cell, steps: int) -> str:
    return digest(cell, "search", steps, sources=SEARCH_SOURCES)


def _bounded(name: str, cell: Cell) -> Bounded:
    from tightrope.bench.lp_bound import lp_bound

    runs = cell_scripts(cell.scenario, cell.rate_per_s, cell.seed)
    bound: LpBound = lp_bound(cell_world(cell, runs), runs, limit_s=BOUND_S, window=window(cell.scenario))
    return Bounded(name, bound.goodput, bound.runs, bound.bin_ms, bound.is_optimal, bound.is_certain)


def _sought(name: str, cell: Cell, steps: int) -> Sought:
    runs = cell_scripts(cell.scenario, cell.rate_per_s, cell.seed)
    world, counted = cell_world(cell, runs), window(cell.scenario)
    climbed = climb(world, runs, cell.policy, Budget(steps), counted, cell.seed)
    return Sought(name, climbed.start, climbed.best, climbed.steps, climbed.accepted)


# --- what they say ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Seed:
    """One load under one seed."""

    goodputs: dict[str, float]
    found: float
    bound: Bounded | None


def _at(
    cell: Cell,
    policies: Sequence[str],
    starts: Sequence[str],
    steps: int,
    played: dict[str, Result],
    sought: dict[str, Sought],
    bounds: dict[str, Bounded],
) -> _Seed:
    goodputs = {policy: played[digest(replace(cell, policy=policy))].figures.goodput for policy in policies}
    own = [sought[_search_digest(replace(cell, policy=start), steps)] for start in starts]
    found = max([one.best.goodput for one in own] + list(goodputs.values()))
    return _Seed(goodputs, found, bounds.get(_bound_digest(cell)))


def _limit(load: float, limit_per_s: float, seeds: Sequence[_Seed]) -> Limit:
    bounds = [seed.bound for seed in seeds if seed.bound is not None]
    bound = mean([one.goodput for one in bounds]) if bounds else None
    is_optimal = all(one.is_optimal for one in bounds)
    return Limit(round(load, 4), load * limit_per_s, mean([seed.found for seed in seeds]), bound, is_optimal)


def _distance(policy: str, load: float, seeds: Sequence[_Seed]) -> Distance:
    own = [seed.goodputs[policy] for seed in seeds]
    bounds = [seed.bound.goodput for seed in seeds if seed.bound is not None]
    return Distance(
        policy,
        round(load, 4),
        mean(own),
        ratio_interval(own, [seed.found for seed in seeds]),
        ratio_interval(own, bounds) if len(bounds) == len(own) else None,
    )


def ratio_interval(parts: Sequence[float], wholes: Sequence[float]) -> Interval:
    """Sum of parts over sum of wholes, paired by seed, and its interval; 1 where there is nothing to reach."""

    def ratio(draw: Sequence[int]) -> float:
        whole = sum(wholes[at] for at in draw)
        return sum(parts[at] for at in draw) / whole if whole > 0 else 1.0

    return bootstrap([ratio(draw) for draw in draws(len(parts))], ratio(range(len(parts))))


# --- as text ---------------------------------------------------------------------------------------------


def distances_markdown(found: Distances) -> str:
    """The page."""
    explained = (
        f"Scenario `{found.scenario}`, {LASTS_S:g} s of load, the first {WARM_UP_S:g} s not counted, seeds "
        f"{', '.join(map(str, found.seeds))}. *Found* is the best that was found with full knowledge of the future: "
        f"searches of {found.steps} steps from {' and '.join(f'`{name}`' for name in found.starts)}, and every policy "
        "played; it can be reached, and bounds nothing. *Bound* is that of a linear program, which nobody can pass. "
        "Means over seeds; ratios with their 95 % intervals, paired by seed."
    )
    return f"# Limits of {found.scenario}\n\n{explained}\n\n{distances_table(found)}\n"


def distances_table(found: Distances) -> str:
    """Every policy at every load, and the limits below them."""
    rows: list[tuple[str, ...]] = []
    for limit in found.limits:
        load = f"{limit.load:.0%}"
        rows += [
            (load, one.policy, f"{one.goodput:.3f}", _shown(one.of_found), _shown(one.of_bound))
            for one in found.rows
            if one.load == limit.load
        ]
        rows.append((load, "*found*", f"{limit.found:.3f}", "", ""))
        if limit.bound is not None:
            name = "*bound*" if limit.is_optimal else "*bound*, solver stopped"
            rows.append((load, name, f"{limit.bound:.3f}", "", ""))
    return table(("load", "policy", "goodput", "of found", "of bound"), rows, text_columns=2)


def _shown(one: Interval | None) -> str:
    return "-" if one is None else f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


def distances_json(found: Distances) -> Json:
    """All of it as plain JSON."""
    return cast(Json, encode(found))
