"""Pictures of the paper's experiments: goodput and TTFT by number of requests, and the gain by engine.

Owns the look. Needs matplotlib (the extra `plot`) and imports it only then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tightrope.bench.intervals import Interval, mean_interval
from tightrope.bench.paper import OURS, Paper
from tightrope.bench.paper_bursts import BASELINE, Setting
from tightrope.bench.paper_figures import Elsewhere, Metric, elsewhere, goodput, ttft_s
from tightrope.bench.plots import NO_PICTURES
from tightrope.model.errors import InvalidInput
from tightrope.policy.fmware import GREEDY, TARGET

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe-Ito colours with markers beside: the hue alone says nothing.
_LOOKS = {
    BASELINE: ("#E69F00", "s"),
    GREEDY: ("#009E73", "D"),
    TARGET: ("#CC79A7", "^"),
    OURS: ("#0072B2", "o"),
}
_PLAIN = ("#555555", "v")


def paper_plots(found: Paper, folder: Path) -> list[Path]:
    """`paper-bursts` and `paper-engines` as SVG and PNG in `folder`. Raises InvalidInput without matplotlib."""
    return [*_bursts(found, folder / "paper-bursts"), *_engines(found, folder / "paper-engines")]


def _bursts(found: Paper, stem: Path) -> list[Path]:
    picture = _picture(10.5, 6.8)
    panels = picture.subplots(2, len(found.scope.workflows), sharex=True, squeeze=False)
    for column, workflow in enumerate(found.scope.workflows):
        upper, lower = panels[0][column], panels[1][column]
        _curves(upper, found, workflow, goodput, 100)
        _curves(lower, found, workflow, ttft_s, 1)
        upper.set_title(f"{workflow}, fixed lengths", fontsize=11, loc="left")
        upper.set_ylabel("runs that kept their promise, %")
        upper.set_ylim(0, 103)
        lower.set_ylabel("mean time to first token, s")
        lower.set_ylim(bottom=0)
        lower.set_xlabel("requests of the burst")
    return _saved(picture, panels[0][0], stem)


def _curves(axes: Axes, found: Paper, workflow: str, metric: Metric, factor: float) -> None:
    setting = Setting(workflow, "fixed")
    for policy in dict.fromkeys(point.policy for point in found.points):
        points = sorted(
            (one for one in found.points if one.policy == policy and one.setting == setting),
            key=lambda one: one.requests,
        )
        intervals = [mean_interval(metric(point.bursts)) for point in points]
        _line(axes, policy, [float(point.requests) for point in points], intervals, factor)
    _tidy(axes)


def _engines(found: Paper, stem: Path) -> list[Path]:
    """Changes against the baseline by how many calls an engine runs at once; one column for each kind of nodes."""
    rows = elsewhere(found)
    columns = list(dict.fromkeys((one.workflow, one.site.fast, one.site.slow) for one in rows))
    picture = _picture(3.2 * len(columns) + 2, 6.8)
    panels = picture.subplots(2, len(columns), sharex=True, sharey="row", squeeze=False)
    for column, (workflow, fast, slow) in enumerate(columns):
        here = [one for one in rows if (one.workflow, one.site.fast, one.site.slow) == (workflow, fast, slow)]
        upper, lower = panels[0][column], panels[1][column]
        _changes(upper, here, lambda one: one.e2e)
        _changes(lower, here, lambda one: one.ttft)
        upper.set_title(f"{workflow}, {fast} fast + {slow} slow", fontsize=10, loc="left")
        lower.set_xlabel("calls that an engine runs at once")
    panels[0][0].set_ylabel(f"latency against {BASELINE}, %")
    panels[1][0].set_ylabel(f"mean TTFT against {BASELINE}, %")
    return _saved(picture, panels[0][0], stem)


def _changes(axes: Axes, rows: Sequence[Elsewhere], figure: Callable[[Elsewhere], Interval]) -> None:
    for policy in (GREEDY, TARGET, OURS):
        own = sorted((one for one in rows if one.policy == policy), key=lambda one: one.site.sequences)
        _line(axes, policy, [float(one.site.sequences) for one in own], [figure(one) for one in own], 100)
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.set_xscale("log", base=2)
    ticks = sorted({one.site.sequences for one in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    _tidy(axes)


def _line(
    axes: Axes, policy: str, places: Sequence[float], intervals: Sequence[Interval], factor: float
) -> None:
    colour, marker = _LOOKS.get(policy, _PLAIN)
    axes.plot(
        places, [factor * one.value for one in intervals], label=policy, color=colour, marker=marker,
        linewidth=2.4 if policy == OURS else 1.4, markersize=4.5,
    )  # fmt: skip
    lows, highs = [factor * one.low for one in intervals], [factor * one.high for one in intervals]
    axes.fill_between(places, lows, highs, color=colour, alpha=0.12, linewidth=0)


def _tidy(axes: Axes) -> None:
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.7, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def _picture(width: float, height: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise InvalidInput(NO_PICTURES) from error
    picture = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(picture)
    return picture


def _saved(picture: Figure, named: Axes, stem: Path) -> list[Path]:
    handles, labels = named.get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    picture.savefig(png, dpi=130)
    picture.savefig(svg, metadata={"Date": None})
    return [png, svg]
