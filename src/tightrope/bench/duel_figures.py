"""The figures of a round of a duel, from what its client saw, in the same words as those of a simulation.

Pure: lines and counters in, figures out. Seconds on the wall become seconds of the scenario here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tightrope.bench.cell import bill, window
from tightrope.bench.duel_client import Seen
from tightrope.bench.duel_load import is_taken
from tightrope.bench.metrics import CardShare, Figures, figures, quantile
from tightrope.bench.scenario import Scenario
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import AcceleratorName
from tightrope.model.outcome import Outcome
from tightrope.model.workflow import ModelCall
from tightrope.sim.script import RunScript
from tightrope.sim.world import RunRecord, is_met

_OUTCOMES = {
    "whole": Outcome.SUCCEEDED,
    "refused": Outcome.REJECTED,
    "broken": Outcome.FAILED,
    "unfinished": Outcome.EXPIRED,
}


def read_seen(lines: Iterable[str]) -> list[Seen]:
    """What the client wrote."""
    return [Seen(**json.loads(line)) for line in lines if line.strip()]


def live_figures(
    scenario: Scenario,
    runs: Sequence[RunScript],
    seen: Sequence[Seen],
    time_scale: float,
    calls_by_card: Mapping[AcceleratorName, int],
) -> Figures:
    """The figures of the runs in the scenario's window. `calls_by_card` is what engines have answered in all."""
    found = figures(records(runs, seen, time_scale), window(scenario), {}, bill(scenario))
    calls = sum(calls_by_card.values())
    shares = tuple(
        CardShare(card, count, count / calls if calls else 0.0)
        for card, count in sorted(calls_by_card.items())
    )
    return replace(found, calls=calls, shares=shares)


def records(runs: Sequence[RunScript], seen: Sequence[Seen], time_scale: float) -> list[RunRecord]:
    """How every run went for its client. One that the client wrote nothing about was not finished."""
    by_run = {one.run: one for one in seen}
    return [
        _record(run, by_run.get(run.run) or Seen(run.run, run.at_s * time_scale), time_scale) for run in runs
    ]


def _record(run: RunScript, seen: Seen, time_scale: float) -> RunRecord:
    (answer,) = run.calls[run.workflow.output]
    gaps = answer.output_tokens - 1
    ttft_s = tpot_s = None
    duration_s = 0.0
    if seen.first_s is not None:
        ttft_s = (seen.first_s - seen.planned_s) / time_scale
    if seen.end_s is not None:
        duration_s = (seen.end_s - seen.planned_s) / time_scale
        if seen.first_s is not None and gaps:
            tpot_s = (seen.end_s - seen.first_s) / gaps / time_scale
    outcome = _OUTCOMES[seen.ending]
    return RunRecord(
        run=run.run,
        workflow=run.workflow.id,
        tenant=run.tenant,
        arrived_s=run.at_s,
        slo=run.slo,
        outcome=outcome,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        duration_s=duration_s,
        is_met=is_met(run.slo, outcome, ttft_s, tpot_s, duration_s),
        calls=(),
    )


def lateness_p99_s(seen: Sequence[Seen]) -> float:
    """How much later than planned requests were sent, in seconds on the wall."""
    return quantile([one.sent_s - one.planned_s for one in seen if one.sent_s is not None], 0.99) or 0.0


# --- the processor ---------------------------------------------------------------------------------------


def processor_times(stat: str) -> tuple[int, int]:
    """Ticks that all processors were in use, and ticks in all, from the text of `/proc/stat`.

    Time that a hypervisor gave to others counts as in use: it was not there for the systems.
    """
    ticks = [int(word) for word in stat.split("\n", 1)[0].split()[1:9]]
    _, _, _, idle, waiting = ticks[:5]
    whole = sum(ticks)
    return whole - idle - waiting, whole


def busy_share(before: str, after: str) -> float:
    """The part of the time between two texts of `/proc/stat` in which processors were in use; 0 without any."""
    (used_before, whole_before), (used_after, whole_after) = processor_times(before), processor_times(after)
    whole = whole_after - whole_before
    return (used_after - used_before) / whole if whole > 0 else 0.0


# --- the engines -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Work:
    """What an engine has done so far: calls answered to the end, and the tokens that it read and said for them."""

    calls: int = 0
    tokens: int = 0

    def since(self, earlier: Work) -> Work:
        """What was done between two moments."""
        return Work(self.calls - earlier.calls, self.tokens - earlier.tokens)


def work_of(metrics: str) -> Work:
    """What an engine says in the text of its `/metrics`. Raises InvalidInput when it says nothing of it."""
    counts = {
        name: sum(_values(metrics, f"vllm:{name}_total"))
        for name in ("request_success", "prompt_tokens", "generation_tokens")
    }
    return Work(counts["request_success"], counts["prompt_tokens"] + counts["generation_tokens"])


def _values(metrics: str, name: str) -> list[int]:
    lines = [line for line in metrics.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    if not lines:
        raise InvalidInput(f"an engine does not count {name}; take one that does")
    return [int(float(line.rpartition(" ")[2])) for line in lines]


def planned_tokens(runs: Sequence[RunScript], seen: Sequence[Seen]) -> int:
    """Tokens that engines have to read and say for the runs whose answers came whole."""
    whole = {one.run for one in seen if one.ending == "whole"}
    return sum(
        item.prompt_tokens + item.output_tokens
        for run in runs
        if run.run in whole
        for node in run.workflow.nodes
        if isinstance(node.work, ModelCall) and is_taken(run, node)
        for item in run.calls[node.id]
    )
