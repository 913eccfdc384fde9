"""The pepper of the key hashes: a file that only its owner can read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from tightrope.model.errors import NotFound, StoreFailed

_BYTES = 32
"""Random bytes of a new pepper; the file holds them in hexadecimal."""


def read_pepper(file: Path) -> bytes:
    """The pepper. Raises NotFound when there is none, StoreFailed when it cannot be used."""
    try:
        pepper = file.read_bytes().strip()
    except FileNotFoundError:
        raise NotFound(f"there is no {file}: `tightrope init` or `tightrope keys create` writes it") from None
    except OSError as error:
        raise StoreFailed(
            f"{file} cannot be used ({error}): put the old one back, or make new keys"
        ) from error
    if len(pepper) < 2 * _BYTES:
        raise StoreFailed(f"{file} is too short: put the old one back, or remove it and make new keys")
    return pepper


def ensure_pepper(file: Path) -> bytes:
    """The pepper, written now if there is none. Raises StoreFailed."""
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return read_pepper(file)
    except OSError as error:
        raise StoreFailed(f"{file} cannot be written: {error.strerror or error}") from error
    with os.fdopen(handle, "w", encoding="ascii") as stream:
        stream.write(secrets.token_hex(_BYTES) + "\n")
    return read_pepper(file)
