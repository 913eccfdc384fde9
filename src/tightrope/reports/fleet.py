"""The fleet in sentences: what was ordered, what came up or went, and why the provisioner did what it did.

Owns the words. Reads one entry after the other and keeps nothing but which replica is of which model.
"""

from __future__ import annotations

import math
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
from tightrope.model.provision import Provisioning, ProvisionMode, ScaleAction

Kind = Literal["planned", "provisioned", "scaled", "ordered", "ready", "lost", "ending", "ended"]

# Words for the reasons of `policy/provision.py`, which this package does not know.
BECAUSE = {
    "forecast": "more calls are expected than its replicas bear",
    "burst": "more calls have come than the forecast had room for",
    "risk": "too many calls were predicted late",
    "from-zero": "calls wait and it has no replica",
    "below-least": "it has fewer than its min",
    "cheaper": "these cards do the same for less",
    "unneeded": "the others bear what has come lately",
    "idle": "nothing has come for a while",
    "target": "that is what its policy aims at",
}
AGAINST = {
    "at-most": "its max allows no more",
    "no-card": "there is no free card",
    "budget": "max_cost allows no more",
    "blind": "its replicas hold calls and say nothing",
    "cooldown": "its number has only just been changed",
    "starting": "those that are starting may be enough",
    "replay": "without it, the last minute would have been late too often",
}


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


def sentence(note: NoteScaling) -> str:
    """What the provisioner did, or did not do, with its reason and the numbers that spoke for it."""
    where = f"{note.model} on {note.accelerator}"
    if note.action is ScaleAction.HOLD:
        wanted = f", {note.wants} wanted" if note.wants != note.had else ""
        told = f"{where} stays at {note.had}{wanted}: {AGAINST.get(note.reason, note.reason)}"
    else:
        replicas = "replica" if note.wants == 1 else "replicas"
        told = f"{where} goes from {note.had} to {note.wants} {replicas}: {BECAUSE.get(note.reason, note.reason)}"
    numbers = ", ".join(_number(name, value) for name, value in note.evidence if _says_something(name, value))
    advice = "advice only: " if note.is_advice else ""
    return f"{advice}{told}{f' ({numbers})' if numbers else ''}"


def _contract(provisioning: Provisioning) -> str:
    most = ", ".join(
        f"{one.model} on {one.accelerator} {one.least} to {one.most}" for one in provisioning.bounds
    )
    does = "acts" if provisioning.mode is ProvisionMode.ACT else "advises"
    return f"the provisioner {does} by {provisioning.policy}, every {provisioning.every_s:g} s: {most or 'nothing'}"


# --- numbers ---------------------------------------------------------------------------------------------


def _says_something(name: str, value: float) -> bool:
    if name in ("risk", "over", "waiting", "late", "ongoing"):
        return value > 0
    return not (name == "share" and value >= 1)


def _number(name: str, value: float) -> str:
    match name:
        case "demand":
            return f"{value:.3g} calls/s asked for"
        case "peak":
            return f"{value:.3g} calls/s lately"
        case "bears":
            return "bears any number" if math.isinf(value) else f"bears {value:.3g} calls/s"
        case "risk":
            return f"{value:.0%} predicted late"
        case "over":
            return f"{value:.0%} beyond their budget"
        case "waiting" | "ongoing":
            return f"{value:.0f} {name}"
        case "share":
            return f"{value:.0%} of it can be borne at all"
        case "late":
            return f"{value:.0%} late in a replay"
        case "saves":
            return f"saves {value:.3g} USD/h"
        case _:
            return f"{name} {value:.4g}"
