"""`tightrope explain`: why a run took as long as it did, read from the journal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tightrope.app.cli.frame import Answer, Common, verb
from tightrope.model.errors import NotFound
from tightrope.model.json import Json

if TYPE_CHECKING:
    from tightrope.kernel.journal import Entry
    from tightrope.reports.selection import RunBrief


@click.command()
@click.argument("run", default="last")
@click.option(
    "--all", "show_all", is_flag=True, help="Show every routing decision, not only the critical one."
)
@click.option("--worst", type=click.IntRange(1), metavar="N", help="Rank the N latest runs instead.")
@click.option("--fleet", is_flag=True, help="Show what happened to the fleet, and why, instead of a run.")
@click.option("--journal", type=click.Path(path_type=Path), metavar="FILE", help="Read this journal.")
@verb("explain")
def explain(
    common: Common, run: str, show_all: bool, worst: int | None, fleet: bool, journal: Path | None
) -> Answer:
    """Explain RUN: a run or request id, a unique prefix, `last` or `last-late`."""
    from tightrope.reports.selection import briefs, select

    file = journal or _configured(common)
    if fleet:
        return _fleet(file)
    with _entries(file) as entries:
        runs = briefs(entries)
    return _ranking(runs, worst) if worst else _explanation(file, select(runs, run), show_all)


def _explanation(file: Path, chosen: RunBrief, show_all: bool) -> Answer:
    from tightrope.reports.cause import cause
    from tightrope.reports.explain import as_json
    from tightrope.reports.explain import explain as explained_from
    from tightrope.reports.render import render

    with _entries(file) as entries:
        explained = explained_from(entries, chosen.run)
    why = cause(explained)
    facts = as_json(explained)
    assert isinstance(facts, dict)
    data: Json = {**facts, "cause": why.sentence, "next": why.next}
    return Answer(data, render(explained, all_decisions=show_all))


def _ranking(runs: list[RunBrief], count: int) -> Answer:
    from tightrope.reports.render import table
    from tightrope.reports.selection import worst

    ranked = worst(runs, count)
    rows: list[Json] = [
        {
            "run": run.run,
            "tenant": run.tenant,
            "workflow": run.workflow,
            "outcome": run.outcome,
            "late_ms": run.late_ms,
        }
        for run in ranked
    ]
    if not ranked:
        return Answer({"runs": rows}, "no run of this journal missed its SLO")
    cells = [
        (
            run.run,
            run.tenant,
            run.workflow,
            run.outcome,
            "-" if run.late_ms is None else f"{run.late_ms:.0f} ms",
        )
        for run in ranked
    ]
    lines = table(("run", "tenant", "workflow", "outcome", "late by"), cells, (0, 1, 2, 3))
    return Answer({"runs": rows}, "\n".join(lines))


def _fleet(file: Path) -> Answer:
    from datetime import datetime

    from tightrope.reports.fleet import fleet_lines

    with _entries(file) as entries:
        lines = fleet_lines(entries)
    rows: list[Json] = [
        {
            "unix_s": line.wall_s,
            "kind": line.kind,
            "model": line.model,
            "reason": line.reason,
            "text": line.text,
        }
        for line in lines
    ]
    told = [
        f"{datetime.fromtimestamp(line.wall_s).astimezone():%Y-%m-%d %H:%M:%S}  {line.text}" for line in lines
    ]
    return Answer({"fleet": rows}, "\n".join(told) or "the journal knows nothing of a fleet")


def _configured(common: Common) -> Path:
    from tightrope.app.config import load_config

    return load_config(common.config).journal.path


@contextmanager
def _entries(file: Path) -> Iterator[Iterator[Entry]]:
    from tightrope.kernel.journal import entries

    try:
        with file.open(encoding="utf-8") as lines:
            yield entries(lines)
    except FileNotFoundError:
        message = f"there is no journal {file}: `tightrope serve` and `tightrope demo --keep DIR` write one"
        raise NotFound(message) from None
