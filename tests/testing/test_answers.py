"""Laws of the answers made from a prompt

1. The same prompt, limit and schema give the same answer.
2. The pieces joined are the text, and there are never more of them than the limit.
3. An answer to a schema follows it.
"""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightrope.model.workflow import problems
from tightrope.testing import ManualClock, a_chain, a_node, answer_to

SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}, "b": {"type": "boolean"}}},
    {"type": "array", "items": {"type": "string"}, "minItems": 3, "maxItems": 4},
    {"enum": ["x", 1, None]},
    {"const": {"a": 1}},
    {"anyOf": [{"type": "null"}, {"type": "number", "maximum": -2}]},
    {"type": ["string", "null"]},
    {"type": "number", "maximum": 4},
    {},
]


@given(st.text(), st.integers(1, 40))
def test_1_2_answers_are_repeatable_and_bounded(prompt: str, limit: int) -> None:
    answer = answer_to(prompt, limit)
    assert answer == answer_to(prompt, limit)
    assert 1 <= len(answer.pieces) <= limit
    assert answer.text == "".join(answer.pieces)
    assert answer_to(prompt, 100).text.startswith(answer.text)
    assert answer.is_cut == (answer_to(prompt, 100).text != answer.text)


@given(st.text(), st.sampled_from(SCHEMAS))
def test_3_an_answer_to_a_schema_follows_it(prompt: str, schema: dict[str, object]) -> None:
    jsonschema.validate(json.loads(answer_to(prompt, 1000, json.dumps(schema)).text), schema)


def test_a_schema_that_is_not_understood_is_refused() -> None:
    with pytest.raises(ValueError, match="no instance can be made"):
        answer_to("x", 10, '{"not": {}}')


@pytest.mark.parametrize("ids", [(), ("only",), ("a", "b", "c")])
def test_a_chain_is_a_sound_workflow(ids: tuple[str, ...]) -> None:
    assert problems(a_chain(*ids)) == []


def test_a_node_reads_what_it_names() -> None:
    assert [name for name, _ in a_node(reads=("input.question", "draft")).inputs] == ["question", "draft"]


def test_a_clock_never_goes_back() -> None:
    clock = ManualClock(5.0)
    assert (clock.advance(1.5), clock.now()) == (6.5, 6.5)
    with pytest.raises(ValueError, match="never goes back"):
        clock.advance(-0.1)
