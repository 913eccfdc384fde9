"""The life of a run: steps become ready, are prepared, tried, tried again, settled, until one FinishRun.

Owns what follows from what within one run. What one attempt is granted, and where it goes, is `placing.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from tightrope.kernel.health import charge_failure, note_success
from tightrope.kernel.learning import learn, note_case, note_code, note_model, note_width
from tightrope.kernel.margins import note_first_token, note_last_token
from tightrope.kernel.pacing import note_begun, note_ended
from tightrope.kernel.placing import call_expectation_s, enter_line, make_call
from tightrope.kernel.signals import note_finished, note_heard, note_run, note_verdict
from tightrope.kernel.state import Call, CallPhase, Piece, Run, State, Step, StepStatus, Template, gather_of
from tightrope.model.ids import CallId, RunId, StepId
from tightrope.model.messages import (
    CallDone,
    CallFailed,
    CancelCall,
    CaseTaken,
    Command,
    FinishRun,
    FirstToken,
    Prepare,
    Prepared,
    PrepareFailed,
    RunCode,
    RunSubmitted,
    Settlement,
    SettleStep,
    Wake,
    WakeAt,
    WakeKind,
)
from tightrope.model.outcome import FailureKind, Outcome, Usage, Verdict
from tightrope.model.workflow import CodeCall, ModelCall, Need, Node, Switch
from tightrope.policy.admit import Entry, Refused, admit

GONE = (FailureKind.REPLICA_LOST, FailureKind.STALLED)
"""Failures of the replica, not of the call: the work is moved, which is no retry."""
RETRIES_AT_LEAST = 3
"""Repetitions that are always allowed, however few calls are active."""


# --- entry ---------------------------------------------------------------------------------------------


def submit(state: State, event: RunSubmitted, now_s: float) -> list[Command]:
    """Admit the run and set its ready steps going, or refuse it."""
    template = state.templates[event.workflow]
    refused = admit(_entry(state, event, template))
    if refused is not None:
        return [_refusal(event, refused)]
    run = Run(
        id=event.run,
        tenant=event.tenant,
        template=template,
        slo=event.slo,
        submitted_s=now_s,
        due_ttft_s=math.inf if event.slo.ttft_s is None else now_s + event.slo.ttft_s,
        due_e2e_s=math.inf if event.slo.e2e_s is None else now_s + event.slo.e2e_s,
        is_streamed=event.is_streamed,
        output_tokens=event.output_tokens,
        steps={step: Step() for step in template.graph.order},
    )
    state.runs[run.id] = run
    state.runs_by_tenant[run.tenant] = state.runs_by_tenant.get(run.tenant, 0) + 1
    note_run(state, run, now_s)
    if template.outlook_ttft is None:
        learn(state, template, now_s)
    deadline = WakeAt(now_s + event.deadline_s, Wake(WakeKind.RUN_DEADLINE, run.id))
    return [deadline, *_advance(state, run, template.graph.order, now_s)]


def _entry(state: State, event: RunSubmitted, template: Template) -> Entry:
    unserved = [model for model in template.workflow.required_models() if not state.is_served(model)]
    return Entry(
        is_draining=state.is_draining,
        limits=state.tenants[event.tenant].limits,
        active_runs=state.runs_by_tenant.get(event.tenant, 0),
        waiting_calls=state.waiting_by_tenant.get(event.tenant, 0),
        unserved=tuple(unserved),
    )


def _refusal(event: RunSubmitted, refused: Refused) -> FinishRun:
    return FinishRun(
        run=event.run,
        tenant=event.tenant,
        workflow=event.workflow,
        outcome=Outcome.REJECTED,
        verdict=Verdict.NONE if event.slo.is_empty else Verdict.MISSED,
        duration_s=0.0,
        ttft_s=None,
        tpot_s=None,
        usage=Usage(),
        refusal=refused.refusal,
        message=refused.message,
        retry_after_s=refused.retry_after_s,
    )


# --- steps become ready --------------------------------------------------------------------------------


def _advance(state: State, run: Run, candidates: Iterable[StepId], now_s: float) -> list[Command]:
    """Start every candidate that has all it waits for, skip what can never run, and follow the skips."""
    commands: list[Command] = []
    work = list(candidates)
    while work and run.id in state.runs:
        step_id = work.pop(0)
        if run.steps[step_id].status is not StepStatus.WAITING:
            continue
        readiness = _readiness(run, step_id)
        if readiness is True:
            commands += _start(state, run, step_id, now_s)
        elif readiness is False:
            commands += _skip(state, run, step_id, now_s)
            work += run.template.graph.readers_by_step[step_id]
    return commands


def _readiness(run: Run, step_id: StepId) -> bool | None:
    """True: start it. False: it can never run. None: it still waits."""
    verdicts = [_need_is_met(run, need) for need in run.template.graph.needs_by_step[step_id]]
    case = run.template.graph.case_by_step[step_id]
    if case is not None and run.cases.get(case.switch, case.case) != case.case:
        return False
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _need_is_met(run: Run, need: Need) -> bool | None:
    for source in need.any_of:
        status = run.steps[source].status
        if status is StepStatus.SKIPPED:
            continue
        return True if status is StepStatus.DONE else None
    return need.optional


def _start(state: State, run: Run, step_id: StepId, now_s: float) -> list[Command]:
    step = run.steps[step_id]
    step.started_s = now_s
    short = _short_join(run, step_id)
    if short is not None:
        return _give_up(state, run, step_id, None, FailureKind.BAD_INPUT, short, now_s)
    step.status = StepStatus.PREPARING
    commands: list[Command] = [Prepare(run.id, step_id)]
    found = run.template.workflow.step_by_id[step_id]
    if isinstance(found, Node) and found.timeouts.total_s is not None:
        wake = Wake(WakeKind.STEP_TOTAL, f"{run.id}/{step_id}")
        commands.append(WakeAt(now_s + found.timeouts.total_s, wake))
    return commands


def _short_join(run: Run, step_id: StepId) -> str | None:
    """The sentence for a join with fewer successes than it asks for; None when it has enough."""
    for need in run.template.graph.needs_by_step[step_id]:
        source = run.steps[need.any_of[0]]
        if need.gather is None or source.status is not StepStatus.DONE:
            continue
        wanted = (
            len(source.pieces)
            if need.gather.minimum is None
            else min(need.gather.minimum, len(source.pieces))
        )
        if source.successes() < wanted:
            told = f"{source.successes()} of {len(source.pieces)} items of {need.any_of[0]} succeeded"
            return f"{told}, {wanted} are needed"
    return None


def _skip(state: State, run: Run, step_id: StepId, now_s: float) -> list[Command]:
    run.steps[step_id].status = StepStatus.SKIPPED
    if step_id == run.output:
        message = "a required input was skipped, so the output node cannot run; mark the input `| null`"
        return _finish(state, run, Outcome.FAILED, now_s, FailureKind.BAD_INPUT, step_id, message)
    return [SettleStep(run.id, step_id, Settlement.SKIPPED)]


# --- what the driver found -----------------------------------------------------------------------------


def prepared(state: State, event: Prepared, now_s: float) -> list[Command]:
    """The inputs stand: try every item."""
    run = state.runs.get(event.run)
    if run is None or run.steps[event.step].status is not StepStatus.PREPARING:
        return []
    step = run.steps[event.step]
    step.status = StepStatus.RUNNING
    step.pieces = [Piece(index, item) for index, item in enumerate(event.items)]
    commands: list[Command] = []
    if run.node(event.step).fan_out is not None:
        note_width(run, event.step, len(event.items), now_s)
        rule = gather_of(run, event.step)
        if rule is not None and rule.within_s is not None:
            wake = Wake(WakeKind.GATHER_WITHIN, f"{run.id}/{event.step}")
            commands.append(WakeAt(now_s + rule.within_s, wake))
    for piece in step.pieces:
        if run.id in state.runs and step.status is StepStatus.RUNNING:
            commands += _try(state, run, event.step, piece, now_s)
    if not step.pieces:
        commands += _join_if_complete(state, run, event.step, now_s)
    return commands


def case_taken(state: State, event: CaseTaken, now_s: float) -> list[Command]:
    """A branch is chosen: the other ones are skipped, and what still waits has a clearer future."""
    run = state.runs.get(event.run)
    if run is None or run.steps[event.step].status is not StepStatus.PREPARING:
        return []
    run.steps[event.step].status = StepStatus.DONE
    run.cases[event.step] = event.case
    note_case(run, event.step, event.case, now_s)
    commands = _grant_anew(state, run, now_s)
    return commands + _advance(state, run, run.template.graph.readers_by_step[event.step], now_s)


def _grant_anew(state: State, run: Run, now_s: float) -> list[Command]:
    commands: list[Command] = []
    for call_id in sorted(run.calls):
        call = state.calls.get(call_id)
        if call is not None and call.phase is CallPhase.WAITING:
            state.dequeue(call)
            commands += _enter(state, run, call, now_s)
    return commands


def prepare_failed(state: State, event: PrepareFailed, now_s: float) -> list[Command]:
    """The inputs could not be built: no attempt can help, so what was declared for errors happens."""
    run = state.runs.get(event.run)
    if run is None or run.steps[event.step].status is not StepStatus.PREPARING:
        return []
    return _give_up(state, run, event.step, None, event.failure, event.message, now_s)


# --- attempts ------------------------------------------------------------------------------------------


def _try(state: State, run: Run, step_id: StepId, piece: Piece, now_s: float) -> list[Command]:
    """One more attempt of an item: code runs at once, a model call enters the line of its pool."""
    call = make_call(state, run, step_id, piece, now_s)
    work = run.node(step_id).work
    timeouts = run.node(step_id).timeouts
    if isinstance(work, CodeCall):
        started: list[Command] = [RunCode(call.id, run.id, step_id, piece.index, call.attempt, call.slack)]
        if timeouts.attempt_s is not None:
            started.append(WakeAt(now_s + timeouts.attempt_s, Wake(WakeKind.CALL_ATTEMPT, call.id)))
        return started
    commands = _enter(state, run, call, now_s)
    if timeouts.queue_s is not None and call.id in state.calls:
        commands.append(WakeAt(now_s + timeouts.queue_s, Wake(WakeKind.CALL_QUEUE, call.id)))
    return commands


def _enter(state: State, run: Run, call: Call, now_s: float) -> list[Command]:
    """Put a model call into the line, unless no replica could ever hold its prompt."""
    if enter_line(state, run, call, now_s):
        return []
    message = (
        f"the prompt of {call.step} is longer than the context of every replica of {call.model}; shorten it"
    )
    return attempt_failed(state, call, FailureKind.CONTEXT_TOO_LONG, message, now_s)


def first_token(state: State, event: FirstToken, now_s: float) -> list[Command]:
    """The call decodes from now on; for the output node this is the moment that the SLO is about."""
    call = state.calls.get(event.call)
    if call is None or call.phase is not CallPhase.DISPATCHED:
        return []
    run = state.runs[call.run]
    call.phase = CallPhase.STREAMING
    call.first_token_s = now_s
    note_begun(state, call, now_s)
    note_first_token(state, call, now_s)
    note_heard(state, call, now_s)
    state.hold_first_token(call, now_s)
    if _is_live(run, call.step):
        run.first_content_s = now_s
    return []


def _is_live(run: Run, step_id: StepId) -> bool:
    """Whether what the step says reaches the client at once: an answer with a shape is checked first."""
    work = run.node(step_id).work
    is_text = isinstance(work, ModelCall) and work.shape is None
    return step_id == run.output and run.is_streamed and is_text


def call_done(state: State, event: CallDone, now_s: float) -> list[Command]:
    """An item has its result; the step may be complete."""
    call = state.calls.get(event.call)
    if call is None:
        return []
    run = state.runs[call.run]
    run.usage += event.usage
    commands: list[Command] = []
    if call.phase is CallPhase.CODE:
        note_code(run, call, now_s)
    else:
        commands += note_model(state, run, call, event.usage, now_s)
        note_ended(state, call, event.usage, now_s)
        note_last_token(state, call, now_s)
        note_finished(state, run, call, now_s)
        note_success(state, call)
    if call.step == run.output:
        run.output_usage = event.usage
        run.first_content_s = now_s if run.first_content_s is None else run.first_content_s
    _drop(state, run, call)
    call.piece.is_settled = call.piece.has_result = True
    return commands + _join_if_complete(state, run, call.step, now_s)


def _join_if_complete(state: State, run: Run, step_id: StepId, now_s: float) -> list[Command]:
    """Close the step when nothing more is owed to it."""
    step = run.steps[step_id]
    is_complete = all(piece.is_settled for piece in step.pieces)
    rule = gather_of(run, step_id) if run.node(step_id).fan_out is not None else None
    is_enough = step.join_is_due and rule is not None and step.successes() >= (rule.minimum or 0)
    if not is_complete and not is_enough:
        return []
    commands: list[Command] = []
    if not is_complete or step.successes() < len(step.pieces) or not step.pieces:
        commands += _drop_all(state, run, step_id, "the join did not wait for it")
        commands.append(SettleStep(run.id, step_id, Settlement.JOINED))
    return commands + _settled(state, run, step_id, now_s)


def _settled(state: State, run: Run, step_id: StepId, now_s: float) -> list[Command]:
    run.steps[step_id].status = StepStatus.DONE
    if step_id == run.output:
        return _finish(state, run, Outcome.SUCCEEDED, now_s)
    return _advance(state, run, run.template.graph.readers_by_step[step_id], now_s)


# --- failures ------------------------------------------------------------------------------------------


def call_failed(state: State, event: CallFailed, now_s: float) -> list[Command]:
    """One attempt ended badly, as the driver saw it."""
    call = state.calls.get(event.call)
    if call is None:
        return []
    state.runs[call.run].usage += event.usage
    note_heard(state, call, now_s)
    charged = charge_failure(state, call, event.failure, now_s)
    return charged + attempt_failed(state, call, event.failure, event.message, now_s)


def attempt_failed(
    state: State, call: Call, failure: FailureKind, message: str, now_s: float
) -> list[Command]:
    """Move the work, repeat it, fall back, or give up: the first that applies."""
    run, piece = state.runs[call.run], call.piece
    node = run.node(call.step)
    reached_client = call.first_token_s is not None and _is_live(run, call.step)
    if call.replica is not None and failure is not FailureKind.BAD_OUTPUT:
        piece.avoid += (call.replica,)
    _drop(state, run, call)
    if reached_client:
        return _finish(state, run, Outcome.FAILED, now_s, failure, call.step, message)
    if failure in GONE and isinstance(node.work, ModelCall) and piece.failovers < state.settings.failovers:
        piece.failovers += 1
        return _try(state, run, call.step, piece, now_s)
    if (
        failure is FailureKind.BAD_OUTPUT
        and not piece.was_reasked
        and _fits_in_budget(state, run, call, now_s)
    ):
        piece.was_reasked = True
        return _try(state, run, call.step, piece, now_s)
    if _may_retry(state, node, piece, failure):
        piece.retries += 1
        piece.waits_for_retry = True
        wake = Wake(WakeKind.CALL_RETRY, f"{run.id}/{call.step}/{piece.index}")
        return [WakeAt(_spread_retry(state, run, piece, now_s), wake)]
    if isinstance(node.work, ModelCall) and _may_fall_back(state, node.work, piece):
        piece.on_fallback = True
        piece.avoid = ()
        return _try(state, run, call.step, piece, now_s)
    return _give_up(state, run, call.step, piece, failure, message, now_s)


def _fits_in_budget(state: State, run: Run, call: Call, now_s: float) -> bool:
    """Whether asking once more is expected to end before the call's latest finish."""
    return now_s + call_expectation_s(state, run, call) <= call.slack.due_s


