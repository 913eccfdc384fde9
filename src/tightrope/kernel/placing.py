"""Placing calls: what a call is granted, its place in the line, and the walk along the line.

Owns the step from "ready" to `Dispatch`. Which replica is best is asked of the router; what happens when the
call fails is `runs.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tightrope.kernel.demoting import is_lost, part_line
from tightrope.kernel.locality import note_prompt, with_hits
from tightrope.kernel.margins import note_predicted
from tightrope.kernel.offering import note_offered, utilisation
from tightrope.kernel.pacing import look_at_faded, tick
from tightrope.kernel.signals import note_demanded, note_dispatched
from tightrope.kernel.state import Call, CallPhase, Piece, Pool, Run, State
from tightrope.model.errors import TightropeBug
from tightrope.model.fleet import HeldCall, Job, PoolView, Routed
from tightrope.model.ids import CallId, ReplicaId, StepId
from tightrope.model.messages import Command, Dispatch, Slack, Wake, WakeAt, WakeKind
from tightrope.model.profile import Profile
from tightrope.model.workflow import ModelCall
from tightrope.policy.estimate import first_token_ms, typical_s, typical_times_s
from tightrope.policy.order import is_hopeless
from tightrope.policy.slack import grant

LUCKY_QUANTILE = 0.2
"""Of the remaining time, when a call is judged hopeless: a run that may still take a short branch has hope, and
the cautious quantile that orders the line would see the longest one."""
SURELY_TOO_LONG = 2
"""A prompt estimated at more than this many times the context memory cannot be an error of the estimate."""
LONG_LINE = 20
"""A line of up to so many calls is walked from end to end at every event; below saturation none is longer."""
LOOK_AGAIN = 2
"""In a longer one so many calls are looked at again at every event, in turn, besides those that an event is about."""
UNMEASURED_SILENCE_S = 60.0
"""How long a replica that nobody profiled may be silent: nothing is known about its speed."""


# --- a new attempt -------------------------------------------------------------------------------------


def make_call(state: State, run: Run, step_id: StepId, piece: Piece, now_s: float) -> Call:
    """A new attempt of an item. Code is granted its budget at once; a model call is to enter the line."""
    attempt = piece.tries
    piece.tries += 1
    call_id = CallId(f"{run.id}/{step_id}/{piece.index}.{attempt}")
    work = run.node(step_id).work
    is_model = isinstance(work, ModelCall)
    call = Call(
        id=call_id,
        run=run.id,
        step=step_id,
        piece=piece,
        attempt=attempt,
        phase=CallPhase.WAITING if is_model else CallPhase.CODE,
        ready_s=now_s,
        slack=Slack(math.inf, math.inf, math.inf, 0.0),
        is_reask=piece.was_reasked,
    )
    piece.call = call_id
    state.calls[call_id] = call
    run.calls.add(call_id)
    if isinstance(work, ModelCall):
        call.model = work.fallback if piece.on_fallback and work.fallback is not None else work.model
        call.max_tokens = _cap(run, step_id, work)
    else:
        own_s = run.template.learned.code_seconds(step_id, now_s)
        call.slack = _grant(state, run, step_id, own_s, own_s, now_s).slack
    return call


def _cap(run: Run, step_id: StepId, work: ModelCall) -> int:
    if step_id != run.output or run.output_tokens is None:
        return work.max_tokens
    return max(1, min(work.max_tokens, run.output_tokens))


def enter_line(state: State, run: Run, call: Call, now_s: float) -> bool:
    """Grant the call what the run can afford now, and put it into the line of its pool.

    False, and nothing is done, for a prompt that no replica of the pool could ever hold. A prompt that only may
    be too long is the engine's to refuse: its tokens are counted there and estimated here.
    """
    if call.model is None:
        raise TightropeBug(f"{call.id} names no model")
    item, learned, is_new = call.piece.item, run.template.learned, call.job is None
    prompt_tokens = item.prompt_tokens or learned.prompt_tokens(call.step, item.prompt_bytes)
    lengths = learned.lengths(call.step, call.max_tokens, now_s)
    profiles = state.pool_profiles(call.model)
    memory = max((profile.kv_tokens for profile in profiles), default=prompt_tokens + lengths.high)
    is_measured = all((call.model, profile.accelerator) in state.profiles for profile in profiles)
    if is_measured and prompt_tokens > SURELY_TOO_LONG * memory:
        return False
    prompt_tokens = min(prompt_tokens, max(1, memory - 1))
    first_s, whole_s = typical_times_s(prompt_tokens, lengths.mean, profiles)
    granted = _grant(state, run, call.step, first_s, whole_s, now_s)
    own_s = call.usual_s = first_s if granted.is_terminal else whole_s
    call.usual_on = profiles
    call.slack, call.last_chance_s = granted.slack, granted.last_chance_s
    call.job = Job(
        call=call.id,
        model=call.model,
        prompt_tokens=prompt_tokens,
        output_tokens=lengths.mean,
        output_high=max(1, min(lengths.high, memory - prompt_tokens)),
        ready_s=call.ready_s,
        due_s=call.slack.due_s,
        budget_s=call.slack.budget_s,
        is_terminal=granted.is_terminal,
        is_hopeless=is_hopeless(call.last_chance_s, own_s, now_s),
        tpot_s=_tpot_s(run, call.step),
    )
    state.enqueue(call)
    if is_new:
        note_offered(state, call, now_s)
        note_demanded(state, run, call, now_s)
    return True


def _tpot_s(run: Run, step_id: StepId) -> float:
    """What a reader of this step was promised per token; nobody reads along but at the output node."""
    promised_s = run.slo.tpot_s if step_id == run.output else None
    return math.inf if promised_s is None else promised_s


@dataclass(frozen=True, slots=True)
class _Granted:
    """A grant, whether only the first token counts, and the moment by which the step must end even with luck."""

    slack: Slack
    is_terminal: bool
    last_chance_s: float


def _grant(state: State, run: Run, step_id: StepId, first_s: float, whole_s: float, now_s: float) -> _Granted:
    """The tighter of the grants under the promises of the run.

    Without a promise the first token is what a reader waits for, so it counts as if there were one.
    """
    is_output = step_id == run.output
    own_ttft_s = first_s if is_output else whole_s
    outlook_ttft, outlook_e2e = run.template.outlook_ttft, run.template.outlook_e2e
    if outlook_ttft is None or outlook_e2e is None:
        raise TightropeBug(f"{run.template.workflow.id} has no outlook")
    quantile = state.settings.quantile
    ttft = grant(now_s, run.due_ttft_s, own_ttft_s, outlook_ttft, step_id, run.cases, quantile)
    e2e = grant(now_s, run.due_e2e_s, whole_s, outlook_e2e, step_id, run.cases, quantile)
    if e2e.due_s < ttft.due_s:
        lucky_s = outlook_e2e.remaining_s(step_id, run.cases, LUCKY_QUANTILE)
        return _Granted(e2e, False, run.due_e2e_s - lucky_s)
    lucky_s = outlook_ttft.remaining_s(step_id, run.cases, LUCKY_QUANTILE)
    return _Granted(ttft, is_output, run.due_ttft_s - lucky_s)


def call_expectation_s(state: State, run: Run, call: Call) -> float:
    """Seconds that one more attempt like this one is expected to take on the best card."""
    if call.job is None or call.model is None:
        return run.template.learned.code_seconds(call.step, call.ready_s)
    job = call.job
    return typical_s(job.prompt_tokens, job.output_tokens, job.is_terminal, state.pool_profiles(call.model))


# --- the walk along the line ---------------------------------------------------------------------------


def place(state: State, pool: Pool, opened: Sequence[ReplicaId], now_s: float) -> list[Command]:
    """Dispatch the waiting calls that go to a replica with room for them now.

    A late-binding router looks at all replicas. A call whose best one is full stays in the line and is placed
    there in thought, so that those behind it see the load it will be. While the line is short, it is walked from
    end to end and all thoughts are forgotten after it. In a long one they stay, and only some calls are looked at:
    those that have just come, those placed on a replica where there is new room (`opened`), and a few in turn.
    """
    part_line(state, pool, now_s)
    is_long = len(pool.line) > LONG_LINE and state.router.is_late_binding
    has_become_long, pool.is_long = is_long and not pool.is_long, is_long
    arrived = [state.calls[call] for call in pool.arrived if call in state.calls]
    pool.arrived.clear()
    if not pool.line:
        return []
    look_at_faded(state, pool, now_s)
    if is_long and not has_become_long:
        commands = _walk(state, pool, arrived, now_s)
        for replica in opened:
            commands += _serve(state, pool, replica, now_s)
        return commands + _walk(state, pool, _in_turn(state, pool), now_s)
    state.forget_thoughts(pool)
    commands = _walk(state, pool, [state.calls[call] for _, call in pool.line], now_s)
    if not is_long:
        state.forget_thoughts(pool)
    return commands


def _serve(state: State, pool: Pool, replica_id: ReplicaId, now_s: float) -> list[Command]:
    """Look at the calls placed on the replica in thought, the first ones first, until one is not dispatched."""
    commands: list[Command] = []
    replica = state.replicas.get(replica_id)
    calls = [state.calls[call] for call in replica.placed] if replica is not None else []
    for call in sorted(calls, key=_place_in_line):
        dispatched = _walk(state, pool, [call], now_s)
        if not dispatched:
            break
        commands += dispatched
    return commands


def _place_in_line(call: Call) -> tuple[object, ...]:
    if call.line_key is None:
        raise TightropeBug(f"{call.id} does not stand in a line")
    return call.line_key


def _in_turn(state: State, pool: Pool) -> list[Call]:
    """The next few calls of the line; after its end, the first ones again."""
    start = pool.cursor if pool.cursor < len(pool.line) else 0
    pool.cursor = start + LOOK_AGAIN
    return [state.calls[call] for _, call in pool.line[start : pool.cursor]]


def _walk(state: State, pool: Pool, calls: Sequence[Call], now_s: float) -> list[Command]:
    """Dispatch each of these calls or place it in thought, while anybody has a free sequence."""
    commands: list[Command] = []
    hopeless: list[Call] = []
    for call in calls:
        if not pool.roster.has_free_sequence:
            break
        if call.line_key is None:
            continue  # it waits no more
        if _turned_hopeless(state, call, now_s):
            hopeless.append(call)
            continue
        dispatched = _place_one(state, pool, call, now_s)
        commands += dispatched
        if not dispatched and not state.router.is_late_binding:
            break
    return commands + _place_hopeless(state, pool, hopeless, now_s)


def _turned_hopeless(state: State, call: Call, now_s: float) -> bool:
    """Whether the call, live until now, can no longer be on time anywhere."""
    return call.job is not None and not call.job.is_hopeless and is_lost(state, call, now_s)


def _place_hopeless(state: State, pool: Pool, calls: Sequence[Call], now_s: float) -> list[Command]:
    """Move calls that have become hopeless behind the live ones, and give them what room is left."""
    for call in calls:
        state.dequeue(call)
        if call.job is not None:
            call.job = replace(call.job, is_hopeless=True)
        state.enqueue(call)
    return place(state, pool, (), now_s) if calls else []


def _place_one(state: State, pool: Pool, call: Call, now_s: float) -> list[Command]:
    """Dispatch the call, or place it in thought."""
    if call.job is None:
        raise TightropeBug(f"{call.id} has no job to be placed with")
    state.forget_thought(call)
    job, routed = _choose(state, pool, call, call.job, now_s)
    if routed is None:
        return []
    chosen = pool.roster.of(routed.replica)
    if chosen is None:
        raise TightropeBug(f"{state.router.name} chose {routed.replica}, which is not ready")
    held = HeldCall(
        call=call.id,
        prompt_tokens=job.prompt_tokens,
        output_tokens=job.output_tokens,
        dispatched_s=now_s,
        due_s=job.due_s,
        is_terminal=job.is_terminal,
        is_hopeless=job.is_hopeless,
        has_slot=state.router.room(job, chosen, now_s),
        tpot_s=job.tpot_s,
    )
    if not held.has_slot:
        if state.router.is_late_binding:
            state.think(call, state.replicas[chosen.id], held)
        return []
    ttft_ms = first_token_ms(job, chosen, now_s)
    commands = _dispatch(state, pool, call, held, routed, ttft_ms, now_s)
    note_predicted(state, call, routed)
    note_dispatched(state, pool, call, routed, now_s)
    note_prompt(call.piece.item, pool, chosen, now_s)
    return commands


def _choose(state: State, pool: Pool, call: Call, job: Job, now_s: float) -> tuple[Job, Routed | None]:
    """Ask the router, about the replicas that have not failed this item yet, unless that would leave nobody."""
    roster = pool.roster
    failed = [view for view in map(roster.of, dict.fromkeys(call.piece.avoid)) if view is not None]
    hidden = failed if len(failed) < len(roster) else []
    for view in hidden:
        roster.drop(view.id)
    cards = {view.profile for view in roster} if hidden else state.pool_profiles(pool.model)
    job = with_hits(_no_larger_than(job, cards), call.piece.item, pool, now_s)
    candidates = PoolView(pool.model, roster, pool.turn, roster.kinds(now_s), utilisation(state, pool, now_s))
    routed = state.router.choose(job, candidates, now_s, state.rng)
    for view in hidden:
        roster.put(view)
    return job, routed


def _no_larger_than(job: Job, cards: Iterable[Profile]) -> Job:
    """The job as the roomiest replica could just hold it: sizes are guesses, and saying no is the engine's part."""
    most = max((card.kv_tokens for card in cards), default=0)
    if job.prompt_tokens + job.output_high <= most:
        return job
    prompt_tokens = min(job.prompt_tokens, max(1, most - 1))
    output_high = max(1, min(job.output_high, most - prompt_tokens))
    output_tokens = min(job.output_tokens, output_high)
    return replace(job, prompt_tokens=prompt_tokens, output_tokens=output_tokens, output_high=output_high)


