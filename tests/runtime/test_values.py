"""What runs carry: code nodes, shapes, references, fan-outs, and values that are not as they should be."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from tests.runtime import nodes
from tests.runtime.world import a_world, until, within
from tightrope.model.ids import StepId
from tightrope.model.outcome import FailureKind, Outcome
from tightrope.model.workflow import (
    Binding,
    Case,
    CaseRef,
    FanOut,
    Gather,
    InputSpec,
    ModelCall,
    Node,
    OnError,
    Ref,
    Switch,
    Workflow,
    problems,
)
from tightrope.ports import EngineRequest
from tightrope.runtime.client import RunFailed
from tightrope.testing import Script, ScriptedEngine, a_node

QUESTION = InputSpec("question", "last_user_message")


def flow_of(
    *steps: Node, switches: tuple[Switch, ...] = (), inputs: tuple[InputSpec, ...] = (QUESTION,)
) -> Workflow:
    """A sound workflow that ends with the last of these nodes."""
    flow = Workflow("chain", steps, steps[-1].id, inputs=inputs, switches=switches)
    assert problems(flow) == []
    return flow


def code(function: str, name: str = "answer", reads: tuple[str, ...] = ("input.question",)) -> Node:
    """A code node that runs one of `tests.runtime.nodes`."""
    return a_node(name, reads=reads, function=f"{nodes.HERE}:{function}")


def echo() -> ScriptedEngine:
    """An engine that answers with the last message it was asked."""
    return ScriptedEngine(lambda request: Script(text=asked(request)))


def asked(request: EngineRequest) -> str:
    return request.messages[-1].content if request.messages else ""


async def outcome(flow: Workflow, question: str = "one two", **engines: ScriptedEngine) -> RunFailed:
    """The failure of a run that must fail, and must not harm the next one."""
    async with a_world(flow, engines=engines or None) as world:
        with pytest.raises(RunFailed) as caught:
            await within(world.submit(question).result())
        assert world.driver.broken is None
        assert await world.answer("hi", "model/small")
        return caught.value


# --- code ----------------------------------------------------------------------------------------------


async def test_the_result_of_a_code_node_can_be_the_answer() -> None:
    async with a_world(flow_of(code("shout"))) as world:
        for is_streamed in (True, False):
            result = await within(world.submit("hello", is_streamed=is_streamed).result())
            assert (result.text, result.finish_reason) == ("HELLO", "stop")
            assert json.loads(result.pieces[0].choices)[0]["delta"]["content"] == "HELLO"


async def test_a_result_that_is_no_text_is_told_as_json() -> None:
    async with a_world(flow_of(code("count"))) as world:
        assert json.loads(await world.answer("hello")) == {"letters": 5}


async def test_async_code_runs_on_the_loop_and_sync_code_beside_it() -> None:
    nodes.threads.clear()
    both = replace(
        code("as_list"), inputs=(("one", Binding((Ref("shout"),))), ("two", Binding((Ref("count"),))))
    )
    async with a_world(flow_of(code("shout", "shout"), code("count", "count"), both)) as world:
        assert json.loads(await world.answer("hi")) == [["one", "HI"], ["two", {"letters": 2}]]
    on_loop, beside = nodes.threads
    assert on_loop == "MainThread"
    assert beside.startswith("tightrope-code")


async def test_sync_code_that_blocks_holds_up_nobody() -> None:
    nodes.gate.clear()
    async with a_world(flow_of(code("waits_for_the_gate"))) as world:
        blocked = world.submit("blocked")
        assert await world.answer("hi", "model/small")
        assert blocked.finish is None
        nodes.gate.set()
        assert (await within(blocked.result())).text == "blocked"


async def test_a_cancelled_async_function_ends() -> None:
    async with a_world(flow_of(code("never_ends"))) as world:
        handle = world.submit()
        await until(lambda: bool(asyncio.all_tasks()) and handle.finish is None)
        handle.cancel("the client left")
        await within(world.driver.wait_until_idle())
        assert handle.finish is not None
        assert handle.finish.outcome is Outcome.CANCELLED


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("raises", "ValueError: no such thing as one two"),
        ("next_of_nothing", "StopIteration"),
        ("leaves", "asked the interpreter to end"),
        ("async_leaves", "asked the interpreter to end"),
        ("awaits_what_was_cancelled", "something that was cancelled"),
        ("not_json", "what is not JSON"),
        ("not_a_number", "what is not JSON"),
        ("half_a_character", "what is not JSON"),
        ("is_not_there", "cannot be imported"),
        ("HERE", "is not a function"),
    ],
)
async def test_code_that_goes_wrong_fails_its_run_and_says_how(function: str, told: str) -> None:
    end = await outcome(flow_of(code(function)))
    assert end.finish.failure is FailureKind.CODE_ERROR
    assert told in str(end)
    assert end.finish.step == "answer"


async def test_code_that_is_given_the_wrong_names_fails_its_run() -> None:
    node = replace(code("shout"), inputs=(("text", Binding((Ref("input", ("question",)),))),))
    assert "unexpected keyword argument 'text'" in str(await outcome(flow_of(node)))


async def test_code_that_raises_runs_once() -> None:
    nodes.calls.clear()
    await outcome(flow_of(code("raises")))
    assert nodes.calls == ["one two"]


# --- shapes --------------------------------------------------------------------------------------------

SHAPE = '{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}'


def shaped(name: str = "answer") -> Node:
    node = a_node(name)
    assert isinstance(node.work, ModelCall)
    return replace(node, work=replace(node.work, shape=SHAPE))


async def test_a_shape_is_asked_of_the_engine_and_its_answer_comes_as_one_piece() -> None:
    engine = ScriptedEngine(Script(text='{"n": 1}'))
    async with a_world(flow_of(shaped()), engines={"a": engine}) as world:
        result = await within(world.submit().result())
        assert json.loads(result.text) == {"n": 1}
        assert [piece.is_content for piece in result.pieces] == [True, False]
        assert engine.requests[0].schema == SHAPE


async def test_a_malformed_answer_is_repaired_without_asking_again() -> None:
    engine = ScriptedEngine(Script(text="Sure: ```json {'n': 1,} ```"))
    async with a_world(flow_of(shaped()), engines={"a": engine}) as world:
        assert json.loads(await world.answer()) == {"n": 1}
        assert len(engine.requests) == 1


async def test_an_answer_without_the_shape_is_asked_for_again_with_the_reason() -> None:
    engine = ScriptedEngine(lambda _: Script(text="no idea" if len(engine.requests) == 1 else '{"n": 2}'))
    async with a_world(flow_of(shaped()), engines={"a": engine}) as world:
        assert json.loads(await world.answer()) == {"n": 2}
    first, again = engine.requests
    assert again.messages is not None
    assert first.messages == again.messages[:-1]
    assert "required form" in again.messages[-1].content


async def test_an_answer_that_never_has_the_shape_fails_after_one_more_question() -> None:
    engine = ScriptedEngine(Script(text="no idea"))
    async with a_world(flow_of(shaped()), engines={"a": engine}) as world:
        with pytest.raises(RunFailed, match="wrong form") as caught:
            await within(world.submit().result())
        assert caught.value.finish.failure is FailureKind.BAD_OUTPUT
        assert len(engine.requests) == 2
        assert caught.value.finish.usage.output_tokens == 4


async def test_half_a_character_in_an_answer_is_a_bad_answer() -> None:
    shape = '{"type":"object"}'
    node = a_node("answer")
    assert isinstance(node.work, ModelCall)
    node = replace(node, work=replace(node.work, shape=shape))
    engine = ScriptedEngine(
        lambda request: Script(text='{"a":"\\ud800"}' if request.schema is not None else "hello")
    )
    end = await outcome(flow_of(node), a=engine)
    assert end.finish.failure is FailureKind.BAD_OUTPUT


# --- references ----------------------------------------------------------------------------------------


async def test_inputs_come_from_the_message_the_metadata_and_by_name() -> None:
    inputs = (
        QUESTION,
        InputSpec("history", "messages"),
        InputSpec("language", "metadata.language", '"en"'),
        InputSpec("limit", "input", "3"),
    )
    reads = tuple(f"input.{spec.name}" for spec in inputs)
    flow = flow_of(code("as_list", reads=reads), inputs=inputs)
    async with a_world(flow) as world:
        given = dict(json.loads(await world.answer("hi")))
        assert given["history"] == [{"role": "user", "content": "hi"}]
        assert (given["question"], given["language"], given["limit"]) == ("hi", "en", 3)
        text = await world.answer("hi", metadata={"language": "de"}, named={"limit": 5})
        given = dict(json.loads(text))
        assert (given["language"], given["limit"]) == ("de", 5)


async def test_the_first_that_was_not_skipped_is_read_and_null_if_all_were() -> None:
    way = Switch(StepId("way"), (Case("left", "input.question == 'left'", 0.5), Case("none", None, 0.5)))
    left = replace(code("shout", "left"), case=CaseRef(StepId("way"), "left"))
    other = replace(code("shout", "other"), case=CaseRef(StepId("way"), "none"))
    either = ("either", Binding((Ref("left"), Ref("other"))))
    maybe = ("maybe", Binding((Ref("left"),), optional=True))
    answer = replace(code("as_list"), inputs=(either, maybe))
    async with a_world(flow_of(left, other, answer, switches=(way,))) as world:
        assert json.loads(await world.answer("left")) == [["either", "LEFT"], ["maybe", "LEFT"]]
        assert json.loads(await world.answer("right")) == [["either", "RIGHT"], ["maybe", None]]


async def test_a_guard_reads_texts_fields_and_lists() -> None:
    words = code("split", "words")
    way = Switch(
        StepId("way"), (Case("many", "size(words) > 2", 0.5), Case("few", None, 0.5)), (StepId("words"),)
    )
    many = replace(code("shout", "many"), case=CaseRef(StepId("way"), "many"))
    answer = replace(code("as_list"), inputs=(("many", Binding((Ref("many"),), optional=True)),))
    async with a_world(flow_of(words, many, answer, switches=(way,))) as world:
        assert json.loads(await world.answer("a b c")) == [["many", "A B C"]]
        assert json.loads(await world.answer("a b")) == [["many", None]]


async def test_a_guard_reads_a_fan_out_as_the_list_of_its_results() -> None:
    words = code("split", "words")
    notes = replace(
        code("shout", "notes"),
        inputs=(("question", Binding((Ref("each"),))),),
        fan_out=FanOut(Ref("words"), 8),
    )
    way = Switch(
        StepId("way"), (Case("many", "size(notes) > 1 && notes[0] == 'A'", 0.5), Case("few", None, 0.5)),
        (StepId("notes"),),
    )  # fmt: skip
    many = replace(code("shout", "many"), case=CaseRef(StepId("way"), "many"))
    answer = replace(code("as_list"), inputs=(("many", Binding((Ref("many"),), optional=True)),))
    async with a_world(flow_of(words, notes, many, answer, switches=(way,))) as world:
        assert json.loads(await world.answer("a b")) == [["many", "A B"]]
        assert json.loads(await world.answer("a")) == [["many", None]]


async def test_a_guard_that_cannot_be_evaluated_fails_the_run_with_its_text() -> None:
    way = Switch(
        StepId("way"), (Case("big", "first.missing > 2", 0.5), Case("small", None, 0.5)), (StepId("first"),)
    )
    big = replace(code("shout", "big"), case=CaseRef(StepId("way"), "big"))
    answer = replace(code("as_list"), inputs=(("big", Binding((Ref("big"),), optional=True)),))
    end = await outcome(flow_of(code("count", "first"), big, answer, switches=(way,)))
    assert (end.finish.failure, end.finish.step) == (FailureKind.BAD_INPUT, "way")
    assert "missing" in str(end)


async def test_a_field_that_is_not_there_is_named() -> None:
    first = code("count", "first")
    answer = replace(code("as_list"), inputs=(("words", Binding((Ref("first", ("words",)),))),))
    end = await outcome(flow_of(first, answer))
    assert end.finish.failure is FailureKind.BAD_INPUT
    assert "first.words" in str(end)
    assert "'words'" in str(end)


# --- fan-outs ------------------------------------------------------------------------------------------


def fanned(max_items: int = 8, *, gather: Gather | None = None, on_error: OnError | None = None) -> Workflow:
    words = code("split", "words")
    notes = replace(
        a_node("notes", reads=("each",)),
        fan_out=FanOut(Ref("words"), max_items),
        on_error=on_error or OnError(),
    )
    answer = replace(code("as_list"), inputs=(("all", Binding((Ref("notes"),), gather=gather)),))
    return flow_of(words, notes, answer)


async def test_the_results_of_a_fan_out_are_listed_in_item_order_whatever_ends_first() -> None:
    gate = asyncio.Event()
    engine = ScriptedEngine(
        lambda request: Script(text=asked(request), wait_for=gate if asked(request) == "a" else None)
    )
    async with a_world(fanned(), engines={"a": engine}) as world:
        handle = world.submit("a b c", is_streamed=False)
        await until(lambda: len(engine.requests) == 3 and engine.in_flight == 1)
        gate.set()
        assert json.loads((await within(handle.result())).text) == [["all", ["a", "b", "c"]]]


async def test_failed_items_are_missing_from_the_list() -> None:
    engine = ScriptedEngine(
        lambda request: Script(
            text=asked(request), failure=FailureKind.BAD_REQUEST if asked(request) == "b" else None
        )
    )
    for flow in (fanned(on_error=OnError("skip")), fanned(gather=Gather(2))):
        async with a_world(flow, engines={"a": engine}) as world:
            assert json.loads(await world.answer("a b c")) == [["all", ["a", "c"]]]


async def test_an_empty_list_gives_an_empty_list() -> None:
    async with a_world(fanned(), engines={"a": echo()}) as world:
        assert json.loads(await world.answer(" ")) == [["all", []]]


async def test_a_list_that_is_too_long_fails_or_is_cut() -> None:
    assert "has 3 elements, notes takes 2" in str(await outcome(fanned(2), "a b c", a=echo()))
    flow = fanned(2)
    notes = replace(flow.nodes[1], fan_out=FanOut(Ref("words"), 2, "cut"))
    async with a_world(
        replace(flow, nodes=(flow.nodes[0], notes, flow.nodes[2])), engines={"a": echo()}
    ) as world:
        assert json.loads(await world.answer("a b c")) == [["all", ["a", "b"]]]


async def test_a_fan_out_over_what_is_no_list_fails() -> None:
    notes = replace(a_node("notes", reads=("each",)), fan_out=FanOut(Ref("input", ("question",)), 2))
    answer = replace(code("as_list"), inputs=(("all", Binding((Ref("notes"),))),))
    assert "not a list" in str(await outcome(flow_of(notes, answer), a=echo()))


async def test_what_is_odd_about_a_value_is_a_matter_of_its_run_alone() -> None:
    """A message that no encoding can carry is refused before it is sent anywhere."""
    end = await outcome(flow_of(a_node("answer")), "\udce4")
    assert end.finish.failure is FailureKind.BAD_INPUT
