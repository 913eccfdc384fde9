"""Signals: what the journal tells the provisioner, noted as it happens.

Owns which moments of a call and of a replica count. Costs nothing where nobody provisions.
"""

from __future__ import annotations

import math

from tightrope.kernel.demand import Provisioned
from tightrope.kernel.state import Call, Pool, Replica, Run, State
from tightrope.model.fleet import Routed
from tightrope.model.messages import FinishRun
from tightrope.model.outcome import Verdict
from tightrope.policy.provision import PastCall

LOAD_GAIN = 0.5
"""How much one start counts for what the next is expected to take."""


AWAITED_S = 30.0
"""For so long after a run has come, all the models of its workflow are expected to be asked."""


def note_run(state: State, run: Run, now_s: float) -> None:
    """A run was admitted: it will come to models that may have no replica, and waits less if they start now."""
    if state.provisioned is None:
        return
    counts = state.provisioned.runs_by_tenant
    counts[run.tenant] = counts.get(run.tenant, 0.0) + 1
    for model in run.template.workflow.required_models():
        pool = state.pool(model)
        pool.demand.awaited_until_s = now_s + AWAITED_S
        _call_for(state.provisioned, pool)


def note_demanded(state: State, run: Run, call: Call, now_s: float) -> None:
    """A new call has come into the line of its pool."""
    if state.provisioned is None or call.job is None or call.model is None:
        return
    pool, job = state.pool(call.model), call.job
    call.came_late = now_s + call.usual_s > job.due_s
    demand = pool.demand
    demand.arrivals.note(now_s)
    demand.busy_s = now_s
    demand.calls_by_tenant[run.tenant] = demand.calls_by_tenant.get(run.tenant, 0.0) + 1
    if not call.came_late:
        demand.past.append(
            PastCall(
                now_s,
                job.prompt_tokens,
                job.output_tokens,
                call.usual_s,
                job.due_s - now_s - call.usual_s,
                job.tpot_s,
                job.is_terminal,
            )
        )
    _call_for(state.provisioned, pool)


def _call_for(known: Provisioned, pool: Pool) -> None:
    """Somebody comes to a model without a replica: the next round is too late, but once in between is enough."""
    if not pool.demand.has_called and not pool.is_planned:
        known.is_called_for = pool.demand.has_called = True


def note_dispatched(state: State, pool: Pool, call: Call, routed: Routed, now_s: float) -> None:
    """A call goes to a replica; whether it is expected to be late is known now."""
    if state.provisioned is None:
        return
    pool.demand.heard_s = max(pool.demand.heard_s, now_s)  # silence begins here
    if call.job is None or call.came_late or math.isinf(call.job.due_s):
        return
    pool.demand.late.note(now_s + routed.offers[0].estimate.crit / 1000 > call.job.due_s, now_s)


def note_heard(state: State, call: Call, now_s: float) -> None:
    """An engine of the pool said something."""
    if state.provisioned is not None and call.model is not None:
        demand = state.pool(call.model).demand
        demand.heard_s = demand.busy_s = now_s


def note_finished(state: State, run: Run, call: Call, now_s: float) -> None:
    """A call ended well: was it within its budget, and is it the one that cost its run the most?"""
    note_heard(state, call, now_s)
    if state.provisioned is None or call.job is None or call.model is None or math.isinf(call.job.budget_s):
        return
    critical_s = call.first_token_s if call.job.is_terminal and call.first_token_s is not None else now_s
    beyond_s = critical_s - call.ready_s - call.job.budget_s
    state.pool(call.model).demand.over.note(beyond_s > 0, now_s)
    if beyond_s > 0 and (run.worst is None or beyond_s > run.worst[0]):
        run.worst = (beyond_s, call.model, call.step)


def note_verdict(state: State, run: Run, finished: FinishRun) -> None:
    """A run is over: the step that went furthest beyond its budget has the blame for a broken promise."""
    if state.provisioned is None or finished.verdict is not Verdict.MISSED or run.worst is None:
        return
    _, model, step = run.worst
    blamed = state.pool(model).demand.blamed
    blamed[step] = blamed.get(step, 0) + 1


def note_ready(state: State, replica: Replica, now_s: float) -> None:
    """A replica came up."""
    if state.provisioned is None:
        return
    key = (replica.spec.model, replica.spec.accelerator)
    took_s, known = now_s - replica.ordered_s, state.provisioned.load_s
    known[key] = took_s if key not in known else known[key] + LOAD_GAIN * (took_s - known[key])
