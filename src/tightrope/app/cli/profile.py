"""`tightrope profile`: measure a model on an accelerator."""

from __future__ import annotations

from pathlib import Path

import click

from tightrope.app.cli.frame import Answer, Common, verb


@click.command()
@click.argument("model")
@click.option("--on", "accelerator", required=True, metavar="ACCELERATOR", help="Where to measure it.")
@click.option("--quick", is_flag=True, help="A third of the grid.")
@click.option("--verify", is_flag=True, help="Predict fresh prompts, and say how far off the profile is.")
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="DIR", help="Draw predicted against measured here."
)
@click.option("--fresh", is_flag=True, help="Measure anew what was measured before.")
@verb("profile")
def profile(
    common: Common, model: str, accelerator: str, quick: bool, verify: bool, plot: Path | None, fresh: bool
) -> Answer:
    """Measure MODEL on an accelerator over a grid of loads, fit its profile and keep it."""
    from tightrope.app.profiling import run

    return run(
        common, model=model, accelerator=accelerator, quick=quick, verify=verify, plot=plot, fresh=fresh
    )
