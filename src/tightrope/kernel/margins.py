"""Safety margins: the critical time that each call was predicted to take where it went, beside what it took.

Owns which moments are compared. What a miss teaches is `policy/margin.py`. Costs nothing for routers that do
not ask.
"""

from __future__ import annotations

from tightrope.kernel.state import Call, State
from tightrope.model.fleet import Routed


def note_predicted(state: State, call: Call, routed: Routed) -> None:
    """The call was dispatched, because of this estimate."""
    if state.router.has_margins:
        call.predicted_ms = routed.offers[0].estimate.crit


def note_first_token(state: State, call: Call, now_s: float) -> None:
    """The first token is out, which ends the critical time of a terminal call."""
    if call.job is not None and call.job.is_terminal:
        _note_critical(state, call, now_s)


def note_last_token(state: State, call: Call, now_s: float) -> None:
    """The call ended well, which ends the critical time of any other."""
    _note_critical(state, call, now_s)


def _note_critical(state: State, call: Call, now_s: float) -> None:
    """Learn from the call, once, and let policies see the new margin."""
    replica = state.replicas.get(call.replica) if call.replica is not None else None
    predicted_ms, call.predicted_ms = call.predicted_ms, None
    if predicted_ms is None or replica is None or call.id not in replica.held:
        return
    took_s = now_s - replica.held[call.id].dispatched_s
    replica.margin.observe(predicted_ms, 1000 * took_s)
    replica.plain = None
    state.show(replica)
