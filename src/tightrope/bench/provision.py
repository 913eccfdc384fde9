"""Provisioners beside each other on one day: what each costs when it keeps what was asked for.

Owns who is compared, how each is set, and the report. A setting is chosen on tuning seeds, the leanest of a ladder
that keeps its promises there, and judged on others. The simulation of a day is `day.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import cast

from tightrope.bench.capacity import work_ms
from tightrope.bench.cell import accelerators, cell_scripts, profiles
from tightrope.bench.day import Ask, Counts, DayFigures, bounds, play_day
from tightrope.bench.demand import scripted_demand
from tightrope.bench.foreseen import NAME as ORACLE
from tightrope.bench.intervals import Interval, bootstrap, draws, mean
from tightrope.bench.report_text import table
from tightrope.bench.run import Job, Tell, run_jobs
from tightrope.bench.scenario import Scenario
from tightrope.bench.store import Store, digest_of
from tightrope.model.codec import encode
from tightrope.model.errors import InvalidInput
from tightrope.model.json import Json
from tightrope.model.provision import Provisioning

SCHEMA = "tightrope.provision/1"
OWN, STATIC = "least-cost", "static"
TUNING = (0, 1)
"""Seeds on which settings are chosen; they are never reported."""
BUSIEST_S = 60.0
STATIC_TIMES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0)
"""Fleets that stay are as large as the busiest minute times these: work at full batches, deadlines aside."""
SOURCES = ("bench/day.py", "bench/foreseen.py")


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to set a provisioner: a name for it, and what it is."""

    name: str
    settings: Provisioning
    fixed: Counts = ()


def ladders(scenario: Scenario, per_s: float) -> dict[str, tuple[Setting, ...]]:
    """Every contender with its settings, the lean ones first.

    Those of others have the one number that their documents say to tune: target_ongoing_requests (Ray Serve), the
    length of the line for each replica (HPA, KEDA), the part of the throughput that is planned with (Dynamo).
    """
    own = ((0.7, 0.0), (0.8, 0.0), (0.9, 0.0), (0.95, 0.0), (0.95, 0.1), (0.99, 0.1))
    return {
        OWN: tuple(_careful(OWN, *pair) for pair in own),
        "ray-serve": tuple(_aiming("ray-serve", target) for target in (24, 16, 12, 8, 6, 4, 2)),
        "queue-length": tuple(_aiming("queue-length", target) for target in (1, 0.5, 0.25, 0.1)),
        "forecast-throughput": tuple(
            _aiming("forecast-throughput", busy) for busy in (0.8, 0.6, 0.45, 0.3, 0.2)
        ),
        STATIC: tuple(_static(scenario, per_s)),
        ORACLE: tuple(_careful(ORACLE, *pair) for pair in own),
    }


def _careful(policy: str, attain: float, headroom: float) -> Setting:
    settings = Provisioning(policy=policy, attain=attain, headroom=headroom)
    return Setting(f"attain {attain:.0%}, headroom {headroom:.0%}", settings)


def _aiming(policy: str, target: float) -> Setting:
    return Setting(f"target {target:g}", Provisioning(policy=policy, target=target))


