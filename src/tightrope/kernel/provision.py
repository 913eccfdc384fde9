"""Rounds of the provisioner: what it is shown, and what becomes of what it wants.

Owns the way from the tables to a `Situation` and from a `Scaling` to StartReplica and draining. Which fleet is the
right one is `policy/provision.py` and the rules beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

from tightrope.kernel import fleet
from tightrope.kernel.demand import Provisioned
from tightrope.kernel.state import Pool, Replica, State
from tightrope.model.fleet import ReplicaSpec, ReplicaState, numbered
from tightrope.model.ids import AcceleratorName, ModelName, ReplicaId
from tightrope.model.messages import Command, NoteScaling, Wake, WakeAt, WakeKind
from tightrope.model.profile import Profile
from tightrope.model.provision import Bounds, Provisioning, ProvisionMode, ScaleAction
from tightrope.policy.load import next_word_s
from tightrope.policy.pace import at_pace
from tightrope.policy.provision import Demanded, Group, Provisioner, Scaling, Situation, granted
from tightrope.policy.provisioners import provisioner

BLIND_AFTER_S = 10.0
"""Silence of replicas that hold calls, beyond which nothing is decided about them."""
FAILING_AFTER = 2
"""A replica that was lost so often in a row, without an answer in between, is not counted on."""


def begin(state: State, settings: Provisioning, foreign: Provisioner | None, now_s: float) -> list[Command]:
    """Provision from now on, as `settings` say; what was learned is kept.

    Nobody has listened before: idle times and silence count from now on.
    """
    is_foreign = foreign is not None and foreign.name == settings.policy
    policy = foreign if foreign is not None and is_foreign else provisioner(settings.policy)
    known = state.provisioned
    if known is None:
        state.provisioned = Provisioned(settings, policy)
        for bounds in settings.bounds:
            demand = state.pool(bounds.model).demand
            demand.heard_s = demand.busy_s = now_s
    else:
        known.settings, known.memory = settings, known.memory if known.policy is policy else {}
        known.policy = policy
        known.serial += 1
    for pool in state.pools.values():
        pool.profiles = None
    return [*look(state, now_s), _next(state, now_s)]


def round_is_due(state: State, now_s: float, serial: int) -> list[Command]:
    """The time of a round has come. Those ordered under earlier settings are none."""
    if state.provisioned is None or serial != state.provisioned.serial:
        return []
    for pool in state.pools.values():
        pool.demand.has_called = False
    return [*look(state, now_s), _next(state, now_s)]


def look(state: State, now_s: float) -> list[Command]:
    """One round: look at everything, decide, and do it. While the server shuts down nothing is changed, but for runs
    under way that find no replica."""
    known = state.provisioned
    if known is None:
        return []
    known.is_called_for = False
    situation = _situation(state, known, now_s)
    proposal = known.policy.decide(situation)
    known.memory = dict(proposal.memory)
    commands: list[Command] = []
    scalings = granted(situation, proposal)
    if state.is_draining:
        scalings = [
            one for one in scalings if one.action is ScaleAction.UP and _is_stranded(state, one.model)
        ]
    said = {(one.action, one.model, one.accelerator) for one in scalings}
    known.held = {key: what for key, what in known.held.items() if key in said}
    for scaling in scalings:
        commands += _carry_out(state, known, scaling, now_s)
    return commands


def _is_stranded(state: State, model: ModelName) -> bool:
    pool = state.pool(model)
    return bool(pool.line) and not pool.is_planned


def _next(state: State, now_s: float) -> WakeAt:
    known = state.provisioned
    assert known is not None
    return WakeAt(now_s + known.settings.every_s, Wake(WakeKind.PROVISION, str(known.serial)))


# --- what is seen ----------------------------------------------------------------------------------------


def _situation(state: State, known: Provisioned, now_s: float) -> Situation:
    by_model: dict[ModelName, list[Bounds]] = {}
    for bounds in known.settings.bounds:
        by_model.setdefault(bounds.model, []).append(bounds)
    return Situation(
        now_s=now_s,
        models=tuple(_demanded(state, known, model, bounds, now_s) for model, bounds in by_model.items()),
        cards=_cards(state, known),
        settings=known.settings,
        memory=known.memory,
    )


def _cards(state: State, known: Provisioned) -> dict[AcceleratorName, int]:
    """Cards of each kind without those of replicas that no bound speaks of: they keep theirs."""
    found = {card.name: card.count for card in state.accelerators.values()}
    mine = {(bounds.model, bounds.accelerator) for bounds in known.settings.bounds}
    for replica in state.replicas.values():
        spec = replica.spec
        if spec.url is None and (spec.model, spec.accelerator) not in mine:
            found[spec.accelerator] = max(0, found.get(spec.accelerator, 0) - 1)
    return found


def _demanded(
    state: State, known: Provisioned, model: ModelName, bounds: Iterable[Bounds], now_s: float
) -> Demanded:
    pool = state.pool(model)
    demand = pool.demand
    ongoing = sum(len(replica.held) for replica in pool.replicas.values())
    if ongoing or pool.line:
        demand.busy_s = now_s
    is_blind = ongoing > 0 and now_s - max(demand.heard_s, _due_s(pool, now_s)) > BLIND_AFTER_S
    groups = tuple(_group(state, known, pool, one) for one in bounds)
    is_awaited = (
        now_s < demand.awaited_until_s
        and not any(group.have for group in groups)
        and any(model in run.template.workflow.required_models() for run in state.runs.values())
    )
    return Demanded(
        model=model,
        groups=groups,
        arrivals=demand.arrivals,
        past=tuple(demand.past),
        calls_per_run=sum(demand.calls_by_tenant.values()) / max(1.0, sum(known.runs_by_tenant.values())),
        ongoing=ongoing,
        waiting=len(pool.line) + is_awaited,
        risk=demand.late.value(now_s),
        over=demand.over.value(now_s),
        floor_per_s=_floor_per_s(known, pool),
        idle_s=now_s - demand.busy_s,
        raised_s=demand.raised_s,
        lowered_s=demand.lowered_s,
        is_blind=is_blind,
    )


def _due_s(pool: Pool, now_s: float) -> float:
    """When something should have been heard at last: a slow engine that does what it should is not silent."""
    due_s = min((next_word_s(view.plain or view, now_s) for view in pool.roster), default=math.inf)
    return due_s if math.isfinite(due_s) else -math.inf


def _group(state: State, known: Provisioned, pool: Pool, bounds: Bounds) -> Group:
    mine = pool.on(bounds.accelerator)
    planned = [replica for replica in mine if replica.is_planned]
    failing = [replica for replica in planned if _is_failing(replica)]
    ready = [replica for replica in planned if replica.state in (ReplicaState.READY, ReplicaState.EJECTED)]
    card = state.accelerators.get(bounds.accelerator)
    return Group(
        bounds=bounds,
        profile=_profile(state, bounds, ready),
        usd_per_h=card.usd_per_h * bounds.cards if card is not None else 0.0,
        ready=len(ready),
        starting=len(planned) - len(ready) - len(failing),
        draining=len(mine) - len(planned),
        failing=len(failing),
        load_s=known.load_s.get((bounds.model, bounds.accelerator), bounds.load_s),
    )


def _is_failing(replica: Replica) -> bool:
    is_away = replica.state in (ReplicaState.LOST, ReplicaState.STARTING)
    return is_away and replica.restarts >= FAILING_AFTER


def _profile(state: State, bounds: Bounds, ready: list[Replica]) -> Profile:
    """What is believed about the pair, at the pace that its replicas really have."""
    belief = state.profile(bounds.model, bounds.accelerator)
    if not state.router.is_pacing or not ready:
        return belief
    return at_pace(belief, round(median(replica.level for replica in ready)))


def _floor_per_s(known: Provisioned, pool: Pool) -> float:
    """Calls per second that the tenants' floors make at this model: one for each run until it is known better."""
    calls, runs = pool.demand.calls_by_tenant, known.runs_by_tenant
    found = 0.0
    for floor in known.settings.floors:
        each = calls.get(floor.tenant, 0.0) / runs[floor.tenant] if runs.get(floor.tenant) else 1.0
        found += floor.runs_per_s * each
    return found


