"""Simulated engines on the calls that live engines really got, each after what happened before it on its engine.

Owns the comparison call by call, in which nothing is decided, so that differences do not feed on themselves; and the
one number that it calibrates. Whole runs are `parity.py`.

Many calls are dispatched because another one on the same engine has just ended. Given to a simulated engine at their
live moments they would still meet the other one's last token if the engine is ever so little slower than the live one,
and that token would wait for their whole prompt. So a call comes as long after what last happened on its engine as it
did live, and meets what it met there.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count
from random import Random
from statistics import fmean
from typing import Literal

from tightrope.bench.recorded import SeenCall, Session
from tightrope.model.ids import CallId, ReplicaId, RunId
from tightrope.model.profile import Profile
from tightrope.sim.engine import FirstOut, Request, SimEngine, Truth
from tightrope.sim.world import CardKind

SLOWNESS = (0.5, 2.0)
"""Beyond this a calibration would mean that the profiles are wrong."""
_HALVINGS = 16
_MAPE_TO_DEVIATION = math.sqrt(math.pi / 2)
"""Standard deviation of a normal error over the mean of its absolute value."""


@dataclass(frozen=True, slots=True)
class EnginePart:
    """The calls that a kind of replica really got, each after what happened before it there; means, in ms.

    `first`: from dispatch to the first content; `gap`: between tokens after it. Live, and by the simulated engine.
    """

    model: str
    accelerator: str
    calls: int
    live_first_ms: float
    simulated_first_ms: float
    live_gap_ms: float
    simulated_gap_ms: float


def truths(profiles: Mapping[CardKind, Profile], slowness: float) -> dict[CardKind, Truth]:
    """Cards that behave as measured but `slowness` times as slow, their steps as noisy as the fit was inexact."""
    return {kind: _truth(profile, slowness) for kind, profile in profiles.items()}


def _truth(profile: Profile, slowness: float) -> Truth:
    slower = replace(profile, coefficients=profile.coefficients.scaled(slowness))
    return Truth(
        slower, noise=_MAPE_TO_DEVIATION * profile.error.decode if profile.error is not None else 0.0
    )


@dataclass(frozen=True, slots=True)
class Answered:
    """A call that ended well: seconds from dispatch to first content and from there to the end."""

    call: SeenCall
    first_s: float
    rest_s: float


def answered(found: Session) -> list[Answered]:
    """Every call that ended well, as it was."""
    return [
        Answered(call, call.first_s - call.dispatched_s, call.ended_s - call.first_s)
        for call in found.calls
        if call.first_s is not None and call.ended_s is not None
    ]


def answered_in_simulation(found: Session, slowness: float) -> dict[CallId, Answered]:
    """Every call, given to a simulated engine without noise; one given up live is given up there, after as long."""
    known = truths(found.profiles, slowness)
    by_replica: dict[ReplicaId, list[SeenCall]] = defaultdict(list)
    for call in found.calls:
        by_replica[call.replica].append(call)
    return {
        one.call.call: one
        for calls in by_replica.values()
        for one in _Engine(replace(known[calls[0].kind], noise=0.0), calls).play()
    }


Happening = tuple[CallId, Literal["first", "last"]]
"""A call's first content, or its end, whichever it was."""


def _befores(calls: Sequence[SeenCall]) -> dict[CallId, tuple[Happening | None, float]]:
    """What happened last on the replica before each call, and how much earlier; the start where nothing did."""
    marks: list[tuple[float, bool, CallId, Happening | None]] = []
    for call in calls:
        marks.append((call.dispatched_s, True, call.call, None))
        if call.first_s is not None:
            marks.append((call.first_s, False, call.call, (call.call, "first")))
        ended_s = call.ended_s if call.ended_s is not None else call.given_up_s
        if ended_s is not None:
            marks.append((ended_s, False, call.call, (call.call, "last")))
    found: dict[CallId, tuple[Happening | None, float]] = {}
    latest: Happening | None = None
    latest_s = 0.0
    for at_s, is_dispatch, call_id, happening in sorted(marks, key=lambda mark: mark[:2]):
        if is_dispatch:
            found[call_id] = (latest, at_s - latest_s)
        elif call_id in found:  # else it took no time at all
            latest, latest_s = happening, at_s
    return found


