"""Writes docs/results.md, its pictures and the headline of README.md from the data in docs/results/.

The data is what `tightrope bench NAME --out docs/results/NAME.json` and `tightrope profile MODEL --on CARD --json`
wrote; `make results` measures all of it anew and takes about half an hour on an otherwise idle machine. What was
simulated lies in docs/results/simulated/; `make simulated` makes it anew, which takes hours.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl

from tightrope.bench.credibility import Credibility, credibility_table
from tightrope.bench.distances import Distances, distances_table
from tightrope.bench.disturbed import Shaken, shaken_table
from tightrope.bench.duel_real import NAME as REAL
from tightrope.bench.duel_report import DuelReport
from tightrope.bench.duel_text import duel_from_json, duel_summary
from tightrope.bench.goals import CLUSTERS, goals
from tightrope.bench.intervals import Interval, crossing
from tightrope.bench.library import scenario_names
from tightrope.bench.overhead import overhead_from_data, overhead_text
from tightrope.bench.parity import Parity
from tightrope.bench.parity_text import parity_table
from tightrope.bench.provision import Comparison, comparison_table
from tightrope.bench.report import Report
from tightrope.bench.report import from_json as read_report
from tightrope.bench.report_text import capacity_part, goals_table, goodput_part
from tightrope.model.codec import decode

mpl.use("Agg")
import matplotlib.pyplot as plt

mpl.rcParams["svg.hashsalt"] = "tightrope"  # equal data, equal picture
DOCS = Path(__file__).parent
DATA = DOCS / "results"
SIMULATED = DATA / "simulated"
PAIRS = ("small-fast", "big-fast", "small-slow", "big-slow")
OWN = "foresight"
NAMED = {
    "foresight": "foresight (the default)",
    "fmware-greedy": "fmware-greedy (Algorithm 1)",
    "fmware-target": "fmware-target (Algorithm 1)",
    "power-of-two": "power-of-two",
    "round-robin": "round-robin",
}


def main() -> None:
    """Everything, in the order of the page."""
    live, machine = load("live"), (DATA / "machine.txt").read_text("utf-8").strip()
    draw(live)
    rows = policies(live)
    page = PAGE.format(
        machine=machine,
        live=live_table(rows),
        runs=rows[0]["runs"],
        rounds=rows[0]["rounds"],
        profiles=profile_table(),
        decision=decision_table(load("decision")),
        kernel=kernel_table(load("kernel")),
        simulated=simulated(),
    )
    (DOCS / "results.md").write_text(page, encoding="utf-8")
    headline(rows)


def load(name: str) -> Any:
    """The `data` of one result."""
    return json.loads((DATA / f"{name}.json").read_text("utf-8"))


def policies(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a policy over all its rounds, the fastest first."""
    found = []
    for name in {one["policy"] for one in rounds}:
        mine = [one for one in rounds if one["policy"] == name]
        runs = sum(one["runs"] for one in mine)
        found.append(
            {
                "policy": name,
                "rounds": len(mine),
                "runs": runs,
                "mean": statistics.fmean(one["mean_ttft_s"] for one in mine),
                "p50": statistics.fmean(one["p50_ttft_s"] for one in mine),
                "p95": statistics.fmean(one["p95_ttft_s"] for one in mine),
                "met": sum(one["met"] for one in mine) / runs,
                "ended": sum(one["succeeded"] for one in mine),
                "fast": statistics.fmean(dict(one["shares"]).get("fast", 0.0) for one in mine),
            }
        )
    return sorted(found, key=lambda row: row["mean"])


