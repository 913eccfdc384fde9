"""The benchmark of one scenario as a command: plan, progress, what Ctrl-C leaves, and the files of its report.

Owns the course. Cells and their reports are `bench/`.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tightrope.app.cli.frame import Answer, Common, Refused
from tightrope.app.progress import bar
from tightrope.app.tables import grid
from tightrope.bench.distances import (
    LOADS,
    NO_BOUND,
    SEEDS,
    STARTS,
    STEPS,
    can_bound,
    distances,
    distances_json,
    distances_markdown,
    distances_table,
    shortened,
)
from tightrope.bench.goals import as_json as goals_json
from tightrope.bench.goals import goals
from tightrope.bench.library import load_scenario
from tightrope.bench.library import policies as policies_named
from tightrope.bench.plots import NO_PICTURES, can_draw, draw
from tightrope.bench.report import Report, as_json, from_json, moved, report
from tightrope.bench.report_text import (
    capacity_cell,
    family_markdown,
    goals_table,
    markdown,
    moved_text,
)
from tightrope.bench.run import Plan, Tell, capacity, plan_of, run
from tightrope.bench.scenario import Rate, Scenario
from tightrope.bench.scenario_form import parse_rate, parse_seeds
from tightrope.bench.search import LEVELS
from tightrope.bench.setting import setting
from tightrope.bench.store import Result, Store, code_digest
from tightrope.model.errors import InvalidInput, NotFound
from tightrope.model.json import Json

RESULTS = Path("bench-results")


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for beside the name; empty means: as the scenario says."""

    policies: tuple[str, ...] = ()
    rates: tuple[str, ...] = ()
    seeds: str = ""
    is_capacity: bool = False
    compare: Path | None = None
    workers: int | None = None
    out: Path | None = None
    scenario: str = "mixed"
    steps: int = STEPS
    is_quick: bool = False
    runs: int = 60
    share: float = 0.7
    which: str = ""
    time_scale: float | None = None
    duration: str = ""

    def words(self) -> list[str]:
        """The options as they are typed."""
        texts = {"policies": ",".join(self.policies), "rates": ",".join(self.rates), "seeds": self.seeds}
        found = [self.which] if self.which else []
        found += [word for name, text in texts.items() if text for word in (f"--{name}", text)]
        found += ["--capacity"] if self.is_capacity else []
        found += ["--workers", str(self.workers)] if self.workers else []
        found += ["--compare", str(self.compare)] if self.compare else []
        found += ["--scenario", self.scenario] if self.scenario != "mixed" else []
        found += ["--steps", str(self.steps)] if self.steps != STEPS else []
        found += ["--quick"] if self.is_quick else []
        found += ["--time-scale", f"{self.time_scale:g}"] if self.time_scale is not None else []
        found += ["--duration", self.duration] if self.duration else []
        return found + (["--out", str(self.out)] if self.out else [])


def bench_scenario(common: Common, name: str, options: Options) -> Answer:
    """Run what is missing, write the report, say where it is and what moved since an older one."""
    older = _older(options.compare) if options.compare is not None else None
    folder = options.out or RESULTS / Path(name).stem
    found = measured(common, name, options, folder, resume=name)
    files = write_report(found, folder)
    text = [summary_text(found)]
    if older is not None:
        text.append(f"against {options.compare}:\n{moved_text(moved(older, found))}")
    if not can_draw():
        text.append(NO_PICTURES)
    text.append(f"written: {', '.join(map(str, files))}")
    return Answer(as_json(found), "\n\n".join(text))


def bench_family(
    common: Common, name: str, scenarios: Mapping[str, tuple[str, ...]], options: Options
) -> Answer:
    """Several scenarios one after the other, each with its own report, and one page over all with the goals.

    `scenarios` maps each to the policies that are compared there if none were asked for; none: its own. Cells lie
    where `bench SCENARIO` would keep them, reports in the folder of the family.
    """
    if options.compare is not None:
        raise InvalidInput(f"--compare looks at one scenario; {name} runs {', '.join(scenarios)}")
    root = options.out or RESULTS
    reports: dict[str, Report] = {}
    for scenario, policies in scenarios.items():
        chosen = replace(options, policies=options.policies or policies)
        reports[scenario] = measured(common, scenario, chosen, root / scenario, resume=name)
        write_report(reports[scenario], root / name / scenario)
        common.say(f"{scenario}:\n{summary_text(reports[scenario])}\n")
    found = goals(reports)
    page, data = write_page(root / name, family_markdown(name, reports, found), goals_json(found))
    written = f"written: {page}, {data}, and a folder beside them for each scenario"
    return Answer(goals_json(found), f"{goals_table(found)}\n\n{written}")


