"""The fleet in sentences: what was ordered, what came up or went, and why the provisioner did what it did.

Owns the words, but for those of the provisioner (`scaling.py`). Reads one entry after the other and keeps nothing but
which replica is of which model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tightrope.kernel.journal import Entry
from tightrope.model.ids import ModelName, ReplicaId
from tightrope.model.messages import (
    FleetPlanned,
    NoteScaling,
    ProvisioningSet,
    ReplicaLost,
    ReplicaReady,
    ReplicaStopped,
    StartReplica,
    StopReplica,
)
from tightrope.model.provision import Provisioning, ProvisionMode
from tightrope.reports.scaling import sentence

Kind = Literal["planned", "provisioned", "scaled", "ordered", "ready", "lost", "ending", "ended"]


@dataclass(frozen=True, slots=True)
class FleetLine:
    """One thing that happened to the fleet, at `at_s` of the kernel's clock and `wall_s` of the wall's.

    `model` is "" where it is about all of them, `reason` is that of the provisioner, else "".
    """

    at_s: float
    wall_s: float
    kind: Kind
    model: str
    text: str
    reason: str = ""


class FleetReader:
    """Takes the entries of a journal in order and says what each means for the fleet."""

    def __init__(self) -> None:
        self._model_by_replica: dict[ReplicaId, ModelName] = {}
        self._ordered_s: dict[ReplicaId, float] = {}

    def take(self, entry: Entry) -> FleetLine | None:
        """The line of this entry; None if it is not about the fleet."""
        match entry.message:
            case FleetPlanned(plan):
                names = ", ".join(spec.id for spec in plan.replicas) or "no replica"
                return self._line(entry, "planned", "", f"planned from the start: {names}")
            case ProvisioningSet(provisioning):
                return self._line(entry, "provisioned", "", _contract(provisioning))
            case NoteScaling() as note:
                return self._line(entry, "scaled", note.model, sentence(note), note.reason)
            case StartReplica(spec):
                self._model_by_replica[spec.id] = spec.model
                self._ordered_s[spec.id] = entry.at_s
                return self._line(entry, "ordered", spec.model, f"{spec.id} is ordered")
            case ReplicaReady(replica):
                took_s = entry.at_s - self._ordered_s.get(replica, entry.at_s)
                text = f"{replica} is ready, {took_s:.1f} s after the order"
                return self._of_replica(entry, "ready", replica, text)
            case ReplicaLost(replica, why):
                return self._of_replica(entry, "lost", replica, f"{replica} is lost: {why}")
            case StopReplica(replica):
                return self._of_replica(entry, "ending", replica, f"{replica} holds no call and is ended")
            case ReplicaStopped(replica):
                return self._of_replica(entry, "ended", replica, f"{replica} has ended")
            case _:
                return None

    def _of_replica(self, entry: Entry, kind: Kind, replica: ReplicaId, text: str) -> FleetLine:
        return self._line(entry, kind, self._model_by_replica.get(replica, ""), text)

    def _line(self, entry: Entry, kind: Kind, model: str, text: str, reason: str = "") -> FleetLine:
        return FleetLine(entry.at_s, entry.wall_s, kind, model, text, reason)


def fleet_lines(entries: Iterable[Entry]) -> list[FleetLine]:
    """Everything that happened to the fleet, in order."""
    reader = FleetReader()
    return [line for entry in entries if (line := reader.take(entry)) is not None]


def _contract(provisioning: Provisioning) -> str:
    most = ", ".join(
        f"{one.model} on {one.accelerator} {one.least} to {one.most}" for one in provisioning.bounds
    )
    does = "acts" if provisioning.mode is ProvisionMode.ACT else "advises"
    return f"the provisioner {does} by {provisioning.policy}, every {provisioning.every_s:g} s: {most or 'nothing'}"
