"""`bench paper`: the experiments of the source paper as a command, and the files of its report.

Owns the course. What is played and what it says is `bench/paper.py` and the files beside it.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import cast

from tightrope.app.cli.frame import Answer, Common
from tightrope.app.progress import bar
from tightrope.app.scenario_bench import RESULTS, Options, in_words, resumable, writing_into
from tightrope.bench.paper import FULL, QUICK, Paper, paper
from tightrope.bench.paper_plots import paper_plots
from tightrope.bench.paper_table import paper_table
from tightrope.bench.plots import NO_PICTURES, can_draw
from tightrope.bench.scenario_form import parse_seeds
from tightrope.model.codec import encode
from tightrope.model.errors import InvalidInput
from tightrope.model.json import Json


def bench_paper(common: Common, options: Options) -> Answer:
    """Play what is missing, write the report, and print its tables."""
    if options.policies or options.rates or options.compare is not None or options.is_capacity:
        raise InvalidInput(
            "the paper says policies and loads; of the options paper knows --seeds and --quick"
        )
    scope = QUICK if options.is_quick else FULL
    if options.seeds:
        scope = replace(scope, seeds=parse_seeds(list(options.seeds.split(","))))
    folder = options.out or RESULTS / "paper"
    with bar(common, "paper", label="starting") as tell, resumable(common, "paper", options, folder):
        found = paper(scope, folder, options.workers or os.cpu_count() or 1, in_words(common, tell))
    text = [paper_table(found)] if can_draw() else [paper_table(found), NO_PICTURES]
    text.append(f"written: {', '.join(map(str, _written(found, folder)))}")
    return Answer(cast(Json, encode(found)), "\n\n".join(text))


def _written(found: Paper, folder: Path) -> list[Path]:
    page, data = folder / "report.md", folder / "report.json"
    with writing_into(folder):
        pictures = paper_plots(found, folder) if can_draw() else []
        page.write_text(f"# The paper's experiments\n\n{paper_table(found)}\n", encoding="utf-8")
        data.write_text(json.dumps(encode(found), separators=(",", ":")) + "\n", encoding="utf-8")
    return [page, data, *pictures]