def _may_retry(state: State, node: Node, piece: Piece, failure: FailureKind) -> bool:
    if piece.retries >= node.retry.times or failure not in node.retry.on:
        return False
    if isinstance(node.work, CodeCall) and not node.work.idempotent:
        return False
    return _repetitions(state) < max(RETRIES_AT_LEAST, state.settings.retry_share * len(state.calls))


def _repetitions(state: State) -> int:
    """Items that are being repeated now, those that still pause before it included; moved ones do not count."""
    return sum(
        piece.retries > 0 and not piece.is_settled
        for run in state.runs.values()
        for step in run.steps.values()
        for piece in step.pieces
    )


def _may_fall_back(state: State, work: ModelCall, piece: Piece) -> bool:
    return work.fallback is not None and not piece.on_fallback and state.is_served(work.fallback)


def _spread_retry(state: State, run: Run, piece: Piece, now_s: float) -> float:
    """When to try again: exponential, jittered, and not later than the run's promise."""
    wait_s = min(8.0, 0.1 * 2**piece.retries) * state.rng.uniform(0.5, 1.0)
    due_s = min(run.due_ttft_s, run.due_e2e_s)
    return now_s + wait_s if now_s + wait_s < due_s or due_s <= now_s else due_s


def retry(state: State, run_id: RunId, step_id: StepId, index: int, now_s: float) -> list[Command]:
    """The pause before a repetition is over."""
    run = state.runs.get(run_id)
    if run is None or run.steps[step_id].status is not StepStatus.RUNNING:
        return []
    piece = run.steps[step_id].pieces[index]
    if not piece.waits_for_retry:
        return []
    piece.waits_for_retry = False
    return _try(state, run, step_id, piece, now_s)


