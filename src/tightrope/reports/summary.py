"""A journal as a table: per tenant and workflow, how many runs met their promise, how fast, and on which cards.

Pure data; drawing it is left to the application.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

from tightrope.kernel.journal import Entry
from tightrope.model.codec import encode
from tightrope.model.ids import CallId, ReplicaId, RunId
from tightrope.model.json import Json
from tightrope.model.messages import (
    CallDone,
    CallFailed,
    CancelCall,
    Dispatch,
    FinishRun,
    FirstToken,
    RunSubmitted,
)
from tightrope.model.outcome import Outcome, Verdict


@dataclass(frozen=True, slots=True)
class Share:
    """How many model calls went to a kind of card, as a count and as a part of the row's calls."""

    accelerator: str
    calls: int
    share: float


@dataclass(frozen=True, slots=True)
class Line:
    """The runs of one workflow for one tenant that ended.

    `promised` of them had an SLO and a verdict, `met` kept it; `attainment` is met / promised, None without
    any. Times are milliseconds over the runs that gave content, None without any.
    """

    tenant: str
    workflow: str
    runs: int
    promised: int
    met: int
    attainment: float | None
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    ttft_mean_ms: float | None
    duration_p50_ms: float | None
    duration_p95_ms: float | None
    succeeded: int
    failed: int
    cancelled: int
    rejected: int
    expired: int
    model_calls: int
    output_tokens: int
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class PredictionError:
    """How far predictions at dispatch were from what was measured, over calls that ended well.

    `median` and `mean` are of |measured - predicted| / measured; `bias` is the mean of predicted / measured - 1.
    """

    accelerator: str
    calls: int
    median: float
    mean: float
    bias: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A journal in figures. `total` is over all tenants and workflows; `running` runs have not ended."""

    lines: tuple[Line, ...]
    total: Line
    errors: tuple[PredictionError, ...]
    running: int


def summarize(entries: Iterable[Entry]) -> Summary:
    """The table of a journal. Workflows are taken together over their versions."""
    counting = _Counting()
    for entry in entries:
        counting.take(entry)
    return counting.summary()


def as_json(summary: Summary) -> Json:
    """The summary as plain JSON."""
    encoded = cast(dict[str, Json], encode(summary))
    return {key: value for key, value in encoded.items() if key != "type"}


def percentile(values: Sequence[float], part: float) -> float | None:
    """The value at place ceil(part * n) of the sorted values, so it is one that occurred; None without any."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else None


@dataclass(slots=True)
class _Call:
    run: RunId
    replica: ReplicaId
    accelerator: str
    predicted_ms: float
    counts_first_token: bool
    dispatched_s: float
    first_token_s: float | None = None


@dataclass(slots=True)
class _Row:
    finishes: list[FinishRun] = field(default_factory=list)
    calls_by_accelerator: dict[str, int] = field(default_factory=dict)


