"""`tightrope serve`: the gateway, until SIGTERM."""

from __future__ import annotations

import click

from tightrope.app.cli.frame import Answer, Common, verb


@click.command()
@verb("serve")
def serve(common: Common) -> Answer:
    """Serve the configured workflows and models; SIGTERM drains, a second one stops at once."""
    from tightrope.app.serve import run

    return run(common)
