"""Cards and models as scenarios use them: profiles fitted from measured step times, memory from data sheets.

Owns the tables of `scenarios/data` about hardware (sources and licences are beside them) and the names in them.
The fit is the profiler's own (`profiler/fit.py`). How a replica is set up, its host included, a scenario says.
"""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from tightrope.model.errors import InvalidInput
from tightrope.model.fleet import Accelerator
from tightrope.model.ids import AcceleratorName, ModelName
from tightrope.model.profile import Coefficients, FitError, Profile
from tightrope.profiler.fit import KINDS, Kind, StepSample, fit

DATA = Path(__file__).parents[3] / "scenarios" / "data"
"""The data of the benchmark, in the checkout that this file is part of."""
HOST_MS = 4.0
"""Host overhead of a step unless a scenario says otherwise."""
MEMORY_SHARE = 0.9
"""Part of a card's memory that an engine uses; what the weights leave of it holds context (vLLM's default)."""

_Row = Mapping[str, str]
_Pair = tuple[str, str]


@dataclass(frozen=True)
class HardwareTable:
    """The measured cards and models of a folder; each file is read, and each pair fitted, when first asked for.

    Names are those of the files or their aliases, in either case. Raises InvalidInput for a name or a file that
    is not there.
    """

    folder: Path = DATA
    _fitted: dict[_Pair, tuple[Coefficients, FitError]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def profile(
        self,
        model: str,
        accelerator: str,
        *,
        host_ms: float = HOST_MS,
        step_tokens: int = 2048,
        max_sequences: int = 128,
    ) -> Profile:
        """The profile of a model on a card, under the names it was asked by.

        Raises InvalidInput when the weights leave no memory for context.
        """
        card, weights = self._row("accelerators.csv", accelerator), self._row("models.csv", model)
        pair = (weights["model"], card["accelerator"])
        coefficients, error = self._fit(pair)
        return Profile(
            ModelName(model),
            AcceleratorName(accelerator),
            replace(coefficients, h=host_ms),
            step_tokens=step_tokens,
            max_sequences=max_sequences,
            kv_tokens=_context_memory(card, weights),
            error=error,
        )

    def accelerator(self, name: str) -> Accelerator:
        """The card, under the name it was asked by, at an illustrative price (a scenario states its own)."""
        row = self._row("accelerators.csv", name)
        return Accelerator(
            AcceleratorName(name), float(row["usd_per_h"]), int(float(row["memory_gb"]) * 1e9), count=1
        )

    @property
    def models(self) -> tuple[str, ...]:
        """Every model by its alias."""
        return tuple(row["alias"] for row in self._tables["models.csv"])

    @property
    def accelerators(self) -> tuple[str, ...]:
        """Every card by its alias."""
        return tuple(row["alias"] for row in self._tables["accelerators.csv"])

    def samples(self, model: str, accelerator: str) -> tuple[StepSample, ...]:
        """The measured steps of a model on a card."""
        card, weights = self._row("accelerators.csv", accelerator), self._row("models.csv", model)
        return self._samples[weights["model"], card["accelerator"]]

    def _row(self, file: str, name: str) -> _Row:
        rows = self._tables[file]
        for row in rows:
            full, alias, *_ = row.values()
            if name.casefold() in {full.casefold(), alias.casefold()}:
                return row
        raise InvalidInput(f"{name!r} is not in {file}: use one of {', '.join(row['alias'] for row in rows)}")

    def _fit(self, pair: _Pair) -> tuple[Coefficients, FitError]:
        if pair not in self._fitted:
            self._fitted[pair] = fit(self._samples[pair])
        return self._fitted[pair]

    @cached_property
    def _tables(self) -> dict[str, list[_Row]]:
        return {name: list(self._read(name)) for name in ("accelerators.csv", "models.csv")}

    @cached_property
    def _samples(self) -> dict[_Pair, tuple[StepSample, ...]]:
        by_pair: defaultdict[_Pair, list[StepSample]] = defaultdict(list)
        for row in self._read("step-times.csv.gz"):
            by_pair[row["model"], row["accelerator"]].append(_sample(row))
        return {pair: tuple(samples) for pair, samples in by_pair.items()}

    def _read(self, name: str) -> Iterable[_Row]:
        path = self.folder / name
        if not path.is_file():
            raise InvalidInput(f"{path} is missing: benchmarks run from a checkout that has scenarios/data")
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        return csv.DictReader(text.splitlines())


HARDWARE = HardwareTable()
"""The cards and models of this checkout."""


def profile(model: str, accelerator: str, *, host_ms: float = HOST_MS) -> Profile:
    """The profile of a model on a card of this checkout; see `HardwareTable.profile`."""
    return HARDWARE.profile(model, accelerator, host_ms=host_ms)


def _context_memory(card: _Row, weights: _Row) -> int:
    """Tokens of context that fit beside the weights (GB are 10^9 bytes)."""
    free_bytes = (MEMORY_SHARE * float(card["memory_gb"]) - float(weights["weights_gb"])) * 1e9
    tokens = int(free_bytes / int(weights["kv_bytes_per_token"]))
    if tokens < 1:
        raise InvalidInput(
            f"{weights['model']} does not fit on one {card['accelerator']}: take a larger card"
        )
    return tokens


def _sample(row: _Row) -> StepSample:
    """`sequences` with `new_tokens` each over `context_tokens` each; in a mixed step they decode beside a chunk."""
    kind = _kind(row["kind"])
    sequences, new, context = int(row["sequences"]), int(row["new_tokens"]), int(row["context_tokens"])
    took_ms = float(row["step_ms"])
    if kind == "prefill":
        pairs = sequences * new * (context + new / 2)
        return StepSample(kind, took_ms, prompt_tokens=sequences * new, pairs=pairs)
    chunk = int(row["chunk_tokens"])
    return StepSample(kind, took_ms, sequences, sequences * context, chunk, chunk * chunk / 2)


def _kind(name: str) -> Kind:
    for kind in KINDS:
        if kind == name:
            return kind
    raise InvalidInput(f"{name!r} is no kind of step: use one of {', '.join(KINDS)}")
