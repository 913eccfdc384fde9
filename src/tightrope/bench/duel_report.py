"""What the rounds of a duel say together: curves, capacities, ratios to the peer, and how far the simulator was off.

Pure: rounds and predictions in, a report as data out. How it reads is `duel_text.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import starmap

from tightrope.bench.duel import PEERS, SYSTEMS, Load, Round
from tightrope.bench.intervals import mean
from tightrope.bench.metrics import Figures, Times
from tightrope.bench.parity import ATTAINMENT_POINTS, P50_OFF, P95_OFF
from tightrope.bench.report import Capacity, Report, report
from tightrope.bench.run import Measured, Plan, per_s_of
from tightrope.bench.scenario import Rate, Scenario
from tightrope.bench.setting import setting

SCHEMA = "tightrope.duel/1"
_Figure = Callable[[Figures], float | None]

LEVELS = (0.70, 0.90)
"""The goodputs whose capacity is compared."""


@dataclass(frozen=True, slots=True)
class Against:
    """A system at a rate, and the simulation of its policy with the same runs; means over the seeds.

    `goodput_off` is simulated - live, the others are simulated / live - 1; None where one of the two has no figure.
    A policy that draws lots is simulated several times: `plays_that_agree` of `plays` would agree with their own mean
    if they were the live session, which says how often a perfect simulation would.
    """

    system: str
    share: float
    goodput: float
    simulated_goodput: float
    goodput_off: float
    mean_off: float | None
    p50_off: float | None
    p95_off: float | None
    latency_mean_s: float | None
    plays: int
    plays_that_agree: int

    @property
    def agrees(self) -> bool:
        """Whether attainment, median and 95th percentile are as close as simulation and reality have to be."""
        times = ((self.p50_off, P50_OFF), (self.p95_off, P95_OFF))
        return abs(self.goodput_off) <= ATTAINMENT_POINTS + 1e-9 and all(
            off is not None and abs(off) <= most for off, most in times
        )


@dataclass(frozen=True, slots=True)
class Ratio:
    """The capacity of a system over that of the better mode of Ray Serve; `is_bound` where one of the two was not
    crossed within the rates that were tested, so that the number is no more than a hint."""

    system: str
    level: float
    peer: str
    value: float
    simulated: float | None
    is_bound: bool


@dataclass(frozen=True, slots=True)
class DuelReport:
    """Everything about a duel. `live` are the curves of the rounds that count, or of the last try where none did."""

    live: Report
    simulated: Report
    against: tuple[Against, ...]
    ratios: tuple[Ratio, ...]
    rounds: tuple[Round, ...]
    machine: str


def duel_report(
    scenario: Scenario,
    rounds: Sequence[Round],
    predicted: Mapping[Load, Sequence[Figures]],
    machine: str,
    settings: Sequence[tuple[str, str]] = (),
    code: str = "",
) -> DuelReport:
    """The report of rounds, of which each system, rate and seed has one; a rate counts once it has every seed."""
    systems = tuple(dict.fromkeys(one.system for one in rounds))
    seeds = tuple(sorted({one.seed for one in rounds}))
    rates = tuple(Rate(per_s=per_s) for per_s in sorted({one.rate_per_s for one in rounds}))
    plan = Plan(scenario, systems, rates, seeds, 1)
    limit = plan.limit_per_s
    points = [
        (name, per_s, [by_seed[seed] for seed in seeds])
        for name in systems
        for per_s in (per_s_of(rate, limit) for rate in rates)
        if len(by_seed := _by_seed(rounds, name, per_s)) == len(seeds)
    ]
    live = [
        Measured(name, round(per_s / limit, 4), per_s, tuple(one.figures for one in found))
        for name, per_s, found in points
    ]
    plays = [[predicted[SYSTEMS[one.policy].policy, one.per_s, seed] for seed in seeds] for one in live]
    simulated = [
        replace(one, figures=tuple(averaged(found) for found in by_seed))
        for one, by_seed in zip(live, plays, strict=True)
    ]
    own = (*setting(scenario), *settings)
    reports = [report(plan, measured, own, code, is_bisected=False) for measured in (live, simulated)]
    return DuelReport(
        live=reports[0],
        simulated=reports[1],
        against=tuple(starmap(_against, zip(live, simulated, plays, strict=True))),
        ratios=tuple(_ratios(reports[0], reports[1])),
        rounds=tuple(rounds),
        machine=machine,
    )


def _by_seed(rounds: Sequence[Round], system: str, per_s: float) -> dict[int, Round]:
    return {one.seed: one for one in rounds if (one.system, one.rate_per_s) == (system, per_s)}


def averaged(plays: Sequence[Figures]) -> Figures:
    """One play with the goodput and the times that all have on average."""
    return replace(
        plays[0],
        goodput=mean([one.goodput for one in plays]),
        ttft=_averaged_times([one.ttft for one in plays]),
        e2e=_averaged_times([one.e2e for one in plays]),
    )


def _averaged_times(plays: Sequence[Times]) -> Times:
    rows = zip(*((one.mean_s, one.p50_s, one.p95_s, one.p99_s) for one in plays), strict=True)
    return Times(*(_known_mean(row) for row in rows))


def _against(live: Measured, simulated: Measured, plays: Sequence[Sequence[Figures]]) -> Against:
    several = [replace(live, figures=play) for play in zip(*plays, strict=True)]
    themselves = [_compared(one, simulated) for one in several]
    agree = sum(one.agrees for one in themselves)
    return replace(_compared(live, simulated), plays=len(several), plays_that_agree=agree)


def _compared(live: Measured, simulated: Measured) -> Against:
    return Against(
        system=live.policy,
        share=live.share,
        goodput=mean(live.goodputs),
        simulated_goodput=mean(simulated.goodputs),
        goodput_off=mean(simulated.goodputs) - mean(live.goodputs),
        mean_off=_off(live, simulated, lambda figures: figures.ttft.mean_s),
        p50_off=_off(live, simulated, lambda figures: figures.ttft.p50_s),
        p95_off=_off(live, simulated, lambda figures: figures.ttft.p95_s),
        latency_mean_s=_mean(live, lambda figures: figures.e2e.mean_s),
        plays=0,
        plays_that_agree=0,
    )


def _off(live: Measured, simulated: Measured, figure: _Figure) -> float | None:
    ours, theirs = _mean(live, figure), _mean(simulated, figure)
    return theirs / ours - 1 if ours and theirs is not None else None


def _mean(measured: Measured, figure: _Figure) -> float | None:
    return _known_mean([figure(one) for one in measured.figures])


def _known_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None


def _ratios(live: Report, simulated: Report) -> Iterator[Ratio]:
    peers = [name for name in live.policies if name in PEERS]
    if not peers:
        return
    for level in LEVELS:
        found = {one.policy: one for one in live.capacities if one.level == level}
        guessed = {one.policy: one for one in simulated.capacities if one.level == level}
        peer = max(peers, key=lambda name: found[name].per_s)
        for name in live.policies:
            if name not in PEERS:
                bound = _is_bound(found[name]) or _is_bound(found[peer])
                value, hint = found[name].per_s / found[peer].per_s, guessed[name].per_s / guessed[peer].per_s
                yield Ratio(name, level, peer, value, hint, bound)


def _is_bound(capacity: Capacity) -> bool:
    return capacity.below is None or capacity.above is None
