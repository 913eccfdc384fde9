"""least-cost, the default provisioner: the cheapest fleet that bears what is forecast, corrected by what is seen.

Owns what must be borne, and when more is asked for: at once. How less is, is `letting_go.py`, the plan itself
`fleet_plan.py`, the forecast `forecast.py`. Its parts are those of InferLine (1812.01776, envelope), Mélange
(2404.14527, unlike cards by size of call) and SLO-feedback as in Autothrottle (2212.12180), put together here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from tightrope.model.ids import ModelName
from tightrope.policy.fleet_plan import FleetPlanned, Need, cheapest, need, price
from tightrope.policy.forecast import surprise_per_s
from tightrope.policy.kinds import kinds_of
from tightrope.policy.letting_go import ROOM, Evidence, Look, fewer, highest_per_s, other, risen
from tightrope.policy.provision import (
    Demanded,
    Group,
    Proposal,
    Provisioner,
    ScaleReason,
    Situation,
    Wanted,
    taken,
    without,
)
from tightrope.policy.spare_time import Claim, bettered, part_of_call, parts_of

NAME = "least-cost"

DEVIATIONS = 1.0
"""The forecast is taken so many standard deviations high: too few replicas cost more than too many."""
SURPRISE = 3.0
"""So many deviations of a Poisson stream make a burst."""
LOOK_EVERY = 3
"""Rounds from one look at the parts of the spare time to the next."""
DRAIN_WITHIN_S = 20.0
"""What waits already is to be gone in this time once replicas are there."""
PRESSURE_UP, PRESSURE_DOWN = 1.08, 0.995
PRESSURE_AT_MOST, PRESSURE_AT_LEAST = 2.0, 0.8
"""Where calls are predicted late although the plan was followed, it is too hopeful: demand counts for more from round
to round, and slowly for less again. It multiplies what the queueing model cannot know."""
CALM = 0.25
"""Part of the tolerated risk below which the pressure falls."""
SEEN_S = 30.0
"""Predictions of so many seconds make the risk: it says something of a fleet that has been complete for so long."""
REFUSALS = (
    ScaleReason.STARTING,
    ScaleReason.AT_MOST,
    ScaleReason.COOLDOWN,
    ScaleReason.NEEDED_AGAIN,
    ScaleReason.REPLAY,
)
AVOIDED_S = 300.0
"""Cards where a replica did not come up, or went, again and again, get no further one of the model for so long."""


def decide(situation: Situation) -> Proposal:
    """Ask for more at once and for fewer with care; see the module."""
    memory = dict(situation.memory)
    seeing = [_as_it_can_be(one, situation, memory) for one in situation.models if not one.is_blind]
    blind = [one for one in situation.models if one.is_blind]
    held, held_usd = taken(blind)  # those that nobody hears of keep what they have
    cards, usd = without(situation.cards, held), situation.settings.max_usd_per_h - held_usd
    now: list[Need] = []
    lately: list[Need] = []
    why: dict[ModelName, ScaleReason] = {}
    parts = _parts(seeing, situation, memory)
    for one in seeing:
        per_s, why[one.model] = _demand(one, situation, memory)
        own = _need(one, parts[one.model], per_s, situation)
        now.append(own)
        lately.append(replace(own, per_s=highest_per_s(one, per_s, situation, memory)))
    planned = cheapest(now, cards, usd)
    roomy = cheapest([replace(need, per_s=ROOM * need.per_s) for need in lately], cards, usd)
    wanted: list[Wanted] = []
    refused = [_hold(one, ScaleReason.BLIND, (("waiting", one.waiting),)) for one in blind]
    for one, own, peak in zip(seeing, now, lately, strict=True):
        look = Look(situation, one, parts[one.model], peak, _evidence(one, own, peak, planned))
        rise = risen(look, memory)
        change = (
            _more(one, own, planned.counts[one.model], why[one.model], look.evidence)
            or _at_risk(look, memory)
            or other(look, roomy.counts[one.model], memory)
            or fewer(look, roomy.share, rise)
        )
        for some in change:
            (refused if some.reason in REFUSALS else wanted).append(some)
    wanted.sort(key=lambda one: one.reason is not ScaleReason.FROM_ZERO)
    return Proposal(tuple(wanted), tuple(refused), memory)


LEAST_COST = Provisioner(NAME, decide)


def _as_it_can_be(one: Demanded, situation: Situation, memory: dict[str, float]) -> Demanded:
    """The model without more replicas on cards where some failed lately, unless there are no others."""
    groups: list[Group] = []
    for group in one.groups:
        key = f"{one.model}/{group.bounds.accelerator}/failed_at"
        if group.failing:
            memory[key] = situation.now_s
        if situation.now_s - memory.get(key, -math.inf) < AVOIDED_S:
            most = max(group.bounds.least, group.ready + group.starting)
            group = replace(group, bounds=replace(group.bounds, most=min(group.bounds.most, most)))
        groups.append(group)
    return replace(one, groups=tuple(groups)) if any(group.most for group in groups) else one


# --- demand ----------------------------------------------------------------------------------------------


def _demand(one: Demanded, situation: Situation, memory: dict[str, float]) -> tuple[float, ScaleReason]:
    """Calls per second to be ready for, and what it was that said so."""
    settings, now_s = situation.settings, situation.now_s
    ahead_s = settings.every_s + min((group.load_s for group in one.groups), default=0.0)
    expected = one.arrivals.forecast(now_s, ahead_s)
    high = expected.high_per_s(DEVIATIONS)
    ready = max(high, expected.per_s * one.arrivals.exceeded_by(settings.attain))
    found, reason = ready, ScaleReason.FORECAST
    burst = surprise_per_s(one.arrivals.envelope(now_s), high, SURPRISE)
    if burst > found:
        found, reason = burst, ScaleReason.BURST
    if one.idle_s >= settings.idle_after_s and not one.waiting:
        found = 0.0
    pressure = _pressure(one, situation, memory)
    found = max(pressure * found, one.floor_per_s)
    if one.waiting and not one.have:
        return max(found, one.waiting / DRAIN_WITHIN_S), ScaleReason.FROM_ZERO
    return found, reason


def _pressure(one: Demanded, situation: Situation, memory: dict[str, float]) -> float:
    key = f"{one.model}/pressure"
    value = memory.get(key, 1.0)
    if one.risk > situation.settings.risk and _is_seen(one, situation, memory):
        value = min(PRESSURE_AT_MOST, value * PRESSURE_UP)
    elif one.risk <= CALM * situation.settings.risk:
        value = max(PRESSURE_AT_LEAST, value * PRESSURE_DOWN)
    memory[key] = value
    return value


def _is_seen(one: Demanded, situation: Situation, memory: dict[str, float]) -> bool:
    """Whether what is known of the risk is of the fleet as it is, all of whose replicas are there."""
    key = f"{one.model}/incomplete_at"
    if not one.have or any(group.starting for group in one.groups):
        memory[key] = situation.now_s
    return situation.now_s - memory.get(key, -math.inf) >= SEEN_S


def _need(one: Demanded, part: float, per_s: float, situation: Situation) -> Need:
    settings = situation.settings
    kinds = kinds_of(one.past, [group.profile for group in one.groups], part)
    return need(one.model, one.groups, kinds, per_s, settings.attain, settings.headroom)


def _parts(
    models: Sequence[Demanded], situation: Situation, memory: dict[str, float]
) -> dict[ModelName, float]:
    """The part of its run's spare time that a call of each model is planned with, bettered by one step."""
    by_model = {one.model: one for one in models}
    claims = [
        Claim(one.model, one.calls_per_run, fmean(call.own_s for call in one.past))
        for one in models
        if one.past
    ]
    known = {
        claim.model: memory[f"{claim.model}/part"] for claim in claims if f"{claim.model}/part" in memory
    }
    turn = int(memory.get("turn", 0.0))
    memory["turn"] = float(turn + 1)
    is_looked_at = turn % LOOK_EVERY == 0

    def usd_per_h(claim: Claim, part: float) -> float:
        one = by_model[claim.model]
        per_s = max(one.arrivals.forecast(situation.now_s, 0.0).per_s, memory.get(f"{claim.model}/peak", 0.0))
        return price(_need(one, part, per_s, situation), situation.cards)

    parts = parts_of(claims, known)
    if is_looked_at:
        parts = bettered(claims, parts, turn // LOOK_EVERY, usd_per_h)
    memory.update({f"{model}/part": part for model, part in parts.items()})
    of_call = {claim.model: part_of_call(claim, parts) for claim in claims}
    return {one.model: of_call.get(one.model, 1.0) for one in models}


# --- more ------------------------------------------------------------------------------------------------


def _more(
    one: Demanded, own: Need, counts: tuple[int, ...], reason: ScaleReason, evidence: Evidence
) -> list[Wanted]:
    """What the plan has and the model has not, if what it has is too little; at most twice as many in one round."""
    coming = [group.ready + group.starting for group in one.groups]
    if any(coming) and own.borne_per_s(coming) >= own.per_s:
        return []
    found = []
    for group, count, there in zip(one.groups, counts, coming, strict=True):
        extra = min(count - there, max(1, sum(coming)))
        if extra > 0:
            found.append(Wanted(one.model, group.bounds.accelerator, group.have + extra, reason, evidence))
    return found


def _at_risk(look: Look, memory: dict[str, float]) -> list[Wanted]:
    """One more where calls are predicted late although the plan is there: of the kind that helps the most for its
    price, as a replay of the last minute tells."""
    one, settings = look.one, look.situation.settings
    if one.risk <= settings.risk or not look.replayed:
        return []
    if any(group.starting for group in one.groups):
        return [_hold(one, ScaleReason.STARTING, look.evidence)]
    is_recent = look.situation.now_s - one.raised_s < settings.cooldown_s
    if is_recent or not _is_seen(one, look.situation, memory):
        return [_hold(one, ScaleReason.COOLDOWN, look.evidence)]
    late = look.late_with()
    best: tuple[float, Group] | None = None
    for group in one.groups:
        if group.have >= group.most:
            continue
        gained = late - look.late_with({group.bounds.accelerator: 1})
        worth = gained / group.usd_per_h if group.usd_per_h > 0 else math.inf
        if gained > 0 and (best is None or worth > best[0]):
            best = (worth, group)
    if best is None:  # nothing that can be had would help
        return []
    group = best[1]
    evidence = (*look.evidence, ("late", round(late, 4)))
    return [Wanted(one.model, group.bounds.accelerator, group.have + 1, ScaleReason.RISK, evidence)]


# --- words -----------------------------------------------------------------------------------------------


def _hold(one: Demanded, reason: ScaleReason, evidence: Evidence) -> Wanted:
    group = one.groups[0]
    return Wanted(one.model, group.bounds.accelerator, group.have, reason, evidence)


def _evidence(one: Demanded, own: Need, peak: Need, planned: FleetPlanned) -> Evidence:
    counts = tuple(group.ready + group.starting for group in one.groups)
    numbers = {
        "demand": own.per_s,
        "peak": peak.per_s,
        "bears": own.borne_per_s(counts),
        "risk": one.risk,
        "over": one.over,
        "waiting": one.waiting,
        "share": planned.share,
    }
    return tuple((name, float(f"{value:.4g}")) for name, value in numbers.items())