class _Counting:
    """Sums up a stream of entries; holds calls only while they run."""

    def __init__(self) -> None:
        self._row_by_run: dict[RunId, _Row] = {}
        self._rows: dict[tuple[str, str], _Row] = {}
        self._calls: dict[CallId, _Call] = {}
        self._errors: dict[str, list[tuple[float, float]]] = {}

    def take(self, entry: Entry) -> None:
        match entry.message:
            case RunSubmitted(run=run, tenant=tenant, workflow=workflow):
                name = workflow.partition("@")[0]
                self._row_by_run[run] = self._rows.setdefault((tenant, name), _Row())
            case Dispatch() as dispatch:
                self._dispatched(dispatch, entry.at_s)
            case FirstToken(call=call) if call in self._calls:
                self._calls[call].first_token_s = entry.at_s
            case CallDone(call=call) if call in self._calls:
                self._done(self._calls.pop(call), entry.at_s)
            case CallFailed(call=call) | CancelCall(call=call):
                self._calls.pop(call, None)
            case FinishRun(run=run) as finish if run in self._row_by_run:
                self._row_by_run.pop(run).finishes.append(finish)
            case _:
                pass

    def summary(self) -> Summary:
        lines = [_line(tenant, workflow, [row]) for (tenant, workflow), row in sorted(self._rows.items())]
        errors = [_error(name, pairs) for name, pairs in sorted(self._errors.items())]
        total = _line("all", "all", list(self._rows.values()))
        return Summary(tuple(lines), total, tuple(errors), len(self._row_by_run))

    def _dispatched(self, dispatch: Dispatch, at_s: float) -> None:
        chosen = next(offer for offer in dispatch.routed.offers if offer.replica == dispatch.replica)
        estimate = chosen.estimate
        self._calls[dispatch.call] = _Call(
            run=dispatch.run,
            replica=dispatch.replica,
            accelerator=chosen.accelerator,
            predicted_ms=estimate.crit,
            counts_first_token=estimate.crit < estimate.ttft + estimate.decode,
            dispatched_s=at_s,
        )
        row = self._row_by_run.get(dispatch.run)
        if row is not None:
            row.calls_by_accelerator[chosen.accelerator] = (
                row.calls_by_accelerator.get(chosen.accelerator, 0) + 1
            )

    def _done(self, call: _Call, at_s: float) -> None:
        until_s = call.first_token_s if call.counts_first_token else at_s
        if until_s is not None and until_s > call.dispatched_s:
            measured_ms = (until_s - call.dispatched_s) * 1000
            self._errors.setdefault(call.accelerator, []).append((call.predicted_ms, measured_ms))


def _line(tenant: str, workflow: str, rows: Sequence[_Row]) -> Line:
    finishes = [finish for row in rows for finish in row.finishes]
    met = sum(finish.verdict is Verdict.MET for finish in finishes)
    promised = sum(finish.verdict is not Verdict.NONE for finish in finishes)
    ttft_ms = [finish.ttft_s * 1000 for finish in finishes if finish.ttft_s is not None]
    whole_ms = [finish.duration_s * 1000 for finish in finishes if finish.outcome is Outcome.SUCCEEDED]
    count = {outcome: sum(finish.outcome is outcome for finish in finishes) for outcome in Outcome}
    shares = _shares(rows)
    return Line(
        tenant=tenant,
        workflow=workflow,
        runs=len(finishes),
        promised=promised,
        met=met,
        attainment=met / promised if promised else None,
        ttft_p50_ms=_short(percentile(ttft_ms, 0.5)),
        ttft_p95_ms=_short(percentile(ttft_ms, 0.95)),
        ttft_mean_ms=_short(sum(ttft_ms) / len(ttft_ms)) if ttft_ms else None,
        duration_p50_ms=_short(percentile(whole_ms, 0.5)),
        duration_p95_ms=_short(percentile(whole_ms, 0.95)),
        succeeded=count[Outcome.SUCCEEDED],
        failed=count[Outcome.FAILED],
        cancelled=count[Outcome.CANCELLED],
        rejected=count[Outcome.REJECTED],
        expired=count[Outcome.EXPIRED],
        model_calls=sum(share.calls for share in shares),
        output_tokens=sum(finish.usage.output_tokens for finish in finishes),
        shares=shares,
    )


def _shares(rows: Sequence[_Row]) -> tuple[Share, ...]:
    names = sorted({name for row in rows for name in row.calls_by_accelerator})
    calls = {name: sum(row.calls_by_accelerator.get(name, 0) for row in rows) for name in names}
    whole = sum(calls.values())
    return tuple(Share(name, calls[name], calls[name] / whole) for name in names)


def _error(accelerator: str, pairs: Sequence[tuple[float, float]]) -> PredictionError:
    errors = [abs(measured - predicted) / measured for predicted, measured in pairs]
    bias = sum(predicted / measured - 1 for predicted, measured in pairs) / len(pairs)
    middle = percentile(errors, 0.5) or 0.0
    return PredictionError(accelerator, len(pairs), middle, sum(errors) / len(errors), bias)


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
