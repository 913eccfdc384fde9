"""What a replica is taken to be doing, from dispatches, first tokens and the time that has passed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.builders import H100, MODEL, NOW_S, a_held, a_job, a_view
from tightrope.model.ids import AcceleratorName
from tightrope.model.profile import Coefficients, Profile
from tightrope.policy.estimate import has_room
from tightrope.policy.load import EMPTY, load_for, standing

# A step takes 10 ms whatever it holds, a prompt token 1 ms on top: numbers a reader can follow.
PLAIN = Profile(
    MODEL,
    AcceleratorName("plain"),
    Coefficients(a=10, b=0, c=0, d=1, e=0),
    step_tokens=1000,
    max_sequences=2,
    kv_tokens=10_000,
)


def test_an_idle_replica_is_no_load() -> None:
    assert load_for(a_job(), standing(a_view(), NOW_S)) == EMPTY


def test_output_is_counted_by_the_time_since_the_first_token() -> None:
    call = a_held(first_token_s=NOW_S - 0.3, output_tokens=100.0)
    now = standing(a_view(profile=PLAIN, held=(call,)), NOW_S)
    assert now.output_left == pytest.approx([69])
    assert now.context_tokens == pytest.approx(500 + 31)


def test_an_answer_longer_than_expected_has_one_token_left() -> None:
    call = a_held(first_token_s=NOW_S - 60, output_tokens=100.0)
    now = standing(a_view(profile=PLAIN, held=(call,)), NOW_S)
    assert now.output_left == [1.0]


def test_prompts_are_computed_one_after_the_other() -> None:
    held = (
        a_held("one", prompt_tokens=500, dispatched_s=NOW_S - 0.255),
        a_held("two", prompt_tokens=500, dispatched_s=NOW_S - 0.200),
    )
    now = standing(a_view(profile=PLAIN, held=held), NOW_S)
    assert now.prompt_left == pytest.approx([250, 500])


def test_a_prompt_that_should_be_done_has_one_token_left() -> None:
    held = (a_held(prompt_tokens=500, dispatched_s=NOW_S - 9),)
    assert standing(a_view(profile=PLAIN, held=held), NOW_S).prompt_left == [1.0]


def test_what_the_engine_cannot_run_yet_waits_in_front_of_everybody() -> None:
    held = tuple(a_held(name, prompt_tokens=100) for name in "abc")
    now = standing(a_view(profile=PLAIN, held=held), NOW_S)
    assert [call.call for call in now.gauge.queued] == ["c"]
    urgent = a_job(due_s=NOW_S)
    load = load_for(urgent, now)
    assert (load.prefilling, load.waiting, load.queued_tokens) == (2, 1, 300)


def test_what_is_placed_in_thought_goes_first_only_with_an_earlier_or_equal_key() -> None:
    placed = tuple(
        a_held(name, has_slot=False, due_s=NOW_S + due, is_hopeless=late, prompt_tokens=100)
        for name, due, late in [
            ("early", 1, False),
            ("equal", 5, False),
            ("later", 9, False),
            ("lost", 0, True),
        ]
    )
    now = standing(a_view(profile=PLAIN, held=placed), NOW_S)
    assert load_for(a_job(due_s=NOW_S + 5), now).queued_tokens == 200
    assert load_for(a_job(due_s=NOW_S + 5, is_hopeless=True), now).queued_tokens == 400


def test_a_call_waits_for_a_sequence_until_the_first_one_ends() -> None:
    held = tuple(
        a_held(str(left), first_token_s=NOW_S, output_tokens=left + 1.0, prompt_tokens=10, is_terminal=True)
        for left in (30, 70)
    )
    now = standing(
        a_view(profile=replace(PLAIN, coefficients=Coefficients(10, 0, 0, 0, 0)), held=held), NOW_S
    )
    assert load_for(a_job(), now).slot_ms == pytest.approx(300)


def test_a_second_one_in_line_waits_for_the_second_end() -> None:
    plain = replace(PLAIN, coefficients=Coefficients(10, 0, 0, 0, 0))
    held = (
        *(
            a_held(str(left), first_token_s=NOW_S, output_tokens=left + 1.0, prompt_tokens=10)
            for left in (30, 70)
        ),
        a_held("first in line", has_slot=False, due_s=NOW_S, output_tokens=500.0),
    )
    assert load_for(a_job(), standing(a_view(profile=plain, held=held), NOW_S)).slot_ms == pytest.approx(700)


def test_a_call_waits_for_memory() -> None:
    held = (a_held(first_token_s=NOW_S, prompt_tokens=9000, output_tokens=51.0),)
    plain = replace(PLAIN, coefficients=Coefficients(10, 0, 0, 0, 0))
    view = a_view(profile=plain, held=held)
    job = a_job(prompt_tokens=1000, output_high=100)
    assert load_for(job, standing(view, NOW_S)).slot_ms == pytest.approx(500)
    assert not has_room(job, view, NOW_S)


def test_decoding_calls_foretell_the_prompts_that_will_come() -> None:
    """100 prompt tokens each time a call of 50 tokens begins are 2 prompt tokens a step, for every sequence."""
    held = tuple(a_held(name, first_token_s=NOW_S, prompt_tokens=100, output_tokens=50.0) for name in "ab")
    assert standing(a_view(profile=PLAIN, held=held), NOW_S).gauge.prefill_ms == pytest.approx(4)


def test_a_long_prompt_goes_when_no_other_prompt_is_in_front() -> None:
    long = a_job(prompt_tokens=5000)
    decoding = a_held(first_token_s=NOW_S)
    assert has_room(long, a_view(profile=H100, held=(decoding,)), NOW_S)
    assert not has_room(long, a_view(profile=H100, held=(decoding, a_held("prompt"))), NOW_S)
