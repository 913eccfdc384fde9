"""`top`: how things stand now, read from the journal, once or as it grows.

Owns following the file and drawing what was read; what the lines mean is `reports/top.py`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tightrope.app.cli.frame import Answer, Common
from tightrope.app.config import load_config
from tightrope.kernel.journal import HEAD_BEGINS, Reader
from tightrope.model.errors import NotFound
from tightrope.reports.top import Follower, Top, as_json
from tightrope.reports.top_text import render

REFRESH_S = 1.0
PIECE_BYTES = 1 << 20
"""So much is read at a time."""


def run(common: Common, *, journal: Path | None, is_once: bool) -> Answer:
    """The verb: once, or until Ctrl-C. What is no terminal, and --json, get one look."""
    file = journal or load_config(common.config).journal.path
    console = Console(stderr=True)
    followed = Followed(file)
    try:
        followed.read()
        if is_once or common.as_json or not console.is_terminal:
            top = followed.top(None)
            return Answer(as_json(top), render(top))
        _watch(followed, console)
        return Answer()
    finally:
        followed.close()


def _watch(followed: Followed, console: Console) -> None:
    with Live(console=console, auto_refresh=False, screen=True) as live:
        watch(followed, lambda text: live.update(Text(text), refresh=True), lambda: time.sleep(REFRESH_S))


def watch(followed: Followed, show: Callable[[str], None], wait: Callable[[], None]) -> None:
    """Show how things stand, wait, read what has come, and again, until Ctrl-C."""
    try:
        while True:
            show(render(followed.top(time.time())))
            wait()
            followed.read()
    except KeyboardInterrupt:
        return


class Followed:
    """A journal that may be being written: read from the head of its last session, and on from where it was read to.

    A line counts when its end is there. A file that was replaced or cut is read from its beginning. Raises NotFound
    when there is none, and InvalidInput when a whole line is damaged.
    """

    def __init__(self, file: Path) -> None:
        self._path = file
        self._file: BinaryIO | None = None
        self._begin()

    def _begin(self) -> None:
        self._reader, self._follower, self._rest = Reader(), Follower(), b""

    def read(self) -> None:
        """Take in all whole lines that have come."""
        if self._file is None or self._is_another():
            self.close()
            self._begin()
            self._file = self._opened()
            self._file.seek(last_head(self._file))
        while piece := self._file.read(PIECE_BYTES):
            *lines, self._rest = (self._rest + piece).split(b"\n")
            for line in lines:
                item = self._reader.take(line.decode("utf-8", "replace"))
                if item is not None:
                    self._follower.take(item)

    def top(self, wall_s: float | None) -> Top:
        """How things stand at this Unix time; with None, and in the journal of a simulation, at its last line."""
        last_s = self._follower.last_wall_s
        later_s = 0.0 if wall_s is None or last_s is None else max(0.0, wall_s - last_s)
        found = self._follower.top(later_s)
        if found is None:
            raise NotFound(f"the journal {self._path} holds no session yet")
        return found

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> BinaryIO:
        try:
            return self._path.open("rb")
        except FileNotFoundError:
            message = f"there is no journal {self._path}: `tightrope serve` and `tightrope demo --keep DIR` write one"
            raise NotFound(message) from None
        except OSError as error:
            raise NotFound(f"the journal {self._path} cannot be read: {error.strerror}") from None

    def _is_another(self) -> bool:
        """Whether the path leads to another file by now, or to one that was cut."""
        if self._file is None:
            return True
        try:
            there = self._path.stat()
        except OSError:
            return False  # it was removed: what was read stands
        mine = os.fstat(self._file.fileno())
        return (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino) or there.st_size < self._file.tell()


def last_head(file: BinaryIO) -> int:
    """Where the last session of a journal begins, in bytes; 0 where none is marked."""
    mark = HEAD_BEGINS.encode()
    end = file.seek(0, os.SEEK_END)
    later = b""
    while end > 0:
        start = max(0, end - PIECE_BYTES)
        file.seek(start)
        piece = file.read(end - start) + later
        at = piece.rfind(b"\n" + mark)
        if at >= 0:
            return start + at + 1
        later = piece[: len(mark) + 1]
        end = start
    return 0
