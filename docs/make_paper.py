"""Writes the tables of docs/paper.md and its pictures from docs/results/simulated/paper.json.

The data is the `report.json` of `tightrope bench paper`, which takes a few minutes. The text around the tables is
written by people; it is left alone.
"""

from __future__ import annotations

import json
from pathlib import Path

from tightrope.bench.paper import Paper
from tightrope.bench.paper_plots import paper_plots
from tightrope.bench.paper_table import paper_table
from tightrope.model.codec import decode

DOCS = Path(__file__).parent
DATA = DOCS / "results" / "simulated" / "paper.json"
PAGE = DOCS / "paper.md"
BEGIN, END = "<!-- tables: written by make_paper.py -->", "<!-- end of tables -->"


def main() -> None:
    """Tables and pictures."""
    found = load()
    PAGE.write_text(filled(PAGE.read_text("utf-8"), found), encoding="utf-8")
    for file in paper_plots(found, DOCS / "images"):
        if file.suffix == ".png":
            file.unlink()


def load() -> Paper:
    """What was played."""
    return decode(Paper, json.loads(DATA.read_text("utf-8")))


def filled(page: str, found: Paper) -> str:
    """The page with the tables of these data in the place of those it has."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{paper_table(found)}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    main()
