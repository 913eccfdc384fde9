"""How far policies are from the best possible: goodput over what a search found, and over what nobody can pass.

Owns the comparison and its table. The search is `clairvoyant.py`, the bound `lp_bound.py`; what is exact for a
handful of calls is `exact.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tightrope.bench.clairvoyant import Budget, Found, OnStep, Reached, reached, search
from tightrope.bench.lp_bound import BIN_MS, LpBound, lp_bound
from tightrope.bench.metrics import Window
from tightrope.sim.driver import simulate
from tightrope.sim.script import RunScript
from tightrope.sim.world import World

HEAD = ("policy", "goodput", "mean TTFT", "of found", "of bound")


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard the limits are looked for.

    `starts` are the policies that a search starts from, each with `budget`. `bin_ms` is the grain of the linear
    program, which may be solved for `bound_s` seconds (None: to its end).
    """

    starts: tuple[str, ...]
    budget: Budget
    bin_ms: float = BIN_MS
    bound_s: float | None = None


@dataclass(frozen=True, slots=True)
class Distance:
    """Policies beside the two limits of the same runs: `found` can be reached, `bound` cannot be passed."""

    policies: tuple[Reached, ...]
    found: Found
    bound: LpBound

    def of_found(self, goodput: float) -> float:
        """Goodput over what the search found; a policy may pass 1."""
        return _ratio(goodput, self.found.best.goodput)

    def of_bound(self, goodput: float) -> float:
        """Goodput over the bound; nobody passes 1."""
        return _ratio(goodput, self.bound.goodput)


def distance(
    world: World,
    scripts: Sequence[RunScript],
    policies: Sequence[str],
    effort: Effort,
    window: Window | None = None,
    seed: int = 1,
    on_step: OnStep | None = None,
) -> Distance:
    """Play the policies, search from `effort.starts`, and bound; runs that arrive within `window` count."""
    found = search(world, scripts, effort.starts, effort.budget, window, seed, on_step)
    known = {climbed.start.policy: climbed.start for climbed in found.climbs}
    return Distance(
        policies=tuple(known.get(name) or _played(world, scripts, name, window) for name in policies),
        found=found,
        bound=lp_bound(world, scripts, effort.bin_ms, effort.bound_s, window),
    )


def rows(one: Distance) -> list[tuple[str, ...]]:
    """The cells of a table under HEAD: every policy, then what was found, then the bound."""
    best = one.found.best
    told = [(reached.policy, reached) for reached in one.policies]
    told.append((f"found from {best.policy} in {one.found.steps} steps", best))
    cells = [
        (
            name,
            f"{reached.goodput:.3f}",
            f"{reached.mean_ttft_s:.2f} s",
            f"{one.of_found(reached.goodput):.3f}",
            f"{one.of_bound(reached.goodput):.3f}",
        )
        for name, reached in told
    ]
    return [*cells, (_bound_name(one.bound), f"{one.bound.goodput:.3f}", "-", "-", "1.000")]


def _played(world: World, scripts: Sequence[RunScript], policy: str, window: Window | None) -> Reached:
    changed = replace(world, settings=replace(world.settings, router=policy))
    return reached(policy, simulate(changed, scripts), window)


def _ratio(part: float, whole: float) -> float:
    """1 where there is nothing to reach."""
    return part / whole if whole > 0 else 1.0


def _bound_name(bound: LpBound) -> str:
    notes = [f"bins of {bound.bin_ms:.0f} ms"]
    notes += [] if bound.is_optimal else ["solver stopped"]
    notes += [] if bound.is_certain else ["without noise and faults"]
    return f"no schedule passes ({', '.join(notes)})"
