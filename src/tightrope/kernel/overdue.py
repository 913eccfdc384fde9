"""First tokens that are heard of late: the line goes on as if the prompt were done when it should long be.

Owns the wake-up for it. A late-binding router gives an engine its next call when there is room; where the word of it is
slow to arrive, or lost, the engine would idle meanwhile.
"""

from __future__ import annotations

from tightrope.kernel.state import CallPhase, Pool, State
from tightrope.model.ids import CallId
from tightrope.model.messages import Command, Wake, WakeAt, WakeKind
from tightrope.policy.load import next_overdue

MOST_REPLICAS = 64
"""In a larger pool, as in one with a long line, there is always another event soon."""


def await_first_token(state: State, pool: Pool, now_s: float) -> list[Command]:
    """Ask to be woken when the next first token of the pool is overdue, while calls wait for room."""
    if not pool.line or not state.router.is_late_binding:
        return []
    if pool.is_long or len(pool.roster) > MOST_REPLICAS:
        return []
    found = [
        moment for view in pool.roster if (moment := next_overdue(view.plain or view, now_s)) is not None
    ]
    if not found:
        return []
    at_s, call = min(found)
    if call == pool.awaited:
        return []
    pool.awaited = call
    return [WakeAt(at_s, Wake(WakeKind.CALL_OVERDUE, call))]


def first_token_is_overdue(state: State, call_id: CallId) -> None:
    """If it has not come, its replica may have room for who waits."""
    call = state.calls.get(call_id)
    if call is None or call.phase is not CallPhase.DISPATCHED or call.model is None or call.replica is None:
        return
    if not state.pool(call.model).is_long:  # it may have become so meanwhile
        state.touched.setdefault(call.model, {})[call.replica] = None
