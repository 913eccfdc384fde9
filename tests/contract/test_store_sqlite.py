"""The SQLite store: the contract of every store, and what it says when the disk or the file is not sound."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.store_contract import StoreContract, a_key, a_profile
from tightrope.adapters.store_sqlite import SCHEMA_VERSION, SqliteStore
from tightrope.model.errors import StoreFailed
from tightrope.ports import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tightrope.db"


@pytest.fixture
def open_store(path: Path) -> Iterator[Callable[[], SqliteStore]]:
    opened: list[SqliteStore] = []

    def open_again() -> SqliteStore:
        opened.append(SqliteStore(path, busy_s=0.0))
        return opened[-1]

    yield open_again
    for store in opened:
        store.close()


class TestSqliteStore(StoreContract):
    """Every law of the contract."""


def test_it_is_a_store(open_store: Callable[[], SqliteStore]) -> None:
    store: Store = open_store()
    assert list(store.keys()) == []


def test_only_its_owner_reads_the_file(path: Path, open_store: Callable[[], SqliteStore]) -> None:
    open_store().save_key(a_key())
    for written in path.parent.iterdir():
        assert stat.S_IMODE(written.stat().st_mode) & 0o077 == 0


def test_writes_are_durable_and_logged_ahead(open_store: Callable[[], SqliteStore]) -> None:
    database = open_store()._database
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database.execute("PRAGMA synchronous").fetchone() == (2,)
    assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_two_processes_see_each_others_writes(open_store: Callable[[], SqliteStore]) -> None:
    one, other = open_store(), open_store()
    one.save_key(a_key("aaaaaaaa", 1.0))
    other.save_key(a_key("bbbbbbbb", 2.0))
    assert [key.public_id for key in one.keys()] == ["aaaaaaaa", "bbbbbbbb"]  # noqa: SIM118


def test_a_full_disk_keeps_what_was_stored_and_recovers(
    path: Path, open_store: Callable[[], SqliteStore]
) -> None:
    store = open_store()
    store.save_profile(a_profile())
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    big = replace(a_profile(digest="d2"), measured_at="x" * 100_000)
    with pytest.raises(StoreFailed, match=r"tightrope\.db: the disk is full: free some space"):
        store.save_profile(big)
    assert list(store.profiles()) == [a_profile()]
    store._database.execute("PRAGMA max_page_count = 1000000")
    store.save_profile(big)
    assert list(store.profiles()) == [a_profile(), big]


def test_a_file_that_may_not_be_written_is_still_read(open_store: Callable[[], SqliteStore]) -> None:
    store = open_store()
    store.save_key(a_key())
    store._database.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreFailed, match="give this user the right to write it and its folder"):
        store.save_key(a_key("bbbbbbbb"))
    assert list(store.keys()) == [a_key()]


@pytest.mark.skipif(os.geteuid() == 0, reason="the rights of a folder do not bind root")
def test_a_read_only_folder_is_named(path: Path, open_store: Callable[[], SqliteStore]) -> None:
    path.parent.chmod(0o500)
    try:
        with pytest.raises(StoreFailed, match=r"tightrope\.db: it cannot be opened: make its folder"):
            open_store()
    finally:
        path.parent.chmod(0o700)


@pytest.mark.parametrize("name", ["missing/tightrope.db", "file/tightrope.db"])
def test_a_folder_that_is_none_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFailed, match=r"tightrope\.db: it cannot be opened: make its folder"):
        SqliteStore(tmp_path / name)


def test_another_file_is_refused_and_left_alone(path: Path, open_store: Callable[[], SqliteStore]) -> None:
    path.write_bytes(b"not a database, but long enough to look like one" * 100)
    before = path.read_bytes()
    with pytest.raises(StoreFailed, match="it is no database of ours"):
        open_store()
    assert path.read_bytes() == before


def test_a_damaged_file_is_said_to_be_damaged(path: Path, open_store: Callable[[], SqliteStore]) -> None:
    store = open_store()
    for number in range(200):
        store.save_key(a_key(f"{number:08}", float(number)))
    store.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(StoreFailed, match="it is damaged: put a copy back"):
        open_store().keys()


def test_a_file_held_by_another_process_is_said_to_be(
    path: Path, open_store: Callable[[], SqliteStore]
) -> None:
    store = open_store()
    store.save_key(a_key())
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreFailed, match="another process holds it"):
        store.save_key(a_key("bbbbbbbb"))
    assert list(store.keys()) == [a_key()]
    holder.execute("ROLLBACK")
    holder.close()
    store.save_key(a_key("bbbbbbbb"))


def test_a_file_of_a_later_version_is_refused(path: Path, open_store: Callable[[], SqliteStore]) -> None:
    store = open_store()
    store._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    store.close()
    with pytest.raises(StoreFailed, match="written by a later version of tightrope"):
        open_store()


def test_a_profile_that_cannot_be_read_is_no_traceback(open_store: Callable[[], SqliteStore]) -> None:
    store = open_store()
    store.save_profile(a_profile())
    store._database.execute("""UPDATE profiles SET profile = '{"model": 3}'""")
    with pytest.raises(StoreFailed, match="a profile that cannot be read"):
        store.profiles()


def test_closing_twice_is_allowed_and_using_it_afterwards_is_not(
    open_store: Callable[[], SqliteStore],
) -> None:
    store = open_store()
    store.close()
    store.close()
    with pytest.raises(StoreFailed):
        store.keys()
