"""`tightrope plan`: the cheapest fleets that keep every promise under a load."""

from __future__ import annotations

from pathlib import Path

import click

from tightrope.app.cli.frame import Answer, Common, verb


@click.command()
@click.option(
    "--load",
    "loads",
    multiple=True,
    metavar="WORKFLOW=RATE",
    help="Runs of a workflow, such as `chat=2req/s`; once for each.",
)
@click.option(
    "--from",
    "journal",
    type=click.Path(path_type=Path),
    metavar="JOURNAL",
    help="Take the load, and the sizes of calls, from this journal; with --load only the sizes.",
)
@click.option(
    "--attain",
    metavar="SHARE",
    help="Share of runs that shall keep their promise; default: that of each SLO.",
)
@verb("plan")
def plan(common: Common, loads: tuple[str, ...], journal: Path | None, attain: str | None) -> Answer:
    """Show for every mix of accelerators the cheapest fleet that keeps all promises, as simulated."""
    from tightrope.app.planning import run

    return run(common, loads=loads, journal=journal, attain=attain)
