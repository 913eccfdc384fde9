"""Recorded lengths and arrivals, read from the files of `scenarios/data` (sources and licences are beside them).

Owns the format of those files. What is made of them is `workflows.py`.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tightrope.model.errors import InvalidInput

Pairs = tuple[tuple[int, int], ...]
"""Prompt and output tokens of many requests."""


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """One row: its moment in seconds, its tokens, who or what it belongs to, hashes of its prompt blocks."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    owner: str = ""
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Traces:
    """The files of a folder, each read when it is first asked for. Raises InvalidInput when one is not there."""

    folder: Path

    @cached_property
    def azure_conversation(self) -> tuple[SeenRequest, ...]:
        """Production requests to a chat service, 58 minutes of November 2023."""
        return self._requests("azure-2023-conv.csv.gz")

    @cached_property
    def azure_pairs(self) -> Pairs:
        """The lengths of the same requests."""
        return tuple((seen.prompt_tokens, seen.output_tokens) for seen in self.azure_conversation)

    @cached_property
    def sharegpt_pairs(self) -> Pairs:
        """Lengths of conversations that people shared."""
        rows = self._rows("sharegpt-lengths.csv.gz")
        return tuple((int(row["prompt_tokens"]), int(row["output_tokens"])) for row in rows)

    @cached_property
    def mooncake_conversation(self) -> tuple[SeenRequest, ...]:
        """Production requests with the hashes of their 512-token prompt blocks, the first 16 minutes of an hour."""
        return self._requests("mooncake-conversation.csv.gz")

    @cached_property
    def tau2_retail(self) -> tuple[SeenRequest, ...]:
        """Model calls of ten sessions of a retail assistant; moments count from the start of the session."""
        return self._requests("tau2-retail.csv", owner="session")

    @cached_property
    def arena_tenants(self) -> tuple[SeenRequest, ...]:
        """Requests of 27 tenants of a chat arena over ten minutes."""
        return self._requests("arena-27-tenants.csv", owner="tenant")

    def _requests(self, name: str, owner: str | None = None) -> tuple[SeenRequest, ...]:
        return tuple(
            SeenRequest(
                at_s=float(row["at_s"]),
                prompt_tokens=int(row["prompt_tokens"]),
                output_tokens=int(row["output_tokens"]),
                owner=row[owner] if owner else "",
                blocks=tuple(map(int, row["blocks"].split())) if "blocks" in row else (),
            )
            for row in self._rows(name)
        )

    def _rows(self, name: str) -> list[dict[str, str]]:
        path = self.folder / name
        if not path.is_file():
            raise InvalidInput(f"{path} is missing: it holds lengths that the benchmark draws from")
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        return list(csv.DictReader(text.splitlines()))


ARRIVALS: dict[str, Callable[[Traces], tuple[SeenRequest, ...]]] = {
    "azure-2023": lambda traces: traces.azure_conversation,
    "mooncake": lambda traces: traces.mooncake_conversation,
}
"""Traces whose moments a load may follow."""


def moments(traces: Traces, name: str) -> tuple[float, ...]:
    """The moments of a trace in ARRIVALS, ascending, in seconds."""
    return tuple(seen.at_s for seen in ARRIVALS[name](traces))
