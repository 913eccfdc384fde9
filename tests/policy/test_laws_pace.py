"""
Laws of the pace of a replica
1. Without samples the factor is 1, and it goes back there when samples cease.
2. With a constant true factor in [1/2, 2] the learned one is within 5 % after 60 full samples, and stays.
3. It is always between 1 / MOST and MOST.
4. A sample at the believed pace changes nothing; a slower one never makes the factor smaller.
5. The level in use is within one step of the factor, and does not change when the factor wavers by half a step.
6. A profile at a level takes all times in proportion and keeps every size.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightrope.policy.pace import FORGET_S, FULL_TOKENS, MOST, STEP, Pace, at_pace
from tightrope.testing import a_profile

factors = st.floats(0.5, 2.0)
tokens = st.floats(1.0, 2000.0)


def taught(true_factor: float, samples: int, every_s: float = 0.5) -> Pace:
    """A pace after samples of a replica that really is `true_factor` times as slow as profiled."""
    pace = Pace()
    for number in range(samples):
        now_s = number * every_s
        pace.observe(64 * true_factor / pace.factor(now_s), 64, now_s)
    return pace


def test_1_without_samples_there_is_no_correction() -> None:
    assert Pace().factor(1000.0) == 1.0
    assert Pace().level(1000.0) == 0


@given(factors)
def test_1_it_is_forgotten(true_factor: float) -> None:
    pace = taught(true_factor, 100)
    assert pace.factor(50.0 + 10 * FORGET_S) == pytest.approx(1.0, abs=1e-3)
    assert pace.level(50.0 + 10 * FORGET_S) == 0


@given(factors, st.integers(60, 200))
def test_2_a_constant_factor_is_found(true_factor: float, samples: int) -> None:
    pace = taught(true_factor, samples)
    assert pace.factor((samples - 1) * 0.5) == pytest.approx(true_factor, rel=0.05)


@given(st.lists(st.tuples(tokens, tokens), max_size=200))
def test_3_it_stays_within_bounds(samples: list[tuple[float, float]]) -> None:
    pace = Pace()
    for number, (believed, real) in enumerate(samples):
        pace.observe(believed, real, float(number))
        assert 1 / MOST - 1e-9 <= pace.factor(float(number)) <= MOST + 1e-9


@given(st.floats(1.0, 2000.0), st.floats(1.0, 5.0))
def test_4_only_surprises_teach(real: float, slower: float) -> None:
    pace = taught(1.5, 20)
    before = pace.factor(10.0)
    pace.observe(real, real, 10.0)
    assert pace.factor(10.0) == pytest.approx(before)
    pace.observe(slower * real, real, 10.0)
    assert pace.factor(10.0) >= before * (1 - 1e-12)


def test_4_a_call_without_progress_teaches_nothing() -> None:
    pace = Pace()
    pace.observe(0.0, 10.0, 1.0)
    pace.observe(10.0, 0.0, 1.0)
    assert pace.factor(1.0) == 1.0


@given(st.lists(st.floats(0.3, 3.0), min_size=1, max_size=50))
def test_5_the_level_follows_the_factor(surprises: list[float]) -> None:
    pace = Pace()
    for number, surprise in enumerate(surprises):
        pace.observe(FULL_TOKENS * surprise, FULL_TOKENS, float(number))
        level = pace.level(float(number))
        assert abs(math.log(pace.factor(float(number))) / STEP - level) <= 0.75 + 1e-9


def test_5_the_level_does_not_flicker() -> None:
    pace = Pace()
    levels = set()
    for number in range(100):
        pace.observe(FULL_TOKENS * (1.15 if number % 2 else 1 / 1.15), FULL_TOKENS, number * 0.01)
        levels.add(pace.level(number * 0.01))
    assert levels == {0}


@given(st.integers(-14, 14), st.floats(1.0, 4000.0), st.floats(1.0, 600.0))
def test_6_a_level_scales_times_and_nothing_else(level: int, prompt: float, output: float) -> None:
    profile = a_profile()
    other = at_pace(profile, level)
    assert other.solo_ms(prompt, output) == pytest.approx(profile.solo_ms(prompt, output) * 1.1**level)
    assert (other.step_tokens, other.max_sequences, other.kv_tokens) == (
        profile.step_tokens, profile.max_sequences, profile.kv_tokens,
    )  # fmt: skip
