"""A comparison of a live session with its simulation, as a page for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tightrope.bench.parity import ATTAINMENT_POINTS, P50_OFF, P95_OFF, Agreement, Comparison, Figures, Parity
from tightrope.bench.parity_engines import EnginePart


def parity_table(found: Parity) -> str:
    """The replay, the raw comparison and the calibrated one, and what is allowed."""
    raw, calibrated = found.raw, found.calibrated
    by = f"calibrated on the first {found.calibration_runs} runs, judged on the other {calibrated.agreement.runs}"
    points, p50, p95 = f"{100 * ATTAINMENT_POINTS:.0f} points", f"{P50_OFF:.0%}", f"{P95_OFF:.0%}"
    parts = (
        _replayed(found),
        f"profiles as measured, {raw.agreement.runs} runs",
        *_comparison(raw),
        *_everyone(found),
        f"engines {calibrated.slowness:.3f} times as slow, {by}",
        *_comparison(calibrated),
        f"allowed: {points} of attainment, {p50} of the median, {p95} of the 95th percentile",
    )
    return "\n\n".join(parts)


def _replayed(found: Parity) -> str:
    difference = found.difference
    if difference is None:
        return "replayed: every command again, in order"
    was, now = difference.recorded, difference.replayed
    return f"replayed: DIFFERENT from {difference.at_s:.3f} s on, {was} became {now}"


def _everyone(found: Parity) -> tuple[str, ...]:
    if not found.left_out:
        return ()
    title = f"with {found.left_out} more runs, of which not everything is known"
    return title, "\n".join(_agreement_lines(found.everyone))


def _comparison(compared: Comparison) -> tuple[str, str]:
    return "\n".join(_agreement_lines(compared.agreement)), "\n".join(_engine_lines(compared.engines))


def _agreement_lines(found: Agreement) -> Iterator[str]:
    live, simulated, low, high, error = found.live, found.simulated, found.lowest, found.highest, found.error
    verdict = "they agree" if found.agrees else "they do NOT agree"
    yield f"  {'':<12}{'live':>10}{'simulated':>11}{'over seeds':>20}{'off':>9}  {verdict}"
    over = f"{low.attainment:.1%} .. {high.attainment:.1%}"
    off = f"{100 * error.attainment:+.1f} pt"
    yield f"  {'attainment':<12}{live.attainment:>10.1%}{simulated.attainment:>11.1%}{over:>20}{off:>9}"
    for name, figure in _TIMES:
        real, said, least, most, off_by = (figure(one) for one in (live, simulated, low, high, error))
        over = f"{least:.2f} .. {most:.2f} s"
        yield f"  {name:<12}{real:>8.2f} s{said:>9.2f} s{over:>20}{off_by:>+9.1%}"
    yield f"  in place of the live session, {found.seeds_that_agree} of the {found.seeds} simulations would agree"


_TIMES: tuple[tuple[str, Callable[[Figures], float]], ...] = (
    ("TTFT p50", lambda figures: figures.p50_ttft_s),
    ("TTFT p95", lambda figures: figures.p95_ttft_s),
    ("TTFT mean", lambda figures: figures.mean_ttft_s),
)


def _engine_lines(engines: Sequence[EnginePart]) -> Iterator[str]:
    yield f"  {'each engine on its own calls':<30}{'calls':>6}{'live':>12}{'simulated':>12}{'off':>8}"
    for part in engines:
        name = f"{part.model} on {part.accelerator}"
        yield _engine_line(
            f"{name:<19}{'to first':<11}{part.calls:>6}", part.live_first_ms, part.simulated_first_ms
        )
        yield _engine_line(f"{'':<19}{'a gap':<17}", part.live_gap_ms, part.simulated_gap_ms)


def _engine_line(head: str, live_ms: float, simulated_ms: float) -> str:
    off = f"{simulated_ms / live_ms - 1:+.1%}" if live_ms else "-"
    return f"  {head}{live_ms:>9.1f} ms{simulated_ms:>9.1f} ms{off:>8}"
