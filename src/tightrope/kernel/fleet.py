"""The life of a replica: ordered, ready, draining, lost and ordered again.

Owns the way from a plan to StartReplica and StopReplica. Making the plan is somebody else's decision.
"""

from __future__ import annotations

from tightrope.kernel.runs import attempt_failed
from tightrope.kernel.signals import note_ready
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


def apply_plan(state: State, plan: FleetPlan, now_s: float) -> list[Command]:
    """Order what is missing, let what is no longer listed finish its calls and end."""
    commands: list[Command] = []
    listed = {spec.id: spec for spec in plan.replicas}
    for spec in plan.replicas:
        commands += order(state, spec, now_s)
    for replica in list(state.replicas.values()):
        if replica.spec.id not in listed and replica.is_planned:
            commands += retire(state, replica)
    return commands


def order(state: State, spec: ReplicaSpec, now_s: float) -> list[Command]:
    """Have this replica: one that drains stays, an unknown one is started."""
    known = state.replicas.get(spec.id)
    if known is not None:
        state.plan_for(known, True)
        if known.state is ReplicaState.DRAINING:
            state.move(known, ReplicaState.READY)
        return []
    state.add_replica(spec, now_s)
    return [StartReplica(spec)]


def retire(state: State, replica: Replica) -> list[Command]:
    """Drain: nothing new goes there, and it ends when it holds nothing any more.

    One that is lost ends at once: something may be left of it.
    """
    state.plan_for(replica, False)
    if replica.state is ReplicaState.LOST:
        return [_stop(state, replica)]
    state.move(replica, ReplicaState.DRAINING)
    return stop_if_drained(state, replica.spec.id)


def stop_if_drained(state: State, replica_id: ReplicaId) -> list[Command]:
    """End a draining replica that holds no call."""
    replica = state.replicas.get(replica_id)
    if replica is None or replica.state is not ReplicaState.DRAINING or replica.held:
        return []
    return [_stop(state, replica)]


def _stop(state: State, replica: Replica) -> StopReplica:
    state.forget(replica)
    state.stopping.add(replica.spec.id)
    return StopReplica(replica.spec.id)


def replica_stopped(state: State, replica_id: ReplicaId, now_s: float) -> list[Command]:
    """It ended as it was told to, even if another one of its name is on order by now; otherwise it is lost."""
    if replica_id in state.stopping:
        state.stopping.remove(replica_id)
        return []
    return replica_lost(state, ReplicaLost(replica_id, "it was stopped from outside"), now_s)


def replica_ready(state: State, event: ReplicaReady, now_s: float) -> list[Command]:
    """The replica may be given calls."""
    replica = state.replicas.get(event.replica)
    if replica is None or replica.state not in (ReplicaState.STARTING, ReplicaState.LOST):
        return []
    replica.failures_in_a_row = 0
    note_ready(state, replica, now_s)
    replica.max_sequences = event.max_sequences
    state.move(replica, ReplicaState.READY)
    return []


def replica_lost(state: State, event: ReplicaLost, now_s: float) -> list[Command]:
    """Its calls come back at once; the retry rules decide whether each may go elsewhere."""
    replica = state.replicas.get(event.replica)
    if replica is None or replica.state is ReplicaState.LOST:
        return []
    held = [state.calls[call] for call in replica.held]
    if replica.is_planned:
        state.move(replica, ReplicaState.LOST)
    commands: list[Command] = []
    for call in held:
        if call.id in state.calls:
            commands.append(CancelCall(call.id, event.why))
            commands += attempt_failed(state, call, FailureKind.REPLICA_LOST, event.why, now_s)
    if not replica.is_planned:
        if event.replica in state.replicas:
            state.forget(replica)
        return commands
    pause_s = min(RESTART_AT_MOST_S, RESTART_AFTER_S * 2**replica.restarts)
    replica.restarts += 1
    return [*commands, WakeAt(now_s + pause_s, Wake(WakeKind.REPLICA_RESTART, event.replica))]


def restart(state: State, replica_id: ReplicaId, now_s: float) -> list[Command]:
    """The pause after a loss is over: order the replica again if the plan still lists it."""
    replica = state.replicas.get(replica_id)
    if replica is None or replica.state is not ReplicaState.LOST or not replica.is_planned:
        return []
    state.move(replica, ReplicaState.STARTING)
    replica.ordered_s = now_s
    return [StartReplica(replica.spec)]
