"""Where calls go and who goes first: late binding, the order of the line, budgets that follow the run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.kernel.script import TENANT, Script, dispatched, finish, of, one, wake_at
from tightrope.kernel.state import KernelSettings
from tightrope.model.ids import ReplicaId, RunId
from tightrope.model.messages import (
    Dispatch,
    Item,
    ProfileLoaded,
    ReplicaReady,
    RunSubmitted,
    WakeKind,
)
from tightrope.model.outcome import Outcome, Verdict
from tightrope.model.slo import Slo
from tightrope.testing import a_chain, a_profile

ONE = a_chain("answer", max_tokens=100)
TIGHT, WIDE = Slo(ttft_s=5.0), Slo(ttft_s=50.0)

FAST = a_profile(accelerator="fast", speed=2.5, max_sequences=1)
SLOW = a_profile(accelerator="slow", speed=1.0, max_sequences=1)


def two_cards(router: str = "foresight") -> Script:
    """A card that is two and a half times as fast as the other; each takes one call at a time."""
    return Script(
        ONE, replicas="fast@fast slow@slow", slots=1, profiles=[FAST, SLOW],
        settings=KernelSettings(router=router),
    )  # fmt: skip


# --- late binding --------------------------------------------------------------------------------------


def test_a_call_waits_for_the_fast_card_although_the_slow_one_is_free() -> None:
    script = two_cards()
    first = dispatched(script.submit("r1", is_streamed=False, slo=Slo(e2e_s=60.0)))
    assert first.replica == "fast"
    assert of(Dispatch, script.submit("r2", is_streamed=False, slo=Slo(e2e_s=60.0))) == []
    script.after(0.1)
    second = dispatched(script.done(first))
    assert (second.run, second.replica) == ("r2", "fast")
    assert second.waited_s == pytest.approx(0.1)


def test_a_call_that_is_placed_in_thought_sends_the_next_one_to_the_slow_card() -> None:
    script = two_cards()
    for run in ("r1", "r2"):
        script.submit(run, is_streamed=False, slo=Slo(e2e_s=60.0))
    third = dispatched(script.submit("r3", is_streamed=False, slo=Slo(e2e_s=61.0)))
    assert (third.run, third.replica) == ("r3", "slow")
    assert [offer.replica for offer in third.routed.offers] == ["slow", "fast"]


def one_card_with_long_prompts() -> Script:
    """One card whose steps hold fewer tokens than half of a prompt; several calls may decode at once."""
    card = a_profile(accelerator="fast", max_sequences=8, step_tokens=512)
    script = Script(ONE, replicas="fast@fast", slots=8, profiles=[card])
    script.items["answer"] = (Item(prompt_tokens=1000),)
    return script


def test_an_overdue_first_token_is_not_waited_for() -> None:
    script = one_card_with_long_prompts()
    dispatched(script.submit("r1", slo=WIDE))
    waiting = script.submit("r2", slo=WIDE)
    assert of(Dispatch, waiting) == []
    expected_s = wake_at(waiting, WakeKind.CALL_OVERDUE)
    assert expected_s > script.now_s
    assert dispatched(script.wake(WakeKind.CALL_OVERDUE)).run == "r2"


def test_a_first_token_that_has_come_is_not_overdue() -> None:
    script = one_card_with_long_prompts()
    first = dispatched(script.submit("r1", slo=WIDE))
    assert of(Dispatch, script.submit("r2", slo=WIDE)) == []
    script.after(0.2)
    script.first_token(first)
    assert of(Dispatch, script.wake(WakeKind.CALL_OVERDUE)) == []


def test_early_binding_takes_the_free_card_at_once() -> None:
    script = two_cards("power-of-two")
    replicas = {dispatched(script.submit(run)).replica for run in ("r1", "r2")}
    assert replicas == {"fast", "slow"}


def test_a_card_that_comes_up_takes_what_waits() -> None:
    script = Script(ONE, replicas="a", slots=1)
    script.submit("r1")
    assert of(Dispatch, script.submit("r2")) == []
    script.plan("a b")
    assert dispatched(script.ready("b")).replica == "b"


def test_an_engine_that_takes_fewer_calls_than_its_profile_says_is_believed() -> None:
    script = Script(ONE, replicas="a", slots=1, profiles=[a_profile(max_sequences=8)])
    script.submit("r1")
    assert of(Dispatch, script.submit("r2")) == []


def test_an_engine_that_says_nothing_takes_what_its_profile_says() -> None:
    script = Script(ONE, replicas="", profiles=[a_profile(max_sequences=2, step_tokens=4096)])
    script.plan("a")
    script.tell(ReplicaReady(ReplicaId("a"), None))
    dispatches = [of(Dispatch, script.submit(f"r{number}")) for number in range(3)]
    assert [len(found) for found in dispatches] == [1, 1, 0]


def test_a_new_profile_is_believed_from_the_next_decision_on() -> None:
    script = two_cards()
    script.tell(ProfileLoaded(a_profile(accelerator="slow", speed=50.0, max_sequences=1)))
    assert dispatched(script.submit()).replica == "slow"


# --- the line ------------------------------------------------------------------------------------------


def test_the_earliest_latest_finish_goes_first() -> None:
    script = Script(ONE, replicas="a", slots=1, profiles=[a_profile(max_sequences=1)])
    first = dispatched(script.submit("r1"))
    for run, slo in (("none", Slo()), ("wide", WIDE), ("tight", TIGHT)):
        assert of(Dispatch, script.submit(run, slo=slo)) == []
    order = []
    call = first
    for _ in range(3):
        call = dispatched(script.done(call))
        order.append(call.run)
    assert order == ["tight", "wide", "none"]


def test_a_call_that_can_no_longer_be_on_time_goes_behind_those_that_can_and_is_still_served() -> None:
    script = Script(ONE, replicas="a", slots=1, profiles=[a_profile(max_sequences=1)])
    first = dispatched(script.submit("r1"))
    script.submit("late", slo=Slo(ttft_s=0.5))
    script.submit("live", slo=Slo(ttft_s=10.0))
    script.after(1.0)
    second = dispatched(script.done(first))
    assert second.run == "live"
    last = dispatched(script.done(second))
    assert last.run == "late"
    end = finish(script.done(last))
    assert (end.outcome, end.verdict) == (Outcome.SUCCEEDED, Verdict.MISSED)


def test_calls_without_a_promise_go_in_the_order_of_arrival() -> None:
    script = Script(ONE, replicas="a", slots=1)
    call = dispatched(script.submit("r0"))
    for number in range(1, 4):
        script.after(0.01)
        script.submit(f"r{number}")
    for number in range(1, 4):
        call = dispatched(script.done(call))
        assert call.run == f"r{number}"


# --- budgets -------------------------------------------------------------------------------------------


def test_what_a_slow_node_took_is_missing_from_the_budgets_of_those_after_it() -> None:
    chain = a_chain("draft", "check", "answer", slo=Slo(ttft_s=6.0))
    calls = {}
    for spent_s in (0.5, 4.0):
        script = Script(chain, profiles=[a_profile()])
        draft = dispatched(script.submit(slo=chain.slo))
        script.after(spent_s)
        calls[spent_s] = dispatched(script.done(draft))
    early, late = calls[0.5], calls[4.0]
    assert early.slack.due_s == pytest.approx(late.slack.due_s)
    assert early.slack.slack_s - late.slack.slack_s == pytest.approx(3.5)
    assert late.slack.budget_s < early.slack.budget_s
    assert late.slack.budget_s == pytest.approx(early.slack.budget_s * (6.0 - 4.0) / (6.0 - 0.5))


def test_a_latest_finish_leaves_room_for_what_comes_after_it() -> None:
    script = Script(a_chain("draft", "answer"), profiles=[a_profile()])
    draft = dispatched(script.submit(slo=Slo(ttft_s=10.0)))
    assert 0.0 < draft.slack.remaining_s < 10.0
    assert draft.slack.due_s == pytest.approx(10.0 - draft.slack.remaining_s)
    answer = dispatched(script.done(draft))
    assert (answer.slack.due_s, answer.slack.remaining_s) == (10.0, 0.0)
    assert answer.slack.budget_s == pytest.approx(10.0)


def test_the_tighter_of_two_promises_counts() -> None:
    script = Script(ONE, profiles=[a_profile()])
    by_end = dispatched(script.submit("r1", slo=Slo(ttft_s=10.0, e2e_s=3.0)))
    by_first = dispatched(script.submit("r2", slo=Slo(ttft_s=1.0, e2e_s=30.0)))
    assert (by_end.slack.due_s, by_first.slack.due_s) == (3.0, 1.0)


def test_the_output_may_be_made_shorter_and_never_longer() -> None:
    for wanted, given in ((7, 7), (1000, 100), (None, 100)):
        script = Script(ONE)
        event = RunSubmitted(RunId("r1"), TENANT, ONE.id, Slo(), 60.0, True)
        assert dispatched(script.tell(replace(event, output_tokens=wanted))).max_tokens == given


# --- learning ------------------------------------------------------------------------------------------


def test_lengths_and_prompts_are_learned_from_what_engines_count() -> None:
    script = Script(ONE)
    script.items["answer"] = (Item(1000),)
    before = dispatched(script.submit("r0"))
    script.done(before, prompt_tokens=500, output_tokens=10)
    for number in range(1, 40):
        script.done(dispatched(script.submit(f"r{number}")), prompt_tokens=500, output_tokens=10)
    after = dispatched(script.submit("last"))
    assert before.prompt_tokens == pytest.approx(286, abs=1)
    assert after.prompt_tokens == pytest.approx(500, rel=0.05)
    assert before.output_tokens > 2 * after.output_tokens
    assert after.output_tokens == pytest.approx(10, rel=0.1)


def test_a_token_count_that_is_known_is_used_as_it_is() -> None:
    script = Script(ONE)
    script.items["answer"] = (Item(1000, 77),)
    assert one(Dispatch, script.submit()).prompt_tokens == 77
