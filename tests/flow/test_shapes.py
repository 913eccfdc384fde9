"""
Laws of shapes
1. The short form and JSON Schema say the same, and what is written is read as the same schema.
2. An answer that fits is returned as it is; `check` says whether it had to be repaired.
3. What `check` returns fits the schema, and checking it again changes nothing.
4. For any text and any accepted schema `check` returns or raises InvalidInput, in bounded work.
5. What is not supported in a schema is refused with its place and a cure.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.flow.generated import plain_json, shapes
from tightrope.flow.repair import MAX_DEPTH
from tightrope.flow.shapes import MAX_ANSWER_CHARACTERS, check, check_schema, schema_of, short_form
from tightrope.model.errors import InvalidInput
from tightrope.model.json import Json

KIND = schema_of({"kind": {"enum": ["order", "browse", "chat"]}})
NOTES = schema_of({"notes": [str]})
MIXED = schema_of({"count": int, "price": float, "ok": bool, "name": str, "tags": [str]})
schemas = shapes.filter(lambda shape: shape is not None)


def test_1_the_short_form_closes_every_mapping() -> None:
    assert json.loads(schema_of({"batches": [{"items": ["string"]}]})) == {
        "type": "object",
        "properties": {
            "batches": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"items": {"type": "array", "items": {"type": "string"}}},
                    "required": ["items"],
                    "additionalProperties": False,
                },
            }
        },
        "required": ["batches"],
        "additionalProperties": False,
    }


def test_1_python_types_say_what_names_say() -> None:
    named = {"count": "integer", "price": "number", "ok": "boolean", "name": "string", "tags": ["string"]}
    assert schema_of(named) == MIXED
    assert short_form(MIXED) == named


@given(schemas)
@settings(deadline=None)
def test_1_what_is_written_is_read_as_the_same_schema(schema: str) -> None:
    assert schema_of(short_form(schema)) == schema


def test_1_a_field_may_be_called_enum_or_schema_in_the_full_form() -> None:
    full: Json = {
        "type": "object",
        "properties": {"enum": {"type": "array", "items": {"type": "string"}}, "schema": {"type": "string"}},
        "required": ["enum", "schema"],
        "additionalProperties": False,
    }
    schema = schema_of({"schema": full})
    assert json.loads(schema) == full
    assert schema_of(short_form(schema)) == schema


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ('```json\n{"kind": "browse"}\n```', KIND, {"kind": "browse"}),
        ('Sure! Here it is: {"kind": "browse"}. Anything else?', KIND, {"kind": "browse"}),
        ('{"kind": "order"} {"kind": "browse"}', KIND, {"kind": "order"}),
        ('{"kind": "Order"}', KIND, {"kind": "order"}),
        ('{"KIND": " order. "}', KIND, {"kind": "order"}),
        ("browse", KIND, {"kind": "browse"}),
        ('"Chat."', KIND, {"kind": "chat"}),
        ("{kind: order", KIND, {"kind": "order"}),
        ('{"kind": "order", "why": "asked"}', KIND, {"kind": "order"}),
        ('["a", "b"]', NOTES, {"notes": ["a", "b"]}),
        ('{"notes": "only one"}', NOTES, {"notes": ["only one"]}),
        ('{"notes": ["cut off here', NOTES, {"notes": ["cut off here"]}),
        ("{'notes': ['a', 'b',]}", NOTES, {"notes": ["a", "b"]}),
        (
            '{"count": "3", "price": "2.5", "ok": "True", "name": 7, "tags": [1]}',
            MIXED,
            {"count": 3, "price": 2.5, "ok": True, "name": "7", "tags": ["1"]},
        ),
        ("The answer: [1, 2", schema_of([int]), [1, 2]),
        (" 42 ", schema_of("integer"), 42),
        ("Yes", schema_of("boolean"), True),
    ],
)
def test_2_repaired(text: str, schema: str, value: Json) -> None:
    found, was_repaired = check(text, schema)
    assert found == value
    assert was_repaired or json.loads(text) == value


@pytest.mark.parametrize(
    ("text", "schema", "said"),
    [
        ("", KIND, "no JSON"),
        ("I cannot say.", NOTES, "no JSON"),
        ('{"kind": "refund"}', KIND, "kind: 'refund' is not one of"),
        ('{"note": []}', NOTES, "'notes' is a required property"),
        (
            '{"count": "many", "price": 1, "ok": true, "name": "", "tags": []}',
            MIXED,
            "count: 'many' is not of type",
        ),
        ("NaN", schema_of("number"), "the value"),
        ("x" * (MAX_ANSWER_CHARACTERS + 1), KIND, "characters"),
    ],
)
def test_2_beyond_repair_it_says_what_is_wrong(text: str, schema: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check(text, schema)
    assert said in str(caught.value)


@given(schemas, plain_json)
@settings(deadline=None)
def test_2_what_fits_is_returned_as_it_is(schema: str, value: Json) -> None:
    text = json.dumps(value)
    if Draft202012Validator(json.loads(schema)).is_valid(value):
        assert check(text, schema) == (value, False)


noisy = st.lists(
    st.sampled_from(
        [
            '{"kind":',
            '"order"',
            "}",
            "{",
            "[",
            "]",
            ",",
            ":",
            "```json\n",
            "```",
            "\\",
            "\\ud800",
            "notes",
            "'",
            "1e999",
            "null",
            "//",
            "\n",
        ]
    )
    | st.text(max_size=8),
    max_size=12,
).map("".join)


@given(noisy | st.text(max_size=60) | plain_json.map(json.dumps), schemas)
@settings(deadline=None, max_examples=150)
def test_3_4_any_text_fits_after_check_or_is_refused(text: str, schema: str) -> None:
    try:
        value, _ = check(text, schema)
    except InvalidInput:
        return
    assert Draft202012Validator(json.loads(schema)).is_valid(value)
    assert check(json.dumps(value, ensure_ascii=False), schema) == (value, False)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize(
    "piece", ["[", "{", '{"a":', "```", "``` ", "\\", '"', "[{", "[1,", " ", "```json\t"]
)
def test_4_long_nonsense_is_refused_in_bounded_work(piece: str) -> None:
    for length in (MAX_DEPTH * 4, MAX_ANSWER_CHARACTERS):
        with pytest.raises(InvalidInput):
            check((piece * length)[:MAX_ANSWER_CHARACTERS], KIND)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({"a": "strin"}, "out.a: 'strin' is not a type; write \"string\""),
        ({"a": ["string", "string"]}, "exactly one type"),
        ({"a": {"enum": []}}, "at least one value"),
        ({"a": {"enum": ["x", "x"]}}, "each once"),
        ({}, "not a shape"),
        ("string", "leave `out` away"),
        ({"a": object()}, "not a shape"),
        ({"schema": {"type": "object", "patternProperties": {}}}, "not supported; write"),
        ({"schema": {"type": "string", "pattern": "(a+)+$"}}, "'pattern' is not supported"),
        ({"schema": {"$ref": "http://example.com/x"}}, "'$ref' is not supported"),
        ({"schema": {"type": "strang"}}, "not valid"),
        ({"schema": {"properties": {"a": {"items": {"not": {}}}}}}, "schema.a.items: the keyword 'not'"),
    ],
)
def test_5_refused_with_place_and_cure(shape: object, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        schema_of(shape)
    assert said in str(caught.value)


@given(plain_json.map(json.dumps) | st.text(max_size=40))
@settings(deadline=None)
def test_5_any_text_is_a_schema_or_refused(text: str) -> None:
    try:
        check_schema(text)
    except InvalidInput:
        return
    check("{}", '{"type": "object"}')
