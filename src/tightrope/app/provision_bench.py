"""`bench provision` and `bench disturbed`: elastic fleets under each provisioner as commands, and their reports.

Owns the course and the files. What is played and what it says is `bench/provision.py` and `bench/disturbed.py`.
"""

from __future__ import annotations

import os
from dataclasses import replace

from tightrope.app.cli.frame import Answer, Common
from tightrope.app.progress import bar
from tightrope.app.scenario_bench import RESULTS, Options, in_words, resumable, write_page
from tightrope.bench.disturbed import shaken, shaken_json, shaken_markdown, shaken_table
from tightrope.bench.library import load_scenario
from tightrope.bench.provision import compare, comparison_json, comparison_markdown, comparison_table
from tightrope.bench.scenario import Scenario
from tightrope.bench.scenario_form import parse_rate, parse_seeds
from tightrope.model.errors import InvalidInput

SCENARIO = "day"
DISTURBED_SEEDS = (100, 101, 102)


def bench_provision(common: Common, options: Options) -> Answer:
    """Tune and play what is missing, write the report, and print its table."""
    scenario, seeds = _asked(options), _seeds(options)
    if options.rates:
        scenario = replace(scenario, rates=tuple(map(parse_rate, options.rates)))
    folder = options.out or RESULTS / "provision"
    with bar(common, "provision", label="starting") as tell, resumable(common, "provision", options, folder):
        found = compare(
            scenario,
            options.policies,
            seeds or scenario.seeds,
            folder,
            options.workers or os.cpu_count() or 1,
            in_words(common, tell),
        )
    files = write_page(folder, comparison_markdown(found), comparison_json(found))
    return Answer(
        comparison_json(found), f"{comparison_table(found)}\n\nwritten: {', '.join(map(str, files))}"
    )


def bench_disturbed(common: Common, options: Options) -> Answer:
    """Play what is missing, write the report, and print its table."""
    if options.policies or options.rates:
        raise InvalidInput("disturbed has its own provisioners and loads; it knows --seeds and --scenario")
    scenario, seeds = _asked(options), _seeds(options) or DISTURBED_SEEDS
    folder = options.out or RESULTS / "disturbed"
    with bar(common, "disturbed", label="starting") as tell, resumable(common, "disturbed", options, folder):
        found = shaken(
            scenario, seeds, folder, options.workers or os.cpu_count() or 1, in_words(common, tell)
        )
    files = write_page(folder, shaken_markdown(scenario.name, seeds, found), shaken_json(found))
    return Answer(shaken_json(found), f"{shaken_table(found)}\n\nwritten: {', '.join(map(str, files))}")


def _asked(options: Options) -> Scenario:
    if options.compare is not None or options.is_capacity:
        raise InvalidInput("--compare and --capacity look at loads of a fixed fleet; leave them out")
    scenario = load_scenario(options.scenario if options.scenario != "mixed" else SCENARIO)
    if scenario.elastic is None:
        raise InvalidInput(f"the fleet of {scenario.name} is a fixed one; name a scenario with `elastic`")
    return scenario


def _seeds(options: Options) -> tuple[int, ...]:
    return parse_seeds(list(options.seeds.split(","))) if options.seeds else ()
