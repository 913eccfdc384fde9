"""Journal: readings on disk, so that an interrupted measurement goes on where it stopped.

Owns one file of JSON lines per (model, weights, engine build, accelerator, grid) in a folder of the caller.
A line that was cut off by a crash is dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from tightrope.model.errors import StoreFailed
from tightrope.profiler.grid import Grid, Point
from tightrope.profiler.reading import Decode, Reading


class ReadingJournal:
    """Readings of one measurement. Without a folder it keeps nothing beyond this object."""

    def __init__(self, folder: Path | None, key: Mapping[str, str], grid: Grid) -> None:
        """Reads back what an interrupted measurement of the same key and grid left in `folder`."""
        named = {**key, "grid": grid.name, "points": repr(grid.points), "gaps": str(grid.gaps)}
        digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]
        self.path = folder / f"profiling-{digest}.jsonl" if folder is not None else None
        self._readings: dict[tuple[int, Point], Reading] = {}
        self._read()

    def __len__(self) -> int:
        return len(self._readings)

    def get(self, pass_index: int, point: Point) -> Reading | None:
        """The reading of that visit, if it was finished."""
        return self._readings.get((pass_index, point))

    def append(self, reading: Reading) -> None:
        """Keep a finished visit. Raises StoreFailed when the disk refuses."""
        self._readings[reading.pass_index, reading.point] = reading
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(reading)) + "\n")
        except OSError as error:
            raise StoreFailed(f"{self.path}: {error.strerror}; free space, or name another folder") from error

    def kept(self, from_pass: int) -> dict[Point, list[Reading]]:
        """Readings of that pass and later ones, by point."""
        readings_by_point: dict[Point, list[Reading]] = {}
        for (pass_index, point), reading in sorted(self._readings.items(), key=lambda item: item[0][0]):
            if pass_index >= from_pass:
                readings_by_point.setdefault(point, []).append(reading)
        return readings_by_point

    def remove(self) -> None:
        """Forget the measurement: it is complete, the next one begins anew."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        if self.path is None or not self.path.is_file():
            return
        text = self.path.read_text(encoding="utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1]
        for line in whole.splitlines():
            reading = _parse(line)
            if reading is not None:
                self._readings[reading.pass_index, reading.point] = reading
        if whole != text:
            self.path.write_text(whole, encoding="utf-8")


def _parse(line: str) -> Reading | None:
    try:
        entry = json.loads(line)
        before, after = entry["before"], entry["after"]
        return Reading(
            point=Point(**entry["point"]),
            pass_index=int(entry["pass_index"]),
            prompt_tokens=float(entry["prompt_tokens"]),
            ttft_ms=float(entry["ttft_ms"]),
            steps=float(entry["steps"]),
            prompt_steps=int(entry["prompt_steps"]),
            context_tokens=float(entry["context_tokens"]),
            before=None if before is None else Decode(**before),
            after=None if after is None else Decode(**after),
        )
    except (ValueError, TypeError, KeyError):
        return None
