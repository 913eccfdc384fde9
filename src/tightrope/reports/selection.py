"""Which runs a journal holds, and which of them is meant by an id, a prefix, `last` or `last-late`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tightrope.kernel.journal import Entry
from tightrope.model.errors import InvalidInput, NotFound
from tightrope.model.ids import RunId
from tightrope.model.messages import FinishRun, RunSubmitted
from tightrope.model.outcome import Outcome, Verdict

LAST = "last"
LAST_LATE = "last-late"


@dataclass(frozen=True, slots=True)
class RunBrief:
    """One run in a line. `late_ms` is how far beyond its promise it was (negative: early); None without one.

    `order` counts the runs as they ended; runs that go on come after them. `outcome` is "running" for those.
    """

    run: RunId
    request: str
    tenant: str
    workflow: str
    outcome: str
    verdict: str
    late_ms: float | None
    order: int


def briefs(entries: Iterable[Entry]) -> list[RunBrief]:
    """Every run of a journal: first those that ended, in that order, then those that go on."""
    submitted: dict[RunId, RunSubmitted] = {}
    ended: list[RunBrief] = []
    for entry in entries:
        match entry.message:
            case RunSubmitted() as arrived:
                submitted[arrived.run] = arrived
            case FinishRun(run=run) as finish if run in submitted:
                ended.append(_brief(submitted.pop(run), finish, len(ended)))
            case _:
                pass
    running = [_brief(arrived, None, len(ended) + at) for at, arrived in enumerate(submitted.values())]
    return ended + running


def select(runs: Sequence[RunBrief], query: str) -> RunBrief:
    """The run that is meant. Raises NotFound, or InvalidInput when a prefix fits several."""
    ended = [run for run in runs if run.outcome != "running"]
    if query == LAST:
        return _last(ended, "the journal has no run that ended")
    if query == LAST_LATE:
        late = [run for run in ended if run.verdict == Verdict.MISSED.value]
        return _last(late, "the journal has no run that missed its SLO")
    exact = [run for run in runs if query in (run.run, run.request)]
    if exact:
        return exact[-1]
    fitting = [run for run in runs if query and (run.run.startswith(query) or run.request.startswith(query))]
    if not fitting:
        raise NotFound(f"the journal has no run or request {query!r}")
    if len(fitting) > 1:
        names = ", ".join(run.run for run in fitting[:4])
        more = ", ..." if len(fitting) > 4 else ""
        raise InvalidInput(f"{query!r} fits {len(fitting)} runs: {names}{more}; write more of the id")
    return fitting[0]


def worst(runs: Sequence[RunBrief], count: int) -> list[RunBrief]:
    """The runs that missed their promise by most, the worst first; those refused or without an answer come last."""
    missed = [run for run in runs if run.verdict == Verdict.MISSED.value]
    return sorted(missed, key=lambda run: (run.late_ms is None, -(run.late_ms or 0.0), run.run))[:count]


def _last(runs: Sequence[RunBrief], otherwise: str) -> RunBrief:
    if not runs:
        raise NotFound(otherwise)
    return runs[-1]


def _brief(arrived: RunSubmitted, finish: FinishRun | None, order: int) -> RunBrief:
    return RunBrief(
        run=arrived.run,
        request=arrived.request_id,
        tenant=arrived.tenant,
        workflow=arrived.workflow,
        outcome="running" if finish is None else finish.outcome.value,
        verdict=Verdict.NONE.value if finish is None else finish.verdict.value,
        late_ms=None if finish is None else _late_ms(arrived, finish),
        order=order,
    )


def _late_ms(arrived: RunSubmitted, finish: FinishRun) -> float | None:
    if finish.outcome is Outcome.REJECTED:
        return None
    slo = arrived.slo
    late = [
        (measured_s - target_s) * 1000
        for target_s, measured_s in (
            (slo.ttft_s, finish.duration_s if finish.ttft_s is None else finish.ttft_s),
            (slo.e2e_s, finish.duration_s),
            (slo.tpot_s, finish.tpot_s),
        )
        if target_s is not None and measured_s is not None
    ]
    return round(max(late), 3) if late else None