class _Engine:
    """A simulated engine, and the calls of one replica that it has got or will get."""

    def __init__(self, truth: Truth, calls: Sequence[SeenCall]) -> None:
        self._engine = SimEngine(truth, Random(0))
        self._calls = calls
        self._waiting: dict[Happening | None, list[tuple[float, SeenCall]]] = defaultdict(list)
        befores = _befores(calls)
        for call in calls:
            before, later_s = befores[call.call]
            self._waiting[before].append((later_s, call))
        # When, which in a row, what, and whether it begins or is given up.
        self._due: list[tuple[float, int, SeenCall, bool]] = []
        self._serial = count()
        self._began_s: dict[CallId, float] = {}
        self._first_s: dict[CallId, float] = {}
        self._last_s: dict[CallId, float] = {}

    def play(self) -> Iterator[Answered]:
        """Everything to its end: the calls that ended well."""
        self._happened(None, 0.0)
        while (now_s := min(self._engine.next_s(), self._due[0][0] if self._due else math.inf)) < math.inf:
            for out in self._engine.advance(now_s):
                if isinstance(out, FirstOut):
                    self._first_s[out.call] = out.at_s
                    self._happened((out.call, "first"), out.at_s)
                else:
                    self._last_s[out.call] = out.at_s
                    self._happened((out.call, "last"), out.at_s)
            while self._due and self._due[0][0] <= now_s:
                _, _, call, is_begin = heappop(self._due)
                if is_begin:
                    self._begin(call, now_s)
                else:
                    self._give_up(call, now_s)
        for call in self._calls:
            if call.call in self._last_s:
                began_s, first_s = self._began_s[call.call], self._first_s[call.call]
                yield Answered(call, first_s - began_s, self._last_s[call.call] - first_s)

    def _happened(self, happening: Happening | None, at_s: float) -> None:
        for later_s, call in self._waiting.pop(happening, ()):
            heappush(self._due, (at_s + later_s, next(self._serial), call, True))

    def _begin(self, call: SeenCall, now_s: float) -> None:
        self._began_s[call.call] = now_s
        self._engine.submit(Request(call.call, call.prompt_tokens, call.output_tokens), now_s)
        if call.given_up_s is not None:
            given_up_s = now_s + call.given_up_s - call.dispatched_s
            heappush(self._due, (given_up_s, next(self._serial), call, False))

    def _give_up(self, call: SeenCall, now_s: float) -> None:
        """What waits for a first content that never came, waits for the end instead."""
        self._engine.cancel(call.call, now_s)
        self._happened((call.call, "first"), now_s)
        self._happened((call.call, "last"), now_s)


def engine_parts(found: Session, slowness: float, runs: Collection[RunId]) -> tuple[EnginePart, ...]:
    """The calls of these runs by kind of replica, live and simulated."""
    simulated = answered_in_simulation(found, slowness)
    pairs: dict[CardKind, list[tuple[Answered, Answered]]] = defaultdict(list)
    for live in answered(found):
        if live.call.run in runs and live.call.call in simulated:
            pairs[live.call.kind].append((live, simulated[live.call.call]))
    return tuple(_part(kind, found) for kind, found in sorted(pairs.items()))


def _part(kind: CardKind, pairs: Sequence[tuple[Answered, Answered]]) -> EnginePart:
    live, simulated = zip(*pairs, strict=True)
    return EnginePart(
        model=kind[0],
        accelerator=kind[1],
        calls=len(pairs),
        live_first_ms=1000 * fmean(one.first_s for one in live),
        simulated_first_ms=1000 * fmean(one.first_s for one in simulated),
        live_gap_ms=_gap_ms(live),
        simulated_gap_ms=_gap_ms(simulated),
    )


def _gap_ms(calls: Sequence[Answered]) -> float:
    gaps = sum(one.call.output_tokens - 1 for one in calls)
    return 1000 * math.fsum(one.rest_s for one in calls) / gaps if gaps else 0.0


def calibrated_slowness(found: Session, runs: Collection[RunId]) -> float:
    """The slowness at which simulated engines take as long over the calls of these runs as the live ones did.

    What is compared is the sum, over calls, of the time from dispatch to end; it rises with the slowness.
    """
    live = [one for one in answered(found) if one.call.run in runs]
    live_s = math.fsum(one.first_s + one.rest_s for one in live)

    def simulated_s(slowness: float) -> float:
        simulated = answered_in_simulation(found, slowness)
        ends = (simulated[one.call.call] for one in live)
        return math.fsum(one.first_s + one.rest_s for one in ends)

    low, high = SLOWNESS
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if simulated_s(middle) > live_s else (middle, high)
    return math.sqrt(low * high)
