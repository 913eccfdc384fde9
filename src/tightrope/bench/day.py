"""A day of an elastic fleet under one provisioner, simulated: what it cost, and how many runs kept their promise.

Owns the way from a scenario with `elastic` to a world that the provisioner changes, and the figures that speak of
it. The loads are those of `cell.py`; which provisioners are compared is `provision.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from tightrope.bench.cell import Cell, accelerators, cell_scripts, cell_world, window
from tightrope.bench.foreseen import NAME as ORACLE
from tightrope.bench.foreseen import oracle
from tightrope.bench.metrics import Window
from tightrope.bench.scenario import Elastic, Scenario
from tightrope.kernel.journal import Entry, read
from tightrope.kernel.kernel import Kernel
from tightrope.model.errors import InvalidInput
from tightrope.model.fleet import ReplicaSpec, numbered
from tightrope.model.ids import AcceleratorName, ModelName
from tightrope.model.messages import NoteScaling
from tightrope.model.provision import Bounds, Provisioning, ScaleAction
from tightrope.policy.provision import ScaleReason
from tightrope.sim.driver import simulate
from tightrope.sim.workload import RunScript
from tightrope.sim.world import Outage, Rented, RunRecord, Slowness, World

ROUTER = "foresight"
"""Who routes the calls, under every provisioner: what is compared is the fleet."""

CHEAPER = ScaleReason.CHEAPER.value

Counts = tuple[tuple[ModelName, AcceleratorName, int], ...]
"""So many replicas of each model on each kind of card."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is simulated: a load of a scenario, under a provisioner with its settings.

    `fixed` replicas are there from the start and stay. `late_start` is the factor by which replicas come up later than
    is known.
    """

    scenario: Scenario
    rate_per_s: float
    seed: int
    settings: Provisioning = field(default_factory=Provisioning)
    fixed: Counts = ()
    late_start: float = 1.0
    outages: tuple[Outage, ...] = ()
    slownesses: tuple[Slowness, ...] = ()


@dataclass(frozen=True, slots=True)
class DayFigures:
    """What came of it. `attained` is the share of runs that kept their promise, `usd` what all replicas cost from
    order to end, `ups` and `downs` the changes, `turns` the most changes of direction of one model in 10 minutes.
    """

    runs: int
    attained: float
    usd: float
    usd_per_h: float
    ups: int
    downs: int
    turns: int
    aborted: int
    most_usd_per_h: float


@dataclass(frozen=True, slots=True)
class Day:
    """A simulated day: figures, records, the fleet over time, and what the provisioner said."""

    ask: Ask
    figures: DayFigures
    records: list[RunRecord]
    rented: list[Rented]
    scalings: list[tuple[float, NoteScaling]]
    took_s: float


def play_day(ask: Ask) -> Day:
    """Simulate it. Raises InvalidInput for a scenario whose fleet is a fixed one."""
    began_s = time.process_time()
    runs = cell_scripts(ask.scenario, ask.rate_per_s, ask.seed)
    world = day_world(ask, runs)
    kernel = Kernel(world.settings, oracle(runs)) if ask.settings.policy == ORACLE else None
    scalings: list[tuple[float, NoteScaling]] = []
    rented: list[Rented] = []

    def listen(line: str) -> None:
        if '"NoteScaling"' in line:
            scalings.extend(_scalings([line]))

    records = simulate(world, runs, journal=listen, kernel=kernel, rented=rented)
    found = day_figures(ask.scenario, window(ask.scenario), records, rented, scalings)
    return Day(ask, found, records, rented, scalings, time.process_time() - began_s)


def day_world(ask: Ask, runs: Sequence[RunScript]) -> World:
    """The world of the load, with the fleet that is there at first and the provisioner that changes it."""
    scenario, elastic = ask.scenario, _elastic(ask.scenario)
    world = cell_world(Cell(scenario, ROUTER, ask.rate_per_s, ask.seed), runs)
    return replace(
        world,
        replicas=tuple(_specs(ask.fixed)),
        start_s={card: ask.late_start * start_s for card, start_s in elastic.start_s},
        start_spread=elastic.start_spread,
        provisioning=replace(ask.settings, bounds=bounds(scenario), max_usd_per_h=elastic.max_usd_per_h),
        outages=ask.outages,
        slownesses=ask.slownesses,
    )


def bounds(scenario: Scenario) -> tuple[Bounds, ...]:
    """From no replica to as many as the scenario places, with the start that is known."""
    start_s = dict(_elastic(scenario).start_s)
    return tuple(
        Bounds(one.model, one.accelerator, 0, one.count, load_s=start_s[one.accelerator])
        for one in scenario.fleet
    )


def _elastic(scenario: Scenario) -> Elastic:
    if scenario.elastic is None:
        raise InvalidInput(f"the fleet of {scenario.name} is a fixed one; give it `elastic`")
    return scenario.elastic


def _specs(counts: Counts) -> Iterable[ReplicaSpec]:
    for model, card, count in counts:
        for number in range(1, count + 1):
            yield ReplicaSpec(numbered(model, card, number), model, card)


def _scalings(lines: Iterable[str]) -> list[tuple[float, NoteScaling]]:
    return [
        (entry.at_s, entry.message)
        for entry in read(lines)
        if isinstance(entry, Entry) and isinstance(entry.message, NoteScaling)
    ]


# --- figures ---------------------------------------------------------------------------------------------


def day_figures(
    scenario: Scenario,
    counted: Window,
    records: Sequence[RunRecord],
    rented: Sequence[Rented],
    scalings: Sequence[tuple[float, NoteScaling]],
) -> DayFigures:
    """Runs count by their arrival, replicas for the time between the same two moments."""
    mine = [record for record in records if counted.from_s <= record.arrived_s < counted.to_s]
    prices = {card.name: card.usd_per_h for card in accelerators(scenario)}
    usd = sum(
        prices[one.spec.accelerator]
        * max(0.0, min(one.to_s, counted.to_s) - max(one.from_s, counted.from_s))
        / 3600
        for one in rented
    )
    acted = [(at_s, note) for at_s, note in scalings if note.action is not ScaleAction.HOLD]
    return DayFigures(
        runs=len(mine),
        attained=sum(record.is_met for record in mine) / len(mine) if mine else 1.0,
        usd=usd,
        usd_per_h=usd / counted.length_s * 3600,
        ups=sum(note.action is ScaleAction.UP for _, note in acted),
        downs=sum(note.action is ScaleAction.DOWN for _, note in acted),
        turns=max(
            (turns([pair for pair in acted if pair[1].model == model]) for model in scenario.models),
            default=0,
        ),
        aborted=sum(call.ended_s is None for record in mine for call in record.calls),
        most_usd_per_h=max((price for _, price in _price_over_time(rented, prices)), default=0.0),
    )


def turns(acted: Sequence[tuple[float, NoteScaling]], within_s: float = 600.0) -> int:
    """The most changes of direction within so many seconds; other cards in place of some are none."""
    moves = [pair for pair in acted if pair[1].reason != CHEAPER]
    changes = [at_s for (_, before), (at_s, after) in pairwise(moves) if before.action is not after.action]
    return max((sum(start <= at_s < start + within_s for at_s in changes) for start in changes), default=0)


def _price_over_time(
    rented: Sequence[Rented], prices: dict[AcceleratorName, float]
) -> Iterable[tuple[float, float]]:
    steps: dict[float, float] = {}
    for one in rented:
        if one.to_s > one.from_s:
            steps[one.from_s] = steps.get(one.from_s, 0.0) + prices[one.spec.accelerator]
            steps[one.to_s] = steps.get(one.to_s, 0.0) - prices[one.spec.accelerator]
    price = 0.0
    for at_s in sorted(steps):
        price += steps[at_s]
        yield at_s, price
