"""The smallest JSON that fits a schema, for an emulated engine that is asked for structured output.

Owns the part of JSON Schema that Tightrope itself accepts for answers. Where there is a choice, as among the values
of an enum, chance decides. Whatever cannot be met with certainty is refused, never guessed.
"""

from __future__ import annotations

import math
from random import Random

from tightrope.model.errors import InvalidInput
from tightrope.model.json import Json

MOST_VALUES = 10_000
"""Values that one instance may consist of."""

_WORD = "word"
_NOTES = {"title", "description", "default", "examples", "$schema", "additionalProperties"}
_KNOWN = {
    "object": {"properties", "required"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set[str](),
    "null": set[str](),
}


def instance_of(schema: Json, rng: Random) -> Json:
    """A minimal value of this shape. Raises InvalidInput, naming the place, where it cannot make one."""
    return _Maker(rng).make(schema, "schema")


class _Maker:
    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._left = MOST_VALUES

    def make(self, schema: Json, where: str) -> Json:
        self._left -= 1
        if self._left < 0:
            raise InvalidInput(
                f"{where}: the schema asks for more than {MOST_VALUES} values; make it smaller"
            )
        if schema is True:
            return _WORD
        if not isinstance(schema, dict):
            raise InvalidInput(f"{where}: a schema is a mapping")
        choice = next((name for name in ("const", "enum", "anyOf") if name in schema), None)
        if choice is None:
            return self._of_type(_type(schema, where), schema, where)
        _refuse(set(schema) - {choice, "type"}, choice, where)
        match schema[choice]:
            case value if choice == "const":
                return value
            case [first, *_] if choice == "anyOf":
                return self.make(first, f"{where}.anyOf[0]")
            case [_, *_] as values if choice == "enum":
                return self._rng.choice(values)
            case _:
                raise InvalidInput(f"{where}: {choice} is a list of at least one value")

    def _of_type(self, kind: str, schema: dict[str, Json], where: str) -> Json:
        _refuse(set(schema) - _KNOWN[kind] - {"type"}, kind, where)
        match kind:
            case "object":
                return self._object(schema, where)
            case "array":
                least = _size(schema, "minItems", where)
                return [self.make(schema.get("items", True), f"{where}.items") for _ in range(least)]
            case "string":
                return _string(schema, where)
            case "integer" | "number":
                return _number(schema, kind, where)
            case "boolean":
                return self._rng.random() < 0.5
            case _:
                return None

    def _object(self, schema: dict[str, Json], where: str) -> Json:
        fields, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(fields, dict) or not isinstance(required, list):
            raise InvalidInput(f"{where}: properties is a mapping and required a list of its names")
        made: dict[str, Json] = {}
        for name in sorted(map(str, required), key=lambda name: _place(list(fields), name)):
            made[name] = self.make(fields.get(name, True), f"{where}.{name}")
        return made


def _refuse(keywords: set[str], beside: str, where: str) -> None:
    unknown = sorted(keywords - _NOTES)
    if unknown:
        raise InvalidInput(
            f"{where}: an emulated engine cannot meet {unknown[0]!r} of {beside}; "
            "leave it out, or give the answer in a directive"
        )


def _place(names: list[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


def _type(schema: dict[str, Json], where: str) -> str:
    kind = schema.get("type", "object")
    if isinstance(kind, list) and kind:
        kind = kind[0]
    if not isinstance(kind, str) or kind not in _KNOWN:
        raise InvalidInput(f"{where}: {kind!r} is no type; use one of {', '.join(_KNOWN)}")
    return kind


def _string(schema: dict[str, Json], where: str) -> str:
    least = _size(schema, "minLength", where)
    most = schema.get("maxLength", len(_WORD))
    return (_WORD * (1 + least // len(_WORD)))[
        : max(least, min(len(_WORD), most if isinstance(most, int) else 0))
    ]


def _size(schema: dict[str, Json], keyword: str, where: str) -> int:
    least, most = schema.get(keyword, 0), schema.get(keyword.replace("min", "max"), MOST_VALUES)
    for size in (least, most):
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise InvalidInput(f"{where}: {size!r} is no size; write a whole number")
    assert isinstance(least, int)
    assert isinstance(most, int)
    if least > min(most, MOST_VALUES):
        raise InvalidInput(f"{where}: {keyword} is {least}, which is more than {min(most, MOST_VALUES)}")
    return least


def _number(schema: dict[str, Json], kind: str, where: str) -> Json:
    """Zero if it is within the bounds, else a value near the bound that is nearest to zero."""
    low, high = _bound(schema, "minimum", -math.inf, where), _bound(schema, "maximum", math.inf, where)
    above = _bound(schema, "exclusiveMinimum", -math.inf, where)
    below = _bound(schema, "exclusiveMaximum", math.inf, where)
    tries: list[float] = [0, low, high, above + 1, below - 1, (max(low, above) + min(high, below)) / 2]
    if kind == "integer":
        whole = [each for each in tries if math.isfinite(each)]
        tries = [*map(math.ceil, whole), *map(math.floor, whole)]
    for value in tries:
        if low <= value <= high and above < value < below and math.isfinite(value):
            return value
    raise InvalidInput(f"{where}: no {kind} is within these bounds")


def _bound(schema: dict[str, Json], keyword: str, otherwise: float, where: str) -> float:
    bound = schema.get(keyword, otherwise)
    if isinstance(bound, bool) or not isinstance(bound, int | float):
        raise InvalidInput(f"{where}: {keyword} is a number, not {bound!r}")
    return bound
