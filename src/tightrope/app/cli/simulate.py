"""`tightrope simulate`: a scenario played once in virtual time, without an engine."""

from __future__ import annotations

from pathlib import Path

import click

from tightrope.app.cli.frame import Answer, Common, verb


@click.command()
@click.argument("scenario")
@click.option(
    "--policy", metavar="NAME", default="foresight", show_default=True, help="Who routes the calls."
)
@click.option(
    "--rate",
    metavar="RATE",
    default="80%",
    show_default=True,
    help="Share of the stability limit, or `6 req/s`.",
)
@click.option(
    "--seed", type=int, default=1, show_default=True, help="Of arrivals, lengths, branches and noise."
)
@click.option(
    "--duration", metavar="TIME", help="Simulated time during which runs arrive; default: the scenario's."
)
@click.option(
    "--journal", type=click.Path(path_type=Path), metavar="FILE", help="Write every event and decision here."
)
@verb("simulate")
def simulate(
    common: Common,
    scenario: str,
    policy: str,
    rate: str,
    seed: int,
    duration: str | None,
    journal: Path | None,
) -> Answer:
    """Play SCENARIO, the name of a file under `scenarios/` or a path, and show what came of it."""
    from tightrope.app.simulation import run

    return run(common, name=scenario, policy=policy, rate=rate, seed=seed, duration=duration, journal=journal)
