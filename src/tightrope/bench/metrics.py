"""What came of one simulation, in figures: goodput, times, shares of cards, cost, and how good predictions were.

Pure: records in, figures out. A run counts by its arrival; rejected, failed and expired ones are missed. What
several seeds say together is `intervals.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tightrope.model.outcome import Outcome
from tightrope.model.profile import Profile
from tightrope.sim.world import CallRecord, CardKind, RunRecord

SCALE_LEVELS = (0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Window:
    """Runs that arrived from `from_s` on and before `to_s` are counted."""

    from_s: float
    to_s: float

    @property
    def length_s(self) -> float:
        """Seconds between the two."""
        return self.to_s - self.from_s


@dataclass(frozen=True, slots=True)
class Times:
    """Mean and quantiles in seconds over the runs that came so far; None without any.

    A quantile is the value at place ceil(q * n) of the sorted ones, so it is one that occurred.
    """

    mean_s: float | None
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None


@dataclass(frozen=True, slots=True)
class CardShare:
    """Calls that went to one kind of card, and their part of all calls."""

    accelerator: str
    calls: int
    share: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """How far predictions at dispatch were from what came, over `calls` of one kind that ended well.

    `mape` is the mean of |predicted - measured| / measured of the critical time, `bias` of predicted / measured
    - 1. `own_*` is the same of lx against the true time alone on the card, true lengths known. `queue_*_ms` is
    the mean error of lq + lr against what the load really added, in ms, because that can be nothing.
    """

    is_terminal: bool
    calls: int
    mape: float
    bias: float
    own_mape: float
    own_bias: float
    queue_error_ms: float
    queue_bias_ms: float


@dataclass(frozen=True, slots=True)
class Figures:
    """One simulation, or a part of it, in figures.

    `scale_95` and `scale_99`: the smallest factor on every TTFT promise with which that share of the runs would
    have kept it, decisions unchanged; None when too many failed otherwise. `accelerator_s_per_good` counts every
    replica of the fleet over the whole window, busy or idle; None without a good run, and for a part of the runs.
    """

    runs: int
    met: int
    goodput: float
    rejected: int
    failed: int
    calls: int
    ttft: Times
    e2e: Times
    tpot_p95_s: float | None
    waited_mean_s: float | None
    shares: tuple[CardShare, ...]
    scale_95: float | None
    scale_99: float | None
    accelerator_s_per_good: float | None
    usd_per_1k_good: float | None
    usd_per_1k_runs: float | None
    predictions: tuple[Prediction, ...]
    worst_tenant: float


@dataclass(frozen=True, slots=True)
class Bill:
    """What the whole fleet is: how many replicas, and what they cost together in an hour."""

    replicas: int
    usd_per_h: float


def figures(
    records: Sequence[RunRecord],
    window: Window,
    truths: Mapping[CardKind, Profile],
    bill: Bill | None = None,
) -> Figures:
    """The figures of the runs that arrived within `window`. `bill` is given when these are all there were."""
    counted = [record for record in records if window.from_s <= record.arrived_s < window.to_s]
    met = sum(record.is_met for record in counted)
    ends = Counter(record.outcome for record in counted)
    calls = [call for record in counted for call in record.calls]
    spent_s = bill.replicas * window.length_s if bill is not None else None
    spent_usd = bill.usd_per_h * window.length_s / 3600 if bill is not None else None
    return Figures(
        runs=len(counted),
        met=met,
        goodput=met / len(counted) if counted else 0.0,
        rejected=ends[Outcome.REJECTED],
        failed=ends[Outcome.FAILED] + ends[Outcome.EXPIRED] + ends[Outcome.CANCELLED],
        calls=len(calls),
        ttft=times([record.ttft_s for record in counted if record.ttft_s is not None]),
        e2e=times([record.duration_s for record in counted if record.outcome is Outcome.SUCCEEDED]),
        tpot_p95_s=quantile([record.tpot_s for record in counted if record.tpot_s is not None], 0.95),
        waited_mean_s=_mean([call.waited_s for call in calls]),
        shares=_shares(calls),
        scale_95=least_scale(counted, 0.95),
        scale_99=least_scale(counted, 0.99),
        accelerator_s_per_good=_each(spent_s, met),
        usd_per_1k_good=_each(spent_usd, met, 1000),
        usd_per_1k_runs=_each(spent_usd, len(counted), 1000),
        predictions=predictions(calls, truths),
        worst_tenant=_worst_tenant(counted),
    )


def times(values_s: Sequence[float]) -> Times:
    """Mean and quantiles of some times."""
    ordered = sorted(values_s)
    return Times(_mean(ordered), quantile(ordered, 0.5), quantile(ordered, 0.95), quantile(ordered, 0.99))


def quantile(values: Sequence[float], part: float) -> float | None:
    """The value at place ceil(part * n) of the sorted values; None without any."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else None


