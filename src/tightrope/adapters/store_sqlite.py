"""Profiles and keys in one SQLite file.

Owns the tables, their version, and the translation of SQLite's errors. Every write is on the disk before it
returns (write-ahead log, synchronous=FULL). Who may use a key and which profile counts is decided elsewhere.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec

from tightrope.model.codec import decode, encode
from tightrope.model.errors import InvalidInput, StoreFailed
from tightrope.model.ids import TenantId
from tightrope.model.key import KeyRecord
from tightrope.model.profile import Profile

SCHEMA_VERSION = 1

_TABLES = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS profiles (
  weights TEXT NOT NULL, engine TEXT NOT NULL, accelerator TEXT NOT NULL,
  saved INTEGER NOT NULL, profile TEXT NOT NULL,
  PRIMARY KEY (weights, engine, accelerator)
) STRICT;
CREATE TABLE IF NOT EXISTS keys (
  public_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, role TEXT NOT NULL, hash BLOB NOT NULL,
  created_at REAL NOT NULL, expires_at REAL, revoked_at REAL
) STRICT;
PRAGMA user_version = 1;
COMMIT;
"""

_SAVE_PROFILE = """
INSERT OR REPLACE INTO profiles
VALUES (?, ?, ?, (SELECT coalesce(max(saved), 0) + 1 FROM profiles), ?)
"""

_CURE_BY_CODE = {
    sqlite3.SQLITE_FULL: "the disk is full: free some space; what was stored before is still there",
    sqlite3.SQLITE_READONLY: "it cannot be written: give this user the right to write it and its folder",
    sqlite3.SQLITE_PERM: "it cannot be opened: give this user the right to read and write it",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: make its folder, and let this user write there",
    sqlite3.SQLITE_BUSY: "another process holds it: end that one, or try again",
    sqlite3.SQLITE_LOCKED: "another process holds it: end that one, or try again",
    sqlite3.SQLITE_CORRUPT: "it is damaged: put a copy back, or move it away and make keys and profiles anew",
    sqlite3.SQLITE_NOTADB: "it is no database of ours: name another file, or move this one away",
    sqlite3.SQLITE_IOERR: "the disk failed: look at the system log",
}


class SqliteStore:
    """The Store port on the file at `path`, which is made, readable by its owner alone, if it does not exist.

    Another process that writes is waited for, at most `busy_s` seconds. Raises StoreFailed.
    """

    def __init__(self, path: Path, *, busy_s: float = 5.0) -> None:
        self._path = path
        self._lock = Lock()
        with self._translated():
            self._database = _opened(path, busy_s)
        try:
            with self._translated():
                self._prepare()
        except BaseException:
            self._database.close()
            raise

    def save_profile(self, profile: Profile) -> None:
        """Keep a profile under (digest, engine, accelerator); a model without a digest goes by its name."""
        weights = f"digest:{profile.digest}" if profile.digest else f"model:{profile.model}"
        text = msgspec.json.encode(encode(profile)).decode()
        self._write(_SAVE_PROFILE, (weights, profile.engine, profile.accelerator, text))

    def profiles(self) -> Sequence[Profile]:
        """All profiles, in the order in which they were saved."""
        return [self._profile(text) for (text,) in self._read("SELECT profile FROM profiles ORDER BY saved")]

    def save_key(self, key: KeyRecord) -> None:
        """Keep a key under its public id, replacing what stands there."""
        row = (
            key.public_id, key.tenant, key.role, key.hash, key.created_at, key.expires_at, key.revoked_at
        )  # fmt: skip
        self._write("INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def keys(self) -> Sequence[KeyRecord]:
        """All keys, revoked and expired ones included, by creation."""
        rows = self._read("SELECT * FROM keys ORDER BY created_at, public_id")
        return [KeyRecord(row[0], TenantId(row[1]), *row[2:]) for row in rows]

    def close(self) -> None:
        """Give back the file. Safe to call twice."""
        with self._lock:
            self._database.close()

    def _prepare(self) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StoreFailed(
                f"{self._path} was written by a later version of tightrope (schema {version}, this one knows "
                f"{SCHEMA_VERSION}): use that version, or name another file"
            )
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        if version < SCHEMA_VERSION:
            try:
                self._database.executescript(_TABLES)
            except sqlite3.Error:
                with suppress(sqlite3.Error):
                    self._database.rollback()
                raise

    def _profile(self, text: str) -> Profile:
        try:
            return decode(Profile, msgspec.json.decode(text))
        except (InvalidInput, msgspec.MsgspecError) as error:
            raise StoreFailed(
                f"{self._path} holds a profile that cannot be read ({error}): "
                "move the file away and make keys and profiles anew"
            ) from error

    def _write(self, statement: str, row: tuple[object, ...]) -> None:
        with self._lock, self._translated():
            self._database.execute(statement, row)

    def _read(self, statement: str) -> list[tuple[Any, ...]]:
        with self._lock, self._translated():
            return self._database.execute(statement).fetchall()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreFailed(f"{self._path}: {_cure(error)} ({error})") from error


def _opened(path: Path, busy_s: float) -> sqlite3.Connection:
    # Made here and not by SQLite: the file holds the hashes of keys, and its log takes over its rights.
    path.touch(mode=0o600, exist_ok=True)
    return sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)


def _cure(error: sqlite3.Error | OSError) -> str:
    if isinstance(error, OSError):
        return _CURE_BY_CODE[sqlite3.SQLITE_CANTOPEN]
    # The low byte is the kind of error; the rest says more than a user needs.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return _CURE_BY_CODE.get(code, "the store refused")
