"""
Laws of the clockwork of an emulated engine
1. First and last tokens come at the very moments of the simulated engine, however often it is asked in between.
2. Tokens of a call are told in order, the first alone and further ones by the stride, each at most once.
3. At the moment that it names next, and not before, there is news or the composition of the batch changes.
4. Time that it stands still is time by which everything later is late.
5. When every call is over or cancelled, nothing is held and nothing is due.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tightrope.adapters.emulated_clockwork import Clockwork, Progress
from tightrope.model.ids import AcceleratorName, CallId, ModelName
from tightrope.model.profile import Coefficients, Profile
from tightrope.sim.engine import FirstOut, LastOut, Occupancy, Request, SimEngine, Truth

END_S = 1e6
"""Long after everything."""
PROFILE = Profile(
    ModelName("m"),
    AcceleratorName("card"),
    Coefficients(a=20.0, b=0.5, c=0.01, d=0.1, e=0.0001),
    step_tokens=64,
    max_sequences=4,
    kv_tokens=400,
)


@dataclass(frozen=True)
class Asking:
    """A call; it is cancelled so long after its arrival if a time is given."""

    at_s: float
    prompt: int
    output: int
    cancel_after_s: float | None


Agenda = list[tuple[float, Request | CallId | None]]

moments = st.floats(0, 3, allow_nan=False)
askings = st.lists(
    st.builds(
        Asking, moments, st.integers(1, 150), st.integers(1, 60), st.none() | st.floats(0, 2, allow_nan=False)
    ),
    min_size=1,
    max_size=8,
)
truths = st.builds(Truth, st.just(PROFILE), st.sampled_from([0.0, 0.1]), st.just(0), st.booleans())


def agenda(asked: list[Asking], glances_s: list[float]) -> Agenda:
    """What is done when, in order: a request, the name of a cancelled call, or None for a mere look."""
    done: Agenda = [(at_s, None) for at_s in glances_s]
    for number, one in enumerate(asked):
        call = CallId(str(number))
        done.append((one.at_s, Request(call, one.prompt, one.output)))
        if one.cancel_after_s is not None:
            done.append((one.at_s + one.cancel_after_s, call))
    return sorted(done, key=lambda item: item[0])


def simulated(truth: Truth, todo: Agenda) -> dict[tuple[CallId, bool], float]:
    """When each first (False) and last (True) token comes in the simulated engine."""
    engine, at_s_by_token = SimEngine(truth, Random(1)), {}
    for at_s, what in [*todo, (END_S, None)]:
        if what is None and at_s < END_S:
            continue
        for out in engine.advance(at_s):
            at_s_by_token[out.call, isinstance(out, LastOut)] = out.at_s
            assert isinstance(out, FirstOut | LastOut)
        match what:
            case Request():
                engine.submit(what, at_s)
            case str():
                engine.cancel(what, at_s)
            case None:
                pass
    return at_s_by_token


def played(clockwork: Clockwork, todo: Agenda) -> list[tuple[float, Progress]]:
    """All that the clockwork tells, asked whenever it wants to be and at every moment of the agenda."""
    told: list[tuple[float, Progress]] = []
    for at_s, what in [*todo, (END_S, None)]:
        while (due_s := clockwork.next_s()) <= at_s:
            told += [(due_s, news) for news in clockwork.advance(due_s)]
        told += [(at_s, news) for news in _done(clockwork, what, at_s)]
    return told


def _done(clockwork: Clockwork, what: Request | CallId | None, at_s: float) -> list[Progress]:
    match what:
        case Request():
            return clockwork.submit(what, at_s)
        case None:
            return clockwork.advance(at_s)
        case _:
            return clockwork.cancel(what, at_s)


@settings(max_examples=80, deadline=None)
@given(truths, askings, st.lists(moments, max_size=20), st.integers(1, 5))
@example(  # memory is short: the last call is put out at the very moment of its first token
    Truth(PROFILE), [Asking(0.0, *sizes, None) for sizes in ((38, 8), (87, 7), (128, 4), (131, 2))], [], 1
)
def test_1_first_and_last_tokens_come_when_they_are_simulated(
    truth: Truth, asked: list[Asking], glances_s: list[float], stride: int
) -> None:
    todo = agenda(asked, glances_s)
    first_s: dict[CallId, float] = {}
    last_s: dict[CallId, float] = {}
    for at_s, news in played(Clockwork(truth, Random(1), stride=stride), todo):
        first_s.setdefault(news.call, at_s)
        if news.is_over:
            last_s[news.call] = at_s
    expected = simulated(truth, todo)
    assert first_s == {call: at_s for (call, is_last), at_s in expected.items() if not is_last}
    assert last_s == {call: at_s for (call, is_last), at_s in expected.items() if is_last}


@settings(max_examples=60, deadline=None)
@given(truths, askings, st.integers(1, 5))
def test_2_tokens_are_told_in_order_by_the_stride(truth: Truth, asked: list[Asking], stride: int) -> None:
    told: defaultdict[CallId, list[Progress]] = defaultdict(list)
    for _, news in played(Clockwork(truth, Random(1), stride=stride), agenda(asked, [])):
        told[news.call].append(news)
    for call, progress in told.items():
        output = asked[int(call)].output
        whole = list(range(1, output, stride))
        counts = [news.tokens for news in progress if not news.is_over]
        assert counts == whole[: len(counts)]
        assert [news.is_over for news in progress[:-1]] == [False] * (len(progress) - 1)
        if progress[-1].is_over:
            assert progress[-1].tokens == output
            assert len(counts) == len(whole)


@settings(max_examples=60, deadline=None)
@given(truths, askings, st.floats(0.01, 0.99))
def test_3_nothing_is_told_before_the_moment_that_was_named(
    truth: Truth, asked: list[Asking], part: float
) -> None:
    clockwork, now_s = Clockwork(truth, Random(1)), 0.0
    for number, one in enumerate(asked):
        clockwork.submit(Request(CallId(str(number)), one.prompt, one.output), 0.0)
    while (due_s := clockwork.next_s()) < math.inf:
        between_s = now_s + part * (due_s - now_s)
        if between_s < due_s:
            assert clockwork.advance(between_s) == []
        assert clockwork.next_s() == due_s
        clockwork.advance(due_s)
        now_s = due_s
    assert clockwork.calls == 0


@settings(max_examples=30, deadline=None)
@given(askings, st.integers(0, 30), st.integers(1, 100))
def test_4_standing_still_makes_late_by_as_long(asked: list[Asking], before: int, still_s: int) -> None:
    requests = [Request(CallId(str(at)), one.prompt, one.output) for at, one in enumerate(asked)]

    def times(pause_s: float) -> list[float]:
        clockwork, at_s, seen = Clockwork(Truth(PROFILE), Random(1)), 0.0, []
        for request in requests:
            clockwork.submit(request, 0.0)
        for number in range(10_000):
            if number == before:
                clockwork.halt(at_s)
                assert clockwork.next_s() == math.inf
                assert clockwork.advance(at_s + pause_s) == []
                at_s += pause_s
                clockwork.go_on(at_s)
            if (at_s := clockwork.next_s()) == math.inf:
                break
            clockwork.advance(at_s)
            seen.append(at_s)
        return seen

    plain, paused = times(0.0), times(float(still_s))
    assert paused[:before] == plain[:before]
    assert paused[before:] == pytest.approx([at_s + still_s for at_s in plain[before:]])


@settings(max_examples=60, deadline=None)
@given(truths, askings)
def test_5_in_the_end_nothing_is_held_or_due(truth: Truth, asked: list[Asking]) -> None:
    clockwork = Clockwork(truth, Random(1))
    todo = agenda(asked, [])
    played(clockwork, todo)
    for number in range(len(asked)):
        clockwork.cancel(CallId(str(number)), END_S)
    # A step that runs is not cut short; it is over long before this.
    clockwork.advance(2 * END_S)
    assert clockwork.occupancy() == Occupancy(0, 0, 0)
    assert (clockwork.next_s(), clockwork.calls) == (math.inf, 0)


def test_tokens_of_a_lone_call_come_step_by_step() -> None:
    clockwork, prompt, output = Clockwork(Truth(PROFILE), Random(1)), 50, 20
    told = played(clockwork, [(1.0, Request(CallId("only"), prompt, output))])
    k = PROFILE.coefficients
    expected_s = 1.0 + k.step_ms(0, 0, prompt, prompt * prompt / 2) / 1000
    for token, (at_s, news) in enumerate(told, start=1):
        assert news.tokens == token
        assert at_s == pytest.approx(expected_s)
        expected_s += k.step_ms(1, prompt + token) / 1000
    assert len(told) == output
