"""What the kernel costs per event: two-node workflows over a fleet whose engines answer in fixed time.

Owns a world just large enough to keep the kernel busy: an event heap, no engine model, no I/O. The cost of
policies under a real load is in it, the cost of engines is not.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass
from random import Random

from tightrope.bench.decision import CARDS
from tightrope.kernel.kernel import Kernel
from tightrope.kernel.state import KernelSettings
from tightrope.model.fleet import Accelerator, FleetPlan, ReplicaSpec
from tightrope.model.ids import AcceleratorName, ModelName, ReplicaId, RunId, StepId, TenantId
from tightrope.model.messages import (
    AcceleratorRegistered,
    CallDone,
    Command,
    Dispatch,
    Event,
    FinishRun,
    FirstToken,
    FleetPlanned,
    Item,
    Prepare,
    Prepared,
    ProfileLoaded,
    ReplicaReady,
    RunSubmitted,
    TenantRegistered,
    WakeAt,
    Woke,
    WorkflowDeployed,
)
from tightrope.model.outcome import Usage
from tightrope.model.profile import Profile
from tightrope.model.slo import Limits, Slo, Tenant
from tightrope.model.workflow import Binding, ModelCall, Node, Prompt, Ref, Workflow

MODEL = ModelName("llama")
OUTPUT_TOKENS = 64
SEQUENCES = 16
"""Calls that a replica runs at once."""
DEADLINE_S = 600.0


@dataclass(frozen=True, slots=True)
class KernelCost:
    """Microseconds of processor time per event, and per run, with `replicas` in the pool.

    `load` is the share of their sequences that would be busy if there were enough; above 1 a line builds up.
    """

    policy: str
    replicas: int
    load: float
    runs: int
    events: int
    per_event_us: float
    per_run_us: float


def kernel_cost(policy: str, replicas: int, runs: int, load: float = 0.25, seed: int = 1) -> KernelCost:
    """Play `runs` runs through a kernel, then time a second one on the events of the first: to read a clock for
    each of them would cost as much as some of them do."""
    events = Flood(policy, replicas, runs, load, seed).play()
    kernel = ready_kernel(policy, replicas)
    began_ns = time.process_time_ns()
    for event, at_s in events:
        kernel.handle(event, at_s)
    spent_ns = time.process_time_ns() - began_ns
    return KernelCost(
        policy, replicas, load, runs, len(events), spent_ns / len(events) / 1000, spent_ns / runs / 1000
    )


def ready_kernel(policy: str, replicas: int) -> Kernel:
    """A kernel with one tenant, one workflow and a fleet that is up."""
    cards = [AcceleratorName(card) for card in CARDS]
    specs = [ReplicaSpec(ReplicaId(f"r{n:05d}"), MODEL, cards[n % 2]) for n in range(replicas)]
    facts: list[Event] = [
        TenantRegistered(Tenant(TenantId("t"), limits=Limits(concurrent=10**9, queue=10**9))),
        *(AcceleratorRegistered(Accelerator(card)) for card in cards),
        *(ProfileLoaded(Profile(MODEL, card, CARDS[card], 2048, SEQUENCES, 400_000)) for card in cards),
        WorkflowDeployed(WORKFLOW),
        FleetPlanned(FleetPlan(tuple(specs))),
        *(ReplicaReady(spec.id) for spec in specs),
    ]
    kernel = Kernel(KernelSettings(router=policy))
    for fact in facts:
        kernel.handle(fact, 0.0)
    return kernel


class Flood:
    """Runs of two calls, of a second each, that come at even distances."""

    def __init__(self, policy: str, replicas: int, runs: int, load: float, seed: int) -> None:
        self.kernel = ready_kernel(policy, replicas)
        self.runs = runs
        self.finished = 0
        self._rng = Random(seed)
        self._heap: list[tuple[float, int, Event]] = []
        self._serial = 0
        for number in range(runs):
            run = RunId(f"run-{number}")
            event = RunSubmitted(run, TenantId("t"), WORKFLOW.id, WORKFLOW.slo, DEADLINE_S, True)
            self.later(number * 2 / (load * SEQUENCES * replicas), event)

    def later(self, at_s: float, event: Event) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (at_s, self._serial, event))

    def play(self) -> list[tuple[Event, float]]:
        """All that happens, in order, with its time in seconds."""
        events: list[tuple[Event, float]] = []
        while self._heap:
            events.append(self.step())
        assert self.finished == self.runs
        return events

    def step(self) -> tuple[Event, float]:
        """Let the next thing happen."""
        at_s, _, event = heapq.heappop(self._heap)
        for command in self.kernel.handle(event, at_s):
            self._carry_out(command, at_s)
        return event, at_s

    def _carry_out(self, command: Command, at_s: float) -> None:
        match command:
            case Prepare(run, step):
                self.later(at_s, Prepared(run, step, (Item(self._rng.randint(400, 4000)),)))
            case Dispatch(call, prompt_tokens=prompt):
                self.later(at_s + 0.2, FirstToken(call))
                self.later(at_s + 1.0, CallDone(call, Usage(prompt, OUTPUT_TOKENS)))
            case WakeAt(when_s, wake):
                self.later(when_s, Woke(wake))
            case FinishRun():
                self.finished += 1
            case _:
                pass


def _two_nodes() -> Workflow:
    first = Node(StepId("rewrite"), ModelCall(MODEL, Prompt(text="rewrite"), 128))
    inputs = (("notes", Binding((Ref("rewrite"),))),)
    last = Node(StepId("answer"), ModelCall(MODEL, Prompt(text="answer"), 256, stream=True), inputs)
    return Workflow("rag", (first, last), last.id, Slo(ttft_s=2.0))


WORKFLOW = _two_nodes()
