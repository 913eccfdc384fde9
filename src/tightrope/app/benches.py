"""The kept benchmarks by name: scenarios in virtual time, and those that are something else.

Owns the table of names, and where the data of the small ones goes. A scenario's course is `scenario_bench.py`,
the comparison on real engines `live_bench.py`, the
fleet that follows the load `elastic_bench.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

from tightrope.app.cli.frame import ANSWER_IS_NO, Answer, Common
from tightrope.app.duel_bench import bench_duel
from tightrope.app.elastic_bench import bench_elastic
from tightrope.app.live_bench import LIVE_POLICIES, Live, bench_live
from tightrope.app.overhead_bench import bench_overhead
from tightrope.app.paper_bench import bench_paper
from tightrope.app.parity_bench import bench_parity
from tightrope.app.provision_bench import bench_disturbed, bench_provision
from tightrope.app.scenario_bench import Options, bench_family, bench_limit, bench_scenario
from tightrope.app.tables import grid
from tightrope.bench.credibility import credibility, credibility_table
from tightrope.bench.decision import decision_costs
from tightrope.bench.goals import CLUSTERS, LATE, WRONG
from tightrope.bench.kernel import kernel_cost
from tightrope.bench.library import DATA, not_found, scenario_names, scenarios_folder
from tightrope.bench.overhead import overhead_data, overhead_text
from tightrope.bench.parity_text import parity_table
from tightrope.bench.scenario_form import parse_seeds
from tightrope.model.codec import encode
from tightrope.model.errors import InvalidInput, NotFound
from tightrope.model.json import Json
from tightrope.policy.foresight import FORESIGHT, FORESIGHT_VARIANTS

KERNEL_CELLS = ((4, 400, 0.25), (64, 2000, 0.25), (64, 2000, 1.5), (1000, 2000, 0.25), (10_000, 2000, 0.25))

ABLATION_RATES, ABLATION_SEEDS = ("90%", "110%"), "100-103"


def run(common: Common, name: str, options: Options) -> Answer:
    """The verb: run one benchmark by its name. Raises NotFound, which lists the names, if there is none."""
    if options.which and name != "duel":
        raise InvalidInput(f"{name} takes no second name; {options.which!r} stands after it")
    if name in BENCHES:
        return BENCHES[name](common, options)
    if name in scenario_names() or name.endswith((".yaml", ".yml")):
        return bench_scenario(common, name, options)
    raise NotFound(not_found("benchmark", name, [*BENCHES, *scenario_names()]))


def _live(common: Common, options: Options) -> Answer:
    seeds = parse_seeds(list(options.seeds.split(","))) if options.seeds else (100,)
    live = Live(options.policies or LIVE_POLICIES, options.runs, options.share, seeds)
    return _kept(options.out, *bench_live(common, live))


def _elastic(common: Common, options: Options) -> Answer:
    return bench_elastic(common, share=options.share, seed=_one_seed("elastic", options), out=options.out)


def _one_seed(name: str, options: Options) -> int:
    seeds = parse_seeds(list(options.seeds.split(","))) if options.seeds else (100,)
    if len(seeds) > 1:
        raise InvalidInput(f"{name} plays one load: name one seed")
    return seeds[0]


def _parity(common: Common, options: Options) -> Answer:
    seed = _one_seed("parity", options)
    found, journal = bench_parity(common, runs=options.runs, share=options.share, seed=seed)
    text = f"{parity_table(found)}\n\nthe journal: {journal}"
    answer = _kept(options.out, cast(Json, encode(found)), text)
    return answer if found.holds else replace(answer, code=ANSWER_IS_NO)


def _duel(common: Common, options: Options) -> Answer:
    if not options.which:
        raise InvalidInput(
            "say which scenario, such as `tightrope bench duel mixed` or `duel paper-two-node`"
        )
    return bench_duel(common, options)


def _overhead(common: Common, options: Options) -> Answer:
    found = bench_overhead(common)
    return _kept(options.out, overhead_data(found), overhead_text(found))


def _credibility(common: Common, options: Options) -> Answer:
    common.say("the simulated engine against a recorded run of a real one")
    found = credibility(scenarios_folder() / DATA)
    answer = _kept(options.out, cast(Json, encode(found)), credibility_table(found))
    return answer if found.is_credible else replace(answer, code=ANSWER_IS_NO)


def _goodput(common: Common, options: Options) -> Answer:
    return bench_family(common, "goodput", dict.fromkeys(CLUSTERS, ()), options)


def _robustness(common: Common, options: Options) -> Answer:
    scenarios = {"mixed": ("foresight", "power-of-two"), **dict.fromkeys((*WRONG, *LATE), ())}
    return bench_family(common, "robustness", scenarios, options)


def _ablation(common: Common, options: Options) -> Answer:
    compared = (FORESIGHT.name, *(variant.name for variant in FORESIGHT_VARIANTS))
    chosen = replace(options, rates=options.rates or ABLATION_RATES, seeds=options.seeds or ABLATION_SEEDS)
    return bench_family(common, "ablation", dict.fromkeys(("mixed", "uniform"), compared), chosen)


def _kept(out: Path | None, data: Json, text: str) -> Answer:
    """The answer, its data written to `out` if that was asked for."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return Answer(data, text)


# --- decisions and events --------------------------------------------------------------------------------


def _decision(common: Common, options: Options) -> Answer:
    common.say("processor time of one decision, in a pool where as many calls end as begin")
    costs = decision_costs()
    rows = [
        (
            one.policy,
            str(one.replicas),
            str(one.calls),
            str(one.decisions),
            f"{one.p50_us:.0f} us",
            f"{one.p99_us:.0f} us",
        )
        for one in costs
    ]
    columns = ("policy", "replicas", "calls each", "decisions", "p50", "p99")
    table = grid(columns, rows, right=(1, 2, 3, 4, 5))
    return _kept(options.out, [cast(Json, encode(one)) for one in costs], f"{table}\n\n{_machine()}")


def _kernel(common: Common, options: Options) -> Answer:
    common.say("processor time of the kernel for two-node runs, engines in zero time")
    costs = [
        kernel_cost(policy, replicas, runs, load)
        for policy in ("foresight", "power-of-two", "round-robin")
        for replicas, runs, load in KERNEL_CELLS
    ]
    rows = [
        (
            one.policy,
            str(one.replicas),
            f"{one.load:.0%}",
            str(one.events),
            f"{one.per_event_us:.0f} us",
            f"{1e6 / one.per_event_us:,.0f}",
        )
        for one in costs
    ]
    table = grid(
        ("policy", "replicas", "load", "events", "per event", "events/s"), rows, right=(1, 2, 3, 4, 5)
    )
    return _kept(options.out, [cast(Json, encode(one)) for one in costs], f"{table}\n\n{_machine()}")


def _machine() -> str:
    return f"Python {sys.version.split()[0]}, one thread"


BENCHES: dict[str, Callable[[Common, Options], Answer]] = {
    "credibility": _credibility,
    "goodput": _goodput,
    "robustness": _robustness,
    "ablation": _ablation,
    "limit": bench_limit,
    "paper": bench_paper,
    "provision": bench_provision,
    "disturbed": bench_disturbed,
    "decision": _decision,
    "kernel": _kernel,
    "live": _live,
    "elastic": _elastic,
    "parity": _parity,
    "duel": _duel,
    "overhead": _overhead,
}
"""What is measured otherwise than by one scenario."""