def _give_up(
    state: State,
    run: Run,
    step_id: StepId,
    piece: Piece | None,
    failure: FailureKind,
    message: str,
    now_s: float,
) -> list[Command]:
    """The attempts are spent: an item is left out of its join, or what `on_error` says happens to the step."""
    found = run.template.workflow.step_by_id[step_id]
    if isinstance(found, Switch):
        return _finish(state, run, Outcome.FAILED, now_s, failure, step_id, message)
    may_omit = found.fan_out is not None and (
        found.on_error.action == "skip" or gather_of(run, step_id) is not None
    )
    if piece is not None and may_omit:
        piece.is_settled = True
        return _join_if_complete(state, run, step_id, now_s)
    if found.on_error.action == "fail":
        return _finish(state, run, Outcome.FAILED, now_s, failure, step_id, message)
    commands = _drop_all(state, run, step_id, "the node was given up")
    if found.on_error.action == "value":
        return [
            *commands,
            SettleStep(run.id, step_id, Settlement.VALUE),
            *_settled(state, run, step_id, now_s),
        ]
    commands += _skip(state, run, step_id, now_s)
    return commands + _advance(state, run, run.template.graph.readers_by_step[step_id], now_s)


# --- time limits ---------------------------------------------------------------------------------------


def call_timed_out(state: State, call_id: CallId, kind: WakeKind, now_s: float) -> list[Command]:
    """A limit of one attempt passed: in the line, in all, or until its first token."""
    call = state.calls.get(call_id)
    if call is None or not _limit_applies(call, kind):
        return []
    failure = FailureKind.STALLED if kind is WakeKind.CALL_SILENT else FailureKind.TIMEOUT
    message = {
        WakeKind.CALL_QUEUE: f"{call.step} waited for a replica of {call.model} longer than its limit",
        WakeKind.CALL_ATTEMPT: f"{call.step} took longer than the limit of one attempt",
        WakeKind.CALL_SILENT: f"{call.replica} accepted {call.step} and said nothing",
    }[kind]
    commands: list[Command] = []
    if call.phase is not CallPhase.WAITING:
        commands.append(CancelCall(call.id, message))
        commands += charge_failure(state, call, failure, now_s)
    return commands + attempt_failed(state, call, failure, message, now_s)


