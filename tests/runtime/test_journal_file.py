"""The journal on a disk that refuses, tears lines and comes back: serving goes on, and the gap is declared."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.world import a_world, within
from tightrope.kernel.journal import Entry, Gap, Head, read, replay
from tightrope.kernel.state import KernelSettings
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import ReplicaId, RunId
from tightrope.model.messages import ReplicaReady, RunCancelled
from tightrope.model.outcome import Outcome
from tightrope.runtime.journal_file import JournalFile
from tightrope.testing import a_chain

HEAD = Head(KernelSettings(), 1_700_000_000.0, 0.0)
LEFT = RunCancelled(RunId("r1"), "the client left")


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True)


def gaps(path: Path) -> list[Gap]:
    return [item for item in read(lines_of(path)) if isinstance(item, Gap)]


class FullDisk:
    """Stands in for `os.write`: after `room` bytes nothing more is taken, until `is_full` is False."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int = 0) -> None:
        self.is_full = True
        self.room = room
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, file: int, data: bytes) -> int:
        if not self.is_full:
            return self._write(file, data)
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._write(file, data[: self.room])
        self.room -= written
        return written


def test_lines_are_there_after_a_flush_and_the_head_stands_first(tmp_path: Path) -> None:
    journal = JournalFile(tmp_path / "deep" / "j.jsonl", HEAD)
    journal.event(LEFT, 1.5)
    journal.flush(1.5)
    head, entry = read(lines_of(journal.path))
    assert head == HEAD
    assert entry == Entry(1.5, LEFT, False, HEAD.wall_s + 1.5)
    assert journal.path.stat().st_mode & 0o077 == 0
    journal.close()


def test_sessions_follow_each_other_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    for _ in range(2):
        journal = JournalFile(path, HEAD)
        journal.event(LEFT, 1.0)
        journal.flush(1.0)
        journal.close()
    assert [type(item) for item in read(lines_of(path))] == [Head, Entry, Head, Entry]


@pytest.mark.parametrize("room", [0, 1, 37, 300])
def test_what_the_disk_refused_is_counted_and_declared_when_it_takes_lines_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    journal = JournalFile(tmp_path / "j.jsonl", HEAD)
    disk = FullDisk(monkeypatch, room)
    for at_s in (1.0, 2.0, 3.0):
        journal.event(LEFT, at_s)
        journal.event(LEFT, at_s)
        journal.flush(at_s)
    lost = journal.lost_lines
    assert lost >= 4
    disk.is_full = False
    journal.event(LEFT, 4.0)
    journal.flush(4.0)
    journal.close()
    items = list(read(lines_of(journal.path)))
    assert [item for item in items if isinstance(item, Head)] == [HEAD]
    (gap,) = gaps(journal.path)
    assert (gap.to_s, gap.lines) == (3.0, lost)
    assert sum(isinstance(item, Entry) for item in items) == 7 - lost
    with pytest.raises(InvalidInput, match="gap"):
        replay(lines_of(journal.path))


def test_a_gap_at_the_end_of_a_session_is_declared_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = JournalFile(tmp_path / "j.jsonl", HEAD)
    disk = FullDisk(monkeypatch)
    journal.event(LEFT, 1.0)
    journal.flush(1.0)
    disk.is_full = False
    journal.flush(2.0)
    journal.close()
    assert [gap.lines for gap in gaps(journal.path)] == [1]


def test_a_full_disk_keeps_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('{"torn": ')
    journal = JournalFile(path, HEAD)
    FullDisk(monkeypatch)
    for at_s in range(20):
        journal.event(LEFT, at_s)
        journal.flush(at_s)
        assert not is_open(path)
    assert journal.lost_lines == 20


def is_open(path: Path) -> bool:
    """Whether this process holds the file; other files come and go with the threads of other tests."""
    return path.resolve() in {link.resolve() for link in Path("/proc/self/fd").iterdir()}


def test_a_line_torn_by_a_crash_is_left_out_and_the_next_session_stands_on_its_own(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = JournalFile(path, HEAD)
    journal.event(LEFT, 1.0)
    journal.event(LEFT, 2.0)
    journal.flush(2.0)
    journal.close()
    path.write_bytes(path.read_bytes()[:-10])
    assert [type(item) for item in read(lines_of(path))] == [Head, Entry]
    again = JournalFile(path, HEAD)
    again.event(LEFT, 5.0)
    again.flush(5.0)
    again.close()
    assert [type(item) for item in read(lines_of(path))] == [Head, Entry, Head, Entry]


def test_damage_in_the_middle_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = JournalFile(path, HEAD)
    for at_s in range(4):
        journal.event(LEFT, at_s)
    journal.flush(4.0)
    journal.close()
    lines = lines_of(path)
    lines[2] = "garbage\n"
    with pytest.raises(InvalidInput, match="line 3"):
        list(read(lines))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
async def test_serving_goes_on_when_the_disk_takes_nothing() -> None:
    journal = JournalFile(Path("/dev/full"), HEAD)
    async with a_world(a_chain("draft", "answer"), journal=journal) as world:
        for _ in range(3):
            result = await within(world.submit().result())
            assert result.finish.outcome is Outcome.SUCCEEDED
    assert journal.lost_lines > 30


async def test_a_session_on_disk_replays_to_the_same_commands(tmp_path: Path) -> None:
    journal = JournalFile(tmp_path / "j.jsonl", HEAD)
    async with a_world(a_chain("draft", "answer"), journal=journal) as world:
        for _ in range(3):
            await within(world.submit().result())
    assert replay(lines_of(journal.path)) is None


LIMITED = """
import resource, sys
from pathlib import Path
from tightrope.kernel.journal import Head
from tightrope.kernel.state import KernelSettings
from tightrope.model.ids import RunId
from tightrope.model.messages import RunCancelled
from tightrope.runtime.journal_file import JournalFile
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 4_000_000))
journal = JournalFile(Path(sys.argv[1]), Head(KernelSettings(), 0.0, 0.0))
for at_s in range(100):
    journal.event(RunCancelled(RunId(f"r{at_s}"), "the client left"), at_s)
    journal.flush(at_s)
resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))
journal.event(RunCancelled(RunId("last"), "the client left"), 100.0)
journal.flush(100.0)
journal.close()
print(journal.lost_lines)
"""


def test_a_file_that_may_grow_no_further_is_a_gap_and_not_the_end(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)],
        capture_output=True, text=True, timeout=180, check=True, env={**os.environ, "PYTHONPATH": _source()},
    )  # fmt: skip
    lost = int(done.stdout)
    assert 0 < lost < 100
    assert [gap.lines for gap in gaps(path)] == [lost]
    kept = [item.message for item in read(lines_of(path)) if isinstance(item, Entry)]
    assert len(kept) == 101 - lost
    assert kept[-1] == RunCancelled(RunId("last"), "the client left")


def _source() -> str:
    import tightrope

    return str(Path(tightrope.__file__).parents[1])


def test_a_first_event_may_be_anything(tmp_path: Path) -> None:
    journal = JournalFile(tmp_path / "j.jsonl", HEAD)
    journal.event(ReplicaReady(ReplicaId("a")), 0.0)
    journal.flush(0.0)
    journal.close()
    assert replay(lines_of(journal.path)) is None
