"""
Laws of YAML with places
1. Values follow the YAML 1.2 core schema; everything in quotes is text.
2. Every key and value has the place at which it stands.
3. Any text gives a tree or problems, in bounded work; it never raises.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.flow.generated import plain_json
from tightrope.flow.places import MAX_CHARACTERS, Place, nearest, parse_yaml, unknown_key
from tightrope.model.json import Json


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("yes", "yes"),
        ("on", "on"),
        ("~", None),
        ("", None),
        ("12", 12),
        ("0o14", 12),
        ("014", 14),
        ("1_000", "1_000"),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("2024-01-02", "2024-01-02"),
        ("12:30:00", "12:30:00"),
        ("'12'", "12"),
        ("|\n  two\n  lines\n", "two\nlines\n"),
    ],
)
def test_1_core_schema(text: str, value: Json) -> None:
    placed = parse_yaml(f"a: {text}")
    assert placed.problems == ()
    assert placed.tree == {"a": value}


@given(plain_json)
@settings(deadline=None)
def test_1_json_is_yaml(value: Json) -> None:
    text = json.dumps({"a": value}, ensure_ascii=False)
    placed = parse_yaml(text)
    if not placed.problems:
        assert placed.tree == {"a": value}


def test_2_places_of_keys_and_values() -> None:
    placed = parse_yaml("a:\n  - x: 1\n    'y': [10, 20]\n")
    assert placed.place(("a", "0", "y", "1")) == Place(3, 15)
    assert placed.place(("a", "0", "y")) == Place(3, 5)
    assert placed.place(("a", "0", "x")) == Place(2, 8)
    assert placed.place(("a", "0", "x"), of_key=True) == Place(2, 5)
    assert placed.place(("a", "0", "no", "such")) == Place(2, 5)
    assert parse_yaml("").place(("a",)) is None


@pytest.mark.parametrize(
    "text",
    ["a: &x 1", "a: *x", "a: !!int 3", "? [a]\n: 1", "a: 1\n---\nb: 2", "a: .inf", "a: 1e999", "a: [",
     "\t- a", "a: \x00", 'a: "\\ud800"', "[" * 500, "- " * 500, "x" * (MAX_CHARACTERS + 1), "{a: " * 500],
)  # fmt: skip
def test_3_refused(text: str) -> None:
    placed = parse_yaml(text)
    assert placed.problems
    assert all(problem.cure and problem.line for problem in placed.problems)


@given(st.text(st.sampled_from("ab:-?[]{},'\"&*!|>#%@ \n\t~0.")))
@settings(deadline=None, max_examples=300)
def test_3_any_text_is_read_or_refused(text: str) -> None:
    placed = parse_yaml(text)
    assert all(problem.code in ("not_yaml", "duplicate_key") for problem in placed.problems)


def test_unknown_keys_name_the_nearest() -> None:
    problem = unknown_key(("tenants", "shop", "slo", "atain"), ("ttft", "attain"), "the SLO of a tenant")
    assert problem.message == '"atain" is not a key of tenants.shop.slo'
    assert problem.cause == "the SLO of a tenant knows ttft, attain"
    assert problem.cure == 'write "attain"'
    assert nearest("zzz", ("ttft",)) is None
