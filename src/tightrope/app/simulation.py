"""`simulate`: one cell of a scenario, and what came of it as a table.

Owns the course of the verb and the look of its answer. What is simulated is `bench/cell.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

from tightrope.app.cli.frame import Answer, Common, Refused
from tightrope.app.tables import grid
from tightrope.bench.cell import Cell, Played, limit_per_s, play
from tightrope.bench.library import load_scenario, one_policy
from tightrope.bench.metrics import Figures, Prediction
from tightrope.bench.run import per_s_of
from tightrope.bench.scenario import Scenario
from tightrope.bench.scenario_form import parse_rate
from tightrope.model.codec import encode
from tightrope.model.errors import InvalidInput
from tightrope.model.json import Json
from tightrope.model.units import seconds


def run(
    common: Common,
    *,
    name: str,
    policy: str,
    rate: str,
    seed: int,
    duration: str | None,
    journal: Path | None,
) -> Answer:
    """The verb: one policy at one rate under one seed, in virtual time."""
    scenario = load_scenario(name)
    if duration is not None:
        scenario = lasting(scenario, seconds(duration))
    limit = limit_per_s(scenario)
    cell = Cell(scenario, one_policy(policy), per_s_of(parse_rate(rate), limit), seed)
    common.say(
        f"{scenario.name}: {cell.policy} at {cell.rate_per_s:.2f} runs/s, "
        f"{cell.rate_per_s / limit:.0%} of the stability limit, seed {seed}"
    )
    if journal is None:
        played = play(cell)
    else:
        with _written(journal) as write:
            played = play(cell, write)
    text = summary_text(played)
    if journal is not None:
        text += f"\n\nwhere the time of a run went: tightrope explain last-late --journal {journal}"
    return Answer(_as_json(cell, limit, played), text)


def lasting(scenario: Scenario, duration_s: float) -> Scenario:
    """The same for another time. Raises InvalidInput when nothing is left after the warm-up."""
    if duration_s <= scenario.warm_up_s:
        raise InvalidInput(
            f"nothing is left of {duration_s:g} s after {scenario.warm_up_s:g} s of warm-up; make it longer"
        )
    return replace(scenario, duration_s=duration_s)


@contextmanager
def _written(journal: Path) -> Iterator[Callable[[str], None]]:
    """A function that appends a line to a journal made anew."""
    try:
        with journal.open("w", encoding="utf-8") as file:
            yield lambda line: cast(None, file.write(line))
    except OSError as error:
        raise Refused(f"the journal {journal} cannot be written: {error.strerror}") from None


# --- what is said ----------------------------------------------------------------------------------------


def summary_text(played: Played) -> str:
    """Per tenant and workflow: runs, met, times to first token, shares of cards; then how good predictions were."""
    head = ("tenant", "workflow", "runs", "met", "TTFT p50", "p95", "calls", "share per accelerator")
    rows = [_row(part.tenant, part.workflow, part.figures) for part in played.parts]
    parts = [grid(head, [*rows, _row("all", "all", played.figures)], right=(2, 3, 4, 5, 6))]
    whole = played.figures
    if whole.rejected or whole.failed:
        parts.append(f"{whole.rejected} rejected, {whole.failed} failed")
    if whole.usd_per_1k_good is not None:
        parts.append(f"{whole.usd_per_1k_good:.2f} USD for 1000 runs that kept their promise")
    if whole.predictions:
        titles = ("calls", "number", "prediction off by (mean)", "bias")
        parts.append(grid(titles, [_prediction(one) for one in whole.predictions], right=(1, 2, 3)))
    return "\n\n".join(parts)


def _row(tenant: str, workflow: str, found: Figures) -> tuple[str, ...]:
    shares = ", ".join(f"{share.accelerator} {share.share:.0%}" for share in found.shares)
    times = (_ms(found.ttft.p50_s), _ms(found.ttft.p95_s))
    return (tenant, workflow, str(found.runs), f"{found.met}/{found.runs}", *times, str(found.calls), shares)


def _ms(value_s: float | None) -> str:
    return "-" if value_s is None else f"{1000 * value_s:.0f} ms"


def _prediction(one: Prediction) -> tuple[str, ...]:
    kind = "answers, to the first token" if one.is_terminal else "calls before, to their end"
    return (kind, str(one.calls), f"{one.mape:.0%}", f"{one.bias:+.0%}")


def _as_json(cell: Cell, limit: float, played: Played) -> Json:
    parts: list[Json] = [cast(Json, encode(part)) for part in played.parts]
    return {
        "scenario": cell.scenario.name,
        "policy": cell.policy,
        "seed": cell.seed,
        "rate_per_s": cell.rate_per_s,
        "stability_limit_per_s": limit,
        "figures": cast(Json, encode(played.figures)),
        "parts": parts,
    }
