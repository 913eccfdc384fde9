"""Why a run took as long as it did: every millisecond under a name, every decision with its candidates.

Owns the way back from the SLO event to the arrival, and what the figures are. The sentences that name a cause
are `cause.py`, the text for people is `render.py`. Every number comes from the journal; times are
milliseconds since the arrival of the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from tightrope.kernel.journal import Entry
from tightrope.model.codec import encode
from tightrope.model.errors import NotFound
from tightrope.model.fleet import Offer
from tightrope.model.ids import RunId, StepId
from tightrope.model.json import Json
from tightrope.model.messages import Dispatch, Settlement
from tightrope.model.outcome import Outcome, Verdict
from tightrope.model.workflow import CodeCall, Node
from tightrope.reports.timeline import (
    Attempt,
    Phases,
    RunFacts,
    StepFacts,
    end_of,
    gather,
    last_item,
    phases,
)

_SAME_MOMENT_S = 1e-6


@dataclass(frozen=True, slots=True)
class Promise:
    """One figure of the SLO: `ttft`, `e2e` or `tpot`. `late_ms` is negative when it was early."""

    name: str
    target_ms: float
    measured_ms: float | None
    late_ms: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """One step: when it was ready, when it ended, and its phases, which add up to `used_ms`.

    `ready_ms` and `end_ms` count from the arrival. `budget_ms` is what it was granted, None for a step without
    a promise to keep; `left_ms` is what was left of it (negative: overrun). `is_on_path` marks the steps that
    the SLO event waited for.
    """

    node: str
    kind: str
    replicas: tuple[str, ...]
    ready_ms: float
    end_ms: float
    prepare_ms: float
    queue_ms: float
    lost_ms: float
    prefill_ms: float
    decode_ms: float
    code_ms: float
    join_ms: float
    used_ms: float
    budget_ms: float | None
    left_ms: float | None
    is_on_path: bool
    is_critical: bool
    remark: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that was considered: lx + lq + lr = estimate; margin = slack - estimate (None without an SLO)."""

    replica: str
    accelerator: str
    lx_ms: float
    lq_ms: float
    lr_ms: float
    estimate_ms: float
    margin_ms: float | None
    score: float
    is_chosen: bool
    verdict: str


@dataclass(frozen=True, slots=True)
class Decision:
    """One placement: what was known, what was chosen, and what came of it.

    `slack_ms` is the time to the latest finish of the call, `remaining_ms` what the rest of the run was
    expected to need after it.
    `predicted_ms` and `measured_ms` are the time from dispatch to the moment that counts: the first token of
    an output node under a TTFT promise, the end of the call otherwise. `measured_ms` is None if it never came.
    """

    node: str
    item: int
    attempt: int
    model: str
    at_ms: float
    waited_ms: float
    policy: str
    reason: str
    slack_ms: float | None
    budget_ms: float | None
    remaining_ms: float | None
    candidates: tuple[Candidate, ...]
    counts_first_token: bool
    predicted_ms: float
    measured_ms: float | None
    predicted_ttft_ms: float
    measured_ttft_ms: float | None
    predicted_decode_ms: float
    measured_decode_ms: float | None
    estimated_prompt_tokens: int
    prompt_tokens: int | None
    expected_output_tokens: float
    output_tokens: int | None
    ending: str
    why: str


