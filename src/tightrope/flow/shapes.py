"""Shapes of answers: the `out:` short form, JSON Schema as canonical text, and checking an answer against it.

Only the part of JSON Schema is accepted that engines can steer by and that is checked in time proportional to
the answer: no references, no patterns. Whether a model is asked again is decided elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry

from tightrope.flow.places import nearest
from tightrope.flow.repair import MAX_DEPTH, candidates, coerced, loads
from tightrope.model.errors import InvalidInput
from tightrope.model.json import Json

MAX_ANSWER_CHARACTERS = 1 << 18
"""A longer answer is refused unread."""
MAX_SCHEMA_CHARACTERS = 1 << 16
"""The longest schema."""
ANY_JSON = "{}"
"""The shape that asks for JSON and nothing more."""

_TYPES = ("string", "number", "integer", "boolean")
_KEYWORDS = tuple(
    "type properties required additionalProperties items enum const anyOf allOf oneOf minItems maxItems minLength "
    "maxLength minimum maximum exclusiveMinimum exclusiveMaximum title description default examples $schema".split()
)
Shape = str | type | Mapping[str, "Shape"] | Sequence["Shape"]
"""What people write after `out`: type names or Python types, one-element lists, mappings, `{enum: [...]}`."""


def schema_of(shape: object) -> str:
    """The canonical schema of a short form, or of `{schema: <JSON Schema>}`. Raises InvalidInput.

    Every field of a mapping is required and no other is allowed; the order of fields is kept, because a model
    fills them in that order.
    """
    plain = spelled(shape)
    match plain:
        case {"schema": dict() as schema, **rest} if not rest:
            text = canonical(schema)
        case "string":
            raise InvalidInput(
                "`string` alone is plain text: leave `out` away, or name fields, as in {answer: string}"
            )
        case _:
            text = canonical(_schema(plain, "out"))
    check_schema(text)
    return text


def spelled(shape: object) -> Json:
    """A short form as plain JSON: `{"notes": [str]}` -> `{"notes": ["string"]}`."""
    names: dict[object, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
    match shape:
        case None | bool() | int() | float() | str():
            return shape
        case type() if shape in names:
            return names[shape]
        case Mapping():
            return {str(key): spelled(value) for key, value in shape.items()}
        case list() | tuple():
            return [spelled(value) for value in shape]
        case _:
            raise InvalidInput(
                f"{shape!r} is not a shape: use str, int, float, bool, lists and mappings of them"
            )


def short_form(schema: str) -> Json:
    """What to write after `out` for a schema: the short form where it says the same, else `{schema: ...}`."""
    full = json.loads(schema)
    short = _short(full)
    if short is not None and canonical(_schema(short, "out")) == schema and not _looks_full(short):
        return short
    return {"schema": full}


def canonical(value: Json) -> str:
    """Compact JSON text; keys stay in their order."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (RecursionError, ValueError) as error:
        raise InvalidInput(f"this is not a JSON value: {error}") from error


def check_schema(schema: str) -> None:
    """Raises InvalidInput, with the cure, when a schema is not valid or uses what is not supported."""
    _validator(schema)


def check(text: str, schema: str) -> tuple[Json, bool]:
    """The value of an answer that fits `schema`, and whether it had to be repaired for that.

    Repairs are cheap and keep the words of the model: fences and prose around the value, broken JSON, numbers
    and booleans in quotes, the case of enum values and keys, superfluous fields, a missing wrapper. Raises
    InvalidInput saying what is wrong when nothing of that helps; never anything else, for any text.
    """
    validator = _validator(schema)
    if len(text) > MAX_ANSWER_CHARACTERS:
        raise InvalidInput(f"the answer has {len(text)} characters, at most {MAX_ANSWER_CHARACTERS} are read")
    try:
        exact = loads(text)
    except ValueError:
        pass
    else:
        if _first_error(validator, exact) is None:
            return exact, False
    asked: Json = json.loads(schema)
    why = []
    for candidate in candidates(text, asked):
        value = coerced(candidate, asked)
        wrong = _first_error(validator, value)
        if wrong is None:
            return value, True
        why.append(_said(wrong))
    said = why[0] if why else "there is no JSON in it"
    raise InvalidInput(f"the answer does not have the shape that was asked for: {said}")


# --- the short form --------------------------------------------------------------------------------------