# --- what is done ----------------------------------------------------------------------------------------


def _carry_out(state: State, known: Provisioned, scaling: Scaling, now_s: float) -> list[Command]:
    is_advice = known.settings.mode is ProvisionMode.ADVISE
    note = NoteScaling(
        scaling.action,
        scaling.model,
        scaling.accelerator,
        scaling.had,
        scaling.wants,
        scaling.reason.value,
        scaling.evidence,
        is_advice,
    )
    key = (scaling.action, scaling.model, scaling.accelerator)
    if is_advice or scaling.action is ScaleAction.HOLD:
        said = (scaling.reason, scaling.wants)
        if known.held.get(key) == said:
            return []
        known.held[key] = said
        return [note]
    pool = state.pool(scaling.model)
    if scaling.action is ScaleAction.UP:
        pool.demand.raised_s = now_s
        return [note, *_raise(state, pool, scaling, now_s)]
    pool.demand.lowered_s = now_s
    return [note, *_lower(state, pool, scaling)]


def _raise(state: State, pool: Pool, scaling: Scaling, now_s: float) -> list[Command]:
    """Keep what drains, and start the rest."""
    missing = scaling.wants - scaling.had
    draining = [replica.spec for replica in pool.on(scaling.accelerator) if not replica.is_planned]
    specs = draining[:missing]
    specs += [
        ReplicaSpec(name, scaling.model, scaling.accelerator)
        for name in _free_names(state, scaling.model, scaling.accelerator, missing - len(specs))
    ]
    return [command for spec in specs for command in fleet.order(state, spec, now_s)]


def _free_names(state: State, model: ModelName, card: AcceleratorName, count: int) -> list[ReplicaId]:
    """The first names that no replica has, nor one that is still ending."""
    found: list[ReplicaId] = []
    number = 1
    while len(found) < count:
        name = numbered(model, card, number)
        if name not in state.replicas and name not in state.stopping:
            found.append(name)
        number += 1
    return found


def _lower(state: State, pool: Pool, scaling: Scaling) -> list[Command]:
    """Let go of those that fail, then of those that are away, then of those not up yet, then of those with the fewest
    calls. None is aborted."""
    planned = [replica for replica in pool.on(scaling.accelerator) if replica.is_planned]
    order = {ReplicaState.LOST: 0, ReplicaState.STARTING: 1, ReplicaState.EJECTED: 2}
    planned.sort(key=lambda one: one.spec.id, reverse=True)
    planned.sort(key=lambda one: (not _is_failing(one), order.get(one.state, 3), len(one.held)))
    commands: list[Command] = []
    for replica in planned[: scaling.had - scaling.wants]:
        commands += fleet.retire(state, replica)
    return commands
