"""Bursts of requests on two unequal nodes: the experiment that the source paper repeats, and how it is set up here.

Owns the nodes, the load, what is promised, and engines that run few calls at once before which calls queue. Which
bursts are played is `paper.py`. One simulation plays a burst for every seed, on a runtime that has learned from
one before them, each after the machines have long been idle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random

from tightrope.bench.cell import Cell, cell_world, limit_per_s, profiles
from tightrope.bench.intervals import mean
from tightrope.bench.library import traces
from tightrope.bench.metrics import quantile
from tightrope.bench.scenario import Hardware, Lengths, Placement, Scenario, Stream
from tightrope.bench.store import digest, hashed
from tightrope.bench.workflows import FLOWS, Models, burst
from tightrope.kernel.kernel import Kernel
from tightrope.kernel.state import KernelSettings, State
from tightrope.model.errors import TightropeBug
from tightrope.model.fleet import HeldCall, Job, PoolView, ReplicaView, Routed
from tightrope.model.ids import AcceleratorName, ModelName, RunId, TenantId
from tightrope.model.messages import Command, Event, ReplicaReady
from tightrope.model.profile import Profile
from tightrope.policy import router
from tightrope.policy.route import Router
from tightrope.sim.driver import simulate
from tightrope.sim.promise import Promise, promised
from tightrope.sim.script import RunScript
from tightrope.sim.workload import Flow, deterministic, scripts
from tightrope.sim.world import RunRecord, World

SMALL, LARGE = ModelName("Qwen3-1.7B"), ModelName("Qwen3-8B")
FAST, SLOW = AcceleratorName("h100"), AcceleratorName("l40s")
TENANT = TenantId("paper")
BASELINE = "power-of-two"
OVERLOAD = 2.0
"""Requests of a burst arrive at so many times the stability limit: one alone finds idle machines, thirty do not."""
TIGHT_REQUESTS, TIGHT_SHARE = 7, 0.7
"""The buffer of the promise is such that the baseline keeps this share of the promises at this many requests, as
the paper's did. The paper does not say its buffer."""
TUNING_SEEDS = tuple(range(10))
WARM_UP_SEED, WARM_UP_REQUESTS = 0, 20
APART_S = 400.0
"""From the start of one burst to that of the next; all of a burst is over long before."""
AT_ONCE = 128
"""Calls that an engine with continuous batching runs at once: more than ever come."""
PATIENCE_S = 1e6
"""No call is given up for being silent: before a serial engine the last of a burst waits for minutes."""


@dataclass(frozen=True, slots=True)
class Site:
    """Replicas that each model has on the fast and on the slow kind of card; how many calls an engine runs at once."""

    fast: int = 1
    slow: int = 1
    sequences: int = AT_ONCE


@dataclass(frozen=True, slots=True)
class Setting:
    """What is asked, how long its calls are (`fixed` is the paper's deterministic mode), and where it runs."""

    workflow: str
    lengths: Lengths
    site: Site = Site()


@dataclass(frozen=True, slots=True)
class Load:
    """Arrivals per second within a burst; a run is promised its TTFT without contention plus the buffer."""

    rate_per_s: float
    buffer_s: float


@dataclass(frozen=True, slots=True)
class Tuned:
    """The load of a setting, as the tuning seeds say."""

    digest: str
    load: Load


