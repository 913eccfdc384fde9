"""Laws of the event reader

1. However a stream is cut, the same events come out.
2. Line ends are CR, LF or CRLF, and make no difference.
3. An unfinished event never holds more than the limit.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightrope.adapters.sse import EventReader, EventTooLong

STREAM = ": ping\n\ndata: ä\n\ndata:1\ndata: 2\nid: 5\n\nevent: x\n\nretry\ndata\n\ndata:  two blanks \n\n".encode()
EVENTS = ["ä".encode(), b"1\n2", b"", b" two blanks "]


def read(parts: list[bytes]) -> list[bytes]:
    reader = EventReader(100)
    return [event for part in parts for event in reader.feed(part)]


@given(
    st.lists(st.integers(0, len(STREAM)), max_size=8).map(sorted), st.sampled_from([b"\n", b"\r\n", b"\r"])
)
def test_1_2_cuts_and_line_ends_make_no_difference(cuts: list[int], line_end: bytes) -> None:
    stream = STREAM.replace(b"\n", line_end)
    places = [0, *cuts, len(stream)]
    assert read([stream[start:end] for start, end in pairwise(places)]) == EVENTS


def test_2_a_line_end_cut_in_two_is_one_line_end() -> None:
    assert read([b"data: 1\r", b"\ndata: 2\r\n\r", b"\n"]) == [b"1\n2"]


def test_3_a_long_event_is_refused_even_in_small_pieces() -> None:
    reader = EventReader(100)
    for _ in range(6):
        assert reader.feed(b"data: 0123456789\n") == []
    with pytest.raises(EventTooLong):
        reader.feed(b"data: 0123456789\n")


def test_3_many_short_events_and_comments_are_no_long_event() -> None:
    reader = EventReader(100)
    assert len([event for _ in range(50) for event in reader.feed(b": ping ping ping\ndata: 012\n\n")]) == 50


def test_what_the_end_cut_off_is_kept_apart() -> None:
    reader = EventReader(100)
    assert reader.feed(b"data: 1\n\ndata: [DO") == [b"1"]
    assert reader.feed(b"NE]") == []
    assert reader.rest() == b"[DONE]"
    assert reader.rest() is None
