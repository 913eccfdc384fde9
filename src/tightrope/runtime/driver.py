"""The live driver: one inbox, one kernel, and the world its commands act on.

Owns the order of events, the tasks of calls under way, and turning failures into events. It decides nothing:
what to do about a failure is the kernel's, what a call may take is in its Dispatch.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Protocol, assert_never

from tightrope.kernel.kernel import Kernel
from tightrope.model.errors import EngineFailed, InvalidInput, TightropeBug
from tightrope.model.fleet import ReplicaSpec
from tightrope.model.ids import CallId, ReplicaId, RunId
from tightrope.model.messages import (
    CallDone,
    CallFailed,
    CancelCall,
    CaseTaken,
    Command,
    Dispatch,
    Event,
    FinishRun,
    FirstToken,
    NoteScaling,
    Prepare,
    Prepared,
    PrepareFailed,
    ReplicaLost,
    ReplicaReady,
    ReplicaStopped,
    RunCancelled,
    RunCode,
    RunSubmitted,
    SettleStep,
    StartReplica,
    StopReplica,
    WakeAt,
    Woke,
)
from tightrope.model.outcome import FailureKind, Outcome, Usage
from tightrope.model.workflow import Switch
from tightrope.ports import Clock, Cluster, Engine
from tightrope.runtime.answer import Answer, whole_answer
from tightrope.runtime.code import CodeRunner
from tightrope.runtime.handle import RunHandle
from tightrope.runtime.payloads import RunPayload
from tightrope.runtime.timers import Timers

log = logging.getLogger("tightrope")


class Journal(Protocol):
    """Where events and commands are noted."""

    def event(self, event: Event, at_s: float) -> None: ...
    def command(self, command: Command, at_s: float) -> None: ...
    def flush(self, at_s: float) -> None: ...
    def close(self) -> None: ...


Observer = Callable[[Event | Command, float], None]


class Driver:
    """Runs a kernel against real clusters and engines.

    `engine_for(spec, url)` gives the engine behind a ready replica; `cluster_for(spec)` who starts it.
    `observers` see every event and command after it was noted. `load_s` has the seconds from order to ready of
    each replica, `reasons_lost` why one is away.
    """

    def __init__(
        self,
        kernel: Kernel,
        clock: Clock,
        journal: Journal,
        clusters: Sequence[Cluster],
        cluster_for: Callable[[ReplicaSpec], Cluster],
        engine_for: Callable[[ReplicaSpec, str], Engine],
        observers: Sequence[Observer] = (),
    ) -> None:
        self.kernel = kernel
        self.clock = clock
        self.broken: TightropeBug | None = None
        self._journal = journal
        self._clusters = clusters
        self._cluster_for = cluster_for
        self._engine_for = engine_for
        self._observers = observers
        self._inbox: deque[Event] = deque()
        self._is_handling = False
        self._timers = Timers(clock, self._arm)
        self._alarm: asyncio.TimerHandle | None = None
        self.reasons_lost: dict[ReplicaId, str] = {}
        self.load_s: dict[ReplicaId, float] = {}
        self._ordered_s: dict[ReplicaId, float] = {}
        self._orders: set[asyncio.Task[None]] = set()
        self._replica_news = asyncio.Event()
        self._specs: dict[ReplicaId, ReplicaSpec] = {}
        self._engines: dict[ReplicaId, Engine] = {}
        self._handles: dict[RunId, RunHandle] = {}
        self._payloads: dict[RunId, RunPayload] = {}
        self._calls: dict[CallId, asyncio.Task[None]] = {}
        self._chores: set[asyncio.Task[None]] = set()
        self._code = CodeRunner()
        self._idle = asyncio.Event()
        self._idle.set()

    # --- the way in ----------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Take one fact; it and all that follows from it is done when this returns."""
        self._inbox.append(event)
        if self._is_handling:
            return
        self._is_handling = True
        try:
            while self._inbox and self.broken is None:
                self._turn(self._inbox.popleft())
        except Exception as error:  # noqa: BLE001 - whatever broke here, no client may be left hanging
            self._break(error)
        finally:
            self._is_handling = False
        self._journal.flush(self.clock.now())

    def submit(self, event: RunSubmitted, payload: RunPayload) -> RunHandle:
        """Start a run. The handle has ended already when the kernel refused it."""
        if self.broken is not None:
            raise self.broken
        handle = RunHandle(event.run, event.is_streamed, lambda why: self.post(RunCancelled(event.run, why)))
        self._handles[event.run] = handle
        self._payloads[event.run] = payload
        self._idle.clear()
        self.post(event)
        return handle

    @property
    def runs_underway(self) -> int:
        """Runs that have not ended."""
        return len(self._handles)

    async def wait_until_idle(self) -> None:
        """Return when no run is under way."""
        await self._idle.wait()

    def cancel_all(self, why: str) -> None:
        """End every run that is under way."""
        for run in list(self._handles):
            self.post(RunCancelled(run, why))

    def wake_due(self) -> None:
        """Deliver every wake-up whose moment has come."""
        for wake in self._timers.due():
            self.post(Woke(wake))

    def start(self) -> None:
        """Begin to listen to the clusters."""
        for cluster in self._clusters:
            self._chore(self._watch(cluster))

    async def close(self) -> None:
        """End every run and every call, and give everything back. Closing the clusters ends the replicas."""
        self.cancel_all("the runtime was closed")
        for task in (*self._calls.values(), *self._chores):
            task.cancel()
        await asyncio.gather(*self._calls.values(), *self._chores, return_exceptions=True)
        for engine in self._engines.values():
            await engine.close()
        if self._alarm is not None:
            self._alarm.cancel()
        self._code.close()
        self._journal.flush(self.clock.now())
        self._journal.close()

    # --- one turn ------------------------------------------------------------------------------------

    def _turn(self, event: Event) -> None:
        now_s = self.clock.now()
        self._journal.event(event, now_s)
        self._observe(event, now_s)
        for command in self.kernel.handle(event, now_s):
            self._journal.command(command, now_s)
            self._observe(command, now_s)
            self._carry_out(command)

    def _observe(self, message: Event | Command, now_s: float) -> None:
        for observer in self._observers:
            try:
                observer(message, now_s)
            except Exception:
                log.exception("an observer failed; the others and the run go on")

    def _carry_out(self, command: Command) -> None:
        match command:
            case Prepare():
                self._inbox.append(self._prepare(command))
            case SettleStep(run, step, settlement):
                self._payloads[run].settle(step, settlement)
            case Dispatch():
                self._calls[command.call] = asyncio.create_task(self._model_call(command))
            case RunCode():
                self._calls[command.call] = asyncio.create_task(self._code_call(command))
            case CancelCall(call):
                task = self._calls.pop(call, None)
                if task is not None:
                    task.cancel()
            case StartReplica(spec):
                self._specs[spec.id] = spec
                self._ordered_s[spec.id] = self.clock.now()
                order = self._chore(self._start_replica(spec))
                self._orders.add(order)
                order.add_done_callback(self._orders.discard)
            case StopReplica(replica):
                self._chore(self._cluster_for(self._specs[replica]).stop(replica))
            case NoteScaling():
                pass  # for readers of the journal
            case WakeAt():
                self._timers.add(command)
            case FinishRun():
                self._finish(command)
            case _:
                assert_never(command)

    def _prepare(self, command: Prepare) -> Event:
        payload = self._payloads[command.run]
        try:
            if isinstance(payload.workflow.step_by_id[command.step], Switch):
                return CaseTaken(command.run, command.step, payload.decide(command.step))
            return Prepared(command.run, command.step, payload.prepare(command.step))
        except InvalidInput as error:
            return PrepareFailed(command.run, command.step, FailureKind.BAD_INPUT, str(error))
        except Exception as error:
            # The values are the user's; whatever is odd about them is a matter of this run alone.
            log.exception("the inputs of %s of %s cannot be built", command.step, command.run)
            message = f"{command.step}: its inputs cannot be built ({type(error).__name__}: {error})"
            return PrepareFailed(command.run, command.step, FailureKind.BAD_INPUT, message)

    def _finish(self, command: FinishRun) -> None:
        self._timers.forget(command.run)
        payload, handle = self._payloads.pop(command.run), self._handles.pop(command.run)
        if command.outcome is Outcome.SUCCEEDED and not payload.pipes(payload.workflow.output):
            for piece in whole_answer(payload.value(payload.workflow.output)):
                handle.push(piece)
        handle.end(command)
        if not self._handles:
            self._idle.set()

    def _break(self, error: BaseException) -> None:
        """An invariant broke: nothing can be trusted, so every client is told and nothing more is taken."""
        log.critical("the kernel broke; no further runs are taken", exc_info=error)
        self.broken = TightropeBug(
            f"an internal error ended this run: {error}; please report it with the journal"
        )
        for handle in self._handles.values():
            handle.fail(self.broken)
        for task in self._calls.values():
            task.cancel()
        self._idle.set()

    # --- time ----------------------------------------------------------------------------------------

    def _arm(self, at_s: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        delay_s = max(0.0, at_s - self.clock.now())
        self._alarm = asyncio.get_running_loop().call_later(delay_s, self.wake_due)

    # --- replicas ------------------------------------------------------------------------------------

    async def _watch(self, cluster: Cluster) -> None:
        async for event in cluster.watch():
            try:
                await self._note_replica(cluster, event)
            except Exception as error:
                # It may have died between being ready and being asked for its address.
                log.warning("%s cannot be used", event.replica, exc_info=error)
                self.post(ReplicaLost(event.replica, f"it cannot be used: {type(error).__name__}: {error}"))
            else:
                self.post(event)
            self._replica_news.set()

    async def _note_replica(
        self, cluster: Cluster, event: ReplicaReady | ReplicaLost | ReplicaStopped
    ) -> None:
        old = self._engines.pop(event.replica, None)
        if old is not None:
            await old.close()
        match event:
            case ReplicaReady(replica):
                self._engines[replica] = self._engine_for(self._specs[replica], cluster.url(replica))
                self.load_s[replica] = self.clock.now() - self._ordered_s[replica]
                self.reasons_lost.pop(replica, None)
            case ReplicaLost(replica, why):
                log.warning("replica %s is lost: %s", replica, why)
                self.reasons_lost[replica] = why
            case ReplicaStopped():
                pass

    async def until_ordered(self) -> None:
        """Return when every StartReplica given so far has reached its cluster."""
        while self._orders:
            await asyncio.wait(self._orders)

    async def until_ready(self, replicas: Iterable[ReplicaId]) -> None:
        """Return when all of these are ready; `reasons_lost` says what keeps one away meanwhile."""
        wanted = set(replicas)
        while not wanted <= self._engines.keys():
            self._replica_news.clear()
            await self._replica_news.wait()

    def engine(self, replica: ReplicaId) -> Engine:
        """The engine behind a ready replica. Raises KeyError when it is not ready."""
        return self._engines[replica]

    async def _start_replica(self, spec: ReplicaSpec) -> None:
        try:
            await self._cluster_for(spec).start(spec)
        except Exception as error:  # noqa: BLE001 - the kernel must hear of every order that came to nothing
            self.post(ReplicaLost(spec.id, f"it could not be started: {error}"))

    def _chore(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chore_done)
        return task

    def _chore_done(self, task: asyncio.Task[None]) -> None:
        self._chores.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the driver failed", exc_info=task.exception())

    # --- calls ---------------------------------------------------------------------------------------

    async def _model_call(self, command: Dispatch) -> None:
        try:
            event: Event = await self._stream(command)
        except EngineFailed as error:
            event = CallFailed(command.call, error.kind, str(error))
        except Exception as error:
            log.warning("call %s failed unexpectedly", command.call, exc_info=error)
            event = CallFailed(command.call, FailureKind.ENGINE_ERROR, f"{type(error).__name__}: {error}")
        if self._calls.pop(command.call, None) is not None:
            self.post(event)

    async def _stream(self, command: Dispatch) -> Event:
        engine = self._engines.get(command.replica)
        if engine is None:
            raise EngineFailed(
                FailureKind.REPLICA_LOST, f"{command.replica} went away before the call was made"
            )
        payload, handle = self._payloads[command.run], self._handles[command.run]
        handle.note("queue", command.waited_s)
        serves = self._specs[command.replica].serves or command.model
        request = payload.request(command.step, command.item, serves, command.max_tokens, command.is_reask)
        reader = handle if payload.pipes(command.step) else None
        answer = Answer(reader, lambda: self.post(FirstToken(command.call)))
        await answer.read(engine, request, command.idle_s)
        usage = answer.usage or Usage(command.prompt_tokens, answer.content_pieces)
        try:
            value, was_repaired = payload.parse(command.step, command.item, answer.text)
        except EngineFailed as error:
            return CallFailed(command.call, error.kind, str(error), usage)
        payload.keep(command.step, command.item, value)
        answer.hand_over()
        return CallDone(command.call, usage, was_repaired)

    async def _code_call(self, command: RunCode) -> None:
        payload = self._payloads[command.run]
        try:
            value = await self._code.run(
                payload.function(command.step), payload.arguments(command.step, command.item)
            )
            payload.keep(command.step, command.item, value)
            event: Event = CallDone(command.call, Usage())
        except Exception as error:  # noqa: BLE001 - user code may raise anything
            event = CallFailed(
                command.call, FailureKind.CODE_ERROR, f"{command.step}: {type(error).__name__}: {error}"
            )
        if self._calls.pop(command.call, None) is not None:
            self.post(event)