def _limit_applies(call: Call, kind: WakeKind) -> bool:
    if kind is WakeKind.CALL_QUEUE:
        return call.phase is CallPhase.WAITING
    if kind is WakeKind.CALL_SILENT:
        return call.phase is CallPhase.DISPATCHED
    return call.phase is not CallPhase.WAITING


def step_timed_out(state: State, run_id: RunId, step_id: StepId, now_s: float) -> list[Command]:
    """The limit of a node in all passed; its attempts end and `on_error` decides."""
    run = state.runs.get(run_id)
    if run is None or run.steps[step_id].status not in (StepStatus.PREPARING, StepStatus.RUNNING):
        return []
    message = f"{step_id} took longer than its limit in all"
    commands = _drop_all(state, run, step_id, message)
    return commands + _give_up(state, run, step_id, None, FailureKind.TIMEOUT, message, now_s)


def join_is_due(state: State, run_id: RunId, step_id: StepId, now_s: float) -> list[Command]:
    """The readers of a fan-out have waited long enough: take what is there once it suffices."""
    run = state.runs.get(run_id)
    if run is None or run.steps[step_id].status is not StepStatus.RUNNING:
        return []
    run.steps[step_id].join_is_due = True
    return _join_if_complete(state, run, step_id, now_s)


def run_expired(state: State, run_id: RunId, now_s: float) -> list[Command]:
    """The hard deadline of a run passed."""
    run = state.runs.get(run_id)
    if run is None:
        return []
    message = "the hard deadline of the run passed; raise the tenant's `deadline` or lower the load"
    return _finish(state, run, Outcome.EXPIRED, now_s, FailureKind.EXPIRED, None, message)


