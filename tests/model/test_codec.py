"""Laws of the codec

1. Every event and every command survives encode, JSON text and decode unchanged.
2. What is encoded is plain JSON: no infinity, no NaN, no enum.
3. Encoding what was decoded gives the same text, so a journal that is read and written again is the same.
4. Data that does not fit is refused with the path to the place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum, StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, NewType, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tightrope.model.codec import decode, encode
from tightrope.model.errors import InvalidInput
from tightrope.model.fleet import FleetPlan, ReplicaSpec
from tightrope.model.ids import AcceleratorName, ModelName, ReplicaId, RunId, TenantId, WorkflowId
from tightrope.model.messages import (
    Command,
    Event,
    FirstToken,
    FleetPlanned,
    RunSubmitted,
    Wake,
    WakeAt,
    WakeKind,
)
from tightrope.model.profile import Coefficients, FitError, Profile
from tightrope.model.slo import Slo


@cache
def values(tp: Any) -> st.SearchStrategy[Any]:
    """Any value of a type of the vocabulary; numbers may be infinite, and whole where a float is meant."""
    while isinstance(tp, NewType):
        tp = tp.__supertype__
    origin, arguments = get_origin(tp), get_args(tp)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values(arguments[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, arguments))
    if origin in (Union, UnionType):
        return st.one_of(*map(values, arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if is_dataclass(tp):
        hints = get_type_hints(tp)
        return st.fixed_dictionaries({spec.name: values(hints[spec.name]) for spec in fields(tp)}).map(
            lambda found: tp(**found)  # type: ignore[operator]
        )
    if isinstance(tp, type) and issubclass(tp, Enum):
        return st.sampled_from(list(tp))
    return PLAIN[tp]


PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    NoneType: st.none(),
    bool: st.booleans(),
    int: st.integers(),
    float: st.floats(allow_nan=False) | st.integers(0, 100),
    str: st.text(max_size=10),
}

messages = st.sampled_from(get_args(Event) + get_args(Command)).flatmap(values)
relaxed = settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=60)


def through_text(value: object) -> object:
    return json.loads(json.dumps(encode(value), allow_nan=False))


@relaxed
@given(messages)
def test_1_messages_survive(message: Event | Command) -> None:
    assert decode(Event | Command, through_text(message)) == message


@relaxed
@given(messages)
def test_2_only_plain_json_comes_out(message: Event | Command) -> None:
    assert_plain(encode(message))


def assert_plain(data: object) -> None:
    assert type(data) in (dict, list, str, int, float, bool, type(None))
    if isinstance(data, float):
        assert math.isfinite(data)
    for item in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        assert_plain(item)


@relaxed
@given(messages)
def test_3_reading_and_writing_again_changes_nothing(message: Event | Command) -> None:
    text = json.dumps(encode(message))
    assert json.dumps(encode(decode(Event | Command, json.loads(text)))) == text


def test_every_message_class_is_reachable_by_its_name() -> None:
    names = [kind.__name__ for kind in get_args(Event) + get_args(Command)]
    assert len(set(names)) == len(names)


def test_infinity_and_nan_are_words() -> None:
    at = WakeAt(math.inf, Wake(WakeKind.LEARN, "x"))
    assert encode(at) == {"type": "WakeAt", "at_s": "inf", "wake": {"kind": "learn", "subject": "x"}}
    assert decode(WakeAt, encode(at)) == at
    nan = decode(WakeAt, encode(WakeAt(math.nan, Wake(WakeKind.LEARN, "x"))))
    assert math.isnan(nan.at_s)


def test_a_whole_number_stays_whole() -> None:
    assert repr(decode(WakeAt, through_text(WakeAt(3, Wake(WakeKind.LEARN, "")))).at_s) == "3"


def test_lists_of_messages_are_encoded_one_by_one() -> None:
    spec = ReplicaSpec(ReplicaId("a-1"), ModelName("a"), AcceleratorName("cpu"))
    assert encode([FleetPlanned(FleetPlan((spec,)))]) == [encode(FleetPlanned(FleetPlan((spec,))))]


def test_what_is_missing_takes_its_default() -> None:
    data = encode(Profile(ModelName("m"), AcceleratorName("cpu"), Coefficients(1, 2, 3, 4, 5), 512, 4, 2048))
    assert isinstance(data, dict)
    del data["engine"], data["error"]
    profile = decode(Profile, data)
    assert (profile.engine, profile.error) == ("", None)


def test_an_optional_class_is_read_without_a_tag() -> None:
    error = FitError(0.1, 0.2, 0.3, 40)
    profile = Profile(ModelName("m"), AcceleratorName("c"), Coefficients(1, 2, 3, 4, 5), 1, 1, 1, error=error)
    assert decode(Profile, through_text(profile)).error == error


def submitted() -> dict[str, Any]:
    event = RunSubmitted(RunId("r"), TenantId("t"), WorkflowId("w"), Slo(ttft_s=1), 30.0, True)
    return dict(encode(event))  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.update(deadline_s="soon"), "deadline_s"),
        (lambda data: data.update(deadline_s=True), "deadline_s"),
        (lambda data: data.update(is_streamed=1), "is_streamed"),
        (lambda data: data["slo"].update(ttft_s=[]), "slo.ttft_s"),
        (lambda data: data["slo"].update(speed=1), "slo"),
        (lambda data: data.pop("run"), "lacks run"),
        (lambda data: data.update(colour="red"), "colour"),
        (lambda data: data.update(type="Nothing"), "none of"),
        (lambda data: data.update(type=["RunSubmitted"]), "none of"),
        (lambda data: data.pop("type"), "none of"),
    ],
)
def test_4_misfits_are_refused_with_their_place(
    change: Callable[[dict[str, Any]], object], says: str
) -> None:
    data = submitted()
    change(data)
    with pytest.raises(InvalidInput, match=says):
        decode(Event, data)


@pytest.mark.parametrize(
    "data", [None, 3, "x", [], [{}], {}, {"type": {}}, {"type": "FirstToken", "call": None}]
)
def test_4_things_that_are_no_message_are_refused(data: object) -> None:
    with pytest.raises(InvalidInput):
        decode(Event, data)


def test_the_tag_of_a_single_class_must_be_its_own() -> None:
    with pytest.raises(InvalidInput, match="FirstToken has no type"):
        decode(FirstToken, {"type": "CallDone", "call": "x"})


class Colour(StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("tp", "data"),
    [
        (tuple[int, str], [1]),
        (tuple[int, ...], {"0": 1}),
        (tuple[int, ...], [1, "2"]),
        (dict[str, int], {"a": None}),
        (bytes, "not base64!"),
        (Colour, "blue"),
        (Colour, ["red"]),
        (int | None, "1"),
    ],
)
def test_4_plain_types_are_checked(tp: object, data: object) -> None:
    with pytest.raises(InvalidInput):
        decode(tp, data)


def test_the_vocabulary_has_no_type_the_codec_cannot_hold() -> None:
    for kind in get_args(Event) + get_args(Command):
        assert is_dataclass(kind)
        assert fields(kind) is not None
    with pytest.raises(TypeError, match="cannot be told apart"):
        decode(int | str, 1)
    with pytest.raises(TypeError, match="not part of the vocabulary"):
        encode(object())
