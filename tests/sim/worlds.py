"""Small worlds for the tests of the simulator, with what the kernel said in them, and random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import strategies as st

from tests.kernel.world import workflows
from tightrope.bench.traces import Traces
from tightrope.kernel.journal import entries
from tightrope.kernel.state import KernelSettings
from tightrope.model.fleet import Accelerator, ReplicaSpec
from tightrope.model.ids import AcceleratorName, ModelName, ReplicaId, RunId, TenantId
from tightrope.model.messages import Command, Event
from tightrope.model.profile import Coefficients, Profile
from tightrope.model.slo import Limits, Slo, Tenant
from tightrope.model.workflow import ModelCall, Node, Workflow
from tightrope.sim.driver import simulate
from tightrope.sim.engine import Truth
from tightrope.sim.workload import CallScript, RunScript
from tightrope.sim.world import Fault, RunRecord, World

TRACES = Traces(Path(__file__).parents[2] / "scenarios" / "data")
TENANT = TenantId("shop")
FAST, SLOW = AcceleratorName("fast"), AcceleratorName("slow")
SMALL, BIG = ModelName("small"), ModelName("big")
CARD = Coefficients(a=8.0, b=0.05, c=1e-4, d=0.03, e=1e-6)
START_S = 3.0


def a_profile(model: ModelName, card: AcceleratorName, **changes: Any) -> Profile:
    """A card that takes 8 ms a step if it is fast, and three times as long for everything if not."""
    coefficients = CARD if card == FAST else CARD.scaled(3)
    plain = Profile(model, card, coefficients, step_tokens=512, max_sequences=16, kv_tokens=40_000)
    return replace(plain, **changes)


def a_world(*flows: Workflow, replicas: str = "s0:small@fast b0:big@fast", **changes: Any) -> World:
    """One tenant, the named replicas, and beliefs that are true."""
    specs = tuple(_spec(word) for word in replicas.split())
    profiles = {(spec.model, spec.accelerator): a_profile(spec.model, spec.accelerator) for spec in specs}
    plain = World(
        accelerators=(Accelerator(FAST), Accelerator(SLOW)),
        replicas=specs,
        truths={kind: Truth(profile) for kind, profile in profiles.items()},
        beliefs=profiles,
        tenants=(Tenant(TENANT, limits=Limits(deadline_s=60.0)),),
        workflows=flows,
        settings=KernelSettings(),
        start_s={FAST: START_S, SLOW: START_S},
    )
    return replace(plain, **changes)


def _spec(word: str) -> ReplicaSpec:
    name, _, rest = word.partition(":")
    model, _, card = rest.partition("@")
    return ReplicaSpec(ReplicaId(name), ModelName(model), AcceleratorName(card))


def a_script(
    flow: Workflow, *, at_s: float = 0.0, number: int = 0, slo: Slo | None = None, **calls: CallScript
) -> RunScript:
    """A run whose nodes ask 400 tokens and answer 20, code taking no time, unless they are named."""
    dull = CallScript(prompt_tokens=400, output_tokens=20, prompt_bytes=1600)
    return RunScript(
        run=RunId(f"run-{number}"),
        at_s=at_s,
        tenant=TENANT,
        workflow=flow,
        slo=slo or flow.slo,
        calls={node.id: (calls.get(node.id, dull),) for node in flow.nodes},
        cases={switch.id: switch.cases[0].name for switch in flow.switches},
    )


@dataclass(frozen=True, slots=True)
class Played:
    """A simulation that has ended: what the clients saw, and the journal of the kernel."""

    records: list[RunRecord]
    lines: list[str]

    @property
    def said(self) -> list[tuple[float, Event | Command]]:
        """Every event and command with its moment, in order."""
        return [(entry.at_s, entry.message) for entry in entries(self.lines)]


def play(world: World, scripts: Sequence[RunScript]) -> Played:
    """Simulate, and keep the journal."""
    lines: list[str] = []
    return Played(simulate(world, scripts, lines.append), lines)


# --- random ones -----------------------------------------------------------------------------------------

_SLOS = (Slo(), Slo(ttft_s=0.4), Slo(ttft_s=1.1, tpot_s=0.021), Slo(e2e_s=0.9), Slo(ttft_s=0.6, e2e_s=0.7))


@st.composite
def sessions(draw: st.DrawFn, *, may_go_wrong: bool = True) -> tuple[World, list[RunScript]]:
    """A random workflow, a few runs of it, and a world in which replicas may slow down, die and be far away."""
    flow = draw(workflows())
    if draw(st.booleans()):
        flow = _streamed(flow)
    rng = Random(draw(st.integers(0, 2**32)))
    scripts = [_random_script(flow, number, rng) for number in range(draw(st.integers(1, 6)))]
    replicas = "s0:small@fast s1:small@slow b0:big@fast b1:big@slow"
    world = a_world(flow, replicas=replicas, settings=KernelSettings(seed=draw(st.integers(0, 9))))
    if not may_go_wrong:
        return world, scripts
    noisy = {kind: replace(truth, noise=0.1) for kind, truth in world.truths.items()}
    names = [spec.id for spec in world.replicas]
    faults = st.builds(
        Fault, st.floats(0, 3), st.sampled_from(names), st.sampled_from(["slow", "die"]), st.floats(1, 20)
    )
    network_s, telemetry_s = draw(st.sampled_from([0.0, 0.02])), draw(st.sampled_from([0.0, 0.3]))
    found = tuple(draw(st.lists(faults, max_size=3)))
    return replace(world, truths=noisy, faults=found, network_s=network_s, telemetry_s=telemetry_s), scripts


def _streamed(flow: Workflow) -> Workflow:
    """The same workflow with an answer that is read as it is made, unless it has a shape."""
    nodes = []
    for node in flow.nodes:
        work = node.work
        if node.id == flow.output and isinstance(work, ModelCall):
            work = replace(work, stream=True)
        nodes.append(replace(node, work=work))
    return replace(flow, nodes=tuple(nodes))


def _random_script(flow: Workflow, number: int, rng: Random) -> RunScript:
    return RunScript(
        run=RunId(f"run-{number}"),
        at_s=rng.uniform(0, 2),
        tenant=TENANT,
        workflow=flow,
        slo=rng.choice(_SLOS),
        calls={node.id: _random_items(node, rng) for node in flow.nodes},
        cases={switch.id: rng.choice(switch.cases).name for switch in flow.switches},
    )


def _random_items(node: Node, rng: Random) -> tuple[CallScript, ...]:
    width = 1 if node.fan_out is None else rng.randint(0, node.fan_out.max_items)
    return tuple(_random_item(rng) for _ in range(width))


def _random_item(rng: Random) -> CallScript:
    prompt = rng.randint(1, 900)
    return CallScript(prompt, rng.randint(1, 24), rng.uniform(0, 0.2), (), round(prompt * rng.uniform(3, 5)))
