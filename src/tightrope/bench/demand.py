"""Demand: what the runs of a journal asked of each model, on average."""

from __future__ import annotations

from collections.abc import Iterable

from tightrope.bench.capacity import Demand
from tightrope.kernel.journal import Entry
from tightrope.model.ids import CallId, ModelName
from tightrope.model.messages import CallDone, Dispatch, FinishRun
from tightrope.model.outcome import Outcome, Usage


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
