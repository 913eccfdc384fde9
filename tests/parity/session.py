"""A live session in which much goes wrong, for journals that must replay to the same commands."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace

from tests.runtime.world import World, a_world, within
from tightrope.kernel.state import KernelSettings
from tightrope.model.errors import TightropeError
from tightrope.model.ids import StepId
from tightrope.model.messages import DrainRequested, ProfileLoaded
from tightrope.model.outcome import FailureKind
from tightrope.model.slo import Limits, Slo
from tightrope.model.workflow import (
    Binding,
    Case,
    CaseRef,
    FanOut,
    Gather,
    InputSpec,
    ModelCall,
    OnError,
    Ref,
    Retry,
    Switch,
    Timeouts,
    Workflow,
    problems,
)
from tightrope.ports import EngineRequest
from tightrope.runtime.client import RunHandle
from tightrope.runtime.driver import Journal
from tightrope.testing import Script, ScriptedEngine, a_chain, a_node, a_profile

HERE = "tests.parity.session"
FAILURES = (
    None, None, None, FailureKind.REPLICA_LOST, None, FailureKind.ENGINE_ERROR, None, None,
    FailureKind.BAD_REQUEST, None, FailureKind.TIMEOUT,
)  # fmt: skip


def words(question: str) -> list[str]:
    """The list that the fan-out goes over."""
    return question.split()


def shop() -> Workflow:
    """Code, a switch, a fan-out with a join of its own, a shape, and a streamed end."""
    hard = CaseRef(StepId("kind"), "hard")
    notes = replace(
        a_node("notes", reads=("each",)),
        case=hard, fan_out=FanOut(Ref("words"), 4, "cut"), retry=Retry(times=1),
    )  # fmt: skip
    intent = a_node("intent")
    assert isinstance(intent.work, ModelCall)
    intent = replace(intent, work=replace(intent.work, shape='{"type":"object"}'), on_error=OnError("skip"))
    answer = replace(
        a_node("answer", stream=True),
        inputs=(
            ("question", Binding((Ref("input", ("question",)),))),
            ("notes", Binding((Ref("notes"),), optional=True, gather=Gather(1, 5.0))),
            ("intent", Binding((Ref("intent"),), optional=True)),
        ),
        timeouts=Timeouts(idle_s=10.0),
        retry=Retry(times=2),
    )
    kind = Switch(
        StepId("kind"), (Case("hard", "size(words) > 1", 0.5), Case("easy", None, 0.5)), (StepId("words"),)
    )
    flow = Workflow(
        "shop",
        (a_node("words", function=f"{HERE}:words"), intent, notes, answer),
        StepId("answer"), Slo(ttft_s=2.0, e2e_s=8.0), (InputSpec("question", "last_user_message"),), (kind,),
    )  # fmt: skip
    assert problems(flow) == []
    return flow


class Fickle(ScriptedEngine):
    """Fails every now and then, before its first content or after it, always in the same order."""

    def __init__(self, shift: int) -> None:
        super().__init__(self.next)
        self.count = shift

    def next(self, request: EngineRequest) -> Script:
        self.count += 1
        failure = FAILURES[self.count % len(FAILURES)]
        text = "not what was asked for" if request.schema and self.count % 3 == 0 else None
        return Script(text=text, failure=failure, after_pieces=self.count % 4 if failure else 0)


async def play(journal: Journal | None = None, router: str = "foresight", rounds: int = 6) -> None:
    """Rounds of requests, some of whose clients leave; replicas are lost; at the end new runs are refused."""
    engines = {"a": Fickle(0), "b": Fickle(4), "c": Fickle(7)}
    settings = KernelSettings(router=router, seed=7)
    flows = (shop(), a_chain("draft", "answer", slo=Slo(ttft_s=1.0)))
    async with a_world(
        *flows, engines=engines, journal=journal, settings=settings, limits=Limits(concurrent=9)
    ) as world:
        world.driver.post(ProfileLoaded(a_profile()))
        for number in range(rounds):
            await _round(world, number)
        world.driver.post(DrainRequested())
        with suppress(TightropeError):
            world.submit(workflow="shop")


async def _round(world: World, number: int) -> None:
    handles = []
    for place in range(10):  # one more than the tenant may have at once
        with suppress(TightropeError):
            flow = ("shop", "chain", "model/small")[place % 3]
            question = "one two three" if place % 2 else "one"
            handles.append(world.submit(question, flow, is_streamed=place % 4 != 0))
    for _ in range(3 * number):
        await asyncio.sleep(0)
    handles[number % len(handles)].cancel("the client left")
    if number % 3 == 1:
        world.cluster.lose("abc"[number % 3])
    await asyncio.gather(*(_ended(handle) for handle in handles))


async def _ended(handle: RunHandle) -> None:
    work: Awaitable[object] = handle.result()
    with suppress(TightropeError):
        await within(work)
