"""
What an emulated engine says
1. An answer has from one token to its limit, and its pieces are its text.
2. The last directive of the last message decides; one that cannot be read is refused, with an example.
3. The same prompt and seed give the same answer; filler has four bytes a token, as prompts are counted.
4. An answer to a schema fits it, or is refused with the place and the keyword.
"""

from __future__ import annotations

import json
from random import Random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tightrope.adapters.emulated_answers import Answer, answer_to, count_tokens
from tightrope.adapters.emulated_instance import instance_of
from tightrope.model.errors import InvalidInput
from tightrope.model.json import Json


def pieces(answer: Answer) -> list[str]:
    return [answer.piece(at, at + 1) for at in range(answer.tokens)]


@given(st.text(), st.integers(1, 5000), st.booleans(), st.integers(0, 9))
def test_1_an_answer_keeps_its_limit_and_is_its_pieces(
    prompt: str, limit: int, is_endless: bool, seed: int
) -> None:
    answer = answer_to(prompt.replace("<emulate", ""), limit, seed, is_endless=is_endless)
    assert 1 <= answer.tokens <= limit
    assert "".join(pieces(answer)) == answer.text
    assert not is_endless or (answer.tokens == limit and answer.is_cut)


@given(st.text(min_size=1), st.integers(1, 50), st.integers(1, 50))
def test_1_a_text_is_spread_over_its_tokens_or_cut(text: str, tokens: int, limit: int) -> None:
    escaped = text.replace("&", "&amp;").replace("'", "&apos;")
    answer = answer_to(f"<emulate tokens='{tokens}' text='{escaped}'/>", limit, 1)
    assert answer.tokens == min(tokens, limit)
    assert answer.is_cut == (tokens > limit)
    assert "".join(pieces(answer)) == answer.text
    assert text.startswith(answer.text)
    assert pieces(answer)[0]
    assert answer.is_cut or answer.text == text


def test_2_the_last_directive_decides() -> None:
    prompt = """a <emulate tokens="3"/> b <emulate tokens="8" text='{"kind": "<order>"}'/> c"""
    assert answer_to(prompt, 50, 1) == Answer('{"kind": "<order>"}', 8, is_cut=False)
    assert answer_to(prompt[:25], 50, 1).tokens == 3


def test_2_a_text_alone_has_as_many_tokens_as_it_counts() -> None:
    answer = answer_to('<emulate text="twelve bytes"/>', 50, 1)
    assert (answer.text, answer.tokens) == ("twelve bytes", 3)


@pytest.mark.parametrize(
    ("directive", "says"),
    [
        ("<emulate tokens=8/>", "cannot be read"),
        ("<emulate tokens='0'/>", "'0' in a directive is no number"),
        ("<emulate tokens='many'/>", "'many' in a directive"),
        ("<emulate tokens='1' tokens='2'/>", "cannot be read"),
        ("<emulate token='1'/>", "knows tokens and text, not token"),
        ("<emulate tokens='1'>", "does not end"),
    ],
)
def test_2_a_directive_that_is_none_is_refused(directive: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        answer_to(f"please {directive} now", 9, 1)
    assert "<emulate tokens=" in str(caught.value)


def test_3_prompt_and_seed_decide() -> None:
    answers = [[answer_to(f"question {at}", 100, seed) for at in range(50)] for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    assert 35 < fmean(answer.tokens for answer in answers[0]) < 45


def test_3_filler_counts_as_many_tokens_as_it_has() -> None:
    for answer in (answer_to(f"{at}", 3000, 1, is_endless=at % 2 == 0) for at in range(20)):
        assert count_tokens(answer.text) == answer.tokens
        assert [len(piece) for piece in pieces(answer)] == [4] * answer.tokens


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": ["a", "b"]},
        {"const": None},
        {"type": "object"},
        {},
        {
            "type": "object",
            "title": "t",
            "properties": {"a": {"type": "string"}, "b": {"type": ["integer", "null"]}, "c": {}},
            "required": ["b", "a", "d"],
        },
        {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3},
        {"type": "string", "minLength": 9},
        {"type": "string", "maxLength": 2},
        {"type": "integer", "minimum": 2.5},
        {"type": "integer", "exclusiveMaximum": -3},
        {"type": "number", "exclusiveMinimum": 0.25, "exclusiveMaximum": 0.5},
        {"anyOf": [{"type": "null"}, {"type": "string"}]},
    ],
    ids=str,
)
def test_4_an_instance_fits(schema: Json) -> None:
    assert isinstance(schema, dict)
    for seed in range(5):
        Draft202012Validator(schema).validate(instance_of(schema, Random(seed)))


def test_4_chance_chooses_among_the_values_of_an_enum() -> None:
    schema: Json = {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}}, "required": ["kind"]}
    kinds = {json.loads(answer_to(f"{at}", 50, 1, schema=schema).text)["kind"] for at in range(20)}
    assert kinds == {"a", "b"}


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (
            {"type": "object", "properties": {"a": {"pattern": "x", "type": "string"}}, "required": ["a"]},
            "schema.a: .*'pattern'",
        ),
        ({"type": "array", "items": {"type": "no"}, "minItems": 1}, "schema.items: 'no' is no type"),
        ({"$ref": "#/x"}, "ref"),
        ({"type": "integer", "minimum": 0.2, "maximum": 0.8}, "no integer is within"),
        ({"type": "array", "minItems": 10**9}, "minItems"),
        ({"enum": []}, "enum"),
        ({"anyOf": [{"type": "null"}], "minLength": 3}, "minLength"),
        ([], "a schema is a mapping"),
    ],
    ids=str,
)  # fmt: skip
def test_4_what_cannot_be_met_is_refused(schema: Json, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        instance_of(schema, Random(1))
