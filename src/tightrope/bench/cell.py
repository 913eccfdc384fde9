"""A cell of a benchmark: one scenario under one policy at one rate with one seed, simulated.

Owns the way from a scenario to the world, the scripts and the figures of a simulation. Which cells are run is
`run.py`; equal cells give equal figures, whichever process runs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import assert_never

from tightrope.bench.capacity import stability_limit
from tightrope.bench.demand import scripted_demand
from tightrope.bench.library import hardware, traces
from tightrope.bench.metrics import Bill, Figures, Window, figures
from tightrope.bench.scenario import (
    Arrivals,
    Bursts,
    Day,
    Diurnal,
    Hardware,
    Mishap,
    Placement,
    Poisson,
    Scenario,
    Surge,
    Trace,
)
from tightrope.bench.traces import moments
from tightrope.bench.workflows import FLOWS, RECORDINGS, Models
from tightrope.kernel.state import KernelSettings
from tightrope.model.fleet import Accelerator, ReplicaSpec
from tightrope.model.ids import AcceleratorName, ModelName, ReplicaId, TenantId
from tightrope.model.profile import Profile
from tightrope.model.slo import Limits, Tenant
from tightrope.sim import arrivals as processes
from tightrope.sim.driver import simulate
from tightrope.sim.engine import Truth
from tightrope.sim.promise import promised
from tightrope.sim.workload import Plan, RunScript, Share, deterministic, recorded_scripts, scripts
from tightrope.sim.world import CardKind, Fault, RunRecord, World

SAMPLE_RUNS = 4000
"""So many runs tell the mean demand that the stability limit is reckoned from."""
SAMPLE_SEED = 0
UNLIMITED = Limits(concurrent=10**9, queue=10**9)
"""Nobody is refused for the number of runs or calls: what comes too late is missed anyway."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What is simulated. Everything else follows from these four."""

    scenario: Scenario
    policy: str
    rate_per_s: float
    seed: int


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a cell, and the seconds of processor time that it took."""

    cell: Cell
    records: list[RunRecord]
    figures: Figures
    took_s: float

    @property
    def parts(self) -> list[Part]:
        """The figures of every tenant and workflow, sorted."""
        groups: dict[tuple[TenantId, str], list[RunRecord]] = {}
        for record in self.records:
            groups.setdefault((record.tenant, record.workflow), []).append(record)
        scenario = self.cell.scenario
        truths = profiles(scenario)
        return [
            Part(tenant, workflow, figures(records, window(scenario), truths))
            for (tenant, workflow), records in sorted(groups.items())
        ]


@dataclass(frozen=True, slots=True)
class Part:
    """What came of one tenant's runs of one workflow."""

    tenant: TenantId
    workflow: str
    figures: Figures


def play(cell: Cell, journal: Callable[[str], None] | None = None) -> Played:
    """Simulate a cell; `journal` is given every line of it."""
    began_s = time.process_time()
    runs = cell_scripts(cell.scenario, cell.rate_per_s, cell.seed)
    world = cell_world(cell, runs)
    records = simulate(world, runs, journal)
    found = figures(records, window(cell.scenario), profiles(cell.scenario), bill(cell.scenario))
    return Played(cell, records, found, time.process_time() - began_s)


def window(scenario: Scenario) -> Window:
    """The runs that are counted."""
    return Window(scenario.warm_up_s, scenario.duration_s)


# --- what arrives ----------------------------------------------------------------------------------------


def cell_scripts(
    scenario: Scenario, rate_per_s: float, seed: int, count: int | None = None
) -> list[RunScript]:
    """Every run of the load with what it is promised; the same for every policy. `count` instead of the duration
    makes so many runs."""
    duration_s = scenario.duration_s if count is None else None
    models = Models(scenario.small, scenario.large)
    if scenario.recording is not None:
        recording = RECORDINGS[scenario.recording](models, traces(), rate_per_s)
        found = recorded_scripts(replace(recording, count=count, duration_s=duration_s), seed)
    else:
        plan = Plan(_shares(scenario, models), _process(scenario.arrivals, rate_per_s), count, duration_s)
        found = scripts(plan, seed)
    if scenario.shrink != 1.0:
        found = [_shrunk(run, scenario.shrink) for run in found]
    cards = {model: _kinds(scenario, model) for model in scenario.models}
    return promised(found, scenario.promise, cards)


def _shrunk(run: RunScript, factor: float) -> RunScript:
    """The same run with prompts and answers so many times as long, of a token at least."""
    calls = {
        step: tuple(
            replace(
                item,
                prompt_tokens=max(1, round(factor * item.prompt_tokens)),
                output_tokens=max(1, round(factor * item.output_tokens)),
                prompt_bytes=round(factor * item.prompt_bytes),
            )
            for item in items
        )
        for step, items in run.calls.items()
    }
    return replace(run, calls=calls)


def _shares(scenario: Scenario, models: Models) -> tuple[Share, ...]:
    flows = {name: FLOWS[name](models, traces()) for name in {stream.workflow for stream in scenario.streams}}
    if scenario.lengths == "fixed":
        flows = {name: deterministic(flow) for name, flow in flows.items()}
    return tuple(Share(flows[stream.workflow], stream.tenant, stream.share) for stream in scenario.streams)