@dataclass(frozen=True, slots=True)
class Trial:
    """So many requests at once, under one policy, once for every seed."""

    setting: Setting
    load: Load
    policy: str
    requests: int
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Bursts:
    """What came of the bursts of a trial, a value for each of its seeds in order.

    Goodput, mean and median seconds to first content, mean seconds to the end, part of calls on the fast card.
    """

    goodput: tuple[float, ...]
    ttft_mean_s: tuple[float, ...]
    ttft_p50_s: tuple[float, ...]
    e2e_mean_s: tuple[float, ...]
    fast_share: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of a trial."""

    digest: str
    bursts: Bursts


def tune(setting: Setting) -> Tuned:
    """The load of a setting: the rate from its stability limit, the buffer from the baseline under tuning seeds."""
    load = Load(OVERLOAD * limit_per_s(scenario(setting)), 0.0)
    trial = Trial(setting, load, BASELINE, TIGHT_REQUESTS, TUNING_SEEDS)
    late_s = sorted(
        _first_s(record) - (record.slo.ttft_s or 0.0) for burst in records(trial) for record in burst
    )
    buffer_s = late_s[math.ceil(TIGHT_SHARE * len(late_s)) - 1]
    return Tuned(tuning_digest(setting), Load(round(load.rate_per_s, 3), round(buffer_s, 3)))


def play(trial: Trial) -> Tried:
    """Simulate a trial."""
    return Tried(trial_digest(trial), _summed_up(records(trial)))


def records(trial: Trial) -> list[list[RunRecord]]:
    """Every run of every burst, one list a seed. Raises TightropeBug when a burst does not end before the next."""
    runs = [*_runs(trial, 0, WARM_UP_SEED, WARM_UP_REQUESTS)]
    for place, seed in enumerate(trial.seeds, start=1):
        runs += _runs(trial, place, seed, trial.requests)
    world = _world(trial, runs)
    found = simulate(world, runs, kernel=_kernel(trial.setting.site, world.settings))
    if any(record.duration_s > APART_S / 2 for record in found):
        raise TightropeBug(f"a burst under {trial.policy} is not over when the next one comes")
    bursts: list[list[RunRecord]] = [[] for _ in range(len(trial.seeds) + 1)]
    for record in found:
        bursts[_place(record.run)].append(record)
    return bursts[1:]


def tuning_digest(setting: Setting) -> str:
    """What the load of a setting depends on."""
    return digest(Cell(scenario(setting), BASELINE, OVERLOAD, 0), "tune", _own_digest())


def trial_digest(trial: Trial) -> str:
    """What the result of a trial depends on."""
    load = trial.load
    cell = Cell(scenario(trial.setting), trial.policy, load.rate_per_s, trial.seeds[0])
    seeds = ",".join(map(str, trial.seeds))
    return digest(cell, "trial", load.buffer_s, trial.requests, seeds, _own_digest())


@cache
def _own_digest() -> str:
    return hashed([(Path(__file__).name, Path(__file__))])


# --- what arrives ----------------------------------------------------------------------------------------


def _runs(trial: Trial, place: int, seed: int, requests: int) -> list[RunScript]:
    """One burst. A smaller one of the same seed is the beginning of a larger one."""
    setting, load = trial.setting, trial.load
    drawn = scripts(burst(_flow(setting.workflow, setting.lengths), TENANT, requests, load.rate_per_s), seed)
    promise = Promise(scale=1.0, buffer_s=load.buffer_s, tpot_s=None)
    return [
        replace(script, run=RunId(f"{place}-{script.run}"), at_s=place * APART_S + script.at_s)
        for script in promised(drawn, promise, _cards(setting))
    ]


def _place(run: RunId) -> int:
    return int(run.partition("-")[0])


@cache
def _flow(workflow: str, lengths: Lengths) -> Flow:
    flow = FLOWS[workflow](Models(SMALL, LARGE), traces())
    return deterministic(flow) if lengths == "fixed" else flow


@cache
def _cards(setting: Setting) -> dict[ModelName, list[Profile]]:
    cards: dict[ModelName, list[Profile]] = {SMALL: [], LARGE: []}
    for (model, _), profile in profiles(scenario(setting)).items():
        cards[model].append(profile)
    return cards


# --- where it runs ---------------------------------------------------------------------------------------


def scenario(setting: Setting) -> Scenario:
    """The nodes of a setting."""
    site = setting.site
    counts = {FAST: site.fast, SLOW: site.slow}
    return Scenario(
        name="paper",
        about="",
        fleet=tuple(
            Placement(model, card, count)
            for model in (LARGE, SMALL)
            for card, count in counts.items()
            if count
        ),
        small=SMALL,
        large=LARGE,
        streams=(Stream(TENANT, setting.workflow, 1.0),),
        hardware=Hardware(max_sequences=site.sequences),
        lengths=setting.lengths,
    )


def _world(trial: Trial, runs: Sequence[RunScript]) -> World:
    cell = Cell(scenario(trial.setting), trial.policy, trial.load.rate_per_s, trial.seeds[0])
    world = cell_world(cell, runs)
    world = replace(world, settings=replace(world.settings, silence_s=PATIENCE_S))
    if not _queues_at_replicas(trial.setting.site, router(trial.policy)):
        return world
    beliefs = {pair: replace(belief, max_sequences=AT_ONCE) for pair, belief in world.beliefs.items()}
    return replace(world, beliefs=beliefs)


def _kernel(site: Site, settings: KernelSettings) -> Kernel:
    found = router(settings.router)
    if not _queues_at_replicas(site, found):
        return Kernel(settings)
    return _Queueing(settings, _aware_of_queues(found, site.sequences))


def _queues_at_replicas(site: Site, found: Router) -> bool:
    """Ray Serve and Algorithm 1 send a call at once and let it queue; a router that binds late queues it itself."""
    return site.sequences < AT_ONCE and not found.is_late_binding


class _Queueing(Kernel):
    """A kernel that is not told how many calls an engine runs at once, so that it does not hold any back."""

    def __init__(self, settings: KernelSettings, found: Router) -> None:
        super().__init__(settings)
        self.state = State(settings, found)

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """Take one fact, less what a replica says of its limit."""
        if isinstance(event, ReplicaReady):
            event = replace(event, max_sequences=None)
        return super().handle(event, now_s)


def _aware_of_queues(found: Router, sequences: int) -> Router:
    """The same router; it sees which calls of a replica run and which wait there."""

    def choose(job: Job, pool: PoolView, now_s: float, rng: Random) -> Routed | None:
        seen = tuple(queued(view, sequences, now_s) for view in pool.replicas)
        return found.choose(job, replace(pool, replicas=seen), now_s, rng)

    return replace(found, choose=choose)


def queued(view: ReplicaView, sequences: int, now_s: float) -> ReplicaView:
    """The replica with the age of every call counted from its start, as Algorithm 1 wants it, not from its dispatch.

    The engine serves first come first served: the oldest `sequences` calls run, and one that waits has no age. A
    start is known by its first token; one that has none yet has just begun if others waited with it.
    """
    held = tuple(
        replace(
            call, dispatched_s=_started_s(call, view, place < sequences, len(view.held) > sequences, now_s)
        )
        for place, call in enumerate(view.held)
    )
    return replace(view, held=held)


def _started_s(call: HeldCall, view: ReplicaView, is_running: bool, is_crowded: bool, now_s: float) -> float:
    if not is_running:
        return now_s
    if call.first_token_s is None:
        return now_s if is_crowded else call.dispatched_s
    return max(call.dispatched_s, call.first_token_s - view.profile.solo_ttft_ms(call.prompt_tokens) / 1000)


# --- what came of it -------------------------------------------------------------------------------------


def _summed_up(bursts: Sequence[Sequence[RunRecord]]) -> Bursts:
    def each(figure: Callable[[Sequence[RunRecord]], float]) -> tuple[float, ...]:
        return tuple(round(figure(burst), 5) for burst in bursts)

    return Bursts(
        goodput=each(lambda burst: mean([float(run.is_met) for run in burst])),
        ttft_mean_s=each(lambda burst: mean([_first_s(run) for run in burst])),
        ttft_p50_s=each(lambda burst: quantile([_first_s(run) for run in burst], 0.5) or 0.0),
        e2e_mean_s=each(lambda burst: mean([run.duration_s for run in burst])),
        fast_share=each(
            lambda burst: mean([float(call.accelerator == FAST) for run in burst for call in run.calls])
        ),
    )


def _first_s(run: RunRecord) -> float:
    """Seconds to first content. Raises TightropeBug for a run that had none: nothing fails here."""
    if run.ttft_s is None:
        raise TightropeBug(f"{run.run} ended without an answer: {run.outcome}")
    return run.ttft_s
