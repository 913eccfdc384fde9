"""The best schedule of a handful of calls: what the bound and the search are tested against.

Owns two ways. On engines that serve one call at a time a mixed-integer program is exact; on batching ones no
such program is, so every assignment and every order goes through the simulated engine. Both know all lengths.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, permutations
from random import Random

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from tightrope.bench.calls import Planned, PlannedStage, planned
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import CallId, ReplicaId
from tightrope.model.outcome import Outcome
from tightrope.sim.engine import FirstOut, LastOut, Request, SimEngine, Truth
from tightrope.sim.script import RunScript
from tightrope.sim.world import World, is_met

MOST_SERIAL_CALLS = 15
MOST_BATCHED_CALLS = 6

Orders = Mapping[ReplicaId, tuple[CallId, ...]]
"""Which calls each replica is given, in which order."""


@dataclass(frozen=True, slots=True)
class SerialBest:
    """At most `good_runs_bound` of `runs` can be good, and `good_runs` were found; equal if `is_optimal`."""

    good_runs: int
    good_runs_bound: float
    runs: int
    is_optimal: bool


@dataclass(frozen=True, slots=True)
class BatchedBest:
    """`good_runs` of `runs` is the most that any of `tried` assignments and orders reaches; `orders` is one."""

    good_runs: int
    runs: int
    tried: int
    orders: Orders


def serial_best(world: World, scripts: Sequence[RunScript], limit_s: float | None = None) -> SerialBest:
    """The most runs that keep their promise when every engine serves one call at a time.

    A mixed-integer program over assignment y, order w, starts s and lateness U, with the longest moment as big M.
    A late run's calls may be left out, as they could be made last. Raises InvalidInput for batching engines, for
    a run to which no moment is promised, and beyond MOST_SERIAL_CALLS.
    """
    load = planned(world, scripts, MOST_SERIAL_CALLS)
    for truth in load.truth_by_replica.values():
        if truth.profile.max_sequences > 1:
            raise InvalidInput("an engine that serves several calls at once is not serial")
    if any(script.slo.target_s is None for script in scripts):
        raise InvalidInput("a run to which no moment is promised is never late")
    return _SerialProgram(load).solve(limit_s)


def batched_best(world: World, scripts: Sequence[RunScript]) -> BatchedBest:
    """The most runs that keep their promise, over all assignments of calls to replicas and all orders there.

    A call is sent when all it waits for is done and those before it in its order are sent. Nothing is ever held
    back, so a schedule that idles on purpose may be better still: a lower bound of the optimum, and below the
    linear program. Raises InvalidInput beyond MOST_BATCHED_CALLS.
    """
    load = planned(world, scripts, MOST_BATCHED_CALLS)
    best, tried = -1, 0
    best_orders: Orders = {}
    for orders in _all_orders(load):
        tried += 1
        good = sum(played(load, orders))
        if good > best:
            best, best_orders = good, orders
    return BatchedBest(max(0, best), len(scripts), tried, best_orders)


# --- one call at a time ----------------------------------------------------------------------------------


class _SerialProgram:
    """Columns: lateness U of every run, y of every call on every replica that may serve it, order w of every two
    calls that may meet, then the start of every call and of every stage, in seconds. Rows: sum >= limit."""

    def __init__(self, load: Planned) -> None:
        self._load = load
        serial = count()
        self._late = [next(serial) for _ in load.runs]
        self._y = {(v, r): next(serial) for v, call in enumerate(load.calls) for r in call.replicas}
        self._w = {pair: next(serial) for pair in permutations(range(len(load.calls)), 2)}
        self._binaries = next(serial)
        serial = count(self._binaries)
        self._start = [next(serial) for _ in load.calls]
        self._ready = [next(serial) for _ in load.stages]
        self._width = next(serial)
        self._lasts_s = {(v, r): self._solo(v, r).whole_s for v, r in self._y}
        self._latest_s = max(self._latest_of(number) for number in range(len(load.runs)))
        self._big = self._latest_s + max(self._lasts_s.values(), default=0.0)
        self._terms: list[tuple[int, int, float]] = []
        self._limits: list[float] = []

    def solve(self, limit_s: float | None) -> SerialBest:
        self._stages()
        self._calls()
        self._no_two_at_once()
        self._deadlines()
        cost = np.zeros(self._width)
        cost[self._late] = 1.0
        rows, columns, values = zip(*self._terms, strict=True)
        found = milp(
            cost,
            integrality=np.arange(self._width) < self._binaries,
            bounds=self._bounds(),
            constraints=LinearConstraint(
                csr_array((values, (rows, columns)), shape=(len(self._limits), self._width)),
                lb=np.array(self._limits),
            ),
            options={} if limit_s is None else {"time_limit": limit_s},
        )
        runs = len(self._load.runs)
        late = runs if found.x is None else round(found.x[self._late].sum())
        least_late = 0.0 if found.mip_dual_bound is None else max(0.0, found.mip_dual_bound)
        return SerialBest(runs - late, runs - least_late, runs, found.status == 0)

    def _solo(self, call: int, replica: ReplicaId) -> _Solo:
        script = self._load.calls[call].script
        profile = self._load.truth_by_replica[replica].profile
        first_s = profile.solo_ttft_ms(script.prompt_tokens) / 1000
        return _Solo(first_s, profile.solo_decode_ms(script.prompt_tokens, script.output_tokens) / 1000)

    def _latest_of(self, run: int) -> float:
        """A moment by which everything of the run has started that is worth starting."""
        script = self._load.runs[run]
        targets = [target for target in (script.slo.ttft_s, script.slo.e2e_s) if target is not None]
        code_s = sum(stage.lasts_s for stage in self._load.stages if stage.run == run)
        return script.at_s + max(*targets, code_s)

    def _bounds(self) -> Bounds:
        low, high = np.zeros(self._width), np.ones(self._width)
        high[self._binaries :] = self._latest_s
        for place, column in enumerate(self._ready):
            low[column] = self._load.runs[self._load.stages[place].run].at_s
        for stage in self._load.stages:
            script = self._load.runs[stage.run]
            if stage.is_answer and script.is_read_along and script.slo.tpot_s is not None:
                for call in stage.calls:
                    for replica in self._load.calls[call].replicas:
                        gaps = self._load.calls[call].script.output_tokens - 1
                        if self._solo(call, replica).decode_s > gaps * script.slo.tpot_s:
                            high[self._y[call, replica]] = 0.0
        return Bounds(low, high)

    # --- rows ------------------------------------------------------------------------------------------

    def _at_least(self, limit: float, *terms: tuple[int, float]) -> None:
        self._terms += [(len(self._limits), column, value) for column, value in terms]
        self._limits.append(limit)

    def _end(self, call: int) -> list[tuple[int, float]]:
        """Minus the end of a call."""
        own = self._load.calls[call].replicas
        return [
            (self._start[call], -1.0),
            *((self._y[call, r], -self._lasts_s[call, r]) for r in own),
        ]

    def _stages(self) -> None:
        for place, stage in enumerate(self._load.stages):
            for source in stage.waits_for:
                before = self._load.stages[source]
                self._at_least(before.lasts_s, (self._ready[place], 1.0), (self._ready[source], -1.0))
                for call in before.calls:
                    self._at_least(0.0, (self._ready[place], 1.0), *self._end(call))

    def _calls(self) -> None:
        for v, call in enumerate(self._load.calls):
            late = self._late[self._load.stages[call.stage].run]
            self._at_least(1.0, (late, 1.0), *((self._y[v, r], 1.0) for r in call.replicas))
            self._at_least(0.0, (self._start[v], 1.0), (self._ready[call.stage], -1.0))

    def _no_two_at_once(self) -> None:
        """s_v >= s_u + t[u,r] - M (1 - w[u,v]) - M (2 - y[u,r] - y[v,r]); w[u,v] + w[v,u] >= y[u,r] + y[v,r] - 1."""
        big = self._big
        for (u, v), w in self._w.items():
            for r in self._load.calls[u].replicas:
                if (v, r) not in self._y:
                    continue
                on_u, on_v = self._y[u, r], self._y[v, r]
                self._at_least(
                    self._lasts_s[u, r] - 3 * big,
                    (self._start[v], 1.0),
                    (self._start[u], -1.0),
                    (w, -big),
                    (on_u, -big),
                    (on_v, -big),
                )
                self._at_least(-1.0, (w, 1.0), (self._w[v, u], 1.0), (on_u, -1.0), (on_v, -1.0))

    def _deadlines(self) -> None:
        """s_out + t_out <= D + M U, with the time to the first token where only that counts."""
        for place, stage in enumerate(self._load.stages):
            if not stage.is_answer:
                continue
            script, late = self._load.runs[stage.run], (self._late[stage.run], self._big)
            for target_s, is_first in ((script.slo.ttft_s, script.is_read_along), (script.slo.e2e_s, False)):
                if target_s is None:
                    continue
                limit = -(script.at_s + target_s)
                if not stage.calls:
                    self._at_least(limit + stage.lasts_s, (self._ready[place], -1.0), late)
                for call in stage.calls:
                    self._at_least(limit, *(self._first(call) if is_first else self._end(call)), late)

    def _first(self, call: int) -> list[tuple[int, float]]:
        """Minus the moment of a call's first token."""
        own = self._load.calls[call].replicas
        return [(self._start[call], -1.0), *((self._y[call, r], -self._solo(call, r).first_s) for r in own)]


