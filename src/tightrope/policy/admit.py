"""Admission: ordered small rules; the first refusal is the reason.

Asked once, at the entry of a run; what was accepted is never refused later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tightrope.model.ids import ModelName
from tightrope.model.outcome import Refusal
from tightrope.model.slo import Limits


@dataclass(frozen=True, slots=True)
class Entry:
    """What the rules look at. `unserved` are models of the workflow that no replica is planned for."""

    is_draining: bool
    limits: Limits
    active_runs: int
    waiting_calls: int
    unserved: tuple[ModelName, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """Why not, for people and for a metric, and in how many seconds it may be worth trying again."""

    refusal: Refusal
    message: str
    retry_after_s: float | None = None


def admit(entry: Entry) -> Refused | None:
    """None if the run may enter."""
    for rule in RULES:
        refused = rule(entry)
        if refused is not None:
            return refused
    return None


def _draining(entry: Entry) -> Refused | None:
    if not entry.is_draining:
        return None
    return Refused(
        Refusal.DRAINING, "the server is shutting down and takes no new runs; ask another one", 1.0
    )


def _unserved(entry: Entry) -> Refused | None:
    if not entry.unserved:
        return None
    names = ", ".join(entry.unserved)
    return Refused(
        Refusal.NO_REPLICA, f"no replica is configured for {names}; give it a `place` or `replicas`"
    )


def _too_many_runs(entry: Entry) -> Refused | None:
    if entry.active_runs < entry.limits.concurrent:
        return None
    message = (
        f"{entry.active_runs} runs are under way, which is this tenant's limit; retry when one has ended"
    )
    return Refused(Refusal.TOO_MANY_RUNS, message, 1.0)


def _queue_full(entry: Entry) -> Refused | None:
    if entry.waiting_calls < entry.limits.queue:
        return None
    message = f"{entry.waiting_calls} calls wait already, which is this tenant's limit; retry when the line is shorter"
    return Refused(Refusal.QUEUE_FULL, message, 2.0)


RULES: tuple[Callable[[Entry], Refused | None], ...] = (_draining, _unserved, _too_many_runs, _queue_full)
