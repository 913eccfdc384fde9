"""Pictures of a report: goodput and time to first token by load, one line a policy.

Owns the look. Needs matplotlib (the extra `plot`) and imports it only then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tightrope.bench.intervals import Interval
from tightrope.bench.report import Point, Report
from tightrope.model.errors import InvalidInput

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ZOOM = 80
"""The second panel of goodput begins here, in %."""
NO_PICTURES = "no pictures: they need matplotlib, which the extra `plot` of tightrope installs"

# Okabe-Ito colours, distinct to colour-blind eyes, with markers and dashes beside: the hue alone says nothing.
_OWN = "#0072B2"
_COLOURS = ("#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D31", "#555555")
_MARKERS = "sD^vPXo<>*hp"
_DASHES = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (4, 1.2, 1, 1.2)))


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return find_spec("matplotlib") is not None


def draw(found: Report, folder: Path) -> list[Path]:
    """`goodput` and `ttft` as SVG and PNG in `folder`. Raises InvalidInput without matplotlib."""
    return [*_goodput(found, folder / "goodput"), *_ttft(found, folder / "ttft")]


def _goodput(found: Report, stem: Path) -> list[Path]:
    """The whole curve, and its upper end again, where promises are worth something."""
    picture = _picture(11.5)
    whole, upper = picture.subplots(1, 2, width_ratios=(1, 1))
    for axes in (whole, upper):
        _lines(axes, found, lambda point: point.goodput, 100)
        _frame(axes, found)
        axes.set_ylabel("runs that kept their promise, %")
    whole.set_ylim(0, 101.5)
    upper.set_ylim(ZOOM, 100.3)
    upper.set_yticks([ZOOM, 85, 90, 95, 99])
    upper.set_title(f"the same from {ZOOM} % on", fontsize=10, loc="left")
    return _saved(picture, found, whole, stem)


def _ttft(found: Report, stem: Path) -> list[Path]:
    """Means on a logarithmic axis: beyond saturation they grow without end."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    picture = _picture(8.5)
    axes = picture.add_subplot()
    _lines(axes, found, lambda point: point.ttft_mean_s, 1)
    _frame(axes, found)
    axes.set_ylabel("mean time to first token, s")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    return _saved(picture, found, axes, stem)


def _picture(width: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise InvalidInput(NO_PICTURES) from error
    picture = Canvas(figsize=(width, 4.8), layout="constrained")
    FigureCanvasAgg(picture)
    return picture


def _lines(axes: Axes, found: Report, figure: Callable[[Point], Interval | None], factor: float) -> None:
    for place, policy in enumerate(found.policies):
        points = sorted((one for one in found.points if one.policy == policy), key=lambda one: one.share)
        there = [(100 * one.share, interval) for one in points if (interval := figure(one)) is not None]
        _line(axes, policy, place, there, factor)


def _line(
    axes: Axes, policy: str, place: int, points: Sequence[tuple[float, Interval]], factor: float
) -> None:
    """A line with its band. The first policy is the one in question and stands out."""
    loads = [load for load, _ in points]
    colour = _OWN if place == 0 else _COLOURS[(place - 1) % len(_COLOURS)]
    dashes = "solid" if place == 0 else _DASHES[(place - 1) // len(_COLOURS) % len(_DASHES)]
    axes.plot(
        loads, [factor * one.value for _, one in points], label=policy, color=colour, linestyle=dashes,
        linewidth=2.6 if place == 0 else 1.3, marker="o" if place == 0 else _MARKERS[place % len(_MARKERS)],
        markersize=5.5 if place == 0 else 4.0, zorder=5 if place == 0 else 3,
    )  # fmt: skip
    axes.fill_between(
        loads, [factor * one.low for _, one in points], [factor * one.high for _, one in points],
        color=colour, alpha=0.18 if place == 0 else 0.09, linewidth=0, zorder=2,
    )  # fmt: skip


def _frame(axes: Axes, found: Report) -> None:
    axes.set_xlabel(f"load, % of the stability limit ({found.limit_per_s:.1f} runs/s)")
    axes.axvline(100, color="#999999", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.7, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def _saved(picture: Figure, found: Report, titled: Axes, stem: Path) -> list[Path]:
    seeds = "1 seed" if len(found.seeds) == 1 else f"{len(found.seeds)} seeds, bands of 95 %"
    titled.set_title(f"{found.scenario}: {seeds}", fontsize=11, loc="left")
    handles, labels = titled.get_legend_handles_labels()
    picture.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    picture.savefig(png, dpi=140)
    picture.savefig(svg, metadata={"Date": None})
    return [png, svg]
