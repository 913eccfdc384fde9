"""Prompt templates: text in which `{{ name }}` stands for an input, and nothing else has a meaning.

No expressions, no calls, no conditions. What is inserted is data: it is never scanned again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from tightrope.model.errors import InvalidInput
from tightrope.model.json import Json

_HOLE = re.compile(r"\{\{[ \t]*([A-Za-z_][A-Za-z0-9_]*)[ \t]*\}\}")
_OPENING = re.compile(r"\{\{")


def names_in(text: str) -> tuple[str, ...]:
    """The inputs a template inserts, each once, in order. Raises InvalidInput for other uses of `{{`."""
    for opening in _OPENING.finditer(text):
        if _HOLE.match(text, opening.start()) is None and not _is_inside_hole(text, opening.start()):
            line = text.count("\n", 0, opening.start()) + 1
            shown = text[opening.start() : opening.start() + 30].split("\n", maxsplit=1)[0]
            raise InvalidInput(
                f"line {line} of the template: {shown!r} is not an input; a template inserts "
                "`{{ name }}` and nothing else: no dots, calls or conditions. "
                "Name an input, or put a space between the braces"
            )
    return tuple(dict.fromkeys(hole.group(1) for hole in _HOLE.finditer(text)))


def render(text: str, values: Mapping[str, Json]) -> str:
    """The template with its inputs inserted. Raises InvalidInput when it names one that `values` lacks."""
    missing = [name for name in names_in(text) if name not in values]
    if missing:
        known = ", ".join(sorted(values)) or "none"
        raise InvalidInput(f"the template inserts {missing[0]!r}, which is not given (given: {known})")
    return _HOLE.sub(lambda hole: as_text(values[hole.group(1)]), text)


def as_text(value: Json) -> str:
    """A value as a model reads it: text as it is, null as nothing, lists as dashes, mappings as lines."""
    match value:
        case None:
            return ""
        case str():
            return value
        case list():
            return "\n".join("- " + _within(item) for item in value)
        case dict():
            return "\n".join(f"{key}: {_within(item)}" for key, item in value.items())
        case _:
            return json.dumps(value)


def _within(value: Json) -> str:
    """One entry of a list or mapping: further lines are indented, inner structure is compact JSON."""
    match value:
        case list() | dict():
            return json.dumps(value, ensure_ascii=False)
        case _:
            return as_text(value).replace("\n", "\n  ")


def _is_inside_hole(text: str, at: int) -> bool:
    """True for the second brace of `{{{ name }}`: the hole starts one brace later."""
    return _HOLE.match(text, at + 1) is not None