def bench_limit(common: Common, options: Options) -> Answer:
    """The policies of a scenario beside what was found with full knowledge and what nobody can pass."""
    scenario = shortened(load_scenario(options.scenario))
    folder = options.out or RESULTS / f"limit-{scenario.name}"
    asked = _planned(scenario, options)
    plan = replace(
        asked,
        policies=asked.policies if options.policies else STARTS,
        rates=asked.rates if options.rates else tuple(Rate(share=load) for load in LOADS),
        seeds=asked.seeds if options.seeds else SEEDS,
    )
    with bar(common, "limit", label="starting") as tell, resumable(common, "limit", options, folder):
        found = distances(plan, STARTS, options.steps, folder, in_words(common, tell))
    text = [distances_table(found)] if can_bound() else [distances_table(found), NO_BOUND]
    page, data = write_page(folder, distances_markdown(found), distances_json(found))
    return Answer(distances_json(found), "\n\n".join([*text, f"written: {page}, {data}"]))


def measured(common: Common, name: str, options: Options, folder: Path, resume: str) -> Report:
    """The report of one scenario, whose cells are kept in `folder`. `resume` is the benchmark to name on Ctrl-C."""
    plan = _planned(load_scenario(name), options)
    store = Store(folder, Result)
    how_far = f"{len(plan.policies)} policies, {len(plan.seeds)} seeds, {plan.workers} processes"
    common.say(f"{plan.scenario.name}: {how_far}, stability limit {plan.limit_per_s:.2f} runs/s")
    with (
        bar(common, plan.scenario.name, label="starting") as tell,
        resumable(common, resume, options, store.file.parent),
    ):
        points = (capacity if options.is_capacity else run)(plan, store, in_words(common, tell))
    return report(plan, points, setting(plan.scenario), code_digest(), options.is_capacity)


def write_report(found: Report, folder: Path) -> list[Path]:
    """`report.md`, `report.json` and, with matplotlib, the pictures."""
    with writing_into(folder):
        pictures = draw(found, folder) if can_draw() else []
    shown = [file.name for file in pictures if file.suffix == ".svg"]
    return [*write_page(folder, markdown(found, shown), as_json(found)), *pictures]


def write_page(folder: Path, page: str, data: Json) -> tuple[Path, Path]:
    """`report.md` and `report.json`."""
    report, numbers = folder / "report.md", folder / "report.json"
    with writing_into(folder):
        report.write_text(page, encoding="utf-8")
        numbers.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return report, numbers


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """The folder is made where it is missing. What goes wrong with files is said, not raised as it is."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise Refused(f"the report cannot be written into {folder}: {error.strerror}") from None


def summary_text(found: Report) -> str:
    """Goodput by load and capacities, for a terminal."""
    head = ("goodput, %", *(f"{share:.0%}" for share in found.shares))
    rows = []
    for policy in found.policies:
        points = [found.point(policy, share) for share in found.shares]
        rows.append(
            (policy, *(f"{100 * one.goodput.value:.1f}" if one is not None else "" for one in points))
        )
    titles = ("capacity, runs/s", *(f"{level:.0%} goodput" for level in LEVELS))
    capacities = {(one.policy, one.level): one for one in found.capacities}
    limits = [
        (policy, *(capacity_cell(capacities[policy, level]) for level in LEVELS)) for policy in found.policies
    ]
    return "\n\n".join(
        (grid(head, rows, right=range(1, len(head))), grid(titles, limits, right=(1, 2, 3, 4)))
    )


def _planned(scenario: Scenario, options: Options) -> Plan:
    own = plan_of(scenario, options.workers)
    policies = policies_named(options.policies) or own.policies
    rates = tuple(map(parse_rate, options.rates)) or own.rates
    seeds = parse_seeds(list(options.seeds.split(","))) if options.seeds else own.seeds
    return Plan(scenario, policies, rates, seeds, own.workers)


def _older(file: Path) -> Report:
    try:
        data: Json = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise NotFound(f"there is no report {file}; give the report.json of an earlier benchmark") from None
    except ValueError as error:
        raise InvalidInput(f"{file} is no JSON: {error}") from None
    return from_json(data, str(file))


@contextmanager
def resumable(common: Common, name: str, options: Options, folder: Path) -> Iterator[None]:
    """Say on Ctrl-C what is kept in `folder` and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        command = shlex.join(["tightrope", "bench", name, *options.words()])
        common.say(f"what has ended is kept in {folder}; go on with: {command}")
        raise


def in_words(common: Common, tell: Tell) -> Tell:
    """Moves the bar, and says every tenth of the way where there is no terminal for one."""
    if sys.stderr.isatty():
        return tell
    tenths = 0

    def told(done: int, total: int, label: str) -> None:
        nonlocal tenths
        tell(done, total, label)
        if total and label and 10 * done // total != tenths:
            tenths = 10 * done // total
            common.say(f"{done} of {total} done")

    return told
