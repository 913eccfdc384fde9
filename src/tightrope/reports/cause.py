"""One sentence for why a run ended as it did, and one for what to do about it.

Owns the choice of the cause: the largest of the excesses on the critical step. The figures are `explain.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from tightrope.reports.explain import Candidate, Decision, Explanation, Promise, Row

FROM_ZERO = "from-zero"
"""The provisioner's reason to start the first replica of a model."""
_MAIN_SHARE = 0.5
"""An excess that explains less than this share of the lateness is not its cause."""


@dataclass(frozen=True, slots=True)
class Cause:
    """What happened, and the next step; `next` is "" when there is nothing to do."""

    sentence: str
    next: str = ""


def cause(explained: Explanation) -> Cause:
    """Why the run ended as it did, in words."""
    match explained.outcome:
        case "running":
            return Cause(f"Still running after {ms(explained.duration_ms)}.")
        case "rejected":
            return _rejected(explained)
        case "failed":
            return _failed(explained)
        case "cancelled":
            return Cause(f"Cancelled after {ms(explained.duration_ms)}{_because(explained.message)}.")
        case "expired":
            return _expired(explained)
        case _:
            missed = explained.missed
            return _late(explained, missed) if missed else _on_time(explained)


def ms(value: float) -> str:
    """Milliseconds as people read them."""
    return f"{value:.0f} ms" if abs(value) >= 10 or value == round(value) else f"{value:.1f} ms"


# --- runs without an answer ------------------------------------------------------------------------------


def _rejected(explained: Explanation) -> Cause:
    when = explained.retry_after_ms
    back = f"come back in {ms(when)}" if when else "send it again later"
    cures = {
        "draining": "send it to another instance, or wait until this one has started again",
        "no_replica": "start a replica of the model: see its log in the state folder, and `tightrope check`",
        "queue_full": f"{back}, or raise limits.queue of tenant {explained.tenant}",
        "rate_limited": f"{back}, or raise limits.concurrent of tenant {explained.tenant}",
    }
    sentence = f"Refused before any work ({explained.refusal}){_because(explained.message)}."
    return Cause(sentence, cures.get(explained.refusal, back))


def _failed(explained: Explanation) -> Cause:
    step = explained.failed_step or explained.critical
    tries = [decision for decision in explained.decisions_of(step) if decision.ending != "done"]
    after = f" after {len(tries)} attempts" if len(tries) > 1 else ""
    sentence = f"{step or 'The run'} failed{after} with {explained.failure}{_because(explained.message)}."
    cures = {
        "timeout": f"raise the timeout of {step}, or give it a fallback",
        "stalled": f"look into the log of the replica; give {step} a fallback",
        "replica_lost": f"look into the log of the replica; give {step} a fallback or a retry",
        "engine_error": f"look into the log of the replica; give {step} a fallback or a retry",
        "bad_request": f"the engine refuses what {step} sends: correct its parameters",
        "context_too_long": f"shorten the inputs of {step}, or serve the model with a larger context",
        "bad_output": f"ask for a simpler shape in {step}, or give it an on_error value",
        "code_error": f"correct the function of {step}, or give it an on_error value",
        "bad_input": f"check the inputs of {step}",
    }
    return Cause(sentence, cures.get(explained.failure, ""))


def _expired(explained: Explanation) -> Cause:
    row = explained.critical_row
    where = f"; {row.node} took {ms(row.used_ms)} of it, {_largest_phase(row)}" if row else ""
    sentence = f"Ended by its hard deadline after {ms(explained.duration_ms)}{where}."
    return Cause(sentence, f"raise limits.deadline of tenant {explained.tenant}, or add capacity")


# --- answers ---------------------------------------------------------------------------------------------


def _on_time(explained: Explanation) -> Cause:
    judged = [promise for promise in explained.promises if promise.late_ms is not None]
    row = explained.critical_row
    longest = f" {row.node} took most of it, {ms(row.used_ms)}, {_largest_phase(row)}." if row else ""
    if not judged:
        return Cause(f"No SLO was promised: the answer came after {ms(explained.event_ms)}.{longest}")
    spare = "; ".join(f"{promise.name} {ms(-(promise.late_ms or 0.0))} inside" for promise in judged)
    return Cause(f"On time: {spare}.{longest}")


