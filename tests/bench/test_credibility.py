"""The gate: the simulated engine comes out like the recorded vLLM."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean

import pytest

from tightrope.bench.credibility import (
    CALIBRATED,
    TOLERANCE,
    Comparison,
    Credibility,
    credibility,
    credibility_table,
    recorded,
    replay,
)
from tightrope.bench.hardware import DATA, HARDWARE
from tightrope.model.codec import decode, encode
from tightrope.model.errors import InvalidInput
from tightrope.model.profile import Profile


@cache
def found() -> Credibility:
    return credibility()


def a_profile(host_ms: float) -> Profile:
    return HARDWARE.profile("Llama-3.1-8B", "rtx_pro_6000", host_ms=host_ms)


def errors(compared: Comparison) -> list[float]:
    return [compared.error.ttft_s, compared.error.tpot_s, compared.error.latency_p95_s]


def test_the_simulated_engine_is_credible() -> None:
    assert found().is_credible
    assert [error for error in errors(found().judged) if abs(error) > TOLERANCE] == []


def test_requests_that_calibrate_do_not_judge() -> None:
    assert (found().calibration.requests, found().judged.requests) == (100, 200)
    assert abs(found().calibration.error.tpot_s) < 0.001
    assert 2.0 < found().host_ms < 5.0


def test_requests_that_wait_for_no_seat_come_out_like_the_recorded_ones() -> None:
    # Each by itself, not only their mean: in these two or three steps a scheduler that is ahead can be told apart.
    recording = recorded()
    off_s = {
        is_ahead: fmean(
            abs(seen.first_s - real.first_s)
            for seen, real in zip(
                replay(recording, a_profile(found().host_ms), is_ahead=is_ahead)[:CALIBRATED],
                recording,
                strict=False,
            )
        )
        for is_ahead in (True, False)
    }
    assert off_s[True] < 0.015
    assert off_s[False] > 2 * off_s[True]


@pytest.mark.parametrize("host_ms", [0.0, 6.0])
def test_the_gate_closes_for_an_engine_with_another_overhead(host_ms: float) -> None:
    recording = recorded()
    simulated = replay(recording, a_profile(host_ms))[CALIBRATED:]
    real_s, simulated_s = (
        fmean(seen.first_s - seen.arrived_s for seen in part) for part in (recording[CALIBRATED:], simulated)
    )
    assert abs(simulated_s / real_s - 1) > TOLERANCE


def test_the_gate_closes_when_the_recording_is_of_a_slower_engine(tmp_path: Path) -> None:
    for name in ("accelerators.csv", "models.csv", "step-times.csv.gz"):
        (tmp_path / name).write_bytes((DATA / name).read_bytes())
    head, *rows = (DATA / "vllm-run.csv").read_text().splitlines()
    slower = [_later(row) if index >= CALIBRATED else row for index, row in enumerate(rows)]
    (tmp_path / "vllm-run.csv").write_text("\n".join([head, *slower]))
    closed = credibility(tmp_path)
    assert not closed.is_credible
    assert "NOT credible" in credibility_table(closed)


def _later(row: str) -> str:
    """The same request, its first and last token 10 % later."""
    arrived, *between, first, last = row.split(",")
    at_s = float(arrived)
    return ",".join([arrived, *between, *(str(at_s + 1.1 * (float(seen) - at_s)) for seen in (first, last))])


def test_what_was_found_is_a_value_and_a_text() -> None:
    assert decode(Credibility, encode(found())) == found()
    lines = credibility_table(found()).splitlines()
    assert any("200 that judge" in line and "mean TTFT" in line for line in lines)
    assert lines[-1].startswith("credible")
    assert "NOT credible" in credibility_table(replace(found(), is_credible=False))


def test_a_recording_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is missing"):
        recorded(tmp_path)