def _dispatch(
    state: State, pool: Pool, call: Call, held: HeldCall, routed: Routed, ttft_ms: float, now_s: float
) -> list[Command]:
    replica = state.replicas[routed.replica]
    state.dequeue(call)
    call.phase = CallPhase.DISPATCHED
    call.replica = routed.replica
    tick(state, replica, now_s)
    state.hold(replica, held)
    pool.turn += 1
    run = state.runs[call.run]
    profile = state.profile(pool.model, replica.spec.accelerator)
    is_measured = (pool.model, replica.spec.accelerator) in state.profiles
    commands: list[Command] = [
        Dispatch(
            call=call.id,
            run=call.run,
            step=call.step,
            item=call.piece.index,
            attempt=call.attempt,
            replica=routed.replica,
            model=pool.model,
            max_tokens=call.max_tokens,
            is_reask=call.is_reask,
            idle_s=run.node(call.step).timeouts.idle_s or _idle_s(state, profile, is_measured),
            waited_s=now_s - call.ready_s,
            prompt_tokens=held.prompt_tokens,
            output_tokens=held.output_tokens,
            slack=replace(call.slack, slack_s=call.slack.due_s - now_s),
            routed=routed,
        )
    ]
    attempt_s = run.node(call.step).timeouts.attempt_s
    if attempt_s is not None:
        commands.append(WakeAt(now_s + attempt_s, Wake(WakeKind.CALL_ATTEMPT, call.id)))
    silent_s = _silence_s(state, ttft_ms / 1000, is_measured)
    commands.append(WakeAt(now_s + silent_s, Wake(WakeKind.CALL_SILENT, call.id)))
    return commands


def _silence_s(state: State, predicted_s: float, is_measured: bool) -> float:
    """How long silence can be explained: a long prompt is not a fault."""
    if not is_measured:
        return max(UNMEASURED_SILENCE_S, state.settings.silence_factor * predicted_s)
    return max(state.settings.silence_s, state.settings.silence_factor * predicted_s)


def _idle_s(state: State, profile: Profile, is_measured: bool) -> float:
    """The same between two tokens: the worst step is one that is full of somebody else's prompt."""
    full_ms = profile.coefficients.step_ms(
        profile.max_sequences, profile.kv_tokens / 2, profile.step_tokens, profile.step_tokens**2 / 2
    )
    return _silence_s(state, full_ms / 1000, is_measured)