def least_scale(records: Sequence[RunRecord], level: float) -> float | None:
    """The smallest factor on every TTFT promise with which `level` of the runs keep it; None if none does.

    A run that failed, or broke another promise, keeps it with no factor; one without a TTFT promise with any.
    """
    needed = quantile([_needed_scale(record) for record in records], level)
    return None if needed is None or math.isinf(needed) else needed


def _needed_scale(record: RunRecord) -> float:
    slo, tpot_s = record.slo, record.tpot_s
    breaks_tpot = slo.tpot_s is not None and tpot_s is not None and tpot_s > slo.tpot_s
    breaks_e2e = slo.e2e_s is not None and record.duration_s > slo.e2e_s
    if record.outcome is not Outcome.SUCCEEDED or breaks_tpot or breaks_e2e:
        return math.inf
    if slo.ttft_s is None:
        return 0.0
    return record.ttft_s / slo.ttft_s if record.ttft_s is not None else math.inf


def predictions(calls: Sequence[CallRecord], truths: Mapping[CardKind, Profile]) -> tuple[Prediction, ...]:
    """Errors of inner calls, then of terminal ones; a kind without calls is left out."""
    found = []
    for is_terminal in (False, True):
        measured = [
            (call, call.measured_crit_ms, _alone_ms(call, truths[call.model, call.accelerator]))
            for call in calls
            if call.is_terminal is is_terminal and call.ended_s is not None and call.measured_crit_ms
        ]
        if measured:
            found.append(_prediction(is_terminal, measured))
    return tuple(found)


def _alone_ms(call: CallRecord, truth: Profile) -> float:
    """What the call would have taken alone on its card, as the time that counts for its SLO."""
    ttft_ms = truth.solo_ttft_ms(call.prompt_tokens, call.cached_tokens)
    if call.is_terminal:
        return ttft_ms
    return ttft_ms + truth.solo_decode_ms(call.prompt_tokens, call.output_tokens)


def _prediction(is_terminal: bool, measured: Sequence[tuple[CallRecord, float, float]]) -> Prediction:
    whole = [call.predicted_crit_ms / took_ms - 1 for call, took_ms, _ in measured]
    own = [call.lx / alone_ms - 1 for call, _, alone_ms in measured]
    queue_ms = [call.lq + call.lr - (took_ms - alone_ms) for call, took_ms, alone_ms in measured]
    return Prediction(
        is_terminal=is_terminal,
        calls=len(measured),
        mape=math.fsum(map(abs, whole)) / len(measured),
        bias=math.fsum(whole) / len(measured),
        own_mape=math.fsum(map(abs, own)) / len(measured),
        own_bias=math.fsum(own) / len(measured),
        queue_error_ms=math.fsum(map(abs, queue_ms)) / len(measured),
        queue_bias_ms=math.fsum(queue_ms) / len(measured),
    )


def _shares(calls: Sequence[CallRecord]) -> tuple[CardShare, ...]:
    counts = Counter(call.accelerator for call in calls)
    return tuple(CardShare(card, count, count / len(calls)) for card, count in sorted(counts.items()))


def _worst_tenant(records: Sequence[RunRecord]) -> float:
    runs = Counter(record.tenant for record in records)
    met = Counter(record.tenant for record in records if record.is_met)
    return min((met[tenant] / count for tenant, count in runs.items()), default=0.0)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _each(whole: float | None, count: int, per: int = 1) -> float | None:
    return per * whole / count if whole is not None and count else None
