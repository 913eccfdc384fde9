"""What is known on disk about the engine processes of one state directory, one file per replica.

Owns the format, and the lock that keeps two runtimes from sharing a directory. `launch.py` writes a record
before its engine runs; a record without a living process is only a leftover.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

from tightrope.adapters.process import Process
from tightrope.model.errors import InvalidInput
from tightrope.model.fleet import ReplicaSpec


class Record(msgspec.Struct, frozen=True):
    """One engine process: who it is, what it serves, where it listens, and a digest of its command."""

    pid: int
    start_ticks: int
    boot: str
    port: int
    command_digest: str
    spec: ReplicaSpec

    @property
    def process(self) -> Process:
        """The process that was recorded, alive or not."""
        return Process(self.pid, self.start_ticks, self.boot)


class RecordFolder:
    """The records of one state directory, held under a lock until `close`.

    Raises InvalidInput when another runtime holds it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self._lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise InvalidInput(
                f"the state directory {folder.parent} is in use by another runtime: stop that one, "
                "or give this one a state directory of its own"
            ) from error

    def file(self, key: str) -> Path:
        """Where the record under this key lies."""
        return self.folder / f"{key}.json"

    def read(self, key: str) -> Record | None:
        """The record under this key; None where there is none that can be read."""
        try:
            return msgspec.json.decode(self.file(key).read_bytes(), type=Record)
        except (OSError, msgspec.MsgspecError):
            return None

    def remove(self, key: str) -> None:
        """Forget a record, and the draft of one whose writer was killed before it was whole."""
        for file in (self.file(key), *self.folder.glob(f"{key}.json.*")):
            file.unlink(missing_ok=True)

    def all(self) -> list[tuple[str, Record | None]]:
        """Every record by key, in order of the keys; None for a file that is no record."""
        keys = sorted(file.stem for file in self.folder.glob("*.json"))
        return [(key, self.read(key)) for key in keys]

    def close(self) -> None:
        """Give back the lock."""
        os.close(self._lock)


def key_of(replica: str) -> str:
    """A replica's id as a plain file name, different for different ids."""
    return quote(replica, safe="").replace(".", "%2E")


def digest_of(command: Sequence[str]) -> str:
    """What tells one command from another."""
    return hashlib.sha256(msgspec.json.encode(list(command))).hexdigest()
