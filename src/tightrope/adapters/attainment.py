"""The share of runs that met their SLO over the last minutes, hours and day, and what is left to miss.

Owns the windows. Counts are kept by the minute, so a window is exact to a minute and costs at most a day of
minutes for each pair of tenant and workflow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

WINDOWS_S = {"5m": 300.0, "1h": 3600.0, "24h": 86400.0}

_SLOT_S = 60.0
_DAY_S = WINDOWS_S["24h"]


@dataclass(slots=True)
class _Slot:
    began_s: float
    met: int = 0
    judged: int = 0


@dataclass(slots=True)
class _Pair:
    attain: float
    slots: deque[_Slot] = field(default_factory=deque)


class Attainment(Collector):
    """Gauges made when they are read. `now_s` is the latest moment known, on the clock of `add`."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._pair_by_labels: dict[tuple[str, str], _Pair] = {}

    def add(self, labels: tuple[str, str], attain: float, is_met: bool, now_s: float) -> None:
        """Count a run of (tenant, workflow) that was judged; `attain` is the promised share."""
        pair = self._pair_by_labels.setdefault(labels, _Pair(attain))
        pair.attain = attain
        began_s = now_s // _SLOT_S * _SLOT_S
        if not pair.slots or pair.slots[-1].began_s < began_s:
            pair.slots.append(_Slot(began_s))
        pair.slots[-1].judged += 1
        pair.slots[-1].met += is_met
        _forget(pair, now_s)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The two families, without windows in which nothing was judged."""
        ratio = GaugeMetricFamily(
            "tightrope_workflow_slo_attainment_ratio", "Share of judged runs that met their SLO.",
            labels=("tenant", "workflow", "window"),
        )  # fmt: skip
        budget = GaugeMetricFamily(
            "tightrope_slo_error_budget_remaining_ratio",
            "Share of the misses of a day that the SLO still allows; below zero when it is broken.",
            labels=("tenant", "workflow"),
        )
        for labels, pair in self._pair_by_labels.items():
            _forget(pair, self.now_s)
            for window, length_s in WINDOWS_S.items():
                met, judged = _sums(pair, self.now_s - length_s)
                if judged:
                    ratio.add_metric((*labels, window), met / judged)
            met, judged = _sums(pair, self.now_s - _DAY_S)
            if judged:
                budget.add_metric(labels, _left(judged - met, judged * (1 - pair.attain)))
        yield ratio
        yield budget


def _forget(pair: _Pair, now_s: float) -> None:
    while pair.slots and pair.slots[0].began_s + _SLOT_S <= now_s - _DAY_S:
        pair.slots.popleft()


def _sums(pair: _Pair, since_s: float) -> tuple[int, int]:
    slots = [slot for slot in pair.slots if slot.began_s + _SLOT_S > since_s]
    return sum(slot.met for slot in slots), sum(slot.judged for slot in slots)


def _left(missed: int, allowed: float) -> float:
    if allowed <= 0:
        return 0.0 if missed else 1.0
    return 1 - missed / allowed
