"""The cheapest fleet that bears a demand: an exact search over how many replicas each model has on each card.

Owns the plan as an optimisation: cost and the price of starting against cards, bounds and budget. How large the
demand is, and when a plan is followed, is `least_cost.py`. What one replica bears is `bearing.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations, product

from tightrope.model.ids import AcceleratorName, ModelName
from tightrope.policy.bearing import Kind, at_most_per_s, bearable_per_s
from tightrope.policy.provision import Group
from tightrope.policy.simplex import largest_rate

KEEP_S = 900.0
"""A replica is expected to stay for so long: its start is paid over this time."""
NEW, FRACTIONS = 0.5, 0.2
"""What a replica that is not there yet, and a fraction of one that is needed, count for beside the price of a fleet."""
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.0)
"""Where not all demand can be borne, the largest of these parts of it that can is planned for."""
DIGITS = 3
"""What a replica bears is known no better than this, and equal questions need not be asked twice."""
HARSH = 0.25
"""A budget is too tight for a fleet where every card that can be had bears less than this part of what it would without
one."""
RARE = 0.5
"""Part of the calls that may be late which are given up beforehand where they alone would need dearer cards."""
UNKNOWN = Kind(share=1.0, prompt_tokens=1024.0, output_tokens=128.0, budget_s=math.inf)
"""What calls are taken to be like while none has come."""
MOST_FLEETS = 250
"""Fleets of one model that are all looked at; of more, only some that are built up by rules."""
MOST_LOOKED_AT = 2000
"""Combinations of the models' fleets that are tried; a larger search ends with the best one so far."""


@dataclass(frozen=True, slots=True)
class Need:
    """Calls per second of one model that a fleet must bear, and the groups it can be made of. `bears[k][g]` is what
    one replica of group g bears of calls like kind k (calls/s), which are `shares[k]` of all."""

    model: ModelName
    groups: tuple[Group, ...]
    shares: tuple[float, ...]
    bears: tuple[tuple[float, ...], ...]
    per_s: float

    @property
    def usd_per_h(self) -> float:
        """What it would cost if replicas could be had in fractions: every kind on the card that is cheapest for it."""
        found = 0.0
        for share, row in zip(self.shares, self.bears, strict=True):
            each = [group.usd_per_h / one for group, one in zip(self.groups, row, strict=True) if one > 0]
            found += self.per_s * share * min(each, default=0.0)
        return found

    def mean_s(self, at: int) -> float:
        """Seconds of one replica of this group for a mean call; infinite if some kind has no place there."""
        pairs = zip(self.shares, self.bears, strict=True)
        return sum(share / row[at] if row[at] else math.inf for share, row in pairs)

    def borne_per_s(self, counts: Sequence[int]) -> float:
        """Calls per second that so many replicas of each group bear together."""
        return _borne_per_s(tuple(counts), self.shares, self.bears)


@dataclass(frozen=True, slots=True)
class FleetPlanned:
    """Replicas of each model by group, the price of all, and the part of the demand that they bear."""

    counts: Mapping[ModelName, tuple[int, ...]]
    usd_per_h: float
    share: float


def need(
    model: ModelName,
    groups: Sequence[Group],
    kinds: Sequence[Kind],
    per_s: float,
    attain: float,
    headroom: float,
) -> Need:
    """What a fleet must bear, `headroom` of every replica left free.

    Calls whose budget no card can keep, or only all but empty, are late anyway or too dear to be kept: they are borne
    wherever there is time for them. So are kinds that are so rare that half of what may be late is more than they are.
    """
    kinds = kinds or (UNKNOWN,)
    rare = _rare(kinds, RARE * (1 - attain))
    had = [at for at, group in enumerate(groups) if group.most] or range(len(groups))
    bears: list[tuple[float, ...]] = []
    for number, kind in enumerate(kinds):
        row = ever = [at_most_per_s(group.profile, kind) for group in groups]
        if number not in rare:
            row = [bearable_per_s(group.profile, kind, attain) for group in groups]
            row = ever if all(row[at] < HARSH * ever[at] for at in had) else row
        bears.append(tuple(_rounded((1 - headroom) * one) for one in row))
    return Need(model, tuple(groups), tuple(_rounded(kind.share) for kind in kinds), tuple(bears), per_s)


def _rare(kinds: Sequence[Kind], share: float) -> set[int]:
    """The rarest kinds that are no more than this share together."""
    found: set[int] = set()
    for at in sorted(range(len(kinds)), key=lambda at: kinds[at].share):
        share -= kinds[at].share
        if share < 0:
            break
        found.add(at)
    return found


