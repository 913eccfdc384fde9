"""What the kernel does about a failed attempt: move it, repeat it, fall back, or give up."""

from __future__ import annotations

import pytest

from tests.kernel.script import Script, asking, changed, dispatched, finish, of, settled, wake_at
from tightrope.kernel.state import KernelSettings
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import ModelName, ReplicaId
from tightrope.model.messages import CancelCall, Dispatch, FinishRun, Item, RunCode, WakeKind
from tightrope.model.outcome import FailureKind, Outcome, Verdict
from tightrope.model.slo import Slo
from tightrope.model.workflow import CodeCall, OnError, Retry, Timeouts
from tightrope.policy import ROUTERS
from tightrope.testing import a_chain, a_profile

LOST = FailureKind.REPLICA_LOST
ONE = a_chain("answer")
TWO = a_chain("draft", "answer")


# --- failover ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_a_lost_call_goes_to_a_replica_that_did_not_lose_it(router: str) -> None:
    script = Script(ONE, replicas="a b c", settings=KernelSettings(router=router))
    first = dispatched(script.submit())
    second = dispatched(script.failed(first, LOST))
    third = dispatched(script.failed(second, LOST))
    assert len({first.replica, second.replica, third.replica}) == 3
    assert [first.attempt, second.attempt, third.attempt] == [0, 1, 2]
    assert finish(script.done(third)).outcome is Outcome.SUCCEEDED


def test_a_call_is_moved_twice_and_then_fails_with_replica_lost() -> None:
    script = Script(ONE, replicas="a b c d")
    call = dispatched(script.submit())
    for _ in range(2):
        call = dispatched(script.failed(call, LOST))
    end = finish(script.failed(call, LOST))
    assert (end.outcome, end.failure, end.step) == (Outcome.FAILED, LOST, "answer")


def test_all_calls_of_a_lost_replica_are_moved_at_once() -> None:
    script = Script(ONE, replicas="a b", slots=8)
    calls = [dispatched(script.submit(f"r{number}")) for number in range(6)]
    on_a = [call for call in calls if call.replica == "a"]
    assert on_a
    commands = script.lost("a")
    assert {cancelled.call for cancelled in of(CancelCall, commands)} == {call.call for call in on_a}
    moved = of(Dispatch, commands)
    assert {call.run for call in moved} == {call.run for call in on_a}
    assert {call.replica for call in moved} == {"b"}


def test_a_lone_replica_that_was_lost_serves_its_calls_after_its_restart() -> None:
    script = Script(ONE, replicas="a")
    script.submit("r1")
    commands = script.lost("a")
    script.submit("r2")
    assert of(Dispatch, commands) == []
    assert wake_at(commands, WakeKind.REPLICA_RESTART) > script.now_s
    script.wake(WakeKind.REPLICA_RESTART)
    served = of(Dispatch, script.ready("a"))
    assert {call.run for call in served} == {"r1", "r2"}
    for call in served:
        assert finish(script.done(call)).outcome is Outcome.SUCCEEDED


def test_a_streamed_answer_that_was_lost_after_its_first_content_is_not_repeated() -> None:
    script = Script(TWO)
    answer = dispatched(script.done(dispatched(script.submit(slo=Slo(ttft_s=10.0)))))
    script.after(1.0)
    script.first_token(answer)
    end = finish(script.failed(answer, LOST))
    assert (end.outcome, end.failure, end.verdict) == (Outcome.FAILED, LOST, Verdict.MISSED)
    assert end.ttft_s == pytest.approx(1.0)


@pytest.mark.parametrize("step", ["draft", "answer"])
def test_what_nobody_has_read_is_repeated_after_its_first_content(step: str) -> None:
    script = Script(TWO)
    call = dispatched(script.submit(is_streamed=False))
    if step == "answer":
        call = dispatched(script.done(call))
    script.first_token(call)
    again = dispatched(script.failed(call, LOST))
    assert (again.step, again.attempt) == (step, 1)


