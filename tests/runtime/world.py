"""A live driver on engines inside the test: a cluster without processes, a journal in memory.

Every world proves at its end that its journal replays to the same commands, and that nothing is left over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from tightrope.kernel.journal import Head, command_line, event_line, head_line, replay
from tightrope.kernel.kernel import Kernel
from tightrope.kernel.state import KernelSettings
from tightrope.model.fleet import FleetPlan, ReplicaSpec
from tightrope.model.ids import AcceleratorName, ModelName, ReplicaId, TenantId
from tightrope.model.json import Json
from tightrope.model.messages import (
    Command,
    Event,
    FinishRun,
    FleetPlanned,
    ReplicaLost,
    ReplicaReady,
    ReplicaStopped,
    TenantRegistered,
    WorkflowDeployed,
)
from tightrope.model.slo import Limits, Tenant
from tightrope.model.workflow import Workflow
from tightrope.ports import Clock, Message
from tightrope.runtime.client import Client, RunHandle, RunInputs, RunRequest, Sampling, plain_workflows
from tightrope.runtime.driver import Driver, Journal, Observer
from tightrope.testing import ScriptedEngine

TENANT, STRANGER = TenantId("shop"), TenantId("stranger")
Told = ReplicaReady | ReplicaLost | ReplicaStopped
T = TypeVar("T")

LIMIT_S = 60.0
"""How long a test waits for what must happen; far more than it takes."""


class TinyCluster:
    """Replicas that are ready as soon as they are ordered, unless `holds_back`."""

    def __init__(self) -> None:
        self.started: list[ReplicaId] = []
        self.stopped: list[ReplicaId] = []
        self.holds_back = False
        self.refuses: str | None = None
        self.slots: int | None = 4
        self._told: asyncio.Queue[Told] = asyncio.Queue()
        self._ready: set[ReplicaId] = set()

    async def start(self, spec: ReplicaSpec) -> None:
        self.started.append(spec.id)
        if self.refuses is not None:
            raise OSError(self.refuses)
        if not self.holds_back:
            self.make_ready(spec.id)

    def make_ready(self, replica: ReplicaId) -> None:
        self._ready.add(replica)
        self._told.put_nowait(ReplicaReady(replica, self.slots))

    async def stop(self, replica: ReplicaId) -> None:
        self.stopped.append(replica)
        self._ready.discard(replica)
        self._told.put_nowait(ReplicaStopped(replica))

    def lose(self, replica: str, why: str = "it was killed") -> None:
        self._ready.discard(ReplicaId(replica))
        self._told.put_nowait(ReplicaLost(ReplicaId(replica), why))

    async def watch(self) -> AsyncIterator[Told]:
        while True:
            yield await self._told.get()

    def url(self, replica: ReplicaId) -> str:
        if replica not in self._ready:
            raise KeyError(replica)
        return f"test:{replica}"

    async def close(self) -> None:
        self._ready.clear()


class MemoryJournal:
    """The lines a journal would have."""

    def __init__(self, settings: KernelSettings) -> None:
        self.lines = [head_line(Head(settings, 0.0, 0.0))]
        self.is_closed = False

    def event(self, event: Event, at_s: float) -> None:
        self.lines.append(event_line(event, at_s))

    def command(self, command: Command, at_s: float) -> None:
        self.lines.append(command_line(command, at_s))

    def flush(self, at_s: float) -> None:
        """Lines are there at once."""

    def close(self) -> None:
        self.is_closed = True


class LoopClock:
    """The time of the running loop."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()