def live_table(rows: list[dict[str, Any]]) -> str:
    """The comparison, with foresight's mean against each row's."""
    own = next(row for row in rows if row["policy"] == OWN)
    lines = [
        "| policy | mean TTFT | foresight against it | p50 | p95 | SLO met | ended well | calls on the fast cards |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        versus = "-" if row is own else f"{own['mean'] / row['mean'] - 1:+.0%}"
        lines.append(
            f"| {NAMED.get(row['policy'], row['policy'])} | {row['mean']:.2f} s | {versus} | {row['p50']:.2f} s "
            f"| {row['p95']:.2f} s | {row['met']:.0%} | {row['ended']} of {row['runs']} | {row['fast']:.0%} |"
        )
    return "\n".join(lines)


def profile_table() -> str:
    """The verification of every pair that was measured."""
    lines = [
        "| model on accelerator | 1 stream | 2 streams | 4 streams | prompt token | load time | memory |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for pair in PAIRS:
        data = load(f"profile-{pair}")["data"]
        errors = " | ".join(f"{row['median_error']:.1%}" for row in data["verification"])
        profile = data["profile"]
        token = f"{profile['coefficients']['d']:.1f} ms"
        memory = f"{profile['memory_bytes'] / 2**20:.0f} MiB"
        name = pair.replace("-", " on ")
        lines.append(f"| {name} | {errors} | {token} | {profile['load_s']:.1f} s | {memory} |")
    return "\n".join(lines)


def decision_table(costs: list[dict[str, Any]]) -> str:
    """Processor time of one decision by policy, size of the pool and calls on a replica."""
    cells = sorted({(cost["replicas"], cost["calls"]) for cost in costs})
    lines = [
        "| policy | " + " | ".join(f"{replicas} x {calls}" for replicas, calls in cells) + " |",
        "|---|" + "---:|" * len(cells),
    ]
    for policy in dict.fromkeys(cost["policy"] for cost in costs):
        mine = {(cost["replicas"], cost["calls"]): cost for cost in costs if cost["policy"] == policy}
        row = " | ".join(f"{mine[cell]['p50_us']:.0f} / {mine[cell]['p99_us']:.0f} µs" for cell in cells)
        lines.append(f"| {policy} | {row} |")
    return "\n".join(lines)


def kernel_table(costs: list[dict[str, Any]]) -> str:
    """Processor time of an event by policy and size."""
    lines = [
        "| policy | replicas | load | events | per event | events per second |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {cost['policy']} | {cost['replicas']} | {cost['load']:.0%} | {cost['events']} "
        f"| {cost['per_event_us']:.0f} µs | {1e6 / cost['per_event_us']:,.0f} |"
        for cost in costs
    ]
    return "\n".join(lines)


def simulated() -> str:
    """What was simulated, as far as it was; empty if nothing was."""
    parts = [
        *duel_parts(),
        *overhead_part(),
        *credibility_part(),
        *parity_part(),
        *scenarios(),
        *field(),
        *ablation(),
        *limit_part(),
    ]
    parts += [*provision_part(), *disturbed_part()]
    return "\n" + "\n\n".join([SIMULATED_HEAD, *parts]) + "\n" if parts else ""


def duel_parts() -> list[str]:
    """Live systems before the same engines, Ray Serve among them."""
    parts = []
    for folder in sorted(DATA.glob("duel-*")):
        found = duel_from_json(json.loads((folder / "report.json").read_text("utf-8")), str(folder))
        seeds = ", ".join(map(str, found.live.seeds))
        engines = "real llama.cpp engines" if found.live.scenario == REAL else "emulated engines"
        text = (
            f"Live: real gateways, routers and streams before the same {engines}; "
            f"{dict(found.live.setting)['time']}; seeds {seeds}; [the whole report](results/{folder.name}/report.md)."
        )
        parts += [f"### A duel on `{found.live.scenario}`", duel_command(found), text, duel_summary(found)]
    return parts


def duel_command(found: DuelReport) -> str:
    """What measures these rounds."""
    live, scales = found.live, sorted({one.time_scale for one in found.rounds})
    shares = ",".join(f"{share:.4g}%" for share in sorted({100 * one.share for one in live.points}))
    length = dict(live.setting)["time"].split(",")[0]
    scale = "" if live.scenario == REAL else f" --time-scale {scales[0]:g}"
    return (
        f"```sh\ntightrope bench duel {live.scenario} --policies {','.join(live.policies)} --rates {shares} "
        f"--seeds {','.join(map(str, live.seeds))} --duration {length}{scale}\n```"
    )


def overhead_part() -> list[str]:
    """What gateways add to a call and to a chunk."""
    file = DATA / "overhead.json"
    if not file.is_file():
        return []
    found = overhead_from_data(json.loads(file.read_text("utf-8")))
    text = (
        "Two emulated engines; every gateway in processes of its own ([what each is set to](../baselines))."
    )
    return ["### `tightrope bench overhead`", text, overhead_text(found)]


def credibility_part() -> list[str]:
    """The gate that the simulated engine has to pass."""
    file = DATA / "credibility.json"
    if not file.is_file():
        return []
    found = decode(Credibility, json.loads(file.read_text("utf-8")))
    return ["### Is the simulated engine like a real one?", f"```text\n{credibility_table(found)}\n```"]


def parity_part() -> list[str]:
    """A live session beside its simulation."""
    file = DATA / "parity.json"
    if not file.is_file():
        return []
    found = decode(Parity, json.loads(file.read_text("utf-8")))
    command = "```sh\ntightrope bench parity --runs 75 --load 0.6\n```"
    return [
        "### Is a live session like its simulation?",
        command,
        PARITY_SAYS,
        f"```text\n{parity_table(found)}\n```",
    ]


def field() -> list[str]:
    """Every policy on every cluster, by load."""
    found = reports(SIMULATED / "field")
    if not found:
        return []
    places = (found, reports(SIMULATED / "field-rates"))
    three = reports(SIMULATED)
    parts = ["### The whole field"]
    for name, whole in found.items():
        measured = [place[name] for place in places if name in place]
        shares = sorted({share for one in measured for share in one.shares})
        measured += [three[name]] if name in three else []
        lines = [
            f"| `{name}`: goodput, % | " + " | ".join(f"{share:.0%}" for share in shares) + " |",
            "|---|" + "---:|" * len(shares),
        ]
        for policy in whole.policies:
            points = [
                next((point for one in measured if (point := one.point(policy, share))), None)
                for share in shares
            ]
            cells = ["" if point is None else percent(point.goodput) for point in points]
            lines.append(f"| {policy} | " + " | ".join(cells) + " |")
        parts += [f"{len(whole.seeds)} seeds, 95 % intervals.", "\n".join(lines)]
    return parts


def percent(one: Interval) -> str:
    """A share and its interval."""
    return f"{100 * one.value:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]"


def provision_part() -> list[str]:
    """What elastic fleets cost."""
    file = SIMULATED / "provision" / "report.json"
    if not file.is_file():
        return []
    found = decode(Comparison, json.loads(file.read_text("utf-8"))["comparison"])
    seeds = ", ".join(map(str, found.seeds))
    head = "### `tightrope bench provision`"
    text = (
        f"An elastic fleet on `{found.scenario}`, {found.per_s:g} runs/s on average, seeds {seeds}; "
        "[all settings that were tried](results/simulated/provision/report.md)."
    )
    return [head, text, comparison_table(found)]


def disturbed_part() -> list[str]:
    """Elastic fleets when something goes wrong."""
    file = SIMULATED / "disturbed" / "report.json"
    if not file.is_file():
        return []
    found = [decode(Shaken, one) for one in json.loads(file.read_text("utf-8"))["days"]]
    text = "What the disturbances are: [the report](results/simulated/disturbed/report.md)."
    return ["### `tightrope bench disturbed`", text, shaken_table(found)]


def reports(folder: Path) -> dict[str, Report]:
    """The reports of scenarios in the folders of this one, by name: the clusters first."""
    files = {name: folder / name / "report.json" for name in dict.fromkeys((*CLUSTERS, *scenario_names()))}
    return {
        name: read_report(json.loads(file.read_text("utf-8")), str(file))
        for name, file in files.items()
        if file.is_file()
    }


def scenarios() -> list[str]:
    """The goals, and every scenario with its picture, its goodput by load and its capacities."""
    found = reports(SIMULATED)
    if not found:
        return []
    parts = ["### What had to be reached", goals_table(goals(found)), "### By scenario"]
    first = next(iter(found.values()))
    parts += [goodput_part(first)[0], capacity_part(first)[1]]
    for name, one in found.items():
        parts += scenario(one, SIMULATED / name)
    return parts


def scenario(found: Report, folder: Path) -> list[str]:
    """One scenario in short; the whole page lies beside its data, and what figures mean was said before."""
    place = folder.relative_to(DOCS).as_posix()
    seeds = f"{len(found.seeds)} seeds, stability limit {found.limit_per_s:.2f} runs/s"
    parts = [f"#### {found.scenario}", f"{found.about} {seeds}; [all tables]({place}/report.md)."]
    if (folder / "goodput.svg").is_file():
        parts.append(f"![Goodput by load]({place}/goodput.svg)")
    return [*parts, *goodput_part(found)[1:2], *capacity_part(found)[2:]]


def ablation() -> list[str]:
    """What each part of foresight is worth."""
    found = reports(SIMULATED / "ablation")
    if not found:
        return []
    parts = ["### `foresight` without one of its parts", "```sh\ntightrope bench ablation\n```"]
    for name, one in found.items():
        parts += [f"`{name}`, {len(one.seeds)} seeds.", *goodput_part(one)[1:]]
    return parts


def limit_part() -> list[str]:
    """Policies beside what was found with full knowledge and what nobody can pass."""
    file = SIMULATED / "limit" / "report.json"
    if not file.is_file():
        return []
    found = decode(Distances, json.loads(file.read_text("utf-8")))
    return [
        "### `tightrope bench limit`",
        "What the limits are: [limits.md](limits.md).",
        distances_table(found),
    ]


def draw(rounds: list[dict[str, Any]]) -> None:
    """Mean and p95 time to first token by policy."""
    rows = policies(rounds)[::-1]
    figure, axes = plt.subplots(figsize=(7.2, 0.55 * len(rows) + 1.2))
    places = range(len(rows))
    shades = ["#0072B2" if row["policy"] == OWN else "#9AA5B1" for row in rows]
    axes.barh(places, [row["mean"] for row in rows], color=shades, height=0.6, label="mean")
    axes.scatter(
        [row["p95"] for row in rows], places, color="black", marker="|", s=160, label="p95", zorder=3
    )
    for place, row in zip(places, rows, strict=True):
        axes.text(row["mean"] / 2, place, f"{row['mean']:.1f} s", va="center", ha="center", color="white")
    axes.set_yticks(list(places), [row["policy"] for row in rows])
    axes.set_xlabel("time to first token of the final answer, s (bar: mean, mark: p95)")
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    for kind in ("svg", "png"):
        figure.savefig(
            DOCS / "images" / f"live.{kind}", dpi=130, metadata={"Date": None} if kind == "svg" else None
        )
    plt.close(figure)


def headline(rows: list[dict[str, Any]]) -> None:
    """The table between the marks in README.md."""
    begin, end = "<!-- headline: begin -->", "<!-- headline: end -->"
    readme = DOCS.parent / "README.md"
    before, rest = readme.read_text("utf-8").split(begin)
    after = rest.split(end)[1]
    duel = duel_from_json(json.loads((DATA / "duel-mixed" / "report.json").read_text("utf-8")), "duel-mixed")
    table = HEADLINE.format(
        table=live_table(rows),
        runs=rows[0]["runs"],
        duel=duel_table(duel),
        capacity=duel_capacity(duel),
        command=duel_command(duel),
    )
    readme.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")


def duel_capacity(found: DuelReport) -> str:
    """How much more load is borne, where that was measured, by how many seeds, and how far a point or two moves it."""
    sentences = [
        f"At {one.level:.0%} of promises kept `{one.system}` bears {one.value:.2f} times the load of `{one.peer}`, at "
        + " and at ".join(
            f"{level:.0%} {load_ratio(found.live, one.system, one.peer, level):.1f} times"
            for level in (one.level - 0.02, one.level + 0.02)
        )
        for one in found.ratios
        if one.system == OWN and not one.is_bound
    ]
    seeds = len(found.live.seeds)
    return f"{'; '.join(sentences) or 'No capacity lies between two loads'} ({seeds} seed{'s' if seeds > 1 else ''})."


def load_ratio(live: Report, system: str, peer: str, level: float) -> float:
    """The highest load at which one system keeps so much, over that of another."""
    loads = []
    for name in (system, peer):
        points = [point for share in live.shares if (point := live.point(name, share)) is not None]
        loads.append(
            crossing([one.share for one in points], [one.goodput.value for one in points], level).rate
        )
    return loads[0] / loads[1]


def duel_table(found: DuelReport) -> str:
    """Promises kept live by each system at each load."""
    live, shares = found.live, found.live.shares
    lines = [
        "| promises kept, at this load | " + " | ".join(f"{share:.0%}" for share in shares) + " |",
        "|---|" + "---:|" * len(shares),
    ]
    for policy in live.policies:
        points = [live.point(policy, share) for share in shares]
        cells = ["" if point is None else f"{100 * point.goodput.value:.1f}%" for point in points]
        lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


HEADLINE = """
Two tenants' workflows on four real llama.cpp replicas, two fast and two slow, at 70 % of what they can bear; the same
{runs} arrivals under each policy:

{table}

`tightrope bench live` prints it. And against a real Ray Serve 2.60 (HAProxy mode), live, before the same five emulated
engines of three kinds of card; loads are shares of what the cards can do at all
([how, and what is fair about it](docs/duel.md)):

{duel}

{capacity} What measures it:

{command}

[docs/results.md](docs/results.md) says on which machine, and what else was
measured."""

PAGE = """# Results

Everything on this page was written by `docs/make_results.py` from what the commands named here printed; the data is in
[results/](results/). `make results` measures the engines of this machine anew, `make simulated` and
`make elastic` what is simulated; the duel and the overhead have commands of their own. Trust ratios within one table
more than seconds.

Machine: {machine}

## Policies on real engines

```sh
tightrope bench live --policies foresight,fmware-greedy,fmware-target,power-of-two,round-robin --runs 45 --load 0.7
```

The demo's two workflows (half RAG, half shopping assistant) on four llama.cpp replicas: SmolLM2-135M-Instruct in two
quantisations, each on a card with 60 % and on one with 20 % of a processor core. Open loop, Poisson arrivals at 70 % of
the stability limit that the measured profiles give, {runs} runs for each policy over {rounds} seed(s), the same
arrivals and requests for all. All policies stand behind the same filter and cap of four calls a replica, and the
baselines wait in one line first come first served when all are full, which is kinder to them than a queue of their own
at each replica.
Promises are those of the examples or, where this machine is too slow for them, what it can keep.

{live}

One seed tells differences of a third from chance, not those of a tenth. `foresight` serves calls that can no longer
be on time after all that can: more runs keep their promise, and the latest of those that do not come as late as
elsewhere (p95).

![Time to first token by policy](images/live.svg)

## How well a profile predicts

```sh
tightrope profile MODEL --on ACCELERATOR --quick --verify --config examples/demo/tightrope.yaml
```

Median error of predicted against measured time to first token, on fresh prompts that were not in the measurement. This
table is of an earlier day and of a machine whose processor computes prompts about twice as fast:

{profiles}

## One routing decision

```sh
tightrope bench decision
```

Processor time, p50 / p99, by replicas x calls on each of the faster ones, in a pool where as many calls end as begin.
Of a large pool `foresight` looks at the first few of an order that the kernel keeps.

{decision}

## The kernel

```sh
tightrope bench kernel
```

Processor time of all that one event causes, routing included, for two-node runs. The load is the share of sequences
that would be busy if there were enough; above 100 % a line of waiting calls builds up.

{kernel}
{simulated}"""

PARITY_SAYS = """One live session on this machine's engines, profiled just before, and the same runs on simulated
engines. *As measured* takes the profiles as they are; *calibrated* finds one factor for the speed of all engines on the
first third of the runs and judges on the rest. Alone, live calls took 0.99 of what the profile says at the beginning of
this session and 0.86 at its end: the machine became faster meanwhile, and at this load whole runs are steep in that."""

SIMULATED_HEAD = """## Policies in virtual time

How these are made and read: [benchmark.md](benchmark.md). The data is in [results/simulated/](results/simulated/)."""

if __name__ == "__main__":
    main()
