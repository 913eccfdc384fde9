"""A workflow of one's own, tried in virtual time: `tightrope.simulate(flow, fleet=..., rate=...)`.

Owns what is assumed where nobody said: how long prompts and answers are, and which measured model stands for a
name. What happens then is the same kernel on the same simulated engines as in every benchmark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tightrope.bench.capacity import stability_limit
from tightrope.bench.cell import UNLIMITED, replica_id
from tightrope.bench.demand import scripted_demand
from tightrope.bench.library import hardware, not_found, one_policy
from tightrope.bench.metrics import Bill, Figures, Window, figures
from tightrope.bench.scenario_form import parse_rate
from tightrope.flow.builder import Workflow as Flowing
from tightrope.kernel.state import KernelSettings
from tightrope.model.errors import InvalidInput, NotFound
from tightrope.model.fleet import ReplicaSpec
from tightrope.model.ids import AcceleratorName, ModelName, StepId, TenantId
from tightrope.model.profile import Profile
from tightrope.model.slo import Tenant
from tightrope.model.workflow import EACH, INPUT, Binding, ModelCall, Node, PromptKind, Workflow
from tightrope.sim.arrivals import Poisson
from tightrope.sim.driver import simulate as play
from tightrope.sim.engine import Truth
from tightrope.sim.lengths import BYTES_PER_TOKEN, CodeTime, Lengths, Lognormal
from tightrope.sim.workload import Flow, Plan, Share, scripts
from tightrope.sim.world import CardKind, RunRecord, World

STAND_INS = {"small": "Qwen3-1.7B", "big": "Qwen3-8B", "large": "Qwen3-8B"}
"""Measured models that stand for names which say a size."""
GIVEN_TOKENS = 200
"""Assumed size of what a request gives, and of an item of a list."""
FOUND_TOKENS = 300
"""Assumed size of what a code node hands on."""
ANSWER_PART = 0.5
"""Assumed mean of an answer, as a part of the longest that its node allows."""
CODE_S = 0.03
"""Assumed time of a code node."""
START_S = 30.0
TENANT = TenantId("me")
Sizes = Mapping[str, tuple[float, float]]
"""By node: mean tokens of its prompt and of its answer."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """What came of it, over the runs that arrived after the warm-up. Times in seconds, None where nothing came.

    `attainment` is the share of arrived runs that kept their promise; `load` the rate as a share of the fleet's
    stability limit; `shares` the part of calls by card; `sizes` the mean tokens that every model node was given.
    """

    policy: str
    runs: int
    attainment: float
    ttft_mean_s: float | None
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    e2e_p50_s: float | None
    usd_per_1k_runs: float | None
    rate_per_s: float
    load: float
    shares: Mapping[str, float]
    sizes: Sizes
    records: tuple[RunRecord, ...]

    def __str__(self) -> str:
        shares = ", ".join(f"{card} {part:.0%}" for card, part in self.shares.items())
        return (
            f"{self.policy}: {self.attainment:.1%} of {self.runs} runs on time at {self.rate_per_s:.2f} req/s "
            f"({self.load:.0%} of what the fleet can bear), TTFT p50 {_shown(self.ttft_p50_s)}, "
            f"p95 {_shown(self.ttft_p95_s)}, {self.usd_per_1k_runs or 0:.2f} USD per 1000 runs, calls on {shares}"
        )


def simulate(
    workflow: Flowing | Workflow,
    *,
    fleet: Mapping[str, Mapping[str, int]],
    rate: str,
    minutes: float = 5.0,
    seed: int = 1,
    policy: str = "foresight",
    models: Mapping[str, str] | None = None,
    profiles: Sequence[Profile] = (),
    sizes: Sizes | None = None,
) -> Simulation:
    """Play Poisson arrivals of the workflow against a fleet (model -> card -> replicas) in virtual time.

    `rate` is `6 req/s`, or `80%` of what the fleet can bear. Models have the name of the workflow; `models` says
    which measured model each is, unless the name says it itself; `profiles` are measured ones of your own, and
    come first. `sizes` gives mean prompt and answer tokens by node; the rest is assumed from templates and limits.
    The first tenth, at most 30 s, warms up and is not counted. Equal arguments give equal results.

    Raises InvalidInput for a model without a replica, and for names that do not exist.
    """
    built = workflow.build() if isinstance(workflow, Flowing) else workflow
    truths = dict(_truths(built, fleet, models or {}, profiles))
    flow = assumed_flow(built, sizes or {})
    limit = _limit_per_s(flow, fleet, truths)
    asked = parse_rate(rate)
    per_s = asked.per_s if asked.per_s is not None else (asked.share or 0.0) * limit
    duration_s = 60 * minutes
    runs = scripts(Plan((Share(flow, TENANT),), Poisson(per_s), duration_s=duration_s), seed)
    records = play(_world(built, fleet, truths, one_policy(policy), seed), runs)
    window = Window(min(30.0, duration_s / 10), duration_s)
    found = figures(records, window, truths, _bill(fleet))
    return _simulation(policy, per_s, per_s / limit, found, flow, records)


def _shown(value_s: float | None) -> str:
    return "-" if value_s is None else f"{value_s:.2f} s"


# --- the fleet -------------------------------------------------------------------------------------------


def _truths(
    workflow: Workflow,
    fleet: Mapping[str, Mapping[str, int]],
    models: Mapping[str, str],
    profiles: Sequence[Profile],
) -> Iterator[tuple[CardKind, Profile]]:
    missing = [model for model in workflow.models() if not fleet.get(model)]
    if missing:
        raise InvalidInput(
            f"no replica serves {missing[0]!r}; add it: fleet={{{missing[0]!r}: {{'l40s': 1}}}}"
        )
    own = {(profile.model, profile.accelerator): profile for profile in profiles}
    for name, cards in fleet.items():
        for card in cards:
            pair = ModelName(name), AcceleratorName(card)
            yield pair, own.get(pair) or _measured(name, card, models)


def _measured(name: str, card: str, models: Mapping[str, str]) -> Profile:
    measured = models.get(name) or STAND_INS.get(name) or name
    if measured not in hardware().models:
        sentence = not_found("measured model", measured, hardware().models)
        raise InvalidInput(f"{sentence}; say which one {name!r} is: models={{{name!r}: ...}}")
    return replace(hardware().profile(measured, card), model=ModelName(name))


def stand_in(name: str, card: str) -> tuple[str, Profile] | None:
    """The measured model that stands for this name, and its profile on a card of the table under the name given; None
    where the table has no such model or card, or there is no table."""
    measured = STAND_INS.get(name, name)
    try:
        return measured, _measured(name, card, {})
    except (InvalidInput, NotFound):
        return None


def _limit_per_s(
    flow: Flow, fleet: Mapping[str, Mapping[str, int]], truths: Mapping[CardKind, Profile]
) -> float:
    sample = scripts(Plan((Share(flow, TENANT),), Poisson(1.0), count=1000), 0)
    replicas = {
        ModelName(model): [
            truths[ModelName(model), AcceleratorName(card)]
            for card, count in cards.items()
            for _ in range(count)
        ]
        for model, cards in fleet.items()
    }
    return stability_limit(scripted_demand(sample), replicas)


def _bill(fleet: Mapping[str, Mapping[str, int]]) -> Bill:
    rows = [(card, count) for cards in fleet.values() for card, count in cards.items()]
    known = {
        card: hardware().accelerator(card).usd_per_h for card, _ in rows if card in hardware().accelerators
    }
    return Bill(sum(count for _, count in rows), sum(count * known.get(card, 0.0) for card, count in rows))


def _world(
    workflow: Workflow,
    fleet: Mapping[str, Mapping[str, int]],
    truths: Mapping[CardKind, Profile],
    policy: str,
    seed: int,
) -> World:
    cards = [
        AcceleratorName(card) for card in dict.fromkeys(card for cards in fleet.values() for card in cards)
    ]
    known = [hardware().accelerator(card) for card in cards if card in hardware().accelerators]
    return World(
        accelerators=tuple(known),
        replicas=tuple(_replicas(fleet)),
        truths={pair: Truth(profile) for pair, profile in truths.items()},
        beliefs=dict(truths),
        tenants=(Tenant(TENANT, limits=UNLIMITED),),
        workflows=(workflow,),
        settings=KernelSettings(router=policy, seed=seed),
        start_s=dict.fromkeys(cards, START_S),
        seed=seed,
    )


def _replicas(fleet: Mapping[str, Mapping[str, int]]) -> Iterator[ReplicaSpec]:
    for name, cards in fleet.items():
        for kind, count in cards.items():
            model, card = ModelName(name), AcceleratorName(kind)
            for index in range(count):
                yield ReplicaSpec(replica_id(model, card, index), model, card)


# --- the load --------------------------------------------------------------------------------------------


def assumed_flow(workflow: Workflow, sizes: Sizes) -> Flow:
    """The workflow with sizes of its calls that were given, or assumed. Raises InvalidInput for an unknown node."""
    unknown = [name for name in sizes if name not in workflow.step_by_id]
    if unknown:
        raise InvalidInput(not_found("node", unknown[0], [node.id for node in workflow.nodes]))
    found: dict[StepId, Lengths] = {}
    nodes = {node.id: node for node in workflow.nodes}
    for step in workflow.graph.order:
        if step in nodes:
            found[step] = _lengths(nodes[step], nodes, found, sizes.get(step))
    widths = {node.id: (1, node.fan_out.max_items) for node in workflow.nodes if node.fan_out is not None}
    return Flow(workflow, found, widths)


def _lengths(
    node: Node,
    nodes: Mapping[StepId, Node],
    before: Mapping[StepId, Lengths],
    size: tuple[float, float] | None,
) -> Lengths:
    work = node.work
    if not isinstance(work, ModelCall):
        return CodeTime(CODE_S)
    if size is not None:
        return Lognormal(*size, output_most=work.max_tokens)
    prompt = len(work.prompt.system + work.prompt.text) / BYTES_PER_TOKEN
    if work.prompt.kind is not PromptKind.TEMPLATE:
        prompt += GIVEN_TOKENS
    prompt += sum(_handed_on(binding, nodes, before) for _, binding in node.inputs)
    return Lognormal(max(1.0, prompt), max(1.0, ANSWER_PART * work.max_tokens), output_most=work.max_tokens)


def _handed_on(binding: Binding, nodes: Mapping[StepId, Node], before: Mapping[StepId, Lengths]) -> float:
    """Mean tokens of an input: what its first source gives, of a fan-out what half of its items do."""
    source = StepId(binding.refs[0].source)
    if source in (INPUT, EACH):
        return GIVEN_TOKENS
    lengths, fan_out = before[source], nodes[source].fan_out
    items = (1 + fan_out.max_items) / 2 if fan_out is not None else 1.0
    return items * (lengths.output_mean if isinstance(lengths, Lognormal) else FOUND_TOKENS)


# --- what came of it -------------------------------------------------------------------------------------


def _simulation(
    policy: str, per_s: float, load: float, found: Figures, flow: Flow, records: Sequence[RunRecord]
) -> Simulation:
    return Simulation(
        policy=policy,
        runs=found.runs,
        attainment=found.goodput,
        ttft_mean_s=found.ttft.mean_s,
        ttft_p50_s=found.ttft.p50_s,
        ttft_p95_s=found.ttft.p95_s,
        e2e_p50_s=found.e2e.p50_s,
        usd_per_1k_runs=found.usd_per_1k_runs,
        rate_per_s=per_s,
        load=load,
        shares={share.accelerator: share.share for share in found.shares},
        sizes={
            step: (lengths.prompt_mean, lengths.output_mean)
            for step, lengths in flow.lengths.items()
            if isinstance(lengths, Lognormal)
        },
        records=tuple(records),
    )
