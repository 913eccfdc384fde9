"""What becomes of promises when something goes wrong with an elastic fleet: steps, crowds, missing cards, slow models.

Owns the disturbances and how recovery is read from the runs. Provisioners are compared under them with one setting
each; a day without any is `provision.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

from tightrope.bench.day import Ask, play_day
from tightrope.bench.intervals import mean
from tightrope.bench.report_text import table
from tightrope.bench.run import Job, Tell, run_jobs
from tightrope.bench.scenario import Arrivals, Poisson, Scenario, Surge
from tightrope.bench.store import Store, digest_of
from tightrope.model.codec import encode
from tightrope.model.ids import AcceleratorName
from tightrope.model.json import Json
from tightrope.model.provision import Provisioning
from tightrope.sim.world import Outage, RunRecord, Slowness

SCHEMA = "tightrope.disturbed/1"
LASTS_S, WARM_UP_S, AT_S = 900.0, 240.0, 300.0
"""Length of each load, what is not counted, and when it is disturbed."""
CALM_PER_S = 1.0
SPELL_S = 30.0
RECOVERED = 0.95
"""Recovered: this share of the runs that arrive within SPELL_S keeps its promise again."""
SETTINGS = (
    Provisioning(policy="least-cost", attain=0.9, headroom=0.0),
    Provisioning(policy="ray-serve", target=6),
    Provisioning(policy="queue-length", target=0.25),
    Provisioning(policy="forecast-throughput", target=0.45),
)
SOURCES = ("bench/day.py", "bench/foreseen.py", "bench/disturbed.py")


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Something that happens at AT_S, in words, and what it makes of a calm load."""

    name: str
    about: str
    make: Callable[[Ask], Ask]


def _with_arrivals(arrivals: Arrivals) -> Callable[[Ask], Ask]:
    return lambda ask: replace(ask, scenario=replace(ask.scenario, arrivals=arrivals))


def _without_card(card: str) -> Callable[[Ask], Ask]:
    outage = Outage(AcceleratorName(card), AT_S, LASTS_S)
    return lambda ask: replace(ask, outages=(outage,), rate_per_s=2 * CALM_PER_S)


def _slow_large_model(ask: Ask) -> Ask:
    return replace(ask, slownesses=(Slowness(AT_S, ask.scenario.large, 2.0),), rate_per_s=2 * CALM_PER_S)


def _late_starts(ask: Ask) -> Ask:
    return replace(_with_arrivals(Surge(AT_S, math.inf, 3.0))(ask), late_start=3.0)


DISTURBANCES = (
    Disturbance("calm", "nothing happens", lambda ask: replace(ask, rate_per_s=2 * CALM_PER_S)),
    Disturbance("step", "five times the load, from then on", _with_arrivals(Surge(AT_S, math.inf, 5.0))),
    Disturbance("crowd", "eight times the load for one minute", _with_arrivals(Surge(AT_S, 60.0, 8.0))),
    Disturbance("no-h100", "the fast cards are gone", _without_card("h100")),
    Disturbance("slow-model", "every step of the large model takes twice as long", _slow_large_model),
    Disturbance("late-starts", "three times the load, and starts take three times as long", _late_starts),
)


@dataclass(frozen=True, slots=True)
class Shaken:
    """What a provisioner made of one disturbance under one seed.

    `before` and `after` are shares of promises kept, `recovered_s` the seconds from the disturbance until they are kept
    again for good; None if they are not. `turns`: most changes of direction of one model in 10 minutes.
    """

    digest: str
    provisioner: str
    disturbance: str
    seed: int
    before: float
    after: float
    recovered_s: float | None
    usd_per_h: float
    turns: int
    aborted: int


