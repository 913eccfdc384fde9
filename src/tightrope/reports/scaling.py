"""What the provisioner did or did not do, in words, with the numbers that spoke for it.

Owns the sentences. The reasons are those of the provisioner, which a journal holds by name; one that is not known here
is said by its name.
"""

from __future__ import annotations

import math

from tightrope.model.messages import NoteScaling
from tightrope.model.provision import ScaleAction

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
    "needed-again": "one more was needed again only lately",
    "replay": "without it, the last minute would have been late too often",
}


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
