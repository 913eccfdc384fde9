"""Provisioning: which replicas there should be, and what stands in the way.

Owns what a provisioner is shown (`Situation`), what it answers (`Proposal`), and the laws that hold for all of
them: nothing beyond a bound, the cards there are, or the budget. The rules themselves are one family a file, such as
`least_cost.py`; carrying them out is the kernel's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tightrope.model.ids import AcceleratorName, ModelName
from tightrope.model.profile import Profile
from tightrope.model.provision import Bounds, Provisioning, ScaleAction
from tightrope.policy.forecast import Arrivals


class ScaleReason(StrEnum):
    """Why a number of replicas changes, or does not."""

    FORECAST = "forecast"
    """More calls are expected than the replicas bear."""
    BURST = "burst"
    """More calls have just come than the forecast had room for."""
    RISK = "risk"
    """Too many calls were predicted late as they were dispatched, whatever the plan says."""
    FROM_ZERO = "from-zero"
    """Calls wait, and there is no replica."""
    BELOW_LEAST = "below-least"
    CHEAPER = "cheaper"
    """Other cards do the same for less: they come, and then those that they stand in for go."""
    UNNEEDED = "unneeded"
    """The others bear what has come in the last while, and would have been on time without it."""
    IDLE = "idle"
    """Nothing has come for a while."""
    TARGET = "target"
    """The rule's own target."""
    # what stands in the way
    AT_MOST = "at-most"
    NO_CARD = "no-card"
    BUDGET = "budget"
    BLIND = "blind"
    """Its replicas hold calls and say nothing: what is seen may be old."""
    COOLDOWN = "cooldown"
    STARTING = "starting"
    """Replicas are on the way that may be enough."""
    NEEDED_AGAIN = "needed-again"
    """More was started lately after some had gone: it would only come again."""
    REPLAY = "replay"
    """The last minute, played again without it, would have been late too often."""


