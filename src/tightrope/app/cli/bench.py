"""`tightrope bench`: the kept benchmarks."""

from __future__ import annotations

from pathlib import Path

import click

from tightrope.app.cli.frame import Answer, Common, verb


@click.command()
@click.argument("name", metavar="mixed|decision|kernel")
@click.option("--policies", metavar="NAME,...", default="", help="mixed: compare these; default: all.")
@click.option(
    "--runs", type=click.IntRange(2), default=60, show_default=True, help="mixed: runs for each policy."
)
@click.option(
    "--load",
    type=click.FloatRange(0.05, 2.0),
    default=0.7,
    show_default=True,
    help="mixed: share of capacity.",
)
@click.option("--seeds", metavar="N,...", default="100", show_default=True, help="mixed: one load for each.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the data here as JSON.")
@verb("bench")
def bench(
    common: Common, name: str, policies: str, runs: int, load: float, seeds: str, out: Path | None
) -> Answer:
    """Measure: `mixed` policies on real engines, `decision` the router, `kernel` the kernel."""
    from tightrope.app.benches import run
    from tightrope.model.errors import InvalidInput

    names = [policy.strip() for policy in policies.split(",") if policy.strip()]
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise InvalidInput(f"--seeds {seeds!r} is no list of whole numbers; write it like 100,101") from None
    return run(common, name=name, policies=names, runs=runs, share=load, seeds=numbers, out=out)