@dataclass(frozen=True, slots=True)
class _Solo:
    """Seconds of a call alone on a replica, to the first token and from there to the last."""

    first_s: float
    decode_s: float

    @property
    def whole_s(self) -> float:
        return self.first_s + self.decode_s


# --- every order, through the engine ---------------------------------------------------------------------


def _all_orders(load: Planned) -> Iterator[Orders]:
    """Every way to deal the calls to replicas in sequence; of those that differ only in names of equal ones, one."""
    groups: dict[tuple[Truth, frozenset[int]], list[ReplicaId]] = {}
    for replica, truth in load.truth_by_replica.items():
        serves = frozenset(v for v, call in enumerate(load.calls) if replica in call.replicas)
        groups.setdefault((truth, serves), []).append(replica)
    for dealt in _deal(load, 0, dict.fromkeys(load.truth_by_replica, ())):
        hands = [[dealt[replica] for replica in alike] for alike in groups.values()]
        if all(hand == sorted(hand) for hand in hands):
            yield dealt


def _deal(load: Planned, number: int, dealt: dict[ReplicaId, tuple[CallId, ...]]) -> Iterator[Orders]:
    """Insert call after call at every place of every replica that can serve it."""
    if number == len(load.calls):
        yield dict(dealt)
        return
    call = load.calls[number]
    for replica in call.replicas:
        own = dealt[replica]
        for place in range(len(own) + 1):
            changed = {**dealt, replica: (*own[:place], call.id, *own[place:])}
            yield from _deal(load, number + 1, changed)
    if not call.replicas:
        yield from _deal(load, number + 1, dealt)


