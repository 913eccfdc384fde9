"""Parity: a live session, decided again from its journal, and played again on simulated engines.

Owns the comparison of whole runs, in which small differences change decisions. Reading the journal is `recorded.py`,
engines call by call are `parity_engines.py`, the page is `parity_text.py`; making a live session is the application's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from tightrope.bench.parity_engines import EnginePart, calibrated_slowness, engine_parts, truths
from tightrope.bench.recorded import SeenRun, Session, session, world
from tightrope.kernel.journal import Difference, replay
from tightrope.model.errors import InvalidInput
from tightrope.model.messages import FinishRun
from tightrope.model.outcome import Outcome, Verdict
from tightrope.reports.summary import percentile
from tightrope.sim.driver import simulate
from tightrope.sim.world import RunRecord

ATTAINMENT_POINTS, P50_OFF, P95_OFF = 0.03, 0.10, 0.15
"""How far simulation and reality may be apart: attainment, and the relative error of times to the first token."""
CALIBRATED_PART = 1 / 3
"""The first runs calibrate how fast engines are under each other's load; the others judge."""
SEEDS = tuple(range(100, 111))
"""Noise of the steps is drawn anew for each; what a simulation says is the median over them."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Some runs: the share that kept their promise, and seconds to the first content over those that gave any."""

    attainment: float
    p50_ttft_s: float
    p95_ttft_s: float
    mean_ttft_s: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """The same runs, live and simulated (each figure the median over seeds; `lowest` and `highest` of them).

    `error` is simulated - live for the attainment and simulated / live - 1 for times. `agrees`: attainment, p50 and
    p95 are within what is allowed. `seeds_that_agree` of the `seeds` would agree with the median if they were the live
    session: how often a perfect simulation would pass, the load being as long as it is.
    """

    runs: int
    live: Figures
    simulated: Figures
    lowest: Figures
    highest: Figures
    error: Figures
    agrees: bool
    seeds: int
    seeds_that_agree: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Engines that take `slowness` times as long as their profiles say, against the live ones."""

    slowness: float
    engines: tuple[EnginePart, ...]
    agreement: Agreement


@dataclass(frozen=True, slots=True)
class Parity:
    """What a live session and its simulation say of each other.

    `difference` is None when a replay of the journal gave every command again. `left_out` runs are played but not
    compared: something went wrong with them that the simulation does not know. `raw` takes profiles as they were
    measured, over all others; `everyone` adds those left out, lengths being guessed where nobody knows.
    `calibrated` has one number, the slowness, set on the engines' calls of the first `calibration_runs` runs and is
    judged on the others.
    """

    difference: Difference | None
    left_out: int
    raw: Comparison
    everyone: Agreement
    calibration_runs: int
    calibrated: Comparison

    @property
    def holds(self) -> bool:
        """Whether decisions are the same and the raw simulation agrees."""
        return self.difference is None and self.raw.agreement.agrees


def parity(lines: Sequence[str], from_s: float = 0.0, seeds: Sequence[int] = SEEDS) -> Parity:
    """Compare the runs that arrived at `from_s` (on the journal's clock) or later; all are played, once a seed.

    Raises InvalidInput for a journal that is not that of one whole session, or with too few runs to compare.
    """
    found = session(lines)
    counted = [run for run in found.runs if found.start_s + run.script.at_s >= from_s]
    kept = [run for run in counted if not run.is_disturbed]
    first = kept[: round(CALIBRATED_PART * len(kept))]
    others = kept[len(first) :]
    if not first:
        raise InvalidInput(f"{len(kept)} undisturbed runs are too few to compare")
    slowness = calibrated_slowness(found, {run.script.run for run in first})
    as_measured = _plays(found, 1.0, seeds)
    ended = [run for run in counted if run.finish is not None]
    return Parity(
        difference=replay(lines),
        left_out=len(counted) - len(kept),
        raw=_comparison(found, kept, 1.0, as_measured),
        everyone=_agreement(ended, as_measured),
        calibration_runs=len(first),
        calibrated=_comparison(found, others, slowness, _plays(found, slowness, seeds)),
    )


def _plays(found: Session, slowness: float, seeds: Sequence[int]) -> list[list[RunRecord]]:
    """The whole session, once for each seed."""
    known = truths(found.profiles, slowness)
    return [simulate(world(found, known, seed=seed), found.scripts) for seed in seeds]


def _comparison(
    found: Session, runs: Sequence[SeenRun], slowness: float, plays: Sequence[Sequence[RunRecord]]
) -> Comparison:
    engines = engine_parts(found, slowness, {run.script.run for run in runs})
    return Comparison(slowness, engines, _agreement(runs, plays))


# --- whole runs ------------------------------------------------------------------------------------------


def _agreement(runs: Sequence[SeenRun], plays: Sequence[Sequence[RunRecord]]) -> Agreement:
    wanted = {run.script.run for run in runs}
    live = _live(runs)
    simulated = [_simulated([record for record in play if record.run in wanted]) for play in plays]
    middle = _over(simulated, median)
    error = _error(middle, live)
    return Agreement(
        runs=len(runs),
        live=live,
        simulated=middle,
        lowest=_over(simulated, min),
        highest=_over(simulated, max),
        error=error,
        agrees=_is_allowed(error),
        seeds=len(simulated),
        seeds_that_agree=sum(_is_allowed(_error(middle, one)) for one in simulated),
    )


def _error(simulated: Figures, live: Figures) -> Figures:
    return Figures(
        attainment=simulated.attainment - live.attainment,
        p50_ttft_s=simulated.p50_ttft_s / live.p50_ttft_s - 1,
        p95_ttft_s=simulated.p95_ttft_s / live.p95_ttft_s - 1,
        mean_ttft_s=simulated.mean_ttft_s / live.mean_ttft_s - 1,
    )


def _is_allowed(error: Figures) -> bool:
    return (
        abs(error.attainment) <= ATTAINMENT_POINTS
        and abs(error.p50_ttft_s) <= P50_OFF
        and abs(error.p95_ttft_s) <= P95_OFF
    )


def _live(runs: Sequence[SeenRun]) -> Figures:
    finishes = [run.finish for run in runs if run.finish is not None]
    return _figures(list(map(_is_met, finishes)), [finish.ttft_s for finish in finishes])


def _is_met(finish: FinishRun) -> bool:
    """As the simulator judges: where nothing was promised, a whole answer will do."""
    return finish.verdict is Verdict.MET or (
        finish.verdict is Verdict.NONE and finish.outcome is Outcome.SUCCEEDED
    )


def _simulated(records: Sequence[RunRecord]) -> Figures:
    return _figures([record.is_met for record in records], [record.ttft_s for record in records])


def _figures(met: Sequence[bool], ttfts_s: Sequence[float | None]) -> Figures:
    known = [ttft_s for ttft_s in ttfts_s if ttft_s is not None]
    if not known or not min(known) > 0:
        raise InvalidInput("no run took any time to give content, so there is nothing to compare")
    p50_s, p95_s = percentile(known, 0.5), percentile(known, 0.95)
    return Figures(fmean(met), p50_s or 0.0, p95_s or 0.0, fmean(known))


def _over(found: Sequence[Figures], pick: Callable[[Iterable[float]], float]) -> Figures:
    return Figures(
        attainment=pick([figures.attainment for figures in found]),
        p50_ttft_s=pick([figures.p50_ttft_s for figures in found]),
        p95_ttft_s=pick([figures.p95_ttft_s for figures in found]),
        mean_ttft_s=pick([figures.mean_ttft_s for figures in found]),
    )
