"""Scenarios by name: where their files lie, and what they may name.

Owns the folder `scenarios/`. What a file says is `scenario_form.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import tightrope
from tightrope.bench.hardware import HardwareTable
from tightrope.bench.scenario import Scenario
from tightrope.bench.scenario_form import Known, matching, read_scenario
from tightrope.bench.traces import ARRIVALS, Traces
from tightrope.bench.workflows import FLOWS, RECORDINGS
from tightrope.flow.places import nearest
from tightrope.model.errors import InvalidConfig, InvalidInput, NotFound, Problem
from tightrope.policy import ROUTERS, VARIANTS

DATA = "data"
"""The folder beside the scenarios with what was measured and recorded."""


def scenarios_folder() -> Path:
    """Where the scenarios lie: beside the sources, or inside the installed package. Raises NotFound."""
    package = Path(tightrope.__file__).parent
    for folder in (package.parent.parent / "scenarios", package / "scenarios"):
        if (folder / DATA).is_dir():
            return folder
    raise NotFound("the scenarios are not installed; run this from a checkout of the project")


def scenario_names() -> list[str]:
    """The names of all scenarios, sorted."""
    return sorted(file.stem for file in scenarios_folder().glob("*.yaml"))


def load_scenario(name: str, besides: Sequence[str] = ()) -> Scenario:
    """The scenario of this name, or of the file at this path if it ends in .yaml.

    `besides` are names that the caller understands as well. Raises NotFound, which lists all names, and InvalidConfig,
    which says what is wrong with a file.
    """
    file = Path(name) if name.endswith((".yaml", ".yml")) else scenarios_folder() / f"{name}.yaml"
    try:
        text = file.read_text("utf-8")
    except FileNotFoundError:
        raise NotFound(
            f"{not_found('scenario', name, [*scenario_names(), *besides])}, or a file that ends in .yaml"
        ) from None
    except UnicodeDecodeError as error:
        message = f"the file is not UTF-8: {error.reason} at byte {error.start}"
        raise InvalidConfig(str(file), [Problem("not_yaml", (), message, "save it as UTF-8")]) from None
    return read_scenario(text, str(file), known())


@cache
def known() -> Known:
    """The names that scenarios may use."""
    table = hardware()
    return Known(
        models=table.models,
        accelerators=table.accelerators,
        workflows=tuple(FLOWS),
        recordings=tuple(RECORDINGS),
        traces=tuple(ARRIVALS),
        policies=(*ROUTERS, *VARIANTS),
    )


@cache
def hardware() -> HardwareTable:
    """The measured cards and models beside the scenarios, each file read once."""
    return HardwareTable(scenarios_folder() / DATA)


@cache
def traces() -> Traces:
    """The recorded lengths and arrivals beside the scenarios, each file read once."""
    return Traces(scenarios_folder() / DATA)


def policies(words: Sequence[str]) -> tuple[str, ...]:
    """The policies that the words name; `fmware-greedy/*` is all such. Raises InvalidInput for one that names none."""
    names = known().policies
    for word in words:
        if not matching([word], names):
            plain = [name for name in names if "/" not in name]
            raise InvalidInput(
                not_found("policy", word, names, plain) + ", or a variant such as fmware-greedy/*"
            )
    return matching(words, names)


def one_policy(word: str) -> str:
    """The policy of this name. Raises InvalidInput when there is none, or when the word names several."""
    found = policies([word])
    if len(found) > 1:
        raise InvalidInput(f"{word!r} names {len(found)} policies; name one of: {', '.join(found)}")
    return found[0]


def not_found(what: str, word: str, names: Iterable[str], listed: Iterable[str] | None = None) -> str:
    """The sentence for a name that does not exist: the nearest one, and all that there are."""
    every = list(names)
    near = nearest(word, every)
    hint = f" (did you mean {near!r}?)" if near else ""
    return f"there is no {what} {word!r}{hint}; name one of: {', '.join(listed if listed is not None else every)}"
