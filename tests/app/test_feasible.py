"""
Laws of what a fleet can promise
1. A promise within reach is the workflow's own where the fleet can keep that, and never shorter.
2. Where it cannot, it is twice an undisturbed run and half a second, and then no promise is called unreachable.
3. What the workflow does not promise stays unpromised.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.builders import H100
from tightrope import Slo
from tightrope import Workflow as Draft
from tightrope.app.feasible import median_run_s, slo_problems, slo_within_reach
from tightrope.model.ids import ModelName
from tightrope.model.profile import Profile
from tightrope.model.workflow import Workflow

SLOW = replace(H100, model=ModelName("m"), coefficients=H100.coefficients.scaled(100.0))
FAST = replace(H100, model=ModelName("m"))


def workflow(slo: Slo) -> Workflow:
    flow = Draft("two", slo=slo)
    question = flow.input("question")
    draft = flow.llm("draft", model="m", prompt="{{ q }}", inputs={"q": question}, max_tokens=50)
    flow.output(
        flow.llm("answer", model="m", prompt="{{ d }}", inputs={"d": draft}, max_tokens=100, stream=True)
    )
    return flow.build()


@pytest.mark.parametrize("profiles", [[FAST], [SLOW, FAST], [], [replace(SLOW, model=ModelName("another"))]])
def test_1_what_can_be_kept_stays(profiles: list[Profile]) -> None:
    slo = Slo(ttft_s=9.0, tpot_s=2.5, e2e_s=99.0)
    assert slo_within_reach(workflow(slo), profiles) == slo


def test_2_what_cannot_be_kept_becomes_twice_an_undisturbed_run() -> None:
    flow = workflow(Slo(ttft_s=0.3, tpot_s=0.001, e2e_s=0.4, attain=0.9))
    found = slo_within_reach(flow, [SLOW])
    for target_s, is_ttft in ((found.ttft_s, True), (found.e2e_s, False)):
        alone_s = median_run_s(flow, is_ttft, [SLOW])
        assert alone_s is not None
        assert target_s == pytest.approx(2 * alone_s + 0.5)
    assert found.tpot_s == pytest.approx(2 * SLOW.solo_decode_ms(256, 2) / 1000)
    assert found.attain == 0.9
    assert list(slo_problems(flow, flow.slo, ("slo",), [SLOW]))
    assert not list(slo_problems(flow, found, ("slo",), [SLOW]))


def test_3_nothing_is_promised_that_was_not() -> None:
    assert slo_within_reach(workflow(Slo()), [SLOW]) == Slo()
