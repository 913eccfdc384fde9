"""A load as a journal shows it: how often runs of each workflow arrive, how large their calls are, which way they go.

Owns the way from a journal to a load that can be simulated. A whole session, run by run, is `recorded.py`.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean

from tightrope.bench.trial import assumed_flow
from tightrope.kernel.journal import Entry, Head, read
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import CallId, RunId, StepId, TenantId
from tightrope.model.messages import CallDone, CaseTaken, Dispatch, Prepared, RunCode, RunSubmitted
from tightrope.model.workflow import ModelCall, Node, Switch, Workflow
from tightrope.sim.lengths import CodeTime, Lengths, Sampled
from tightrope.sim.workload import Flow

LATEST = 1000
"""So many calls of each node are remembered, the latest."""
BUSY_S = 60.0

Place = tuple[str, StepId]
"""A step of a workflow, by the name of the workflow: what was seen of earlier versions counts too."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What a journal shows. `runs` arrived in `span_s` seconds, those between sessions left out; `rates` are runs per
    second by workflow and tenant, `busiest_per_s` is the highest rate of all together within BUSY_S (or the span).

    `calls` are tokens of prompts, without those that were cached, and of answers; `seconds` the mean time of code
    nodes; `widths` the mean number of items of a node; `cases` how often each was taken.
    """

    runs: int
    span_s: float
    rates: Mapping[tuple[str, TenantId], float]
    busiest_per_s: float
    calls: Mapping[Place, tuple[tuple[int, int], ...]]
    seconds: Mapping[Place, float]
    widths: Mapping[Place, float]
    cases: Mapping[Place, Mapping[str, int]]

    def flow(self, workflow: Workflow) -> Flow:
        """The workflow with steps that are as they were seen; of the others what is assumed without a journal."""
        own = {step: seen for (name, step), seen in self.calls.items() if name == workflow.name}
        nodes = {node.id: node.work for node in workflow.nodes}
        means: dict[str, tuple[float, float]] = {
            step: (fmean(prompt for prompt, _ in seen), fmean(output for _, output in seen))
            for step, seen in own.items()
            if isinstance(nodes.get(step), ModelCall)
        }
        assumed = assumed_flow(workflow, means)
        return Flow(
            replace(workflow, switches=tuple(self._switch(workflow.name, one) for one in workflow.switches)),
            {node.id: self._lengths(workflow.name, node, assumed) for node in workflow.nodes},
            {step: self._width(workflow.name, step, width) for step, width in assumed.widths.items()},
        )

    def _lengths(self, name: str, node: Node, assumed: Flow) -> Lengths:
        seen, seconds = self.calls.get((name, node.id)), self.seconds.get((name, node.id))
        if isinstance(node.work, ModelCall):
            if seen:
                return Sampled(seen, output_most=node.work.max_tokens)
        elif seconds is not None:
            return CodeTime(seconds)
        return assumed.lengths[node.id]

    def _width(self, name: str, step: StepId, width: tuple[int, int]) -> tuple[int, int]:
        mean = self.widths.get((name, step))
        return width if mean is None else (math.floor(mean), math.ceil(mean))

    def _switch(self, name: str, switch: Switch) -> Switch:
        """With the shares that were seen, each case as if it had been taken half a time more."""
        taken = self.cases.get((name, switch.id))
        if not taken:
            return switch
        weights = [taken.get(case.name, 0) + 0.5 for case in switch.cases]
        cases = [
            replace(case, probability=weight / sum(weights))
            for case, weight in zip(switch.cases, weights, strict=True)
        ]
        return replace(switch, cases=tuple(cases))


def observed(lines: Iterable[str]) -> Observed:
    """Read a journal of any number of sessions. Raises InvalidInput when fewer than two runs arrived in one of them."""
    reading = _Reading()
    for item in read(lines):
        if isinstance(item, Head):
            reading.begin()
        elif isinstance(item, Entry):
            reading.take(item)
    return reading.observed()


@dataclass(slots=True)
class _Call:
    place: Place
    began_s: float
    is_code: bool


@dataclass(slots=True)
class _Reading:
    """Takes in entries. `first_s` and `last_s` are arrivals of the session that is read; `gaps` between arrivals of
    one session last `span_s` in all, of the sessions before it."""

    first_s: float | None = None
    last_s: float = 0.0
    span_s: float = 0.0
    gaps: int = 0
    lately: deque[float] = field(default_factory=deque)
    busiest: int = 0
    runs: dict[tuple[str, TenantId], int] = field(default_factory=lambda: defaultdict(int))
    names: dict[RunId, str] = field(default_factory=dict)
    underway: dict[CallId, _Call] = field(default_factory=dict)
    calls: dict[Place, deque[tuple[int, int]]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=LATEST))
    )
    seconds: dict[Place, deque[float]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=LATEST))
    )
    widths: dict[Place, deque[int]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=LATEST)))
    cases: dict[Place, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))

    def begin(self) -> None:
        """A session begins: what was under way in the one before it has come to nothing."""
        if self.first_s is not None:
            self.span_s += self.last_s - self.first_s
        self.first_s = None
        self.lately.clear()
        self.names.clear()
        self.underway.clear()

    def take(self, entry: Entry) -> None:
        match entry.message:
            case RunSubmitted(run=run, tenant=tenant, workflow=workflow):
                name = self.names[run] = workflow.partition("@")[0]
                self.runs[name, tenant] += 1
                self._arrived(entry.at_s)
            case Prepared(run, step, items) if run in self.names:
                self.widths[self.names[run], step].append(len(items))
            case CaseTaken(run, step, case) if run in self.names:
                self.cases[self.names[run], step][case] += 1
            case RunCode(call=call, run=run, step=step) if run in self.names:
                self.underway[call] = _Call((self.names[run], step), entry.at_s, True)
            case Dispatch(call=call, run=run, step=step) if run in self.names:
                self.underway[call] = _Call((self.names[run], step), entry.at_s, False)
            case CallDone(call, usage) if call in self.underway:
                found = self.underway.pop(call)
                if found.is_code:
                    self.seconds[found.place].append(entry.at_s - found.began_s)
                else:
                    prompt = max(1, usage.prompt_tokens - usage.cached_tokens)
                    self.calls[found.place].append((prompt, max(1, usage.output_tokens)))
            case _:
                pass

    def _arrived(self, at_s: float) -> None:
        if self.first_s is None:
            self.first_s = at_s
        else:
            self.gaps += 1
        self.last_s = at_s
        self.lately.append(at_s)
        while self.lately[0] <= at_s - BUSY_S:
            self.lately.popleft()
        self.busiest = max(self.busiest, len(self.lately))

    def observed(self) -> Observed:
        self.begin()
        runs = sum(self.runs.values())
        if not runs:
            raise InvalidInput("the journal has no runs, so it shows no load; say it with --load")
        if self.span_s <= 0:
            raise InvalidInput(
                f"the journal has only {runs} run{'s' * (runs > 1)}, which show no rate; say it with --load"
            )
        per_s = self.gaps / self.span_s
        return Observed(
            runs=runs,
            span_s=self.span_s,
            rates={key: per_s * count / runs for key, count in self.runs.items()},
            busiest_per_s=self.busiest / min(BUSY_S, self.span_s),
            calls={place: tuple(seen) for place, seen in self.calls.items()},
            seconds={place: fmean(seen) for place, seen in self.seconds.items()},
            widths={place: fmean(seen) for place, seen in self.widths.items()},
            cases={place: dict(seen) for place, seen in self.cases.items()},
        )
