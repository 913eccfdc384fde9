"""The simulated engine in readable cases: 10 ms a step, 1 ms a sequence, 0.1 ms a prompt token, C 100, R 2, K 1000."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.sim.engines import a_profile, a_request, an_engine, play, run_out
from tests.sim.plain_engine import Act, Cancel, Slow, Submit
from tightrope.model.errors import TightropeBug
from tightrope.model.ids import CallId
from tightrope.model.profile import Coefficients
from tightrope.sim.engine import FirstOut, LastOut, Occupancy, Truth

ROUND = Coefficients(a=10.0, b=1.0, c=0.0, d=0.1, e=0.0)
TRUTH = Truth(a_profile(ROUND, step_tokens=100, max_sequences=2, kv_tokens=1000))
A, B, C = CallId("a"), CallId("b"), CallId("c")


def limited(truth: Truth = TRUTH, *, sequences: int = 2, kv_tokens: int = 1000) -> Truth:
    return replace(truth, profile=replace(truth.profile, max_sequences=sequences, kv_tokens=kv_tokens))


def ms(happenings: list[FirstOut | LastOut]) -> list[tuple[str, str, float]]:
    """Call, `first` or `last`, milliseconds."""
    return [
        (out.call, "first" if isinstance(out, FirstOut) else "last", round(1000 * out.at_s, 6))
        for out in happenings
    ]


def test_a_long_prompt_is_computed_in_chunks() -> None:
    happenings = play(an_engine(TRUTH), [Submit(0.0, a_request("a", 250, 3))])
    assert ms(happenings) == [("a", "first", 20 + 20 + 15), ("a", "last", 55 + 2 * 11)]


def test_one_token_of_output_comes_and_ends_at_one_moment() -> None:
    assert ms(play(an_engine(TRUTH), [Submit(0.0, a_request("a", 100, 1))])) == [
        ("a", "first", 20),
        ("a", "last", 20),
    ]


def test_decoding_sequences_go_first_and_prompts_fill_the_step() -> None:
    # b comes during the first step of a's decoding, waits for its end, and shares the next two: 99 tokens and 1.
    happenings = play(
        an_engine(TRUTH), [Submit(0.0, a_request("a", 100, 5)), Submit(0.025, a_request("b", 100, 1))]
    )
    assert ms(happenings) == [
        ("a", "first", 20),
        ("b", "first", 31 + 20.9 + 11.1),
        ("b", "last", 63),
        ("a", "last", 63 + 11),
    ]


def test_calls_that_come_at_one_moment_share_the_step() -> None:
    acts = [Submit(1.0, a_request(name, 30, 1)) for name in "ab"]
    assert {out.at_s for out in play(an_engine(TRUTH), acts)} == {1.016}


def test_beyond_its_seats_an_engine_takes_calls_in_order() -> None:
    acts = [Submit(0.0, a_request(name, 10, 2)) for name in "abc"]
    happenings = play(an_engine(TRUTH), acts)
    assert ms(happenings)[-2:] == [("c", "first", 12 + 12 + 11), ("c", "last", 35 + 11)]


def test_a_scheduler_ahead_sees_arrivals_and_ends_one_step_later() -> None:
    acts = [Submit(0.0, a_request("a", 100, 9)), Submit(0.025, a_request("b", 10, 2))]
    at_once, ahead = (
        ms(play(an_engine(replace(TRUTH, is_ahead=is_ahead)), acts)) for is_ahead in (False, True)
    )
    assert ("b", "first", 31 + 12) in at_once
    assert ("b", "first", 31 + 11 + 12) in ahead
    one_seat = limited(replace(TRUTH, is_ahead=True), sequences=1)
    acts = [Submit(0.0, a_request("a", 100, 2)), Submit(0.0, a_request("b", 10, 1))]
    # Nothing is composed for the step after a's end, so b's seat is not waited for.
    assert ms(play(an_engine(one_seat), acts))[-1] == ("b", "last", 31 + 11)


def test_the_latest_starter_is_put_out_when_memory_ends_and_no_token_comes_twice() -> None:
    acts = [Submit(0.0, a_request("a", 40, 20)), Submit(0.001, a_request("b", 40, 20))]
    engine = an_engine(limited(kv_tokens=100))
    happenings = play(engine, acts)
    assert [(call, what) for call, what, _ in ms(happenings)] == [
        ("a", "first"),
        ("b", "first"),
        ("a", "last"),
        ("b", "last"),
    ]
    alone = play(an_engine(limited(kv_tokens=1000)), acts)
    assert ms(happenings)[3][2] > ms(alone)[3][2]
    # b is put out with 10 tokens generated, waits for a, and computes its prompt and those 10 anew.
    last_a, last_b = ms(happenings)[2][2], ms(happenings)[3][2]
    assert last_b - last_a == pytest.approx(10 + 0.1 * 50 + 9 * 11)


@pytest.mark.parametrize("is_ahead", [False, True])
def test_a_call_that_needs_the_whole_memory_is_served(is_ahead: bool) -> None:
    truth = replace(limited(kv_tokens=59), is_ahead=is_ahead)
    acts = [Submit(0.0, a_request(name, 40, 20)) for name in "abc"]
    happenings = ms(play(an_engine(truth), acts))
    assert [(call, what) for call, what, _ in happenings if what == "last"] == [
        (call, "last") for call in "abc"
    ]


def test_a_cancelled_call_frees_its_memory_and_seat() -> None:
    engine = an_engine(limited(sequences=1))
    engine.submit(a_request("a", 100, 100), 0.0)
    engine.submit(a_request("b", 10, 1), 0.0)
    engine.advance(0.025)
    assert engine.occupancy() == Occupancy(running=1, waiting=1, kv_tokens=101)
    engine.cancel(A, 0.025)
    assert engine.occupancy() == Occupancy(running=0, waiting=1, kv_tokens=0)
    assert ms(run_out(engine)) == [("b", "first", 31 + 11), ("b", "last", 42)]


def test_a_call_cancelled_while_it_waits_never_starts() -> None:
    acts: list[Act] = [
        Submit(0.0, a_request("a", 100, 3)),
        Submit(0.001, a_request("b", 10, 1)),
        Cancel(0.002, B),
    ]
    assert {out.call for out in play(an_engine(TRUTH), acts)} == {A}


def test_cancelling_what_is_not_there_changes_nothing() -> None:
    engine = an_engine(TRUTH)
    engine.cancel(A, 0.0)
    assert ms(play(engine, [Submit(0.0, a_request("a", 100, 1)), Cancel(1.0, A)]))[-1] == ("a", "last", 20)
    assert engine.next_s() == math.inf


def test_a_slow_engine_is_slow_from_the_next_step_on() -> None:
    acts: list[Act] = [Submit(0.0, a_request("a", 100, 5)), Slow(0.025, 2.0)]
    assert ms(play(an_engine(TRUTH), acts))[-1] == ("a", "last", 20 + 11 + 3 * 22)


def test_an_arrival_at_the_end_of_a_step_within_a_leap_joins_the_next_one() -> None:
    binary = replace(TRUTH, profile=replace(TRUTH.profile, coefficients=Coefficients(125.0, 0, 0, 0, 0)))
    acts = [Submit(0.0, a_request("a", 10, 9)), Submit(0.5, a_request("b", 10, 1))]
    assert ms(play(an_engine(binary), acts))[1:3] == [("b", "first", 625), ("b", "last", 625)]


def test_a_shared_prefix_is_found_once_it_is_computed_and_held_once() -> None:
    engine = an_engine(replace(limited(sequences=4), block_tokens=10))
    blocks = tuple(range(9))
    engine.submit(a_request("a", 95, 50, blocks), 0.0)
    engine.advance(0.02)
    engine.submit(a_request("b", 95, 2, blocks), 0.02)
    engine.submit(a_request("c", 50, 2, (0, 1, 70, 71, 72)), 0.02)
    engine.advance(0.0305)  # a's first step of decoding is over at 30.5 ms
    assert engine.occupancy() == Occupancy(running=3, waiting=0, kv_tokens=97 + 5 + 30)
    found = {out.call: out.cached_tokens for out in run_out(engine) if isinstance(out, LastOut)}
    assert found == {A: 0, B: 90, C: 20}


def test_an_idle_prefix_is_evicted_when_memory_is_needed() -> None:
    cached = replace(limited(kv_tokens=200), block_tokens=10)
    engine = an_engine(cached)
    found = []
    for at_s, (name, prompt, first_block) in enumerate(
        [("a", 101, 0), ("b", 195, 100), ("c", 101, 0), ("d", 101, 0)]
    ):
        blocks = tuple(range(first_block, first_block + prompt // 10))
        found += play(engine, [Submit(float(at_s), a_request(name, prompt, 1, blocks))])
    assert [out.cached_tokens for out in found if isinstance(out, LastOut)] == [0, 0, 0, 100]


def test_the_pace_is_that_of_the_latest_step_with_decoding() -> None:
    engine = an_engine(TRUTH)
    engine.submit(a_request("a", 100, 10), 0.0)
    engine.advance(0.021)
    assert engine.pace(0.021) == 0.0
    engine.advance(0.035)
    assert engine.pace(0.035) == pytest.approx(11)
    run_out(engine)
    assert engine.pace(10.0) == pytest.approx(11)


def test_an_engine_refuses_what_cannot_be() -> None:
    engine = an_engine(TRUTH)
    with pytest.raises(TightropeBug, match="1001 tokens of 1000"):
        engine.submit(a_request("huge", 1000, 2), 0.0)
    with pytest.raises(TightropeBug, match="no prompt"):
        engine.submit(a_request("empty", 0, 2), 0.0)
    engine.submit(a_request("a", 100, 3), 1.0)
    with pytest.raises(TightropeBug, match="twice"):
        engine.submit(a_request("a", 100, 3), 1.0)
    with pytest.raises(TightropeBug, match=r"told of something at 0\.5 s"):
        engine.cancel(A, 0.5)
    with pytest.raises(TightropeBug, match="not advanced"):
        engine.submit(a_request("b"), 2.0)
    with pytest.raises(TightropeBug, match="go back"):
        engine.advance(0.0)