def test_an_inner_node_of_a_streamed_run_is_repeated_after_its_first_content() -> None:
    script = Script(TWO)
    draft = dispatched(script.submit(is_streamed=True))
    script.first_token(draft)
    assert dispatched(script.failed(draft, LOST)).step == "draft"


def test_a_replica_that_accepted_a_call_and_says_nothing_loses_it() -> None:
    script = Script(ONE, profiles=[a_profile()])
    commands = script.submit()
    call = dispatched(commands)
    assert wake_at(commands, WakeKind.CALL_SILENT) == pytest.approx(5.0)
    commands = script.wake(WakeKind.CALL_SILENT)
    assert [cancelled.call for cancelled in of(CancelCall, commands)] == [call.call]
    assert dispatched(commands).replica != call.replica


def test_a_long_prompt_is_no_silence() -> None:
    script = Script(ONE, profiles=[a_profile(kv_tokens=100_000)])
    script.items["answer"] = (Item(20_000),)
    commands = script.submit()
    own_s = dispatched(commands).routed.offers[0].estimate.ttft / 1000
    assert own_s > 5.0
    assert wake_at(commands, WakeKind.CALL_SILENT) == pytest.approx(3 * own_s)


def test_after_its_first_token_a_call_is_no_longer_silent() -> None:
    script = Script(ONE)
    script.first_token(dispatched(script.submit()))
    assert script.wake(WakeKind.CALL_SILENT) == []


# --- retries -------------------------------------------------------------------------------------------


def test_a_retry_waits_longer_each_time_and_ends_with_the_number_that_was_declared() -> None:
    script = Script(changed(ONE, "answer", retry=Retry(times=2)), replicas="a b c")
    call = dispatched(script.submit())
    pauses_s = []
    for _ in range(2):
        commands = script.failed(call)
        assert of(Dispatch, commands) == []
        pauses_s.append(wake_at(commands, WakeKind.CALL_RETRY) - script.now_s)
        call = dispatched(script.wake(WakeKind.CALL_RETRY))
    assert 0.1 <= pauses_s[0] <= 0.2 <= pauses_s[1] <= 0.4
    end = finish(script.failed(call))
    assert (end.outcome, end.failure) == (Outcome.FAILED, FailureKind.ENGINE_ERROR)


def test_a_kind_of_failure_that_is_not_listed_is_not_repeated() -> None:
    script = Script(changed(ONE, "answer", retry=Retry(times=2, on=(FailureKind.TIMEOUT,))))
    assert finish(script.failed(dispatched(script.submit()))).failure is FailureKind.ENGINE_ERROR


def test_at_most_a_tenth_of_the_calls_and_never_fewer_than_three_are_repetitions() -> None:
    script = Script(changed(ONE, "answer", retry=Retry(times=1)), slots=100)
    calls = [dispatched(script.submit(f"r{number}")) for number in range(40)]
    ends = [of(FinishRun, script.failed(call)) for call in calls[:10]]
    assert sum(not end for end in ends) == 4


def test_a_call_that_is_moved_takes_nothing_from_the_budget_of_retries() -> None:
    script = Script(changed(ONE, "answer", retry=Retry(times=1)), replicas="a b c", slots=100)
    calls = [dispatched(script.submit(f"r{number}")) for number in range(12)]
    script.lost("a")
    moved = {call.run for call in calls if call.replica == "a"}
    assert len(moved) >= 3
    others = [call for call in calls if call.run not in moved]
    assert of(FinishRun, script.failed(others[0])) == []


def test_the_budget_is_free_again_when_a_repetition_has_ended() -> None:
    script = Script(changed(ONE, "answer", retry=Retry(times=1)), slots=100)
    calls = [dispatched(script.submit(f"r{number}")) for number in range(5)]
    for call in calls[:3]:
        assert of(FinishRun, script.failed(call)) == []
    again = dispatched(script.wake(WakeKind.CALL_RETRY))
    script.done(again)
    assert of(FinishRun, script.failed(calls[3])) == []
    assert len(of(FinishRun, script.failed(calls[4]))) == 1


