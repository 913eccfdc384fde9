"""hexgen-flow: a fast card for this call, weighed against the work that waits there.

After HexGen-Flow, also HexGen-Text2SQL (Peng et al., 2505.05286, and its simulator at commit 396a3ba): a call
goes to the instance with the best mixture of suitability and workload, where calls are served by urgency.
Owns that mixture. Budgets in proportion to expected time, which HexGen-Flow gives each stage, are `slack.py`.
"""

from __future__ import annotations

import heapq
import math
from random import Random
from typing import NamedTuple

from tightrope.model.fleet import Job, PoolView, ReplicaView, Routed
from tightrope.policy.estimate import estimate, fits_at_all, has_room
from tightrope.policy.route import MOST_OFFERS, Candidate, Choose, Reason, Router, routed

NAME = "hexgen-flow"
ALPHA = 0.1
"""Weight of suitability against workload where nobody tuned it: the best of those below on tuning seeds of `mixed`."""
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""What the authors' own tuning tries before a workload is served; each is a variant here."""


def hexgen_flow(alpha: float = ALPHA, name: str = NAME) -> Choose:
    """Largest alpha * suitability - (1 - alpha) * workload of all replicas that could ever hold the call.

    Suitability is the time of the call on the fastest card over its time on this one. Workload is the work
    not yet done of all calls there, in that card's own milliseconds, over the same of the fastest card.
    """

    def choose(job: Job, pool: PoolView, now_s: float, _rng: Random) -> Routed | None:
        able = [view for view in pool.replicas if fits_at_all(job, view.profile)]
        if not able:
            return None
        weighed = [_weigh(view, job, now_s) for view in able]
        base = min(weighed, key=lambda one: (one.alone_ms, one.view.id))
        scored = [(-_priority(one, base, alpha), one) for one in weighed]
        best = heapq.nsmallest(
            MOST_OFFERS, scored, key=lambda pair: (pair[0], len(pair[1].view.held), pair[1].view.id)
        )
        chosen = best[0][1]
        found = [
            Candidate(one.view, estimate(job, one.view, now_s), score, _loss(one, chosen))
            for score, one in best
        ]
        return routed(name, Reason.BEST_BALANCE, job, now_s, found)

    return choose


HEXGEN_FLOW = Router(NAME, hexgen_flow(), has_room, "latest-finish", is_late_binding=True)

HEXGEN_FLOW_VARIANTS = tuple(
    Router(name, hexgen_flow(alpha, name), has_room, "latest-finish", is_late_binding=True)
    for alpha in ALPHAS
    for name in (f"{NAME}/{alpha}",)
)


class _Weighed(NamedTuple):
    """A replica, the time of the call alone on its card, and the work it has before it, in milliseconds."""

    view: ReplicaView
    alone_ms: float
    work_ms: float


def _weigh(view: ReplicaView, job: Job, now_s: float) -> _Weighed:
    return _Weighed(view, view.profile.solo_ms(job.prompt_tokens, job.output_tokens), work_ms(view, now_s))


def work_ms(view: ReplicaView, now_s: float) -> float:
    """What the calls there would still need one after the other, those placed in thought included."""
    return sum(
        max(
            0.0,
            view.profile.solo_ms(call.prompt_tokens, call.output_tokens) - (now_s - call.dispatched_s) * 1000,
        )
        for call in view.held
    )


def _priority(one: _Weighed, base: _Weighed, alpha: float) -> float:
    """The larger the better; minus infinity beside a fastest card that is idle."""
    suitability = base.alone_ms / one.alone_ms if one.alone_ms > 0 else 1.0
    if alpha >= 1 or one.work_ms == 0:
        return alpha * suitability
    workload = one.work_ms / base.work_ms if base.work_ms > 0 else math.inf
    return alpha * suitability - (1 - alpha) * workload


def _loss(one: _Weighed, chosen: _Weighed) -> str:
    slower_ms, more_ms = one.alone_ms - chosen.alone_ms, one.work_ms - chosen.work_ms
    if more_ms >= 0.5:
        return f"has {more_ms:.0f} ms more work before it"
    if slower_ms >= 0.5:
        return f"slower by {slower_ms:.0f} ms for this call"
    return "no better"
