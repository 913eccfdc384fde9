"""Measure: drive a real engine over a grid and fit its profile.

Owns the order of visits and whether the result may be used. What one visit does is `visit.py`; keeping what
was measured, `journal.py`; storing the profile is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tightrope.model.ids import AcceleratorName, ModelName
from tightrope.model.profile import FitError, Profile
from tightrope.ports import Clock, Engine, EngineFacts
from tightrope.profiler.fit import StepSample, fit
from tightrope.profiler.grid import Grid
from tightrope.profiler.journal import ReadingJournal
from tightrope.profiler.probe import Probe
from tightrope.profiler.reading import Reading, infer_step_tokens, samples_of, typical
from tightrope.profiler.visit import visit

REFUSE_ABOVE = 0.25
WARN_ABOVE = 0.12

Progress = Callable[[int, int, str], None]

_CAUTIOUS_STEP_TOKENS = 64
_USUAL_STEP_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Profiled:
    """A measured profile. `refusal` says why it must not be used, None when it may; `warnings` are for people."""

    profile: Profile
    samples: tuple[StepSample, ...]
    warnings: tuple[str, ...]
    refusal: str | None = None


async def profile_engine(
    engine: Engine,
    *,
    model: ModelName,
    accelerator: AcceleratorName,
    facts: EngineFacts,
    grid: Grid,
    clock: Clock,
    resume: Path | None = None,
    progress: Progress | None = None,
    load_s: float = 0.0,
    memory_bytes: int = 0,
    kv_tokens: int | None = None,
    measured_at: str = "",
    seed: int = 0,
) -> Profiled:
    """Measure `grid` on an engine that nobody else uses meanwhile, and fit.

    Every finished visit is kept in the folder `resume`, and a later call with the same arguments goes on from
    there; the file is removed when all is measured. `progress(done, total, label)` is told before each visit
    and at the end. Without `kv_tokens` the engine is taken to hold its context for each of its sequences.

    Raises ProfilingFailed when the engine dies, stalls or answers nonsense, and StoreFailed when `resume`
    cannot be written; nothing is returned then, so that the caller's earlier profile stands.
    """
    grid = grid.fitted_to(facts.max_sequences, facts.context_tokens)
    key = {"model": model, "accelerator": accelerator, "digest": facts.digest, "engine": facts.build}
    journal = ReadingJournal(resume, key, grid)
    # A second measurement of a running engine must not repeat the prompts of the first: the clock differs.
    probe = Probe(engine, model, clock, Random(f"{seed} {clock.now()!r}"), grid.request_limit_s)
    await _visit_all(probe, grid, facts, journal, clock, progress or _say_nothing)
    readings = [typical(visits) for visits in journal.kept(grid.discarded_passes).values()]
    step_tokens, warnings = _step_tokens(readings, facts)
    samples = tuple(sample for reading in readings for sample in samples_of(reading, step_tokens))
    coefficients, error = fit(samples)
    refusal, doubts = _judge(error, grid)
    sequences = facts.max_sequences or 1 + max(point.streams for point in grid.points)
    context = facts.context_tokens or max(point.context_tokens + point.prompt_tokens for point in grid.points)
    profile = Profile(
        model=model,
        accelerator=accelerator,
        coefficients=coefficients,
        step_tokens=step_tokens,
        max_sequences=sequences,
        kv_tokens=kv_tokens or sequences * context,
        load_s=load_s,
        memory_bytes=memory_bytes or facts.memory_bytes or 0,
        digest=facts.digest,
        engine=facts.build,
        measured_at=measured_at,
        grid=grid.name,
        error=error,
    )
    journal.remove()
    return Profiled(profile, samples, warnings + doubts, refusal)


async def _visit_all(
    probe: Probe, grid: Grid, facts: EngineFacts, journal: ReadingJournal, clock: Clock, progress: Progress
) -> None:
    """Pass after pass, so that a disturbance of some seconds spoils one visit to a point and not all of them."""
    total = grid.passes * len(grid.points)
    done = 0
    started_s = clock.now()
    step_tokens = facts.step_tokens or _CAUTIOUS_STEP_TOKENS
    is_warm = False
    for pass_index in range(grid.passes):
        pass_started_s = clock.now()
        for point in grid.points:
            progress(done, total, str(point))
            if journal.get(pass_index, point) is None:
                if not is_warm:
                    await probe.warm_up()
                    is_warm = True
                journal.append(await visit(probe, point, pass_index, grid.gaps, step_tokens))
            done += 1
        now_s = clock.now()
        next_ends_s = now_s + (now_s - pass_started_s)
        if pass_index >= grid.discarded_passes and next_ends_s - started_s > grid.budget_s:
            break
    progress(total, total, "measured")


def _step_tokens(readings: Sequence[Reading], facts: EngineFacts) -> tuple[int, tuple[str, ...]]:
    """The engine's step budget: what it says, else what the number of steps tells, else the usual setting."""
    seen, said = infer_step_tokens(readings), facts.step_tokens
    if said is None and seen is not None:
        return seen, ()
    if said is None:
        assumed = (
            f"no prompt filled an engine step, so {_USUAL_STEP_TOKENS} tokens in a step are assumed: "
            "use a larger grid, or name the engine's batch size"
        )
        return _USUAL_STEP_TOKENS, (assumed,)
    if seen is None or said / 2 < seen < said * 2:
        return said, ()
    doubt = (
        f"the engine is said to compute {said} tokens in a step, but its streams went on as if it were "
        f"about {seen}: check its batch size"
    )
    return said, (doubt,)


def _judge(error: FitError, grid: Grid) -> tuple[str | None, tuple[str, ...]]:
    """Refusal and doubts about a fit. A quick grid only warns: it is for a first look, on a machine in use."""
    worst, kind = max((error.prefill, "prefill"), (error.decode, "decode"), (error.mixed, "mixed"))
    said = f"the step model misses {kind} by {worst:.0%} on average"
    if worst <= WARN_ABOVE:
        return None, ()
    if worst <= REFUSE_ABOVE or not grid.strict:
        return None, (f"{said}: measure again on a quieter machine, or with the full grid",)
    cure = "the profile is not used; measure again while nothing else uses the accelerator"
    return f"{said}, above {REFUSE_ABOVE:.0%}: {cure}", ()


def _say_nothing(done: int, total: int, label: str) -> None:
    """Progress for callers that want none."""
