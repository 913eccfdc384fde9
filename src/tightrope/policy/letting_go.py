"""Letting go: which replicas of a model can be spared, and which would do the same for less.

Owns all that makes a fleet cheaper, and the care that goes with it: what was to be borne in the last while, a replay of
the last minute, and the memory of what came back soon after it had gone. What must be borne, and how a fleet grows, is
`least_cost.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tightrope.model.ids import AcceleratorName
from tightrope.policy.fleet_plan import Need
from tightrope.policy.forecast import BIN_S, LEVEL_GAIN
from tightrope.policy.provision import Demanded, PastCall, ScaleReason, Situation, Wanted
from tightrope.policy.replay import NO_CHANGE, late_share, machines_of

Evidence = tuple[tuple[str, float], ...]

REPLAYED_S = 60.0
"""What has come in this time is played again."""
WORTH_IT, ROOM = 0.15, 1.25
"""Part of a model's price that other cards must save before they are started in place of those that are there, and how
much more than the highest demand of late they must bear: else they would go again before those that they stand in for.
"""
RISEN_BEFORE = 0.5
"""Cards are exchanged when the highest demand is so much of `idle_after_s` old: not on the way up."""
AT_ONCE = 0.5
"""At most this part of a model's replicas goes in one round."""
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


@dataclass(frozen=True, slots=True)
class Look:
    """One model in one round: what is shown of it, the part of its run's spare time that a call is planned with, the
    most that was to be borne in the last while, and the numbers that are said with every decision.
    """

    situation: Situation
    one: Demanded
    part: float
    peak: Need
    evidence: Evidence

    @property
    def replayed(self) -> tuple[PastCall, ...]:
        """The calls of the last minute."""
        return tuple(call for call in self.one.past if call.at_s > self.situation.now_s - REPLAYED_S)

    def late_with(self, changes: Mapping[AcceleratorName, int] = NO_CHANGE) -> float:
        """The share of them that would have been late with so many replicas more, or fewer, on these cards."""
        return late_share(self.replayed, self.part, machines_of(self.one.groups, changes))

    def worse_with(self, changes: Mapping[AcceleratorName, int]) -> float:
        """How much larger that share is than without these changes."""
        return self.late_with(changes) - self.late_with()


def other(look: Look, counts: tuple[int, ...], memory: dict[str, float]) -> list[Wanted]:
    """Cheaper cards first, to come to these counts; the dearer ones go once they are up. Not while demand rises."""
    one, settings, now_s = look.one, look.situation.settings, look.situation.now_s
    surplus = [group.have > count for group, count in zip(one.groups, counts, strict=True)]
    missing = [(group, count) for group, count in zip(one.groups, counts, strict=True) if count > group.have]
    if not missing or not any(surplus) or any(group.starting for group in one.groups):
        return []
    usd = sum(group.have * group.usd_per_h for group in one.groups)
    then = sum(count * group.usd_per_h for group, count in zip(one.groups, counts, strict=True))
    if then > (1 - WORTH_IT) * usd:
        return []
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
    if look.worse_with(changes) > settings.risk / 2:
        return []
    memory[key] = now_s
    evidence = (*look.evidence, ("saves", round(usd - then, 4)))
    return [
        Wanted(one.model, group.bounds.accelerator, count, ScaleReason.CHEAPER, evidence)
        for group, count in missing
    ]


def fewer(look: Look, share: float, rise: Rise) -> list[Wanted]:
    """Without the dearest replicas that can be spared: the rest bears this share of all that was to be borne in the
    last while."""
    one, peak, settings = look.one, look.peak, look.situation.settings
    for group in one.groups:
        if group.failing and group.have > group.bounds.least:  # it has its card, and bears nothing
            return [
                Wanted(
                    one.model, group.bounds.accelerator, group.have - 1, ScaleReason.UNNEEDED, look.evidence
                )
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
    is_relieved = rise.was_exchange and one.raised_s > one.lowered_s  # by those that were started to that end
    if not is_relieved and look.situation.now_s - max(one.raised_s, one.lowered_s) < settings.cooldown_s:
        return _without(look, spared, ScaleReason.COOLDOWN)
    if not is_idle and not rise.was_exchange and rise.needed_per_s > least_per_s:
        wished, spared = spared, _spared(one, peak, rise.needed_per_s)
        if not spared:
            return _without(look, wished, ScaleReason.NEEDED_AGAIN)
    changes = {group.bounds.accelerator: -count for group, count in zip(one.groups, spared, strict=True)}
    worse = 0.0 if is_idle else look.worse_with(changes)
    if worse > settings.risk / 2:
        return _without(look, spared, ScaleReason.REPLAY, ("worse", round(worse, 4)))
    reason = ScaleReason.CHEAPER if rise.was_exchange else ScaleReason.UNNEEDED
    return _without(look, spared, ScaleReason.IDLE if is_idle else reason)


def _without(
    look: Look, spared: tuple[int, ...], reason: ScaleReason, *more: tuple[str, float]
) -> list[Wanted]:
    return [
        Wanted(look.one.model, group.bounds.accelerator, group.have - count, reason, (*look.evidence, *more))
        for group, count in zip(look.one.groups, spared, strict=True)
        if count
    ]


def _spared(one: Demanded, peak: Need, least_per_s: float) -> tuple[int, ...]:
    """How many of each group may go in one round, the dearest first, if the others bear so much or there are more than
    may be; empty if none may."""
    counts = [group.ready for group in one.groups]
    dearest = sorted(range(len(counts)), key=lambda at: -one.groups[at].usd_per_h)
    for _ in range(max(1, int(AT_ONCE * sum(counts)))):
        for at in dearest:
            if counts[at] <= one.groups[at].bounds.least:
                continue
            is_beyond = counts[at] > one.groups[at].bounds.most
            counts[at] -= 1
            if is_beyond or least_per_s <= 0 or peak.borne_per_s(counts) >= least_per_s:
                break
            counts[at] += 1
        else:
            break
    spared = tuple(group.ready - count for group, count in zip(one.groups, counts, strict=True))
    return spared if any(spared) else ()


class Rise(NamedTuple):
    """What is remembered of the latest starts. `was_exchange`: the very last was for other cards. `needed_per_s`: what
    must be borne where lately more was started after some had gone, and the demand is that with which they went.
    """

    was_exchange: bool
    needed_per_s: float


def risen(look: Look, memory: dict[str, float]) -> Rise:
    """Chance at the edge between two plans would have replicas come and go for ever."""
    one, peak_per_s = look.one, look.peak.per_s
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
    memory[bore_key] = look.peak.borne_per_s([group.ready + group.starting for group in one.groups])
    if one.lowered_s > one.raised_s:
        memory[low_key] = peak_per_s
    low, high = memory.get(from_key, 0.0), memory.get(for_key, 0.0)
    was_burst = _is_other(high, low) and _is_other(high, peak_per_s)
    is_lately = look.situation.now_s - memory.get(again_key, -math.inf) < STEADY_S
    is_again = is_lately and not was_burst and not _is_other(low, peak_per_s)
    return Rise(was_exchange, memory.get(short_key, 0.0) if is_again else 0.0)


def _is_other(high_per_s: float, low_per_s: float) -> bool:
    """Whether the second is a demand clearly lower than the first, which chance does not explain."""
    deviation = math.sqrt(high_per_s * LEVEL_GAIN / BIN_S)  # of what a forecast remembers of a Poisson stream
    return high_per_s - low_per_s > max(OTHER * high_per_s, OTHER_BY * deviation)


def highest_per_s(one: Demanded, per_s: float, situation: Situation, memory: dict[str, float]) -> float:
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
