"""Answers of models mended on the CPU: where the value is in the text, and how it is bent to a schema.

Every repair keeps the words of the model. Whether the result fits is decided by `shapes.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping

import json_repair

from tightrope.model.json import Json

MAX_REPAIR_CHARACTERS = 1 << 15
"""A longer answer is not repaired: the work of a repair can grow with the square of the length."""
MAX_DEPTH = 48
"""The deepest nesting of answers and schemas."""

_FENCED = re.compile(r"```[A-Za-z0-9_+-]*+[ \t]*+\r?\n?(.*?)```", re.DOTALL)  # possessive: linear on any text
_INTEGER = re.compile(r"[-+]?[0-9]{1,300}")
_BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}

_DECODER = json.JSONDecoder()


def loads(text: str) -> Json:
    """Strict JSON of bounded depth: finite numbers, whole characters. Raises ValueError for all else."""
    try:
        value: Json = json.loads(text, parse_constant=_not_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    _check_plain(value)
    return value


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _not_finite(text)


def _not_finite(text: str) -> float:
    raise ValueError(f"{text} is not a finite number")


def _check_plain(value: Json) -> None:
    """Raises ValueError for what our wire cannot say: deep nesting, half characters, infinite numbers."""
    open_values: list[tuple[Json, int]] = [(value, 0)]
    while open_values:
        current, depth = open_values.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        match current:
            case str():
                current.encode()
            case float() if not math.isfinite(current):
                raise ValueError("a number is not finite")
            case list():
                open_values += [(item, depth + 1) for item in current]
            case dict():
                for key, item in current.items():
                    key.encode()
                    open_values.append((item, depth + 1))
            case _:
                pass


def candidates(text: str, asked: Json) -> Iterator[Json]:
    """What the answer may have meant, best first: a whole value, a part of it repaired, the bare words."""
    for part in _parts(text, asked):
        whole = _first_value(part)
        if whole is not None:
            yield whole
        repaired = _repaired(part)
        if repaired not in ("", None):
            yield repaired
    if _is_one_word(asked):
        bare = text.strip().strip("`'\"*").strip()
        if bare and _is_whole(bare):
            yield bare


def _parts(text: str, asked: Json) -> Iterator[str]:
    """The stretches of an answer that may hold the value: fenced blocks, then the brackets, then everything."""
    seen: dict[str, None] = {}
    for block in _FENCED.findall(text)[:4]:
        seen[block.strip()] = None
    start = _opening(text, asked)
    if start >= 0:
        end = text.rfind("}" if text[start] == "{" else "]")
        seen[text[start : end + 1] if end > start else text[start:]] = None
    seen[text.strip()] = None
    yield from (part for part in seen if part)


def _opening(text: str, asked: Json) -> int:
    """Where the value begins: at the first brace if a mapping is asked for, else at the first bracket of any kind.

    Never at a bracket inside the value, which would be a part passed off as the whole.
    """
    brace, bracket = text.find("{"), text.find("[")
    if isinstance(asked, dict) and asked.get("type") == "object" and brace >= 0:
        return brace
    return min((at for at in (brace, bracket) if at >= 0), default=-1)


def _first_value(part: str) -> Json:
    """The JSON value that `part` begins with, whatever follows; None without one."""
    try:
        value, _ = _DECODER.raw_decode(part)
        _check_plain(value)
    except (RecursionError, ValueError):
        return None
    found: Json = value
    return found


def _repaired(part: str) -> Json:
    """Broken JSON mended, or None. Text without any bracket is left to the caller."""
    if (
        len(part) > MAX_REPAIR_CHARACTERS
        or not part.startswith(("{", "["))
        or _bracket_depth(part) > MAX_DEPTH
    ):
        return None
    try:
        value: Json = json_repair.loads(part, skip_json_loads=True)  # type: ignore[assignment]
        _check_plain(value)
        return loads(json.dumps(value))
    except Exception:  # noqa: BLE001 - a foreign parser on text nobody controls: whatever it raises means "not mendable"
        return None


def _bracket_depth(text: str) -> int:
    """The deepest nesting the text can ask a parser for."""
    deepest = depth = 0
    for char in text:
        if char in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "}]" and depth:
            depth -= 1
    return deepest


def coerced(value: Json, asked: Json) -> Json:
    """The value bent towards the schema where only its spelling differs."""
    if not isinstance(asked, dict):
        return value
    if isinstance(asked.get("enum"), list):
        return _as_enum(value, asked["enum"])
    match asked.get("type"):
        case "object":
            return _as_object(value, asked)
        case "array":
            items = value if isinstance(value, list) else [value]
            return [coerced(item, asked.get("items")) for item in items]
        case "integer":
            return _as_integer(value)
        case "number":
            return _as_number(value)
        case "boolean" if isinstance(value, str):
            return _BOOLEANS.get(value.strip().lower(), value)
        case "string" if isinstance(value, bool | int | float):
            return json.dumps(value)
        case _:
            return value


def _as_object(value: Json, asked: Mapping[str, Json]) -> Json:
    fields = asked.get("properties")
    if not isinstance(fields, dict):
        return value
    if not isinstance(value, dict):
        only = _only_field(asked)
        return {only: coerced(value, fields[only])} if only is not None else value
    name_by_folded = {name.strip().casefold(): name for name in fields}
    found: dict[str, Json] = {}
    for key, item in value.items():
        name = key if key in fields else name_by_folded.get(key.strip().casefold(), key)
        if name in fields and (name not in found or key == name):
            found[name] = coerced(item, fields[name])
        elif name not in fields and asked.get("additionalProperties") is not False:
            found[name] = item
    return found


def _only_field(asked: Mapping[str, Json]) -> str | None:
    """The name of the field of a mapping that has just one."""
    fields = asked.get("properties") if asked.get("type") == "object" else None
    return next(iter(fields)) if isinstance(fields, dict) and len(fields) == 1 else None


def _is_one_word(asked: Json) -> bool:
    """True for an enum, a number or a boolean, alone or as the only field.

    Only there are words without any JSON taken for an answer, because wrong ones do not fit.
    """
    if not isinstance(asked, dict):
        return False
    only = _only_field(asked)
    fields = asked.get("properties")
    if only is not None and isinstance(fields, dict):
        return _is_one_word(fields[only])
    return "enum" in asked or asked.get("type") in ("integer", "number", "boolean")


def _as_enum(value: Json, allowed: Json) -> Json:
    options = allowed if isinstance(allowed, list) else []
    if value in options:
        return value
    folded = _folded(value)
    return next((option for option in options if _folded(option) == folded), value)


def _folded(value: Json) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.strip().strip(".!\"'`").strip().casefold()


def _as_integer(value: Json) -> Json:
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value)
    number = _as_number(value)
    is_whole = isinstance(number, float) and number.is_integer() and abs(number) < 2**53
    return int(number) if is_whole and isinstance(number, float) else number


def _as_number(value: Json) -> Json:
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    if not math.isfinite(number):
        return value
    return int(value) if _INTEGER.fullmatch(value.strip()) else number


def _is_whole(text: str) -> bool:
    """True when the text can be encoded."""
    return not any("\ud800" <= char <= "\udfff" for char in text)
