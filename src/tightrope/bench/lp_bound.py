"""The bound that no scheduler passes: what the prices of a linear program prove.

Owns solving. Every schedule of the simulated engine, whoever made it, is a point of `lp_program.py` in which the
runs that kept their promise count 1 each, so its optimum bounds them all.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, OptimizeWarning, linprog

from tightrope.bench.lp_program import Floats, Program, program
from tightrope.bench.metrics import Window
from tightrope.bench.windows import duties, machines_of
from tightrope.sim.script import RunScript
from tightrope.sim.world import World

BIN_MS = 500.0
LATER = (4, 6)
"""Constraints with a row for nearly every column: without them the program is solved in a fraction of the time."""


@dataclass(frozen=True, slots=True)
class LpBound:
    """No scheduler keeps the promises of more than `good_runs` of `runs`: `goodput` of them.

    `is_optimal` is False when the solver was stopped: the bound holds, and a smaller one may. `is_certain` is False
    when steps vary or replicas fail: the bound is that of a world in which neither happens.
    """

    goodput: float
    good_runs: float
    runs: int
    bin_ms: float
    columns: int
    rows: int
    is_optimal: bool
    is_certain: bool


def lp_bound(
    world: World,
    scripts: Sequence[RunScript],
    bin_ms: float = BIN_MS,
    limit_s: float | None = None,
    window: Window | None = None,
    *,
    merged: bool = True,
) -> LpBound:
    """The bound for the runs that arrive within `window` (None: all), with the fleet to themselves.

    `limit_s` of solving at most. `merged`: equal replicas as one kind, which changes nothing, for the mean of a
    solution over equal replicas is a solution. Halving the bins never raises the bound.
    """
    counted = [one for one in scripts if window is None or window.from_s <= one.at_s < window.to_s]
    machines = machines_of(world, merged=merged)
    made = program(machines, duties(world, counted, machines, scripts), bin_ms)
    solved = solve(made, limit_s)
    return LpBound(
        goodput=solved.good_runs / len(counted) if counted else 1.0,
        good_runs=solved.good_runs,
        runs=len(counted),
        bin_ms=bin_ms,
        columns=len(made.upper),
        rows=len(made.limits),
        is_optimal=solved.is_optimal,
        is_certain=not world.faults and not any(truth.noise for truth in world.truths.values()),
    )


@dataclass(frozen=True, slots=True)
class Solved:
    """`good_runs` bounds the program from above; `is_optimal`: it is its optimum, to the solver's precision."""

    good_runs: float
    is_optimal: bool


def solve(made: Program, limit_s: float | None = None) -> Solved:
    """Bound the program. With a limit, first without the constraints LATER, which bounds it too, if less well.

    What is returned is what the solver's prices prove, never the value of its solution.
    """
    every = np.ones(len(made.limits), dtype=bool)
    best = Solved(float(made.upper[: made.runs].sum()), not len(made.strip))
    if best.is_optimal:
        return best
    until_s = math.inf if limit_s is None else monotonic() + limit_s
    if limit_s is not None and (prices := _prices(made, ~np.isin(made.family, LATER), until_s)) is not None:
        best = Solved(min(best.good_runs, certified(made, prices)), is_optimal=False)
    if (prices := _prices(made, every, until_s)) is not None:
        best = Solved(min(best.good_runs, certified(made, prices)), is_optimal=True)
    return best


def certified(made: Program, prices: Floats) -> float:
    """What any prices of the rows prove about the optimum, by weak duality: no solver has to be believed.

    Negative prices of inequalities count as zero.
    """
    prices = np.where(made.is_equal, prices, prices.clip(min=0.0))
    gains = -(made.matrix.T @ prices)
    gains[: made.runs] += 1.0
    return float(prices @ made.limits + made.upper @ gains.clip(min=0.0))


def _prices(made: Program, rows: NDArray[np.bool_], until_s: float) -> Floats | None:
    """The dual solution over these rows, zero for others; None if the solver had to stop before its end.

    By an interior point first. Its way to a corner of the program is left out, for that takes most of the time and
    `certified` needs none; a solution that is too coarse without it is found by the simplex method.
    """
    for method, options in (("highs-ipm", {"run_crossover": "off"}), ("highs-ds", {})):
        left_s = until_s - monotonic()
        if left_s <= 0:
            return None
        found = _solution(
            made, rows, method, options if left_s == math.inf else {**options, "time_limit": left_s}
        )
        if found.status == 0:
            prices = np.zeros(len(made.limits))
            prices[rows & ~made.is_equal] = -found.ineqlin.marginals
            prices[rows & made.is_equal] = -found.eqlin.marginals
            return prices
    return None


def _solution(
    made: Program, rows: NDArray[np.bool_], method: str, options: Mapping[str, object]
) -> OptimizeResult:
    most, equal = rows & ~made.is_equal, rows & made.is_equal
    cost = np.zeros(len(made.upper))
    cost[: made.runs] = -1.0
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", OptimizeWarning
        )  # options of HiGHS itself are passed on with a warning
        return linprog(
            cost,
            A_ub=made.matrix[most],
            b_ub=made.limits[most],
            A_eq=made.matrix[equal] if equal.any() else None,
            b_eq=made.limits[equal] if equal.any() else None,
            bounds=np.column_stack([np.zeros(len(made.upper)), made.upper]),
            method=method,
            options=dict(options),
        )
