"""The life of a replica: ordered, ready, draining, lost and ordered again.

Owns the way from a plan to StartReplica and StopReplica. Making the plan is somebody else's decision.
"""

from __future__ import annotations

from tightrope.kernel.runs import attempt_failed
from tightrope.kernel.state import Replica, State
from tightrope.model.fleet import FleetPlan, ReplicaSpec, ReplicaState
from tightrope.model.ids import ReplicaId
from tightrope.model.messages import (
    CancelCall,
    Command,
    ReplicaLost,
    ReplicaReady,
    StartReplica,
    StopReplica,
    Wake,
    WakeAt,
    WakeKind,
)
from tightrope.model.outcome import FailureKind

RESTART_AFTER_S = 0.5
"""Pause before a lost replica is ordered again; doubled each time until it has answered a call."""
RESTART_AT_MOST_S = 30.0


def apply_plan(state: State, plan: FleetPlan) -> list[Command]:
    """Order what is missing, let what is no longer listed finish its calls and end."""
    commands: list[Command] = []
    listed = {spec.id: spec for spec in plan.replicas}
    for spec in plan.replicas:
        commands += _order(state, spec)
    for replica in list(state.replicas.values()):
        if replica.spec.id not in listed and replica.is_planned:
            replica.is_planned = False
            commands += _retire(state, replica)
    return commands


def _order(state: State, spec: ReplicaSpec) -> list[Command]:
    known = state.replicas.get(spec.id)
    if known is not None:
        known.is_planned = True
        if known.state is ReplicaState.DRAINING:
            known.state = ReplicaState.READY
            state.draining.pop(spec.id, None)
            state.touched[spec.model] = None
        return []
    replica = Replica(spec, ReplicaState.STARTING)
    state.replicas[spec.id] = replica
    state.pool(spec.model).replicas[spec.id] = replica
    return [StartReplica(spec)]


def _retire(state: State, replica: Replica) -> list[Command]:
    """Drain: nothing new goes there, and it ends when it holds nothing any more."""
    if replica.state is ReplicaState.LOST:
        _forget(state, replica)
        return []
    replica.state = ReplicaState.DRAINING
    state.draining[replica.spec.id] = None
    return stop_if_drained(state, replica.spec.id)


def stop_if_drained(state: State, replica_id: ReplicaId) -> list[Command]:
    """End a draining replica that holds no call."""
    replica = state.replicas.get(replica_id)
    if replica is None or replica.state is not ReplicaState.DRAINING or replica.held:
        return []
    _forget(state, replica)
    return [StopReplica(replica_id)]


def _forget(state: State, replica: Replica) -> None:
    del state.replicas[replica.spec.id]
    state.draining.pop(replica.spec.id, None)
    del state.pool(replica.spec.model).replicas[replica.spec.id]


def replica_ready(state: State, event: ReplicaReady) -> list[Command]:
    """The replica may be given calls."""
    replica = state.replicas.get(event.replica)
    if replica is None or replica.state not in (ReplicaState.STARTING, ReplicaState.LOST):
        return []
    replica.state = ReplicaState.READY
    replica.failures_in_a_row = 0
    replica.max_sequences = event.max_sequences
    replica.view = None
    state.touched[replica.spec.model] = None
    return []


def replica_lost(state: State, event: ReplicaLost, now_s: float) -> list[Command]:
    """Its calls come back at once; the retry rules decide whether each may go elsewhere."""
    replica = state.replicas.get(event.replica)
    if replica is None or replica.state is ReplicaState.LOST:
        return []
    held = [state.calls[call] for call in replica.held]
    replica.state = ReplicaState.LOST if replica.is_planned else replica.state
    commands: list[Command] = []
    for call in held:
        if call.id in state.calls:
            commands.append(CancelCall(call.id, event.why))
            commands += attempt_failed(state, call, FailureKind.REPLICA_LOST, event.why, now_s)
    if not replica.is_planned:
        if event.replica in state.replicas:
            _forget(state, replica)
        return commands
    pause_s = min(RESTART_AT_MOST_S, RESTART_AFTER_S * 2**replica.restarts)
    replica.restarts += 1
    return [*commands, WakeAt(now_s + pause_s, Wake(WakeKind.REPLICA_RESTART, event.replica))]


def restart(state: State, replica_id: ReplicaId) -> list[Command]:
    """The pause after a loss is over: order the replica again if the plan still lists it."""
    replica = state.replicas.get(replica_id)
    if replica is None or replica.state is not ReplicaState.LOST or not replica.is_planned:
        return []
    replica.state = ReplicaState.STARTING
    return [StartReplica(replica.spec)]
