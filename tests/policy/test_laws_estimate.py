"""
Laws of the latency model
L1. Both phases never fall when prompt, output, load or correction grow; the first never rises with a cache hit.
L2. On the empty replica the estimate is the call alone.
L3. lx + lq + lr is the critical time, and none of them is negative.
L4. Scaling all coefficients and the times in the load scales the estimate.
L5. The memory peak equals brute force over time, ignores order, and never falls when a call is added.
L10. Alone on a replica, the estimate is the sum of the engine's steps.
"""

from __future__ import annotations

import math
from dataclasses import astuple, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.builders import H100, L40S, NOW_S, a_job, a_view, jobs, numbers, profiles, views
from tightrope.model.fleet import Job, ReplicaView
from tightrope.model.profile import Profile
from tightrope.policy.estimate import (
    critical_ms,
    decode_ms,
    estimate,
    fits_at_all,
    has_room,
    has_slot,
    split,
    ttft_ms,
    typical_s,
)
from tightrope.policy.load import EMPTY, Load, load_for, memory_now, memory_peak, standing

JUST_LOADED = Load(
    decoding=20,
    context_tokens=30_000,
    prefilling=1,
    waiting=1,
    queued_tokens=500 + 1500,
    queued_pairs=500 * (1000 + 250) + 1500**2 / 2,
    queued_context=3000,
    resid_ms=10,
    prefill_ms=5,
)


@st.composite
def loads(draw: st.DrawFn) -> Load:
    return Load(
        decoding=draw(st.integers(0, 200)),
        context_tokens=draw(numbers(0, 100_000)),
        prefilling=draw(st.integers(0, 8)),
        waiting=draw(st.integers(0, 8)),
        queued_tokens=draw(numbers(0, 20_000)),
        queued_pairs=draw(numbers(0, 1e7)),
        queued_context=draw(numbers(0, 40_000)),
        resid_ms=draw(numbers(0, 100)),
        slot_ms=draw(numbers(0, 10_000)),
        prefill_ms=draw(numbers(0, 100)),
    )


@pytest.mark.parametrize(
    ("profile", "load", "first", "rest"),
    [
        (H100, EMPTY, 56.53, 2293.6),
        (L40S, EMPTY, 167.83, 5896.8),
        (H100, JUST_LOADED, 113.40, 3741.9),
        (L40S, JUST_LOADED, 326.50, 8546.7),
    ],
)
def test_golden_values(profile: Profile, load: Load, first: float, rest: float) -> None:
    assert ttft_ms(profile, load, 2200) == pytest.approx(first, abs=0.005)
    assert decode_ms(profile, load, 2200, 220) == pytest.approx(rest, abs=0.05)


@pytest.mark.parametrize(
    ("profile", "parts"), [(H100, (56.53, 42.47, 14.40)), (L40S, (167.83, 129.31, 29.36))]
)
def test_golden_parts_of_a_first_token(profile: Profile, parts: tuple[float, float, float]) -> None:
    job = a_job(prompt_tokens=2200, output_tokens=220.0, is_terminal=True)
    found = split(job, profile, JUST_LOADED)
    assert (found.lx, found.lq, found.lr) == pytest.approx(parts, abs=0.005)


@given(profiles(), loads(), loads(), numbers(1, 3000), numbers(1, 3000), numbers(1, 400), numbers(1, 400))
def test_l1_more_never_makes_it_faster(
    profile: Profile, one: Load, other: Load, n1: float, n2: float, o1: float, o2: float
) -> None:
    less = Load(*map(min, astuple(one), astuple(other)))
    more = Load(*map(max, astuple(one), astuple(other)))
    prompts, outputs = sorted((n1, n2)), sorted((o1, o2))
    assert ttft_ms(profile, less, prompts[0]) <= ttft_ms(profile, more, prompts[1])
    assert decode_ms(profile, less, prompts[0], outputs[0]) <= decode_ms(
        profile, more, prompts[1], outputs[1]
    )


