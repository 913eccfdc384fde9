"""Law of the events of an engine: what a piece says does not depend on the events before it."""

from __future__ import annotations

import json

from hypothesis import example, given
from hypothesis import strategies as st

from tightrope.adapters.engine_openai import _Chunks
from tightrope.model.errors import EngineFailed
from tightrope.ports import Chunk, EngineRequest

REQUEST = EngineRequest("small", 8, prompt="x")

TEXTS = st.sampled_from(["", "a", "\u00e9]", '"choices":[]', "}", "\\"])
CHOICES = st.lists(
    st.fixed_dictionaries(
        {"index": st.integers(0, 1), "finish_reason": st.sampled_from([None, "stop"])},
        optional={"text": TEXTS, "delta": st.fixed_dictionaries({}, optional={"content": TEXTS})},
    ),
    max_size=2,
)
EXTRAS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["1", "2"]),
        "usage": st.sampled_from([None, {"prompt_tokens": 3, "completion_tokens": 2}]),
        "error": st.sampled_from([None, {"message": "no"}]),
        "own": st.sampled_from([{"choices": []}, [{"choices": [{"index": 0, "text": "b"}]}], "choices"]),
    },
)
Event = tuple[dict[str, object], str, list[object], tuple[str, str]]

EVENTS = st.tuples(
    EXTRAS, st.sampled_from(["first", "last", "none"]), CHOICES, st.sampled_from([(",", ":"), (", ", ": ")])
)


def written(event: Event) -> bytes:
    extras, place, choices, separators = event
    own = {} if place == "none" else {"choices": choices}
    whole = {**own, **extras} if place == "first" else {**extras, **own}
    return json.dumps(whole, separators=separators).encode()


def said(chunks: _Chunks, event: bytes) -> Chunk | str:
    try:
        return chunks.read(event)
    except EngineFailed as failed:
        return str(failed)


@given(st.lists(EVENTS, max_size=6))
@example(
    [
        ({"own": {"choices": []}}, "last", [], (",", ":")),
        ({"own": {"choices": []}}, "last", [{"index": 0, "finish_reason": None, "text": "a"}], (",", ":")),
    ]
)
def test_a_piece_is_the_same_after_any_other(
    events: list[Event],
) -> None:
    chunks = _Chunks(REQUEST)
    for event in map(written, events):
        assert said(chunks, event) == said(_Chunks(REQUEST), event)


@given(EVENTS, st.binary(max_size=12), st.integers(0, 40))
def test_nonsense_after_sense_is_nonsense(event: Event, junk: bytes, at: int) -> None:
    chunks = _Chunks(REQUEST)
    whole = written(event)
    said(chunks, whole)
    damaged = whole[:at] + junk + whole[at:]
    assert said(chunks, damaged) == said(_Chunks(REQUEST), damaged)
