"""
Laws of templates
1. `{{ name }}` is replaced by the input; all other text stays as it is.
2. What is inserted is never scanned again, whatever it holds.
3. Anything else between double braces, and an unknown name, is refused with a cure.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.flow.generated import plain_json
from tightrope.flow.templates import as_text, names_in, render
from tightrope.model.errors import InvalidInput
from tightrope.model.json import Json


@given(st.text(), st.text(), plain_json)
def test_1_2_only_the_named_hole_is_filled(before: str, after: str, value: Json) -> None:
    before, after = before.replace("{", ""), after.replace("{", "")
    assert render(before + "{{ x }}" + after, {"x": value}) == before + as_text(value) + after


@pytest.mark.parametrize("data", ["{{ x }}", "{{ secret }}", "{% if x %}", "{{", "\\g<0>", "\\1"])
def test_2_inserted_data_stays_data(data: str) -> None:
    assert render("a {{ x }} b {{x}}", {"x": data, "secret": "s"}) == f"a {data} b {data}"


def test_1_values_read_well() -> None:
    assert as_text(None) == ""
    assert as_text("as it is\n") == "as it is\n"
    assert as_text(True) == "true"
    assert as_text(["one", "two\nlines", ["x"]]) == '- one\n- two\n  lines\n- ["x"]'
    assert as_text({"title": "tea", "sizes": [1, 2]}) == "title: tea\nsizes: [1, 2]"


def test_1_single_braces_mean_nothing() -> None:
    text = '{"a": {"b": "{ name }"}} {{ x }}'
    assert names_in(text) == ("x",)
    assert render(text, {"x": 1}) == '{"a": {"b": "{ name }"}} 1'


def test_1_a_hole_may_stand_in_braces() -> None:
    assert render("{{{ x }}}", {"x": 1}) == "{1}"


@pytest.mark.parametrize(
    "text", ["{{ a.b }}", "{{ a | b }}", "{{ f() }}", "{{ }}", "{{", "x\n{{ 1a }}", "{{ a\n}}"]
)
def test_3_anything_else_between_braces_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="Name an input"):
        names_in(text)


def test_3_an_unknown_name_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'y', which is not given"):
        render("{{ x }} {{ y }}", {"x": 1})
