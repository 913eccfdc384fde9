"""Verification on an engine whose step times are known: the right profile passes, a wrong one does not."""

from __future__ import annotations

import math

import pytest

from tests.profiler.world import TRUTH, Faults, StepEngine
from tightrope.model.errors import InvalidInput, ProfilingFailed
from tightrope.model.ids import ModelName
from tightrope.model.profile import Coefficients
from tightrope.profiler.verify import Others, Predict, Verification, verify
from tightrope.testing.clock import ManualClock


def predictor(k: Coefficients, step_tokens: int) -> Predict:
    def predict(prompt_tokens: int, others: Others) -> float:
        prompts = [*others.ahead_tokens, prompt_tokens]
        per_step = k.step_ms(len(others.decoding_tokens), sum(others.decoding_tokens))
        steps = math.ceil(sum(prompts) / (step_tokens - len(others.decoding_tokens)))
        under_way = per_step / 2 if others.decoding_tokens else 0.0
        return under_way + steps * per_step + k.d * sum(prompts) + k.e * sum(n * n / 2 for n in prompts)

    return predict


async def verified(
    believed: Coefficients, step_tokens: int = 64, faults: Faults | None = None
) -> Verification:
    clock = ManualClock()
    engine = StepEngine(clock, step_tokens=step_tokens, faults=faults)
    return await verify(
        engine,
        model=ModelName("tiny"),
        step_tokens=step_tokens,
        predict=predictor(believed, step_tokens),
        clock=clock,
        rounds=4,
    )


@pytest.mark.parametrize("step_tokens", [64, 512])
async def test_the_true_profile_predicts_prompts_alone_together_and_joining(step_tokens: int) -> None:
    result = await verified(TRUTH, step_tokens)
    assert result.is_accepted
    assert [(row.streams, row.checks) for row in result.by_streams] == [(1, 4), (2, 12), (4, 20)]
    assert {check.arrival for check in result.checks} == {"together", "joining"}
    alone = [check for check in result.checks if check.streams == 1]
    assert [check.error for check in alone] == pytest.approx([0] * 4, abs=1e-6)


async def test_a_profile_half_as_slow_as_the_engine_is_found_out() -> None:
    result = await verified(TRUTH.scaled(0.5))
    assert not result.is_accepted
    assert all(row.bias < -0.4 and row.median_error > 0.4 for row in result.by_streams)


async def test_prompts_together_wait_for_each_other_in_the_order_they_came() -> None:
    result = await verified(TRUTH)
    fours = [check for check in result.checks if (check.streams, check.arrival) == (4, "together")]
    bursts = [fours[i : i + 4] for i in range(0, len(fours), 4)]
    for burst in bursts:
        times = [check.measured_ms for check in burst]
        assert times == sorted(times)


async def test_an_engine_that_dies_under_way_is_told() -> None:
    with pytest.raises(ProfilingFailed, match="prompts together: the engine failed"):
        await verified(TRUTH, faults=Faults(dies_after=3))


async def test_nothing_to_verify_is_refused() -> None:
    clock = ManualClock()
    with pytest.raises(InvalidInput, match="give streams"):
        await verify(
            StepEngine(clock),
            model=ModelName("tiny"),
            step_tokens=64,
            predict=lambda tokens, others: 1.0,
            clock=clock,
            rounds=0,
        )
