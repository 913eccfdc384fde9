"""
Laws of the forecast of arrivals
1. A constant rate is forecast as it is, however far ahead, and nothing as nothing.
2. Of a Poisson stream the deviation is about that of the count of a bin, and grows with the time ahead.
3. On a ramp upward the forecast is ahead of the present rate, and further ahead the further it looks.
4. Neither rate nor deviation is ever negative or infinite, and a high rate is never below the rate.
5. Asking changes nothing, and when within a bin a call came changes no forecast.
6. The envelope counts the calls of the latest stretch of each length.
7. Nothing is a surprise unless a stretch exceeds what a Poisson stream of the assumed rate would have; then it is the
   highest such rate, and with more tolerance it is never higher.
8. How much forecasts are exceeded is 1 until enough was seen, about 1 where the rate is constant, grows with the
   quantile, and tells of bursts.
"""

from __future__ import annotations

import math
from random import Random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.builders import numbers
from tightrope.policy.forecast import BIN_S, ENVELOPE_S, FEWEST_HELD, Arrivals, Forecast, surprise_per_s

GAPS = st.lists(numbers(0, 40), max_size=60)


def noted(moments: list[float]) -> Arrivals:
    """The history of these moments."""
    found = Arrivals()
    for at_s in moments:
        found.note(at_s)
    return found


def ascending(gaps: list[float], start_s: float = 0.0) -> list[float]:
    """Moments with these gaps between them."""
    moments = []
    for gap_s in gaps:
        start_s += gap_s
        moments.append(start_s)
    return moments


def poisson(rng: Random, per_s: float, until_s: float) -> list[float]:
    """Moments of a Poisson stream."""
    at_s, moments = 0.0, list[float]()
    while (at_s := at_s + rng.expovariate(per_s)) < until_s:
        moments.append(at_s)
    return moments


def evenly(counts: list[int], start_s: float = 0.0) -> list[float]:
    """So many moments in each bin, evenly spread."""
    return [
        start_s + BIN_S * (number + (index + 0.5) / count)
        for number, count in enumerate(counts)
        for index in range(count)
    ]


@given(st.integers(0, 40), st.integers(0, 10**6), numbers(0, 120))
def test_1_a_constant_rate_stays(per_bin: int, first_bin: int, ahead_s: float) -> None:
    start_s = first_bin * BIN_S
    history = noted(evenly([per_bin] * 80, start_s))
    found = history.forecast(start_s + 80 * BIN_S, ahead_s)
    assert found.per_s == pytest.approx(per_bin / BIN_S, rel=1e-3, abs=1e-6)
    assert found.deviation_per_s <= 0.05 * math.sqrt(max(1, per_bin))


def test_1_a_stream_that_ends_is_forgotten() -> None:
    history = noted(evenly([50] * 40))
    rates = [history.forecast(40 * BIN_S + after_s, 10.0).per_s for after_s in (0, 30, 60, 300)]
    assert rates[0] == pytest.approx(10.0, rel=0.01)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("per_s", [0.4, 2.0, 20.0])
def test_2_the_deviation_is_that_of_poisson(per_s: float) -> None:
    rates, variances = [], []
    for seed in range(40):
        history = noted(poisson(Random(seed), per_s, 600.0))
        found = history.forecast(600.0, BIN_S)
        rates.append(found.per_s)
        variances.append(found.deviation_per_s**2)
    assert fmean(rates) == pytest.approx(per_s, rel=0.15)
    # The error of a forecast is the chance of one bin, and a little for the level that is not known exactly.
    assert 0.8 <= fmean(variances) / (per_s / BIN_S) <= 2.0


@given(GAPS, numbers(0, 60), numbers(0, 60))
def test_2_what_is_further_ahead_is_less_certain(gaps: list[float], one_s: float, other_s: float) -> None:
    near_s, far_s = sorted((one_s, other_s))
    moments = ascending(gaps)
    history, now_s = noted(moments), (moments[-1] if moments else 0.0)
    near, far = history.forecast(now_s, near_s), history.forecast(now_s, far_s)
    assert near.deviation_per_s <= far.deviation_per_s + 1e-12


@given(st.integers(0, 20), st.integers(1, 10), st.integers(20, 60))
def test_3_a_ramp_is_run_ahead_of(first: int, step: int, bins: int) -> None:
    counts = [first + step * number for number in range(bins)]
    history, now_s = noted(evenly(counts)), bins * BIN_S
    rates = [history.forecast(now_s, ahead_s).per_s for ahead_s in (5 * BIN_S, 10 * BIN_S, 20 * BIN_S)]
    assert counts[-1] / BIN_S < rates[0] < rates[1] < rates[2]
    assert rates[2] < (counts[-1] + 20 * step) / BIN_S  # a trend is not believed to go on for ever


@given(GAPS, numbers(0, 200), numbers(0, 900), numbers(0, 5))
def test_4_nothing_is_negative(gaps: list[float], rest_s: float, ahead_s: float, deviations: float) -> None:
    moments = ascending(gaps)
    now_s = (moments[-1] if moments else 0.0) + rest_s
    found = noted(moments).forecast(now_s, ahead_s)
    assert 0 <= found.per_s < math.inf
    assert 0 <= found.deviation_per_s < math.inf
    assert found.per_s <= found.high_per_s(deviations) < math.inf


