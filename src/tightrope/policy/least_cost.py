"""least-cost, the default provisioner: the cheapest fleet that bears what is forecast, corrected by what is seen.

Owns when a plan is followed: at once upward, after a while and a replay downward. The plan itself is
`fleet_plan.py`, the forecast `forecast.py`. Its parts are those of InferLine (1812.01776, envelope), Mélange
(2404.14527, unlike cards by size of call) and SLO-feedback as in Autothrottle (2212.12180), put together here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from tightrope.model.ids import AcceleratorName, ModelName
from tightrope.policy.fleet_plan import FleetPlanned, Need, cheapest, need, price
from tightrope.policy.forecast import BIN_S, LEVEL_GAIN, surprise_per_s
from tightrope.policy.kinds import kinds_of
from tightrope.policy.provision import (
    Demanded,
    Group,
    PastCall,
    Proposal,
    Provisioner,
    ScaleReason,
    Situation,
    Wanted,
    taken,
    without,
)
from tightrope.policy.replay import late_share, machines_of
from tightrope.policy.spare_time import Claim, bettered, part_of_call, parts_of

NAME = "least-cost"

Evidence = tuple[tuple[str, float], ...]

DEVIATIONS = 1.0
"""The forecast is taken so many standard deviations high: too few replicas cost more than too many."""
SURPRISE = 3.0
"""So many deviations of a Poisson stream make a burst."""
LOOK_EVERY = 3
"""Rounds from one look at the parts of the spare time to the next."""
REPLAYED_S = 60.0
"""What has come in this time is played again."""
DRAIN_WITHIN_S = 20.0
"""What waits already is to be gone in this time once replicas are there."""
PRESSURE_UP, PRESSURE_DOWN = 1.08, 0.995
PRESSURE_AT_MOST, PRESSURE_AT_LEAST = 2.0, 0.8
"""Where calls are predicted late although the plan was followed, it is too hopeful: demand counts for more from round
to round, and slowly for less again. It multiplies what the queueing model cannot know."""
CALM = 0.25
"""Part of the tolerated risk below which the pressure falls."""
WORTH_IT, ROOM = 0.15, 1.25
"""Part of a model's price that other cards must save before they are started in place of those that are there, and how
much more than the highest demand of late they must bear: else they would go again before those that they stand in for.
"""
SEEN_S = 30.0
"""Predictions of so many seconds make the risk: it says something of a fleet that has been complete for so long."""
RISEN_BEFORE = 0.5
"""Cards are exchanged when the highest demand is so much of `idle_after_s` old: not on the way up."""
AT_ONCE = 0.5
"""At most this part of a model's replicas goes in one round."""
REFUSALS = (
    ScaleReason.STARTING,
    ScaleReason.AT_MOST,
    ScaleReason.COOLDOWN,
    ScaleReason.NEEDED_AGAIN,
    ScaleReason.REPLAY,
)
AVOIDED_S = 300.0
"""Cards where a replica did not come up, or went, again and again, get no further one of the model for so long."""
STEADY_S = 600.0
"""For so long after more was started none goes where some had gone before."""
AMPLE = 2.0
"""Unless the rest bears so many times what was needed when it was started: what replicas bear is estimated anew with
every call that comes, and chance is in that too."""
OTHER, OTHER_BY = 1 / 3, 4.0
"""Or it was for another demand: one that had risen, or has fallen, by this part of the higher one, and by so many
deviations of chance."""
FADE = 0.9
"""What is left, a round later, of a demand that has not been seen for long enough."""


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
        lately.append(replace(own, per_s=_peak(one, per_s, memory, situation)))
    planned = cheapest(now, cards, usd)
    roomy = cheapest([replace(need, per_s=ROOM * need.per_s) for need in lately], cards, usd)
    wanted: list[Wanted] = []
    refused = [_hold(one, ScaleReason.BLIND, (("waiting", one.waiting),)) for one in blind]
    for one, own, peak in zip(seeing, now, lately, strict=True):
        evidence = _evidence(one, own, peak, planned)
        rise = _rise(one, peak, situation, memory)
        change = (
            _more(one, own, planned.counts[one.model], why[one.model], evidence)
            or _at_risk(one, parts[one.model], situation, memory, evidence)
            or _other(one, parts[one.model], roomy.counts[one.model], situation, memory, evidence)
            or _fewer(one, parts[one.model], peak, roomy.share, situation, evidence, rise)
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
        wants = _need(one, part, per_s, situation)
        return price(wants, situation.cards)

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


def _at_risk(
    one: Demanded, part: float, situation: Situation, memory: dict[str, float], evidence: Evidence
) -> list[Wanted]:
    """One more where calls are predicted late although the plan is there: of the kind that helps the most for its
    price, as a replay of the last minute tells."""
    past = _replayed(one, situation)
    if one.risk <= situation.settings.risk or not past:
        return []
    if any(group.starting for group in one.groups):
        return [_hold(one, ScaleReason.STARTING, evidence)]
    is_recent = situation.now_s - one.raised_s < situation.settings.cooldown_s
    if is_recent or not _is_seen(one, situation, memory):
        return [_hold(one, ScaleReason.COOLDOWN, evidence)]
    late = late_share(past, part, machines_of(one.groups))
    best: tuple[float, Group] | None = None
    for group in one.groups:
        if group.have >= group.most:
            continue
        gained = late - late_share(past, part, machines_of(one.groups, {group.bounds.accelerator: 1}))
        worth = gained / group.usd_per_h if group.usd_per_h > 0 else math.inf
        if gained > 0 and (best is None or worth > best[0]):
            best = (worth, group)
    if best is None:  # nothing that can be had would help
        return []
    group = best[1]
    evidence = (*evidence, ("late", round(late, 4)))
    return [Wanted(one.model, group.bounds.accelerator, group.have + 1, ScaleReason.RISK, evidence)]


def _replayed(one: Demanded, situation: Situation) -> tuple[PastCall, ...]:
    return tuple(call for call in one.past if call.at_s > situation.now_s - REPLAYED_S)


# --- other, and fewer ------------------------------------------------------------------------------------


def _other(
    one: Demanded,
    part: float,
    counts: tuple[int, ...],
    situation: Situation,
    memory: dict[str, float],
    evidence: Evidence,
) -> list[Wanted]:
    """Cheaper cards first; the dearer ones go once these are up. Not while the demand still rises."""
    surplus = [group.have > count for group, count in zip(one.groups, counts, strict=True)]
    missing = [(group, count) for group, count in zip(one.groups, counts, strict=True) if count > group.have]
    if not missing or not any(surplus) or any(group.starting for group in one.groups):
        return []
    usd = sum(group.have * group.usd_per_h for group in one.groups)
    then = sum(count * group.usd_per_h for group, count in zip(one.groups, counts, strict=True))
    if then > (1 - WORTH_IT) * usd:
        return []
    settings, now_s = situation.settings, situation.now_s
    key = f"{one.model}/exchanged_at"
    if now_s - memory.get(key, -math.inf) < settings.idle_after_s:
        return []
    if now_s - memory.get(f"{one.model}/peak_at", -math.inf) < RISEN_BEFORE * settings.idle_after_s:
        return []
    if now_s - max(one.raised_s, one.lowered_s) < settings.cooldown_s:
        return []
    changes = {
        group.bounds.accelerator: count - group.ready for group, count in zip(one.groups, counts, strict=True)
    }
    if _worse(one, part, situation, changes) > settings.risk / 2:
        return []
    memory[key] = now_s
    evidence = (*evidence, ("saves", round(usd - then, 4)))
    return [
        Wanted(one.model, group.bounds.accelerator, count, ScaleReason.CHEAPER, evidence)
        for group, count in missing
    ]


def _worse(one: Demanded, part: float, situation: Situation, changes: Mapping[AcceleratorName, int]) -> float:
    """How many more of the last minute's calls, as a share, would have been late with these changes."""
    past = _replayed(one, situation)
    late, then = (late_share(past, part, machines_of(one.groups, change)) for change in ({}, changes))
    return then - late


def _fewer(
    one: Demanded,
    part: float,
    peak: Need,
    share: float,
    situation: Situation,
    evidence: Evidence,
    rise: _Rise,
) -> list[Wanted]:
    """Without the dearest replicas that can be spared: the rest bears this share of all that was to be borne in the
    last while."""
    settings = situation.settings
    for group in one.groups:
        if group.failing and group.have > group.bounds.least:  # it has its card, and bears nothing
            return [
                Wanted(one.model, group.bounds.accelerator, group.have - 1, ScaleReason.UNNEEDED, evidence)
            ]
    if any(group.starting for group in one.groups):
        return []
    is_idle = peak.per_s <= 0
    if is_idle and one.idle_s < settings.idle_after_s:
        return []
    least_per_s = 0.0 if is_idle else share * peak.per_s
    spared = _spared(one, peak, least_per_s)
    if not spared:
        return []

    def less(reason: ScaleReason, *more: tuple[str, float]) -> list[Wanted]:
        return [
            Wanted(one.model, group.bounds.accelerator, group.have - count, reason, (*evidence, *more))
            for group, count in zip(one.groups, spared, strict=True)
            if count
        ]

    is_relieved = rise.was_exchange and one.raised_s > one.lowered_s  # by those that were started to that end
    if not is_relieved and situation.now_s - max(one.raised_s, one.lowered_s) < settings.cooldown_s:
        return less(ScaleReason.COOLDOWN)
    if not is_idle and not rise.was_exchange and rise.needed_per_s > least_per_s:
        before, spared = spared, _spared(one, peak, rise.needed_per_s)
        if not spared:
            spared = before
            return less(ScaleReason.NEEDED_AGAIN)
    changes = {group.bounds.accelerator: -count for group, count in zip(one.groups, spared, strict=True)}
    worse = 0.0 if is_idle else _worse(one, part, situation, changes)
    if worse > settings.risk / 2:
        return less(ScaleReason.REPLAY, ("worse", round(worse, 4)))
    reason = ScaleReason.CHEAPER if rise.was_exchange else ScaleReason.UNNEEDED
    return less(ScaleReason.IDLE if is_idle else reason)


def _spared(one: Demanded, peak: Need, least_per_s: float) -> tuple[int, ...]:
    """How many of each group may go in one round, the dearest first, if the others bear so much; empty if none may."""
    counts = [group.ready for group in one.groups]
    dearest = sorted(range(len(counts)), key=lambda at: -one.groups[at].usd_per_h)
    for _ in range(max(1, int(AT_ONCE * sum(counts)))):
        for at in dearest:
            if counts[at] <= one.groups[at].bounds.least:
                continue
            counts[at] -= 1
            if least_per_s <= 0 or peak.borne_per_s(counts) >= least_per_s:
                break
            counts[at] += 1
        else:
            break
    spared = tuple(group.ready - count for group, count in zip(one.groups, counts, strict=True))
    return spared if any(spared) else ()


class _Rise(NamedTuple):
    """What is remembered of the latest starts. `was_exchange`: the very last was for other cards. `needed_per_s`: what
    must be borne where lately more was started after some had gone, and the demand is that with which they went.
    """

    was_exchange: bool
    needed_per_s: float


def _rise(one: Demanded, peak: Need, situation: Situation, memory: dict[str, float]) -> _Rise:
    """Chance at the edge between two plans would have replicas come and go for ever."""
    peak_per_s = peak.per_s
    names = ("lowered_for", "raised_at", "raised_for", "again_at", "again_from", "bore", "short")
    low_key, at_key, for_key, again_key, from_key, bore_key, short_key = (
        f"{one.model}/{name}" for name in names
    )
    was_exchange = one.raised_s == memory.get(f"{one.model}/exchanged_at")
    earlier_s = memory.get(at_key, -math.inf)
    if one.raised_s > earlier_s and not was_exchange:
        if one.lowered_s > earlier_s:
            memory[again_key], memory[from_key] = one.raised_s, memory.get(low_key, 0.0)
        memory[at_key], memory[for_key] = one.raised_s, peak_per_s
        memory[short_key] = AMPLE * max(peak_per_s, memory.get(bore_key, 0.0))
    memory[bore_key] = peak.borne_per_s([group.ready + group.starting for group in one.groups])
    if one.lowered_s > one.raised_s:
        memory[low_key] = peak_per_s
    low, high = memory.get(from_key, 0.0), memory.get(for_key, 0.0)
    was_burst = _is_other(high, low) and _is_other(high, peak_per_s)
    is_lately = situation.now_s - memory.get(again_key, -math.inf) < STEADY_S
    is_again = is_lately and not was_burst and not _is_other(low, peak_per_s)
    return _Rise(was_exchange, memory.get(short_key, 0.0) if is_again else 0.0)


def _is_other(high_per_s: float, low_per_s: float) -> bool:
    """Whether the second is a demand clearly lower than the first, which chance does not explain."""
    deviation = math.sqrt(high_per_s * LEVEL_GAIN / BIN_S)  # of what a forecast remembers of a Poisson stream
    return high_per_s - low_per_s > max(OTHER * high_per_s, OTHER_BY * deviation)


def _peak(one: Demanded, per_s: float, memory: dict[str, float], situation: Situation) -> float:
    """The highest demand of the last `idle_after_s`; what was higher before that fades from round to round, and is over
    at once where nothing has come for so long."""
    key, at_key = f"{one.model}/peak", f"{one.model}/peak_at"
    peak, at_s = memory.get(key, 0.0), memory.get(at_key, -math.inf)
    if per_s >= peak:
        peak, at_s = per_s, situation.now_s
    elif situation.now_s - at_s > situation.settings.idle_after_s:
        peak = max(per_s, FADE * peak)
        if per_s <= 0 or peak < 1 / situation.settings.idle_after_s:
            peak = per_s
    memory[key], memory[at_key] = peak, at_s
    return peak


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
