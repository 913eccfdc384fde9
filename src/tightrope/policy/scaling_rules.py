"""Provisioners of others, as rules: static, ray-serve, queue-length, forecast-throughput.

Owns how each turns what is seen of a model into one number of replicas. None of them knows unlike cards, so the
number is laid out over them by price for work, the cheapest first; nor do they know workflows or budgets of calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean

from tightrope.policy.provision import Demanded, Group, Proposal, Provisioner, ScaleReason, Situation, Wanted
from tightrope.policy.utilisation import work_ms

UP_AFTER_S, DOWN_AFTER_S = 30.0, 600.0
"""Ray Serve's upscale_delay_s and downscale_delay_s."""
ONGOING = 2.0
"""Ray Serve's target_ongoing_requests."""
STABLE_S, TOLERANCE = 300.0, 0.1
"""HPA: scale down to the highest wish of this time; wishes within a tenth of what is there are none."""
WAITING = 1.0
"""Waiting calls for each replica that the queue-length rule aims at."""
ADJUST_S = 60.0
"""How often the forecasting planner decides."""
BUSY = 0.8
"""Part of the profiled throughput that it plans with."""

Memory = dict[str, float]


def _static(situation: Situation) -> Proposal:
    return Proposal(memory=situation.memory)


def _ray_serve(situation: Situation) -> Proposal:
    """Replicas = ongoing requests (those that wait included) / target, once that has held for the delay.

    `_calculate_desired_num_replicas` and `replica_queue_length_autoscaling_policy` of Ray Serve: from zero at once.
    """

    def count(one: Demanded, memory: Memory) -> int:
        ongoing = one.ongoing + one.waiting
        desired = math.ceil(ongoing / (situation.settings.target or ONGOING))
        if one.have == 0:
            return min(1, desired)
        return _delayed(one, desired, situation, memory, UP_AFTER_S, DOWN_AFTER_S)

    return _each(situation, count)


def _queue_length(situation: Situation) -> Proposal:
    """HPA on the length of the line: replicas = have x (waiting for each / target), the highest of the last minutes."""

    def count(one: Demanded, memory: Memory) -> int:
        target = situation.settings.target or WAITING
        if one.have == 0:
            return int(one.waiting > 0)
        ratio = one.waiting / one.have / target
        wish = one.have if abs(ratio - 1) <= TOLERANCE else math.ceil(one.have * ratio)
        if one.ongoing:
            wish = max(1, wish)
        return _stable(one, wish, situation, memory, STABLE_S)

    return _each(situation, count)


def _forecast_throughput(situation: Situation) -> Proposal:
    """A planner that forecasts the load of its next interval and divides it by the profiled throughput, as the
    throughput mode of Dynamo's planner does; every minute."""

    def count(one: Demanded, memory: Memory) -> int:
        key = f"{one.model}/decided"
        if one.have == 0 and one.waiting:
            return 1
        if situation.now_s - memory.get(key, -math.inf) < ADJUST_S:
            return one.have
        memory[key] = situation.now_s
        per_s = one.arrivals.forecast(situation.now_s, ADJUST_S).per_s
        best = _by_price(one)[0]
        busy = situation.settings.target or BUSY
        each_per_s = busy * 1000 / work_ms(best.profile, *_mean_call(one))
        return math.ceil(per_s / each_per_s - 1e-9)

    return _each(situation, count)


STATIC = Provisioner("static", _static)
RULES = (
    STATIC,
    Provisioner("ray-serve", _ray_serve),
    Provisioner("queue-length", _queue_length),
    Provisioner("forecast-throughput", _forecast_throughput),
)


# --- from one number to replicas -------------------------------------------------------------------------


def _each(situation: Situation, count: Callable[[Demanded, Memory], int]) -> Proposal:
    memory = dict(situation.memory)
    wanted: list[Wanted] = []
    for one in situation.models:
        wanted += _laid_out(one, count(one, memory))
    return Proposal(tuple(wanted), memory=memory)


def _laid_out(one: Demanded, count: int) -> list[Wanted]:
    """So many replicas, each on the cheapest kind of card with room: what is there stays where it is."""
    change = count - one.have
    found = []
    for group in _by_price(one) if change > 0 else reversed(_by_price(one)):
        room = group.most - group.have if change > 0 else group.bounds.least - group.have
        step = min(change, room) if change > 0 else max(change, room)
        if step:
            evidence = (
                ("wants", float(count)),
                ("ongoing", float(one.ongoing)),
                ("waiting", float(one.waiting)),
            )
            name = group.bounds.accelerator
            found.append(Wanted(one.model, name, group.have + step, ScaleReason.TARGET, evidence))
            change -= step
    return found


def _by_price(one: Demanded) -> list[Group]:
    """The groups by what a mean call costs on them."""
    mean = _mean_call(one)
    return sorted(one.groups, key=lambda group: group.usd_per_h * work_ms(group.profile, *mean))


def _mean_call(one: Demanded) -> tuple[float, float]:
    """Tokens of prompt and answer; a usual call's until one was seen."""
    if not one.past:
        return 1024.0, 128.0
    return fmean(call.prompt_tokens for call in one.past), fmean(call.output_tokens for call in one.past)


def _delayed(
    one: Demanded, desired: int, situation: Situation, memory: Memory, up_after_s: float, down_after_s: float
) -> int:
    """The desired number once it has been on the same side of what is there for long enough."""
    key = f"{one.model}/since"
    side_key = f"{one.model}/side"
    side = (desired > one.have) - (desired < one.have)
    if side != memory.get(side_key, 0.0):
        memory[key], memory[side_key] = situation.now_s, float(side)
    if side == 0:
        return one.have
    after_s = up_after_s if side > 0 else down_after_s
    if situation.now_s - memory[key] < after_s:
        return one.have
    memory[side_key] = 0.0
    return desired


def _stable(one: Demanded, wish: int, situation: Situation, memory: Memory, stable_s: float) -> int:
    """Up at once, down to the highest wish since it was last reached."""
    key, at_key = f"{one.model}/highest", f"{one.model}/highest_at"
    if wish >= memory.get(key, 0.0) or situation.now_s - memory.get(at_key, -math.inf) >= stable_s:
        memory[key], memory[at_key] = float(wish), situation.now_s
    return max(wish, int(memory[key]))
