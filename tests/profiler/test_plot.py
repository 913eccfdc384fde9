"""Pictures and tables: they hold what was measured, and say what is missing."""

from __future__ import annotations

import builtins
from pathlib import Path
from types import ModuleType

import pytest

from tightrope.model.errors import InvalidInput
from tightrope.model.ids import AcceleratorName, ModelName
from tightrope.model.profile import Coefficients, FitError, Profile
from tightrope.profiler.fit import StepSample
from tightrope.profiler.plot import check_table, draw_fit, draw_verification, fit_table, verification_table
from tightrope.profiler.verify import Check, StreamError, Verification

PROFILE = Profile(
    model=ModelName("tiny/one"),
    accelerator=AcceleratorName("bench"),
    coefficients=Coefficients(6, 5, 0.01, 4, 0.002),
    step_tokens=64,
    max_sequences=4,
    kv_tokens=8192,
    error=FitError(0.02, 0.11, 0.05, 3),
)
SAMPLES = (
    StepSample("prefill", 70, prompt_tokens=16, pairs=128),
    StepSample("decode", 12, 1, 100),
    StepSample("mixed", 300, 2, 200, 64, 2048),
)
VERIFICATION = Verification(
    checks=(Check(1, "together", 40, 170, 160), Check(2, "joining", 80, 300, 420)),
    by_streams=(StreamError(1, 1, 0.0625, 0.0625, 0.0625), StreamError(2, 1, 0.286, 0.286, -0.286)),
)


def test_both_forms_of_a_picture_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for png, svg in (
        draw_fit(PROFILE, SAMPLES, tmp_path),
        draw_verification(PROFILE, VERIFICATION, tmp_path),
    ):
        assert png.read_bytes().startswith(b"\x89PNG")
        assert "<svg" in svg.read_text(encoding="utf-8")
        assert png.parent == tmp_path


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def refuse(name: str, *rest: object) -> ModuleType:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return importing(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InvalidInput, match="extra `plot`"):
        draw_fit(PROFILE, SAMPLES, tmp_path)


def test_nothing_measured_is_nothing_to_draw(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(InvalidInput, match="no sample"):
        draw_fit(PROFILE, (), tmp_path)


def test_the_table_of_the_fit_has_every_coefficient_with_its_error() -> None:
    table = fit_table(PROFILE, SAMPLES)
    for name, number in (("a", "6"), ("b", "5"), ("c", "0.01"), ("d", "4"), ("e", "0.002")):
        assert any(line.split()[:1] == [name] and number in line.split() for line in table.splitlines())
    assert "11.0%" in next(line for line in table.splitlines() if line.split()[:1] == ["decode"])


def test_the_table_of_a_verification_has_the_verdict() -> None:
    table = verification_table(VERIFICATION)
    assert "DOES NOT PREDICT" in table
    assert "28.6%" in table
    assert "predicts" in verification_table(Verification((), VERIFICATION.by_streams[:1]))
    assert "+6%" in check_table(VERIFICATION.checks).splitlines()[1]