def cancel(state: State, run_id: RunId, why: str, now_s: float) -> list[Command]:
    """The client left, or somebody ended the run."""
    run = state.runs.get(run_id)
    return [] if run is None else _finish(state, run, Outcome.CANCELLED, now_s, None, None, why)


# --- the end -------------------------------------------------------------------------------------------


def _finish(
    state: State,
    run: Run,
    outcome: Outcome,
    now_s: float,
    failure: FailureKind | None = None,
    step: StepId | None = None,
    message: str = "",
) -> list[Command]:
    """Give back everything the run holds and say how it ended. The run is gone after this."""
    commands: list[Command] = []
    for call_id in sorted(run.calls):
        commands += _cancel(state, run, state.calls[call_id], "the run has ended")
    del state.runs[run.id]
    state.runs_by_tenant[run.tenant] -= 1
    ttft_s = None if run.first_content_s is None else run.first_content_s - run.submitted_s
    tpot_s = _tpot_s(run, outcome, now_s)
    finished = FinishRun(
        run=run.id,
        tenant=run.tenant,
        workflow=run.template.workflow.id,
        outcome=outcome,
        verdict=_verdict(run, outcome, ttft_s, tpot_s, now_s),
        duration_s=now_s - run.submitted_s,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        usage=run.usage,
        failure=failure,
        step=step,
        message=message,
    )
    note_verdict(state, run, finished)
    return [*commands, finished]


