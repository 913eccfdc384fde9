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


@dataclass(frozen=True, slots=True)
class KernelCost:
    """Microseconds of processor time per event, and per run, with `replicas` in the pool."""

    policy: str
    replicas: int
    runs: int
    events: int
    per_event_us: float
    per_run_us: float


def kernel_cost(policy: str, replicas: int, runs: int, seed: int = 1) -> KernelCost:
    """Play `runs` runs at a rate that keeps about half of the sequences busy, then time a second kernel on the
    events of the first: reading a clock for each of them would cost as much as some of them do."""
    workflow = _workflow()
    world = _World(_ready(policy, replicas, workflow), workflow, Random(seed))
    for number in range(runs):
        world.later(number / (0.5 * replicas * 4), world.submission(number))
    events = world.play()
    assert world.finished == runs
    kernel = _ready(policy, replicas, workflow)
    began_ns = time.process_time_ns()
    for event, at_s in events:
        kernel.handle(event, at_s)
    spent_ns = time.process_time_ns() - began_ns
    return KernelCost(
        policy, replicas, runs, len(events), spent_ns / len(events) / 1000, spent_ns / runs / 1000
    )


def _ready(policy: str, replicas: int, workflow: Workflow) -> Kernel:
    """A kernel with one tenant, one workflow and a fleet that is up."""
    cards = [AcceleratorName(card) for card in CARDS]
    specs = [ReplicaSpec(ReplicaId(f"r{n:05d}"), MODEL, cards[n % 2]) for n in range(replicas)]
    facts: list[Event] = [
        TenantRegistered(Tenant(TenantId("t"), limits=Limits(concurrent=10**9, queue=10**9))),
        *(AcceleratorRegistered(Accelerator(card)) for card in cards),
        *(ProfileLoaded(Profile(MODEL, card, CARDS[card], 2048, 16, 400_000)) for card in cards),
        WorkflowDeployed(workflow),
        FleetPlanned(FleetPlan(tuple(specs))),
        *(ReplicaReady(spec.id) for spec in specs),
    ]
    kernel = Kernel(KernelSettings(router=policy))
    for fact in facts:
        kernel.handle(fact, 0.0)
    return kernel


class _World:
    def __init__(self, kernel: Kernel, workflow: Workflow, rng: Random) -> None:
        self.finished = 0
        self._kernel = kernel
        self._workflow = workflow
        self._rng = rng
        self._heap: list[tuple[float, int, Event]] = []
        self._serial = 0

    def submission(self, number: int) -> RunSubmitted:
        workflow = self._workflow
        return RunSubmitted(RunId(f"run-{number}"), TenantId("t"), workflow.id, workflow.slo, 600.0, True)

    def later(self, at_s: float, event: Event) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (at_s, self._serial, event))

    def play(self) -> list[tuple[Event, float]]:
        """All that happens, in order, with its time in seconds."""
        events: list[tuple[Event, float]] = []
        while self._heap:
            at_s, _, event = heapq.heappop(self._heap)
            events.append((event, at_s))
            for command in self._kernel.handle(event, at_s):
                self._carry_out(command, at_s)
        return events

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


def _workflow() -> Workflow:
    first = Node(StepId("rewrite"), ModelCall(MODEL, Prompt(text="rewrite"), 128))
    inputs = (("notes", Binding((Ref("rewrite"),))),)
    last = Node(StepId("answer"), ModelCall(MODEL, Prompt(text="answer"), 256, stream=True), inputs)
    return Workflow("rag", (first, last), last.id, Slo(ttft_s=2.0))
