"""What a reader of a run sees: pieces in order, one answer, a clear end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

import pytest

from tests.runtime.world import STRANGER, TENANT, a_world, until, within
from tightrope.kernel.kernel import Kernel
from tightrope.model.errors import InvalidInput, NotFound, Rejected, TightropeBug
from tightrope.model.ids import StepId
from tightrope.model.messages import DrainRequested
from tightrope.model.outcome import FailureKind, Outcome
from tightrope.model.slo import Limits
from tightrope.model.workflow import OnError, Retry, Timeouts, Workflow
from tightrope.ports import Chunk, EngineRequest
from tightrope.runtime.client import RunFailed, RunHandle, RunInputs, RunRequest, Sampling
from tightrope.runtime.handle import BUFFER_BYTES
from tightrope.testing import ManualClock, Script, ScriptedEngine, a_chain

ONE = a_chain("answer")
SAYS = "one two three four"


def with_fields(step: str, workflow: Workflow, **changes: object) -> Workflow:
    nodes = tuple(
        replace(node, **changes) if node.id == StepId(step) else node  # type: ignore[arg-type]
        for node in workflow.nodes
    )
    return replace(workflow, nodes=nodes)


async def read(handle: RunHandle) -> list[str]:
    return [piece.text async for piece in handle.pieces() if piece.text]


# --- streaming -----------------------------------------------------------------------------------------


async def test_pieces_come_in_order_and_while_the_engine_still_writes() -> None:
    gate = asyncio.Event()
    async with a_world(ONE, engines={"a": Gated(SAYS, gate)}) as world:
        handle = world.submit()
        pieces = handle.pieces()
        seen: list[str] = []
        while len(seen) < 2:
            piece = await within(anext(pieces))
            seen += [piece.text] if piece.text else []
        assert seen == ["one", " two"]
        assert world.driver.runs_underway == 1
        gate.set()
        seen += [piece.text async for piece in pieces if piece.text]
        assert "".join(seen) == SAYS
        assert handle.finish is not None
        assert handle.finish.outcome is Outcome.SUCCEEDED
        assert handle.usage.output_tokens == 4


class Gated(ScriptedEngine):
    """Writes two words, and the rest when the gate opens."""

    def __init__(self, text: str, gate: asyncio.Event) -> None:
        super().__init__(Script(text=text))
        self.gate = gate

    async def answer(self, request: EngineRequest) -> AsyncGenerator[Chunk, None]:
        words = 0
        async for chunk in super().answer(request):
            if words == 2:
                await self.gate.wait()
            words += bool(chunk.text)
            yield chunk


async def test_the_engines_own_frames_reach_the_reader_unchanged() -> None:
    async with a_world(ONE, engines={"a": ScriptedEngine(Script(text="one two"))}) as world:
        pieces = [piece async for piece in world.submit().pieces()]
        assert b'"role":"assistant"' in pieces[0].choices
        assert [piece.text for piece in pieces] == ["", "one", " two", "", ""]
        assert pieces[3].finish_reason == "stop"
        assert pieces[4].usage is not None


async def test_inner_nodes_are_not_shown() -> None:
    engine = ScriptedEngine(lambda request: Script(text="draft" if len(engine.requests) == 1 else "answer"))
    async with a_world(a_chain("draft", "answer"), engines={"a": engine}) as world:
        assert await read(world.submit()) == ["answer"]
        assert "draft" in str(engine.requests[1].messages)


async def test_a_reader_that_does_not_read_pauses_the_engine() -> None:
    made = 0

    class Endless(ScriptedEngine):
        async def answer(self, request: EngineRequest) -> AsyncGenerator[Chunk, None]:
            nonlocal made
            big = "x" * 4096
            for _ in range(10 * BUFFER_BYTES // len(big)):
                made += len(big)
                yield Chunk(text=big, choices=big.encode(), is_content=True)

    async with a_world(ONE, engines={"a": Endless()}) as world:
        handle = world.submit()
        await until(lambda: handle.is_full)
        for _ in range(100):
            await asyncio.sleep(0)
        assert made <= BUFFER_BYTES + 4096
        total = sum([len(piece.choices) async for piece in handle.pieces()])
        assert total == made == 10 * BUFFER_BYTES


async def test_a_run_that_is_not_streamed_does_not_wait_for_its_reader() -> None:
    class Endless(ScriptedEngine):
        async def answer(self, request: EngineRequest) -> AsyncGenerator[Chunk, None]:
            for _ in range(3):
                yield Chunk(text="x", choices=b"x" * BUFFER_BYTES, is_content=True)

    async with a_world(ONE, engines={"a": Endless()}) as world:
        handle = world.submit(is_streamed=False)
        await within(world.driver.wait_until_idle())
        assert (await handle.result()).text == "xxx"


async def test_the_limit_and_the_sampling_of_a_request_reach_the_output_node_alone() -> None:
    engine = ScriptedEngine()
    sampling = Sampling(max_tokens=3, temperature=0.5, stop=("end",), extra={"seed": "7"})
    async with a_world(a_chain("draft", "answer"), engines={"a": engine}) as world:
        await within(world.submit(sampling=sampling).result())
    draft, answer = engine.requests
    assert (draft.max_tokens, draft.temperature, draft.stop, draft.extra) == (32, None, (), {})
    assert (answer.max_tokens, answer.temperature, answer.stop) == (3, 0.5, ("end",))
    assert answer.extra == {"seed": "7"}


async def test_an_engine_that_does_not_count_is_counted_here() -> None:
    async with a_world(ONE, engines={"a": ScriptedEngine(Script(text=SAYS, usage=False))}) as world:
        result = await within(world.submit().result())
        assert result.finish.usage.output_tokens == 4
        assert result.finish.usage.prompt_tokens > 0


async def test_an_empty_answer_is_an_answer() -> None:
    async with a_world(ONE, engines={"a": ScriptedEngine(Script(text=""))}) as world:
        for is_streamed in (True, False):
            result = await within(world.submit(is_streamed=is_streamed).result())
            assert (result.text, result.finish_reason) == ("", "stop")


async def test_plain_models_are_workflows_too() -> None:
    async with a_world(engines={"a": ScriptedEngine(Script(text=SAYS))}) as world:
        assert await world.answer("hi", "model/small") == SAYS


# --- failures ------------------------------------------------------------------------------------------


async def test_an_engine_that_dies_before_its_first_content_is_not_noticed() -> None:
    engines = {
        "a": ScriptedEngine(Script(failure=FailureKind.REPLICA_LOST)),
        "b": ScriptedEngine(Script(text=SAYS)),
    }
    async with a_world(ONE, engines=engines) as world:
        texts = await asyncio.gather(*(read(world.submit()) for _ in range(6)))
        assert {"".join(text) for text in texts} == {SAYS}
        assert engines["a"].requests


async def test_an_engine_that_dies_after_its_first_content_ends_the_stream_with_its_reason() -> None:
    engine = ScriptedEngine(Script(text=SAYS, failure=FailureKind.REPLICA_LOST, after_pieces=2))
    async with a_world(ONE, engines={"a": engine, "b": ScriptedEngine(Script(text=SAYS))}) as world:
        handle = world.submit()
        seen: list[str] = []
        with pytest.raises(RunFailed) as caught:
            seen.extend([piece.text async for piece in listened(handle, seen)])
        assert "".join(seen) == "one two"
        assert caught.value.finish.failure is FailureKind.REPLICA_LOST
        assert len(engine.requests) == 1


async def listened(handle: RunHandle, heard: list[str]) -> AsyncIterator[Chunk]:
    """The pieces of a run, each noted at once."""
    async for piece in handle.pieces():
        heard.append(piece.text)
        yield piece


@pytest.mark.parametrize("failure", [FailureKind.REPLICA_LOST, FailureKind.ENGINE_ERROR])
async def test_a_run_that_is_not_streamed_is_repeated_and_gives_exactly_one_answer(
    failure: FailureKind,
) -> None:
    engine = ScriptedEngine(
        lambda _: (
            Script(text=SAYS, failure=failure, after_pieces=2)
            if len(engine.requests) == 1
            else Script(text=SAYS)
        )
    )
    flow = with_fields("answer", ONE, retry=Retry(times=1))
    async with a_world(flow, engines={"a": engine}) as world:
        result = await within(world.submit(is_streamed=False).result())
        assert result.text == SAYS
        assert len(engine.requests) == 2
        assert [piece.text for piece in result.pieces].count("one") == 1


@pytest.mark.parametrize("failure", list(FailureKind))
async def test_every_failure_of_an_engine_ends_in_one_clear_error(failure: FailureKind) -> None:
    engine = ScriptedEngine(Script(failure=failure))
    async with a_world(ONE, engines={"a": engine}, settings=None) as world:
        with pytest.raises(RunFailed, match="the script says so") as caught:
            await within(world.submit().result())
        assert caught.value.finish.failure is failure


async def test_an_engine_that_raises_anything_else_fails_the_call_alone() -> None:
    class Nonsense(ScriptedEngine):
        async def answer(self, request: EngineRequest) -> AsyncGenerator[Chunk, None]:
            if request.messages is not None:
                raise LookupError("no key 'choices'")
            yield Chunk("", b"[]", is_content=False)

    async with a_world(ONE, engines={"a": Nonsense()}) as world:
        with pytest.raises(RunFailed, match="LookupError: no key 'choices'") as caught:
            await within(world.submit().result())
        assert caught.value.finish.failure is FailureKind.ENGINE_ERROR
        assert world.driver.broken is None


async def test_an_engine_that_falls_silent_after_its_first_content_is_stalled() -> None:
    engine = ScriptedEngine(Script(text=SAYS, stalls=True, after_pieces=2))
    flow = with_fields("answer", ONE, timeouts=Timeouts(idle_s=0.05))
    async with a_world(flow, engines={"a": engine}) as world:
        with pytest.raises(RunFailed, match="fell silent") as caught:
            await within(world.submit().result())
        assert caught.value.finish.failure is FailureKind.STALLED
        assert engine.cancelled == 1


async def test_a_reader_that_pauses_is_no_silence_of_the_engine() -> None:
    class Big(ScriptedEngine):
        async def answer(self, request: EngineRequest) -> AsyncGenerator[Chunk, None]:
            for _ in range(4):
                yield Chunk(text="x", choices=b"x" * BUFFER_BYTES, is_content=True)

    flow = with_fields("answer", ONE, timeouts=Timeouts(idle_s=0.01))
    async with a_world(flow, engines={"a": Big()}) as world:
        handle = world.submit()
        await until(lambda: handle.is_full)
        paused = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() > paused + 0.05)
        assert (await within(handle.result())).text == "xxxx"


async def test_a_replica_that_never_answers_is_left_by_the_clock() -> None:
    clock = ManualClock()
    engines = {"a": ScriptedEngine(Script(stalls=True)), "b": ScriptedEngine(Script(text=SAYS))}
    async with a_world(ONE, engines=engines, clock=clock) as world:
        handle = world.submit()
        await until(lambda: engines["a"].in_flight == 1)
        clock.advance(600.0 - 1.0)
        world.driver.wake_due()
        assert (await within(handle.result())).text == SAYS
        assert engines["a"].cancelled == 1


async def test_the_hard_deadline_ends_a_run() -> None:
    clock = ManualClock()
    engine = ScriptedEngine(Script(stalls=True))
    async with a_world(ONE, engines={"a": engine}, clock=clock) as world:
        handle = world.submit(deadline_s=7.0)
        await until(lambda: engine.in_flight == 1)
        clock.advance(7.0)
        world.driver.wake_due()
        with pytest.raises(RunFailed, match="hard deadline") as caught:
            await within(handle.result())
        assert caught.value.finish.outcome is Outcome.EXPIRED
        await until(lambda: engine.in_flight == 0)


async def test_the_declared_value_of_the_output_node_is_the_answer() -> None:
    flow = with_fields("answer", ONE, on_error=OnError("value", '"sorry"'))
    async with a_world(flow, engines={"a": ScriptedEngine(Script(failure=FailureKind.BAD_REQUEST))}) as world:
        for is_streamed in (True, False):
            assert await world.answer(is_streamed=is_streamed) == "sorry"


# --- leaving -------------------------------------------------------------------------------------------


async def test_cancelling_closes_the_stream_of_the_engine() -> None:
    engine = ScriptedEngine(Script(text=SAYS, stalls=True, after_pieces=1))
    async with a_world(ONE, engines={"a": engine}) as world:
        handle = world.submit()
        await within(anext(handle.pieces()))
        handle.cancel("the client left")
        await until(lambda: engine.cancelled == 1 and engine.in_flight == 0)
        assert handle.finish is not None
        assert (handle.finish.outcome, handle.finish.message) == (Outcome.CANCELLED, "the client left")
        handle.cancel("again")


async def test_a_run_whose_reader_is_gone_can_be_cancelled_while_its_buffer_is_full() -> None:
    class Big(ScriptedEngine):
        async def answer(self, request: EngineRequest) -> AsyncGenerator[Chunk, None]:
            while True:
                yield Chunk(text="x", choices=b"x" * BUFFER_BYTES, is_content=True)

    async with a_world(ONE, engines={"a": Big()}) as world:
        handle = world.submit()
        await until(lambda: handle.is_full)
        handle.cancel("the client left")
        await within(world.driver.wait_until_idle())


async def test_a_hundred_clients_that_leave_at_any_moment_leave_nothing_behind() -> None:
    engine = ScriptedEngine(Script(text=SAYS))
    async with a_world(a_chain("draft", "answer"), engines={"a": engine}) as world:
        handles = [world.submit() for _ in range(100)]
        for number, handle in enumerate(handles):
            for _ in range(number % 7):
                await asyncio.sleep(0)
            handle.cancel("the client left")
        await within(world.driver.wait_until_idle())
        await until(lambda: engine.in_flight == 0)
        assert world.driver.runs_underway == 0


# --- refusals ------------------------------------------------------------------------------------------


async def test_what_does_not_exist_or_was_not_granted_is_not_found() -> None:
    async with a_world(ONE) as world:
        with pytest.raises(NotFound, match="'nothing'"):
            world.submit(workflow="nothing")
        with pytest.raises(NotFound, match="'chain'"):
            world.submit(tenant=STRANGER)
        with pytest.raises(NotFound, match="'small'"):
            world.submit(workflow="model/small", tenant=STRANGER)
        assert world.client.names(STRANGER) == ()


async def test_a_missing_input_is_named() -> None:
    async with a_world(ONE) as world:
        with pytest.raises(InvalidInput, match="'question'"):
            world.client.submit(RunRequest(TENANT, "chain", RunInputs()))


async def test_a_refused_run_says_why_and_when_to_ask_again() -> None:
    async with a_world(ONE, limits=Limits(concurrent=1)) as world:
        world.engine.script = Script(stalls=True)
        world.submit()
        with pytest.raises(Rejected) as caught:
            world.submit()
        assert (caught.value.code, caught.value.retry_after_s) == ("rate_limited", 1.0)
        world.driver.post(DrainRequested())
        with pytest.raises(Rejected) as caught:
            world.submit()
        assert caught.value.code == "draining"
        assert world.driver.runs_underway == 1


# --- when the kernel itself breaks ---------------------------------------------------------------------


async def test_a_broken_kernel_tells_every_client_and_takes_no_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ScriptedEngine(Script(text=SAYS, stalls=True, after_pieces=1))
    async with a_world(ONE, engines={"a": engine}) as world:
        handles = [world.submit() for _ in range(3)]
        await within(anext(handles[0].pieces()))
        monkeypatch.setattr(Kernel, "handle", broken)
        handles[1].cancel("the client left")
        for handle in handles:
            with pytest.raises(TightropeBug, match="2 and 2 is 5"):
                await within(handle.result())
        with pytest.raises(TightropeBug):
            world.submit()
        await until(lambda: engine.in_flight == 0)
        await within(world.driver.wait_until_idle())
    assert "the kernel broke" in caplog.text


async def test_a_kernel_that_breaks_on_a_new_run_tells_that_client_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with a_world(ONE) as world:
        monkeypatch.setattr(Kernel, "handle", broken)
        with pytest.raises(TightropeBug):
            await within(world.submit().result())


def broken(*_: object) -> list[object]:
    raise TightropeBug("2 and 2 is 5")


async def test_closing_ends_the_runs_that_are_under_way() -> None:
    engine = ScriptedEngine(Script(text=SAYS, stalls=True, after_pieces=1))
    async with a_world(ONE, engines={"a": engine}) as world:
        handle = world.submit()
        await within(anext(handle.pieces()))
        await within(world.driver.close())
        with pytest.raises(RunFailed) as caught:
            await within(handle.result())
        assert caught.value.finish.outcome is Outcome.CANCELLED


async def test_an_observer_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def fails(message: object, at_s: float) -> None:
        raise ValueError("the exporter is full")

    async with a_world(ONE, observers=[fails]) as world:
        assert await world.answer()
    assert "the exporter is full" in caplog.text