def _tpot_s(run: Run, outcome: Outcome, now_s: float) -> float | None:
    if outcome is not Outcome.SUCCEEDED or run.output_usage is None or run.first_content_s is None:
        return None
    gaps = run.output_usage.output_tokens - 1
    return (now_s - run.first_content_s) / gaps if gaps > 0 else None


def _verdict(run: Run, outcome: Outcome, ttft_s: float | None, tpot_s: float | None, now_s: float) -> Verdict:
    """MET needs a whole answer; a client that left before the promise was broken leaves no verdict."""
    slo = run.slo
    if slo.is_empty:
        return Verdict.NONE
    is_late = now_s > min(run.due_ttft_s if run.first_content_s is None else math.inf, run.due_e2e_s) or (
        slo.ttft_s is not None and ttft_s is not None and ttft_s > slo.ttft_s
    )
    if outcome is Outcome.CANCELLED:
        return Verdict.MISSED if is_late else Verdict.NONE
    stutters = slo.tpot_s is not None and tpot_s is not None and tpot_s > slo.tpot_s
    return Verdict.MISSED if outcome is not Outcome.SUCCEEDED or is_late or stutters else Verdict.MET


def _drop(state: State, run: Run, call: Call) -> None:
    """Forget a call that has ended by itself."""
    if call.line_key is not None:
        state.dequeue(call)
    state.release(call)
    del state.calls[call.id]
    run.calls.discard(call.id)
    call.piece.call = None


def _cancel(state: State, run: Run, call: Call, why: str) -> list[Command]:
    """End a call that goes on otherwise."""
    is_underway = call.phase is not CallPhase.WAITING
    _drop(state, run, call)
    return [CancelCall(call.id, why)] if is_underway else []


def _drop_all(state: State, run: Run, step_id: StepId, why: str) -> list[Command]:
    """End every attempt of a step, those that wait for a repetition included."""
    commands: list[Command] = []
    for piece in run.steps[step_id].pieces:
        piece.waits_for_retry = False
        if piece.call is not None:
            commands += _cancel(state, run, state.calls[piece.call], why)
        piece.is_settled = True
    return commands
