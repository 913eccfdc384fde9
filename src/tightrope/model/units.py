"""Quantities as people write them: `800ms`, `64MiB`, `95%`, `50 req/s`.

A bare number is legal only for a count or a weight, so every function here refuses one and
names the units it knows. Results are plain floats and ints in seconds, bytes, ratios and USD.
"""

from __future__ import annotations

import re
from decimal import Decimal

from tightrope.model.errors import BadUnit

_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z%][A-Za-z%/ ]*?)?\s*")

_DURATIONS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}


def seconds(text: str) -> float:
    """`800ms` -> 0.8. Raises BadUnit for anything that is not a duration with its unit."""
    return _scaled(text, _DURATIONS, "a duration", "800ms")


def size_bytes(text: str) -> int:
    """`64MiB` -> 67108864. Raises BadUnit for anything that is not a size with its unit."""
    return round(_scaled(text, _SIZES, "a size", "64MiB"))


def ratio(text: str) -> float:
    """`95%` -> 0.95. Raises BadUnit for a bare number."""
    return _scaled(text, {"%": 1.0}, "a percentage", "95%") / 100


def usd_per_h(text: str) -> float:
    """`3.90 USD/h` -> 3.9."""
    return _scaled(text, {"USD/h": 1.0}, "a price", "3.90 USD/h")


def tokens(text: str) -> int:
    """`1024 tok` -> 1024."""
    return round(_scaled(text, {"tok": 1.0}, "a number of tokens", "1024 tok"))


def per_second(text: str) -> float:
    """`6 req/s` -> 6.0."""
    return _scaled(text, {"req/s": 1.0}, "an arrival rate", "6 req/s")


def format_seconds(value_s: float) -> str:
    """A short spelling, to six digits: 0.8 -> `800ms`, 90 -> `90s`."""
    if value_s >= 1 and value_s == int(value_s):
        return f"{int(value_s)}s"
    return f"{Decimal(f'{value_s * 1000:.6g}'):f}ms"


def format_ratio(value: float) -> str:
    """0.95 -> `95%`."""
    return f"{value * 100:.6g}%"


def _scaled(
    text: object, factor_by_unit: dict[str, float] | dict[str, int], kind: str, example: str
) -> float:
    legal = ", ".join(factor_by_unit)
    if not isinstance(text, str):
        raise BadUnit(f"{text!r} has no unit: {kind} is written like {example} (units: {legal})")
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise BadUnit(f"{text!r} is not {kind}: write it like {example} (units: {legal})")
    number, unit = match.group(1), match.group(2)
    if unit is None:
        raise BadUnit(f"{text!r} has no unit: {kind} is written like {example} (units: {legal})")
    if unit not in factor_by_unit:
        raise BadUnit(f"{unit!r} is not a unit of {kind}: use one of {legal}, as in {example}")
    return float(Decimal(number) * Decimal(repr(factor_by_unit[unit])))  # 95% is 0.95 to the last bit
