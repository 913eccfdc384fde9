"""The figures that the policy has to reach, read from reports of scenarios, with what was reached beside them.

Pure. A goal whose scenario was not run is left out, never counted as reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from tightrope.bench.report import Capacity, Point, Report
from tightrope.model.codec import decode, encode
from tightrope.model.errors import InvalidInput
from tightrope.model.json import Json

SCHEMA = "tightrope.goals/1"
OWN = "foresight"
CLUSTERS = ("mixed", "paper-two-node", "mild", "strong", "uniform")
WRONG = (
    "wrong-fast-card-flattered", "wrong-fast-card-slighted", "wrong-all-flattered", "wrong-all-slighted",
)  # fmt: skip
LATE = {"late-100ms": 1.0, "late-500ms": 2.0, "late-2s": 5.0}
"""Scenarios with late telemetry, and the points of goodput that may be lost by it."""
LATE_LOAD = 0.8
"""Part of the capacity at 90 % goodput at which that loss is read."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure: what it is, what was reached (a bound with `<` or `>`), what is asked for, and whether it is met.

    `is_met` None: it cannot be told from what was run.
    """

    name: str
    what: str
    reached: str
    wanted: str
    is_met: bool | None


def goals(reports: Mapping[str, Report]) -> list[Goal]:
    """Every goal that the reports (by scenario) say something about, in the order of their numbers."""
    return [*_capacities(reports), *_losses(reports), *_wrong(reports), *_late(reports)]


def as_json(found: Sequence[Goal]) -> Json:
    """Goals as plain JSON."""
    return {"schema": SCHEMA, "goals": cast(Json, encode(found))}


def from_json(data: Json, source: str) -> list[Goal]:
    """What `as_json` gave. Raises InvalidInput when it is something else."""
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise InvalidInput(f"{source} holds no goals ({SCHEMA})")
    return [decode(Goal, goal) for goal in cast(list[Json], data["goals"])]


# --- capacities over those of others ---------------------------------------------------------------------


def _capacities(reports: Mapping[str, Report]) -> Iterator[Goal]:
    wanted = (
        ("P1", "mixed", "power-of-two", 0.90, 4.0, ", first step 3x"),
        ("P1", "mixed", "power-of-two", 0.70, 1.15, ""),
        ("P1", "mixed", "shortest-queue", 0.90, 3.0, ""),
        ("P2", "paper-two-node", "power-of-two", 0.90, 2.0, ", first step 1.7x"),
        ("P2", "paper-two-node", "power-of-two", 0.70, 1.15, ""),
    )
    for name, scenario, other, level, least, step in wanted:
        pair = _pair(reports.get(scenario), other, level)
        if pair is not None:
            goal = _ratio(name, f"{scenario}: capacity at {level:.0%} over {other}", *pair, least)
            yield replace(goal, wanted=goal.wanted + step)


def _pair(report: Report | None, other: str, level: float) -> tuple[Capacity, Capacity] | None:
    found = {(one.policy, one.level): one for one in report.capacities} if report is not None else {}
    own, theirs = found.get((OWN, level)), found.get((other, level))
    return (own, theirs) if own is not None and theirs is not None else None


def _ratio(name: str, what: str, own: Capacity, theirs: Capacity, least: float) -> Goal:
    """A capacity beyond what was tested makes the ratio a bound, which may still settle the question."""
    ratio = own.per_s / theirs.per_s
    is_lower_bound = own.above is None or theirs.below is None
    is_upper_bound = own.below is None or theirs.above is None
    sign = "" if is_lower_bound is is_upper_bound else "> " if is_lower_bound else "< "
    is_met: bool | None = ratio >= least
    if (is_lower_bound and not is_met) or (is_upper_bound and is_met) or (is_lower_bound and is_upper_bound):
        is_met = None
    reached = "?" if is_lower_bound and is_upper_bound else f"{sign}{ratio:.2f}x"
    if not is_met:  # how much there was to be had
        reached += f"; the stability limit is {1 / theirs.share.value:.2f}x"
    return Goal(name, what, reached, f"{least:g}x", is_met)


# --- nothing lost ----------------------------------------------------------------------------------------


def _losses(reports: Mapping[str, Report]) -> Iterator[Goal]:
    points = reports["uniform"].points if "uniform" in reports else ()
    for other in ("power-of-two", "shortest-queue"):
        theirs = [point for point in points if point.policy == other]
        before = [point for point in theirs if point.share <= 1.0]
        beyond = [point for point in theirs if point.share > 1.0]
        yield from _loss("P4", f"uniform up to saturation: worst loss against {other}", before, 1.0)
        yield from _loss("P4", f"uniform beyond saturation: worst loss against {other}", beyond, 2.0)


def _wrong(reports: Mapping[str, Report]) -> Iterator[Goal]:
    for scenario in WRONG:
        points = reports[scenario].points if scenario in reports else ()
        theirs = [point for point in points if point.policy == "power-of-two"]
        yield from _loss("P5", f"{scenario}: worst loss against power-of-two", theirs, 0.0)


def _loss(name: str, what: str, theirs: Sequence[Point], most: float) -> Iterator[Goal]:
    """Points of goodput by which the other was better, at the rate where it was most so."""
    if not theirs:
        return
    worst = min(theirs, key=lambda point: point.behind.value)
    lost = -100 * worst.behind.value
    half = 50 * (worst.behind.high - worst.behind.low)
    reached = f"{lost:.1f} ± {half:.1f} at {worst.share:.0%} load"
    yield Goal(name, f"{what}, points", reached, f"{most:g} at most", round(lost, 6) <= most)


def _late(reports: Mapping[str, Report]) -> Iterator[Goal]:
    mixed = reports.get("mixed")
    capacity = _pair(mixed, OWN, 0.90)
    if mixed is None or capacity is None:
        return
    share = LATE_LOAD * capacity[0].share.value
    before = goodput_at(mixed, OWN, share)
    for scenario, most in LATE.items():
        report = reports.get(scenario)
        after = goodput_at(report, OWN, share) if report is not None else None
        if before is not None and after is not None:
            lost = 100 * (before - after)
            what = f"{scenario}: goodput lost at {LATE_LOAD:.0%} of capacity ({share:.0%} load), points"
            yield Goal("P6", what, f"{lost:.1f}", f"{most:g} at most", lost <= most)


def goodput_at(report: Report, policy: str, share: float) -> float | None:
    """Goodput at a load between two tested ones, interpolated linearly; None outside of them."""
    points = sorted((one for one in report.points if one.policy == policy), key=lambda one: one.share)
    below = [one for one in points if one.share <= share]
    above = [one for one in points if one.share >= share]
    if not below or not above:
        return None
    low, high = below[-1], above[0]
    if low.share == high.share:
        return low.goodput.value
    part = (share - low.share) / (high.share - low.share)
    return low.goodput.value + part * (high.goodput.value - low.goodput.value)
