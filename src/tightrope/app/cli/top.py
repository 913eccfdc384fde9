"""`tightrope top`: how things stand now, read from the journal."""

from __future__ import annotations

from pathlib import Path

import click

from tightrope.app.cli.frame import Answer, Common, verb


@click.command()
@click.option(
    "--journal",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read this journal, not the configured one.",
)
@click.option("--once", "is_once", is_flag=True, help="Print how things stand at its last line, and end.")
@verb("top")
def top(common: Common, journal: Path | None, is_once: bool) -> Answer:
    """Show replicas, calls, promises kept and what the provisioner does, every second until Ctrl-C."""
    from tightrope.app.top import run

    return run(common, journal=journal, is_once=is_once)
