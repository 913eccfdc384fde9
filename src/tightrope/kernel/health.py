"""Which replicas deserve calls: a failing one is taken out for a while and let back in.

Owns ejection. A replica that is known to be gone is `fleet.py`'s business.
"""

from __future__ import annotations

from tightrope.kernel.state import Call, Pool, Replica, State
from tightrope.model.fleet import ReplicaState
from tightrope.model.ids import ReplicaId
from tightrope.model.messages import Command, Wake, WakeAt, WakeKind
from tightrope.model.outcome import FailureKind

CHARGED = (
    FailureKind.REPLICA_LOST,
    FailureKind.STALLED,
    FailureKind.ENGINE_ERROR,
    FailureKind.TIMEOUT,
)
"""Failures that speak against the replica; a bad request or a bad answer does not."""
EJECT_AFTER = 5
"""Failures in a row after which a replica is taken out."""
EJECT_FOR_S = 30.0
"""The first time out; each further one is as much longer, up to EJECT_AT_MOST_S."""
EJECT_AT_MOST_S = 300.0
SUSPECT_FOR_S = 1.0
"""Pause after a broken connection, or for a lone replica: long enough for the cluster to say what happened,
short enough to work as a probe."""


def note_success(state: State, call: Call) -> None:
    """The replica answered: whatever was held against it is forgotten."""
    replica = state.replicas.get(call.replica) if call.replica else None
    if replica is not None:
        replica.failures_in_a_row = 0
        replica.ejections = 0
        replica.restarts = 0


def charge_failure(state: State, call: Call, failure: FailureKind, now_s: float) -> list[Command]:
    """Hold a failed attempt against its replica, and take the replica out when that is too much."""
    replica = state.replicas.get(call.replica) if call.replica else None
    if replica is None or failure not in CHARGED:
        return []
    replica.failures_in_a_row += 1
    if replica.state is not ReplicaState.READY:
        return []
    if failure is FailureKind.REPLICA_LOST:
        return _eject(state, replica, SUSPECT_FOR_S, now_s)
    if replica.failures_in_a_row < EJECT_AFTER:
        return []
    if not _may_eject(state.pool(replica.spec.model)):
        return _eject(state, replica, SUSPECT_FOR_S, now_s)
    replica.ejections += 1
    return _eject(state, replica, min(EJECT_AT_MOST_S, EJECT_FOR_S * replica.ejections), now_s)


def _may_eject(pool: Pool) -> bool:
    """At most half of a pool is out for long; a lone replica never."""
    out = sum(replica.state is ReplicaState.EJECTED for replica in pool.replicas.values())
    return 2 * (out + 1) <= len(pool.replicas)


def _eject(state: State, replica: Replica, for_s: float, now_s: float) -> list[Command]:
    state.move(replica, ReplicaState.EJECTED)
    replica.ejected_until_s = now_s + for_s
    state.touched.setdefault(replica.spec.model, {})
    return [WakeAt(now_s + for_s, Wake(WakeKind.REPLICA_READMIT, replica.spec.id))]


def readmit(state: State, replica_id: ReplicaId, now_s: float) -> list[Command]:
    """The time out is over, unless a later one is still running; the next calls are the proof."""
    replica = state.replicas.get(replica_id)
    if replica is None or now_s < replica.ejected_until_s:
        return []
    if replica.state is ReplicaState.EJECTED:
        state.move(replica, ReplicaState.READY)
    return []
