"""
Laws of a profile
1. A call alone takes the sum of its engine steps: prompts in chunks, then one token a step.
2. More prompt or output never makes it faster, more of the prompt in the cache never slower.
3. Scaling the coefficients scales every time.
4. Both phases add up to the whole.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightrope.model.ids import AcceleratorName, ModelName
from tightrope.model.profile import Coefficients, Profile


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    coefficients = Coefficients(
        a=draw(st.floats(0.5, 50)),
        b=draw(st.floats(0, 1)),
        c=draw(st.floats(0, 1e-3)),
        d=draw(st.floats(0.001, 2)),
        e=draw(st.floats(0, 1e-5)),
        h=draw(st.floats(0, 5)),
    )
    return Profile(
        ModelName("m"),
        AcceleratorName("card"),
        coefficients,
        step_tokens=draw(st.sampled_from([32, 512, 2048])),
        max_sequences=8,
        kv_tokens=100_000,
    )


tokens = st.integers(1, 5000)


@given(profiles(), tokens, st.integers(1, 200), st.integers(0, 5000))
def test_1_a_call_alone_is_the_sum_of_its_steps(profile: Profile, prompt: int, output: int, hit: int) -> None:
    hit = min(hit, prompt - 1)
    k, done, first_ms = profile.coefficients, hit, 0.0
    while done < prompt:
        chunk = min(profile.step_tokens, prompt - done)
        first_ms += k.step_ms(0, 0, chunk, chunk * (done + chunk / 2))
        done += chunk
    rest_ms = sum(k.step_ms(1, prompt + made) for made in range(1, output))
    assert profile.solo_ttft_ms(prompt, hit) == pytest.approx(first_ms)
    assert profile.solo_decode_ms(prompt, output) == pytest.approx(rest_ms)


@given(profiles(), tokens, tokens, tokens, tokens)
def test_2_more_never_makes_it_faster(profile: Profile, n1: int, n2: int, o1: int, o2: int) -> None:
    prompts, outputs = sorted((n1, n2)), sorted((o1, o2))
    assert profile.solo_ttft_ms(prompts[0]) <= profile.solo_ttft_ms(prompts[1])
    assert profile.solo_ms(prompts[0], outputs[0]) <= profile.solo_ms(prompts[1], outputs[1])


@given(profiles(), tokens, tokens, tokens)
def test_2_a_cache_hit_never_makes_it_slower(profile: Profile, prompt: int, one: int, other: int) -> None:
    less, more = sorted((min(one, prompt), min(other, prompt)))
    assert profile.solo_ttft_ms(prompt, more) <= profile.solo_ttft_ms(prompt, less) * (1 + 1e-12)


@given(profiles(), tokens, tokens, st.floats(0.1, 10))
def test_3_time_scales(profile: Profile, prompt: int, output: int, factor: float) -> None:
    slower = replace(profile, coefficients=profile.coefficients.scaled(factor))
    assert slower.solo_ms(prompt, output) == pytest.approx(factor * profile.solo_ms(prompt, output))


@given(profiles(), tokens, tokens)
def test_4_the_phases_add_up(profile: Profile, prompt: int, output: int) -> None:
    both = profile.solo_ttft_ms(prompt) + profile.solo_decode_ms(prompt, output)
    assert profile.solo_ms(prompt, output) == both
    assert profile.solo_decode_ms(prompt, 1) == 0