def shaken(scenario: Scenario, seeds: Sequence[int], folder: Path, workers: int, tell: Tell) -> list[Shaken]:
    """Every provisioner under every disturbance and seed; what is kept in `folder` is not done again."""
    calm = replace(scenario, arrivals=Poisson(), duration_s=LASTS_S, warm_up_s=WARM_UP_S)
    asks = [
        (one, disturbance, disturbance.make(Ask(calm, CALM_PER_S, seed, one)))
        for disturbance in DISTURBANCES
        for one in SETTINGS
        for seed in seeds
    ]
    jobs = {
        _digest(ask): Job(
            partial(_shaken, _digest(ask), ask, disturbance.name),
            f"{one.policy}, {disturbance.name}, seed {ask.seed}",
        )
        for one, disturbance, ask in asks
    }
    found = run_jobs(jobs, Store(folder, Shaken, "disturbed.jsonl"), workers, tell)
    return [found[_digest(ask)] for _, _, ask in asks]


def _digest(ask: Ask) -> str:
    return digest_of(replace(ask, scenario=ask.scenario.unnamed), sources=SOURCES)


def _shaken(name: str, ask: Ask, disturbance: str) -> Shaken:
    day = play_day(ask)
    counted = [record for record in day.records if WARM_UP_S <= record.arrived_s < LASTS_S]
    before = [record.is_met for record in counted if record.arrived_s < AT_S]
    after = [record.is_met for record in counted if record.arrived_s >= AT_S]
    return Shaken(
        name,
        ask.settings.policy,
        disturbance,
        ask.seed,
        mean([float(one) for one in before]) if before else 1.0,
        mean([float(one) for one in after]) if after else 1.0,
        recovered_s(counted),
        day.figures.usd_per_h,
        day.figures.turns,
        day.figures.aborted,
    )


def recovered_s(records: Sequence[RunRecord]) -> float | None:
    """Seconds from AT_S to the end of the last spell in which too few promises were kept; None if that is the end."""
    bad_until_s = AT_S
    spells = int((LASTS_S - AT_S) / SPELL_S)
    for spell in range(spells):
        from_s = AT_S + spell * SPELL_S
        there = [record.is_met for record in records if from_s <= record.arrived_s < from_s + SPELL_S]
        if there and sum(there) < RECOVERED * len(there):
            bad_until_s = from_s + SPELL_S
    return None if bad_until_s >= LASTS_S else bad_until_s - AT_S


# --- as text ---------------------------------------------------------------------------------------------


def shaken_table(found: Sequence[Shaken]) -> str:
    """Means over the seeds; recovery is the longest of them."""
    rows = []
    for key in dict.fromkeys((one.disturbance, one.provisioner) for one in found):
        mine = [one for one in found if (one.disturbance, one.provisioner) == key]
        times = [one.recovered_s for one in mine]
        longest = "never" if None in times else f"{max(one for one in times if one is not None):.0f} s"
        rows.append(
            (
                *key,
                f"{mean([one.before for one in mine]):.1%}",
                f"{mean([one.after for one in mine]):.1%}",
                longest,
                f"{mean([one.usd_per_h for one in mine]):.2f}",
                str(max(one.turns for one in mine)),
                str(sum(one.aborted for one in mine)),
            )
        )
    head = ("disturbance", "provisioner", "kept before", "after", "recovered in", "USD/h", "turns", "aborted")
    return table(head, rows, text_columns=2)


def shaken_markdown(scenario: str, seeds: Sequence[int], found: Sequence[Shaken]) -> str:
    """The page."""
    what = "\n".join(f"- `{one.name}`: {one.about}" for one in DISTURBANCES)
    explained = (
        f"Fleet of `{scenario}`, {LASTS_S:g} s of load, disturbed after {AT_S:g} s; the first {WARM_UP_S:g} s are not "
        f"counted; seeds {', '.join(map(str, seeds))}. *recovered in*: until at least {RECOVERED:.0%} of the runs of "
        f"every {SPELL_S:g} s keep their promise again, the longest of the seeds. *turns*: most changes of direction "
        "of one model within 10 minutes. *aborted*: calls that were not brought to their end, on lost cards included."
    )
    return f"# Provisioners, disturbed\n\n{explained}\n\n{what}\n\n{shaken_table(found)}\n"


def shaken_json(found: Sequence[Shaken]) -> Json:
    """All of it as plain JSON."""
    return {"schema": SCHEMA, "days": cast(Json, [encode(one) for one in found])}
