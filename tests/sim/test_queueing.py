"""The simulated engine against queueing theory: set up so that a textbook knows the answer.

One seat and work in the prompt alone make it a single server in order of arrival (M/M/1, M/D/1): each wait is that
of Lindley's recursion, and their mean that of the formula. Seats for all and a step that costs in proportion to the
sequences in it make it a shared processor (M/G/1-PS), whose mean sojourn depends on the mean of the work and on
nothing else of it. Exponential draws are all quantiles in random order, so that a finite sample has the load meant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

import pytest

from tests.sim.engines import Happening
from tightrope.model.ids import AcceleratorName, CallId, ModelName
from tightrope.model.profile import Coefficients, Profile
from tightrope.sim.engine import LastOut, Request, SimEngine, Truth

PROMPT_MS = 0.05
MEAN_PROMPT = 2000
MEAN_SERVICE_S = MEAN_PROMPT * PROMPT_MS / 1000

TOKEN_MS = 0.1
MEAN_GAPS = 400
MEAN_WORK_S = MEAN_GAPS * TOKEN_MS / 1000

Draw = Callable[[int, Random], list[float]]
"""So many sizes with mean 1."""


def exponential(count: int, rng: Random) -> list[float]:
    sizes = [-math.log(1 - (rank + 0.5) / count) for rank in range(count)]
    rng.shuffle(sizes)
    return sizes


def constant(count: int, rng: Random) -> list[float]:
    return [1.0] * count


def mostly_short(count: int, rng: Random) -> list[float]:
    """Four in five a quarter of the mean, the others four times it: the deviation is 1.5 times the mean."""
    sizes = [4.0 if rank % 5 == 0 else 0.25 for rank in range(count)]
    rng.shuffle(sizes)
    return sizes


def an_engine(coefficients: Coefficients, seats: int) -> SimEngine:
    """An engine without other limits."""
    profile = Profile(ModelName("m"), AcceleratorName("card"), coefficients, 10**7, seats, 10**9)
    return SimEngine(Truth(profile), Random(0))


def poisson_s(count: int, gap_s: float, rng: Random) -> list[float]:
    """Moments of arrival."""
    at_s, moments_s = 0.0, list[float]()
    for gap in exponential(count, rng):
        at_s += gap * gap_s
        moments_s.append(at_s)
    return moments_s


def sojourns_s(engine: SimEngine, arrivals: Sequence[tuple[float, int, int]]) -> list[float]:
    """From arrival to last token, of requests that arrive at a moment with prompt and output tokens."""
    happenings: list[Happening] = []
    for index, (at_s, prompt, output) in enumerate(arrivals):
        happenings += engine.advance(at_s)
        engine.submit(Request(CallId(str(index)), prompt, output), at_s)
    while (next_s := engine.next_s()) < math.inf:
        happenings += engine.advance(next_s)
    ended_s = {out.call: out.at_s for out in happenings if isinstance(out, LastOut)}
    return [ended_s[CallId(str(index))] - at_s for index, (at_s, _, _) in enumerate(arrivals)]


@pytest.mark.parametrize(
    ("draw", "load", "factor"),
    [
        pytest.param(exponential, 0.5, 1.0, id="M/M/1 at 0.5"),
        pytest.param(constant, 0.5, 0.5, id="M/D/1 at 0.5"),
        pytest.param(constant, 0.7, 0.5, id="M/D/1 at 0.7"),
    ],
)
def test_one_seat_is_a_single_server(draw: Draw, load: float, factor: float) -> None:
    rng, count = Random(1), 20_000
    prompts = [max(1, round(MEAN_PROMPT * size)) for size in draw(count, rng)]
    moments_s = poisson_s(count, MEAN_SERVICE_S / load, rng)
    engine = an_engine(Coefficients(a=0, b=0, c=0, d=PROMPT_MS, e=0), seats=1)
    times_s = sojourns_s(engine, [(at_s, prompt, 1) for at_s, prompt in zip(moments_s, prompts, strict=True)])
    services_s = [PROMPT_MS / 1000 * prompt for prompt in prompts]
    waits_s = [time_s - service_s for time_s, service_s in zip(times_s, services_s, strict=True)]
    assert waits_s == pytest.approx(lindley_s(moments_s, services_s), abs=1e-6)
    assert math.fsum(waits_s) / count == pytest.approx(factor * MEAN_SERVICE_S * load / (1 - load), rel=0.03)


def lindley_s(moments_s: Sequence[float], services_s: Sequence[float]) -> list[float]:
    """Each wait is the one before, plus that one's service, less the gap between the two."""
    waits_s, free_s = list[float](), 0.0
    for at_s, service_s in zip(moments_s, services_s, strict=True):
        waits_s.append(max(0.0, free_s - at_s))
        free_s = max(free_s, at_s) + service_s
    return waits_s


@pytest.mark.parametrize("draw", [constant, exponential, mostly_short])
def test_seats_for_all_share_the_processor_whatever_the_work_is_like(draw: Draw) -> None:
    load, rng, count = 0.5, Random(1), 10_000
    outputs = [1 + max(1, round(MEAN_GAPS * size)) for size in draw(count, rng)]
    moments_s = poisson_s(count, MEAN_WORK_S / load, rng)
    engine = an_engine(Coefficients(a=0.0005, b=TOKEN_MS, c=0, d=0, e=0), seats=10**6)
    times_s = sojourns_s(engine, [(at_s, 1, output) for at_s, output in zip(moments_s, outputs, strict=True)])
    assert math.fsum(times_s) / count == pytest.approx(MEAN_WORK_S / (1 - load), rel=0.05)