def _process(arrivals: Arrivals, rate_per_s: float) -> processes.Arrivals:
    match arrivals:
        case Poisson():
            return processes.Poisson(rate_per_s)
        case Bursts(factor, calm_s, burst_s):
            return processes.Mmpp(rate_per_s, factor, calm_s, burst_s)
        case Diurnal(swing, period_s):
            return processes.Diurnal(rate_per_s, swing, period_s)
        case Trace(name):
            return processes.Trace(moments(traces(), name), rate_per_s)
        case Surge(at_s, lasts_s, factor):
            return processes.Surge(rate_per_s, at_s, lasts_s, factor)
        case Day():
            seen = tuple(moments(traces(), name) for name in arrivals.traces)
            return processes.Day(
                seen,
                rate_per_s,
                arrivals.length_s,
                arrivals.trough,
                arrivals.bursts,
                arrivals.factor,
                arrivals.burst_s,
            )
        case _:
            assert_never(arrivals)


def limit_per_s(scenario: Scenario) -> float:
    """The stability limit of the fleet under the mean demand of the scenario, in runs per second."""
    return _limit_per_s(scenario.unnamed)


@cache
def _limit_per_s(scenario: Scenario) -> float:
    sample = cell_scripts(scenario, 1.0, SAMPLE_SEED, count=SAMPLE_RUNS)
    fleet: dict[ModelName, list[Profile]] = {model: [] for model in scenario.models}
    for placement in scenario.fleet:
        fleet[placement.model] += [_profile(scenario, placement)] * placement.count
    return stability_limit(scripted_demand(sample), fleet)


# --- where it runs ---------------------------------------------------------------------------------------


def cell_world(cell: Cell, runs: Sequence[RunScript]) -> World:
    """The world that the runs come into: what is true of it, and what the kernel is told."""
    scenario = cell.scenario
    truths = profiles(scenario)
    setup = scenario.hardware
    return World(
        accelerators=accelerators(scenario),
        replicas=tuple(_replicas(scenario)),
        truths={pair: _truth(setup, profile) for pair, profile in truths.items()},
        beliefs={pair: _believed(scenario, profile) for pair, profile in truths.items()},
        tenants=tuple(Tenant(name, limits=UNLIMITED) for name in sorted({run.tenant for run in runs})),
        workflows=tuple({run.workflow.id: run.workflow for run in runs}.values()),
        settings=KernelSettings(router=cell.policy, seed=cell.seed),
        start_s={placement.accelerator: setup.start_s for placement in scenario.fleet},
        network_s=setup.network_s,
        faults=tuple(_fault(mishap) for mishap in scenario.mishaps),
        seed=cell.seed,
        telemetry_s=scenario.telemetry_delay_s,
    )


def _truth(setup: Hardware, profile: Profile) -> Truth:
    return Truth(profile, setup.noise, setup.prefix_block_tokens, setup.is_ahead)


def profiles(scenario: Scenario) -> dict[CardKind, Profile]:
    """How every pair of the fleet really behaves."""
    return {
        (placement.model, placement.accelerator): _profile(scenario, placement)
        for placement in scenario.fleet
    }


def _profile(scenario: Scenario, placement: Placement) -> Profile:
    for own in scenario.measured:
        if (own.model, own.accelerator) == (placement.model, placement.accelerator):
            return own
    setup = scenario.hardware
    return hardware().profile(
        placement.model,
        placement.accelerator,
        host_ms=1000 * setup.host_overhead_s,
        step_tokens=setup.step_tokens,
        max_sequences=setup.max_sequences,
    )


def _kinds(scenario: Scenario, model: ModelName) -> list[Profile]:
    return [_profile(scenario, placement) for placement in scenario.fleet if placement.model == model]


def _believed(scenario: Scenario, truth: Profile) -> Profile:
    factors = {belief.accelerator: belief.factor for belief in scenario.beliefs}
    factor = factors.get(truth.accelerator, 1.0)
    return replace(truth, coefficients=truth.coefficients.scaled(factor))


def accelerators(scenario: Scenario) -> tuple[Accelerator, ...]:
    """The cards of the fleet, each at the scenario's price or that of the table, and how many there are."""
    counts: dict[AcceleratorName, int] = {}
    for placement in scenario.fleet:
        counts[placement.accelerator] = counts.get(placement.accelerator, 0) + placement.count
    prices = dict(scenario.hardware.usd_per_h)
    own = {profile.accelerator: Accelerator(profile.accelerator) for profile in scenario.measured}
    rows = [(own.get(name) or hardware().accelerator(name), count) for name, count in counts.items()]
    return tuple(
        replace(card, count=count, usd_per_h=prices.get(card.name, card.usd_per_h)) for card, count in rows
    )


def bill(scenario: Scenario) -> Bill:
    """What the whole fleet is and costs."""
    cards = accelerators(scenario)
    return Bill(sum(card.count for card in cards), sum(card.count * card.usd_per_h for card in cards))


def _replicas(scenario: Scenario) -> Iterator[ReplicaSpec]:
    for placement in scenario.fleet:
        for index in range(placement.count):
            replica = replica_id(placement.model, placement.accelerator, index)
            yield ReplicaSpec(replica, placement.model, placement.accelerator)


def replica_id(model: ModelName, accelerator: AcceleratorName, index: int) -> ReplicaId:
    """`qwen3-8b-h100-00000`: in the order of ids, as wide as the largest fleet needs."""
    return ReplicaId(f"{model}-{accelerator}-{index:05d}")


def _fault(mishap: Mishap) -> Fault:
    replica = replica_id(mishap.model, mishap.accelerator, mishap.index)
    return Fault(mishap.at_s, replica, mishap.kind, mishap.factor)
