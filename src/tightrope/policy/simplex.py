"""The most that unlike machines do of several kinds of work at once: one small linear program, solved exactly.

Owns the simplex method for it, on a full table. Which rates go in is `provision.py` and the benchmark's capacity.
"""

from __future__ import annotations

from collections.abc import Sequence

EPSILON = 1e-12
"""What counts as zero in the linear program, whose coefficients are scaled to be at most 1."""


def largest_rate(rates: Sequence[Sequence[float]]) -> float:
    """The largest x such that every kind of work v is done at rate x, if the machines g do rates[v][g] of it in all
    their time; 0 where some kind is done nowhere."""
    scale = max((max(row, default=0.0) for row in rates), default=0.0)
    if scale <= 0 or any(max(row) <= 0 for row in rates):
        return 0.0
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
