"""How fast replicas really are: the tokens that each was believed to produce, beside those that it did.

Owns the count, kept from ledger event to ledger event: time that passed over the step time believed then, less the
prompts that were computed in it. What a difference teaches is `policy/pace.py`. Costs nothing for routers that
do not ask.
"""

from __future__ import annotations

from tightrope.kernel.state import Call, Pool, Replica, State
from tightrope.model.fleet import ReplicaState
from tightrope.model.outcome import Usage
from tightrope.policy.load import step_ms

FEWEST_GAPS = 4
"""A call with fewer gaps between tokens says nothing about their length."""
LOOK_EVERY_S = 1.0
"""How often replicas are looked at whose factor fades because nothing ends there."""


def tick(state: State, replica: Replica, now_s: float) -> None:
    """Count on to this moment. To be called before the ledger changes."""
    if not state.router.is_pacing:
        return
    if replica.state is not ReplicaState.READY:
        replica.begun.clear()  # what happens until it is back was not counted
    one_ms = _step_ms(state, replica, now_s)
    if one_ms > 0:
        replica.believed_tokens += (now_s - replica.counted_s) * 1000 / one_ms
    replica.counted_s = now_s


def note_begun(state: State, call: Call, now_s: float) -> None:
    """The first token of a call is out: its prompt kept the others waiting; its own tokens are counted from here."""
    replica = _replica_of(state, call)
    if replica is None or call.job is None:
        return
    tick(state, replica, now_s)
    prompt, k = call.job.prompt_tokens, state.belief(replica).coefficients
    one_ms = _step_ms(state, replica, now_s)
    if one_ms > 0:
        replica.believed_tokens -= prompt * (k.d + k.e * prompt / 2) / one_ms
    replica.begun[call.id] = replica.believed_tokens


def note_ended(state: State, call: Call, usage: Usage, now_s: float) -> None:
    """A call ended well: learn from it how fast its replica is, and let policies see it so."""
    replica = _replica_of(state, call)
    if replica is None:
        return
    tick(state, replica, now_s)
    begun = replica.begun.pop(call.id, None)
    gaps = usage.output_tokens - 1
    if begun is not None and gaps >= FEWEST_GAPS:
        replica.pace.observe(replica.believed_tokens - begun, gaps, now_s)
        _look(state, replica, now_s)


def look_at_faded(state: State, pool: Pool, now_s: float) -> None:
    """Let policies see how far the factors of a pool have faded, once in a while."""
    if not pool.paced or now_s - pool.looked_s < LOOK_EVERY_S:
        return
    pool.looked_s = now_s
    for replica_id in list(pool.paced):
        replica = pool.replicas.get(replica_id)
        if replica is None:
            del pool.paced[replica_id]
        else:
            _look(state, replica, now_s)


def _look(state: State, replica: Replica, now_s: float) -> None:
    level = replica.pace.level(now_s)
    if level == replica.level:
        return
    replica.level = level
    replica.plain = None
    paced = state.pool(replica.spec.model).paced
    if level:
        paced[replica.spec.id] = None
    else:
        paced.pop(replica.spec.id, None)
    state.show(replica)


def _step_ms(state: State, replica: Replica, now_s: float) -> float:
    """A step without prompts, as it is believed to be now; 0 while the replica does nothing."""
    view = state.pool(replica.spec.model).roster.of(replica.spec.id)
    return step_ms(view, now_s) if view is not None and view.held else 0.0


def _replica_of(state: State, call: Call) -> Replica | None:
    if not state.router.is_pacing or call.replica is None:
        return None
    return state.replicas.get(call.replica)
