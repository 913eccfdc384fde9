"""
Laws of a fleet that the provisioner changes, whatever happens
1. The tables hold, all runs end, and equal events give equal commands: the laws of the kernel's state machine.
2. There are never more replicas than cards, nor do they cost more than the budget, draining and lost ones included.
3. No name is given to a new replica while one of this name has not ended.
4. A replica is stopped only when it holds no call, and there is no other end for a call than those of the kernel.
5. Every change of the fleet is said, with a reason; what is only advised starts and stops nothing.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from tests.kernel.test_machine import SLOTS, KernelMachine
from tests.kernel.world import CARDS, MODELS
from tightrope.model.fleet import Accelerator
from tightrope.model.ids import ReplicaId
from tightrope.model.messages import (
    AcceleratorRegistered,
    CaseTaken,
    Command,
    Dispatch,
    Event,
    Item,
    NoteScaling,
    Prepared,
    ProvisioningSet,
    ReplicaLost,
    ReplicaReady,
    ReplicaStopped,
    StartReplica,
    StopReplica,
    WakeKind,
    Woke,
)
from tightrope.model.provision import Bounds, Provisioning, ProvisionMode, ScaleAction
from tightrope.model.workflow import Switch
from tightrope.policy.provision import ScaleReason
from tightrope.policy.provisioners import PROVISIONERS

COUNT, BUDGET_USD_PER_H = 3, 12.0
PRICES = (4.0, 1.0)


class Elastic(KernelMachine):
    """The same machine; nobody plans a fleet, and what there is follows from what is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.ending: list[ReplicaId] = []
        self.mode = ProvisionMode.ACT

    def plan(self, per_model: int) -> None:
        """In place of a plan: prices, and a provisioner that may do as it likes."""
        for card, usd_per_h in zip(CARDS, PRICES, strict=True):
            self.tell(AcceleratorRegistered(Accelerator(card.name, usd_per_h, count=COUNT)))
        self.provide("least-cost", per_model, 0, ProvisionMode.ACT)

    def replan(self, per_model: int) -> None:
        """Nobody plans."""

    @rule(
        policy=st.sampled_from(["least-cost", *PROVISIONERS]),
        most=st.integers(0, 3),
        least=st.sampled_from([0, 0, 0, 1]),
        mode=st.sampled_from([ProvisionMode.ACT, ProvisionMode.ACT, ProvisionMode.ADVISE]),
    )
    def provide(self, policy: str, most: int, least: int, mode: ProvisionMode) -> None:
        bounds = tuple(
            Bounds(model, card.name, least, max(least, most)) for model in MODELS for card in CARDS
        )
        self.mode = mode
        self.tell(
            ProvisioningSet(
                Provisioning(
                    policy,
                    bounds,
                    mode=mode,
                    idle_after_s=10.0,
                    cooldown_s=5.0,
                    max_usd_per_h=BUDGET_USD_PER_H,
                )
            )
        )

    def take(self, command: Command) -> None:
        match command:
            case StartReplica(spec):
                assert spec.id not in self.ending, "law 3"
            case StopReplica(replica):
                held = [call for call in self.calls.values() if isinstance(call, Dispatch)]
                assert all(call.replica != replica for call in held), "law 4"
                self.ending.append(replica)
        super().take(command)

    @rule(runs=st.integers(1, 4))
    def runs_come(self, runs: int) -> None:
        """Runs without trouble until their calls are ready, and replicas as they were ordered."""
        for _ in range(runs):
            self.submit(True, 60.0)
        while self.prepares:
            wish = self.prepares.pop(0)
            step = self.workflow.step_by_id[wish.step]
            if isinstance(step, Switch):
                self.tell(CaseTaken(wish.run, wish.step, step.cases[0].name))
            else:
                self.tell(Prepared(wish.run, wish.step, (Item(100),)))
        for replica in [one for one in self.ordered if one in self.up]:
            self.ordered.remove(replica)
            self.up[replica] = True
            self.tell(ReplicaReady(replica, SLOTS))

    @precondition(lambda self: self.ending)
    @rule(data=st.data())
    def it_has_ended(self, data: st.DataObject) -> None:
        """A replica says that it has ended as it was told to."""
        replica = self.ending.pop(data.draw(st.integers(0, len(self.ending) - 1)))
        before = len(self.said)
        self.tell(ReplicaStopped(replica))
        assert self.said[before] == []

    @precondition(lambda self: self.ordered)
    @rule(data=st.data())
    def comes_to_nothing(self, data: st.DataObject) -> None:
        """There is no card for what was ordered."""
        replica = self.ordered.pop(data.draw(st.integers(0, len(self.ordered) - 1)))
        if replica in self.up:
            self.tell(ReplicaLost(replica, "there is no card"))

    @rule(rounds=st.integers(1, 4))
    def rounds_pass(self, rounds: int) -> None:
        """Some rounds without other news."""
        for _ in range(rounds):
            due = min(
                (one for one in self.wakes if one.wake.kind is WakeKind.PROVISION), key=lambda one: one.at_s
            )
            while self.wakes and min(self.wakes, key=lambda one: one.at_s).at_s < due.at_s:
                self.wake(0)
            self.wake(0)

    @invariant()
    def cards_and_budget_are_kept(self) -> None:
        if not hasattr(self, "kernel"):
            return
        replicas = self.kernel.state.replicas.values()
        on_card = [sum(one.spec.accelerator == card.name for one in replicas) for card in CARDS]
        assert max(on_card) <= COUNT, "law 2"
        usd_per_h = sum(count * price for count, price in zip(on_card, PRICES, strict=True))
        assert usd_per_h <= BUDGET_USD_PER_H, "law 2"

    @invariant()
    def every_change_is_said(self) -> None:
        if not self.said:
            return
        said = self.said[-1]
        notes = [one for one in said if isinstance(one, NoteScaling)]
        assert all(ScaleReason(one.reason) for one in notes)
        ups = sum(one.wants - one.had for one in notes if one.action is ScaleAction.UP and not one.is_advice)
        starts = [one.spec.id for one in said if isinstance(one, StartReplica)]
        assert len(starts) <= ups + is_about_a_restart(self.events[-1][0]), "law 5"
        if self.mode is ProvisionMode.ADVISE:
            assert all(one.is_advice for one in notes if one.action is not ScaleAction.HOLD), "law 5"


def is_about_a_restart(event: Event) -> bool:
    return isinstance(event, Woke) and event.wake.kind is WakeKind.REPLICA_RESTART


Elastic.TestCase.settings = settings(max_examples=30, stateful_step_count=50, deadline=None)
TestElastic = Elastic.TestCase
