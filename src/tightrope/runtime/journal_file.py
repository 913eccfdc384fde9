"""The journal on disk: appended, flushed at the end of every turn, and never in the way of serving.

A disk that refuses is a declared gap, not an outage: lines that could not be written are counted, and the
count is written when the disk takes lines again.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from tightrope.kernel.journal import Gap, Head, command_record, event_record, gap_line, head_line, line_of
from tightrope.model.messages import Command, Event

SYNC_EVERY_S = 1.0


class JournalFile:
    """An append-only file of one session after another. `lost_lines` counts what the disk refused."""

    def __init__(self, path: Path, head: Head) -> None:
        self.path = path
        self.lost_lines = 0
        self._unwritten_head = head_line(head)
        self._pending: list[bytes] = []
        self._gap: Gap | None = None
        self._synced_s = head.at_s
        self._file: int | None = None

    def event(self, event: Event, at_s: float) -> None:
        """Note what happened."""
        self._pending.append(_line(event_record(event, at_s)))

    def command(self, command: Command, at_s: float) -> None:
        """Note what was asked for."""
        self._pending.append(_line(command_record(command, at_s)))

    def flush(self, at_s: float) -> None:
        """Hand everything noted so far to the operating system; it survives the end of this process then."""
        if not self._pending and self._gap is None:
            return
        lines, self._pending = self._pending, []
        try:
            self._write(lines)
        except OSError:
            earlier = self._gap or Gap(at_s, at_s, 0)
            self._gap = Gap(earlier.from_s, at_s, earlier.lines + len(lines))
            self.lost_lines += len(lines)
            self._close()
            return
        self._gap = None
        if at_s - self._synced_s >= SYNC_EVERY_S:
            self._synced_s = at_s
            self._sync()

    def close(self) -> None:
        """Make everything durable and give the file back."""
        if self._file is not None:
            _fsync(self._file)
        self._close()

    def _write(self, lines: list[bytes]) -> None:
        if self._file is None:
            self._file = _open(self.path)
        gap = gap_line(self._gap) if self._gap is not None else ""
        data = b"".join([self._unwritten_head.encode(), gap.encode(), *lines])
        start = os.lseek(self._file, 0, os.SEEK_END)
        while data:
            try:
                data = data[os.write(self._file, data) :]
            except OSError:
                _cut(self._file, start)
                raise
        self._unwritten_head = ""

    def _sync(self) -> None:
        """fsync on another thread: the kernel never waits for the disk."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if self._file is None:
            return
        with suppress(OSError):
            loop.run_in_executor(None, _fsync, os.dup(self._file), True)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _line(record: dict[str, object]) -> bytes:
    try:
        return msgspec.json.encode(record) + b"\n"
    except UnicodeEncodeError:
        # Half of a surrogate pair can be in a message; only the escapes of the standard library can say it.
        return line_of(record).encode()


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.lseek(file, 0, os.SEEK_END)
        if size and os.pread(file, 1, size - 1) != b"\n":
            os.write(file, b"\n")
    except OSError:
        os.close(file)
        raise
    return file


def _cut(file: int, size: int) -> None:
    """Take back a line that was written in part."""
    try:
        os.ftruncate(file, size)
    except OSError:
        return


def _fsync(file: int, is_ours: bool = False) -> None:
    """fsync, silently where the file cannot (a pipe, a device); closes the descriptor if it is ours."""
    try:
        os.fsync(file)
    except OSError:
        pass
    finally:
        if is_ours:
            os.close(file)
