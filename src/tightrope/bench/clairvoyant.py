"""What a search with full knowledge finds: a fixed replica for every call, improved by simulating again and again.

Owns the search and the router that follows an assignment. The driver, the kernel and its waiting line are those of
every simulation: only the choice of the replica is replaced. What is found can be reached, but bounds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import fmean
from time import monotonic

from tightrope.bench.metrics import Window
from tightrope.kernel.kernel import Kernel
from tightrope.model.errors import InvalidInput
from tightrope.model.fleet import Estimate, Job, Offer, PoolView, Routed
from tightrope.model.ids import ModelName, ReplicaId
from tightrope.policy import router
from tightrope.policy.route import Router
from tightrope.sim.driver import simulate
from tightrope.sim.script import RunScript
from tightrope.sim.world import RunRecord, World

MOST_CHANGED = 5
"""Calls that one step moves at most."""
LATE_SHARE = 0.6
"""So often the moved calls are those of late runs."""
GOODPUT_WEIGHT = 1000.0
"""Score points of goodput 1, against one for each second of mean time to first token."""
Assignment = Mapping[str, ReplicaId]
"""The replica of every item of every model node, by `run/step/item`."""


@dataclass(frozen=True, slots=True)
class Reached:
    """What one way of choosing replicas gave: runs that kept their promise, and seconds to first token on average."""

    policy: str
    goodput: float
    mean_ttft_s: float
    good_runs: int
    runs: int

    @property
    def score(self) -> float:
        """What the search climbs."""
        return GOODPUT_WEIGHT * self.goodput - self.mean_ttft_s


@dataclass(frozen=True, slots=True)
class Climbed:
    """One search: what the policy gave by itself, and the best that came of moving calls from there.

    `assignment` gives the best again (`follow`); None where the policy's own choice was best. `steps` simulations
    were tried, `accepted` of them kept.
    """

    start: Reached
    best: Reached
    assignment: Assignment | None
    steps: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Found:
    """The best of several searches, and all of them."""

    best: Reached
    climbs: tuple[Climbed, ...]


@dataclass(frozen=True, slots=True)
class Budget:
    """When one search ends: after so many steps or seconds, whichever is first."""

    steps: int
    seconds: float = math.inf


OnStep = Callable[[int, Reached], None]
"""Told the number of steps so far and the best of them."""


def search(
    world: World,
    scripts: Sequence[RunScript],
    policies: Sequence[str],
    budget: Budget,
    window: Window | None = None,
    seed: int = 1,
    on_step: OnStep | None = None,
) -> Found:
    """Search from each policy in turn, every time with the same budget; of equal finds the first.

    Raises InvalidInput without a policy.
    """
    if not policies:
        raise InvalidInput("a search starts from at least one policy")
    climbs = tuple(climb(world, scripts, policy, budget, window, seed, on_step) for policy in policies)
    return Found(max(climbs, key=lambda climbed: climbed.best.score).best, climbs)


def climb(
    world: World,
    scripts: Sequence[RunScript],
    policy: str,
    budget: Budget,
    window: Window | None = None,
    seed: int = 1,
    on_step: OnStep | None = None,
) -> Climbed:
    """Start from what the policy chose; move 1 to 5 calls, simulate, and keep it unless the score falls.

    Runs that arrive within `window` count. Equal arguments give the equal result unless seconds run out.
    """
    until_s = monotonic() + budget.seconds
    climber = _Climber(world, scripts, policy, window, Random(f"{seed}/{policy}"))
    best, assignment = climber.start, None
    steps = accepted = 0
    while True:
        if climber.now.score > best.score:
            best, assignment = climber.now, climber.assignment
        if steps == budget.steps or monotonic() >= until_s:
            return Climbed(climber.start, best, assignment, steps, accepted)
        accepted += climber.step()
        steps += 1
        if on_step is not None:
            on_step(steps, best)


def follow(
    world: World, scripts: Sequence[RunScript], policy: str, assignment: Assignment
) -> list[RunRecord]:
    """Simulate with every call on its assigned replica, in the order and with the caution of the policy.

    A call that is not assigned, or whose replica is not there, goes where the fewest calls are.
    """
    kernel = Kernel(world.settings)
    kernel.state.router = _following(router(policy), assignment)
    return simulate(world, scripts, kernel=kernel)


# --- a router that follows -------------------------------------------------------------------------------


def _following(base: Router, assignment: Assignment) -> Router:
    def choose(job: Job, pool: PoolView, _now_s: float, _rng: Random) -> Routed | None:
        assigned = assignment.get(_item(job.call))
        views = {view.id: view for view in pool.replicas}
        if not views:
            return None
        view = views.get(assigned) if assigned is not None else None
        if view is None:
            view = min(views.values(), key=lambda other: (len(other.held), other.id))
        offer = Offer(view.id, view.accelerator, _NO_ESTIMATE, 0.0, "assigned")
        return Routed(view.id, "assigned", (offer,), "clairvoyant")

    return replace(base, name="clairvoyant", choose=choose)


_NO_ESTIMATE = Estimate(0.0, 0.0, 0.0, 0.0, 0.0)
"""What is fixed beforehand is not predicted."""


def _item(call: str) -> str:
    """`run/step/item` of a call: every attempt goes to the same replica."""
    return call.rpartition(".")[0]


# --- climbing --------------------------------------------------------------------------------------------


class _Climber:
    """One search from one policy. `start` is what the policy gave by itself, `now` what `assignment` gives."""

    def __init__(
        self, world: World, scripts: Sequence[RunScript], policy: str, window: Window | None, rng: Random
    ) -> None:
        self._scripts, self._policy, self._window, self._rng = scripts, policy, window, rng
        self._world = replace(world, settings=replace(world.settings, router=policy))
        self._pools: dict[ModelName, list[ReplicaId]] = {}
        for spec in world.replicas:
            self._pools.setdefault(spec.model, []).append(spec.id)
        records = simulate(self._world, scripts)
        self.start = reached(policy, records, window)
        self.assignment: dict[str, ReplicaId] = {
            _item(call.call): call.replica for record in records for call in record.calls
        }
        self._take(follow(self._world, scripts, policy, self.assignment))

    def step(self) -> bool:
        """Move some calls and see; whether that was kept."""
        changed = {**self.assignment, **self._moved()}
        records = follow(self._world, self._scripts, self._policy, changed)
        if reached(self._policy, records, self._window).score < self.now.score:
            return False
        self.assignment = changed
        self._take(records)
        return True

    def _take(self, records: Sequence[RunRecord]) -> None:
        self.now = reached(self._policy, records, self._window)
        self._movable: list[tuple[str, ModelName]] = []
        self._late: list[tuple[str, ModelName]] = []
        for record in records:
            for call in record.calls:
                if len(self._pools[call.model]) > 1:
                    self._movable.append((_item(call.call), call.model))
                    if not record.is_met:
                        self._late.append(self._movable[-1])

    def _moved(self) -> dict[str, ReplicaId]:
        rng = self._rng
        is_late = bool(self._late) and rng.random() < LATE_SHARE
        calls = self._late if is_late else self._movable
        moved: dict[str, ReplicaId] = {}
        for item, model in rng.sample(calls, min(len(calls), rng.randint(1, MOST_CHANGED))):
            others = [replica for replica in self._pools[model] if replica != self.assignment.get(item)]
            moved[item] = rng.choice(others)
        return moved


def reached(policy: str, records: Sequence[RunRecord], window: Window | None = None) -> Reached:
    """What came of the runs that arrived within the window. A run that never answered counts with its whole time."""
    counted = [
        record for record in records if window is None or window.from_s <= record.arrived_s < window.to_s
    ]
    good = sum(record.is_met for record in counted)
    waits_s = [record.duration_s if record.ttft_s is None else record.ttft_s for record in counted]
    return Reached(
        policy=policy,
        goodput=good / len(counted) if counted else 1.0,
        mean_ttft_s=fmean(waits_s) if counted else 0.0,
        good_runs=good,
        runs=len(counted),
    )
