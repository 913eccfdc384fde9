"""How a run moves through its graph: order, branches, skips, fan-outs and their joins."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.kernel.script import TENANT, Script, call_of, changed, dispatched, finish, of, one, settled
from tightrope.model.ids import CallId, RunId, StepId
from tightrope.model.messages import (
    CallDone,
    CancelCall,
    Dispatch,
    DrainRequested,
    FinishRun,
    FirstToken,
    Item,
    Prepare,
    PrepareFailed,
    RunCancelled,
    RunCode,
    RunSubmitted,
    WakeKind,
)
from tightrope.model.outcome import FailureKind, Outcome, Refusal, Usage, Verdict
from tightrope.model.slo import Limits, Slo
from tightrope.model.workflow import (
    Binding,
    Case,
    CaseRef,
    FanOut,
    Gather,
    InputSpec,
    OnError,
    Ref,
    Switch,
    Workflow,
    problems,
)
from tightrope.testing import a_chain, a_node

QUESTION = (InputSpec("question", "last_user_message"),)


def is_sound(workflow: Workflow) -> Workflow:
    assert problems(workflow) == []
    return workflow


# --- one after the other -------------------------------------------------------------------------------


def test_a_node_runs_when_what_it_reads_is_there_and_the_output_ends_the_run() -> None:
    script = Script(a_chain("draft", "check", "answer"))
    commands = script.submit(slo=Slo(ttft_s=10.0))
    for step in ("draft", "check"):
        script.after(0.5)
        call = dispatched(commands)
        assert call.step == step
        commands = script.done(call, prompt_tokens=10, output_tokens=5)
    answer = dispatched(commands)
    script.after(0.5)
    script.first_token(answer)
    script.after(2.0)
    end = finish(script.done(answer, prompt_tokens=10, output_tokens=21))
    assert (end.outcome, end.verdict, end.step) == (Outcome.SUCCEEDED, Verdict.MET, None)
    assert end.ttft_s == pytest.approx(1.5)
    assert end.duration_s == pytest.approx(3.5)
    assert end.tpot_s == pytest.approx(0.1)
    assert end.usage == Usage(30, 31)


def test_the_time_to_the_first_token_decides_and_not_the_end() -> None:
    script = Script(a_chain("answer"))
    answer = dispatched(script.submit(slo=Slo(ttft_s=1.0)))
    script.after(1.5)
    script.first_token(answer)
    assert finish(script.done(answer)).verdict is Verdict.MISSED


def test_nodes_that_read_only_the_request_run_side_by_side() -> None:
    both = a_node("both", reads=("left", "right"), stream=True)
    flow = is_sound(
        Workflow("pair", (a_node("left"), a_node("right"), both), StepId("both"), inputs=QUESTION)
    )
    script = Script(flow)
    left, right = of(Dispatch, script.submit())
    assert (left.step, right.step) == ("left", "right")
    assert of(Prepare, script.done(right)) == []
    assert dispatched(script.done(left)).step == "both"


def test_an_input_that_cannot_be_built_fails_the_run_without_a_second_try() -> None:
    script = Script(a_chain("answer"))
    event = RunSubmitted(RunId("r1"), TENANT, script.workflows[0].id, Slo(), 60.0, True)
    wish = one(Prepare, script.kernel.handle(event, 0.0))
    end = finish(
        script.tell(PrepareFailed(wish.run, wish.step, FailureKind.BAD_INPUT, "there is no field 'x'"))
    )
    assert (end.failure, end.message) == (FailureKind.BAD_INPUT, "there is no field 'x'")


def test_code_runs_at_once_and_needs_no_replica() -> None:
    flow = is_sound(changed(a_chain("draft", "answer"), "draft", work=a_node("x", function="m:f").work))
    script = Script(flow, replicas="a", slots=1)
    script.done(one(RunCode, script.submit("r1")))
    assert of(Dispatch, script.said)
    assert one(RunCode, script.submit("r2")).step == "draft"


# --- branches ------------------------------------------------------------------------------------------


def branching() -> Workflow:
    """`kind` decides between a long way (`look`, `compare`) and none; `answer` reads what there is."""
    cases = (Case("hard", "input.question == 'x'", 0.5), Case("easy", None, 0.5))
    hard = CaseRef(StepId("kind"), "hard")
    look = replace(a_node("look"), case=hard)
    compare = replace(a_node("compare", reads=("look",)), case=hard)
    answer = a_node("answer", stream=True)
    read = ("found", Binding((Ref("compare"),), optional=True))
    answer = replace(answer, inputs=(*answer.inputs, read))
    return is_sound(
        Workflow(
            "branching", (look, compare, answer), StepId("answer"),
            inputs=QUESTION, switches=(Switch(StepId("kind"), cases),),
        )
    )  # fmt: skip


def test_the_branch_that_is_not_taken_is_skipped_with_all_that_follows_from_it() -> None:
    script = Script(branching())
    script.cases["kind"] = "easy"
    commands = script.submit()
    assert settled(commands) == [("look", "skipped"), ("compare", "skipped")]
    assert dispatched(commands).step == "answer"


def test_the_branch_that_is_taken_runs_before_its_reader() -> None:
    script = Script(branching())
    script.cases["kind"] = "hard"
    commands = script.submit()
    assert settled(commands) == []
    steps = []
    while of(Dispatch, commands):
        call = dispatched(commands)
        steps.append(call.step)
        commands = script.done(call)
    assert steps == ["look", "compare", "answer"]
    assert finish(commands).outcome is Outcome.SUCCEEDED


def test_the_first_branch_that_was_not_skipped_is_read() -> None:
    cases = (Case("left", "input.question == 'x'", 0.5), Case("right", None, 0.5))
    left = replace(a_node("left"), case=CaseRef(StepId("way"), "left"))
    right = replace(a_node("right"), case=CaseRef(StepId("way"), "right"))
    answer = replace(a_node("answer", stream=True), inputs=(("text", Binding((Ref("left"), Ref("right")))),))
    flow = is_sound(
        Workflow(
            "either", (left, right, answer), StepId("answer"),
            inputs=QUESTION, switches=(Switch(StepId("way"), cases),),
        )
    )  # fmt: skip
    for case in ("left", "right"):
        script = Script(flow)
        script.cases["way"] = case
        call = dispatched(script.submit())
        assert call.step == case
        assert dispatched(script.done(call)).step == "answer"


# --- fan-outs ------------------------------------------------------------------------------------------

ITEMS = (Item(100), Item(200), Item(300))


def fanning(gather: Gather | None = None, on_error: OnError | None = None) -> Workflow:
    """One call of `note` per element of a list; `answer` joins them."""
    each = replace(
        a_node("note", reads=("each.text",)),
        fan_out=FanOut(Ref("input", ("question",)), 8),
        on_error=on_error or OnError(),
    )
    answer = replace(a_node("answer", stream=True), inputs=(("all", Binding((Ref("note"),), gather=gather)),))
    return is_sound(Workflow("fanning", (each, answer), StepId("answer"), inputs=QUESTION))


def fanned(flow: Workflow, items: tuple[Item, ...] = ITEMS) -> tuple[Script, list[Dispatch]]:
    script = Script(flow)
    script.items["note"] = items
    return script, [call for call in of(Dispatch, script.submit()) if call.step == "note"]


def test_a_fan_out_makes_one_call_per_item_and_the_join_waits_for_all() -> None:
    script, calls = fanned(fanning())
    assert sorted(call.item for call in calls) == [0, 1, 2]
    assert of(Prepare, script.done(calls[2])) == []
    assert of(Prepare, script.done(calls[0])) == []
    assert dispatched(script.done(calls[1])).step == "answer"


def test_an_empty_list_joins_at_once() -> None:
    script = Script(fanning())
    script.items["note"] = ()
    commands = script.submit()
    assert settled(commands) == [("note", "joined")]
    assert dispatched(commands).step == "answer"


def test_one_failed_item_fails_the_run_unless_something_else_was_declared() -> None:
    script, calls = fanned(fanning())
    commands = script.failed(calls[0])
    assert finish(commands).step == "note"
    assert {cancelled.call for cancelled in of(CancelCall, commands)} == {calls[1].call, calls[2].call}


def test_failed_items_are_left_out_with_on_error_skip() -> None:
    script, calls = fanned(fanning(on_error=OnError("skip")))
    script.failed(calls[1])
    script.done(calls[0])
    commands = script.done(calls[2])
    assert settled(commands) == [("note", "joined")]
    assert dispatched(commands).step == "answer"


def test_a_join_of_at_least_two_takes_what_is_there_when_its_time_is_up() -> None:
    script, calls = fanned(fanning(Gather(2, 1.0)))
    script.done(calls[0])
    script.done(calls[1])
    commands = script.wake(WakeKind.GATHER_WITHIN)
    assert script.now_s == pytest.approx(1.0)
    assert [cancelled.call for cancelled in of(CancelCall, commands)] == [calls[2].call]
    assert settled(commands) == [("note", "joined")]
    assert dispatched(commands).step == "answer"


def test_a_join_that_has_too_few_when_its_time_is_up_goes_on_as_soon_as_it_has_enough() -> None:
    script, calls = fanned(fanning(Gather(2, 1.0)))
    script.done(calls[0])
    assert script.wake(WakeKind.GATHER_WITHIN) == []
    commands = script.done(calls[2])
    assert [cancelled.call for cancelled in of(CancelCall, commands)] == [calls[1].call]
    assert dispatched(commands).step == "answer"


def test_a_join_without_a_time_waits_for_every_item_that_may_still_succeed() -> None:
    script, calls = fanned(fanning(Gather(2)))
    assert of(Prepare, script.done(calls[0])) == []
    assert of(Prepare, script.done(calls[1])) == []
    assert dispatched(script.failed(calls[2])).step == "answer"


def test_a_join_that_can_no_longer_have_enough_fails_its_reader() -> None:
    script, calls = fanned(fanning(Gather(3)))
    script.failed(calls[0])
    script.done(calls[1])
    end = finish(script.done(calls[2]))
    assert (end.failure, end.step) == (FailureKind.BAD_INPUT, "answer")
    assert "2 of 3 items of note succeeded, 3 are needed" in end.message


# --- ends ----------------------------------------------------------------------------------------------


def test_cancelling_gives_back_what_runs_and_what_waits() -> None:
    script = Script(a_chain("answer"), replicas="a", slots=1)
    call = dispatched(script.submit("r1"))
    assert of(Dispatch, script.submit("r2")) == []
    waiting = script.tell(RunCancelled(RunId("r2"), "the client left"))
    assert finish(waiting).outcome is Outcome.CANCELLED
    assert of(CancelCall, waiting) == []
    running = script.tell(RunCancelled(RunId("r1"), "the client left"))
    assert one(CancelCall, running).call == call.call
    assert script.tell(RunCancelled(RunId("r1"), "again")) == []


def test_the_end_of_one_run_makes_room_for_the_next() -> None:
    script = Script(a_chain("answer"), replicas="a", slots=1)
    script.submit("r1")
    script.submit("r2")
    assert dispatched(script.tell(RunCancelled(RunId("r1"), "the client left"))).run == "r2"


def test_draining_refuses_new_runs_and_finishes_the_old_ones() -> None:
    script = Script(a_chain("answer"))
    call = dispatched(script.submit("r1"))
    script.tell(DrainRequested())
    end = finish(script.submit("r2"))
    assert (end.outcome, end.refusal) == (Outcome.REJECTED, Refusal.DRAINING)
    assert end.retry_after_s is not None
    assert finish(script.done(call)).outcome is Outcome.SUCCEEDED


def test_a_workflow_whose_model_no_replica_serves_is_refused_with_the_cure() -> None:
    script = Script(a_chain("answer", model="big"))
    end = finish(script.submit())
    assert end.refusal is Refusal.NO_REPLICA
    assert "big" in end.message


def test_a_tenant_may_have_so_many_runs_at_once() -> None:
    script = Script(a_chain("answer"), limits=Limits(concurrent=2))
    calls = [dispatched(script.submit(f"r{number}")) for number in range(2)]
    end = finish(script.submit("r2"))
    assert (end.outcome, end.refusal) == (Outcome.REJECTED, Refusal.TOO_MANY_RUNS)
    script.done(calls[0])
    assert of(FinishRun, script.submit("r3")) == []


def test_a_tenant_may_have_so_many_calls_in_line() -> None:
    script = Script(a_chain("answer"), replicas="a", slots=1, limits=Limits(queue=1))
    script.submit("r1")
    script.submit("r2")
    assert finish(script.submit("r3")).refusal is Refusal.QUEUE_FULL


def test_news_about_calls_that_are_over_is_ignored() -> None:
    script = Script(a_chain("answer"))
    call = dispatched(script.submit())
    script.done(call)
    assert script.done(call) == script.failed(call) == script.first_token(call) == []
    unknown = CallId(call_of("nobody", "answer"))
    assert script.tell(CallDone(unknown, Usage())) == script.tell(FirstToken(unknown)) == []
