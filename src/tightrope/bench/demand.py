"""Demand: what runs ask of each model on average, from a journal or from scripts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from tightrope.bench.capacity import Demand
from tightrope.kernel.journal import Entry
from tightrope.model.ids import CallId, ModelName, StepId
from tightrope.model.messages import CallDone, Dispatch, FinishRun
from tightrope.model.outcome import Outcome, Usage
from tightrope.model.workflow import ModelCall, Node
from tightrope.sim.script import CallScript, RunScript


def observed_demand(entries: Iterable[Entry]) -> dict[ModelName, Demand]:
    """Calls per finished run and mean lengths of each model's calls; empty without a finished run."""
    model_by_call: dict[CallId, ModelName] = {}
    usages: dict[ModelName, list[Usage]] = {}
    runs = 0
    for entry in entries:
        match entry.message:
            case Dispatch(call=call, model=model):
                model_by_call[call] = ModelName(model)
            case CallDone(call=call, usage=usage) if call in model_by_call:
                usages.setdefault(model_by_call.pop(call), []).append(usage)
            case FinishRun(outcome=Outcome.SUCCEEDED):
                runs += 1
            case _:
                pass
    if not runs:
        return {}
    return {model: _demand(found, runs) for model, found in usages.items()}


def _demand(usages: list[Usage], runs: int) -> Demand:
    calls = len(usages)
    return Demand(
        calls=calls / runs,
        prompt_tokens=sum(usage.prompt_tokens - usage.cached_tokens for usage in usages) / calls,
        output_tokens=sum(usage.output_tokens for usage in usages) / calls,
    )


def scripted_demand(scripts: Sequence[RunScript]) -> dict[ModelName, list[Demand]]:
    """The same of runs to come, one demand for every node of every workflow that asks the model.

    Counts the first try of every call that the run really makes, with nothing cached.
    """
    items: dict[ModelName, dict[tuple[str, StepId], list[CallScript]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for script in scripts:
        for step in steps_taken(script):
            node = script.workflow.step_by_id[step]
            if isinstance(node, Node) and isinstance(node.work, ModelCall):
                items[node.work.model][script.workflow.id, step] += [
                    _cut(item, node.work.max_tokens) for item in script.calls[step]
                ]
    return {
        model: [_mean_demand(calls, len(scripts)) for calls in by_node.values() if calls]
        for model, by_node in items.items()
    }


def steps_taken(script: RunScript) -> list[StepId]:
    """The nodes and switches that the run does not skip, in order, if nothing fails."""
    graph = script.workflow.graph
    taken: dict[StepId, None] = {}
    for step in graph.order:
        case = graph.case_by_step[step]
        if case is not None and (case.switch not in taken or script.cases[case.switch] != case.case):
            continue
        needs = graph.needs_by_step[step]
        if all(need.optional or any(source in taken for source in need.any_of) for need in needs):
            taken[step] = None
    return list(taken)


def _cut(item: CallScript, most: int) -> CallScript:
    return CallScript(item.prompt_tokens, min(item.output_tokens, most))


def _mean_demand(calls: Sequence[CallScript], runs: int) -> Demand:
    return Demand(
        calls=len(calls) / runs,
        prompt_tokens=sum(call.prompt_tokens for call in calls) / len(calls),
        output_tokens=sum(call.output_tokens for call in calls) / len(calls),
    )
