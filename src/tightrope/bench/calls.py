"""Every call of a few small runs, with what it waits for: what the exact programs plan.

Owns the flat list of stages and calls, and what makes a load plannable to the last millisecond.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tightrope.bench.course import Stage, course
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import CallId, ReplicaId
from tightrope.sim.engine import Truth
from tightrope.sim.script import CallScript, RunScript
from tightrope.sim.world import World


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage of a run. `waits_for` and its own place count stages of all runs; `calls` are places of calls.

    It takes `lasts_s` beside its calls. `is_answer`: the run ends with it.
    """

    run: int
    waits_for: tuple[int, ...]
    calls: tuple[int, ...]
    lasts_s: float
    is_answer: bool


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """A model call, the stage it belongs to, and the replicas that can serve it."""

    id: CallId
    stage: int
    script: CallScript
    replicas: tuple[ReplicaId, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """All stages and calls of some runs, in an order in which nothing waits for what comes later."""

    runs: tuple[RunScript, ...]
    stages: tuple[PlannedStage, ...]
    calls: tuple[PlannedCall, ...]
    truth_by_replica: Mapping[ReplicaId, Truth]


def planned(world: World, scripts: Sequence[RunScript], most_calls: int) -> Planned:
    """The calls that the runs need.

    Raises InvalidInput when there are more than `most_calls`, or what takes how long depends on more than the
    schedule: noise, a network, a prefix cache, a scheduler that is ahead, joins that need not wait for all.
    """
    truth_by_replica = {spec.id: world.truths[spec.model, spec.accelerator] for spec in world.replicas}
    for truth in truth_by_replica.values():
        if truth.noise or truth.block_tokens or truth.is_ahead or world.network_s:
            raise InvalidInput(
                "only engines without noise, cache, network and asynchronous scheduling are planned"
            )
    stages: list[PlannedStage] = []
    calls: list[PlannedCall] = []
    caps = {tenant.id: tenant.limits.output_tokens for tenant in world.tenants}
    for number, script in enumerate(scripts):
        own = course(script, caps.get(script.tenant))
        first = len(stages)
        for place, stage in enumerate(own):
            found = _calls(world, script, stage, len(stages))
            stages.append(_stage(number, stage, first, len(calls), place == len(own) - 1))
            calls += found
    if len(calls) > most_calls:
        raise InvalidInput(
            f"{len(calls)} calls are too many to be planned exactly; {most_calls} are possible"
        )
    return Planned(tuple(scripts), tuple(stages), tuple(calls), truth_by_replica)


def _stage(run: int, stage: Stage, first: int, calls_before: int, is_answer: bool) -> PlannedStage:
    if stage.needed < len(stage.items):
        raise InvalidInput(f"{stage.step} need not wait for all its items, which no exact program plans")
    is_model = bool(stage.models)
    return PlannedStage(
        run=run,
        waits_for=tuple(first + place for place in stage.waits_for),
        calls=tuple(range(calls_before, calls_before + len(stage.items))) if is_model else (),
        lasts_s=0.0 if is_model else max((item.seconds for item in stage.items), default=0.0),
        is_answer=is_answer,
    )


def _calls(world: World, script: RunScript, stage: Stage, number: int) -> list[PlannedCall]:
    if not stage.models:
        return []
    found = []
    for index, item in enumerate(stage.items):
        replicas = tuple(
            spec.id
            for spec in world.replicas
            if spec.model in stage.models
            and item.prompt_tokens + item.output_tokens - 1
            <= world.truths[spec.model, spec.accelerator].profile.kv_tokens
        )
        found.append(PlannedCall(CallId(f"{script.run}/{stage.step}/{index}.0"), number, item, replicas))
    return found