def test_code_that_may_not_be_repeated_is_not() -> None:
    flow = changed(ONE, "answer", work=CodeCall("m:f"), retry=Retry(2, (FailureKind.CODE_ERROR,)))
    script = Script(flow)
    call = of(RunCode, script.submit())[0]
    assert finish(script.failed(call, FailureKind.CODE_ERROR)).failure is FailureKind.CODE_ERROR


def test_idempotent_code_is_repeated() -> None:
    work = CodeCall("m:f", idempotent=True)
    script = Script(changed(ONE, "answer", work=work, retry=Retry(1, (FailureKind.CODE_ERROR,))))
    call = of(RunCode, script.submit())[0]
    script.failed(call, FailureKind.CODE_ERROR)
    again = of(RunCode, script.wake(WakeKind.CALL_RETRY))[0]
    assert finish(script.done(again)).outcome is Outcome.SUCCEEDED


def test_a_run_that_ended_while_it_waited_for_a_retry_is_not_woken() -> None:
    script = Script(changed(ONE, "answer", retry=Retry(times=1)))
    script.failed(dispatched(script.submit(deadline_s=0.05)))
    script.wake(WakeKind.RUN_DEADLINE)
    assert script.wake(WakeKind.CALL_RETRY) == []


# --- fallback and on_error -----------------------------------------------------------------------------


def test_the_fallback_model_is_tried_once_after_the_attempts_on_the_first() -> None:
    flow = asking(changed(ONE, "answer", retry=Retry(times=1)), "answer", fallback=ModelName("big"))
    script = Script(flow, replicas="a b f:big g:big")
    first = dispatched(script.submit())
    script.failed(first)
    second = dispatched(script.wake(WakeKind.CALL_RETRY))
    last = dispatched(script.failed(second))
    assert [call.model for call in (first, second, last)] == ["small", "small", "big"]
    assert finish(script.failed(last)).outcome is Outcome.FAILED


def test_the_fallback_serves_where_the_first_model_has_no_room_in_time() -> None:
    flow = asking(changed(ONE, "answer", timeouts=Timeouts(queue_s=0.5)), "answer", fallback=ModelName("big"))
    script = Script(flow, replicas="a f:big", slots=1)
    script.submit("r1")
    assert of(Dispatch, script.submit("r2")) == []
    assert dispatched(script.wake(WakeKind.CALL_QUEUE)).model == "big"


def test_on_error_fail_ends_the_run_and_names_the_node() -> None:
    script = Script(TWO)
    end = finish(script.failed(dispatched(script.submit()), FailureKind.BAD_REQUEST))
    assert (end.outcome, end.failure, end.step) == (Outcome.FAILED, FailureKind.BAD_REQUEST, "draft")
    assert end.message == "it was told to fail"


def test_on_error_value_stands_in_for_the_answer() -> None:
    script = Script(changed(TWO, "draft", on_error=OnError("value", '"nothing"')))
    commands = script.failed(dispatched(script.submit()))
    assert settled(commands) == [("draft", "value")]
    assert dispatched(commands).step == "answer"


def test_on_error_skip_skips_the_readers_that_need_it() -> None:
    script = Script(changed(TWO, "draft", on_error=OnError("skip")))
    commands = script.failed(dispatched(script.submit()))
    assert settled(commands) == [("draft", "skipped")]
    end = finish(commands)
    assert (end.outcome, end.failure, end.step) == (Outcome.FAILED, FailureKind.BAD_INPUT, "answer")


def test_a_node_that_takes_longer_than_its_limit_ends_as_on_error_says() -> None:
    flow = changed(TWO, "draft", timeouts=Timeouts(total_s=2.0), on_error=OnError("value", "1"))
    script = Script(flow)
    draft = dispatched(script.submit())
    commands = script.wake(WakeKind.STEP_TOTAL)
    assert script.now_s == pytest.approx(2.0)
    assert [cancelled.call for cancelled in of(CancelCall, commands)] == [draft.call]
    assert settled(commands) == [("draft", "value")]


