"""The experiments of the paper this work starts from, repeated: Zhang et al. 2026 (arXiv 2411.09580), section 4.

Owns which bursts are played, what the paper says of them, and which reading of its Algorithm 1 is the best. How a
burst is played is `paper_bursts.py`, what the figures say `paper_figures.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tightrope.bench.intervals import mean
from tightrope.bench.paper_bursts import (
    AT_ONCE,
    BASELINE,
    TUNING_SEEDS,
    Bursts,
    Load,
    Setting,
    Site,
    Trial,
    Tried,
    Tuned,
    play,
    trial_digest,
    tune,
    tuning_digest,
)
from tightrope.bench.paper_crowd import Crowd, crowds
from tightrope.bench.run import Job, Tell, run_jobs
from tightrope.bench.scenario import Lengths
from tightrope.bench.store import Store
from tightrope.policy import DEFAULT_ROUTER, VARIANTS
from tightrope.policy.fmware import GREEDY, TARGET

LENGTHS: tuple[Lengths, ...] = ("fixed", "varied")
OURS = DEFAULT_ROUTER
ACTUAL = (f"{GREEDY}/actual-replica-full", f"{TARGET}/actual-replica-full-slowest")
"""Algorithm 1 with profiles of the lengths that calls really have: as in the paper's deterministic mode, where the
profiled count and the one that is asked for are the same."""
PLAIN = {f"{GREEDY}/default-replica-full", f"{TARGET}/default-replica-full-slowest"}
"""Readings that the plain names stand for."""
READINGS = (
    *(GREEDY, *(name for name in VARIANTS if name.startswith(f"{GREEDY}/") and name not in PLAIN)),
    *(TARGET, *(name for name in VARIANTS if name.startswith(f"{TARGET}/") and name not in PLAIN)),
)
"""Every way to read Algorithm 1, each mode under its plain name first."""
READINGS_AT = 10
"""Requests of the bursts by which readings are compared."""


@dataclass(frozen=True, slots=True)
class Scope:
    """How much is played. `sizes` are numbers of requests; other nodes and engines are tried at `probes` only.

    `readings` are the ways to read Algorithm 1 that are compared, under `tuning_seeds`.
    """

    seeds: tuple[int, ...] = tuple(range(100, 110))
    workflows: tuple[str, ...] = ("rag", "shop")
    sizes: tuple[int, ...] = (1, 3, 5, 7, 10, 15, 20, 30)
    probes: tuple[int, ...] = (7, 15)
    sites: tuple[Site, ...] = tuple(
        Site(1, slow, sequences) for slow in (1, 2) for sequences in (AT_ONCE, 4, 1)
    )
    readings: tuple[str, ...] = READINGS
    tuning_seeds: tuple[int, ...] = TUNING_SEEDS


FULL = Scope()
QUICK = Scope(
    seeds=(100, 101, 102),
    sizes=(1, 7, 15, 30),
    sites=(Site(1, 1, AT_ONCE), Site(1, 1, 1), Site(1, 2, 1)),
    tuning_seeds=(0, 1, 2),
)


@dataclass(frozen=True, slots=True)
class Point:
    """So many requests at once under one policy, with every seed."""

    setting: Setting
    policy: str
    requests: int
    bursts: Bursts


@dataclass(frozen=True, slots=True)
class Tight:
    """A setting and its load."""

    setting: Setting
    load: Load


@dataclass(frozen=True, slots=True)
class Paper:
    """Everything that was played.

    `points` are on the paper's nodes with continuous batching, `sites` on those of the scope. `readings` are ways to
    read Algorithm 1, under tuning seeds; `best_greedy` and `best_target` those with the highest goodput there.
    """

    scope: Scope
    loads: tuple[Tight, ...]
    readings: tuple[Point, ...]
    best_greedy: str
    best_target: str
    points: tuple[Point, ...]
    sites: tuple[Point, ...]
    crowds: tuple[Crowd, ...]


def paper(scope: Scope, folder: Path, workers: int, tell: Tell) -> Paper:
    """Play everything, in so many processes; what is kept in `folder` is not played again."""
    stage = _Stage(folder, workers, tell)
    mains = [Setting(workflow, lengths) for workflow in scope.workflows for lengths in LENGTHS]
    others = [Setting(workflow, "fixed", site) for site in scope.sites for workflow in scope.workflows]
    loads = _tuned(dict.fromkeys([*mains, *others]), stage)
    readings = _played(
        (
            Trial(setting, loads[setting], policy, READINGS_AT, scope.tuning_seeds)
            for setting in mains
            for policy in (BASELINE, *scope.readings)
        ),
        stage,
    )
    best_greedy, best_target = (best_reading(readings, family) for family in (GREEDY, TARGET))
    policies = dict.fromkeys((BASELINE, GREEDY, TARGET, best_greedy, best_target, OURS))
    trials = [
        Trial(setting, loads[setting], policy, requests, scope.seeds)
        for setting in mains
        for policy in policies
        for requests in scope.sizes
    ]
    probes = [
        Trial(setting, loads[setting], policy, requests, scope.seeds)
        for setting in others
        for policy in (BASELINE, GREEDY, TARGET, *ACTUAL, OURS)
        for requests in scope.probes
    ]
    played = _played([*trials, *probes], stage)
    return Paper(
        scope,
        tuple(Tight(setting, load) for setting, load in loads.items()),
        tuple(readings),
        best_greedy,
        best_target,
        tuple(played[: len(trials)]),
        tuple(played[len(trials) :]),
        crowds(),
    )


def best_reading(points: Sequence[Point], family: str) -> str:
    """The reading with the highest mean goodput over all settings; of equals the one with the smaller mean TTFT."""
    own: dict[str, list[Bursts]] = {}
    for point in points:
        if point.policy.partition("/")[0] == family:
            own.setdefault(point.policy, []).append(point.bursts)

    def merit(name: str) -> tuple[float, float]:
        ttft_s = mean([mean(bursts.ttft_mean_s) for bursts in own[name]])
        return mean([mean(bursts.goodput) for bursts in own[name]]), -ttft_s

    return max(own, key=merit)


# --- jobs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stage:
    """Where results are kept, in how many processes they are made, and who is told."""

    folder: Path
    workers: int
    tell: Tell


def _tuned(settings: Iterable[Setting], stage: _Stage) -> dict[Setting, Load]:
    names = {setting: tuning_digest(setting) for setting in settings}
    jobs = {
        name: Job(partial(tune, setting), f"load of {setting.workflow}") for setting, name in names.items()
    }
    found = run_jobs(jobs, Store(stage.folder, Tuned, "loads.jsonl"), stage.workers, stage.tell)
    return {setting: found[name].load for setting, name in names.items()}


def _played(trials: Iterable[Trial], stage: _Stage) -> list[Point]:
    named = [(trial_digest(trial), trial) for trial in trials]
    jobs = {
        name: Job(
            partial(play, trial), f"{trial.setting.workflow}, {trial.requests} requests, {trial.policy}"
        )
        for name, trial in named
    }
    found = run_jobs(jobs, Store(stage.folder, Tried, "bursts.jsonl"), stage.workers, stage.tell)
    return [Point(trial.setting, trial.policy, trial.requests, found[name].bursts) for name, trial in named]
