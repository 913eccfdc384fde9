"""Workloads: the scripts of many runs, all drawn from one seed before the simulation starts.

Owns which workflow a run takes, its cases and its items. Every purpose has a stream of chance of its own, so that
another rate changes no length and other lengths change no case. When runs arrive is `arrivals.py`, how large a call
is `lengths.py`, what is promised `promise.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random

from tightrope.model.errors import InvalidInput
from tightrope.model.ids import RunId, StepId, TenantId
from tightrope.model.workflow import Node, Workflow
from tightrope.sim.arrivals import Arrivals, Trace, bounded, times
from tightrope.sim.lengths import BYTES_PER_TOKEN, Lengths, always_the_mean, draw
from tightrope.sim.script import CallScript, RunScript

__all__ = [
    "CallScript",
    "Flow",
    "Plan",
    "Recorded",
    "Recording",
    "RunScript",
    "Share",
    "deterministic",
    "recorded_scripts",
    "scripts",
]


@dataclass(frozen=True, slots=True)
class Flow:
    """A workflow and what its nodes are really like. `widths`: fewest and most items of each fan-out."""

    workflow: Workflow
    lengths: Mapping[StepId, Lengths]
    widths: Mapping[StepId, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Share:
    """A tenant's part of the load: `weight` against those of the others."""

    flow: Flow
    tenant: TenantId
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A load: who asks for what, when, and for how long (`count` runs, `duration_s` seconds, or the less of both)."""

    shares: tuple[Share, ...]
    arrivals: Arrivals
    count: int | None = None
    duration_s: float | None = None


def scripts(plan: Plan, seed: int) -> list[RunScript]:
    """Every run of the load in order of arrival, promised what its workflow promises.

    Run number k is the same whatever the arrivals are. Raises InvalidInput without a share or an end.
    """
    if not plan.shares:
        raise InvalidInput("a load needs a share")
    rng = Random(f"{seed}/arrivals")
    moments = times(plan.arrivals, rng, count=plan.count, duration_s=plan.duration_s)
    shares, cases, lengths = (Random(f"{seed}/{purpose}") for purpose in ("shares", "cases", "lengths"))
    weights = [share.weight for share in plan.shares]
    found = []
    for number, at_s in enumerate(moments):
        (share,) = shares.choices(plan.shares, weights)
        streams = Random(cases.getrandbits(64)), Random(lengths.getrandbits(64))
        found.append(_script(number, at_s, share, *streams))
    return found


def deterministic(flow: Flow) -> Flow:
    """The same workflow with the mean lengths, times and widths in every run; which cases it takes stays chance."""
    lengths = {step: always_the_mean(own) for step, own in flow.lengths.items()}
    widths = {step: (round((low + high) / 2),) * 2 for step, (low, high) in flow.widths.items()}
    return replace(flow, lengths=lengths, widths=widths)


def _script(number: int, at_s: float, share: Share, cases: Random, lengths: Random) -> RunScript:
    workflow = share.flow.workflow
    taken = {
        switch.id: cases.choices(
            [case.name for case in switch.cases], [case.probability for case in switch.cases]
        )[0]
        for switch in workflow.switches
    }
    return RunScript(
        run=_run_id(number),
        at_s=at_s,
        tenant=share.tenant,
        workflow=workflow,
        slo=workflow.slo,
        calls={node.id: _items(share.flow, node, taken, lengths) for node in workflow.nodes},
        cases=taken,
    )


def _run_id(number: int) -> RunId:
    return RunId(f"run-{number:06d}")


def _items(flow: Flow, node: Node, cases: Mapping[StepId, str], rng: Random) -> tuple[CallScript, ...]:
    width = 1
    if node.fan_out is not None:
        width = min(node.fan_out.max_items, rng.randint(*flow.widths[node.id]))
    return tuple(draw(flow.lengths[node.id], cases, rng) for _ in range(width))


# --- loads that were recorded ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request as it was seen."""

    at_s: float
    tenant: TenantId
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Recording:
    """A load whose moments, lengths and tenants belong together, for a workflow of one node.

    Ascending in time, and stretched to the rate; entered at a random request and read in a circle.
    """

    workflow: Workflow
    requests: tuple[Recorded, ...]
    rate_per_s: float
    count: int | None = None
    duration_s: float | None = None


def recorded_scripts(recording: Recording, seed: int) -> list[RunScript]:
    """Every run of a recorded load in order of arrival. Raises InvalidInput without an end."""
    requests = recording.requests
    trace = Trace(tuple(request.at_s for request in requests), recording.rate_per_s)
    start = Random(f"{seed}/arrivals").randrange(len(requests))
    moments = bounded(trace.moments_from(start), recording.count, recording.duration_s)
    return [
        _recorded_script(number, at_s, recording.workflow, requests[(start + number) % len(requests)])
        for number, at_s in enumerate(moments)
    ]


def _recorded_script(number: int, at_s: float, workflow: Workflow, request: Recorded) -> RunScript:
    call = CallScript(
        request.prompt_tokens,
        request.output_tokens,
        blocks=request.blocks,
        prompt_bytes=round(BYTES_PER_TOKEN * request.prompt_tokens),
    )
    return RunScript(
        run=_run_id(number),
        at_s=at_s,
        tenant=request.tenant,
        workflow=workflow,
        slo=workflow.slo,
        calls={workflow.output: (call,)},
        cases={},
    )