def cheapest(
    needs: Sequence[Need],
    cards: Mapping[AcceleratorName, int],
    max_usd_per_h: float,
    *,
    is_starting_free: bool = False,
) -> FleetPlanned:
    """The fleet with the smallest cost per hour, starts included, that bears every need: exact up to MOST_FLEETS for a
    model and MOST_LOOKED_AT for all.

    A need beyond all that its model may have is cut to that. Where cards or budget are short for all, the fleet bears
    the largest of SHARES of each; with 0 it is what the bounds demand, and they may be short of even that.
    """
    needs = [_possible(one, cards) for one in needs]
    found = _cheapest(needs, cards, max_usd_per_h, SHARES[0], is_starting_free)
    if found is not None:
        return found
    low, high = 1, len(SHARES)  # what is enough for a part is enough for a smaller one
    while low < high:
        middle = (low + high) // 2
        tried = _cheapest(needs, cards, max_usd_per_h, SHARES[middle], is_starting_free)
        found, low, high = (found, middle + 1, high) if tried is None else (tried, low, middle)
    if found is not None:
        return found
    least = {one.model: tuple(group.bounds.least for group in one.groups) for one in needs}
    return FleetPlanned(least, _usd(needs, least), 0.0)


def price(one: Need, cards: Mapping[AcceleratorName, int]) -> float:
    """What this need costs the model alone, to be compared with another one (USD/h): its cheapest fleet, what of it is
    not there yet counted for more, and a little of what it would cost in fractions of replicas, so that of two needs
    for the same fleet that which leaves more of it free is the better one. What cannot be borne is the dearest.
    """
    staying = tuple(replace(group, load_s=NEW * KEEP_S) for group in one.groups)
    found = cheapest([replace(one, groups=staying)], cards, math.inf)
    pairs = list(zip(one.groups, found.counts[one.model], strict=True))
    new = sum(group.usd_per_h * max(0, count - group.have) for group, count in pairs)
    all_usd = sum(group.usd_per_h * (1 + group.most) for group in one.groups)
    missing = 1 - found.share * _possible(one, cards).per_s / one.per_s if one.per_s > 0 else 0.0
    return found.usd_per_h + NEW * new + FRACTIONS * one.usd_per_h + 2 * missing * all_usd


