"""
A workflow of one's own in virtual time
1. Equal arguments give equal results; a mean load on enough cards is on time; more load never is more so.
2. Sizes are assumed from templates and limits, or those that were given.
3. What cannot be simulated is refused with what to write instead.
"""

from __future__ import annotations

import pytest

import tightrope as tr
from tightrope.bench.trial import ANSWER_PART, FOUND_TOKENS, GIVEN_TOKENS
from tightrope.model.ids import AcceleratorName, ModelName
from tightrope.model.profile import Coefficients

FLEET = {"small": {"l40s": 1}, "big": {"h100": 1, "l40s": 1}}


def a_flow() -> tr.Workflow:
    flow = tr.Workflow("answer", slo=tr.Slo(ttft="1500ms"))
    question = flow.input("question")
    found = flow.code("find", fn="shop.nodes:search_products", inputs={"question": question})
    draft = flow.llm(
        "draft", model="small", prompt="Draft {{ found }}", inputs={"found": found}, max_tokens=64
    )
    inputs = {"question": question, "draft": draft}
    prompt = "Check {{ draft }} {{ question }}"
    flow.output(flow.llm("check", model="big", prompt=prompt, inputs=inputs, max_tokens=100, stream=True))
    return flow


def test_1_equal_arguments_give_equal_results() -> None:
    one = tr.simulate(a_flow(), fleet=FLEET, rate="6 req/s", minutes=0.1, seed=7)
    assert one == tr.simulate(a_flow().build(), fleet=FLEET, rate="6 req/s", minutes=0.1, seed=7)
    assert one.attainment == 1.0
    assert one.runs > 20
    assert sum(one.shares.values()) == pytest.approx(1.0)
    assert one.usd_per_1k_runs == pytest.approx((0.9 + 2.8 + 0.9) * 5.4 / 3600 / one.runs * 1000)
    assert "foresight: 100.0% of" in str(one)


def test_1_beyond_what_the_fleet_can_bear_promises_are_broken() -> None:
    flow = a_flow()
    sizes = {"draft": (4000.0, 60.0), "check": (8000.0, 100.0)}
    over = tr.simulate(flow, fleet=FLEET, rate="300%", minutes=0.1, seed=7, policy="round-robin", sizes=sizes)
    assert over.load == pytest.approx(3.0)
    assert over.attainment < 0.9


def test_2_sizes_are_assumed_or_given() -> None:
    assumed = tr.simulate(a_flow(), fleet=FLEET, rate="6 req/s", minutes=0.02).sizes
    assert assumed["draft"][0] == pytest.approx(FOUND_TOKENS + len("Draft {{ found }}") / 4)
    assert assumed["check"][0] == pytest.approx(
        GIVEN_TOKENS + ANSWER_PART * 64 + len("Check {{ draft }} {{ question }}") / 4
    )
    given = tr.simulate(
        a_flow(), fleet=FLEET, rate="6 req/s", minutes=0.02, sizes={"draft": (1000, 20)}
    ).sizes
    assert given["draft"] == (1000, 20)


def test_2_profiles_of_ones_own_come_first() -> None:
    coefficients = Coefficients(5000.0, 0.0, 0.0, 0.0, 0.0)
    slow = tr.Profile(ModelName("big"), AcceleratorName("desk"), coefficients, 512, 8, 100_000)
    fleet = {"small": {"l40s": 1}, "big": {"desk": 1}}
    found = tr.simulate(a_flow(), fleet=fleet, rate="0.5 req/s", minutes=0.5, profiles=[slow])
    assert found.attainment == 0.0
    assert found.ttft_p50_s is not None
    assert found.ttft_p50_s > 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fleet": {"small": {"l40s": 1}}}, "no replica serves 'big'; add it"),
        ({"fleet": {"small": {"l40s": 1}, "big": {"h10": 1}}}, "use one of"),
        ({"models": {"big": "Qwen3-9B"}}, "did you mean 'Qwen3-8B'"),
        ({"rate": "6"}, "an arrival rate is written like 6 req/s"),
        ({"policy": "forsight"}, "did you mean 'foresight'"),
        ({"sizes": {"chek": (1, 1)}}, "did you mean 'check'"),
    ],
)
def test_3_what_cannot_be_simulated_is_refused(changes: dict[str, object], said: str) -> None:
    arguments: dict[str, object] = {"fleet": FLEET, "rate": "6 req/s", "minutes": 0.02, **changes}
    with pytest.raises(tr.InvalidInput, match=said):
        tr.simulate(a_flow(), **arguments)  # type: ignore[arg-type]
