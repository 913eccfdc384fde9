"""Picture of an elastic session: demand, replicas by model and card, and promises, above one another over time.

Owns the look. Needs matplotlib (the extra `plot`) and imports it only then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tightrope.bench.elastic import Elastic, PlayedRun, steps
from tightrope.bench.plots import NO_PICTURES
from tightrope.model.errors import InvalidInput
from tightrope.model.outcome import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BIN_S = 5.0
"""Arrivals are counted in stretches of this length."""
WINDOW_S = 30.0
"""Kept promises are counted over the runs that arrived in the last while."""

# Okabe-Ito colours; one family of them for each kind of card, the cheapest last.
_FAMILIES = (("#0072B2", "#56B4E9"), ("#E69F00", "#F0E442"), ("#009E73", "#8FD1BD"))
_KEPT, _MISSED, _QUIET = "#0072B2", "#D55E00", "#555555"


def draw_elastic(found: Elastic, stem: Path) -> list[Path]:
    """`stem` with .png and .svg. Raises InvalidInput without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidInput(NO_PICTURES) from error
    picture = Figure(figsize=(12.5, 8.2), layout="constrained")
    FigureCanvasAgg(picture)
    demand, replicas, promises = picture.subplots(3, 1, sharex=True, height_ratios=(1, 1.15, 1.15))
    end_s = max(part.to_s for part in found.parts)
    _demand(demand, found.runs, end_s)
    _replicas(replicas, found, end_s)
    _promises(promises, found.runs, end_s)
    for axes in (demand, replicas, promises):
        axes.set_xlim(0, end_s)
        axes.grid(visible=True, axis="y", color="#e6e6e6", linewidth=0.7, zorder=0)
        axes.spines[["top"]].set_visible(False)
        for part in found.parts[1:]:
            axes.axvline(part.from_s, color="#999999", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    for part in found.parts:
        demand.text(
            (part.from_s + part.to_s) / 2, 1.02, part.name, ha="center", va="bottom", fontsize=10,
            transform=demand.get_xaxis_transform(),
        )  # fmt: skip
    promises.set_xlabel("seconds since the beginning")
    png, svg = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    picture.savefig(png, dpi=140)
    picture.savefig(svg, metadata={"Date": None})
    return [png, svg]


def _demand(axes: Axes, runs: Sequence[PlayedRun], end_s: float) -> None:
    """Arrivals as bars, and the runs that are under way as a line."""
    edges = [BIN_S * at for at in range(int(end_s // BIN_S) + 2)]
    axes.hist(
        [run.at_s for run in runs], bins=edges, color="#bbbbbb", zorder=3,
        label=f"runs that arrive in {BIN_S:g} s",
    )  # fmt: skip
    changes = sorted([(run.at_s, 1) for run in runs] + [(run.at_s + run.duration_s, -1) for run in runs])
    moments, counts = [0.0], [0]
    for at_s, change in changes:
        moments.append(at_s)
        counts.append(counts[-1] + change)
    axes.step(
        [*moments, end_s], [*counts, counts[-1]], where="post", color=_QUIET, linewidth=1.6, zorder=4,
        label="runs under way",
    )  # fmt: skip
    axes.set_ylabel("demand")
    axes.set_ylim(bottom=0)
    axes.spines[["right"]].set_visible(False)
    _legend(axes)


def _replicas(axes: Axes, found: Elastic, end_s: float) -> None:
    """Ready replicas stacked, and those that are starting on top of all, hatched."""
    series = steps(found.counts, end_s)
    moments = sorted({at_s for at, _, _ in series.values() for at_s in at})
    cards = sorted({card for _, card in series})
    models = sorted({model for model, _ in series})
    layers: list[list[int]] = []
    starting = [0] * len(moments)
    for model, card in sorted(series, key=lambda key: (key[1], key[0])):
        at, ready, ordered = series[model, card]
        layer = [_value_at(at, ready, moment) for moment in moments]
        starting = [
            have + _value_at(at, ordered, moment) for have, moment in zip(starting, moments, strict=True)
        ]
        low = [sum(values) for values in zip(*layers, strict=True)] if layers else [0] * len(moments)
        family = _FAMILIES[cards.index(card) % len(_FAMILIES)]
        axes.fill_between(
            moments, low, [a + b for a, b in zip(low, layer, strict=True)], step="post", linewidth=0, zorder=3,
            color=family[models.index(model) % len(family)], label=f"{model} on {card}",
        )  # fmt: skip
        layers.append(layer)
    total = [sum(values) for values in zip(*layers, strict=True)] if layers else [0] * len(moments)
    axes.fill_between(
        moments, total, [a + b for a, b in zip(total, starting, strict=True)], step="post", zorder=3,
        facecolor="white", edgecolor="#999999", hatch="////", linewidth=0, label="starting",
    )  # fmt: skip
    highest = max((a + b for a, b in zip(total, starting, strict=True)), default=1)
    axes.set_ylim(0, highest + 0.5)
    axes.set_yticks(range(highest + 1))
    axes.set_ylabel("replicas")
    axes.spines[["right"]].set_visible(False)
    _legend(axes)


def _promises(axes: Axes, runs: Sequence[PlayedRun], end_s: float) -> None:
    """Every run at its arrival: how much of the promised time its first token took; and the share that was kept."""
    for verdict, colour, marker, words in (
        (Verdict.MET, _KEPT, "o", "kept"),
        (Verdict.MISSED, _MISSED, "X", "missed"),
    ):
        mine = [
            (run.at_s, 100 * run.ttft_s / run.promise_s)
            for run in runs
            if run.verdict == verdict and run.ttft_s is not None and run.promise_s
        ]
        axes.plot(
            [at_s for at_s, _ in mine], [share for _, share in mine], linestyle="none", marker=marker,
            markersize=6, color=colour, label=f"promise {words}", zorder=4,
        )  # fmt: skip
    axes.axhline(100, color="#999999", linewidth=0.9, zorder=2)
    axes.set_ylabel("time to first token,\n% of what was promised")
    axes.set_ylim(bottom=0)
    share = axes.twinx()
    judged = [(run.at_s, run.verdict == Verdict.MET) for run in runs if run.verdict != Verdict.NONE]
    seconds = [0.5 * at for at in range(int(2 * end_s) + 1)]
    lately = [[is_met for at_s, is_met in judged if now_s - WINDOW_S < at_s <= now_s] for now_s in seconds]
    share.plot(
        seconds, [100 * sum(some) / len(some) if some else math.nan for some in lately], color=_QUIET,
        linewidth=1.4, linestyle=(0, (5, 1.5)), drawstyle="steps-post",
        label=f"kept, of runs of the last {WINDOW_S:g} s",
    )  # fmt: skip
    share.set_ylim(0, 105)
    share.set_ylabel("promises kept, %")
    share.spines[["top"]].set_visible(False)
    _legend(axes, share)


def _legend(*axes: Axes) -> None:
    """Beside the first of them, what is in all of them."""
    found = [one.get_legend_handles_labels() for one in axes]
    handles, labels = [one for some, _ in found for one in some], [one for _, some in found for one in some]
    place = (1.07, 1.0) if len(axes) > 1 else (1.01, 1.0)
    axes[0].legend(handles, labels, loc="upper left", bbox_to_anchor=place, frameon=False, fontsize=9)


def _value_at(moments: Sequence[float], values: Sequence[int], at_s: float) -> int:
    """The last value noted not later than this."""
    return next(
        (value for moment, value in zip(moments[::-1], values[::-1], strict=True) if moment <= at_s), 0
    )
