"""The witness: what the clients of a simulation see of their runs, and what really became of each call.

Owns the truth that a simulation reports. It hears of moments from the driver and tells the kernel nothing; the
judgement of a run is `world.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tightrope.model.ids import CallId, ModelName, ReplicaId, RunId, StepId
from tightrope.model.messages import Dispatch, FinishRun
from tightrope.model.outcome import Outcome, Usage
from tightrope.sim.engine import Request
from tightrope.sim.script import RunScript
from tightrope.sim.world import CallRecord, RunRecord, is_met


@dataclass(slots=True)
class _Run:
    """A run under way."""

    script: RunScript
    first_s: float | None = None
    answer_tokens: int = 0
    calls: list[CallRecord] = field(default_factory=list)


@dataclass(slots=True)
class _Call:
    """A model call on its way, and what its engine is asked."""

    dispatch: Dispatch
    request: Request
    dispatched_s: float
    first_s: float | None = None


class Witness:
    """Every run that has not ended, and every model call that is on its way."""

    def __init__(self) -> None:
        self._runs: dict[RunId, _Run] = {}
        self._calls: dict[CallId, _Call] = {}

    # --- runs ------------------------------------------------------------------------------------------

    def submitted(self, script: RunScript) -> None:
        """The request of a run arrives."""
        self._runs[script.run] = _Run(script)

    def is_open(self, run: str) -> bool:
        """Whether the run is under way."""
        return run in self._runs

    def run(self, run: RunId) -> RunScript:
        """What was drawn for a run under way."""
        return self._runs[run].script

    def finished(self, finish: FinishRun, now_s: float) -> RunRecord:
        """The run is over; it is forgotten after this. A whole answer that nobody could read along is read now."""
        run = self._runs.pop(finish.run)
        script = run.script
        if run.first_s is None and finish.outcome is Outcome.SUCCEEDED:
            run.first_s = now_s
        ttft_s = None if run.first_s is None else run.first_s - script.at_s
        tpot_s = _tpot_s(run, finish.outcome, now_s)
        duration_s = now_s - script.at_s
        return RunRecord(
            run=script.run,
            workflow=script.workflow.name,
            tenant=script.tenant,
            arrived_s=script.at_s,
            slo=script.slo,
            outcome=finish.outcome,
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            duration_s=duration_s,
            is_met=is_met(script.slo, finish.outcome, ttft_s, tpot_s, duration_s),
            calls=tuple(run.calls),
        )

    # --- calls -----------------------------------------------------------------------------------------

    def dispatched(self, dispatch: Dispatch, now_s: float) -> Request:
        """The kernel sends a call to a replica; what the engine there is asked.

        An answer ends by itself, or at the limit that the kernel set.
        """
        script = self._runs[dispatch.run].script.calls[dispatch.step][dispatch.item]
        output_tokens = max(1, min(script.output_tokens, dispatch.max_tokens))
        request = Request(dispatch.call, script.prompt_tokens, output_tokens, script.blocks)
        self._calls[dispatch.call] = _Call(dispatch, request, now_s)
        return request

    def is_underway(self, call: CallId) -> bool:
        """Whether anybody still listens to the call."""
        return call in self._calls

    def began(self, call: CallId, now_s: float) -> None:
        """The first content of a call is heard."""
        found = self._calls[call]
        found.first_s = now_s
        run = self._runs[found.dispatch.run]
        if run.script.is_read_along and found.dispatch.step == run.script.workflow.output:
            run.first_s = now_s

    def ended(self, call: CallId, now_s: float, cached_tokens: int) -> Usage:
        """A call ended well; what it used."""
        found = self._calls.pop(call)
        run = self._runs[found.dispatch.run]
        run.calls.append(self._record(run.script, found, now_s, cached_tokens))
        if found.dispatch.step == run.script.workflow.output:
            run.answer_tokens = found.request.output_tokens
        return Usage(found.request.prompt_tokens, found.request.output_tokens, cached_tokens)

    def gave_up(self, call: CallId) -> ReplicaId:
        """A call is cancelled or has failed; where it was. Nothing about it is listened to any more."""
        found = self._calls.pop(call)
        run = self._runs[found.dispatch.run]
        run.calls.append(self._record(run.script, found, None, 0))
        return found.dispatch.replica

    def _record(
        self, script: RunScript, call: _Call, ended_s: float | None, cached_tokens: int
    ) -> CallRecord:
        dispatch = call.dispatch
        estimate = dispatch.routed.offers[0].estimate
        is_terminal = _is_terminal(script, dispatch.step)
        critical_s = call.first_s if is_terminal else ended_s
        return CallRecord(
            call=dispatch.call,
            step=dispatch.step,
            model=ModelName(dispatch.model),
            replica=dispatch.replica,
            accelerator=dispatch.routed.offers[0].accelerator,
            reason=dispatch.routed.reason,
            predicted_crit_ms=estimate.crit,
            lx=estimate.lx,
            lq=estimate.lq,
            lr=estimate.lr,
            measured_crit_ms=None if critical_s is None else (critical_s - call.dispatched_s) * 1000,
            dispatched_s=call.dispatched_s,
            waited_s=dispatch.waited_s,
            slack_s=dispatch.slack.slack_s,
            budget_s=dispatch.slack.budget_s,
            is_terminal=is_terminal,
            first_s=call.first_s,
            ended_s=ended_s,
            prompt_tokens=call.request.prompt_tokens,
            output_tokens=call.request.output_tokens,
            cached_tokens=cached_tokens,
        )


def _is_terminal(script: RunScript, step: StepId) -> bool:
    """Whether only the first token of the step counts: the output node, unless the end is promised sooner."""
    slo = script.slo
    ends_first = (math.inf if slo.e2e_s is None else slo.e2e_s) < (
        math.inf if slo.ttft_s is None else slo.ttft_s
    )
    return step == script.workflow.output and not ends_first


def _tpot_s(run: _Run, outcome: Outcome, now_s: float) -> float | None:
    gaps = run.answer_tokens - 1
    if outcome is not Outcome.SUCCEEDED or run.first_s is None or gaps <= 0:
        return None
    return (now_s - run.first_s) / gaps
