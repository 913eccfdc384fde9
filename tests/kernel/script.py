"""A kernel told facts by hand: events in, commands out, the clock moved by the test.

Plays the part of a driver only where nothing is at stake: inputs are prepared as soon as the kernel asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from tightrope.kernel.journal import Head, command_line, event_line, head_line
from tightrope.kernel.kernel import Kernel
from tightrope.kernel.state import KernelSettings
from tightrope.model.fleet import Accelerator, FleetPlan, ReplicaSpec
from tightrope.model.ids import AcceleratorName, CallId, ModelName, ReplicaId, RunId, StepId, TenantId
from tightrope.model.messages import (
    AcceleratorRegistered,
    CallDone,
    CallFailed,
    CaseTaken,
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
    ProvisioningSet,
    ReplicaLost,
    ReplicaReady,
    RunCode,
    RunSubmitted,
    SettleStep,
    TenantRegistered,
    WakeAt,
    WakeKind,
    Woke,
    WorkflowDeployed,
)
from tightrope.model.outcome import FailureKind, Usage
from tightrope.model.profile import Profile
from tightrope.model.provision import Provisioning
from tightrope.model.slo import Limits, Slo, Tenant
from tightrope.model.workflow import Workflow

TENANT = TenantId("shop")
BEST_EFFORT = Slo()
C = TypeVar("C", bound=Command)


class Script:
    """One kernel, one tenant, everything it has said, and the journal. Its tables are checked after every fact.

    `items` are what a step is prepared with (one dull item if not named), `cases` what a switch decides.
    Replicas are given as `name`, `name@card` or `name:model@card`; they take `slots` calls at once.
    """

    def __init__(
        self,
        *workflows: Workflow,
        replicas: str = "a b",
        slots: int = 4,
        profiles: Sequence[Profile] = (),
        accelerators: Sequence[Accelerator] = (),
        settings: KernelSettings | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.kernel = Kernel(settings or KernelSettings())
        self.now_s = 0.0
        self.slots = slots
        self.said: list[Command] = []
        self.lines = [head_line(Head(self.kernel.settings, wall_s=0.0, at_s=0.0))]
        self.items: dict[str, tuple[Item, ...]] = {}
        self.cases: dict[str, str] = {}
        self.workflows = workflows
        names = tuple(workflow.name for workflow in workflows)
        self.tell(TenantRegistered(Tenant(TENANT, limits=limits or Limits(), workflows=names)))
        for accelerator in accelerators:
            self.tell(AcceleratorRegistered(accelerator))
        for profile in profiles:
            self.tell(ProfileLoaded(profile))
        for workflow in workflows:
            self.tell(WorkflowDeployed(workflow))
        self.plan(replicas)
        self.ready(replicas)

    # --- facts -----------------------------------------------------------------------------------------

    def tell(self, event: Event) -> list[Command]:
        """Give the kernel a fact; what follows from it, the preparing of inputs included."""
        said: list[Command] = []
        inbox = [event]
        while inbox:
            self.lines.append(event_line(inbox[0], self.now_s))
            commands = self.kernel.handle(inbox.pop(0), self.now_s)
            self.kernel.check()
            self.lines += [command_line(command, self.now_s) for command in commands]
            said += commands
            inbox += [self._prepared(command) for command in commands if isinstance(command, Prepare)]
        self.said += said
        return said

    def _prepared(self, wish: Prepare) -> Event:
        if wish.step in self.cases:
            return CaseTaken(wish.run, wish.step, self.cases[wish.step])
        return Prepared(wish.run, wish.step, self.items.get(wish.step, (Item(350),)))

    def plan(self, replicas: str) -> list[Command]:
        """From now on exactly these replicas shall exist."""
        return self.tell(FleetPlanned(FleetPlan(tuple(specs_of(replicas)))))

    def ready(self, replicas: str) -> list[Command]:
        """These replicas answer."""
        said: list[Command] = []
        for spec in specs_of(replicas):
            said += self.tell(ReplicaReady(spec.id, self.slots))
        return said

    def provision(self, provisioning: Provisioning) -> list[Command]:
        """From now on the fleet follows the load."""
        return self.tell(ProvisioningSet(provisioning))

    def lost(self, replica: str) -> list[Command]:
        """This replica is gone."""
        return self.tell(ReplicaLost(ReplicaId(replica), "killed"))

    def submit(
        self,
        run: str = "r1",
        *,
        slo: Slo = BEST_EFFORT,
        deadline_s: float = 600.0,
        is_streamed: bool = True,
        workflow: Workflow | None = None,
    ) -> list[Command]:
        """A request for the first workflow, or the one named."""
        wanted = workflow or self.workflows[0]
        return self.tell(RunSubmitted(RunId(run), TENANT, wanted.id, slo, deadline_s, is_streamed))

    def first_token(self, call: Dispatch | RunCode) -> list[Command]:
        """The first content of this call arrived."""
        return self.tell(FirstToken(call.call))

    def done(
        self, call: Dispatch | RunCode, *, prompt_tokens: int = 100, output_tokens: int = 20
    ) -> list[Command]:
        """This call ended well."""
        return self.tell(CallDone(call.call, Usage(prompt_tokens, output_tokens)))

    def failed(
        self, call: Dispatch | RunCode, failure: FailureKind = FailureKind.ENGINE_ERROR
    ) -> list[Command]:
        """This call ended badly."""
        return self.tell(CallFailed(call.call, failure, "it was told to fail"))

    # --- time ------------------------------------------------------------------------------------------

    def after(self, seconds: float) -> None:
        """Time goes by; nothing happens in it."""
        self.now_s += seconds

    def wake(self, kind: WakeKind) -> list[Command]:
        """Go to the latest wake-up of this kind that was asked for, and deliver it."""
        wish = next(
            said for said in reversed(self.said) if isinstance(said, WakeAt) and said.wake.kind is kind
        )
        self.now_s = max(self.now_s, wish.at_s)
        return self.tell(Woke(wish.wake))


# --- what was said -------------------------------------------------------------------------------------


def of(kind: type[C], commands: Iterable[Command]) -> list[C]:
    """The commands of one kind, in order."""
    return [command for command in commands if isinstance(command, kind)]


def one(kind: type[C], commands: Iterable[Command]) -> C:
    """The only command of this kind."""
    found = of(kind, commands)
    assert len(found) == 1, found
    return found[0]


def dispatched(commands: Iterable[Command]) -> Dispatch:
    """The only model call that was placed."""
    return one(Dispatch, commands)


def finish(commands: Iterable[Command]) -> FinishRun:
    """The only run that ended."""
    return one(FinishRun, commands)


def wake_at(commands: Iterable[Command], kind: WakeKind) -> float:
    """The moment of the only wake-up of this kind."""
    found = [command.at_s for command in of(WakeAt, commands) if command.wake.kind is kind]
    assert len(found) == 1, found
    return found[0]


def settled(commands: Iterable[Command]) -> list[tuple[str, str]]:
    """Which steps were settled, and how."""
    return [(command.step, command.settlement.value) for command in of(SettleStep, commands)]


def specs_of(text: str) -> list[ReplicaSpec]:
    """`a b@fast c:big@slow` as replicas; the model is `small` and the card `slow` where not named."""
    specs = []
    for word in text.split():
        name, _, card = word.partition("@")
        name, _, model = name.partition(":")
        specs.append(
            ReplicaSpec(ReplicaId(name), ModelName(model or "small"), AcceleratorName(card or "slow"))
        )
    return specs


def changed(workflow: Workflow, step: str, **changes: object) -> Workflow:
    """The workflow with other fields of one node."""
    nodes = tuple(
        replace(node, **changes) if node.id == StepId(step) else node  # type: ignore[arg-type]
        for node in workflow.nodes
    )
    return replace(workflow, nodes=nodes)


def asking(workflow: Workflow, step: str, **changes: object) -> Workflow:
    """The workflow with other fields of the model call of one node."""
    node = next(node for node in workflow.nodes if node.id == StepId(step))
    return changed(workflow, step, work=replace(node.work, **changes))  # type: ignore[arg-type]


def call_of(run: str, step: str, item: int = 0, attempt: int = 0) -> CallId:
    """The name of an attempt."""
    return CallId(f"{run}/{step}/{item}.{attempt}")