class World:
    """A driver, its client, and one engine per replica."""

    def __init__(
        self, driver: Driver, client: Client, cluster: TinyCluster, engines: Mapping[str, ScriptedEngine]
    ) -> None:
        self.driver = driver
        self.client = client
        self.cluster = cluster
        self.engines = engines

    @property
    def engine(self) -> ScriptedEngine:
        """The only engine, or the first."""
        return next(iter(self.engines.values()))

    def submit(
        self, question: str = "How are you?", workflow: str = "chain", *, is_streamed: bool = True,
        metadata: Mapping[str, str] | None = None, named: Mapping[str, Json] | None = None,
        deadline_s: float | None = None, sampling: Sampling | None = None, tenant: TenantId = TENANT,
    ) -> RunHandle:  # fmt: skip
        """A request with one user message."""
        inputs = RunInputs((Message("user", question),), None, metadata or {}, named or {})
        return self.client.submit(
            RunRequest(
                tenant, workflow, inputs, deadline_s=deadline_s, is_streamed=is_streamed,
                sampling=sampling or Sampling(),
            )
        )  # fmt: skip

    async def answer(
        self, question: str = "How are you?", workflow: str = "chain", *, is_streamed: bool = False,
        metadata: Mapping[str, str] | None = None, named: Mapping[str, Json] | None = None,
    ) -> str:  # fmt: skip
        """The whole text of a run that is not streamed."""
        handle = self.submit(question, workflow, is_streamed=is_streamed, metadata=metadata, named=named)
        return (await within(handle.result())).text


@asynccontextmanager
async def a_world(
    *workflows: Workflow,
    engines: Mapping[str, ScriptedEngine] | None = None,
    settings: KernelSettings | None = None,
    limits: Limits | None = None,
    clock: Clock | None = None,
    journal: Journal | None = None,
    observers: Sequence[Observer] = (),
    waits_for_replicas: bool = True,
) -> AsyncIterator[World]:
    """A started driver with one replica of `small` per engine, on cards of one kind."""
    settings = settings or KernelSettings()
    behind = dict(engines or {"a": ScriptedEngine()})
    kept = MemoryJournal(settings)
    cluster = TinyCluster()
    ends: list[FinishRun] = []
    kernel = Kernel(settings)
    driver = Driver(
        kernel,
        clock or LoopClock(),
        journal or kept,
        (cluster,),
        lambda _: cluster,
        lambda spec, _: behind[spec.id],
        (*observers, lambda message, _: ends.append(message) if isinstance(message, FinishRun) else None),
    )
    known = (*workflows, *plain_workflows({ModelName("small"): 64}))
    tenants = (
        Tenant(
            TENANT, limits=limits or Limits(), models=(ModelName("small"),),
            workflows=tuple(workflow.name for workflow in workflows),
        ),
        Tenant(STRANGER),
    )  # fmt: skip
    for tenant in tenants:
        driver.post(TenantRegistered(tenant))
    for workflow in known:
        driver.post(WorkflowDeployed(workflow))
    driver.start()
    specs = [ReplicaSpec(ReplicaId(name), ModelName("small"), AcceleratorName("slow")) for name in behind]
    driver.post(FleetPlanned(FleetPlan(tuple(specs))))
    if waits_for_replicas:
        await until(lambda: all(is_ready(driver, name) for name in behind))
    try:
        yield World(driver, Client(driver, tenants, known), cluster, behind)
        if driver.broken is None:
            driver.cancel_all("the test is over")
            await within(driver.wait_until_idle())
            kernel.check()
            assert not kernel.state.runs
            assert not kernel.state.calls
    finally:
        await within(driver.close())
    await until(lambda: all(engine.in_flight == 0 for engine in behind.values()))
    if driver.broken is None:
        assert replay(kept.lines) is None


def is_ready(driver: Driver, replica: str) -> bool:
    """Whether calls may be sent there."""
    try:
        driver.engine(ReplicaId(replica))
    except KeyError:
        return False
    return True


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until the condition holds. Fails after LIMIT_S."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 (there is no event to wait on)
            await asyncio.sleep(0)


async def within(work: Awaitable[T]) -> T:
    """The result, or a failure after LIMIT_S."""
    async with asyncio.timeout(LIMIT_S):
        return await work
