"""`tightrope demo`: two tenants, two workflows, real small models or emulated ones on unequal local replicas."""

from __future__ import annotations

from pathlib import Path

import click

from tightrope.app.cli.frame import Answer, Common, verb


@click.command()
@click.option("--fleet", metavar="NAME", help="Emulated accelerators instead: mixed or paper-two-node.")
@click.option("--runs", type=click.IntRange(1), help="Runs to serve; default: 40, and 240 on emulated ones.")
@click.option("--policy", metavar="NAME", help="The rule that chooses replicas; default: foresight.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), metavar="DIR", help="Keep journal and logs here.")
@verb("demo")
def demo(
    common: Common, fleet: str | None, runs: int | None, policy: str | None, seed: int, keep: Path | None
) -> Answer:
    """Serve both example workflows on this machine and show what came of it."""
    from tightrope.app.demo import run

    return run(common, fleet=fleet, runs=runs, policy=policy, seed=seed, keep=keep)
