"""
Laws of the simulated engine
1. Without noise, leaps give what one step at a time gives, whoever arrives, leaves or slows the engine when.
2. A call alone takes what its profile says.
3. Every call that is not given up ends exactly once, its first token before or with its last.
4. Never more than R sequences run or K tokens are held, in the middle of a leap either; at the end, none.
5. The same seed gives the same happenings.
6. Many small advances give what one large one gives, and looking changes nothing.
7. With all coefficients scaled, all times are.
8. What is found in the prefix cache is whole blocks of the prompt, never all of it, and never makes a call alone
   slower.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.engines import (
    ODD,
    Happening,
    a_profile,
    a_request,
    acts,
    an_engine,
    do,
    first_s,
    last_s,
    play,
    profiles,
    run_out,
)
from tests.sim.plain_engine import Act, Cancel, Submit, play_plainly
from tightrope.model.profile import Profile
from tightrope.sim.engine import FirstOut, LastOut, SimEngine, Truth

truths = st.builds(
    Truth,
    profiles(),
    noise=st.sampled_from([0.0, 0.3]),
    block_tokens=st.sampled_from([0, 8]),
    is_ahead=st.booleans(),
)


@settings(max_examples=200)
@given(profiles(), acts(), st.booleans())
def test_1_leaps_equal_single_steps(profile: Profile, listed: list[Act], is_ahead: bool) -> None:
    happenings = play(an_engine(Truth(profile, is_ahead=is_ahead)), listed)
    plain_first_s, plain_last_s = play_plainly(profile, listed, is_ahead=is_ahead)
    assert first_s(happenings) == pytest.approx(plain_first_s, rel=1e-9)
    assert last_s(happenings) == pytest.approx(plain_last_s, rel=1e-9)


@given(st.integers(1, 3000), st.integers(1, 500), st.booleans())
def test_2_a_call_alone_takes_what_its_profile_says(prompt: int, output: int, is_ahead: bool) -> None:
    profile = a_profile(step_tokens=512, kv_tokens=10_000)
    request = a_request("c", prompt, output)
    happenings = play(an_engine(Truth(profile, is_ahead=is_ahead)), [Submit(2.0, request)])
    assert [type(out) for out in happenings] == [FirstOut, LastOut]
    first, last = (out.at_s for out in happenings)
    assert first - 2.0 == pytest.approx(profile.solo_ttft_ms(prompt) / 1000)
    assert last - first == pytest.approx(profile.solo_decode_ms(prompt, output) / 1000)


@given(truths, acts())
def test_3_every_call_ends_exactly_once(truth: Truth, listed: list[Act]) -> None:
    happenings = play(an_engine(truth), listed)
    assert all(a.at_s <= b.at_s for a, b in pairwise(happenings))
    counts = Counter((type(out), out.call) for out in happenings)
    assert set(counts.values()) <= {1}
    given_up = {act.call for act in listed if isinstance(act, Cancel)}
    submitted = {act.request.call for act in listed if isinstance(act, Submit)}
    assert submitted - given_up <= set(first_s(happenings))
    assert submitted - given_up <= set(last_s(happenings)) <= submitted
    order = {out.call: index for index, out in enumerate(happenings) if isinstance(out, FirstOut)}
    assert all(order[out.call] < at for at, out in enumerate(happenings) if isinstance(out, LastOut))


@given(truths, acts(), st.lists(st.floats(0.0, 0.4), max_size=20))
def test_4_limits_are_kept(truth: Truth, listed: list[Act], moments: list[float]) -> None:
    engine = an_engine(truth)
    for _, act in _with_looks(listed, moments, engine, []):
        if act is not None:
            do(engine, act)
        held = engine.occupancy()
        assert 0 <= held.running <= truth.profile.max_sequences
        assert 0 <= held.kv_tokens <= truth.profile.kv_tokens
    run_out(engine)
    held = engine.occupancy()
    assert (held.running, held.waiting, held.kv_tokens) == (0, 0, 0)


@given(truths, acts(), st.integers(0, 5))
def test_5_the_same_seed_gives_the_same_happenings(truth: Truth, listed: list[Act], seed: int) -> None:
    assert play(SimEngine(truth, Random(seed)), listed) == play(SimEngine(truth, Random(seed)), listed)


@given(truths, acts(), st.lists(st.floats(0.0, 0.4), max_size=30))
def test_6_small_advances_equal_large_ones(truth: Truth, listed: list[Act], moments: list[float]) -> None:
    engine = an_engine(truth)
    happenings: list[Happening] = []
    for at_s, act in _with_looks(listed, moments, engine, happenings):
        if act is not None:
            do(engine, act)
        assert engine.next_s() >= at_s
        engine.occupancy()
        engine.pace(at_s)
    assert happenings + run_out(engine) == play(an_engine(truth), listed)


@given(profiles(), acts(with_cancels=False, with_slow=False), st.sampled_from([0.25, 2.0, 8.0]))
def test_7_times_scale_with_coefficients(profile: Profile, listed: list[Act], factor: float) -> None:
    slow = replace(profile, coefficients=profile.coefficients.scaled(factor))
    at_once = [replace(act, at_s=0.0) for act in listed]
    as_profiled = last_s(play(an_engine(Truth(profile)), at_once))
    scaled = last_s(play(an_engine(Truth(slow)), at_once))
    slowed = an_engine(Truth(profile))
    slowed.slow_down(factor, 0.0)
    assert scaled == pytest.approx({call: factor * at_s for call, at_s in as_profiled.items()})
    assert last_s(play(slowed, at_once)) == pytest.approx(scaled)


@given(truths.filter(lambda truth: truth.block_tokens > 0), acts(with_cancels=False))
def test_8_the_prefix_cache_finds_whole_blocks_and_never_all(truth: Truth, listed: list[Act]) -> None:
    prompts = {act.request.call: act.request.prompt_tokens for act in listed if isinstance(act, Submit)}
    for out in play(an_engine(truth), listed):
        if isinstance(out, LastOut):
            assert out.cached_tokens % truth.block_tokens == 0
            assert 0 <= out.cached_tokens < prompts[out.call]


@given(st.integers(1, 300), st.integers(1, 20), st.integers(0, 20))
def test_8_the_prefix_cache_never_makes_a_call_alone_slower(prompt: int, output: int, shared: int) -> None:
    profile = a_profile(step_tokens=100, kv_tokens=2000)
    engine = an_engine(Truth(profile, block_tokens=16))
    blocks = tuple(range(shared))
    play(engine, [Submit(0.0, a_request("before", 320, 1, blocks))])
    found = play(engine, [Submit(50.0, a_request("c", prompt, output, tuple(range(20))))])
    assert isinstance(found[-1], LastOut)
    hit = found[-1].cached_tokens
    assert hit == 16 * min(shared, (prompt - 1) // 16)
    assert found[0].at_s - 50.0 == pytest.approx(profile.solo_ttft_ms(prompt, hit) / 1000)


def test_noise_spreads_steps_and_keeps_their_mean() -> None:
    profile = a_profile(replace(ODD, d=0.0, e=0.0))
    engine = an_engine(Truth(profile, noise=0.2), seed=3)
    took_s = []
    for index in range(4000):
        at_s = float(index)
        took_s.append(play(engine, [Submit(at_s, a_request(f"c{index}", 1, 1))])[-1].at_s - at_s)
    step_s = (ODD.a + ODD.h) / 1000
    mean_s = sum(took_s) / len(took_s)
    deviation_s = (sum((value - mean_s) ** 2 for value in took_s) / len(took_s)) ** 0.5
    assert mean_s == pytest.approx(step_s, rel=0.01)
    assert deviation_s == pytest.approx(0.2 * step_s, rel=0.05)


def _with_looks(
    listed: list[Act], moments: list[float], engine: SimEngine, happenings: list[Happening]
) -> Iterator[tuple[float, Act | None]]:
    """The acts, and moments without one between them; the engine is advanced to each."""
    looks: list[tuple[float, Act | None]] = [(at_s, None) for at_s in moments]
    for at_s, act in sorted([*looks, *((act.at_s, act) for act in listed)], key=lambda pair: pair[0]):
        happenings += engine.advance(at_s)
        yield at_s, act
