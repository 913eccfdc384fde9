"""The table of measured hardware: what is in it, what is fitted from it, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tightrope.bench.hardware import HARDWARE, HardwareTable, profile
from tightrope.model.errors import InvalidInput
from tightrope.profiler.fit import mape


def test_every_model_was_measured_on_every_card() -> None:
    assert len(HARDWARE.models) * len(HARDWARE.accelerators) == 35
    for model in HARDWARE.models:
        for card in HARDWARE.accelerators:
            kinds = Counter(sample.kind for sample in HARDWARE.samples(model, card))
            assert kinds == {"prefill": 38, "decode": 111, "mixed": 60}


def test_the_joint_fit_is_near_separate_ones() -> None:
    # Coefficients of this pair, fitted elsewhere to decode steps and to prompts apart. The joint fit has one fixed
    # cost for all kinds of steps, so it is near both and equal to neither.
    k = profile("Llama-3.1-8B", "h100", host_ms=0.0).coefficients
    assert (k.a, k.c, k.d, k.e) == pytest.approx((6.366, 4.156e-5, 0.015197, 9.78e-7), rel=0.05)
    assert k.b == pytest.approx(0.011, rel=0.2)


@pytest.mark.parametrize("model", ["Llama-3.1-8B", "Qwen3-8B", "Qwen3-1.7B"])
def test_fitted_steps_are_near_the_measured_ones(model: str) -> None:
    for card in HARDWARE.accelerators:
        fitted = profile(model, card, host_ms=0.0)
        assert fitted.error is not None
        assert fitted.error.decode < 0.06
        assert fitted.error.prefill < 0.17
        assert fitted.error.mixed < 0.1
        assert mape(fitted.coefficients, HARDWARE.samples(model, card)) < 0.08


def test_memory_is_what_the_weights_leave() -> None:
    assert profile("Qwen3-8B", "h100").kv_tokens == int((0.9 * 80 - 16.4) * 1e9 / 147456)
    assert profile("Qwen3-8B", "b60").kv_tokens == 35264
    with pytest.raises(InvalidInput, match="Qwen3-32B does not fit on one l40s"):
        profile("Qwen3-32B", "l40s")


def test_a_profile_bears_the_names_and_the_setting_it_was_asked_by() -> None:
    short = profile("qwen3-8b", "H100", host_ms=2.5)
    full = HARDWARE.profile("Qwen/Qwen3-8B", "h100_sxm", step_tokens=512, max_sequences=16)
    assert (short.model, short.accelerator, full.model, full.accelerator) == (
        "qwen3-8b",
        "H100",
        "Qwen/Qwen3-8B",
        "h100_sxm",
    )
    assert short.coefficients.h == 2.5
    assert short.coefficients.d == full.coefficients.d
    assert (short.step_tokens, short.max_sequences) == (2048, 128)
    assert (full.step_tokens, full.max_sequences) == (512, 16)


def test_cards_have_memory_and_a_price() -> None:
    card = HARDWARE.accelerator("rtx_pro_6000")
    assert (card.name, card.memory_bytes, card.usd_per_h) == ("rtx_pro_6000", 96 * 10**9, 1.5)


def test_what_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="use one of a100, l40s"):
        profile("Qwen3-8B", "h900")
    with pytest.raises(InvalidInput, match=r"use one of Qwen3-0\.6B"):
        profile("gpt", "h100")
    with pytest.raises(InvalidInput, match="is missing"):
        HardwareTable(tmp_path).profile("Qwen3-8B", "h100")
