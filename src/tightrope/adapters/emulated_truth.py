"""What an emulated engine is told to be: its setting, its truth, read and checked, and the table of known cards.

Owns the form of all three, and the start line of an engine. The table of the package (`emulated_cards.json`) is made by
`docs/make_cards.py`; source and licence stand in it. What the numbers mean is `model/profile.py`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import msgspec

from tightrope.model.errors import InvalidInput, NotFound
from tightrope.model.profile import Profile
from tightrope.sim.engine import Truth

CONTEXT_TOKENS = 40_960
"""Longest prompt and answer together, unless the memory is smaller or another length is asked for."""
TABLE = Path(__file__).with_name("emulated_cards.json")
"""The table of the package."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is emulated. With `time_scale` 2 everything takes twice as long, the `start_s` until it answers too.

    With `paced_by`, the address of a llama.cpp server, tokens come as they come there; of the truth only the numbers of
    sequences and of tokens count then.
    """

    name: str
    truth: Truth
    time_scale: float = 1.0
    tokens_per_chunk: int = 1
    start_s: float = 0.0
    context_tokens: int | None = None
    seed: int = 1
    paced_by: str | None = None

    @property
    def scaled(self) -> Truth:
        """The truth at this time scale."""
        profile = self.truth.profile
        return replace(
            self.truth,
            profile=replace(profile, coefficients=profile.coefficients.scaled(self.time_scale)),
        )

    @property
    def longest(self) -> int:
        """Tokens that prompt and answer may have together."""
        return min(self.context_tokens or CONTEXT_TOKENS, self.truth.profile.kv_tokens)


@dataclass(frozen=True, slots=True)
class Table:
    """Profiles of models on cards, with their source."""

    source: str
    licence: str
    profiles: tuple[Profile, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """The models in it."""
        return tuple(dict.fromkeys(one.model for one in self.profiles))

    def accelerators(self, model: str) -> tuple[str, ...]:
        """The cards on which this model is known."""
        return tuple(one.accelerator for one in self.profiles if one.model == model)

    def profile(self, model: str, accelerator: str) -> Profile:
        """The one of this pair. Raises NotFound that lists what there is."""
        for one in self.profiles:
            if (one.model, one.accelerator) == (model, accelerator):
                return one
        known = self.accelerators(model)
        cure = f"it is on {', '.join(known)}" if known else f"there are {', '.join(self.models)}"
        raise NotFound(f"the speed of {model} on {accelerator} is not known: {cure}")


def command_line(setting: Setting, port: int, host: str = "127.0.0.1") -> list[str]:
    """The argument list of an engine in a process of its own; `setting_of` reads it."""
    return [
        sys.executable, "-m", "tightrope.adapters.engine_emulated",
        "--host", host,
        "--port", str(port),
        "--name", setting.name,
        "--truth", msgspec.json.encode(setting.truth).decode(),
        "--time-scale", repr(setting.time_scale),
        "--tokens-per-chunk", str(setting.tokens_per_chunk),
        "--start-up", repr(setting.start_s),
        "--seed", str(setting.seed),
        *(() if setting.context_tokens is None else ("--context", str(setting.context_tokens))),
        *(() if setting.paced_by is None else ("--paced-by", setting.paced_by)),
    ]  # fmt: skip


def read_table(file: Path | None = None) -> Table:
    """The table in a file, or that of the package. Raises InvalidInput."""
    return _known() if file is None else _read_table(file)


def read_truth(source: str) -> Truth:
    """The truth in a file, or in the text itself if it begins with a brace. Raises InvalidInput."""
    try:
        text = source if source.lstrip().startswith("{") else Path(source).read_text("utf-8")
        truth = msgspec.json.decode(text, type=Truth)
    except OSError as error:
        raise InvalidInput(f"{source}: {error.strerror}; name a file, or give its JSON") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidInput(f"this is no truth: {error}; docs/emulated.md shows one") from error
    wrong = _problem(truth.profile)
    if truth.noise < 0 or truth.block_tokens < 0:
        wrong = "noise and block_tokens cannot be negative"
    if wrong:
        raise InvalidInput(wrong)
    return truth


@lru_cache(maxsize=1)
def _known() -> Table:
    return _read_table(TABLE)


def _read_table(file: Path) -> Table:
    try:
        table = msgspec.json.decode(file.read_bytes(), type=Table)
    except OSError as error:
        raise InvalidInput(f"{file}: {error.strerror}; correct the path") from error
    except msgspec.MsgspecError as error:
        raise InvalidInput(f"{file} is no table of cards: {error}; docs/emulated.md shows one") from error
    for one in table.profiles:
        wrong = _problem(one)
        if wrong:
            raise InvalidInput(f"{file}: {one.model} on {one.accelerator}: {wrong}")
    return table


def _problem(profile: Profile) -> str | None:
    k = profile.coefficients
    for name, value in (("a", k.a), ("b", k.b), ("c", k.c), ("d", k.d), ("e", k.e), ("h", k.h)):
        if value < 0:
            return f"coefficient {name} is {value}; a step never takes less time for more work"
    if k.a + k.h + min(k.b, k.d) <= 0:  # every step has a sequence or a prompt token in it
        return "coefficients a and h are both 0, and so is b or d; a step takes some time"
    for name, count in (("step_tokens", profile.step_tokens), ("max_sequences", profile.max_sequences)):
        if count < 1:
            return f"{name} is {count}; it must be at least 1"
    if profile.kv_tokens < 2:
        return f"kv_tokens is {profile.kv_tokens}; a prompt and its answer need at least 2"
    return None
