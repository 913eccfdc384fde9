"""Small random loads on small random fleets, tight enough that some runs are late."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any

from hypothesis import strategies as st

from tests.policy.builders import code
from tightrope.kernel.state import KernelSettings
from tightrope.model.fleet import Accelerator, ReplicaSpec
from tightrope.model.ids import AcceleratorName, ModelName, ReplicaId, RunId, StepId, TenantId
from tightrope.model.profile import Coefficients, Profile
from tightrope.model.slo import Slo, Tenant
from tightrope.model.workflow import (
    Binding,
    Case,
    CaseRef,
    FanOut,
    Gather,
    InputSpec,
    ModelCall,
    Node,
    Prompt,
    Ref,
    Switch,
    Workflow,
    problems,
)
from tightrope.sim.engine import Truth
from tightrope.sim.promise import alone_s
from tightrope.sim.script import CallScript, RunScript
from tightrope.sim.world import World

MODEL = ModelName("m")
TENANT = TenantId("t")
CARDS = tuple(AcceleratorName(f"card{number}") for number in range(2))


def ask(
    name: str,
    *reads: str,
    case: tuple[str, str] | None = None,
    items: int = 0,
    gather: Gather | None = None,
    stream: bool = False,
    model: ModelName = MODEL,
) -> Node:
    """A model node that reads others; one whose name ends in `?` may be missing."""
    inputs = tuple(
        (
            f"in{number}",
            Binding(
                (Ref(text.removesuffix("?")),),
                optional=text.endswith("?"),
                gather=gather if text == "many" else None,
            ),
        )
        for number, text in enumerate(reads)
    )
    return Node(
        id=StepId(name),
        work=ModelCall(model, Prompt(text=name), 64, stream=stream),
        inputs=inputs,
        case=CaseRef(StepId(case[0]), case[1]) if case else None,
        fan_out=FanOut(Ref("input", ("list",)), 4) if items else None,
    )


def _flow(name: str, *nodes: Node, switches: tuple[Switch, ...] = ()) -> Workflow:
    flow = Workflow(name, nodes, nodes[-1].id, inputs=(InputSpec("list"),), switches=switches)
    assert problems(flow) == []
    return flow


_WAY = Switch(
    StepId("way"), (Case("long", "first.x == 1", 0.5), Case("short", None, 0.5)), reads=(StepId("first"),)
)
WHOLE = _flow("whole", ask("out"))
FLOWS = (
    _flow("single", ask("out", stream=True)),
    _flow("chain", ask("first"), ask("out", "first", stream=True)),
    _flow("late", code("look"), ask("out", "look")),
    _flow("both", ask("left"), ask("right"), ask("out", "left", "right", stream=True)),
    _flow("fan", ask("many", items=4), ask("out", "many", gather=Gather(), stream=True)),
    _flow("some", ask("many", items=4), ask("out", "many", gather=Gather(2, 0.05), stream=True)),
    _flow(
        "branch",
        ask("first"),
        ask("more", case=("way", "long")),
        ask("out", "more?", stream=True),
        switches=(_WAY,),
    ),
)


def a_world(profile: Profile, replicas: int, **changes: Any) -> World:
    """Equal replicas of one model, for runs of one call whose answer is read at its end."""
    kind = (profile.model, profile.accelerator)
    plain = World(
        accelerators=(Accelerator(profile.accelerator),),
        replicas=tuple(ReplicaSpec(ReplicaId(f"r{number}"), *kind) for number in range(replicas)),
        truths={kind: Truth(profile)},
        beliefs={kind: profile},
        tenants=(Tenant(TENANT),),
        workflows=(WHOLE,),
        settings=KernelSettings(),
        start_s={profile.accelerator: 1.0},
    )
    return replace(plain, **changes)


def a_script(
    number: int, call: CallScript, slo: Slo, at_s: float = 0.0, flow: Workflow | None = None
) -> RunScript:
    """A run whose calls are all like this one."""
    flow = flow or WHOLE
    calls = {node.id: (call,) for node in flow.nodes}
    return RunScript(RunId(f"run-{number}"), at_s, TENANT, flow, slo, calls, {})


PLAIN = tuple(flow for flow in FLOWS if flow.name != "some")
"""Those whose joins wait for all."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What instances are drawn from. `is_plain`: nothing but the schedule decides how long things take;
    `is_serial`: engines serve one call at a time."""

    flows: tuple[Workflow, ...] = FLOWS
    most_runs: int = 8
    most_replicas: int = 3
    is_plain: bool = False
    is_serial: bool = False


@st.composite
def instances(draw: st.DrawFn, kind: Kind = Kind()) -> tuple[World, list[RunScript]]:
    """A fleet of one model on up to two kinds of card, and a few runs that come close together.

    Promises are a small multiple of the time that each run takes alone.
    """
    rng = Random(draw(st.integers(0, 2**32)))
    flow = draw(st.sampled_from(kind.flows))
    scripts = [_script(flow, number, rng) for number in range(draw(st.integers(1, kind.most_runs)))]
    world = _world(draw, flow, scripts, kind)
    cards = {MODEL: list(world.beliefs.values())}
    return world, [replace(script, slo=_slo(alone_s(script, cards), rng)) for script in scripts]


def _slo(alone: float, rng: Random) -> Slo:
    ttft_s, e2e_s = alone * rng.uniform(1, 3), alone * rng.uniform(1.5, 6)
    return rng.choice(
        [
            Slo(ttft_s=ttft_s, tpot_s=rng.choice([None, 0.012, 0.04])),
            Slo(e2e_s=e2e_s),
            Slo(ttft_s=ttft_s, e2e_s=e2e_s, tpot_s=rng.choice([None, 0.04])),
        ]
    )


def _world(draw: st.DrawFn, flow: Workflow, scripts: list[RunScript], kind: Kind) -> World:
    calls = [call for script in scripts for items in script.calls.values() for call in items]
    most_tokens = max(call.prompt_tokens + call.output_tokens for call in calls)
    cards = draw(st.lists(st.sampled_from(CARDS), min_size=1, max_size=kind.most_replicas))
    beliefs = {(MODEL, card): draw(profiles(card, most_tokens, kind)) for card in sorted(set(cards))}
    block_tokens = 0 if kind.is_plain else draw(st.sampled_from([0, 0, 16]))
    is_ahead = not kind.is_plain and draw(st.booleans())
    return World(
        accelerators=tuple(Accelerator(card) for card in CARDS),
        replicas=tuple(
            ReplicaSpec(ReplicaId(f"r{number}"), MODEL, card) for number, card in enumerate(cards)
        ),
        truths={
            pair: Truth(profile, block_tokens=block_tokens, is_ahead=is_ahead)
            for pair, profile in beliefs.items()
        },
        beliefs=beliefs,
        tenants=(Tenant(TENANT),),
        workflows=(flow,),
        settings=KernelSettings(router=draw(st.sampled_from(["foresight", "round-robin", "power-of-two"]))),
        start_s=dict.fromkeys(CARDS, 1.0),
        network_s=0.0 if kind.is_plain else draw(st.sampled_from([0.0, 0.005])),
    )


@st.composite
def profiles(draw: st.DrawFn, card: AcceleratorName, most_tokens: int, kind: Kind) -> Profile:
    """Any card on which the largest call fits."""
    coefficients = Coefficients(
        a=draw(st.sampled_from([4.0, 10.0, 25.0])),
        b=draw(st.sampled_from([0.0, 0.5])),
        c=draw(st.sampled_from([0.0, 1e-3, 1e-2])),
        d=draw(st.sampled_from([0.02, 0.2])),
        e=draw(st.sampled_from([0.0, 1e-5, 1e-4])),
        h=draw(st.sampled_from([0.0, 2.0])),
    )
    return Profile(
        MODEL,
        card,
        coefficients,
        step_tokens=draw(st.sampled_from([32, 200, 2048])),
        max_sequences=1 if kind.is_serial else draw(st.sampled_from([1, 2, 8])),
        kv_tokens=draw(st.sampled_from([most_tokens, most_tokens + 20, 2 * most_tokens, 100_000])),
    )


def _script(flow: Workflow, number: int, rng: Random) -> RunScript:
    return RunScript(
        run=RunId(f"run-{number}"),
        at_s=rng.uniform(0, 0.1),
        tenant=TENANT,
        workflow=flow,
        slo=Slo(),
        calls={node.id: _items(node, rng) for node in flow.nodes},
        cases={switch.id: rng.choice(switch.cases).name for switch in flow.switches},
    )


def _items(node: Node, rng: Random) -> tuple[CallScript, ...]:
    width = 1 if node.fan_out is None else rng.randint(1, 3)
    return tuple(_item(rng) for _ in range(width))


def _item(rng: Random) -> CallScript:
    prompt = rng.choice([rng.randint(1, 60), rng.randint(100, 900)])
    blocks = tuple(range(rng.choice([0, prompt // 16])))
    return CallScript(
        prompt, rng.choice([1, 2, rng.randint(3, 40)]), rng.uniform(0, 0.05), blocks, 4 * prompt
    )
