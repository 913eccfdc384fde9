"""Results of cells on disk: one JSON line each, appended as soon as a cell has ended.

Owns the file and what makes two cells the same: everything that determines a result, the code that decides and
simulates included. A line torn by a crash is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import tightrope
from tightrope.bench.cell import Cell
from tightrope.bench.library import DATA, scenarios_folder
from tightrope.bench.metrics import Figures
from tightrope.model.codec import decode, encode
from tightrope.model.errors import InvalidInput

CELLS_FILE = "cells.jsonl"
DETERMINES = (
    "model", "policy", "kernel", "sim", "flow", "bench/cell.py", "bench/hardware.py", "bench/metrics.py",
    "bench/scenario.py", "bench/traces.py", "bench/workflows.py",
)  # fmt: skip
"""Packages and files of which a change can change what a cell gives, beside the data of the scenarios."""


class Kept(Protocol):
    """What a store can hold: a dataclass that `codec` can encode, known by its digest."""

    @property
    def digest(self) -> str: ...


T = TypeVar("T", bound=Kept)


@dataclass(frozen=True, slots=True)
class Result:
    """What a cell gave, and how many seconds of processor time it took."""

    digest: str
    policy: str
    rate_per_s: float
    seed: int
    figures: Figures
    took_s: float


class Store(Generic[T]):
    """The results of one kind in one file. Several benchmarks may share it: a result is found by its digest alone."""

    def __init__(self, folder: Path, kind: type[T], name: str = CELLS_FILE) -> None:
        self.file = folder / name
        self._results = _read(self.file, kind)

    def __len__(self) -> int:
        return len(self._results)

    def get(self, digest: str) -> T | None:
        """The result with this digest, if it was kept."""
        return self._results.get(digest)

    def keep(self, result: T) -> None:
        """Note a result for this process and those that come later."""
        self._results[result.digest] = result
        self.file.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(encode(result), separators=(",", ":"), allow_nan=False)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")  # begins a line of its own even behind one that was torn


def _read(file: Path, kind: type[T]) -> dict[str, T]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return {}
    found = (_parsed(line, kind) for line in lines if line.strip())
    return {result.digest: result for result in found if result is not None}


def _parsed(line: str, kind: type[T]) -> T | None:
    """A result; None for a torn line, and for one that another version wrote in another form."""
    try:
        return decode(kind, json.loads(line))
    except (ValueError, InvalidInput):
        return None


def digest(cell: Cell, *more: str | float, sources: tuple[str, ...] = ()) -> str:
    """Sixteen hex digits over everything that determines what the cell gives, and over what else does.

    `sources` are further files of the package on which the result depends.
    """
    return digest_of(replace(cell, scenario=cell.scenario.unnamed), *more, sources=sources)


def digest_of(asked: object, *more: str | float, sources: tuple[str, ...] = ()) -> str:
    """The same of anything that `codec` can encode."""
    whole = (encode(asked), code_digest(sources), *more)
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


@cache
def code_digest(more: tuple[str, ...] = ()) -> str:
    """Twelve hex digits over the sources and data that decide and simulate, the same on every machine."""
    package, scenarios = Path(tightrope.__file__).parent, scenarios_folder()
    parts = (*DETERMINES, *more)
    sources = [
        (file.relative_to(package).as_posix(), file) for part in parts for file in _files(package / part)
    ]
    data = [(file.relative_to(scenarios).as_posix(), file) for file in _files(scenarios / DATA)]
    return hashed(sorted(sources + data))


def hashed(files: Iterable[tuple[str, Path | bytes]], width: int = 12) -> str:
    """So many hex digits over names and contents; what is no file is the content itself."""
    whole = hashlib.sha256()
    for name, file in files:
        whole.update(f"{name}\0".encode())
        content = file if isinstance(file, bytes) else file.read_bytes()
        whole.update(hashlib.sha256(content).digest())
    return whole.hexdigest()[:width]


def _files(place: Path) -> Iterable[Path]:
    if place.is_file():
        return [place]
    return (file for file in place.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
