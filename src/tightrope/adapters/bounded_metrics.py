"""Prometheus metrics whose labels cannot grow without end.

Owns the bounds: values per label, nodes per workflow, series of the whole exporter. What exceeds one is counted
under `other`, and the overflow is counted too.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

OTHER = "other"
MOST_VALUES_BY_LABEL = {"tenant": 1000, "workflow": 1000}
MOST_NODES = 64
MOST_SERIES = 50_000

# The buckets that OpenTelemetry recommends for the time to the first token, in seconds.
SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

M = TypeVar("M", Counter, Gauge, Histogram)


class Bounds:
    """Makes metrics whose labels cannot grow without end."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._seen_by_label: dict[str, set[str]] = {}
        self._nodes_by_workflow: dict[str, set[str]] = {}
        self._series = 0
        self._overflow = Counter(
            "tightrope_label_overflow_total", "Values counted as `other`.", ("label",), registry=registry
        )

    def value(self, label: str, value: str) -> str:
        """The value itself, or `other` when the label has all it may have."""
        most = MOST_VALUES_BY_LABEL.get(label)
        if most is None:
            return value
        seen = self._seen_by_label.setdefault(label, set())
        return value if self._fits(seen, value, most, label) else OTHER

    def node(self, workflow: str, node: str) -> str:
        """The node, or `other` when its workflow has all the nodes it may show."""
        seen = self._nodes_by_workflow.setdefault(self.value("workflow", workflow), set())
        return node if self._fits(seen, node, MOST_NODES, "node") else OTHER

    def room_for(self, series: int) -> bool:
        """Whether the exporter may show so many more series; takes them if so."""
        if self._series + series > MOST_SERIES:
            self._overflow.labels("series").inc()
            return False
        self._series += series
        return True

    def counter(self, name: str, text: str, *labels: str) -> Family[Counter]:
        """A counter."""
        return Family(self, Counter(f"tightrope_{name}", text, labels, registry=self._registry), labels, 1)

    def gauge(self, name: str, text: str, *labels: str) -> Family[Gauge]:
        """A gauge."""
        return Family(self, Gauge(f"tightrope_{name}", text, labels, registry=self._registry), labels, 1)

    def histogram(
        self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS
    ) -> Family[Histogram]:
        """A histogram."""
        made = Histogram(f"tightrope_{name}", text, labels, registry=self._registry, buckets=buckets)
        return Family(self, made, labels, len(buckets) + 3)

    def _fits(self, seen: set[str], value: str, most: int, label: str) -> bool:
        if value in seen:
            return True
        if len(seen) >= most:
            self._overflow.labels(label).inc()
            return False
        seen.add(value)
        return True


class Family(Generic[M]):
    """One metric under its bounded labels. `series` is what each set of labels costs the exporter."""

    def __init__(self, bounds: Bounds, metric: M, labels: tuple[str, ...], series: int) -> None:
        self._bounds = bounds
        self._metric: M = metric
        self._labels = labels
        self._series = series
        self._child_by_values: dict[tuple[str, ...], M] = {}

    def labels(self, *values: str) -> M:
        """The child under these values, in the order of the labels."""
        child = self._child_by_values.get(values)
        if child is not None:
            return child
        child, is_own = self._child(values)
        if is_own:
            # Only what is bounded is remembered.
            self._child_by_values[values] = child
        return child

    def _child(self, values: tuple[str, ...]) -> tuple[M, bool]:
        if not self._labels:
            return self._metric, True
        bounded = tuple(map(self._bounds.value, self._labels, values))
        is_own = bounded == values
        if bounded not in self._child_by_values and not self._bounds.room_for(self._series):
            bounded, is_own = (OTHER,) * len(values), False
        child: M = self._metric.labels(*bounded)
        self._child_by_values[bounded] = child
        return child, is_own