def test_one_attempt_that_takes_longer_than_its_limit_is_repeated() -> None:
    script = Script(changed(ONE, "answer", timeouts=Timeouts(attempt_s=1.0), retry=Retry(times=1)))
    first = dispatched(script.submit())
    commands = script.wake(WakeKind.CALL_ATTEMPT)
    assert [cancelled.call for cancelled in of(CancelCall, commands)] == [first.call]
    assert dispatched(script.wake(WakeKind.CALL_RETRY)).attempt == 1


# --- an answer of the wrong shape ----------------------------------------------------------------------

SHAPED = asking(ONE, "answer", shape='{"type":"object"}')
BAD_OUTPUT = FailureKind.BAD_OUTPUT


def test_a_bad_answer_is_asked_for_once_more_inside_the_budget() -> None:
    script = Script(SHAPED)
    first = dispatched(script.submit(slo=Slo(e2e_s=60.0)))
    again = dispatched(script.failed(first, BAD_OUTPUT))
    assert (first.is_reask, again.is_reask) == (False, True)
    end = finish(script.failed(again, BAD_OUTPUT))
    assert (end.outcome, end.failure) == (Outcome.FAILED, BAD_OUTPUT)


def test_a_bad_answer_is_not_asked_for_again_when_the_budget_is_spent() -> None:
    script = Script(SHAPED)
    first = dispatched(script.submit(slo=Slo(e2e_s=60.0)))
    script.after(59.9)
    assert finish(script.failed(first, BAD_OUTPUT)).failure is BAD_OUTPUT


def test_a_bad_answer_is_not_held_against_the_replica() -> None:
    script = Script(SHAPED, replicas="a")
    first = dispatched(script.submit())
    assert dispatched(script.failed(first, BAD_OUTPUT)).replica == "a"


def test_a_shape_that_reached_nobody_can_be_repeated_after_a_loss() -> None:
    script = Script(SHAPED)
    first = dispatched(script.submit(is_streamed=True))
    script.first_token(first)
    assert dispatched(script.failed(first, LOST)).attempt == 1


# --- ends ----------------------------------------------------------------------------------------------


def test_a_run_ends_as_expired_at_its_hard_deadline() -> None:
    script = Script(TWO)
    call = dispatched(script.submit(deadline_s=3.0))
    commands = script.wake(WakeKind.RUN_DEADLINE)
    assert script.now_s == pytest.approx(3.0)
    assert [cancelled.call for cancelled in of(CancelCall, commands)] == [call.call]
    end = finish(commands)
    assert (end.outcome, end.failure) == (Outcome.EXPIRED, FailureKind.EXPIRED)
    assert script.done(call) == []


def test_a_prompt_that_may_be_too_long_is_left_to_an_engine_to_refuse() -> None:
    """Its size is a guess until an engine has counted: it gets an answer, not a long wait."""
    script = Script(ONE, profiles=[a_profile(kv_tokens=2048)])
    script.items["answer"] = (Item(10_000),)
    call = dispatched(script.submit())
    end = finish(script.failed(call, FailureKind.CONTEXT_TOO_LONG))
    assert (end.outcome, end.failure) == (Outcome.FAILED, FailureKind.CONTEXT_TOO_LONG)


def test_a_prompt_that_is_surely_too_long_fails_at_once() -> None:
    script = Script(ONE, profiles=[a_profile(kv_tokens=2048)])
    script.items["answer"] = (Item(1_000_000),)
    end = finish(script.submit())
    assert (end.outcome, end.failure) == (Outcome.FAILED, FailureKind.CONTEXT_TOO_LONG)


def test_an_unknown_router_is_named() -> None:
    with pytest.raises(InvalidInput, match="no router 'fastest'"):
        Script(ONE, settings=KernelSettings(router="fastest"))


def test_the_loss_of_an_unknown_replica_changes_nothing() -> None:
    script = Script(ONE)
    assert script.lost("nobody") == []
    assert ReplicaId("nobody") not in script.kernel.state.replicas
