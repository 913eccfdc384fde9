"""Values of our own vocabulary to plain JSON values and back, for journals and stores.

Owns the mapping of frozen dataclasses, tuples, mappings, enums, NewTypes, Literals and unions. How the plain
values become bytes is left to the caller. A dataclass is an object with its fields by name; at the top, and
where a field may hold several classes, the key "type" names the class. Numbers keep their kind, so that a
replay does the same arithmetic; infinities and NaN are the strings "inf", "-inf" and "nan".
"""

from __future__ import annotations

import base64
import binascii
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, NewType, TypeVar, Union, overload

from tightrope.model.errors import InvalidInput

T = TypeVar("T")

TAG = "type"

_Encoder = Callable[[Any], object]
_Decoder = Callable[[Any], Any]
_PRIMITIVES = (str, int, float, bool)


def encode(value: object) -> object:
    """Plain JSON values for a dataclass (with its tag), or for a tuple, list or mapping of such.

    Raises TypeError for what the vocabulary cannot hold.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return _tagged(type(value), value)
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if value is None:
        return None
    kind: Any = type(value)
    return _encoder(kind)(value)


@overload
def decode(tp: type[T], data: object) -> T: ...
@overload
def decode(tp: object, data: object) -> Any: ...
def decode(tp: object, data: object) -> Any:
    """The value of type `tp` (a class, or a union such as Event) that `encode` gave `data` for.

    Fields that are missing take their default, so that what an earlier version wrote can be read.
    Raises InvalidInput with the path to what does not fit.
    """
    try:
        return _decoder(tp)(data)
    except _Misfit as misfit:
        raise InvalidInput(f"{misfit} at {'.'.join(reversed(misfit.path)) or 'the top'}") from None


class _Misfit(Exception):
    """Data that does not fit its type; `path` grows from the inside to the outside."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.path: list[str] = []


# --- encoding --------------------------------------------------------------------------------------------


def _tagged(kind: type, value: object) -> dict[str, object]:
    return {TAG: kind.__name__, **_encode_fields(kind, value)}


def _encode_fields(kind: Any, value: object) -> dict[str, object]:
    return {
        name: getattr(value, name) if convert is None else convert(getattr(value, name))
        for name, convert in _field_encoders(kind)
    }


@cache
def _field_encoders(kind: Any) -> tuple[tuple[str, _Encoder | None], ...]:
    """Name and encoder of every field; None where the value is plain already."""
    hints = _hints(kind)
    found: list[tuple[str, _Encoder | None]] = []
    for spec in fields(kind):
        encoder = _encoder(hints[spec.name])
        found.append((spec.name, None if encoder is _as_it_is else encoder))
    return tuple(found)


@cache
def _encoder(tp: Any) -> _Encoder:
    tp = _plain(tp)
    origin, arguments = typing.get_origin(tp), typing.get_args(tp)
    if tp is float:
        return _encode_float
    if tp in _PRIMITIVES or tp is NoneType or origin is Literal:
        return _as_it_is
    if tp is bytes:
        return lambda value: base64.b64encode(value).decode()
    if origin is tuple:
        return _tuple_encoder(arguments)
    if origin in (dict, Mapping):
        of_item = _encoder(arguments[1])
        return lambda value: {key: of_item(item) for key, item in value.items()}
    if origin in (Union, UnionType):
        return _union_encoder(arguments)
    if isinstance(tp, type) and issubclass(tp, Enum):
        return lambda value: value.value
    if is_dataclass(tp):
        return lambda value: _encode_fields(tp, value)
    raise TypeError(f"{tp!r} is not part of the vocabulary that can be encoded")


def _as_it_is(value: object) -> object:
    return value


def _encode_float(value: float) -> object:
    return value if value - value == 0 else str(float(value))


def _tuple_encoder(arguments: tuple[Any, ...]) -> _Encoder:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        of_item = _encoder(arguments[0])
        if of_item is _as_it_is:
            return list
        return lambda value: [of_item(item) for item in value]
    encoders = tuple(_encoder(argument) for argument in arguments)
    return lambda value: [convert(item) for convert, item in zip(encoders, value, strict=True)]


def _union_encoder(arguments: tuple[Any, ...]) -> _Encoder:
    classes, other = _members(arguments)
    of_other = _as_it_is if other is None else _encoder(other)
    is_tagged = len(classes) > 1

    def encoded(value: object) -> object:
        kind = type(value)
        if kind in classes:
            return _tagged(kind, value) if is_tagged else _encode_fields(kind, value)
        return None if value is None else of_other(value)

    return encoded


# --- decoding --------------------------------------------------------------------------------------------


@cache
def _decoder(tp: Any) -> _Decoder:
    tp = _plain(tp)
    origin, arguments = typing.get_origin(tp), typing.get_args(tp)
    if tp is float:
        return _decode_float
    if tp in _PRIMITIVES or tp is NoneType:
        return _kind_decoder(tp)
    if origin is Literal:
        return _choice_decoder({value: value for value in arguments})
    if tp is bytes:
        return _decode_bytes
    if origin is tuple:
        return _tuple_decoder(arguments)
    if origin in (dict, Mapping):
        return _mapping_decoder(arguments)
    if origin in (Union, UnionType):
        return _union_decoder(arguments)
    if isinstance(tp, type) and issubclass(tp, Enum):
        return _choice_decoder({member.value: member for member in tp})
    if isinstance(tp, type) and is_dataclass(tp):
        return _class_decoder(tp)
    raise TypeError(f"{tp!r} is not part of the vocabulary that can be decoded")


