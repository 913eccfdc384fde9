"""
Laws of the fit
1. It recovers the coefficients of exact samples within 1e-6, zero ones included.
2. The order of samples does not matter, to the bit.
3. No coefficient is negative, whatever was measured.
4. Slower by a factor measured, slower by that factor fitted.
5. No single coefficient can be moved to make the relative errors smaller.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tightrope.model.errors import InvalidInput
from tightrope.model.profile import Coefficients
from tightrope.profiler.fit import KINDS, StepSample, fit, mape, predicted_ms

DATA = Path(__file__).parents[1] / "data" / "step_times_two_pairs.csv"


def maybe_zero(low: float, high: float) -> st.SearchStrategy[float]:
    return st.one_of(st.just(0.0), st.floats(low, high))


def truths() -> st.SearchStrategy[Coefficients]:
    return st.builds(
        Coefficients,
        a=st.floats(0.5, 50),
        b=maybe_zero(1e-3, 20),
        c=maybe_zero(1e-5, 0.1),
        d=maybe_zero(1e-3, 10),
        e=maybe_zero(1e-7, 1e-2),
    )


def grid(truth: Coefficients) -> list[StepSample]:
    """Exact samples on a grid like that of a measurement."""
    prefills = [
        StepSample("prefill", 1, prompt_tokens=n, pairs=n * n / 2, steps=-(-n // 512))
        for n in (16, 64, 256, 1024, 4096)
    ]
    decodes = [
        StepSample("decode", 1, sequences=count, context_tokens=count * context)
        for count, context in product((1, 2, 4, 8), (32, 512, 2048))
    ]
    mixed = [
        StepSample("mixed", 1, count, count * 256, n, n * n / 2, steps=1.5)
        for count, n in product((1, 4), (64, 512))
    ]
    return [replace(sample, measured_ms=predicted_ms(truth, sample)) for sample in prefills + decodes + mixed]


def values(coefficients: Coefficients) -> list[float]:
    return [coefficients.a, coefficients.b, coefficients.c, coefficients.d, coefficients.e]


def measured(numbers: Sequence[float]) -> list[StepSample]:
    shapes = grid(Coefficients(1, 1, 1, 1, 1))
    return [replace(sample, measured_ms=ms) for sample, ms in zip(shapes, numbers, strict=True)]


anything = st.lists(st.floats(0.01, 1e5), min_size=21, max_size=21).map(measured)


@given(truths())
def test_1_exact_samples_give_back_their_coefficients(truth: Coefficients) -> None:
    found, error = fit(grid(truth))
    assert values(found) == pytest.approx(values(truth), rel=1e-6, abs=1e-12)
    assert max(error.prefill, error.decode, error.mixed) < 1e-6


@settings(max_examples=30)
@given(anything, st.integers(0, 2**32))
def test_2_order_does_not_matter(samples: list[StepSample], seed: int) -> None:
    shuffled = list(samples)
    Random(seed).shuffle(shuffled)
    assert fit(shuffled) == fit(samples)


@given(anything)
def test_3_nothing_is_negative(samples: list[StepSample]) -> None:
    assert min(values(fit(samples)[0])) >= 0


@settings(max_examples=30)
@given(anything, st.floats(0.01, 100))
def test_4_a_slower_engine_is_slower_in_everything(samples: list[StepSample], factor: float) -> None:
    slower = [replace(sample, measured_ms=factor * sample.measured_ms) for sample in samples]
    assert values(fit(slower)[0]) == pytest.approx(
        values(fit(samples)[0].scaled(factor)), rel=1e-6, abs=1e-12
    )


@given(anything, st.integers(0, 4), st.sampled_from((-1e-3, 1e-3)))
def test_5_no_neighbour_is_better(samples: list[StepSample], column: int, change: float) -> None:
    best = fit(samples)[0]
    moved = values(best)
    moved[column] = max(0.0, moved[column] * (1 + change) + max(0.0, change) * 1e-9)
    assert squares(best, samples) <= squares(Coefficients(*moved), samples) + 1e-9


def squares(coefficients: Coefficients, samples: Sequence[StepSample]) -> float:
    return sum((predicted_ms(coefficients, s) / s.measured_ms - 1) ** 2 for s in samples)


def test_samples_of_one_kind_leave_what_they_do_not_show_at_zero() -> None:
    decodes = [sample for sample in grid(Coefficients(6, 1, 0.01, 4, 0.001)) if sample.kind == "decode"]
    found, _ = fit(decodes)
    assert (found.d, found.e) == (0, 0)
    assert (found.a, found.b, found.c) == pytest.approx((6, 1, 0.01))


@pytest.mark.parametrize("wrong_ms", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_is_no_time_is_refused(wrong_ms: float) -> None:
    samples = grid(Coefficients(1, 1, 1, 1, 1))
    with pytest.raises(InvalidInput, match="no measurement"):
        fit([*samples, StepSample("decode", wrong_ms, 1, 1)])


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(InvalidInput, match="larger grid"):
        fit([StepSample("decode", 1.0, 1, 1)] * 4)


@pytest.mark.parametrize(
    ("model", "card", "prefill", "decode", "mixed"),
    [
        ("meta-llama/Meta-Llama-3.1-8B", "h100_sxm", 0.095, 0.029, 0.071),
        ("Qwen/Qwen3-1.7B", "l40s", 0.085, 0.043, 0.048),
    ],
)
def test_one_fit_describes_a_real_card_in_all_kinds_of_steps(
    model: str, card: str, prefill: float, decode: float, mixed: float
) -> None:
    samples = [_measured(row) for row in _rows() if (row["model"], row["gpu"]) == (model, card)]
    found, held_out = fit(samples)
    errors = [mape(found, [s for s in samples if s.kind == kind]) for kind in KINDS]
    assert errors == pytest.approx([prefill, decode, mixed], abs=0.001)
    assert held_out.samples == len(samples) == 209
    assert [held_out.prefill, held_out.decode, held_out.mixed] == pytest.approx(errors, rel=0.1)


def _rows() -> list[dict[str, str]]:
    with DATA.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _measured(row: dict[str, str]) -> StepSample:
    count, new, context = (int(row[name]) for name in ("batch", "tokens_new_per_seq", "context_per_seq"))
    latency_ms = float(row["latency_ms"])
    if row["kind"] == "prefill":
        return StepSample(
            "prefill", latency_ms, prompt_tokens=count * new, pairs=count * new * (context + new / 2)
        )
    if row["kind"] == "decode":
        return StepSample("decode", latency_ms, count, count * context)
    chunk = int(row["kind"].removeprefix("mixed_ctx"))
    return StepSample("mixed", latency_ms, count, count * context, chunk, chunk * chunk / 2)