@given(st.lists(numbers(0, 100), max_size=10), numbers(0, 60))
def test_4_nobody_has_come_yet(gaps: list[float], ahead_s: float) -> None:
    history = Arrivals()
    for now_s in ascending(gaps):
        assert history.forecast(now_s, ahead_s) == Forecast(0.0, 0.0)


def test_4_before_a_bin_is_full_it_is_what_has_come_in_it() -> None:
    assert noted([100.5, 101.0, 102.0]).forecast(102.0, 30.0).per_s == pytest.approx(1.5)


@given(GAPS, st.lists(st.integers(0, 3), min_size=60, max_size=60), numbers(0, 60))
def test_5_asking_changes_nothing(gaps: list[float], questions: list[int], ahead_s: float) -> None:
    moments = ascending(gaps)
    silent, asked = noted(moments), Arrivals()
    for at_s, times in zip(moments, questions, strict=False):
        asked.note(at_s)
        for _ in range(times):
            asked.forecast(at_s, ahead_s)
            asked.envelope(at_s)
    now_s = (moments[-1] if moments else 0.0) + 7
    assert asked.forecast(now_s, ahead_s) == silent.forecast(now_s, ahead_s)
    assert asked.envelope(now_s) == silent.envelope(now_s)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(0, 2**32), numbers(0, 60))
def test_5_only_the_bin_counts(counts: list[int], seed: int, ahead_s: float) -> None:
    rng = Random(seed)
    shuffled = [BIN_S * (int(at_s // BIN_S) + rng.random()) for at_s in evenly(counts)]
    now_s = len(counts) * BIN_S
    assert noted(sorted(shuffled)).forecast(now_s, ahead_s) == noted(evenly(counts)).forecast(now_s, ahead_s)


@given(st.lists(numbers(0, 10), max_size=80), numbers(0, 70))
def test_6_the_envelope_counts(gaps: list[float], rest_s: float) -> None:
    moments = ascending(gaps)
    now_s = (moments[-1] if moments else 0.0) + rest_s
    found = noted(moments).envelope(now_s)
    assert [window_s for window_s, _ in found] == list(ENVELOPE_S)
    for window_s, per_s in found:
        count = len([at_s for at_s in moments if now_s - window_s < at_s <= now_s])
        assert per_s * window_s == pytest.approx(count)


@given(st.lists(numbers(0, 50), min_size=5, max_size=5), numbers(0, 50), numbers(0, 5), numbers(0, 5))
def test_7_a_surprise_exceeds(rates: list[float], assumed: float, one: float, other: float) -> None:
    envelope = list(zip(ENVELOPE_S, rates, strict=True))
    strict, lax = sorted((one, other))
    found = surprise_per_s(envelope, assumed, strict)
    surprising = [
        per_s
        for window_s, per_s in envelope
        if per_s - assumed > strict * math.sqrt(max(1.0, assumed * window_s)) / window_s + 1e-9
    ]
    assert found >= max(surprising, default=0.0)
    assert found == 0 or found in rates
    assert found == 0 or found > assumed
    assert surprise_per_s(envelope, assumed, lax) <= found


@given(GAPS, numbers(0, 20))
def test_7_what_was_assumed_is_no_surprise(gaps: list[float], deviations: float) -> None:
    moments = ascending(gaps)
    now_s = moments[-1] if moments else 0.0
    envelope = noted(moments).envelope(now_s)
    assert surprise_per_s(envelope, max(per_s for _, per_s in envelope), deviations) == 0


def test_7_a_burst_is_seen_in_the_short_windows() -> None:
    calm = [float(second) for second in range(60)]
    burst = [60 + index / 10 for index in range(40)]
    envelope = noted([*calm, *burst]).envelope(63.9)
    assert surprise_per_s(noted(calm).envelope(59.0), 1.0, 3.0) == 0
    assert surprise_per_s(envelope, 1.0, 3.0) == pytest.approx(10.0)


@given(st.lists(st.integers(0, 30), max_size=200), numbers(0.01, 1), numbers(0.01, 1))
def test_8_the_quantile_orders(counts: list[int], one: float, other: float) -> None:
    low, high = sorted((one, other))
    history = noted(evenly(counts))
    history.forecast(len(counts) * BIN_S, 0.0)
    assert 0 <= history.exceeded_by(low) <= history.exceeded_by(high)
    if len(counts) < FEWEST_HELD:
        assert history.exceeded_by(high) == 1.0


@given(st.integers(1, 40), numbers(0.01, 1))
def test_8_a_constant_rate_is_not_exceeded(per_bin: int, quantile: float) -> None:
    history = noted(evenly([per_bin] * 160))
    history.forecast(160 * BIN_S, 0.0)
    assert history.exceeded_by(quantile) == pytest.approx(1.0, rel=0.01)


def test_8_bursts_exceed() -> None:
    counts = [60 if number % 50 in (40, 41, 42) else 10 for number in range(500)]
    history = noted(evenly(counts))
    history.forecast(500 * BIN_S, 0.0)
    assert history.exceeded_by(0.5) == pytest.approx(1.0, rel=0.2)
    assert history.exceeded_by(0.99) > 3