@dataclass(frozen=True, slots=True)
class Beside:
    """What happened to the fleet while the run went on; `kind`, `model` and `reason` as in `fleet.py`."""

    at_ms: float
    kind: str
    model: str
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that the journal can say about a run. `outcome` is "running" while it goes on.

    `event` names the moment that the times lead to: `ttft` (first content), `e2e` (end of the answer) or `end`
    (how the run ended without one). `event_ms` is when it came; `accounted_ms` of it is on the path, and
    `unaccounted_ms` is the rest.
    """

    run: str
    request: str
    tenant: str
    workflow: str
    arrived_unix_s: float
    outcome: str
    verdict: str
    failure: str
    refusal: str
    failed_step: str
    message: str
    retry_after_ms: float | None
    cases: tuple[str, ...]
    model_calls: int
    prompt_tokens: int
    output_tokens: int
    duration_ms: float
    event: str
    event_ms: float
    promises: tuple[Promise, ...]
    rows: tuple[Row, ...]
    accounted_ms: float
    unaccounted_ms: float
    critical: str
    decisions: tuple[Decision, ...]
    fleet: tuple[Beside, ...] = ()

    @property
    def accounted_share(self) -> float:
        """The share of the time that has a name; 1 for a run that ended at once."""
        return self.accounted_ms / self.event_ms if self.event_ms > 0 else 1.0

    @property
    def missed(self) -> Promise | None:
        """The promise that was broken first, in the order ttft, e2e, tpot."""
        return next((one for one in self.promises if one.late_ms is not None and one.late_ms > 0), None)

    @property
    def critical_row(self) -> Row | None:
        """The step that took most beyond its budget, or most of all."""
        return next((row for row in self.rows if row.is_critical), None)

    def decisions_of(self, node: str) -> tuple[Decision, ...]:
        """The placements of one node, in order."""
        return tuple(decision for decision in self.decisions if decision.node == node)


def explain(entries: Iterable[Entry], run: RunId) -> Explanation:
    """The explanation of one run. Raises NotFound when the journal does not know it."""
    facts = gather(entries, run)
    if facts is None:
        raise NotFound(f"the journal has no run {run}")
    return explanation(facts)


def explanation(facts: RunFacts) -> Explanation:
    """The explanation of a run whose facts were gathered."""
    event, event_s = _event(facts)
    path = _path(facts, event_s)
    rows = _rows(facts, path, event_s)
    accounted_ms = sum(row.used_ms for row in rows if row.is_on_path)
    finish = facts.finish
    return Explanation(
        run=facts.submitted.run,
        request=facts.submitted.request_id,
        tenant=facts.submitted.tenant,
        workflow=facts.submitted.workflow,
        arrived_unix_s=facts.arrived_wall_s,
        outcome=finish.outcome.value if finish else "running",
        verdict=finish.verdict.value if finish else Verdict.NONE.value,
        failure=finish.failure.value if finish and finish.failure else "",
        refusal=finish.refusal.value if finish and finish.refusal else "",
        failed_step=(finish.step or "") if finish else "",
        message=finish.message or facts.cancelled_why if finish else "",
        retry_after_ms=_ms(finish.retry_after_s) if finish else None,
        cases=tuple(f"{step.id}.{step.case}" for step in facts.steps.values() if step.case is not None),
        model_calls=sum(
            attempt.dispatch is not None for step in facts.steps.values() for attempt in step.attempts
        ),
        prompt_tokens=finish.usage.prompt_tokens if finish else 0,
        output_tokens=finish.usage.output_tokens if finish else 0,
        duration_ms=_round(facts.until_s),
        event=event,
        event_ms=_round(event_s),
        promises=_promises(facts),
        rows=rows,
        accounted_ms=_exact(accounted_ms),
        unaccounted_ms=_exact(_round(event_s) - accounted_ms),
        critical=next((row.node for row in rows if row.is_critical), ""),
        decisions=tuple(_decisions(facts)),
        fleet=tuple(
            Beside(_round(line.at_s), line.kind, line.model, line.reason, line.text) for line in facts.fleet
        ),
    )


def as_json(explained: Explanation) -> Json:
    """The explanation as plain JSON."""
    encoded = cast(dict[str, Json], encode(explained))
    return {key: value for key, value in encoded.items() if key != "type"}


# --- the SLO event and the way to it ---------------------------------------------------------------------


def _event(facts: RunFacts) -> tuple[str, float]:
    """The moment that the times lead to: what the verdict was about, else what a reader waits for."""
    finish = facts.finish
    if finish is None or finish.outcome is Outcome.REJECTED:
        return "end", facts.until_s
    slo, ttft_s = facts.submitted.slo, finish.ttft_s
    is_whole = finish.outcome is Outcome.SUCCEEDED
    is_late = slo.e2e_s is not None and finish.duration_s > slo.e2e_s
    kept_ttft = slo.ttft_s is None or (ttft_s is not None and ttft_s <= slo.ttft_s)
    stutters = slo.tpot_s is not None and finish.tpot_s is not None and finish.tpot_s > slo.tpot_s
    if is_whole and kept_ttft and (is_late or stutters):
        return "e2e", finish.duration_s
    if ttft_s is not None and (slo.ttft_s is not None or slo.e2e_s is None) and (is_whole or not kept_ttft):
        return "ttft", ttft_s
    return ("e2e" if is_whole else "end"), finish.duration_s


def _promises(facts: RunFacts) -> tuple[Promise, ...]:
    slo, finish = facts.submitted.slo, facts.finish
    ended_s = finish.duration_s if finish and finish.outcome is Outcome.SUCCEEDED else None
    figures = (
        ("ttft", slo.ttft_s, finish.ttft_s if finish else None),
        ("e2e", slo.e2e_s, ended_s),
        ("tpot", slo.tpot_s, finish.tpot_s if finish else None),
    )
    return tuple(
        Promise(name, _round(target_s), _ms(measured_s), _late_ms(target_s, measured_s, facts, name))
        for name, target_s, measured_s in figures
        if target_s is not None
    )


def _late_ms(target_s: float, measured_s: float | None, facts: RunFacts, name: str) -> float | None:
    if measured_s is not None:
        return _exact(_round(measured_s) - _round(target_s))
    if name == "tpot" or (facts.finish is not None and facts.finish.outcome is Outcome.REJECTED):
        return None
    waited_ms = _exact(_round(facts.until_s) - _round(target_s))
    return waited_ms if waited_ms > 0 else None


def _path(facts: RunFacts, event_s: float) -> list[StepId]:
    """The steps that the event waited for, last first: each was made ready by the end of the next."""
    step = _last_step(facts, event_s)
    path: list[StepId] = []
    while step is not None and step.id not in path:
        path.append(step.id)
        step = _made_ready_by(facts, step, event_s)
    return path


def _last_step(facts: RunFacts, event_s: float) -> StepFacts | None:
    """The step that the event happened in: the one that failed, the output node, else what went on last."""
    finish = facts.finish
    if finish is not None and finish.step is not None and finish.step in facts.steps:
        return facts.steps[finish.step]
    output = facts.workflow.output if facts.workflow else None
    if output in facts.steps and facts.steps[output].ready_s is not None:
        return facts.steps[output]
    begun = [step for step in facts.steps.values() if step.ready_s is not None and step.ready_s <= event_s]
    return max(begun, key=lambda step: (end_of(step, event_s), step.ready_s or 0.0), default=None)


def _made_ready_by(facts: RunFacts, step: StepFacts, event_s: float) -> StepFacts | None:
    ready_s = step.ready_s or 0.0
    sources = _sources(facts, step.id)
    ended = [
        other
        for other in facts.steps.values()
        if other.id != step.id
        and (sources is None or other.id in sources)
        and other.ready_s is not None
        and end_of(other, event_s) <= ready_s + _SAME_MOMENT_S
    ]
    return max(
        ended, key=lambda other: (end_of(other, event_s), other.ready_s or 0.0, other.id), default=None
    )


def _sources(facts: RunFacts, step: StepId) -> set[StepId] | None:
    """What the step waits for, and what those wait for that were skipped before they were ready.

    None when the journal has lost the workflow.
    """
    if facts.workflow is None or step not in facts.workflow.graph.needs_by_step:
        return None
    needs_by_step = facts.workflow.graph.needs_by_step
    found: set[StepId] = set()
    frontier = [step]
    while frontier:
        for source in (source for need in needs_by_step[frontier.pop()] for source in need.any_of):
            if source not in found:
                found.add(source)
                if source in facts.steps and facts.steps[source].ready_s is None:
                    frontier.append(source)
    return found


# --- rows ------------------------------------------------------------------------------------------------


def _rows(facts: RunFacts, path: Sequence[StepId], event_s: float) -> tuple[Row, ...]:
    begun = [
        step
        for step in facts.steps.values()
        if step.ready_s is not None and (step.ready_s < event_s or step.id in path)
    ]
    rows = [_row(facts, step, step.id in path, event_s) for step in sorted(begun, key=_by_ready)]
    critical = _critical(rows)
    return tuple(replace(row, is_critical=True) if row.node == critical else row for row in rows)


def _by_ready(step: StepFacts) -> tuple[float, str]:
    return (step.ready_s or 0.0, step.id)


def _row(facts: RunFacts, step: StepFacts, is_on_path: bool, event_s: float) -> Row:
    end_s = end_of(step, event_s)
    ready_ms, end_ms = _round(step.ready_s or 0.0), _round(end_s)
    cut = _in_ms(phases(step, end_s), end_ms - ready_ms)
    budget_ms = _budget_ms(step, end_s)
    used_ms = _exact(end_ms - ready_ms)
    return Row(
        node=step.id,
        kind=_kind(facts, step),
        replicas=_replicas(step),
        ready_ms=ready_ms,
        end_ms=end_ms,
        prepare_ms=cut[0],
        queue_ms=cut[1],
        lost_ms=cut[2],
        prefill_ms=cut[3],
        decode_ms=cut[4],
        code_ms=cut[5],
        join_ms=cut[6],
        used_ms=used_ms,
        budget_ms=budget_ms,
        left_ms=None if budget_ms is None else _exact(budget_ms - used_ms),
        is_on_path=is_on_path,
        is_critical=False,
        remark="; ".join(_remarks(step, end_s)),
    )


def _in_ms(cut: Phases, used_ms: float) -> list[float]:
    """The phases rounded so that they still add up: the largest takes the difference."""
    parts = (
        cut.prepare_s,
        cut.queue_s,
        cut.lost_s,
        cut.prefill_s,
        cut.decode_s,
        cut.code_s,
        cut.join_s,
    )
    rounded = [_round(part) for part in parts]
    largest = rounded.index(max(rounded))
    rounded[largest] = _exact(rounded[largest] + used_ms - sum(rounded))
    return rounded


def _critical(rows: Sequence[Row]) -> str | None:
    on_path = [row for row in rows if row.is_on_path]
    over = [row for row in on_path if row.left_ms is not None and row.left_ms < 0]
    if over:
        return min(over, key=lambda row: (row.left_ms or 0.0, row.node)).node
    return max(on_path, key=lambda row: (row.used_ms, row.node)).node if on_path else None


def _kind(facts: RunFacts, step: StepFacts) -> str:
    known = facts.workflow.step_by_id.get(step.id) if facts.workflow else None
    if step.is_switch:
        return "switch"
    if isinstance(known, Node):
        return "code" if isinstance(known.work, CodeCall) else "model"
    return "code" if any(attempt.dispatch is None for attempt in step.attempts) else "model"


def _replicas(step: StepFacts) -> tuple[str, ...]:
    used = (attempt.dispatch.replica for attempt in step.attempts if attempt.dispatch is not None)
    return tuple(dict.fromkeys(used))


def _budget_ms(step: StepFacts, end_s: float) -> float | None:
    """What the step was granted when the item it waited for first got its grant."""
    attempts = last_item(step, end_s)
    if not attempts or attempts[0].dispatch is None:
        return None
    return _ms(attempts[0].dispatch.slack.budget_s)


def _remarks(step: StepFacts, end_s: float) -> Iterable[str]:
    attempts = last_item(step, end_s)
    done = {attempt.item for attempt in step.attempts if attempt.ending == "done"}
    if step.case is not None:
        yield f"case {step.case}"
    if step.items != 1 and step.prepared_s is not None:
        yield f"{len(done)} of {step.items} items"
    tried = [attempt for attempt in attempts if attempt.why and attempt.ending != "done"]
    for attempt in tried:
        where = f" on {attempt.dispatch.replica}" if attempt.dispatch else ""
        yield f"attempt {attempt.number + 1}{where} {attempt.ending}: {attempt.why}"
    if attempts and attempts[-1].dispatch and attempts[-1].dispatch.is_reask:
        yield "asked again, the answer before had the wrong shape"
    if any(attempt.was_repaired for attempt in attempts):
        yield "answer repaired"
    models = [attempt.dispatch.model for attempt in attempts if attempt.dispatch]
    if models and models[-1] != models[0]:
        yield f"fell back to {models[-1]}"
    if step.settlement is Settlement.SKIPPED:
        yield "skipped"
    if step.settlement is Settlement.VALUE:
        yield "its on_error value stands in"
    if step.failure:
        yield step.failure


# --- decisions -------------------------------------------------------------------------------------------


def _decisions(facts: RunFacts) -> Iterable[Decision]:
    placed = [
        (attempt.started_s, attempt, attempt.dispatch)
        for step in facts.steps.values()
        for attempt in step.attempts
        if attempt.dispatch is not None
    ]
    for _, attempt, dispatch in sorted(placed, key=lambda one: (one[0], one[1].call)):
        yield _decision(attempt, dispatch)


def _decision(attempt: Attempt, dispatch: Dispatch) -> Decision:
    chosen = next(offer for offer in dispatch.routed.offers if offer.replica == dispatch.replica)
    estimate = chosen.estimate
    counts_first_token = estimate.crit < estimate.ttft + estimate.decode
    is_done = attempt.ending == "done"
    ttft_s = None if attempt.first_token_s is None else attempt.first_token_s - attempt.started_s
    whole_s = attempt.ended_s - attempt.started_s if is_done and attempt.ended_s is not None else None
    measured_s = ttft_s if counts_first_token else whole_s
    return Decision(
        node=dispatch.step,
        item=dispatch.item,
        attempt=dispatch.attempt,
        model=dispatch.model,
        at_ms=_round(attempt.started_s),
        waited_ms=_round(dispatch.waited_s),
        policy=dispatch.routed.policy,
        reason=dispatch.routed.reason,
        slack_ms=_ms(dispatch.slack.slack_s),
        budget_ms=_ms(dispatch.slack.budget_s),
        remaining_ms=_ms(dispatch.slack.remaining_s),
        candidates=tuple(_candidate(offer, dispatch) for offer in dispatch.routed.offers),
        counts_first_token=counts_first_token,
        predicted_ms=_exact(estimate.crit),
        measured_ms=_ms(measured_s),
        predicted_ttft_ms=_exact(estimate.ttft),
        measured_ttft_ms=_ms(ttft_s),
        predicted_decode_ms=_exact(estimate.decode),
        measured_decode_ms=_ms(whole_s - ttft_s) if whole_s is not None and ttft_s is not None else None,
        estimated_prompt_tokens=dispatch.prompt_tokens,
        prompt_tokens=attempt.usage.prompt_tokens or None,
        expected_output_tokens=_exact(dispatch.output_tokens),
        output_tokens=attempt.usage.output_tokens if is_done else None,
        ending=attempt.ending,
        why=attempt.why,
    )


def _candidate(offer: Offer, dispatch: Dispatch) -> Candidate:
    lx, lq, lr = (_exact(part) for part in (offer.estimate.lx, offer.estimate.lq, offer.estimate.lr))
    estimate_ms = _exact(lx + lq + lr)
    slack_ms = _ms(dispatch.slack.slack_s)
    return Candidate(
        replica=offer.replica,
        accelerator=offer.accelerator,
        lx_ms=lx,
        lq_ms=lq,
        lr_ms=lr,
        estimate_ms=estimate_ms,
        margin_ms=None if slack_ms is None else _exact(slack_ms - estimate_ms),
        score=offer.score,
        is_chosen=offer.replica == dispatch.replica,
        verdict=offer.verdict,
    )


# --- numbers ---------------------------------------------------------------------------------------------


def _round(seconds: float) -> float:
    """Milliseconds, to a thousandth."""
    return round(seconds * 1000, 3)


def _exact(ms: float) -> float:
    """Milliseconds without the dust of floating point."""
    return round(ms, 3)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None or not math.isfinite(seconds) else _round(seconds)
