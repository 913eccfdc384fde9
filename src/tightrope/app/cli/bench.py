"""`tightrope bench`: the kept benchmarks."""

from __future__ import annotations

from pathlib import Path

import click

from tightrope.app.cli.frame import Answer, Common, verb


@click.command()
@click.argument("name")
@click.argument("which", required=False, default="")
@click.option(
    "--policies", metavar="NAME,...", default="", help="Compare these; default: those of the scenario."
)
@click.option("--rates", metavar="RATE,...", default="", help="Loads, such as `40%,80%` or `6 req/s`.")
@click.option(
    "--seeds", metavar="N,N-M,...", default="", help="One load for each; default: those of the scenario."
)
@click.option(
    "--capacity", "is_capacity", is_flag=True, help="Choose rates by bisection to find the capacities."
)
@click.option(
    "--compare",
    type=click.Path(path_type=Path),
    metavar="OLD.json",
    help="Show what moved since this report.",
)
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Processes; default: one for each core.")
@click.option(
    "--scenario", metavar="NAME", default="mixed", show_default=True, help="limit: of this scenario."
)
@click.option(
    "--steps",
    type=click.IntRange(0),
    default=150,
    show_default=True,
    help="limit: simulations of one search.",
)
@click.option("--quick", "is_quick", is_flag=True, help="paper: few seeds and few kinds of nodes.")
@click.option(
    "--runs",
    type=click.IntRange(2),
    default=60,
    show_default=True,
    help="live, parity: runs for each policy.",
)
@click.option(
    "--load",
    type=click.FloatRange(0.05, 2.0),
    default=0.7,
    show_default=True,
    help="live, elastic, parity: share of capacity.",
)
@click.option(
    "--time-scale",
    type=click.FloatRange(1.0, 100.0),
    metavar="X",
    help="duel: everything takes so many times as long.  [default: 4]",
)
@click.option(
    "--duration", metavar="TIME", default="", help="duel: how long runs arrive; default: the scenario's."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Folder for results, default ./bench-results/NAME; a JSON file if nothing is simulated.",
)
@verb("bench")
def bench(
    common: Common,
    name: str,
    which: str,
    policies: str,
    rates: str,
    seeds: str,
    is_capacity: bool,
    compare: Path | None,
    workers: int | None,
    scenario: str,
    steps: int,
    is_quick: bool,
    runs: int,
    load: float,
    time_scale: float | None,
    duration: str,
    out: Path | None,
) -> Answer:
    """Run NAME: a scenario (a name under `scenarios/`, or a file), or one of

    \b
    goodput      the five clusters, and the capacities to reach
    robustness   wrong profiles and late telemetry, and what may be lost
    ablation     foresight without one of its parts, in turn
    limit        policies beside the best that was found and what nobody can pass
    paper        the experiments of the paper this work starts from, its figures beside ours
    provision    what an elastic fleet costs under each provisioner
    disturbed    elastic fleets when something goes wrong
    credibility  the simulated engine against a recorded run of a real one
    decision     what one routing decision costs
    kernel       what the kernel costs for one event
    live         policies on this machine's own engines
    elastic      a fleet on this machine's own engines that begins and ends at zero
    parity       this machine's own engines against their simulation
    duel WHICH   Tightrope and Ray Serve, live, on emulated engines of a scenario, or
                 on `real` ones
    overhead     what a gateway adds to a call and to a streamed chunk, beside other gateways

    What has been simulated already is not simulated again: an interrupted benchmark goes on where it stopped.
    """
    from tightrope.app.benches import run
    from tightrope.app.scenario_bench import Options

    options = Options(
        policies=_words(policies),
        rates=_words(rates),
        seeds=seeds,
        is_capacity=is_capacity,
        compare=compare,
        workers=workers,
        out=out,
        scenario=scenario,
        steps=steps,
        is_quick=is_quick,
        runs=runs,
        share=load,
        which=which,
        time_scale=time_scale,
        duration=duration,
    )
    return run(common, name, options)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
