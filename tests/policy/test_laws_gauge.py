"""
Laws of the sums over a ledger
R9. What is read from the sums of a replica is what a walk over its calls finds, at every moment after the last event.
1. What was found about who can still be on time holds as long as it is kept.
2. Sums of times left are those of one moment after the other.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.builders import NOW_S, a_job, numbers, views
from tests.policy.walk import Walked, walk
from tightrope.model.fleet import ReplicaView
from tightrope.policy.gauge import Ends, gauge
from tightrope.policy.harm import Exposed, exposed, harm_ms, kept_exposed
from tightrope.policy.load import standing

TOLERANCE_S = 0.25
later = numbers(0, 20)


@given(views(most=12), later)
def test_r9_a_reading_is_what_a_walk_finds(view: ReplicaView, after_s: float) -> None:
    now, walked = standing(view, NOW_S + after_s), walk(view, NOW_S + after_s, TOLERANCE_S)
    sums = now.gauge
    assert (sums.decoding, sums.prefilling) == (walked.decoding, walked.prefilling)
    assert list(sums.queued) == walked.queued
    assert now.output_left == pytest.approx(walked.output_left)
    assert list(now.prompt_left) == pytest.approx(walked.prompt_left)
    assert now.left.tokens == pytest.approx(sum(walked.prompt_left))
    assert now.context_tokens == pytest.approx(walked.context_tokens)
    assert now.step_ms == pytest.approx(walked.step_ms)
    assert sums.prefill_ms == pytest.approx(walked.prefill_ms)
    assert sums.reserved == pytest.approx(walked.reserved)
    assert sums.promised == pytest.approx(walked.promised)


@given(views(most=12), later)
def test_r9_the_exposed_are_those_a_walk_finds_live(view: ReplicaView, after_s: float) -> None:
    now, walked = standing(view, NOW_S + after_s), walk(view, NOW_S + after_s, TOLERANCE_S)
    assert _counts(exposed(now, TOLERANCE_S)) == _expected(walked)


@given(views(most=12), numbers(1, 400), later)
def test_r9_the_harm_is_what_each_live_call_suffers(view: ReplicaView, output: float, after_s: float) -> None:
    now, walked = standing(view, NOW_S + after_s), walk(view, NOW_S + after_s, TOLERANCE_S)
    job, k = a_job(output_tokens=output), view.profile.coefficients
    left = dict(zip(map(id, walked.decoding), walked.output_left, strict=True))
    overlap = sum(
        min(output, left.get(id(call), call.output_tokens)) for call in walked.live if not call.is_terminal
    )
    decoding = sum(id(call) in left for call in walked.live)
    prefilling = sum(call in walked.prefilling for call in walked.live)
    key = (job.is_hopeless, job.due_s)
    behind = sum(not call.has_slot and (call.is_hopeless, call.due_s) > key for call in walked.live)
    stall = k.d * job.prompt_tokens + k.e * job.prompt_tokens**2 / 2
    expected = stall * (decoding + prefilling / 2 + behind)
    expected += overlap * (k.b + k.c * (job.prompt_tokens + output / 2))
    assert harm_ms(job, now, exposed(now, TOLERANCE_S)) == pytest.approx(expected)


@given(views(most=12), st.lists(numbers(0, 2), min_size=1, max_size=8))
def test_1_what_is_kept_is_what_would_be_found_anew(view: ReplicaView, pauses: list[float]) -> None:
    now_s = NOW_S
    for pause_s in pauses:
        now_s += pause_s
        now = standing(view, now_s)
        assert kept_exposed(view, now, TOLERANCE_S) == exposed(now, TOLERANCE_S)


@given(views(most=12), later)
def test_1_the_sums_stay_with_the_view_and_with_no_other(view: ReplicaView, after_s: float) -> None:
    assert gauge(view) is gauge(view)
    again = replace(view, held=view.held[1:])
    assert gauge(again) is not gauge(view)
    assert again.memo is not view.memo


@given(st.lists(numbers(0, 50), max_size=9), numbers(0, 60), numbers(0, 30))
def test_2_times_left_are_added_up(moments_s: list[float], now_s: float, most_s: float) -> None:
    ends, left_s = Ends.of(moments_s), [max(0.0, moment - now_s) for moment in moments_s]
    assert ends.left_s(now_s) == pytest.approx(sum(left_s), abs=1e-9)
    assert ends.left_within_s(now_s, most_s) == pytest.approx(sum(min(most_s, s) for s in left_s), abs=1e-9)


def _counts(found: Exposed) -> tuple[int, int, list[str], int]:
    return (found.decoding, found.prefilling, [call.call for call in found.placed], len(found.outputs))


def _expected(walked: Walked) -> tuple[int, int, list[str], int]:
    decoding = [call for call in walked.live if call.first_token_s is not None]
    pending = [call for call in walked.live if call.first_token_s is None]
    return (
        len(decoding),
        sum(call in walked.prefilling for call in pending),
        [call.call for call in pending if not call.has_slot],
        sum(not call.is_terminal for call in pending),
    )
