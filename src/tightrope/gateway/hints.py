"""Headers in which a request asks for less time than its contract grants.

Owns their names, their strict reading, and the bounds: a header may only tighten, and only to what is
granted. Each name is read once, here, into a number of seconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tightrope.gateway.errors import ApiError
from tightrope.model.slo import Slo

_DECIMAL = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,12})?", re.ASCII)
_LOWEST_MS, _HIGHEST_MS = 1.0, 3_600_000.0

# Ours first: if several names carry one meaning, the first wins, but all are checked.
_TTFT = ("x-tightrope-slo-ttft-ms", "x-llm-d-slo-ttft-ms", "x-slo-ttft-ms")
_TPOT = ("x-tightrope-slo-tpot-ms", "x-llm-d-slo-tpot-ms", "x-slo-tpot-ms")
_E2E = ("x-tightrope-slo-e2e-ms",)
_DEADLINE = "x-tightrope-deadline-ms"
# Time limits of client libraries, in seconds. They may exceed the range: they are grants like any other.
_SILENCE = "x-stainless-read-timeout"
_TIMEOUT = "x-litellm-timeout"
_NAMES = frozenset((*_TTFT, *_TPOT, *_E2E, _DEADLINE, _SILENCE, _TIMEOUT))


@dataclass(frozen=True, slots=True)
class Hints:
    """What the headers asked for, in seconds; None where they did not.

    `deadline_s` is the patience for the whole run, `silence_s` the longest pause between two bytes.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    deadline_s: float | None = None
    silence_s: float | None = None


def hints(headers: Iterable[tuple[bytes, bytes]]) -> Hints:
    """Read the hint headers of a request. Raises ApiError(bad_header) for one repeated or no decimal."""
    text_by_name: dict[str, str] = {}
    for raw_name, value in headers:
        name = raw_name.decode("latin-1").lower()
        if name in _NAMES:
            if name in text_by_name:
                raise ApiError("bad_header", f"{name} is repeated", param=name)
            text_by_name[name] = value.decode("latin-1")
    if not text_by_name:
        return Hints()
    seconds = {name: _seconds(name, text) for name, text in text_by_name.items()}
    deadline_s = seconds.get(_DEADLINE)
    is_ours = deadline_s is not None
    return Hints(
        ttft_s=_first(_TTFT, seconds),
        tpot_s=_first(_TPOT, seconds),
        e2e_s=_first(_E2E, seconds),
        deadline_s=deadline_s if is_ours else seconds.get(_TIMEOUT),
        silence_s=None if is_ours else seconds.get(_SILENCE),
    )


def granted(asked: Hints, contract: Slo, floor: Slo | None) -> Slo:
    """The SLO of one run: what was asked for, set to the contract where looser, to the floor where tighter.

    Without a floor the contract itself is the floor, so nothing changes.
    """
    if floor is None:
        return contract
    return Slo(
        ttft_s=_between(asked.ttft_s, floor.ttft_s, contract.ttft_s),
        tpot_s=_between(asked.tpot_s, floor.tpot_s, contract.tpot_s),
        e2e_s=_between(asked.e2e_s, floor.e2e_s, contract.e2e_s),
        attain=contract.attain,
    )


def _seconds(name: str, text: str) -> float:
    is_ms = name.endswith("-ms")
    if _DECIMAL.fullmatch(text) is None:
        raise ApiError("bad_header", f"{name} is not a plain decimal", param=name)
    value_ms = float(text) if is_ms else float(text) * 1000
    if value_ms < _LOWEST_MS or (is_ms and value_ms > _HIGHEST_MS):
        raise ApiError("bad_header", f"{name} is out of range", param=name)
    return value_ms / 1000


def _first(names: tuple[str, ...], seconds: dict[str, float]) -> float | None:
    return next((seconds[name] for name in names if name in seconds), None)


def _between(asked_s: float | None, floor_s: float | None, contract_s: float | None) -> float | None:
    if asked_s is None or floor_s is None:
        return contract_s
    tightest_s = max(asked_s, floor_s)
    return tightest_s if contract_s is None else min(tightest_s, contract_s)
