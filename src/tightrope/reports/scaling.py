"""What the provisioner did or did not do, in words, with the numbers that spoke for it.

Owns the sentences. The reasons are those of the provisioner, which a journal holds by name; one that is not known here
is said by its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from tightrope.model.messages import NoteScaling
from tightrope.model.provision import ScaleAction

WHY = {
    "forecast": "more calls are expected{demand} than the replicas bear{bears}",
    "burst": "more calls have just come{demand} than were expected; the replicas bear{bears}",
    "risk": "too many calls were predicted late as they were dispatched{risk}",
    "from-zero": "calls wait{waiting}, and there is no replica",
    "below-least": "there are fewer than its `min`",
    "cheaper": "other cards do the same for less{saves}",
    "unneeded": "the others bear what has come lately{peak}",
    "idle": "nothing has come for a while",
    "target": "the policy aims at{target}",
    "at-most": "more cannot be had or would not help{late}",
    "no-card": "no card is left{wanting}",
    "budget": "it would cost more than is allowed{wanting}",
    "blind": "its replicas hold calls and say nothing{waiting}",
    "cooldown": "its number was changed a moment ago{late}",
    "starting": "replicas are on the way that may be enough{late}",
    "replay": "without it calls of the last minute would have been late",
}
"""By reason; in braces what is filled in where the evidence has it."""


def sentence(note: NoteScaling) -> str:
    """`+1 big on fast: more calls are expected (3.2/s) than the replicas bear (2.1/s)`."""
    return f"{_what(note)}: {_why(note)}"


def _what(note: NoteScaling) -> str:
    where = f"{note.model} on {note.accelerator}"
    change = note.wants - note.had
    if note.action is not ScaleAction.HOLD:
        said = f"{change:+d} {where}"
    elif change:
        said = f"{where} stays at {note.had}, not {note.wants}"
    else:
        said = f"{where} stays at {note.had}"
    return f"advice only: {said}" if note.is_advice else said


def _why(note: NoteScaling) -> str:
    evidence = dict(note.evidence)
    words = WHY.get(note.reason)
    if words is None:
        told = ", ".join(f"{name} {value:.4g}" for name, value in note.evidence)
        return f"{note.reason} ({told})" if told else note.reason
    return words.format_map(_filled(evidence))


def _filled(evidence: Mapping[str, float]) -> Mapping[str, str]:
    demand, bears = _rate(evidence.get("demand")), _rate(evidence.get("bears"))
    return {
        "demand": f" ({demand})" if demand else "",
        "bears": f" ({bears})" if bears else "",
        "peak": f" ({_rate(evidence['peak'])})" if "peak" in evidence else "",
        "wanting": f" ({demand} expected, {bears} borne)" if demand and bears else "",
        "risk": f" ({evidence['risk']:.0%})" if "risk" in evidence else "",
        "late": f" ({evidence['risk']:.0%} of the calls predicted late)" if evidence.get("risk") else "",
        "waiting": f" ({evidence['waiting']:.0f})" if evidence.get("waiting") else "",
        "saves": f" ({evidence['saves']:.2f} USD/h)" if "saves" in evidence else "",
        "target": f" {evidence['wants']:.0f} of them" if "wants" in evidence else " another number",
    }


def _rate(per_s: float | None) -> str:
    if per_s is None:
        return ""
    return "any number" if math.isinf(per_s) else f"{per_s:.3g}/s"
