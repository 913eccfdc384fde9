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
    return [
        *_draw(
            found, folder / "goodput", "runs that kept their promise, %", lambda one: one.goodput, 100, False
        ),
        *_draw(found, folder / "ttft", "mean time to first token, s", lambda one: one.ttft_mean_s, 1, True),
    ]


def _draw(
    found: Report,
    stem: Path,
    quantity: str,
    figure: Callable[[Point], Interval | None],
    factor: float,
    is_logarithmic: bool,
) -> list[Path]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidInput(NO_PICTURES) from error
    picture = Figure(figsize=(9.0, 5.0), layout="constrained")
    FigureCanvasAgg(picture)
    axes = picture.add_subplot()
    for place, policy in enumerate(found.policies):
        points = sorted((one for one in found.points if one.policy == policy), key=lambda one: one.share)
        there = [(100 * one.share, interval) for one in points if (interval := figure(one)) is not None]
        _line(axes, policy, place, there, factor)
    _frame(axes, found, quantity, is_logarithmic)
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    picture.savefig(png, dpi=140)
    picture.savefig(svg, metadata={"Date": None})
    return [png, svg]


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


def _frame(axes: Axes, found: Report, quantity: str, is_logarithmic: bool) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_title(f"{found.scenario}: {len(found.seeds)} seeds, bands of 95 %", fontsize=11, loc="left")
    axes.set_xlabel(f"load, % of the stability limit ({found.limit_per_s:.1f} runs/s)")
    axes.set_ylabel(quantity)
    axes.axvline(100, color="#999999", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    axes.grid(visible=True, color="#eeeeee", linewidth=0.7, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(left=0)
    if is_logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, 102)
        for level in (70, 90, 95, 99):
            axes.axhline(level, color="#bbbbbb", linewidth=0.6, zorder=1)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
