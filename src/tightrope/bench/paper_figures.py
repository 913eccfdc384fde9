"""Every figure of the source paper that we know of, beside ours.

Owns what each figure means here, in numbers only; their words and tables are `paper_table.py`. Differences are
paired by seed, and their intervals are those of `intervals.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tightrope.bench.intervals import Interval, bootstrap, crossing_intervals, draws, mean, mean_interval
from tightrope.bench.metrics import quantile
from tightrope.bench.paper import Paper, Point
from tightrope.bench.paper_bursts import BASELINE, Bursts, Setting, Site

SATURATED = 0.5
"""Saturation begins where the baseline keeps less than this share of its promises."""
LEVEL = 0.7
MIDDLE = 15
"""Requests of the paper's test with nondeterministic lengths."""

Metric = Callable[[Bursts], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Said:
    """What the paper reports: for Ray Serve, and for its own two modes. None where it gives no number for it."""

    baseline: float | None
    greedy: float
    target: float


LATENCY = Said(None, -0.3381, -0.307)
TTFT = Said(None, -0.33, -0.30)
GOODPUT = Said(None, 0.2639, 0.1527)
REQUESTS = Said(7, 10, 8)
TTFT_MEDIAN = Said(None, 147.9 / 153.6 - 1, 126.0 / 153.6 - 1)
GOODPUT_MEDIAN = Said(0.53, 0.54, 0.61)
SHARE = Said(0.30, 0.70, 0.367)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: what the paper says and what was found here, by policy. `is_change` is against the baseline."""

    name: str
    said: Said
    ours: dict[str, Interval]
    is_change: bool


def rows(found: Paper, workflow: str) -> list[Row]:
    """All figures for one workflow."""
    fixed, varied = (_Part(found, Setting(workflow, lengths)) for lengths in ("fixed", "varied"))
    return [
        Row("latency", LATENCY, fixed.changes(e2e_s), True),
        Row("ttft", TTFT, fixed.changes(ttft_s), True),
        Row("goodput", GOODPUT, fixed.changes(goodput, fixed.unsaturated), True),
        Row("requests", REQUESTS, fixed.requests_at_level(), False),
        Row("ttft_median", TTFT_MEDIAN, varied.middle_ttft(), True),
        Row("goodput_median", GOODPUT_MEDIAN, varied.middle_goodput(), False),
        Row("fast_share", SHARE, varied.middle_share(), False),
    ]


def goodput(bursts: Bursts) -> Sequence[float]:
    """Share of promises kept."""
    return bursts.goodput


def ttft_s(bursts: Bursts) -> Sequence[float]:
    """Mean seconds to first content."""
    return bursts.ttft_mean_s


def e2e_s(bursts: Bursts) -> Sequence[float]:
    """Mean seconds to the end: the latency of a request."""
    return bursts.e2e_mean_s


def unsaturated(found: Paper, workflow: str) -> list[int]:
    """Numbers of requests up to which the baseline is not saturated, with fixed lengths; the smallest at least."""
    return _Part(found, Setting(workflow, "fixed")).unsaturated


def change(ours: Sequence[Point], theirs: Sequence[Point], metric: Metric) -> Interval:
    """The sum of a metric over all sizes against that of the baseline, less 1. Paired by size and seed."""
    own, other = _by_seed(ours, metric), _by_seed(theirs, metric)

    def ratio(draw: Sequence[int]) -> float:
        whole = sum(other[at] for at in draw)
        return sum(own[at] for at in draw) / whole - 1 if whole else 0.0

    return bootstrap([ratio(draw) for draw in draws(len(own))], ratio(range(len(own))))


def _by_seed(points: Sequence[Point], metric: Metric) -> list[float]:
    """One mean over all sizes for each seed."""
    return [mean(values) for values in zip(*(metric(point.bursts) for point in points), strict=True)]


class _Part:
    """The points of one setting, by policy and in order of size."""

    def __init__(self, found: Paper, setting: Setting) -> None:
        self._points: dict[str, list[Point]] = {}
        for point in sorted(found.points, key=lambda one: one.requests):
            if point.setting == setting:
                self._points.setdefault(point.policy, []).append(point)

    @property
    def unsaturated(self) -> list[int]:
        """Sizes before the first at which the baseline is saturated; the smallest at least."""
        sizes: list[int] = []
        for point in self._points[BASELINE]:
            if sizes and mean(point.bursts.goodput) < SATURATED:
                break
            sizes.append(point.requests)
        return sizes

    def changes(self, metric: Metric, sizes: Sequence[int] | None = None) -> dict[str, Interval]:
        """The change of a metric against the baseline, over these sizes or all."""

        def chosen(policy: str) -> list[Point]:
            return [point for point in self._points[policy] if sizes is None or point.requests in sizes]

        base = chosen(BASELINE)
        return {policy: change(chosen(policy), base, metric) for policy in self._points}

    def requests_at_level(self) -> dict[str, Interval]:
        """The largest number of requests with so much goodput, interpolated; the largest played, if that has it."""
        found = {}
        for policy, points in self._points.items():
            by_seed = [point.bursts.goodput for point in points]
            sizes = [float(point.requests) for point in points]
            found[policy] = crossing_intervals(sizes, by_seed, [LEVEL])[0]
        return found

    def middle_ttft(self) -> dict[str, Interval]:
        """The median TTFT of a burst of 15, against the baseline's."""
        base = self._middle(BASELINE)
        return {
            policy: change([self._middle(policy)], [base], lambda bursts: bursts.ttft_p50_s)
            for policy in self._points
        }

    def middle_goodput(self) -> dict[str, Interval]:
        """The median of the goodput of bursts of 15."""
        return {policy: _median_interval(self._middle(policy).bursts.goodput) for policy in self._points}

    def middle_share(self) -> dict[str, Interval]:
        """The part of calls on the fast card, in bursts of 15."""
        return {policy: mean_interval(self._middle(policy).bursts.fast_share) for policy in self._points}

    def _middle(self, policy: str) -> Point:
        (found,) = (point for point in self._points[policy] if point.requests == MIDDLE)
        return found


def _median_interval(values: Sequence[float]) -> Interval:
    resampled = [quantile([values[at] for at in draw], 0.5) or 0.0 for draw in draws(len(values))]
    return bootstrap(resampled, quantile(values, 0.5) or 0.0)


def implied_ratio(moved: float, before: float, after: float) -> float | None:
    """How many times as slow the slow card has to be for `moved` (a relative change of the mean time of a call).

    The part of calls on the fast card goes from `before` to `after`, and nothing but the card matters. None when no
    ratio of at least 1 gives that change.
    """
    kept = 1 + moved
    slope = kept * (1 - before) - (1 - after)
    ratio = (after - kept * before) / slope if slope else 0.0
    return ratio if ratio >= 1 else None


# --- other nodes and engines -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """One policy on other nodes or engines, over all sizes tried there: changes against the baseline there."""

    workflow: str
    site: Site
    policy: str
    ttft: Interval
    e2e: Interval
    goodput: Interval
    fast_share: float


def elsewhere(found: Paper) -> list[Elsewhere]:
    """Every policy on every site, in the order in which they were tried."""
    groups: dict[tuple[Setting, str], list[Point]] = {}
    for point in found.sites:
        groups.setdefault((point.setting, point.policy), []).append(point)
    return [
        _elsewhere(setting, policy, points, groups[setting, BASELINE])
        for (setting, policy), points in groups.items()
    ]


def _elsewhere(setting: Setting, policy: str, points: Sequence[Point], base: Sequence[Point]) -> Elsewhere:
    shares = [share for point in points for share in point.bursts.fast_share]
    return Elsewhere(
        setting.workflow,
        setting.site,
        policy,
        ttft=change(points, base, ttft_s),
        e2e=change(points, base, e2e_s),
        goodput=change(points, base, goodput),
        fast_share=mean(shares),
    )
