"""Walking the written form of `tightrope.yaml` beside its values: what may stand where, and what does.

Owns paths into the file and the types behind them. What the keys mean is `config_form.py`.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from tightrope.model.json import Json

KeyPath = tuple[str, ...]
"""The way into the file: keys, and indices as decimal text."""
Value = None | bool | int | float | str | tuple["Value", ...] | dict[str, "Value"]
"""What the file can say. Lists are tuples."""


def frozen(tree: Json) -> Value:
    """The tree with its lists as tuples."""
    if isinstance(tree, dict):
        return {key: frozen(item) for key, item in tree.items()}
    if isinstance(tree, list):
        return tuple(frozen(item) for item in tree)
    return tree


def dotted(path: Sequence[str]) -> str:
    """`models.partner.replicas[1].key`."""
    text = "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in path)
    return text.removeprefix(".")


def value_at(values: Value, path: KeyPath) -> Value:
    """The value at `path`, None where there is none."""
    for name in path:
        values = _step(values, name)
    return values


def type_at(form: type[BaseModel], values: Value, path: KeyPath) -> Any:
    """The type that the form wants at `path`, without Annotated and None; None where nothing may stand."""
    kind: Any = form
    for name in path:
        kind, values = _child(kind, name, values), _step(values, name)
    return _unwrapped(kind)


def section_at(form: type[BaseModel], values: Value, path: KeyPath) -> type[BaseModel] | None:
    """The section at `path`; of several kinds of a section the one that the values name."""
    section = _section(type_at(form, values, path), value_at(values, path))
    return section if _is_section(section) else None


def keys_of(section: type[BaseModel]) -> list[str]:
    """The keys of a section as they are written."""
    return [spec.alias or name for name, spec in section.model_fields.items()]


def names_at(form: type[BaseModel], values: Value, path: KeyPath) -> list[str]:
    """What may follow `path`, as far as that is known: keys of the form, else those the values have."""
    section = section_at(form, values, path)
    if section is not None:
        return keys_of(section)
    value = value_at(values, path)
    if isinstance(value, dict):
        return list(value)
    return [str(index) for index in range(len(value))] if isinstance(value, tuple) else []


def matching(word: str, names: Iterable[str]) -> str | None:
    """The name that an environment variable means by `word`: case, dots and hyphens do not count."""
    plain = _plain(word)
    return next((name for name in names if _plain(name) == plain), None)


def with_value(values: Value, path: KeyPath, value: Value) -> Value:
    """The values with one of them replaced; sections that are not there yet are made."""
    if not path:
        return value
    if isinstance(values, tuple):
        at = int(path[0])
        return (*values[:at], with_value(values[at], path[1:], value), *values[at + 1 :])
    inside = values if isinstance(values, dict) else {}
    return {**inside, path[0]: with_value(inside.get(path[0]), path[1:], value)}


def leaves(value: Value, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Value]]:
    """Every single value with its path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, str(index)))
    else:
        yield path, value


def in_force(form: type[BaseModel], values: Value) -> Iterator[tuple[KeyPath, Value]]:
    """Every single value that holds, defaults as they are written included, in the order of the form."""
    yield from _in_force(form, values, ())


def without_tags(form: type[BaseModel], values: Value, loc: Sequence[int | str]) -> KeyPath:
    """The keys of the file in a place that pydantic names: no kind of an engine, no mark for keys."""
    path: KeyPath = ()
    kind: Any = form
    for part in loc:
        name = str(part)
        if name == "[key]":
            continue
        chosen = _section(kind, values)
        is_choice = _is_section(chosen) and chosen is not _unwrapped(kind)
        if is_choice and name not in keys_of(chosen) and _step(values, "kind") == name:
            kind = chosen
            continue
        kind, values, path = _child(kind, name, values), _step(values, name), (*path, name)
    return path


# --- one step --------------------------------------------------------------------------------------------


def _in_force(kind: Any, value: Value, path: KeyPath) -> Iterator[tuple[KeyPath, Value]]:
    section = _section(kind, value)
    if _is_section(section) and (isinstance(value, dict) or (value is None and not _is_optional(kind))):
        given = value if isinstance(value, dict) else {}
        for name, spec in section.model_fields.items():
            key = spec.alias or name
            held = given.get(key, spec.default)
            plain = None if held is PydanticUndefined else held
            yield from _in_force(_annotation(spec), plain, (*path, key))
    elif isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _in_force(_child(kind, key, value), item, (*path, key))
    elif isinstance(value, tuple) and value:
        for index, item in enumerate(value):
            yield from _in_force(_child(kind, str(index), value), item, (*path, str(index)))
    else:
        is_bag = typing.get_origin(section) in (tuple, Mapping)
        yield path, () if value is None and is_bag else value


def _unwrapped(kind: Any) -> Any:
    while True:
        if typing.get_origin(kind) is Annotated:
            kind = typing.get_args(kind)[0]
        elif _is_union(kind):
            members = [member for member in typing.get_args(kind) if member is not type(None)]
            if len(members) != 1:
                return kind
            kind = members[0]
        else:
            return kind


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _is_optional(kind: Any) -> bool:
    while typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    return type(None) in typing.get_args(kind)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _section(kind: Any, value: Value) -> Any:
    kind = _unwrapped(kind)
    if _is_union(kind):
        named = _step(value, "kind")
        for member in typing.get_args(kind):
            if _is_section(member) and named in typing.get_args(member.model_fields["kind"].annotation):
                return member
    return kind


def _annotation(spec: Any) -> Any:
    return Annotated[spec.annotation, *spec.metadata] if spec.metadata else spec.annotation


def _child(kind: Any, name: str, value: Value) -> Any:
    section = _section(kind, value)
    if _is_section(section):
        specs = section.model_fields.items()
        return next((_annotation(spec) for field, spec in specs if (spec.alias or field) == name), None)
    arguments = typing.get_args(section)
    if typing.get_origin(section) is tuple:
        return arguments[0]
    return arguments[1] if len(arguments) == 2 else None


def _step(value: Value, name: str) -> Value:
    if isinstance(value, dict):
        return value.get(name)
    if isinstance(value, tuple) and name.isdecimal() and int(name) < len(value):
        return value[int(name)]
    return None


def _plain(word: str) -> str:
    return re.sub(r"[-.]", "_", word).lower()