@dataclass(frozen=True, slots=True)
class PastCall:
    """A call as it came: when, its tokens, and how much time it had (seconds).

    `own_s` is what it takes alone on the best card, `spare_s` what its run had beyond that and all that was still
    expected to follow: the time that all calls of the run share. `tpot_s` is the gap that its reader was promised.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: float
    own_s: float
    spare_s: float
    tpot_s: float
    is_terminal: bool

    def budget_s(self, part: float) -> float:
        """What it may take if it is given this part of the spare time."""
        return self.own_s + part * self.spare_s


@dataclass(frozen=True, slots=True)
class Group:
    """The replicas of a model on one kind of card. `usd_per_h` is the price of one of them.

    `ready` can be given calls, `starting` will be, `draining` end with their last call, `failing` did not come up, or
    went, again and again. `load_s` is the time from order to ready as it was seen lately.
    """

    bounds: Bounds
    profile: Profile
    usd_per_h: float
    ready: int = 0
    starting: int = 0
    draining: int = 0
    failing: int = 0
    load_s: float = 30.0

    @property
    def have(self) -> int:
        """Those that are there to stay."""
        return self.ready + self.starting + self.failing

    @property
    def most(self) -> int:
        """As many as can be had: what does not come up is not to be had."""
        return self.bounds.most if not self.failing else max(self.bounds.least, self.ready + self.starting)


@dataclass(frozen=True, slots=True)
class Demanded:
    """What is asked of one model, and who is there for it. `past` are its latest calls, in order.

    `ongoing` calls were dispatched and have not ended, `waiting` wait. `risk` is the share of lately dispatched
    calls that were predicted late, `over` that of ended calls beyond their budget.
    `floor_per_s`: calls per second that tenants have a right to. `idle_s`: since the last call came or was there.
    `raised_s`, `lowered_s`: when its number of replicas was last changed. `is_blind`: nothing was heard of them.
    """

    model: ModelName
    groups: tuple[Group, ...]
    arrivals: Arrivals
    past: tuple[PastCall, ...] = ()
    calls_per_run: float = 1.0
    ongoing: int = 0
    waiting: int = 0
    risk: float = 0.0
    over: float = 0.0
    floor_per_s: float = 0.0
    idle_s: float = 0.0
    raised_s: float = float("-inf")
    lowered_s: float = float("-inf")
    is_blind: bool = False

    @property
    def have(self) -> int:
        """Replicas that are there to stay."""
        return sum(group.have for group in self.groups)


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a provisioner is shown. `cards`: how many there are of each kind; `memory`: what it answered last."""

    now_s: float
    models: tuple[Demanded, ...]
    cards: Mapping[AcceleratorName, int]
    settings: Provisioning
    memory: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wanted:
    """So many replicas of a model on one kind of card, and why. `evidence` are the numbers that say so."""

    model: ModelName
    accelerator: AcceleratorName
    count: int
    reason: ScaleReason
    evidence: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a provisioner wants, the most urgent first, what it would want but for a reason, and what to remember.

    What is not named stays as it is.
    """

    wanted: tuple[Wanted, ...] = ()
    refused: tuple[Wanted, ...] = ()
    memory: Mapping[str, float] = field(default_factory=dict)


Decide = Callable[[Situation], Proposal]


@dataclass(frozen=True, slots=True)
class Provisioner:
    """A policy for the fleet: a pure function of what is seen and what it remembered."""

    name: str
    decide: Decide


@dataclass(frozen=True, slots=True)
class Scaling:
    """A change that is granted, or the refusal of one: from `had` to `wants` replicas."""

    action: ScaleAction
    model: ModelName
    accelerator: AcceleratorName
    had: int
    wants: int
    reason: ScaleReason
    evidence: tuple[tuple[str, float], ...] = ()


def granted(situation: Situation, proposal: Proposal) -> list[Scaling]:
    """What of a proposal may be done, and what not, and why; at most one entry for each model, card and action.

    Never below `least` or above `most` of a group, never more cards than there are nor more money per hour than
    allowed: replicas that still drain have their cards and cost their price. Decreases count from the next round on.
    """
    groups = {
        (one.model, group.bounds.accelerator): group for one in situation.models for group in one.groups
    }
    cards, usd = taken(situation.models)
    free = without(situation.cards, cards)
    scalings: list[Scaling] = []
    for wanted in (*_below_least(situation), *proposal.wanted):
        group = groups.get((wanted.model, wanted.accelerator))
        if group is None:
            continue
        had = group.have
        count = min(max(wanted.count, group.bounds.least), max(group.bounds.most, group.bounds.least))
        refusal = ScaleReason.AT_MOST if wanted.count > count >= had else None
        added = 0
        for _ in range(count - had):
            again = added < group.draining  # one that drains stays instead, with its card and its price
            if not again and free.get(wanted.accelerator, 0) < group.bounds.cards:
                refusal = ScaleReason.NO_CARD
                break
            if not again and usd + group.usd_per_h > situation.settings.max_usd_per_h + 1e-9:
                refusal = ScaleReason.BUDGET
                break
            if not again:
                free[wanted.accelerator] -= group.bounds.cards
                usd += group.usd_per_h
            added += 1
        if added or count < had:
            action, wants = (ScaleAction.UP, had + added) if added else (ScaleAction.DOWN, count)
            scalings.append(_scaling(action, wanted, had, wants, wanted.reason))
        if refusal is not None:
            scalings.append(_scaling(ScaleAction.HOLD, wanted, had + added, wanted.count, refusal))
    for refused in proposal.refused:
        group = groups.get((refused.model, refused.accelerator))
        if group is not None:
            scalings.append(_scaling(ScaleAction.HOLD, refused, group.have, refused.count, refused.reason))
    return _first_of_each(scalings)


def _scaling(action: ScaleAction, wanted: Wanted, had: int, wants: int, reason: ScaleReason) -> Scaling:
    return Scaling(action, wanted.model, wanted.accelerator, had, wants, reason, wanted.evidence)


def _first_of_each(scalings: Sequence[Scaling]) -> list[Scaling]:
    found: dict[tuple[ScaleAction, ModelName, AcceleratorName], Scaling] = {}
    for one in scalings:
        found.setdefault((one.action, one.model, one.accelerator), one)
    return list(found.values())


def _below_least(situation: Situation) -> list[Wanted]:
    """What the bounds themselves want."""
    return [
        Wanted(one.model, group.bounds.accelerator, group.bounds.least, ScaleReason.BELOW_LEAST)
        for one in situation.models
        for group in one.groups
        if group.have < group.bounds.least
    ]


def taken(models: Iterable[Demanded]) -> tuple[Mapping[AcceleratorName, int], float]:
    """Cards of each kind that the replicas of these models have, and their price (USD/h), those that drain included."""
    cards: Counter[AcceleratorName] = Counter()
    usd = 0.0
    for one in models:
        for group in one.groups:
            count = group.have + group.draining
            cards[group.bounds.accelerator] += count * group.bounds.cards
            usd += count * group.usd_per_h
    return cards, usd


def without(
    cards: Mapping[AcceleratorName, int], gone: Mapping[AcceleratorName, int]
) -> dict[AcceleratorName, int]:
    """What is left of the cards; below zero where more are gone than there are."""
    return {name: cards.get(name, 0) - gone.get(name, 0) for name in {**cards, **gone}}