def _late(explained: Explanation, missed: Promise) -> Cause:
    late = f"Late by {ms(missed.late_ms or 0.0)} on {missed.name}: "
    row = explained.critical_row
    if row is None:
        return Cause(late + "the journal shows no step of it.")
    decisions = explained.decisions_of(row.node)
    decision = decisions[-1] if decisions else None
    if missed.name == "tpot" and decision is not None:
        return _stutter(late, row, decision)
    excess_by_cause = _excesses(row, decision)
    largest = max(excess_by_cause, key=lambda name: excess_by_cause[name])
    is_main = excess_by_cause[largest] >= _MAIN_SHARE * (missed.late_ms or 0.0)
    if not is_main or excess_by_cause[largest] <= 0 or (row.left_ms or 0.0) >= 0:
        return _out_of_reach(late, explained, row, decision)
    match largest:
        case "lost":
            sentence = f"{row.node} lost {ms(row.lost_ms)} to attempts that failed ({row.remark})."
            return Cause(late + sentence, "look into the log of the replica that failed")
        case "queue":
            return _queued(late, explained, row, decision)
        case "code":
            sentence = f"the function of {row.node} took {ms(row.code_ms)}."
            return Cause(
                late + sentence, f"make it faster, or give {row.node} a timeout and an on_error value"
            )
        case "join":
            sentence = f"{row.node} waited {ms(row.join_ms)} for further items ({row.remark})."
            return Cause(
                late + sentence, f"let the reader of {row.node} gather fewer items, or wait less long"
            )
        case "prepare":
            sentence = f"building the inputs of {row.node} took {ms(row.prepare_ms)}."
            return Cause(late + sentence, "this machine is overloaded: give the runtime a core of its own")
        case _:
            return _mispredicted(late, row, decision, largest)


def _excesses(row: Row, decision: Decision | None) -> dict[str, float]:
    """Milliseconds beyond what was foreseen, by cause."""
    found = {"lost": row.lost_ms, "queue": row.queue_ms, "join": row.join_ms, "prepare": row.prepare_ms}
    if row.kind == "code":
        found["code"] = row.code_ms
    if decision is not None and decision.measured_ttft_ms is not None:
        found["prefill"] = decision.measured_ttft_ms - decision.predicted_ttft_ms
    if decision is not None and decision.measured_decode_ms is not None and not decision.counts_first_token:
        found["decode"] = decision.measured_decode_ms - decision.predicted_decode_ms
    return found


def _queued(late: str, explained: Explanation, row: Row, decision: Decision | None) -> Cause:
    model = decision.model if decision else "its model"
    if any(
        one.model == model and one.reason == FROM_ZERO and one.at_ms <= row.end_ms for one in explained.fleet
    ):
        sentence = f"{row.node} waited {ms(row.queue_ms)} in the line while a replica of {model} was started."
        keep = f"keep one of {model}: write a min for it, or a floor for tenant {explained.tenant}"
        return Cause(late + sentence, keep)
    sentence = f"{row.node} waited {ms(row.queue_ms)} in the line because no replica of {model} had room."
    return Cause(late + sentence, f"add a replica of {model}, or lower the load")


def _stutter(late: str, row: Row, decision: Decision) -> Cause:
    sentence = f"{row.node} decoded slower than promised on {_chosen(decision).replica}."
    return Cause(late + sentence, "lower the slots of its engine, or use a faster accelerator")


