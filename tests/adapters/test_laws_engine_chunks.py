"""Law of the events of an engine: what a piece says does not depend on the events before it."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tightrope.adapters.engine_openai import _Answer, _Chunks
from tightrope.model.errors import EngineFailed
from tightrope.ports import Chunk, EngineRequest

REQUEST = EngineRequest("small", 8, prompt="x")

TEXTS = st.sampled_from(
    ["", "a", "another text", "\u00e9]", '"choices":[]', "}", "\\", "\n", "\x7f", "\u2028"]
)
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


@given(
    EXTRAS,
    st.sampled_from([{}, {"logprobs": None}, {"text": "b"}, {"content": "b"}, {"delta": {"content": "c"}}]),
    st.sampled_from(["content", "text"]),
    st.lists(TEXTS, max_size=8),
    st.booleans(),
    st.lists(st.integers(1, 400), max_size=12),
)
def test_a_piece_is_the_same_however_its_bytes_arrive(
    extras: dict[str, object],
    beside: dict[str, object],
    name: str,
    texts: list[str],
    is_ascii: bool,
    cuts: list[int],
) -> None:
    events = [
        json.dumps(
            {
                **{key: value for key, value in extras.items() if key in ("id", "own")},
                "choices": [
                    {
                        "index": 0,
                        **beside,
                        **({"text": text} if name == "text" else {"delta": {"content": text}}),
                    }
                ],
            },
            ensure_ascii=is_ascii,
        ).encode()
        for text in texts
    ]
    alone = [_Chunks(REQUEST).read(event) for event in events]
    whole = [b"data: %b\n\n" % event for event in events]
    assert taken(whole) == alone
    stream, parts = b"".join(whole), []
    for cut in cuts:
        parts.append(stream[:cut])
        stream = stream[cut:]
    assert taken([*(part for part in parts if part), stream]) == alone


@pytest.mark.parametrize(
    "junk", [b"\x01", b"\xff", b'"', b"\\q"], ids=["control", "no-utf8", "quote", "escape"]
)
def test_a_text_that_is_no_json_is_nonsense_after_sense_too(junk: bytes) -> None:
    event = b'data: {"choices":[{"index":0,"delta":{"content":"a%bb"}}]}\n\n'
    with pytest.raises(EngineFailed, match="no piece of an answer"):
        taken([event % b"", event % b"c", event % b"d", event % junk])


def taken(parts: list[bytes]) -> list[Chunk]:
    """What the reader of an answer is given."""
    found: list[Chunk] = []
    answer = _Answer(REQUEST, found.extend)
    answer.head(200, "text/event-stream")
    for part in parts:
        assert answer.body(part) is None
    return found
