"""Capacity: how many runs per second a fleet can bear if its batches were always full.

Owns the stability limit that labels every load. It says nothing about deadlines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tightrope.model.ids import ModelName
from tightrope.model.profile import Profile
from tightrope.policy import utilisation

EPSILON = 1e-12
"""What counts as zero in the linear program, whose coefficients are scaled to be at most 1."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What one run asks of one model on average, in calls of one kind: how many, and their mean lengths."""

    calls: float
    prompt_tokens: float
    output_tokens: float


def work_ms(profile: Profile, demand: Demand) -> float:
    """Machine milliseconds of one call when the batch is full."""
    return utilisation.work_ms(profile, demand.prompt_tokens, demand.output_tokens)


def stability_limit(
    demands: Mapping[ModelName, Sequence[Demand]], fleet: Mapping[ModelName, Sequence[Profile]]
) -> float:
    """Runs per second at which the first pool's machines are busy all the time; `fleet` has a profile per replica.

    Within a pool of unequal cards each kind of call goes where it is relatively cheapest, as a linear program
    finds it. Inf when nothing is asked.
    """
    return min((pool_limit(kinds, fleet[model]) for model, kinds in demands.items()), default=float("inf"))


def pool_limit(kinds: Sequence[Demand], replicas: Sequence[Profile]) -> float:
    """The same for one model. With one kind of call it is the sum over replicas of 1000 / (calls x work_ms).

    In general: the most runs per second, with y[v,g] the share of time that the machines of kind g spend on
    calls of kind v, such that for each g the sum over v of y[v,g] is at most 1, and for each v the sum over g of
    y[v,g] x 1000 x machines[g] / work_ms[v,g] is at least that rate x calls[v].
    """
    asked = [kind for kind in kinds if kind.calls > 0]
    machines = Counter(replicas)
    if not asked or not machines:
        return 0.0 if asked else float("inf")
    rates = [
        [1000 * count / (work_ms(profile, kind) * kind.calls) for profile, count in machines.items()]
        for kind in asked
    ]
    scale = max(max(row) for row in rates)
    return scale * _largest_rate([[rate / scale for rate in row] for row in rates])


def _largest_rate(rates: Sequence[Sequence[float]]) -> float:
    """max x such that sum_g rates[v][g] y[v,g] >= x for every v, and sum_v y[v,g] <= 1 for every g; y >= 0.

    The simplex method on the full table with Bland's rule, which cannot cycle. Columns: x, every y, right side.
    """
    kinds, cards = len(rates), len(rates[0])
    width = 1 + kinds * cards
    table = [_kind_row(rates, kind, width) for kind in range(kinds)]
    table += [_card_row(card, kinds, cards, width) for card in range(cards)]
    for index, row in enumerate(table):
        row[width:width] = [float(index == other) for other in range(len(table))]
    objective = [-1.0] + [0.0] * (len(table[0]) - 1)
    basis = [width + index for index in range(len(table))]
    while (
        entering := next((at for at, cost in enumerate(objective[:-1]) if cost < -EPSILON), None)
    ) is not None:
        leaving = _leaving(table, basis, entering)
        basis[leaving] = entering
        _pivot(table, objective, leaving, entering)
    return objective[-1]


def _kind_row(rates: Sequence[Sequence[float]], kind: int, width: int) -> list[float]:
    """x - sum_g rates[kind][g] y[kind,g] <= 0."""
    row = [0.0] * (width + 1)
    row[0] = 1.0
    cards = len(rates[kind])
    row[1 + kind * cards : 1 + (kind + 1) * cards] = [-rate for rate in rates[kind]]
    return row


def _card_row(card: int, kinds: int, cards: int, width: int) -> list[float]:
    """sum_v y[v,card] <= 1."""
    row = [0.0] * (width + 1)
    for kind in range(kinds):
        row[1 + kind * cards + card] = 1.0
    row[-1] = 1.0
    return row


def _leaving(table: Sequence[Sequence[float]], basis: Sequence[int], entering: int) -> int:
    """The row whose variable reaches zero first; of several the one with the smallest variable."""
    ratios = [
        (row[-1] / row[entering], basis[index], index)
        for index, row in enumerate(table)
        if row[entering] > EPSILON
    ]
    return min(ratios)[2]


def _pivot(table: list[list[float]], objective: list[float], leaving: int, entering: int) -> None:
    pivot = table[leaving]
    pivot[:] = [value / pivot[entering] for value in pivot]
    for row in (*table, objective):
        factor = row[entering]
        if row is not pivot and abs(factor) > 0:
            row[:] = [value - factor * other for value, other in zip(row, pivot, strict=True)]
