"""Utilisation of pools: every call that is offered to a pool, counted once.

Owns when work is counted and on which machines. What it amounts to is `policy/utilisation.py`. Costs nothing for
routers that do not ask.
"""

from __future__ import annotations

from collections import Counter

from tightrope.kernel.state import Call, Pool, State
from tightrope.policy.utilisation import pool_work_ms


def note_offered(state: State, call: Call, now_s: float) -> None:
    """The call has come into the line of its pool."""
    if not state.router.has_utilisation or call.job is None or call.model is None:
        return
    pool = state.pool(call.model)
    machines = Counter(view.profile for view in pool.roster)
    pool.offered.note(pool_work_ms(machines, call.job.prompt_tokens, call.job.output_tokens), now_s)


def utilisation(state: State, pool: Pool, now_s: float) -> float:
    """Work offered to the pool lately over what it can do; 0 when nobody asks."""
    return pool.offered.utilisation(now_s) if state.router.has_utilisation else 0.0
