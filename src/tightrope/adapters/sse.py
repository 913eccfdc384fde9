"""Server-sent events, read as they arrive.

Owns the line and event rules of the format (WHATWG HTML, section 9.2) for the `data` field, which is all that
engines use. What the data means is left to the reader.
"""

from __future__ import annotations

import re

_LINE_END = re.compile(rb"\r\n|\n|\r")
FIELD, BLANK = b"data: ", b"\n\n"
"""What stands before and after the data of an event of one line."""


class EventTooLong(ValueError):
    """One event is larger than the reader may hold."""


class EventReader:
    """Cuts a byte stream into the data of its events. Bytes stay bytes, so split characters do no harm.

    Holds at most `limit_bytes` of an unfinished event.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._held_bytes = 0
        self._ended_in_cr = False

    @property
    def is_between(self) -> bool:
        """Whether the last event has ended, and the next one has not begun."""
        return not (self._held_bytes or self._line or self._data or self._ended_in_cr)

    def feed(self, received: bytes) -> list[bytes]:
        """The data of every event that `received` completes, in order. Raises EventTooLong."""
        if not (self._held_bytes or self._line or self._data):
            events = _plain_events(received, self._limit_bytes)
            if events is not None:
                self._ended_in_cr = False
                return events
        if self._ended_in_cr and received.startswith(b"\n"):
            received = received[1:]
            self._ended_in_cr = False
        if received:
            self._ended_in_cr = received.endswith(b"\r")
        *finished, rest = _LINE_END.split(received)
        events = []
        for line in finished:
            self._hold(line)
            event = self._end_line()
            if event is not None:
                events.append(event)
        self._hold(rest)
        return events

    def rest(self) -> bytes | None:
        """The data of an event whose closing blank line never came; None if there is none."""
        self._end_line()
        return self._end_event()

    def _hold(self, part: bytes) -> None:
        if not part:
            return
        self._held_bytes += len(part)
        if self._held_bytes > self._limit_bytes:
            raise EventTooLong(f"one event is longer than {self._limit_bytes} bytes")
        self._line.append(part)

    def _end_line(self) -> bytes | None:
        line = b"".join(self._line)
        self._line.clear()
        if not line:
            return self._end_event()
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        else:
            self._held_bytes -= len(line)
        return None

    def _end_event(self) -> bytes | None:
        if not self._data:
            return None
        event = b"\n".join(self._data)
        self._data.clear()
        self._held_bytes = 0
        return event


def _plain_events(received: bytes, limit_bytes: int) -> list[bytes] | None:
    """The events if they are all whole and of one line each, which is how engines send nearly every piece."""
    if not (received.startswith(FIELD) and received.endswith(BLANK)) or b"\r" in received:
        return None
    events = received[len(FIELD) : -len(BLANK)].split(BLANK + FIELD)
    if received.count(b"\n") != len(BLANK) * len(events) or len(received) > limit_bytes:
        return None
    return events
