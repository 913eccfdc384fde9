"""The last minute, played again on another fleet through the router's own estimator.

Owns the question how many calls would have been late with one replica more, or less. It is a sketch: each call goes
where it is expected to end first, and ends when it was expected to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from tightrope.model.fleet import HeldCall, Job, ReplicaView
from tightrope.model.ids import AcceleratorName, CallId, ModelName, ReplicaId
from tightrope.model.profile import Profile
from tightrope.policy.estimate import estimate, fits_at_all
from tightrope.policy.provision import Group, PastCall

NO_CHANGE: Mapping[AcceleratorName, int] = MappingProxyType({})
MOST_CALLS = 60
"""The latest calls of the minute that are played: the answer has to come within milliseconds."""


def late_share(past: Sequence[PastCall], part: float, machines: Sequence[Profile]) -> float:
    """The share of these calls that would have been late on these machines, idle at first; 0 of none.

    Each is given `part` of its run's spare time.
    """
    played = past[-MOST_CALLS:]
    if not played or not machines:
        return float(bool(played))
    model = ModelName("replayed")
    views = [
        ReplicaView(ReplicaId(f"{at:04d}"), model, AcceleratorName(""), profile)
        for at, profile in enumerate(machines)
    ]
    ends: list[dict[CallId, tuple[float, float]]] = [{} for _ in machines]
    late = 0
    for number, call in enumerate(played):
        now_s = call.at_s
        for at, view in enumerate(views):
            views[at] = _until(view, ends[at], now_s)
        job = _job(CallId(f"{number:04d}"), call, part)
        found = [
            (estimate(job, view, now_s), at)
            for at, view in enumerate(views)
            if fits_at_all(job, view.profile)
        ]
        if not found:
            late += 1
            continue
        best, at = min(found, key=lambda pair: (pair[0].crit, pair[1]))
        late += best.crit > 1000 * job.budget_s
        first_s = now_s + best.ttft / 1000
        ends[at][job.call] = (first_s, first_s + best.decode / 1000)
        views[at] = replace(views[at], held=(*views[at].held, _held(job, now_s)))
    return late / len(played)


def machines_of(groups: Iterable[Group], change: Mapping[AcceleratorName, int] = NO_CHANGE) -> list[Profile]:
    """The machines that are there or on the way, with so many more (or fewer) on these kinds of cards."""
    found: list[Profile] = []
    for group in groups:
        count = group.ready + group.starting + change.get(group.bounds.accelerator, 0)
        found += [group.profile] * max(0, count)
    return found


def _until(view: ReplicaView, ends: dict[CallId, tuple[float, float]], now_s: float) -> ReplicaView:
    """The replica as it is at `now_s`, with what has ended gone and what has begun to answer answering."""
    held = []
    has_changed = False
    for call in view.held:
        first_s, end_s = ends[call.call]
        if end_s <= now_s:
            has_changed = True
            continue
        if call.first_token_s is None and first_s <= now_s:
            call, has_changed = replace(call, first_token_s=first_s), True
        held.append(call)
    return replace(view, held=tuple(held)) if has_changed else view


def _job(name: CallId, call: PastCall, part: float) -> Job:
    budget_s = call.budget_s(part)
    return Job(
        call=name,
        model=ModelName("replayed"),
        prompt_tokens=call.prompt_tokens,
        output_tokens=call.output_tokens,
        output_high=max(1, round(call.output_tokens)),
        ready_s=call.at_s,
        due_s=call.at_s + budget_s,
        budget_s=budget_s,
        is_terminal=call.is_terminal,
    )


def _held(job: Job, now_s: float) -> HeldCall:
    return HeldCall(job.call, job.prompt_tokens, job.output_tokens, now_s, job.due_s, job.is_terminal)