def _kind_decoder(kind: type) -> _Decoder:
    def decoded(data: object) -> object:
        if type(data) is not kind:
            raise _Misfit(f"expected {kind.__name__}, found {type(data).__name__}")
        return data

    return decoded


def _decode_float(data: object) -> float:
    if type(data) is float or type(data) is int:
        return data
    if data in ("inf", "-inf", "nan"):
        return float(str(data))
    raise _Misfit(f"expected a number, found {type(data).__name__}")


def _choice_decoder(value_by_text: Mapping[Any, object]) -> _Decoder:
    def decoded(data: object) -> object:
        if type(data) in (list, dict) or data not in value_by_text:
            raise _Misfit(f"expected one of {', '.join(map(str, value_by_text))}")
        return value_by_text[data]

    return decoded


def _decode_bytes(data: object) -> bytes:
    if type(data) is not str:
        raise _Misfit(f"expected base64 text, found {type(data).__name__}")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise _Misfit("expected base64 text") from None


def _tuple_decoder(arguments: tuple[Any, ...]) -> _Decoder:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        of_item = _decoder(arguments[0])
        return lambda data: tuple(
            _within(str(index), of_item, item) for index, item in enumerate(_list(data, None))
        )
    decoders = tuple(_decoder(argument) for argument in arguments)
    return lambda data: tuple(
        _within(str(index), of_item, item)
        for index, (of_item, item) in enumerate(zip(decoders, _list(data, len(decoders)), strict=True))
    )


def _list(data: object, length: int | None) -> list[object]:
    if type(data) is not list:
        raise _Misfit(f"expected a list, found {type(data).__name__}")
    if length is not None and len(data) != length:
        raise _Misfit(f"expected a list of {length}, found {len(data)}")
    return data


def _mapping_decoder(arguments: tuple[Any, ...]) -> _Decoder:
    of_item = _decoder(arguments[1])

    def decoded(data: object) -> dict[str, object]:
        return {key: _within(key, of_item, item) for key, item in _object(data).items()}

    return decoded


def _union_decoder(arguments: tuple[Any, ...]) -> _Decoder:
    classes, other = _members(arguments)
    decoder_by_name = {kind.__name__: _class_decoder(kind) for kind in classes}
    of_class = (
        _tagged_decoder(decoder_by_name) if len(classes) > 1 else next(iter(decoder_by_name.values()), None)
    )
    of_other = None if other is None else _decoder(other)
    is_optional = NoneType in arguments

    def decoded(data: object) -> object:
        if data is None and is_optional:
            return None
        if of_class is not None and (of_other is None or type(data) is dict):
            return of_class(data)
        if of_other is None:
            raise _Misfit("expected null")
        return of_other(data)

    return decoded


def _tagged_decoder(decoder_by_name: Mapping[str, _Decoder]) -> _Decoder:
    def decoded(data: object) -> object:
        name = _object(data).get(TAG)
        decoder = decoder_by_name.get(name) if type(name) is str else None
        if decoder is None:
            raise _Misfit(f"{name!r} is none of {', '.join(decoder_by_name)}")
        return decoder(data)

    return decoded


@dataclass(frozen=True, slots=True)
class _FieldPlan:
    decoder: _Decoder
    has_default: bool


@cache
def _class_decoder(kind: type) -> _Decoder:
    hints = _hints(kind)
    plan_by_name = {
        spec.name: _FieldPlan(_decoder(hints[spec.name]), _has_default(spec)) for spec in fields(kind)
    }

    def decoded(data: object) -> object:
        values: dict[str, object] = {}
        for name, item in _object(data).items():
            if (plan := plan_by_name.get(name)) is not None:
                values[name] = _within(name, plan.decoder, item)
            elif name != TAG or item != kind.__name__:
                raise _Misfit(f"{kind.__name__} has no {name} {item!r:.40}")
        if len(values) < len(plan_by_name):
            for name, plan in plan_by_name.items():
                if name not in values and not plan.has_default:
                    raise _Misfit(f"{kind.__name__} lacks {name}")
        return kind(**values)

    return decoded


def _has_default(spec: Field[object]) -> bool:
    return spec.default is not MISSING or spec.default_factory is not MISSING


def _object(data: object) -> dict[str, object]:
    if type(data) is not dict:
        raise _Misfit(f"expected an object, found {type(data).__name__}")
    return data


def _within(name: str, decoder: _Decoder, data: object) -> object:
    try:
        return decoder(data)
    except _Misfit as misfit:
        misfit.path.append(name)
        raise


# --- types -----------------------------------------------------------------------------------------------


def _plain(tp: Any) -> Any:
    while isinstance(tp, NewType):
        tp = tp.__supertype__
    return tp


def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    if TAG in hints:
        raise TypeError(f"{kind.__name__}.{TAG} stands in the way of the tag")
    return hints


def _members(arguments: tuple[Any, ...]) -> tuple[tuple[type, ...], Any]:
    """The dataclasses of a union, and the one other type it may hold (None: no other)."""
    plain = [_plain(argument) for argument in arguments if argument is not NoneType]
    classes = tuple(tp for tp in plain if isinstance(tp, type) and is_dataclass(tp))
    others = [tp for tp in plain if tp not in classes]
    if len(others) > 1:
        raise TypeError(f"a union of {others!r} cannot be told apart")
    return classes, others[0] if others else None
