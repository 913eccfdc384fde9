"""What the cells of a scenario say together: points with intervals, capacities, and what moved since an older report.

Pure: measured cells in, a report as data out. How it reads is `report_text.py`, how it looks `plots.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from tightrope.bench.intervals import (
    Interval,
    crossing,
    crossing_intervals,
    mean,
    mean_interval,
    paired_difference,
)
from tightrope.bench.metrics import CardShare, Figures, Prediction
from tightrope.bench.run import Measured, Plan
from tightrope.bench.search import LEVELS
from tightrope.model.codec import decode, encode
from tightrope.model.errors import InvalidInput
from tightrope.model.json import Json

SCHEMA = "tightrope.bench/1"


@dataclass(frozen=True, slots=True)
class Point:
    """One policy at one rate: means over seeds. Quantiles are means of the seeds' quantiles; None where some seed
    has none. `behind` is the goodput of the first policy of the report less this one's, paired by seed."""

    policy: str
    share: float
    per_s: float
    runs: int
    goodput: Interval
    behind: Interval
    worst_tenant: float
    rejected: float
    failed: float
    ttft_mean_s: Interval | None
    ttft_p50_s: Interval | None
    ttft_p95_s: Interval | None
    ttft_p99_s: Interval | None
    e2e_p50_s: float | None
    e2e_p95_s: float | None
    tpot_p95_s: float | None
    waited_mean_s: float | None
    scale_95: float | None
    scale_99: float | None
    accelerator_s_per_good: float | None
    usd_per_1k_good: float | None
    shares: tuple[CardShare, ...]
    predictions: tuple[Prediction, ...]


