"""Plot: predicted against measured, as a picture and as plain text.

Owns the look of both. Needs matplotlib for the picture (the extra `plot`) and imports it only then.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tightrope.model.errors import InvalidInput
from tightrope.model.profile import Profile
from tightrope.profiler.fit import KINDS, Kind, StepSample, bias, mape, predicted_ms
from tightrope.profiler.verify import Check, Verification

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAND = 0.20

# Distinct in grey print and to colour-blind eyes: shape and shade differ, not only hue (Okabe-Ito colours).
_LOOK: dict[str, tuple[str, str]] = {
    "prefill": ("o", "#0072B2"),
    "decode": ("s", "#E69F00"),
    "mixed": ("^", "#CC3311"),
}
_STREAM_LOOK = (("o", "#0072B2"), ("s", "#E69F00"), ("^", "#CC3311"), ("D", "#009E73"))


def draw_fit(profile: Profile, samples: Sequence[StepSample], folder: Path) -> tuple[Path, Path]:
    """Step samples against the fit, as PNG and SVG in `folder`. Raises InvalidInput without matplotlib."""
    groups = [
        (
            kind,
            _LOOK[kind],
            [(s.measured_ms, predicted_ms(profile.coefficients, s)) for s in samples if s.kind == kind],
        )
        for kind in KINDS
    ]
    title = f"{profile.model} on {profile.accelerator}: engine steps"
    return _draw(title, "time of the steps", groups, folder / _stem(profile, "fit"))


def draw_verification(profile: Profile, verification: Verification, folder: Path) -> tuple[Path, Path]:
    """Fresh prompts against their prediction, as PNG and SVG in `folder`. Raises InvalidInput without matplotlib."""
    groups = []
    for row, look in zip(verification.by_streams, _STREAM_LOOK * len(verification.by_streams), strict=False):
        label = "1 stream" if row.streams == 1 else f"{row.streams} streams"
        checks = [check for check in verification.checks if check.streams == row.streams]
        groups.append((label, look, [(check.measured_ms, check.predicted_ms) for check in checks]))
    title = f"{profile.model} on {profile.accelerator}: fresh prompts"
    return _draw(title, "time to first token", groups, folder / _stem(profile, "ttft"))


def fit_table(profile: Profile, samples: Sequence[StepSample]) -> str:
    """Coefficients with units, and the error by kind: of the fit on its own samples, and on samples held out."""
    k = profile.coefficients
    rows = [
        ("a", "fixed cost of a step", k.a, "ms"),
        ("b", "one more sequence that decodes", k.b, "ms"),
        ("c", "one more token of context", k.c, "ms"),
        ("d", "one prompt token", k.d, "ms"),
        ("e", "prompt token x context token", k.e, "ms"),
    ]
    lines = [f"{profile.model} on {profile.accelerator}  ({profile.engine or 'engine unknown'})", ""]
    lines += [f"  {name}  {what:<32}{value:>12.6g} {unit}" for name, what, value, unit in rows]
    lines += [
        f"  C  {'tokens in a step':<32}{profile.step_tokens:>12}",
        f"  R  {'sequences at once':<32}{profile.max_sequences:>12}",
        f"  K  {'tokens of context in memory':<32}{profile.kv_tokens:>12}",
        f"     {'time to load':<32}{profile.load_s:>12.1f} s",
        f"     {'memory':<32}{profile.memory_bytes / 2**20:>12.0f} MiB",
        "",
        f"  {'error':<10}{'samples':>8}{'fit':>8}{'bias':>8}{'held out':>10}",
    ]
    return "\n".join([*lines, *(_error_line(profile, samples, kind) for kind in KINDS)])


def verification_table(verification: Verification) -> str:
    """Errors of predicted TTFT by number of streams, with the verdict."""
    lines = [f"  {'streams':>7}{'prompts':>9}{'median error':>14}{'p90':>8}{'bias':>8}"]
    lines += [
        f"  {row.streams:>7}{row.checks:>9}{row.median_error:>14.1%}{row.p90_error:>8.0%}{row.bias:>+8.0%}"
        for row in verification.by_streams
    ]
    verdict = "predicts" if verification.is_accepted else "DOES NOT PREDICT"
    lines.append(
        f"  the profile {verdict} (a median error of {BAND:.0%} is allowed at each number of streams)"
    )
    return "\n".join(lines)


def check_table(checks: Sequence[Check]) -> str:
    """Every fresh prompt, one a line."""
    lines = [f"  {'streams':>7}  {'arrival':<9}{'prompt':>7}{'measured':>12}{'predicted':>12}{'error':>8}"]
    lines += [
        f"  {check.streams:>7}  {check.arrival:<9}{check.prompt_tokens:>7}{check.measured_ms:>9.0f} ms"
        f"{check.predicted_ms:>9.0f} ms{check.error:>+8.0%}"
        for check in checks
    ]
    return "\n".join(lines)


def _error_line(profile: Profile, samples: Sequence[StepSample], kind: Kind) -> str:
    own = [sample for sample in samples if sample.kind == kind]
    held_out = (
        {
            "prefill": profile.error.prefill,
            "decode": profile.error.decode,
            "mixed": profile.error.mixed,
        }[kind]
        if profile.error
        else 0.0
    )
    fitted, skew = mape(profile.coefficients, own), bias(profile.coefficients, own)
    return f"  {kind:<10}{len(own):>8}{fitted:>8.1%}{skew:>+8.1%}{held_out:>10.1%}"


def _stem(profile: Profile, what: str) -> str:
    name = f"{profile.model}-{profile.accelerator}-{what}"
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)


def _draw(
    title: str,
    quantity: str,
    groups: Sequence[tuple[str, tuple[str, str], Sequence[tuple[float, float]]]],
    stem: Path,
) -> tuple[Path, Path]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidInput(
            "pictures need matplotlib: install tightrope with its extra `plot`, or ask for the table only"
        ) from error
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    values = [value for _, _, pairs in groups for pair in pairs for value in pair if value > 0]
    if not values:
        raise InvalidInput(f"nothing to draw for {title}: no sample was measured")
    _draw_band(axes, min(values) / 1.6, max(values) * 1.6)
    for label, (marker, colour), pairs in groups:
        if pairs:
            measured, predicted = zip(*pairs, strict=True)
            axes.scatter(
                measured, predicted, marker=marker, s=34, facecolors=colour, edgecolors="black", linewidths=0.6,
                label=f"{label} ({len(pairs)})", zorder=3,
            )  # fmt: skip
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(f"measured {quantity}, ms")
    axes.set_ylabel(f"predicted {quantity}, ms")
    axes.legend(loc="upper left", frameon=True, fontsize=9)
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    figure.savefig(png, dpi=200)
    figure.savefig(svg)
    return png, svg


def _draw_band(axes: Axes, low: float, high: float) -> None:
    """Equal logarithmic axes, the line of a perfect prediction and the band of the allowed error."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ends = [low, high]
    axes.fill_between(
        ends, [(1 - BAND) * end for end in ends], [(1 + BAND) * end for end in ends],
        color="#dddddd", label=f"within {BAND:.0%}", zorder=1,
    )  # fmt: skip
    axes.plot(ends, ends, color="black", linewidth=1, zorder=2)
    for axis, set_scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        set_scale("log")
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.grid(visible=True, color="#eeeeee", linewidth=0.6, zorder=0)
