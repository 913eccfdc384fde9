"""Simulated engines on the calls that live engines really got, each at the moment at which it got them.

Owns the comparison call by call, in which nothing is decided, so that differences do not feed on themselves; and the
one number that it calibrates. Whole runs are `parity.py`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import fmean

from tightrope.bench.recorded import SeenCall, Session
from tightrope.model.ids import CallId, ReplicaId, RunId
from tightrope.model.profile import Profile
from tightrope.sim.engine import FirstOut, LastOut, Request, SimEngine, Truth
from tightrope.sim.world import CardKind

SLOWNESS = (0.5, 2.0)
"""Beyond this a calibration would mean that the profiles are wrong."""
_HALVINGS = 16
_MAPE_TO_DEVIATION = math.sqrt(math.pi / 2)
"""Standard deviation of a normal error over the mean of its absolute value."""


@dataclass(frozen=True, slots=True)
class EnginePart:
    """The calls that a kind of replica really got, at the moments at which it got them; means, in ms.

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
    """Every call, given to a simulated engine at its moment, without noise; one given up live is given up there."""
    known = truths(found.profiles, slowness)
    by_replica: dict[ReplicaId, list[SeenCall]] = defaultdict(list)
    for call in found.calls:
        by_replica[call.replica].append(call)
    return {
        one.call.call: one
        for calls in by_replica.values()
        for one in _on_engine(calls, replace(known[calls[0].kind], noise=0.0))
    }


def _on_engine(calls: Sequence[SeenCall], truth: Truth) -> Iterator[Answered]:
    """The calls of one replica, in the order of their dispatch."""
    engine = SimEngine(truth, Random(0))
    moments = [(call.dispatched_s, call, True) for call in calls]
    moments += [(call.given_up_s, call, False) for call in calls if call.given_up_s is not None]
    happenings = []
    for at_s, call, is_begin in sorted(moments, key=lambda moment: moment[0]):
        happenings += engine.advance(at_s)
        if is_begin:
            engine.submit(Request(call.call, call.prompt_tokens, call.output_tokens), at_s)
        else:
            engine.cancel(call.call, at_s)
    while (next_s := engine.next_s()) < math.inf:
        happenings += engine.advance(next_s)
    first_s = {out.call: out.at_s for out in happenings if isinstance(out, FirstOut)}
    last_s = {out.call: out.at_s for out in happenings if isinstance(out, LastOut)}
    for call in calls:
        if call.call in last_s:
            began_s = first_s[call.call]
            yield Answered(call, began_s - call.dispatched_s, last_s[call.call] - began_s)


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