@dataclass(frozen=True, slots=True)
class Capacity:
    """The highest rate at which a policy's goodput is at least `level`; rates as shares of the stability limit.

    Interpolated between the tested rates `below` and `above`; `below` None: not reached at the lowest one,
    `above` None: reached at the highest one, and the share is that rate.
    """

    policy: str
    level: float
    share: Interval
    per_s: float
    below: float | None
    above: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was measured of one scenario. `is_bisected`: rates were chosen to find the capacities."""

    scenario: str
    about: str
    setting: tuple[tuple[str, str], ...]
    limit_per_s: float
    seeds: tuple[int, ...]
    code: str
    is_bisected: bool
    points: tuple[Point, ...]
    capacities: tuple[Capacity, ...]

    @property
    def policies(self) -> list[str]:
        """The policies, the one that the others are compared with first."""
        return list(dict.fromkeys(point.policy for point in self.points))

    @property
    def shares(self) -> list[float]:
        """The rates at which all policies were measured, as shares of the stability limit, in order."""
        by_policy = [{point.share for point in self.points if point.policy == name} for name in self.policies]
        return sorted(set.intersection(*by_policy)) if by_policy else []

    def point(self, policy: str, share: float) -> Point | None:
        """A policy at a rate."""
        found = (point for point in self.points if (point.policy, point.share) == (policy, share))
        return next(found, None)


def report(
    plan: Plan, measured: Sequence[Measured], setting: Sequence[tuple[str, str]], code: str, is_bisected: bool
) -> Report:
    """The report of what was measured. The first policy of the plan is the one that others are compared with."""
    by_rate = {(point.policy, _rounded(point.share)): point for point in measured}
    reference = plan.policies[0]
    points = [
        _point(point, by_rate.get((reference, _rounded(point.share))))
        for point in sorted(measured, key=_order(plan))
    ]
    return Report(
        scenario=plan.scenario.name,
        about=plan.scenario.about,
        setting=tuple(setting),
        limit_per_s=plan.limit_per_s,
        seeds=plan.seeds,
        code=code,
        is_bisected=is_bisected,
        points=tuple(points),
        capacities=tuple(_capacities(plan, measured)),
    )


def _order(plan: Plan) -> Callable[[Measured], tuple[int, float]]:
    return lambda point: (plan.policies.index(point.policy), point.share)


def _rounded(share: float) -> float:
    return round(share, 4)


def _point(measured: Measured, reference: Measured | None) -> Point:
    seeds = measured.figures
    other = reference.goodputs if reference is not None else measured.goodputs
    return Point(
        policy=measured.policy,
        share=_rounded(measured.share),
        per_s=measured.per_s,
        runs=sum(one.runs for one in seeds),
        goodput=mean_interval(measured.goodputs),
        behind=paired_difference(other, measured.goodputs),
        worst_tenant=mean([one.worst_tenant for one in seeds]),
        rejected=mean([_part(one.rejected, one.runs) for one in seeds]),
        failed=mean([_part(one.failed, one.runs) for one in seeds]),
        ttft_mean_s=_interval([one.ttft.mean_s for one in seeds]),
        ttft_p50_s=_interval([one.ttft.p50_s for one in seeds]),
        ttft_p95_s=_interval([one.ttft.p95_s for one in seeds]),
        ttft_p99_s=_interval([one.ttft.p99_s for one in seeds]),
        e2e_p50_s=_mean([one.e2e.p50_s for one in seeds]),
        e2e_p95_s=_mean([one.e2e.p95_s for one in seeds]),
        tpot_p95_s=_mean([one.tpot_p95_s for one in seeds]),
        waited_mean_s=_mean([one.waited_mean_s for one in seeds]),
        scale_95=_mean([one.scale_95 for one in seeds]),
        scale_99=_mean([one.scale_99 for one in seeds]),
        accelerator_s_per_good=_mean([one.accelerator_s_per_good for one in seeds]),
        usd_per_1k_good=_mean([one.usd_per_1k_good for one in seeds]),
        shares=_shares(seeds),
        predictions=_predictions(seeds),
    )


def _part(count: int, whole: int) -> float:
    return count / whole if whole else 0.0


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return mean(there) if there and len(there) == len(values) else None


def _interval(values: Sequence[float | None]) -> Interval | None:
    there = [value for value in values if value is not None]
    return mean_interval(there) if there and len(there) == len(values) else None


def _shares(seeds: Sequence[Figures]) -> tuple[CardShare, ...]:
    calls: dict[str, int] = {}
    for card in (card for one in seeds for card in one.shares):
        calls[card.accelerator] = calls.get(card.accelerator, 0) + card.calls
    whole = sum(calls.values())
    return tuple(CardShare(card, count, count / whole) for card, count in sorted(calls.items()))


def _predictions(seeds: Sequence[Figures]) -> tuple[Prediction, ...]:
    """Errors over all seeds, each weighted by its calls."""
    found = []
    for is_terminal in (False, True):
        kind = [one for seed in seeds for one in seed.predictions if one.is_terminal is is_terminal]
        if kind:
            found.append(_together(is_terminal, kind))
    return tuple(found)


def _together(is_terminal: bool, parts: Sequence[Prediction]) -> Prediction:
    calls = sum(part.calls for part in parts)

    def weighted(figure: Callable[[Prediction], float]) -> float:
        return sum(figure(part) * part.calls for part in parts) / calls

    return Prediction(
        is_terminal=is_terminal,
        calls=calls,
        mape=weighted(lambda part: part.mape),
        bias=weighted(lambda part: part.bias),
        own_mape=weighted(lambda part: part.own_mape),
        own_bias=weighted(lambda part: part.own_bias),
        queue_error_ms=weighted(lambda part: part.queue_error_ms),
        queue_bias_ms=weighted(lambda part: part.queue_bias_ms),
    )


def _capacities(plan: Plan, measured: Sequence[Measured]) -> Iterator[Capacity]:
    for policy in plan.policies:
        curve = sorted((point for point in measured if point.policy == policy), key=lambda point: point.share)
        if curve:
            yield from _capacities_of(policy, curve)


def _capacities_of(policy: str, curve: Sequence[Measured]) -> Iterator[Capacity]:
    shares = [point.share for point in curve]
    by_seed = [point.goodputs for point in curve]
    heights = [mean(row) for row in by_seed]
    for level, interval in zip(LEVELS, crossing_intervals(shares, by_seed, LEVELS), strict=True):
        found = crossing(shares, heights, level)
        per_s = found.rate * curve[0].per_s / curve[0].share
        yield Capacity(policy, level, interval, per_s, found.below, found.above)


# --- as a file, and against an older one -----------------------------------------------------------------


def as_json(found: Report) -> Json:
    """The report as plain JSON."""
    return {"schema": SCHEMA, "report": cast(Json, encode(found))}


def from_json(data: Json, source: str) -> Report:
    """A report that `as_json` gave. Raises InvalidInput when it is none."""
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise InvalidInput(f"{source} is no report of `tightrope bench` (schema {SCHEMA})")
    return decode(Report, data["report"])


@dataclass(frozen=True, slots=True)
class Moved:
    """A figure whose interval shares no value with that of the older report."""

    policy: str
    where: str
    figure: str
    before: Interval
    now: Interval


def moved(before: Report, now: Report) -> list[Moved]:
    """What is beyond chance different: policies, rates and levels that both reports have, in order of the new one."""
    found: list[Moved] = []
    for point in now.points:
        old = before.point(point.policy, point.share)
        if old is not None:
            found += _moved_figures(old, point)
    old_capacities = {(one.policy, one.level): one for one in before.capacities}
    for capacity in now.capacities:
        earlier = old_capacities.get((capacity.policy, capacity.level))
        if earlier is not None and capacity.share.is_apart_from(earlier.share):
            where = f"{capacity.level:.0%} goodput"
            found.append(Moved(capacity.policy, where, "capacity", earlier.share, capacity.share))
    return found


def _moved_figures(old: Point, new: Point) -> Iterator[Moved]:
    figures = {
        "goodput": (old.goodput, new.goodput),
        "mean TTFT": (old.ttft_mean_s, new.ttft_mean_s),
        "p95 TTFT": (old.ttft_p95_s, new.ttft_p95_s),
    }
    for name, (before, now) in figures.items():
        if before is not None and now is not None and now.is_apart_from(before):
            yield Moved(new.policy, f"{new.share:.0%} load", name, before, now)
