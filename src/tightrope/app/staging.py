"""What a demonstration shows: a configuration of the examples, who asks what, and what a run asks of each model.

One staging has real small models, the others emulated ones on the fleets of the benchmark. How it is played is
`demo.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import tightrope
from tightrope.app.config import Config, parse_config
from tightrope.bench.capacity import Demand
from tightrope.bench.load import Ask
from tightrope.model.errors import NotFound
from tightrope.model.ids import ModelName, TenantId
from tightrope.ports import Message
from tightrope.runtime.client import RunInputs


@dataclass(frozen=True, slots=True)
class Staging:
    """`name` is that of its folder in the cache, `file` its configuration among the examples, `runs` how many are
    shown, and `demand` what a run asks on average, as `observed_demand` gives it for a journal of it."""

    name: str
    file: str
    runs: int
    demand: Mapping[ModelName, Sequence[Demand]]
    is_real: bool = False

    def config(
        self, folder: Path, journal: str = "demo.journal", others: Mapping[str, str] = MappingProxyType({})
    ) -> Config:
        """Its configuration, keeping state and journal in `folder`; `others` are further keys, as variables name
        them."""
        file = examples_folder() / self.file
        overrides = {
            "TIGHTROPE_CLUSTER__LOCAL__STATE": str(folder),
            "TIGHTROPE_JOURNAL__PATH": str(folder / journal),
            **others,
        }
        return parse_config(file.read_text("utf-8"), file, overrides).config

    def asks(self) -> list[list[Ask]]:
        """What may be asked of the two workflows, one group for each."""
        examples = examples_folder()
        questions = (examples / "rag" / "questions.txt").read_text("utf-8").splitlines()
        requests = [
            json.loads(line)
            for line in (examples / "shop" / "requests.jsonl").read_text("utf-8").splitlines()
        ]
        return [
            [Ask(TenantId("library"), "rag", _chat(question)) for question in questions if question.strip()],
            [Ask(TenantId("shop"), "shopping", _chat(ask["question"], self._known(ask))) for ask in requests],
        ]

    def _known(self, ask: Mapping[str, str]) -> dict[str, str]:
        """What is known of a customer; an emulated classifier must be told what the message is about."""
        keys = ("customer_id",) if self.is_real else ("customer_id", "kind")
        return {key: ask[key] for key in keys if ask.get(key) is not None}


_SMALL, _BIG = ModelName("small"), ModelName("big")

REAL = Staging(
    "demo",
    "demo/tightrope.yaml",
    40,
    {
        _SMALL: (Demand(calls=1.6, prompt_tokens=115, output_tokens=15),),
        _BIG: (Demand(calls=1.0, prompt_tokens=132, output_tokens=26),),
    },
    is_real=True,
)
"""Two quantisations of one small model on this machine's processor."""

_EMULATED_DEMAND = {
    _SMALL: (Demand(calls=1.37, prompt_tokens=448, output_tokens=38),),
    _BIG: (Demand(calls=1.27, prompt_tokens=534, output_tokens=186),),
}
FLEETS = ("mixed", "paper-two-node")
"""Emulated fleets: those of the benchmark's scenarios of these names."""


def emulated(fleet: str) -> Staging:
    """The staging of an emulated fleet. Raises NotFound that lists what there is."""
    if fleet not in FLEETS:
        raise NotFound(f"there is no fleet {fleet!r}; there are {', '.join(FLEETS)}")
    return Staging(f"demo-{fleet}", f"fleet/{fleet}.yaml", 240, _EMULATED_DEMAND)


def demo_config(
    folder: Path, journal: str = "demo.journal", others: Mapping[str, str] = MappingProxyType({})
) -> Config:
    """The configuration of the demo with real models; see `Staging.config`."""
    return REAL.config(folder, journal, others)


def demo_asks() -> list[list[Ask]]:
    """What may be asked of its workflows."""
    return REAL.asks()


def examples_folder() -> Path:
    """Where the examples lie: beside the sources, or inside the installed package. Raises NotFound."""
    package = Path(tightrope.__file__).parent
    for folder in (package.parent.parent / "examples", package / "examples"):
        if (folder / "demo" / "tightrope.yaml").is_file():
            return folder
    raise NotFound("the examples are not installed; run the demo from a checkout of the project")


def _chat(question: str, known: Mapping[str, str] = MappingProxyType({})) -> RunInputs:
    return RunInputs(messages=(Message("user", question),), metadata=dict(known))