@given(profiles(), loads(), numbers(1, 3000), numbers(1, 400), numbers(0.5, 2), numbers(0.5, 2))
def test_l1_correction_never_makes_it_faster(
    profile: Profile, load: Load, prompt: float, output: float, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert ttft_ms(profile, load, prompt, correction=low) <= ttft_ms(profile, load, prompt, correction=high)
    assert decode_ms(profile, load, prompt, output, low) <= decode_ms(profile, load, prompt, output, high)


@given(profiles(), loads(), st.integers(1, 3000), st.integers(0, 3000), st.integers(0, 3000))
def test_l1_a_cache_hit_never_makes_it_slower(
    profile: Profile, load: Load, prompt: int, one: int, other: int
) -> None:
    less, more = sorted((min(one, prompt), min(other, prompt)))
    slow, fast = ttft_ms(profile, load, prompt, less), ttft_ms(profile, load, prompt, more)
    assert fast <= slow or fast == pytest.approx(slow)


@given(jobs(), profiles())
def test_l2_an_empty_replica_takes_what_the_call_takes_alone(job: Job, profile: Profile) -> None:
    found = estimate(job, a_view(profile=profile), NOW_S)
    first, rest = (
        profile.solo_ttft_ms(job.prompt_tokens),
        profile.solo_decode_ms(job.prompt_tokens, job.output_tokens),
    )
    assert found.ttft == pytest.approx(first)
    assert found.decode == pytest.approx(rest)
    assert found.crit == pytest.approx(first if job.is_terminal else first + rest)
    assert (found.lq, found.lr) == (0, 0)


@given(jobs(), profiles(), loads())
def test_l3_the_parts_add_up(job: Job, profile: Profile, load: Load) -> None:
    found = split(job, profile, load)
    whole = found.ttft if job.is_terminal else found.ttft + found.decode
    assert found.crit == found.lx + found.lq + found.lr == pytest.approx(whole)
    assert whole == critical_ms(job, profile, load)
    assert min(found.lx, found.lq, found.lr) >= 0


@given(jobs(), views())
def test_l3_the_parts_add_up_on_a_replica(job: Job, view: ReplicaView) -> None:
    found = estimate(job, view, NOW_S)
    assert found.crit == pytest.approx(found.ttft if job.is_terminal else found.ttft + found.decode)
    assert min(found.lx, found.lq, found.lr) >= 0


@given(jobs(), profiles(), loads(), st.sampled_from([0.25, 2.0, 3.7]))
def test_l4_time_scales(job: Job, profile: Profile, load: Load, factor: float) -> None:
    slower = replace(profile, coefficients=profile.coefficients.scaled(factor))
    later = replace(
        load,
        resid_ms=factor * load.resid_ms,
        slot_ms=factor * load.slot_ms,
        prefill_ms=factor * load.prefill_ms,
    )
    assert critical_ms(job, slower, later) == pytest.approx(factor * critical_ms(job, profile, load))


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 60)), max_size=7))
def test_l5_memory_peak_is_that_of_brute_force(calls: list[tuple[int, int]]) -> None:
    steps = range(1, max((left for _, left in calls), default=0) + 1)
    held = [sum(own + step for own, left in calls if left >= step) for step in steps]
    assert memory_peak([(float(own), float(left)) for own, left in calls]) == max(held, default=0)


@given(st.lists(st.tuples(numbers(0, 3000), numbers(1, 400)), min_size=1, max_size=7), st.randoms())
def test_l5_memory_peak_ignores_order_and_never_falls(calls: list[tuple[float, float]], rng: object) -> None:
    assert memory_peak(reversed(calls)) == pytest.approx(memory_peak(calls))
    assert memory_peak(calls[1:]) <= memory_peak(calls) * (1 + 1e-12)


def test_l5_example() -> None:
    assert memory_peak([(800, 300), (1200, 100), (2000, 20)]) == 4060


@given(profiles(memory=True), st.integers(1, 5000), st.integers(1, 200))
def test_l10_alone_it_is_the_sum_of_the_steps(profile: Profile, prompt: int, output: int) -> None:
    job = a_job(prompt_tokens=prompt, output_tokens=float(output), output_high=output)
    found = estimate(job, a_view(profile=profile), NOW_S)
    first, rest = _engine(profile, prompt, output)
    assert found.ttft == pytest.approx(first)
    assert found.decode == pytest.approx(rest)


def _engine(profile: Profile, prompt: int, output: int) -> tuple[float, float]:
    """The steps of an engine that serves one call, one by one."""
    k, done, first = profile.coefficients, 0, 0.0
    while done < prompt:
        chunk = min(profile.step_tokens, prompt - done)
        first += k.step_ms(0, 0, chunk, chunk * (done + chunk / 2))
        done += chunk
    rest = math.fsum(k.step_ms(1, prompt + made) for made in range(1, output))
    return first, rest


# --- room ------------------------------------------------------------------------------------------------


@given(jobs(), views())
def test_room_is_never_found_where_the_call_cannot_be_held(job: Job, view: ReplicaView) -> None:
    if has_room(job, view, NOW_S) or has_slot(job, view):
        assert fits_at_all(job, view.profile)


@given(jobs(), views())
def test_room_keeps_to_sequences_memory_and_a_step_of_prompts(job: Job, view: ReplicaView) -> None:
    now = standing(view, NOW_S)
    if not now.gauge.running or not has_room(job, view, NOW_S):
        return
    load = load_for(job, now)
    assert load.decoding + load.prefilling + load.waiting < view.profile.max_sequences
    assert load.queued_tokens == 0 or load.queued_tokens + job.prompt_tokens <= view.profile.step_tokens
    own = (float(job.prompt_tokens), float(job.output_high))
    assert memory_peak([*memory_now(now, now.gauge.queued), own]) <= view.profile.kv_tokens
    assert load.slot_ms == 0


@given(jobs(), profiles())
def test_an_idle_replica_has_room_for_whatever_fits(job: Job, profile: Profile) -> None:
    view = a_view(profile=profile)
    assert has_room(job, view, NOW_S) == has_slot(job, view) == fits_at_all(job, profile)


@given(jobs(), views(most=12))
def test_no_slot_beyond_the_engines_sequences(job: Job, view: ReplicaView) -> None:
    held = [call for call in view.held if call.has_slot]
    if has_slot(job, view):
        assert len(held) < view.profile.max_sequences
        own = [(call.prompt_tokens, call.output_tokens) for call in held]
        assert memory_peak([*own, (job.prompt_tokens, job.output_high)]) <= view.profile.kv_tokens


@given(st.lists(profiles(), max_size=4), st.integers(1, 3000), numbers(1, 400), st.booleans())
@settings(max_examples=50)
def test_the_typical_time_is_that_of_the_best_card(
    cards: list[Profile], prompt: int, output: float, is_terminal: bool
) -> None:
    job = a_job(prompt_tokens=prompt, output_tokens=output, is_terminal=is_terminal)
    alone = [estimate(job, a_view(profile=card), NOW_S).crit / 1000 for card in cards]
    assert typical_s(prompt, output, is_terminal, cards) == pytest.approx(min(alone, default=0.0))
