"""
Laws of guards
1. A guard gives the truth of CEL for finished results, or InvalidInput that names it.
2. `reads` is exactly what evaluation needs: with those names given, nothing is undefined.
3. What is not a pure, bounded comparison is refused when the guard is compiled, with position and cure.
4. Any text compiles or is refused with InvalidInput; any data gives a boolean or InvalidInput.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.flow.generated import plain_json
from tightrope.flow.guards import MAX_CHARACTERS, compile_guard
from tightrope.model.errors import InvalidInput
from tightrope.model.json import Json


@pytest.mark.parametrize(
    ("text", "values", "truth"),
    [
        (
            'intent.kind == "order" && input.customer != ""',
            {"intent": {"kind": "order"}, "input": {"customer": "7"}},
            True,
        ),
        (
            'intent.kind == "order" && input.customer != ""',
            {"intent": {"kind": "order"}, "input": {"customer": ""}},
            False,
        ),
        ("a > 3", {"a": 3.5}, True),
        ('a in ["x", "y"]', {"a": "y"}, True),
        ("has(a.b)", {"a": {}}, False),
        ("a == null", {"a": None}, True),
        ('a["b-c"] == 1', {"a": {"b-c": 1}}, True),
        ("hits.exists(hit, hit.score > limit)", {"hits": [{"score": 1}, {"score": 9}], "limit": 5}, True),
        ("hits.all(hit, hit > 1) || !(size(hits) == 2)", {"hits": [1, 2]}, False),
        ("a.matches('^(x+x+)+y$')", {"a": "x" * 5000}, False),
        ("a // a comment with 'quotes' and names\n == 1", {"a": 1}, True),
    ],
)
def test_1_examples(text: str, values: dict[str, Json], truth: bool) -> None:
    assert compile_guard(text).evaluate(values) is truth


@pytest.mark.parametrize(
    ("text", "values", "said"),
    [
        ("a.b == 1", {"a": {}}, "there is no field 'b'"),
        ("a == 1", {}, "'a' has no value"),
        ("a", {"a": "yes"}, "str, not true or false"),
        ("a + 1 > 2", {"a": 1.5}, "Unsupported operation"),
        ("a / 0 == 1", {"a": 1}, "division by zero"),
        ("a.contains('x')", {"a": 7}, "'contains' does not fit"),
        ("a == b", {"a": "\ud800", "b": 1}, "Failed to convert"),
    ],
)
def test_1_what_has_no_answer_names_the_guard(text: str, values: dict[str, Json], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        compile_guard(text).evaluate(values)
    assert said in str(caught.value)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ('intent.kind == "order" && input.customer != ""', ("intent", "input")),
        ("'in \"text\" a.b' == r'\\d c' || d", ("d",)),
        ("hits.exists(x, x.y == z) && x", ("hits", "z", "x")),
        ("size(a.b.c) > int(d[e.f])", ("a", "d", "e")),
        ("has(a.b) ? c : a.d", ("a", "c")),
        ("true && null == a // b", ("a",)),
    ],
)
def test_2_reads_are_found(text: str, reads: tuple[str, ...]) -> None:
    assert compile_guard(text).reads == reads


def test_2_fields_are_the_ways_into_what_is_read() -> None:
    guard = compile_guard("intent.kind.size() > 1 && input.customer == a[0].b")
    assert guard.fields == (("intent", "kind"), ("input", "customer"), ("a",))


@pytest.mark.parametrize(
    ("text", "position", "said"),
    [
        ("a ==", 5, "brackets, quotes and operators"),
        ("a == 'x", 6, "no meaning"),
        ("(a", 3, "missing ')'"),
        ("now() > 1", 1, "cannot call 'now'"),
        ("a.map(x, x) == a", 3, "cannot call 'map'"),
        ("a.filter(x, x) == a", 3, "cannot call 'filter'"),
        ("__import__('os')", 1, "cannot call '__import__'"),
        ("a.exists(x, a.exists(y, y == x))", 15, "inside another"),
        ("a.exists(1, true)", 3, "needs a name and a condition"),
        ("a.exists(input, input == 1)", 10, "cannot name an item"),
        ("a.matches(b)", 3, "as one string"),
        ("a.exists(x, x.matches('y'))", 15, "as one string"),
        ("{'a': 1}.a == 1", 1, "no meaning"),
        (".a == 1", 1, "nothing before it"),
        ("1 in .a", 6, "nothing before it"),
        ("", 1, "brackets"),
    ],
)
def test_3_refused_with_position_and_cure(text: str, position: int, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        compile_guard(text)
    assert f"at character {position}:" in str(caught.value)
    assert said in str(caught.value)
    assert "; " in str(caught.value)


def test_3_a_long_guard_is_refused() -> None:
    with pytest.raises(InvalidInput, match="code node"):
        compile_guard("a == 1 || " * MAX_CHARACTERS + "true")


def test_3_too_much_data_is_refused_instead_of_compared() -> None:
    hits: Json = list(range(10_000))
    with pytest.raises(InvalidInput, match="too much data"):
        compile_guard("hits.all(x, x in hits)").evaluate({"hits": hits})
    assert compile_guard("hits.all(x, x < 10000)").evaluate({"hits": hits})


def test_3_deep_data_is_refused() -> None:
    deep: Json = 1
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InvalidInput, match="nested deeper"):
        compile_guard("a == 1").evaluate({"a": deep})


pieces = st.sampled_from(
    [
        *"a b input .x .y .size() .contains('q') .matches('(x+x+)+y') has( int( string( size(".split(),
        *"( ) [ ] { ? : + -".split(),
        *"1 -1 9223372036854775807 0 2.5 1u 's' \"t\" r'\\d' 0x1F 1e400".split(),
        *"== != < && || * / % ! in null true , . //".split(),
        ".exists(i,",
        "i.all(i,",
        "\n",
    ]
)


@given(st.lists(pieces, min_size=1, max_size=12).map(" ".join) | st.text(max_size=40), plain_json, plain_json)
@settings(deadline=None, max_examples=250)
def test_2_4_any_text_and_any_data_end_in_an_answer_or_invalid_input(text: str, one: Json, two: Json) -> None:
    assert _answer(text, one, two) in ("true", "false", "refused")


def _answer(text: str, one: Json, two: Json) -> str:
    try:
        guard = compile_guard(text)
        truth = guard.evaluate({name: two if index else one for index, name in enumerate(guard.reads)})
    except InvalidInput as error:
        return "undefined" if "Undefined variable" in str(error) else "refused"
    return {True: "true", False: "false"}[truth]
