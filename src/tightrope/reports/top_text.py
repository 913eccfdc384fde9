"""How things stand, as text for people: the fleet, the runs, and what the provisioner said.

Owns columns and words; decides and computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from tightrope.reports.render import table
from tightrope.reports.top import KEPT_S, CardRow, ModelRow, RunRow, Said, Top

_EJECTED = 4
"""The column that is shown only where something stands in it."""


def render(top: Top) -> str:
    """The whole as text, without a line at the end."""
    parts = [[_headline(top), *_warnings(top)], list(_fleet(top)), list(_runs(top)), list(_said(top))]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _headline(top: Top) -> str:
    facts = [_when(top, top.wall_s), f"session of {_age(top.session_s)}", f"{top.usd_per_h:.2f} USD/h"]
    if top.max_usd_per_h is not None:
        facts[-1] += f" of at most {top.max_usd_per_h:.2f}"
    facts.append(f"provisioner {top.provisioner}" if top.provisioner else "the fleet is as it was planned")
    return " · ".join(facts)


def _warnings(top: Top) -> Iterator[str]:
    if top.is_draining:
        yield "the server is shutting down and takes no new runs"
    if top.lines_lost:
        yield f"{top.lines_lost} lines could not be written to the journal, so these figures may be wrong"


def _when(top: Top, wall_s: float) -> str:
    """A moment by the clock; of a simulation, which has none, since its beginning."""
    began_s = top.wall_s - top.session_s
    if began_s <= 0:
        return f"+{_age(wall_s - began_s)}"
    return datetime.fromtimestamp(wall_s).astimezone().strftime("%H:%M:%S")


def _age(age_s: float) -> str:
    seconds = int(age_s)
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    return f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"


# --- the fleet -------------------------------------------------------------------------------------------


def _fleet(top: Top) -> Iterator[str]:
    if not top.models:
        return
    head = (
        "model", "on", "ready", "starting", "ejected", "draining", "lost", "USD/h", "waiting", "running", "calls/s",
    )  # fmt: skip
    rows = [cells for model in top.models for cells in _model(model)]
    shown = [at for at in range(len(head)) if at != _EJECTED or any(row[at] not in ("", "-") for row in rows)]
    yield from table([head[at] for at in shown], [[row[at] for at in shown] for row in rows], (0, 1))


def _model(row: ModelRow) -> Iterator[list[str]]:
    """A line for each kind of card; what is true of the model stands in the first."""
    calls = [str(row.waiting), str(row.running), f"{row.per_s:.2f}"]
    if not row.cards:
        yield [row.model, "-", *("-" for _ in range(6)), *calls]
    for number, card in enumerate(row.cards):
        yield [row.model if number == 0 else "", *_card(card), *(calls if number == 0 else ["", "", ""])]


def _card(card: CardRow) -> list[str]:
    counts = (card.ready, card.starting, card.ejected, card.draining, card.lost)
    return [card.accelerator, *(str(count) if count else "-" for count in counts), f"{card.usd_per_h:.2f}"]


# --- the runs --------------------------------------------------------------------------------------------


def _runs(top: Top) -> Iterator[str]:
    if not top.runs:
        yield "no run has come"
        return
    head = ("tenant", "workflow", "runs/s", "under way", "on time", "kept", "ended", "without answer")
    yield from table(head, [_run(row) for row in top.runs], (0, 1))
    yield f"on time: of the runs that ended in the last {KEPT_S / 60:.0f} min and had a promise"


def _run(row: RunRow) -> list[str]:
    share = "-" if row.attainment is None else f"{row.attainment:.1%}"
    kept = f"{row.met}/{row.promised}" if row.promised else "-"
    ends = (str(row.ended), str(row.failed) if row.failed else "-")
    return [row.tenant, row.workflow, f"{row.per_s:.2f}", str(row.underway), share, kept, *ends]


# --- the provisioner -------------------------------------------------------------------------------------


def _said(top: Top) -> Iterator[str]:
    for said in top.said:
        yield _line(top, said)


def _line(top: Top, said: Said) -> str:
    return f"{_when(top, said.wall_s)}  {said.sentence}"
