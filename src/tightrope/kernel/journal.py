"""The journal: every event with its time and every command, one JSON line each.

Owns the format and the replay. Where lines are kept, and what happens when the disk is full, is the driver's.
Metrics, reports and `explain` are readers of this and of nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

from tightrope.kernel.kernel import Kernel
from tightrope.kernel.state import KernelSettings
from tightrope.model.codec import decode, encode
from tightrope.model.errors import InvalidInput
from tightrope.model.messages import Command, Event

SCHEMA = "tightrope.journal/1"
HEAD_BEGINS = '{"schema":'
"""What the line of a head begins with, and no other."""


@dataclass(frozen=True, slots=True)
class Head:
    """The first line of a session: what the kernel was set to, and the wall clock (Unix seconds) at `at_s`."""

    settings: KernelSettings
    wall_s: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Gap:
    """Lines that could not be written between two moments of the kernel's clock, and how many they were."""

    from_s: float
    to_s: float
    lines: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: a moment on the kernel's clock and what happened or was asked for then.

    `wall_s` is the same moment in Unix seconds, from the head of the session.
    """

    at_s: float
    message: Event | Command
    is_command: bool
    wall_s: float = 0.0


def head_line(head: Head) -> str:
    """The first line of a session. A file may hold several, one after each start."""
    return line_of({"schema": SCHEMA, "head": encode(head)})


def gap_line(gap: Gap) -> str:
    """A declared gap."""
    return line_of({"gap": encode(gap)})


def event_line(event: Event, at_s: float) -> str:
    """What happened."""
    return line_of(event_record(event, at_s))


def command_line(command: Command, at_s: float) -> str:
    """What was asked for."""
    return line_of(command_record(command, at_s))


def event_record(event: Event, at_s: float) -> dict[str, object]:
    """The same as plain JSON values, for a writer with an encoder of its own."""
    return {"t": at_s, "event": encode(event)}


def command_record(command: Command, at_s: float) -> dict[str, object]:
    """The same as plain JSON values, for a writer with an encoder of its own."""
    return {"t": at_s, "command": encode(command)}


def read(lines: Iterable[str]) -> Iterator[Entry | Head | Gap]:
    """Everything in a journal, in order.

    A line torn by a crash (the last one, or one just before a new head) is left out; any other damage raises
    InvalidInput with the number of the line.
    """
    reader = Reader()
    for line in lines:
        item = reader.take(line)
        if item is not None:
            yield item


class Reader:
    """The same line by line, for a journal that is being written."""

    def __init__(self) -> None:
        self._number = 0
        self._offset_s = 0.0
        self._torn: InvalidInput | None = None

    def take(self, line: str) -> Entry | Head | Gap | None:
        """The next whole line; None if there is nothing in it, or if it is torn, which is forgiven before a head."""
        self._number += 1
        if not line.strip():
            return None
        torn, self._torn = self._torn, None
        try:
            item = _parsed(self._number, line, self._offset_s)
        except InvalidInput as error:
            if torn is not None:
                raise torn from None
            self._torn = error
            return None
        if isinstance(item, Head):
            self._offset_s = item.wall_s - item.at_s
        elif torn is not None:
            raise torn
        return item


def entries(lines: Iterable[str]) -> Iterator[Entry]:
    """The events and commands of a journal."""
    return (item for item in read(lines) if isinstance(item, Entry))


def _parsed(number: int, line: str, offset_s: float) -> Entry | Head | Gap:
    try:
        record = json.loads(line)
        if "head" in record:
            return _head(record)
        if "gap" in record:
            return decode(Gap, record["gap"])
        at_s: float = record["t"]
        if "event" in record:
            return Entry(at_s, decode(Event, record["event"]), False, at_s + offset_s)
        return Entry(at_s, decode(Command, record["command"]), True, at_s + offset_s)
    except (ValueError, KeyError, TypeError, InvalidInput) as error:
        raise InvalidInput(f"line {number} of the journal cannot be read: {error}") from error


def _head(record: dict[str, object]) -> Head:
    if record.get("schema") != SCHEMA:
        raise InvalidInput(f"its schema is {record.get('schema')!r}, this version reads {SCHEMA!r}")
    return decode(Head, record["head"])


def line_of(record: object) -> str:
    """A record of plain JSON values as a line."""
    return json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where a replay decided otherwise. None stands for "nothing more"."""

    at_s: float
    recorded: Command | None
    replayed: Command | None


def replay(lines: Iterable[str]) -> Difference | None:
    """Feed the recorded events to a fresh kernel; None if it gives every recorded command again, in order.

    Raises InvalidInput for a journal without its head, or with a gap, which cannot be replayed.
    """
    kernel: Kernel | None = None
    expected: list[Command] = []
    at_s = 0.0
    for item in read(lines):
        if isinstance(item, Gap):
            raise InvalidInput("the journal has a gap, so what was decided after it cannot be replayed")
        if isinstance(item, Entry) and item.is_command:
            recorded = cast(Command, item.message)
            if not expected or expected[0] != recorded:
                return Difference(item.at_s, recorded, expected[0] if expected else None)
            expected.pop(0)
            continue
        if expected:
            return Difference(at_s, None, expected[0])
        at_s = item.at_s
        if isinstance(item, Head):
            kernel = Kernel(item.settings)
        elif kernel is None:
            raise InvalidInput("the journal does not begin with its head")
        else:
            expected = kernel.handle(cast(Event, item.message), at_s)
    return Difference(at_s, None, expected[0]) if expected else None
