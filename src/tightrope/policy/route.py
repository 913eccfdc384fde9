"""Routing: which replica takes a call, and why.

Owns what a router is and how its decision is put into words and values. The rules themselves are one family a
file, such as `baselines.py` or `foresight.py`; the table of names is the package's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import NamedTuple

from tightrope.model.fleet import Estimate, Job, Offer, PoolView, ReplicaView, Routed
from tightrope.policy.order import Line

MOST_OFFERS = 8
"""A decision remembers this many candidates, the chosen one included."""

Choose = Callable[[Job, PoolView, float, Random], Routed | None]
Room = Callable[[Job, ReplicaView, float], bool]


class Rank(NamedTuple):
    """The scores (ms) by which a replica is kept among those of its kind, smallest first, one order for each.

    With `falls_until_s` they fall by a millisecond in every millisecond up to then, and stay so.
    """

    scores_ms: tuple[float, ...]
    falls_until_s: float | None = None


class Reason(StrEnum):
    """Why the chosen replica was chosen."""

    ONLY_CANDIDATE = "only-candidate"
    UNIFORM = "uniform"
    NEXT_IN_TURN = "next-in-turn"
    FEWER_CALLS = "fewer-calls"
    EQUAL_CALLS = "equal-calls"
    """As few calls as another one: chance decided."""
    FEWEST_TOKENS = "fewest-tokens"
    SMALLEST_ESTIMATE = "smallest-estimate"
    SPARES_OTHERS = "spares-others"
    """Another one is faster for this call, at a cost to calls there that is larger than the gain."""
    LEAST_LATE = "least-late"
    """Nothing offered a smaller score, but the call is expected late even there."""
    SLOWEST_ON_TIME = "slowest-on-time"
    FULLEST_ON_TIME = "fullest-on-time"
    BEST_BALANCE = "best-balance"
    """Of a fast card for this call and little work before it, the best mixture."""
    LONGEST_PREFIX = "longest-prefix"
    """It has most of the prompt in its cache."""
    LEAST_MEMORY = "least-memory"
    """Nobody has much of the prompt; the calls there hold the fewest tokens."""
    DRAWN_BY_HEADROOM = "drawn-by-headroom"
    """Chance decided, with odds that follow the time left over."""
    EXPLORED = "explored"
    """Chance decided to try one that is expected late, though others are not."""


@dataclass(frozen=True, slots=True)
class Router:
    """A policy.

    `choose(job, pool, now_s, rng)` gives a decision, or None when nobody can take the call now. `room(job,
    view, now_s)` says whether the chosen replica may be given it now. With `is_late_binding` the choice is
    among all replicas, those without room included; otherwise it is among those with room. `line` is the
    order in which waiting calls are asked about. By `rank(view, now_s)` the kernel keeps the replicas of a large
    pool in order; it asks again when a ledger changes. None: the policy looks at all replicas. With `is_pacing`
    it is shown each replica at the pace that the kernel has learned of it (`pace.py`), otherwise as it was profiled.
    With `has_margins` it is shown a safety margin of each replica (`margin.py`), with `has_utilisation` how much work
    each pool was offered (`utilisation.py`).
    """

    name: str
    choose: Choose
    room: Room
    line: Line
    is_late_binding: bool = False
    rank: Callable[[ReplicaView, float], Rank] | None = None
    is_pacing: bool = False
    has_margins: bool = False
    has_utilisation: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """One replica under consideration. A lower score is better, in the policy's own unit; `loss` says why it
    was not chosen, and is not looked at where it was."""

    view: ReplicaView
    estimate: Estimate
    score: float
    loss: str = ""


def routed(policy: str, reason: Reason, job: Job, now_s: float, candidates: Sequence[Candidate]) -> Routed:
    """Put a decision together: the chosen candidate first, the runner-up second; at most eight are kept."""
    chosen, *others = candidates[:MOST_OFFERS]
    offers = [_offer(chosen, _prospect(job, chosen.estimate, now_s))]
    offers += [_offer(other, other.loss) for other in others]
    why = reason if others else Reason.ONLY_CANDIDATE
    return Routed(replica=chosen.view.id, reason=why.value, offers=tuple(offers), policy=policy)


def _offer(candidate: Candidate, verdict: str) -> Offer:
    view = candidate.view
    return Offer(view.id, view.accelerator, candidate.estimate, candidate.score, verdict)


def _prospect(job: Job, estimate: Estimate, now_s: float) -> str:
    """What the chosen replica promises: how far inside or outside its latest finish the call will be."""
    spare_ms = (job.due_s - now_s) * 1000 - estimate.crit
    if math.isinf(spare_ms):
        return "chosen, no deadline"
    return f"chosen, {spare_ms:.0f} ms inside" if spare_ms >= 0 else f"chosen, late by {-spare_ms:.0f} ms"