def _static(scenario: Scenario, per_s: float) -> list[Setting]:
    """Fleets that stay: for every model the cheapest that can do so many times the work of the busiest minute."""
    runs = cell_scripts(scenario, per_s, TUNING[0])
    highest = max(Counter(int(run.at_s // BUSIEST_S) for run in runs).values()) / BUSIEST_S
    cards, most = profiles(scenario), {(one.model, one.accelerator): one.most for one in bounds(scenario)}
    prices = {card.name: card.usd_per_h for card in accelerators(scenario)}
    found: dict[Counts, Setting] = {}
    for times in STATIC_TIMES:
        counts: Counts = ()
        for model, demands in scripted_demand(runs).items():
            pairs = [pair for pair in most if pair[0] == model]
            busy = [sum(work_ms(cards[pair], one) * one.calls for one in demands) / 1000 for pair in pairs]
            fleets = [
                fleet
                for fleet in product(*(range(most[pair] + 1) for pair in pairs))
                if sum(count / each for count, each in zip(fleet, busy, strict=True)) >= times * highest
            ] or [tuple(most[pair] for pair in pairs)]
            best = min(
                fleets,
                key=lambda fleet: sum(n * prices[pair[1]] for n, pair in zip(fleet, pairs, strict=True)),
            )
            counts += tuple((*pair, count) for pair, count in zip(pairs, best, strict=True) if count)
        name = ", ".join(f"{count} {card} {model}" for model, card, count in counts)
        found.setdefault(counts, Setting(name, Provisioning(policy=STATIC), counts))
    return list(found.values())


# --- days in processes -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DayResult:
    """What a day gave, and the seconds of processor time that it took."""

    digest: str
    figures: DayFigures
    took_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """A contender as it was set in the end. `tuned` is what every setting gave on the tuning seeds: (name, share of
    promises kept, USD/h). `against` is what own costs over this one, paired by seed. Means over the reported seeds.
    """

    name: str
    setting: str
    attained: Interval
    usd_per_h: Interval
    against: Interval | None
    ups: float
    downs: float
    turns: int
    aborted: int
    is_kept: bool
    tuned: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All contenders on one scenario at one rate."""

    scenario: str
    per_s: float
    attain: float
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]


def compare(
    scenario: Scenario,
    names: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    workers: int,
    tell: Tell,
) -> Comparison:
    """Tune every contender, then play all of them; what is kept in `folder` is not done again.

    Raises InvalidInput for a name that is none, and a scenario without `elastic` or a rate in runs per second.
    """
    per_s = next((rate.per_s for rate in scenario.rates if rate.per_s is not None), None)
    if per_s is None or scenario.elastic is None:
        raise InvalidInput(f"{scenario.name} needs `elastic`, and a rate such as `3 req/s`")
    known = ladders(scenario, per_s)
    for name in names:
        if name not in known:
            raise InvalidInput(f"there is no contender {name!r}; name some of: {', '.join(known)}")
    store = Store(folder, DayResult, "days.jsonl")
    chosen = names or tuple(known)

    def play(settings: Mapping[str, Setting], seeds: Sequence[int]) -> dict[_Key, DayFigures]:
        return _played(_asks(scenario, per_s, settings, seeds), store, workers, tell)

    best, tuned = climbed({name: known[name] for name in chosen}, play, scenario.elastic.attain)
    played = play(best, seeds)
    rows = tuple(
        _row(name, best[name], known[name], seeds, tuned, played, scenario.elastic.attain) for name in chosen
    )
    return Comparison(scenario.name, per_s, scenario.elastic.attain, tuple(seeds), rows)


_Key = tuple[str, str, int]
_Play = Callable[[Mapping[str, Setting], Sequence[int]], Mapping[_Key, DayFigures]]


def climbed(
    known: Mapping[str, Sequence[Setting]], play: _Play, attain: float
) -> tuple[dict[str, Setting], dict[_Key, DayFigures]]:
    """The first setting of every ladder that keeps enough promises on the tuning seeds, else that which keeps the most;
    and all that was played for it."""
    tuned: dict[_Key, DayFigures] = {}
    best: dict[str, Setting] = {}
    for rung in range(max(map(len, known.values()))):
        climbing = {name: own[rung] for name, own in known.items() if name not in best and rung < len(own)}
        tuned |= play(climbing, TUNING)
        best |= {name: one for name, one in climbing.items() if _kept(name, one, tuned) >= attain}
    for name, own in known.items():
        if name not in best:
            best[name] = max(own, key=partial(_kept, name, tuned=tuned))
    return best, tuned


def _asks(
    scenario: Scenario, per_s: float, settings: Mapping[str, Setting], seeds: Sequence[int]
) -> dict[_Key, Ask]:
    return {
        (name, setting.name, seed): Ask(scenario, per_s, seed, setting.settings, setting.fixed)
        for name, setting in settings.items()
        for seed in seeds
    }


def _played(
    asks: Mapping[_Key, Ask], store: Store[DayResult], workers: int, tell: Tell
) -> dict[_Key, DayFigures]:
    names = {key: _digest(ask) for key, ask in asks.items()}
    jobs = {
        names[key]: Job(partial(_result, names[key], ask), f"{key[0]} ({key[1]}) seed {key[2]}")
        for key, ask in asks.items()
    }
    found = run_jobs(jobs, store, workers, tell)
    return {key: found[name].figures for key, name in names.items()}


def _result(name: str, ask: Ask) -> DayResult:
    day = play_day(ask)
    return DayResult(name, day.figures, round(day.took_s, 3))


def _digest(ask: Ask) -> str:
    return digest_of(replace(ask, scenario=ask.scenario.unnamed), sources=SOURCES)


def _kept(name: str, setting: Setting, tuned: Mapping[_Key, DayFigures]) -> float:
    """The share of promises that a setting keeps on the tuning seeds."""
    return mean([tuned[name, setting.name, seed].attained for seed in TUNING])


def _row(
    name: str,
    best: Setting,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    tuned: Mapping[_Key, DayFigures],
    played: Mapping[_Key, DayFigures],
    attain: float,
) -> Row:
    own = [played[name, best.name, seed] for seed in seeds]
    ours = [figures for (other, _, _), figures in played.items() if other == OWN]
    usd = [one.usd_per_h for one in own]
    against = None if name == OWN or len(ours) != len(own) else _ratio([one.usd_per_h for one in ours], usd)
    return Row(
        name,
        best.name,
        _mean([one.attained for one in own]),
        _mean(usd),
        against,
        mean([one.ups for one in own]),
        mean([one.downs for one in own]),
        max(one.turns for one in own),
        sum(one.aborted for one in own),
        mean([one.attained for one in own]) >= attain,
        tuple(
            (
                setting.name,
                round(_kept(name, setting, tuned), 5),
                round(mean([tuned[name, setting.name, seed].usd_per_h for seed in TUNING]), 3),
            )
            for setting in settings
            if (name, setting.name, TUNING[0]) in tuned
        ),
    )


def _mean(values: Sequence[float]) -> Interval:
    return bootstrap([mean([values[at] for at in draw]) for draw in draws(len(values))], mean(values))


def _ratio(parts: Sequence[float], wholes: Sequence[float]) -> Interval:
    def of(draw: Sequence[int]) -> float:
        return sum(parts[at] for at in draw) / sum(wholes[at] for at in draw)

    return bootstrap([of(draw) for draw in draws(len(parts))], of(range(len(parts))))


# --- as text ---------------------------------------------------------------------------------------------


def comparison_table(found: Comparison) -> str:
    """Every contender as it was set in the end."""
    rows = [
        (
            one.name,
            one.setting,
            f"{one.attained.value:.2%}",
            f"{one.usd_per_h.value:.2f}",
            "-"
            if one.against is None
            else f"{one.against.value:.2f} [{one.against.low:.2f}, {one.against.high:.2f}]",
            f"{one.ups:.0f} / {one.downs:.0f}",
            str(one.turns),
            str(one.aborted),
        )
        for one in found.rows
    ]
    head = ("provisioner", "set to", "kept", "USD/h", f"{OWN} over it", "up / down", "turns", "aborted")
    return table(head, rows, text_columns=2)


def comparison_markdown(found: Comparison) -> str:
    """The page."""
    seeds, tuning = ", ".join(map(str, found.seeds)), ", ".join(map(str, TUNING))
    asked = (
        f"Scenario `{found.scenario}` at {found.per_s:g} runs/s on average, seeds {seeds}. Asked for: "
        f"{found.attain:.0%} of the promises kept. Every provisioner has the leanest setting that kept them on the "
        f"tuning seeds {tuning}, or the one that kept the most. *turns*: most changes of direction of one model "
        "within 10 minutes, of all seeds. *aborted*: calls that were not brought to their end. Means over seeds; "
        "ratios with their 95 % intervals, paired by seed."
    )
    tried = [
        (one.name, name, f"{kept:.2%}", f"{usd:.2f}") for one in found.rows for name, kept, usd in one.tuned
    ]
    settings = table(("provisioner", "setting", "kept", "USD/h"), tried, text_columns=2)
    title = f"# Provisioners on {found.scenario}"
    return (
        f"{title}\n\n{asked}\n\n{comparison_table(found)}\n\n## Settings, on the tuning seeds\n\n{settings}\n"
    )


def comparison_json(found: Comparison) -> Json:
    """All of it as plain JSON."""
    return {"schema": SCHEMA, "comparison": cast(Json, encode(found))}
