"""Measuring an engine whose step times are known: what is found, what is kept, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.profiler.world import TRUTH, Faults, StepEngine
from tightrope.model.errors import ProfilingFailed
from tightrope.model.ids import AcceleratorName, ModelName
from tightrope.ports import EngineFacts
from tightrope.profiler.grid import Grid, Point
from tightrope.profiler.measure import Profiled, profile_engine
from tightrope.testing.clock import ManualClock

FACTS = EngineFacts(build="steps 1", digest="abc", max_sequences=4, context_tokens=2048, step_tokens=64)
SMALL = replace(Grid.full(512, 4), passes=2, gaps=6)


async def profiled(
    engine: StepEngine,
    clock: ManualClock,
    grid: Grid = SMALL,
    facts: EngineFacts = FACTS,
    resume: Path | None = None,
    told: list[tuple[int, int, str]] | None = None,
) -> Profiled:
    return await profile_engine(
        engine,
        model=ModelName("tiny"),
        accelerator=AcceleratorName("bench"),
        facts=facts,
        grid=grid,
        clock=clock,
        resume=resume,
        progress=None if told is None else lambda done, total, label: told.append((done, total, label)),
        load_s=1.5,
        memory_bytes=2**20,
        measured_at="2025-01-02",
    )


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest.mark.parametrize("grid", [SMALL, Grid.quick()], ids=["full", "quick"])
@pytest.mark.parametrize("slower", [1.0, 3.3])
async def test_the_coefficients_of_the_engine_are_found(grid: Grid, slower: float) -> None:
    clock = ManualClock()
    truth = TRUTH.scaled(slower)
    result = await profiled(StepEngine(clock, truth), clock, grid)
    found = result.profile.coefficients
    assert [found.a, found.b, found.c, found.d, found.e] == pytest.approx(
        [truth.a, truth.b, truth.c, truth.d, truth.e], rel=0.05
    )
    assert (result.refusal, result.warnings) == (None, ())
    assert result.profile.error is not None
    assert result.profile.error.samples == len(result.samples)


async def test_the_profile_carries_what_the_engine_and_the_caller_said() -> None:
    clock = ManualClock()
    profile = (await profiled(StepEngine(clock), clock, Grid.quick())).profile
    assert (profile.model, profile.accelerator) == ("tiny", "bench")
    assert (profile.digest, profile.engine, profile.measured_at) == ("abc", "steps 1", "2025-01-02")
    assert (profile.load_s, profile.memory_bytes) == (1.5, 2**20)
    assert (profile.step_tokens, profile.max_sequences, profile.kv_tokens) == (64, 4, 4 * 2048)


@pytest.mark.parametrize("step_tokens", [32, 64])
async def test_the_step_budget_is_read_off_the_steps_when_the_engine_does_not_say(step_tokens: int) -> None:
    clock = ManualClock()
    facts = replace(FACTS, step_tokens=None)
    result = await profiled(StepEngine(clock, step_tokens=step_tokens), clock, facts=facts)
    assert result.profile.step_tokens == step_tokens
    assert result.profile.coefficients.d == pytest.approx(TRUTH.d, rel=0.05)


async def test_a_step_budget_no_prompt_reaches_is_assumed_with_a_warning() -> None:
    clock = ManualClock()
    result = await profiled(
        StepEngine(clock, step_tokens=512), clock, Grid.quick(), replace(FACTS, step_tokens=None)
    )
    assert result.profile.step_tokens == 2048
    assert "no prompt filled an engine step" in result.warnings[0]


async def test_a_step_budget_the_engine_does_not_keep_is_a_warning() -> None:
    clock = ManualClock()
    result = await profiled(StepEngine(clock, step_tokens=32), clock, facts=replace(FACTS, step_tokens=512))
    assert any("check its batch size" in warning for warning in result.warnings)


async def test_no_prompt_is_sent_twice_not_even_by_a_second_measurement() -> None:
    clock = ManualClock()
    engine = StepEngine(clock)
    await profiled(engine, clock)
    await profiled(engine, clock)
    beginnings = [" ".join(prompt.split()[:8]) for prompt in engine.prompts]
    assert len(set(beginnings)) == len(beginnings)


async def test_a_quick_grid_ends_within_its_budget_after_one_pass() -> None:
    clock = ManualClock()
    grid = replace(Grid.quick(), budget_s=3.0)
    told: list[tuple[int, int, str]] = []
    await profiled(StepEngine(clock, TRUTH.scaled(3.3)), clock, grid, told=told)
    assert len(told) == len(grid.points) + 1


async def test_progress_counts_up_to_the_end() -> None:
    clock = ManualClock()
    told: list[tuple[int, int, str]] = []
    await profiled(StepEngine(clock), clock, told=told)
    total = SMALL.passes * len(SMALL.points)
    assert [done for done, _, _ in told] == list(range(total + 1))
    assert told[-1] == (total, total, "measured")


async def test_an_interrupted_measurement_goes_on_where_it_stopped(tmp_path: Path) -> None:
    clock = ManualClock()
    whole = StepEngine(clock)
    expected = (await profiled(whole, clock)).profile.coefficients

    dying = StepEngine(clock, faults=Faults(dies_after=len(whole.prompts) // 2))
    with pytest.raises(ProfilingFailed):
        await profiled(dying, clock, resume=tmp_path)
    (journal,) = files(tmp_path)
    visits = len(journal.read_text(encoding="utf-8").splitlines())

    told: list[tuple[int, int, str]] = []
    second = StepEngine(clock)
    result = await profiled(second, clock, resume=tmp_path, told=told)
    warm_up = 1
    sent_for_finished_visits = len(whole.prompts) - warm_up - (len(second.prompts) - warm_up)
    points = [point for _ in range(SMALL.passes) for point in SMALL.points][:visits]
    assert visits > 0
    assert sent_for_finished_visits == sum(point.streams + 1 for point in points)
    assert result.profile.coefficients.d == pytest.approx(expected.d, rel=0.02)
    assert files(tmp_path) == []


async def test_a_torn_last_line_and_a_line_of_rubbish_are_measured_again(tmp_path: Path) -> None:
    clock = ManualClock()
    with pytest.raises(ProfilingFailed):
        await profiled(StepEngine(clock, faults=Faults(dies_after=6)), clock, resume=tmp_path)
    (journal,) = files(tmp_path)
    lines = journal.read_text(encoding="utf-8")
    journal.write_text("rubbish\n" + lines + lines.splitlines()[0][:40], encoding="utf-8")
    engine = StepEngine(clock)
    await profiled(engine, clock, resume=tmp_path)
    finished = len(lines.splitlines())
    left = [point for _ in range(SMALL.passes) for point in SMALL.points][finished:]
    assert finished > 0
    assert len(engine.prompts) == 1 + sum(point.streams + 1 for point in left)
    assert files(tmp_path) == []


async def test_another_engine_build_does_not_go_on_from_the_journal(tmp_path: Path) -> None:
    clock = ManualClock()
    with pytest.raises(ProfilingFailed):
        await profiled(StepEngine(clock, faults=Faults(dies_after=6)), clock, resume=tmp_path)
    engine = StepEngine(clock)
    await profiled(engine, clock, facts=replace(FACTS, build="steps 2"), resume=tmp_path)
    assert len(engine.prompts) == 1 + sum(point.streams + 1 for point in SMALL.points * SMALL.passes)
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (Faults(dies_after=0), r"warm-up: the engine failed \(replica_lost\): connection refused"),
        (Faults(dies_after=4), r"the engine failed \(replica_lost\)"),
        (Faults(hangs_after=0), r"warm-up: no complete answer within 0.05 s, 0 tokens came"),
        (Faults(tells_usage=False), "reports no usage"),
        (Faults(longest_answer=1), "the engine stops before max_tokens"),
        (Faults(cached_share=0.5), "from a cache; start it without prompt caching"),
        (Faults(is_buffered=True), "tokens come all at once"),
    ],
    ids=["dead", "dies", "hangs", "no usage", "stops", "cache", "buffered"],
)
async def test_an_engine_that_cannot_be_measured_says_what_and_where(faults: Faults, said: str) -> None:
    clock = ManualClock()
    grid = replace(SMALL, request_limit_s=0.05 if faults.hangs_after is not None else 60.0)
    with pytest.raises(ProfilingFailed, match=said):
        await profiled(StepEngine(clock, faults=faults), clock, grid)


async def test_an_engine_that_does_not_know_ignore_eos_is_measured_without_it() -> None:
    clock = ManualClock()
    result = await profiled(StepEngine(clock, faults=Faults(refuses_ignore_eos=True)), clock, Grid.quick())
    assert result.profile.coefficients.d == pytest.approx(TRUTH.d, rel=0.05)


class Erratic(StepEngine):
    """Every second step takes three times as long as the model says."""

    steps = 0

    def _step_ms(self, *batch: object) -> float:
        self.steps += 1
        return super()._step_ms(*batch) * (3 if self.steps // 40 % 2 else 1)  # type: ignore[arg-type]


async def test_a_fit_that_misses_is_refused_and_only_doubted_on_a_quick_grid() -> None:
    clock = ManualClock()
    strict = await profiled(Erratic(clock), clock)
    assert strict.refusal is not None
    assert "above 25%" in strict.refusal
    loose = await profiled(Erratic(clock), clock, replace(SMALL, strict=False))
    assert loose.refusal is None
    assert "on average" in loose.warnings[0]


def test_a_grid_leaves_out_what_the_engine_cannot_hold() -> None:
    assert {point.streams for point in Grid.quick().fitted_to(2, 2048).points} == {0, 1}
    assert max(point.prompt_tokens for point in Grid.full(2048, 4).points) == 1024
    assert {point.streams for point in Grid.full(2048, 6).points} == {0, 1, 2, 4, 5}
    assert Grid.full(128, 1).points == (Point(0, 0, 16),)
