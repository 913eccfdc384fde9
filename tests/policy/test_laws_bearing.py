"""
Laws of what one replica bears
1. More time, or more calls that may be late, never make it less.
2. Longer prompts, longer answers and slower steps never make it more, where memory is not short and nobody was
   promised a gap between tokens.
3. It is nothing where one call alone is late already, or not one fits.
4. It is never more than the replica can do at all, and exactly that where nothing is due.
5. If every call is served at the same rate the queue is M/M/c (Erlang C), with one seat M/M/1.
6. In general the queue is the birth-and-death chain of its rates, solved state by state.
7. At the rate that is borne as many are late as may be, and a little above it more.
8. As many calls are in the engine at once as memory, batch and promised gap allow, and one more would be too many.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.policy.builders import H100, L40S, numbers, profiles
from tightrope.model.profile import Profile
from tightrope.policy.bearing import (
    HALVINGS,
    Kind,
    _Batch,
    _late,
    at_most_per_s,
    bearable_per_s,
    critical_s,
)

CARDS = st.one_of(st.sampled_from([H100, L40S]), profiles(memory=True))
ATTAIN = numbers(0.5, 0.999)
CHAT = Kind(1.0, prompt_tokens=800, output_tokens=150, budget_s=2.0, is_terminal=True)
WORK = Kind(1.0, prompt_tokens=1200, output_tokens=200, budget_s=8.0)


@st.composite
def kinds(draw: st.DrawFn, may_promise_a_gap: bool = True) -> Kind:
    """Calls of any size."""
    return Kind(
        share=1.0,
        prompt_tokens=draw(numbers(1, 3000)),
        output_tokens=draw(numbers(1, 400)),
        budget_s=draw(numbers(0.01, 30)),
        tpot_s=draw(st.one_of(st.just(math.inf), numbers(0.005, 0.3))) if may_promise_a_gap else math.inf,
        is_terminal=draw(st.booleans()),
    )


def rounding(card: Profile, kind: Kind) -> float:
    """How far below the truth a bisection may end."""
    return at_most_per_s(card, kind) / (1 << HALVINGS) + 1e-12


@given(CARDS, kinds(), ATTAIN, numbers(1, 5))
def test_1_more_time_never_hurts(card: Profile, kind: Kind, attain: float, factor: float) -> None:
    longer = replace(kind, budget_s=factor * kind.budget_s)
    assert bearable_per_s(card, kind, attain) <= bearable_per_s(card, longer, attain)
    assert bearable_per_s(card, kind, attain) <= bearable_per_s(
        card, replace(kind, budget_s=math.inf), attain
    )


@given(CARDS, kinds(), ATTAIN, ATTAIN)
def test_1_more_that_may_be_late_never_hurt(card: Profile, kind: Kind, one: float, other: float) -> None:
    lax, strict = sorted((one, other))
    assert bearable_per_s(card, kind, strict) <= bearable_per_s(card, kind, lax)


@given(CARDS, kinds(may_promise_a_gap=False), ATTAIN, numbers(1, 3))
def test_2_larger_calls_are_fewer(card: Profile, kind: Kind, attain: float, factor: float) -> None:
    card = replace(card, kv_tokens=10**9)
    borne = bearable_per_s(card, kind, attain) + rounding(card, kind)
    assert bearable_per_s(card, replace(kind, prompt_tokens=factor * kind.prompt_tokens), attain) <= borne
    assert bearable_per_s(card, replace(kind, output_tokens=factor * kind.output_tokens), attain) <= borne
    slower = replace(card, coefficients=card.coefficients.scaled(factor))
    assert bearable_per_s(slower, kind, attain) <= borne


@pytest.mark.parametrize("kind", [CHAT, WORK])
def test_2_example(kind: Kind) -> None:
    fast, slow = bearable_per_s(H100, kind, 0.95), bearable_per_s(L40S, kind, 0.95)
    assert fast > slow > 0
    assert bearable_per_s(H100, replace(kind, prompt_tokens=2 * kind.prompt_tokens), 0.95) < fast
    assert bearable_per_s(H100, replace(kind, output_tokens=2 * kind.output_tokens), 0.95) < fast


@given(CARDS, kinds(), ATTAIN)
def test_3_what_is_late_alone_is_not_borne(card: Profile, kind: Kind, attain: float) -> None:
    alone_s = critical_s(card, kind, 1)
    whole_ms = (
        card.solo_ttft_ms(kind.prompt_tokens)
        if kind.is_terminal
        else card.solo_ms(kind.prompt_tokens, kind.output_tokens)
    )
    assert alone_s == pytest.approx(whole_ms / 1000)
    hurried = replace(kind, budget_s=0.999 * alone_s)
    assert bearable_per_s(card, hurried, attain) == 0
    if not kind.is_terminal:
        impatient = replace(kind, tpot_s=0.999 * _Batch.of(card, kind).gap_ms(1) / 1000)
        assert bearable_per_s(card, impatient, attain) == 0


def test_3_what_does_not_fit_is_not_borne() -> None:
    large = replace(CHAT, prompt_tokens=H100.kv_tokens)
    assert bearable_per_s(H100, large, 0.95) == 0
    assert at_most_per_s(H100, replace(large, budget_s=math.inf)) == 0


@given(st.one_of(CARDS, profiles()), kinds(), ATTAIN)
def test_4_never_more_than_all(card: Profile, kind: Kind, attain: float) -> None:
    assert 0 <= bearable_per_s(card, kind, attain) <= at_most_per_s(card, kind)
    assert bearable_per_s(card, replace(kind, budget_s=math.inf), attain) == at_most_per_s(card, kind)


@given(CARDS, kinds(), st.integers(1, 64))
def test_4_a_larger_batch_ends_no_fewer(card: Profile, kind: Kind, calls: int) -> None:
    batch = _Batch.of(card, kind)
    assert 0 < batch.ends_per_s(calls) <= batch.ends_per_s(calls + 1) * (1 + 1e-12)


# --- the queue -------------------------------------------------------------------------------------------


def late(per_s: float, ends_per_s: list[float], takes_s: list[float], budget_s: float) -> float:
    """The share of late calls if one of so many in the engine takes `takes_s`, ever longer the more they are."""
    in_time = sum(one <= budget_s for one in takes_s)
    return _late(per_s, ends_per_s, in_time, budget_s - takes_s[-1])


def erlang_c(servers: int, load: float) -> float:
    """The part of all calls that has to wait, by the inverse of Erlang B (Cooper, 1981)."""
    blocked = 1.0
    for seat in range(1, servers + 1):
        blocked = load * blocked / (seat + load * blocked)
    return servers * blocked / (servers - load * (1 - blocked))


@given(st.integers(1, 40), numbers(0.05, 20), numbers(0.01, 0.99), numbers(0, 2))
def test_5_erlang(servers: int, each_per_s: float, used: float, left_s: float) -> None:
    per_s = used * servers * each_per_s
    ends_per_s = [seat * each_per_s for seat in range(1, servers + 1)]
    found = _late(per_s, ends_per_s, servers, left_s)
    waits = erlang_c(servers, per_s / each_per_s)
    expected = waits * math.exp(-(servers * each_per_s - per_s) * left_s)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(numbers(0.05, 20), numbers(0.01, 0.99), numbers(0, 5))
def test_5_one_seat(ends_per_s: float, used: float, left_s: float) -> None:
    per_s = used * ends_per_s
    expected = used * math.exp(-(ends_per_s - per_s) * left_s)
    assert _late(per_s, [ends_per_s], 1, left_s) == pytest.approx(expected)


def test_5_a_queue_that_grows_for_ever_is_late() -> None:
    assert _late(2.0, [1.0, 2.0], 2, 100.0) == 1.0
    assert _late(3.0, [1.0, 2.0], 2, 100.0) == 1.0


def by_states(per_s: float, ends_per_s: list[float], takes_s: list[float], budget_s: float) -> float:
    """The share of late calls, from the weight of each state and the Erlang wait of who comes in it."""
    batch, weight, whole, found = len(ends_per_s), 1.0, 0.0, 0.0
    for there in range(2000):
        whole += weight
        if there < batch:
            found += weight * (takes_s[there] > budget_s)
        else:  # so many calls have to end before it begins
            before, left = there - batch + 1, ends_per_s[-1] * (budget_s - takes_s[-1])
            found += weight * (erlang_tail(before, left) if left > 0 else 1.0)
        weight *= per_s / ends_per_s[min(there, batch - 1)]
    return found / whole


def erlang_tail(stages: int, left: float) -> float:
    """The chance that so many exponential stages of mean 1 take longer than `left`."""
    term, found = math.exp(-left), 0.0
    for stage in range(stages):
        found += term
        if term < 1e-18 and stage > left:
            break
        term *= left / (stage + 1)
    return min(1.0, found)


@given(
    st.lists(st.tuples(numbers(0.1, 2), numbers(0, 0.5)), min_size=1, max_size=8),
    numbers(0.05, 0.9),
    numbers(0, 6),
)
def test_6_state_by_state(states: list[tuple[float, float]], used: float, budget_s: float) -> None:
    ends_per_s, takes_s = list[float](), list[float]()
    for more_per_s, longer_s in states:
        ends_per_s.append((ends_per_s[-1] if ends_per_s else 0.0) + more_per_s)
        takes_s.append((takes_s[-1] if takes_s else 0.0) + longer_s)
    per_s = used * ends_per_s[-1]
    found = late(per_s, ends_per_s, takes_s, budget_s)
    assert found == pytest.approx(by_states(per_s, ends_per_s, takes_s, budget_s), rel=1e-6, abs=1e-9)


@given(CARDS, kinds(), numbers(0.5, 0.99))
def test_7_as_many_are_late_as_may_be(card: Profile, kind: Kind, attain: float) -> None:
    borne = bearable_per_s(card, kind, attain)
    assume(borne > 0)
    batch = _Batch.of(card, kind)
    calls = range(1, batch.most(kind.tpot_s) + 1)
    ends_per_s = [batch.ends_per_s(count) for count in calls]
    takes_s = [critical_s(card, kind, count) for count in calls]
    assert late(borne, ends_per_s, takes_s, kind.budget_s) <= 1 - attain
    above = borne + 1.01 * rounding(card, kind)
    assert late(above, ends_per_s, takes_s, kind.budget_s) > 1 - attain or above >= max(ends_per_s)


@given(profiles(), kinds())
def test_8_as_many_as_fit(card: Profile, kind: Kind) -> None:
    batch = _Batch.of(card, kind)
    found = batch.most(kind.tpot_s)

    def is_possible(calls: int, tolerance: float) -> bool:
        tokens = calls * (kind.prompt_tokens + kind.output_tokens)
        return (
            calls <= card.max_sequences
            and tokens <= card.kv_tokens * tolerance
            and batch.gap_ms(calls) <= 1000 * kind.tpot_s * tolerance
        )

    assert found == 0 or is_possible(found, 1 + 1e-9)
    assert not is_possible(found + 1, 1 - 1e-9)


@given(CARDS, kinds())
def test_8_alone_a_call_has_the_machine_for_itself(card: Profile, kind: Kind) -> None:
    whole_ms = card.solo_ms(kind.prompt_tokens, kind.output_tokens)
    assert critical_s(card, replace(kind, is_terminal=False), 1) == pytest.approx(whole_ms / 1000)
    if kind.output_tokens > 2:
        decode_ms = card.solo_decode_ms(kind.prompt_tokens, kind.output_tokens)
        assert _Batch.of(card, kind).gap_ms(1) == pytest.approx(decode_ms / (kind.output_tokens - 1))