def played(load: Planned, orders: Orders) -> list[bool]:
    """Which runs keep their promise if every replica is given its calls in this order, as soon as may be."""
    return _Play(load, orders).play()


class _Play:
    """The engines, and what every stage and call still waits for."""

    def __init__(self, load: Planned, orders: Orders) -> None:
        self._load = load
        self._engines = {r: SimEngine(truth, Random(0)) for r, truth in load.truth_by_replica.items()}
        self._left = {replica: deque(own) for replica, own in orders.items()}
        self._number = {call.id: number for number, call in enumerate(load.calls)}
        self._calls_left = [len(stage.calls) for stage in load.stages]
        self._stages_left = [len(stage.waits_for) for stage in load.stages]
        self._readers: list[list[int]] = [[] for _ in load.stages]
        for place, stage in enumerate(load.stages):
            for source in stage.waits_for:
                self._readers[source].append(place)
        self._ready: set[CallId] = set()
        self._first_s: dict[CallId, float] = {}
        self._ended_s: dict[int, float] = {}
        self._agenda: list[tuple[float, int, bool]] = []
        """Moment and stage, and whether the stage then ends or starts."""

    def play(self) -> list[bool]:
        for place, stage in enumerate(self._load.stages):
            if not stage.waits_for:
                heapq.heappush(self._agenda, (self._load.runs[stage.run].at_s, place, False))
        while (at_s := self._next_s()) < math.inf:
            for engine in self._engines.values():
                for happened in engine.advance(at_s):
                    self._hear(happened, at_s)
            while self._agenda and self._agenda[0][0] <= at_s:
                _, place, is_end = heapq.heappop(self._agenda)
                (self._end if is_end else self._start)(place, at_s)
            self._submit(at_s)
        return [
            self._is_met(place, stage) for place, stage in enumerate(self._load.stages) if stage.is_answer
        ]

    def _next_s(self) -> float:
        agenda_s = self._agenda[0][0] if self._agenda else math.inf
        return min(agenda_s, *(engine.next_s() for engine in self._engines.values()))

    def _hear(self, happened: FirstOut | LastOut, now_s: float) -> None:
        call = self._load.calls[self._number[happened.call]]
        if isinstance(happened, FirstOut):
            self._first_s[call.id] = happened.at_s
            return
        self._calls_left[call.stage] -= 1
        if not self._calls_left[call.stage]:
            self._end(call.stage, now_s)

    def _start(self, place: int, now_s: float) -> None:
        stage = self._load.stages[place]
        if stage.calls:
            self._ready.update(self._load.calls[call].id for call in stage.calls)
        else:
            heapq.heappush(self._agenda, (now_s + stage.lasts_s, place, True))

    def _end(self, place: int, now_s: float) -> None:
        self._ended_s[place] = now_s
        for reader in self._readers[place]:
            self._stages_left[reader] -= 1
            if not self._stages_left[reader]:
                self._start(reader, now_s)

    def _submit(self, now_s: float) -> None:
        """Send what is ready and next in its order; an order that waits for itself is never sent."""
        for replica, left in self._left.items():
            while left and left[0] in self._ready:
                script = self._load.calls[self._number[left[0]]].script
                request = Request(left.popleft(), script.prompt_tokens, script.output_tokens)
                self._engines[replica].submit(request, now_s)

    def _is_met(self, place: int, answer: PlannedStage) -> bool:
        script = self._load.runs[answer.run]
        ended_s = self._ended_s.get(place)
        if ended_s is None:
            return False
        first_s, tpot_s = ended_s, None
        if answer.calls and script.is_read_along:
            call = self._load.calls[answer.calls[0]]
            first_s, gaps = self._first_s[call.id], call.script.output_tokens - 1
            tpot_s = (ended_s - first_s) / gaps if gaps else None
        ttft_s, duration_s = first_s - script.at_s, ended_s - script.at_s
        return is_met(script.slo, Outcome.SUCCEEDED, ttft_s, tpot_s, duration_s)
