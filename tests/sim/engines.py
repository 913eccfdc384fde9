"""Engines under test: profiles, requests, and playing a list of acts to the end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from random import Random

from hypothesis import strategies as st

from tests.sim.plain_engine import Act, Cancel, Slow, Submit
from tightrope.model.ids import AcceleratorName, CallId, ModelName
from tightrope.model.profile import Coefficients, Profile
from tightrope.sim.engine import FirstOut, LastOut, Request, SimEngine, Truth

Happening = FirstOut | LastOut

# Numbers without small common multiples: an arrival then never falls on the end of a step by accident.
ODD = Coefficients(a=3.1415927, b=0.2718282, c=0.00173205, d=0.01414214, e=1.7320508e-5, h=0.5772157)
TICK_S = 0.00123456789


def a_profile(
    coefficients: Coefficients = ODD, *, step_tokens: int = 64, max_sequences: int = 4, kv_tokens: int = 400
) -> Profile:
    """A small engine, so that its limits are met often."""
    return Profile(
        ModelName("m"), AcceleratorName("card"), coefficients, step_tokens, max_sequences, kv_tokens
    )


def a_request(
    name: str, prompt_tokens: int = 10, output_tokens: int = 5, blocks: tuple[int, ...] = ()
) -> Request:
    """A short request."""
    return Request(CallId(name), prompt_tokens, output_tokens, blocks)


def an_engine(truth: Truth | None = None, seed: int = 1) -> SimEngine:
    """An idle engine at 0 s."""
    return SimEngine(truth or Truth(a_profile()), Random(seed))


def do(engine: SimEngine, act: Act) -> None:
    """One act, at a moment to which the engine was advanced."""
    match act:
        case Submit(at_s, request):
            engine.submit(request, at_s)
        case Cancel(at_s, call):
            engine.cancel(call, at_s)
        case Slow(at_s, factor):
            engine.slow_down(factor, at_s)


def run_out(engine: SimEngine) -> list[Happening]:
    """All that is still to happen."""
    happenings: list[Happening] = []
    while (next_s := engine.next_s()) < math.inf:
        happenings += engine.advance(next_s)
    return happenings


def play(engine: SimEngine, acts: Sequence[Act]) -> list[Happening]:
    """All that happens when the acts are carried out and nothing comes after them."""
    happenings: list[Happening] = []
    for act in acts:
        happenings += engine.advance(act.at_s)
        do(engine, act)
    return happenings + run_out(engine)


def first_s(happenings: Iterable[Happening]) -> dict[CallId, float]:
    """When each first token came."""
    return {out.call: out.at_s for out in happenings if isinstance(out, FirstOut)}


def last_s(happenings: Iterable[Happening]) -> dict[CallId, float]:
    """When each call ended."""
    return {out.call: out.at_s for out in happenings if isinstance(out, LastOut)}


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """Small engines with any mix of limits; memory always holds the largest request of `acts`."""
    return a_profile(
        step_tokens=draw(st.sampled_from([1, 7, 32, 200])),
        max_sequences=draw(st.integers(1, 6)),
        kv_tokens=draw(st.integers(129, 600)),
    )


@st.composite
def acts(draw: st.DrawFn, *, with_cancels: bool = True, with_slow: bool = True) -> list[Act]:
    """Arrivals, often several at once, some given up later, and an engine that grows slow now and then."""
    at_s, listed = 0.0, list[Act]()
    for index in range(draw(st.integers(1, 12))):
        at_s += draw(st.sampled_from([0, 0, 1, 2, 5, 30, 200])) * TICK_S
        prompt, output = draw(st.integers(1, 90)), draw(st.integers(1, 40))
        blocks = tuple(draw(st.lists(st.integers(0, 3), max_size=6)))
        request = a_request(f"c{index}", prompt, output, blocks)
        listed.append(Submit(at_s, request))
        if with_cancels and draw(st.integers(0, 4)) == 0:
            listed.append(Cancel(at_s + draw(st.integers(1, 90)) * 0.000987654321, request.call))
        if with_slow and draw(st.integers(0, 5)) == 0:
            listed.append(
                Slow(at_s + draw(st.integers(1, 50)) * 0.001928374655, draw(st.sampled_from([0.5, 1, 3])))
            )
    return sorted(listed, key=lambda act: act.at_s)