def _schema(shape: Json, where: str) -> dict[str, Json]:
    match shape:
        case str() if shape in _TYPES:
            return {"type": shape}
        case str():
            near = nearest(shape, _TYPES)
            cure = f'write "{near}"' if near else f"use one of {', '.join(_TYPES)}"
            raise InvalidInput(f"{where}: {shape!r} is not a type; {cure}")
        case [item]:
            return {"type": "array", "items": _schema(item, f"{where}[]")}
        case list():
            raise InvalidInput(f"{where}: a list has exactly one type for its items; write it like [string]")
        case {"enum": list() as values, **rest} if not rest:
            return _enum(values, where)
        case dict() if shape:
            fields: dict[str, Json] = {key: _schema(value, f"{where}.{key}") for key, value in shape.items()}
            names: list[Json] = list(fields)
            return {"type": "object", "properties": fields, "required": names, "additionalProperties": False}
        case _:
            raise InvalidInput(
                f"{where}: {json.dumps(shape)} is not a shape; name a type, [type] or {{field: type}}"
            )


def _enum(values: list[Json], where: str) -> dict[str, Json]:
    distinct = {json.dumps(value) for value in values}
    if not values or len(distinct) < len(values):
        raise InvalidInput(f"{where}: an enum lists at least one value, each once")
    if not all(isinstance(value, str | bool | int | float) for value in values):
        raise InvalidInput(f"{where}: an enum lists texts, numbers or booleans")
    if all(isinstance(value, str) for value in values):
        return {"type": "string", "enum": values}
    return {"enum": values}


def _short(schema: Json) -> Json:
    """The short form that may stand for a schema, or None; the caller makes sure that it does."""
    match schema:
        case {"enum": list() as values}:
            return {"enum": values}
        case {"type": "array", "items": items}:
            inner = _short(items)
            return None if inner is None else [inner]
        case {"type": "object", "properties": dict() as fields}:
            inner_by_field = {key: _short(value) for key, value in fields.items()}
            return None if not fields or None in inner_by_field.values() else inner_by_field
        case {"type": str() as name} if name in _TYPES:
            return name
        case _:
            return None


def _looks_full(short: Json) -> bool:
    """True for what the reader of a short form would take for something else."""
    return short == "string" or (isinstance(short, dict) and list(short) == ["schema"])


# --- schemas ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def _validator(schema: str) -> Draft202012Validator:
    if len(schema) > MAX_SCHEMA_CHARACTERS:
        raise InvalidInput(
            f"the schema has {len(schema)} characters, at most {MAX_SCHEMA_CHARACTERS} are allowed"
        )
    try:
        parsed = loads(schema)
    except ValueError as error:
        raise InvalidInput(f"the schema is not JSON: {error}") from error
    asked = _accepted(parsed, "schema", 0)
    try:
        Draft202012Validator.check_schema(asked)
    except SchemaError as error:
        raise InvalidInput(
            f"the schema is not valid: {error.message}; see json-schema.org, draft 2020-12"
        ) from error
    return Draft202012Validator(asked, registry=Registry())


def _accepted(schema: Json, where: str, depth: int) -> dict[str, Json]:
    if depth > MAX_DEPTH:
        raise InvalidInput(f"{where}: nesting deeper than {MAX_DEPTH}; make it flatter")
    if not isinstance(schema, dict):
        raise InvalidInput(f"{where}: a schema is a mapping, not {json.dumps(schema)[:60]}")
    for keyword in schema:
        if keyword not in _KEYWORDS:
            near = nearest(keyword, _KEYWORDS)
            cure = f'write "{near}"' if near else f"use only {', '.join(_KEYWORDS)}"
            raise InvalidInput(f"{where}: the keyword {keyword!r} is not supported; {cure}")
    for name, inner in _inner_schemas(schema):
        _accepted(inner, f"{where}.{name}", depth + 1)
    return schema


def _inner_schemas(schema: Mapping[str, Json]) -> Iterator[tuple[str, Json]]:
    fields = schema.get("properties")
    if isinstance(fields, dict):
        yield from fields.items()
    for keyword in ("anyOf", "allOf", "oneOf"):
        options = schema.get(keyword)
        if isinstance(options, list):
            yield from ((f"{keyword}[{index}]", option) for index, option in enumerate(options))
    if "items" in schema:
        yield "items", schema["items"]
    if isinstance(schema.get("additionalProperties"), dict):
        yield "additionalProperties", schema["additionalProperties"]


def _first_error(validator: Draft202012Validator, value: Json) -> ValidationError | None:
    return next(iter(validator.iter_errors(value)), None)


def _said(error: ValidationError) -> str:
    where = ".".join(map(str, error.absolute_path))
    return f"{where or 'the value'}: {error.message[:200]}"