def _mispredicted(late: str, row: Row, decision: Decision | None, phase: str) -> Cause:
    if decision is None:
        return Cause(f"{late}{row.node} took {ms(row.used_ms)}.")
    chosen = _chosen(decision)
    if phase == "prefill":
        predicted, measured = decision.predicted_ttft_ms, decision.measured_ttft_ms or 0.0
        sentence = (
            f"{chosen.replica} was predicted to begin after {ms(predicted)} and began after {ms(measured)}"
            f"{_prompt_note(decision)}"
        )
    else:
        predicted, measured = decision.predicted_decode_ms, decision.measured_decode_ms or 0.0
        sentence = (
            f"{row.node} was predicted to write for {ms(predicted)} on {chosen.replica} and wrote for {ms(measured)}"
            f" ({decision.expected_output_tokens:.0f} tokens expected, {decision.output_tokens} written)"
        )
    return Cause(f"{late}{sentence}{_other(decision, chosen)}.", _profile_again(decision, chosen, phase))


def _prompt_note(decision: Decision) -> str:
    real, estimated = decision.prompt_tokens, decision.estimated_prompt_tokens
    if real is None or real <= 1.1 * estimated:
        return ""
    return f" ({estimated} prompt tokens estimated, {real} real)"


def _other(decision: Decision, chosen: Candidate) -> str:
    """The best replica that was passed over, if it was expected to be on time."""
    others = [one for one in decision.candidates if one is not chosen and (one.margin_ms or 0.0) > 0]
    if not others:
        return ""
    best = min(others, key=lambda one: (one.estimate_ms, one.replica))
    return f"; {best.replica}, estimated at {ms(best.estimate_ms)}, was passed over ({best.verdict})"


def _profile_again(decision: Decision, chosen: Candidate, phase: str) -> str:
    written = decision.output_tokens
    if phase == "decode" and written is not None and written > 1.2 * decision.expected_output_tokens:
        return f"lower max_tokens of {decision.node} if answers need not be that long"
    command = f"tightrope profile {decision.model} --on {chosen.accelerator} --verify"
    return f"run `{command}`: if the profile is wrong, measure it again; if it is right, the replica was disturbed"


def _out_of_reach(late: str, explained: Explanation, row: Row, decision: Decision | None) -> Cause:
    """No single step took much longer than foreseen: there was too little time, from some decision on."""
    on_path = {one.node for one in explained.rows if one.is_on_path}
    first = next((one for one in explained.decisions if one.node in on_path and _is_hopeless(one)), None)
    if first is None:
        model = decision.model if decision else "its model"
        sentence = f"{row.node} took {ms(row.used_ms)}, {_largest_phase(row)}."
    else:
        model, best = first.model, _best(first)
        rest = f" and the rest of the run {ms(first.remaining_ms)} more" if first.remaining_ms else ""
        sentence = (
            f"when {first.node} was placed, {ms(first.at_ms)} after the arrival, even the best replica,"
            f" {best.replica}, was expected to need {ms(best.estimate_ms)}{rest}: {ms(-(best.margin_ms or 0.0))}"
            " too late."
        )
    target = next((promise for promise in explained.promises if promise.measured_ms), None)
    relax = f"relax {target.name} beyond {ms(target.measured_ms or 0.0)}" if target else "relax the target"
    return Cause(late + sentence, f"{relax}, lower the load, or serve {model} on a faster accelerator")


def _is_hopeless(decision: Decision) -> bool:
    """Whether every candidate was expected to be late."""
    margins = [one.margin_ms for one in decision.candidates]
    return all(margin is not None and margin < 0 for margin in margins)


def _best(decision: Decision) -> Candidate:
    return min(decision.candidates, key=lambda one: (one.estimate_ms, one.replica))


# --- words -----------------------------------------------------------------------------------------------


def _chosen(decision: Decision) -> Candidate:
    return next(one for one in decision.candidates if one.is_chosen)


def _largest_phase(row: Row) -> str:
    length_by_phase = {
        "mostly building its inputs": row.prepare_ms,
        "mostly waiting in the line": row.queue_ms,
        "mostly in attempts that failed": row.lost_ms,
        "mostly until its first token": row.prefill_ms,
        "mostly writing": row.decode_ms,
        "mostly in its function": row.code_ms,
        "mostly waiting for further items": row.join_ms,
    }
    return max(length_by_phase, key=lambda phase: length_by_phase[phase])


def _because(message: str) -> str:
    return f": {message.rstrip('.')}" if message else ""