def _possible(one: Need, cards: Mapping[AcceleratorName, int]) -> Need:
    """The need cut to what the model bears with all cards, and its groups to as many replicas as there are cards."""
    fitting = [cards.get(group.bounds.accelerator, 0) // group.bounds.cards for group in one.groups]
    pairs = list(zip(one.groups, fitting, strict=True))
    most = [max(group.bounds.least, min(group.most, fits)) for group, fits in pairs]
    groups = [
        replace(group, bounds=replace(group.bounds, most=min(group.bounds.most, fits)))
        for group, fits in pairs
    ]
    return replace(one, groups=tuple(groups), per_s=min(one.per_s, one.borne_per_s(most)))


def _cheapest(
    needs: Sequence[Need],
    cards: Mapping[AcceleratorName, int],
    max_usd_per_h: float,
    share: float,
    is_starting_free: bool,
) -> FleetPlanned | None:
    choices = [_choices(one, share * one.per_s, is_starting_free) for one in needs]
    if any(not one for one in choices):
        return None
    rest = [0.0] * (len(needs) + 1)
    for at in reversed(range(len(needs))):
        rest[at] = rest[at + 1] + choices[at][0].objective
    best_objective, best, looked = math.inf, None, 0
    stack: list[tuple[int, float, float, Mapping[AcceleratorName, int], tuple[tuple[int, ...], ...]]]
    stack = [(0, 0.0, 0.0, cards, ())]
    while stack and looked < MOST_LOOKED_AT:
        at, objective, usd, free, chosen = stack.pop()
        looked += 1
        if objective + rest[at] >= best_objective - 1e-12:
            continue
        if at == len(needs):
            best_objective, best = objective, chosen
            continue
        for choice in reversed(choices[at]):
            left = _without(free, needs[at].groups, choice.counts)
            if left is not None and usd + choice.usd_per_h <= max_usd_per_h + 1e-9:
                stack.append(
                    (
                        at + 1,
                        objective + choice.objective,
                        usd + choice.usd_per_h,
                        left,
                        (*chosen, choice.counts),
                    )
                )
    if best is None:
        return None
    counts = {one.model: found for one, found in zip(needs, best, strict=True)}
    return FleetPlanned(counts, _usd(needs, counts), share)


@dataclass(frozen=True, slots=True)
class _Choice:
    """One fleet of one model. `objective` is its price and that of the starts it needs, in USD/h."""

    objective: float
    counts: tuple[int, ...]
    usd_per_h: float


def _choices(one: Need, per_s: float, is_starting_free: bool) -> list[_Choice]:
    """Every fleet from which nothing can be taken away, the cheapest first."""
    found = []
    for counts in _enough(one, per_s):
        usd = sum(count * group.usd_per_h for count, group in zip(counts, one.groups, strict=True))
        starts = 0.0
        if not is_starting_free:
            starts = sum(
                max(0, count - group.have) * group.usd_per_h * group.load_s / KEEP_S
                for count, group in zip(counts, one.groups, strict=True)
            )
        found.append(_Choice(usd + starts, counts, usd))
    return sorted(found, key=lambda choice: (choice.objective, choice.counts))


def _enough(one: Need, per_s: float) -> Iterator[tuple[int, ...]]:
    """For all numbers of the first groups, the smallest number of the last with which the need is borne, if none of the
    first could be fewer for the same.

    Where these are too many, a few fleets that were grown and cut instead.
    """
    ranges = [range(group.bounds.least, _useful(one, at, per_s) + 1) for at, group in enumerate(one.groups)]
    if math.prod(map(len, ranges[:-1])) > MOST_FLEETS:
        yield from dict.fromkeys(_grown(one, per_s, ranges))
        return
    smallest: dict[tuple[int, ...], int] = {}
    for some in product(*ranges[:-1]):
        with_fewer = [smallest[fewer] for fewer in _one_fewer(some) if fewer in smallest]
        low, high = ranges[-1][0], min(with_fewer, default=ranges[-1][-1])
        if not with_fewer and not _bears(one, (*some, high), per_s):
            continue
        while low < high:
            middle = (low + high) // 2
            if _bears(one, (*some, middle), per_s):
                high = middle
            else:
                low = middle + 1
        smallest[some] = low
        if low not in with_fewer:
            yield (*some, low)


def _one_fewer(counts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for at, count in enumerate(counts):
        yield (*counts[:at], count - 1, *counts[at + 1 :])


def _useful(one: Need, at: int, per_s: float) -> int:
    """More replicas than this of a group are never needed: so many bear the need alone, if the group can at all."""
    least, most = one.groups[at].bounds.least, max(one.groups[at].most, one.groups[at].bounds.least)
    each_s = one.mean_s(at)
    return max(least, min(most, math.ceil(per_s * each_s))) if each_s < math.inf else most


def _grown(one: Need, per_s: float, ranges: Sequence[range]) -> Iterator[tuple[int, ...]]:
    """From the least fleet, more of the group that comes first in some order of the groups until it is enough; then,
    from the dearest on, without all that is not needed."""
    cheap = sorted(range(len(ranges)), key=lambda at: one.groups[at].usd_per_h)
    for order in permutations(cheap):
        counts = [own[0] for own in ranges]
        for at in order:
            while counts[at] < ranges[at][-1] and not _bears(one, tuple(counts), per_s):
                counts[at] += 1
        if not _bears(one, tuple(counts), per_s):
            continue
        for at in reversed(cheap):
            while counts[at] > ranges[at][0]:
                counts[at] -= 1
                if not _bears(one, tuple(counts), per_s):
                    counts[at] += 1
                    break
        yield tuple(counts)


def _bears(one: Need, counts: tuple[int, ...], per_s: float) -> bool:
    if per_s <= 0:
        return True
    for shared, row in zip(one.shares, one.bears, strict=True):  # each kind alone: cheap to see
        if sum(count * each for count, each in zip(counts, row, strict=True)) < per_s * shared - 1e-9:
            return False
    if (
        _mixed_per_s(one, counts) >= per_s
    ):  # every card takes its part of every kind: not the best, but enough
        return True
    return one.borne_per_s(counts) >= per_s - 1e-9


def _mixed_per_s(one: Need, counts: tuple[int, ...]) -> float:
    whole = 0.0
    for at, count in enumerate(counts):
        if count:
            each_s = one.mean_s(at)
            whole += count / each_s if each_s else math.inf
    return whole


@lru_cache(maxsize=65536)
def _borne_per_s(
    counts: tuple[int, ...], shares: tuple[float, ...], bears: tuple[tuple[float, ...], ...]
) -> float:
    if not any(counts):
        return 0.0
    if not shares:  # nobody knows the calls yet: one replica is as good as many
        return math.inf
    used = [at for at, count in enumerate(counts) if count]
    rates = [
        [counts[at] * row[at] / share for at in used]
        for share, row in zip(shares, bears, strict=True)
        if share
    ]
    if len(used) == 1:
        return 1 / sum(1 / row[0] if row[0] else math.inf for row in rates)
    return largest_rate(rates)


def _without(
    free: Mapping[AcceleratorName, int], groups: Sequence[Group], counts: Sequence[int]
) -> Mapping[AcceleratorName, int] | None:
    left = dict(free)
    for group, count in zip(groups, counts, strict=True):
        left[group.bounds.accelerator] = left.get(group.bounds.accelerator, 0) - count * group.bounds.cards
    return None if any(count < 0 for count in left.values()) else left


def _usd(needs: Sequence[Need], counts: Mapping[ModelName, Sequence[int]]) -> float:
    return sum(
        count * group.usd_per_h
        for one in needs
        for count, group in zip(counts[one.model], one.groups, strict=True)
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
