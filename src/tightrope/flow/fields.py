"""One mapping of a document while it is read: known keys, expected types, units.

What does not fit becomes a problem with its place and cure, and reading goes on with a default, so that all
that is wrong is found at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from tightrope.flow.places import Path, unknown_key
from tightrope.model.errors import BadUnit, InvalidInput, Problem
from tightrope.model.json import Json
from tightrope.model.units import ratio, seconds

_NUMBER = re.compile(r"\s*[-+]?[0-9.]+\s*")
_T = TypeVar("_T")


class Fields:
    """The values under one path of a document. Every reading method reports to `problems`, none raises."""

    def __init__(
        self, value: Json, path: Path, problems: list[Problem], *, what: str, known: Sequence[str]
    ) -> None:
        self.path = path
        self.problems = problems
        self._values: dict[str, Json] = {}
        if isinstance(value, dict):
            self._values = value
            problems += [unknown_key((*path, key), known, what) for key in value if key not in known]
        elif value is not None:
            self.report(
                "bad_value",
                (),
                f"{what} is a mapping, not {shown(value)}",
                f"give it keys: {', '.join(known)}",
            )

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def raw(self, key: str) -> Json:
        """The value as it is; None when absent."""
        return self._values.get(key)

    def mapping(self, key: str, what: str) -> dict[str, Json]:
        """A mapping with keys of the user's own; empty when absent."""
        value = self.raw(key)
        if isinstance(value, dict):
            return value
        if value is not None:
            self.report(
                "bad_value", (key,), f"{what} is a mapping, not {shown(value)}", "write `name: ...` lines"
            )
        return {}

    def text(self, key: str, cure: str, default: str = "") -> str:
        """A text; `cure` says what to write instead of anything else."""
        value = self.raw(key)
        if isinstance(value, str):
            return value
        if key in self:
            self.report("bad_value", (key,), f"{key} is a text, not {shown(value)}", cure)
        return default

    def required_text(self, key: str, cure: str) -> str:
        """A text that must be there."""
        if key not in self:
            self.report("missing_key", (key,), f"{key!r} is missing", cure)
        return self.text(key, cure)

    def names(self, key: str, cure: str) -> tuple[str, ...]:
        """A list of texts; a single text is a list of one."""
        value = self.raw(key)
        values = value if isinstance(value, list) else [value] if key in self else []
        found = tuple(item for item in values if isinstance(item, str))
        if len(found) < len(values):
            self.report("bad_value", (key,), f"{key} is a list of texts, not {shown(value)}", cure)
        return found

    def count(self, key: str, default: int) -> int:
        """A whole number without a unit."""
        value = self.raw(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if key in self:
            self.report(
                "bad_value",
                (key,),
                f"{key} is a whole number, not {shown(value)}",
                f"write it like {default}",
            )
        return default

    def number(self, key: str) -> float | None:
        """A number without a unit, or None."""
        value = self.raw(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if key in self:
            self.report("bad_value", (key,), f"{key} is a number, not {shown(value)}", "write it like 0.7")
        return None

    def flag(self, key: str) -> bool:
        """`true` or `false`; false when absent."""
        value = self.raw(key)
        if isinstance(value, bool):
            return value
        if key in self:
            self.report(
                "bad_value", (key,), f"{key} is true or false, not {shown(value)}", "write true or false"
            )
        return False

    def duration(self, key: str) -> float | None:
        """`800ms` in seconds, or None."""
        return self.quantity(key, seconds)

    def share(self, key: str) -> float | None:
        """`95%` as a ratio, or None."""
        return self.quantity(key, ratio)

    def quantity(self, key: str, parse: Callable[[str], float]) -> float | None:
        """A quantity with its unit, or None."""
        return read_quantity(self.raw(key), (*self.path, key), parse, self.problems) if key in self else None

    def parsed(self, key: str, parse: Callable[[str], _T], cure: str) -> _T | None:
        """A text that `parse` understands, or None. What `parse` raises becomes the problem."""
        if key not in self:
            return None
        text = self.text(key, cure)
        try:
            return parse(text) if text else None
        except InvalidInput as error:
            self.report("bad_value", (key,), str(error), cure)
            return None

    def report(self, code: str, path: Path, message: str, cure: str, cause: str = "") -> None:
        """Note a problem at `path` below this mapping."""
        self.problems.append(Problem(code, (*self.path, *path), message, cure, cause=cause))


def read_quantity(
    value: Json, path: Path, parse: Callable[[str], float], problems: list[Problem]
) -> float | None:
    """A quantity with its unit; the problem tells a missing unit from a wrong one."""
    try:
        return parse(value)  # type: ignore[arg-type]  # what is not a text is refused there
    except BadUnit as error:
        is_bare = not isinstance(value, str) or _NUMBER.fullmatch(value) is not None
        message, _, hint = str(error).partition(": ")
        cure = hint or "give a number and its unit"
        problems.append(Problem("missing_unit" if is_bare else "bad_unit", path, message, cure))
        return None


def json_text(value: Json) -> str:
    """A constant as JSON text; its keys are sorted, because their order means nothing."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))


def shown(value: Json) -> str:
    """A value in a message: its JSON, cut to a line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
