"""What a gateway adds: figures of `bench overhead` from what its client saw and what its processes used.

Owns the setting, the figures and their tables, nothing of which touches the world. How load is made is
`overhead_load.py`; starting systems and reading clocks of processes is left to the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from tightrope.bench.intervals import mean
from tightrope.bench.overhead_load import Seen, Setting
from tightrope.bench.report_text import table
from tightrope.model.json import Json
from tightrope.reports.summary import percentile

DIRECT = "direct"
YARDSTICK = "vllm-router"
"""Whose processor time per piece is 1 in the comparison."""


@dataclass(frozen=True, slots=True)
class Counted:
    """One load: what the client saw, seconds of processor time that the system used while it counted, and the shares
    of all cores that were busy then, with anything and with what is no part of this benchmark."""

    seen: Seen
    used_s: float
    busy: float
    foreign: float


@dataclass(frozen=True, slots=True)
class Round:
    """One system in one round. `cores` are those to which `mixed` was confined; empty: it was not."""

    system: str
    streams: Counted
    alone: Counted
    mixed: Counted
    cores: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """Median and 99th percentile in ms; None where nothing came."""

    p50_ms: float | None
    p99_ms: float | None

    def less(self, other: Pair) -> Pair:
        """How much more than the other's."""
        return Pair(_less(self.p50_ms, other.p50_ms), _less(self.p99_ms, other.p99_ms))


@dataclass(frozen=True, slots=True)
class Figures:
    """A system over all its rounds. `added_` times are those of the system less those without any, percentile by
    percentile. `us_per_chunk` is processor time of all its processes, `to_yardstick` that over vllm-router's."""

    system: str
    chunks_per_s: float
    of_direct: float | None
    streams_first: Pair
    added_streams_first: Pair | None
    us_per_chunk: float | None
    to_yardstick: float | None
    alone_whole: Pair
    alone_first: Pair
    mixed_first: Pair
    added_mixed_first: Pair | None
    mixed_chunks_per_s: float
    mixed_core_share: float
    failures: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Overhead:
    """The whole benchmark. `absent` says of every system that was not measured, why; `busy` and `foreign` are the
    means over all loads. `is_confined`: `mixed` ran with every system on one core."""

    setting: Setting
    versions: dict[str, str]
    figures: tuple[Figures, ...]
    absent: dict[str, str]
    busy: float
    foreign: float
    is_confined: bool


def overhead(
    setting: Setting, rounds: Sequence[Round], versions: dict[str, str], absent: dict[str, str]
) -> Overhead:
    """All figures of what was measured. Systems are in the order of `versions`."""
    by_system = {name: [one for one in rounds if one.system == name] for name in versions}
    measured = {name: found for name, found in by_system.items() if found}
    direct, yardstick = measured.get(DIRECT), measured.get(YARDSTICK)
    counted = [part for one in rounds for part in (one.streams, one.mixed)]
    return Overhead(
        setting=setting,
        versions=versions,
        figures=tuple(_figures(name, found, direct, yardstick) for name, found in measured.items()),
        absent=absent,
        busy=mean([part.busy for part in counted]) if counted else 0.0,
        foreign=mean([part.foreign for part in counted]) if counted else 0.0,
        is_confined=bool(rounds) and all(one.cores for one in rounds),
    )


def _figures(
    name: str, rounds: Sequence[Round], direct: Sequence[Round] | None, yardstick: Sequence[Round] | None
) -> Figures:
    is_front = name != DIRECT and bool(direct)
    base = direct or ()
    cost_us = None if name == DIRECT else _us_per_chunk(rounds)
    yard_us = _us_per_chunk(yardstick) if yardstick else None
    chunks, direct_chunks = _chunks_per_s(rounds), _chunks_per_s(base)
    first, mixed = _streams_first(rounds), _mixed_first(rounds)
    mixed_s = sum(one.mixed.seen.count_s for one in rounds)
    return Figures(
        system=name,
        chunks_per_s=chunks,
        of_direct=chunks / direct_chunks if direct_chunks else None,
        streams_first=first,
        added_streams_first=first.less(_streams_first(base)) if is_front else None,
        us_per_chunk=cost_us,
        to_yardstick=cost_us / yard_us if cost_us is not None and yard_us else None,
        alone_whole=_pair(ms for one in rounds for ms in one.alone.seen.whole_ms),
        alone_first=_pair(ms for one in rounds for ms in one.alone.seen.alone_first_ms),
        mixed_first=mixed,
        added_mixed_first=mixed.less(_mixed_first(base)) if is_front else None,
        mixed_chunks_per_s=_per_s(sum(one.mixed.seen.pieces for one in rounds), mixed_s),
        mixed_core_share=_per_s(sum(one.mixed.used_s for one in rounds), mixed_s),
        failures=_failures(rounds),
    )


def _us_per_chunk(rounds: Sequence[Round]) -> float | None:
    pieces = sum(one.streams.seen.pieces for one in rounds)
    return 1e6 * sum(one.streams.used_s for one in rounds) / pieces if pieces else None


def _chunks_per_s(rounds: Sequence[Round]) -> float:
    counted_s = sum(one.streams.seen.count_s for one in rounds)
    return _per_s(sum(one.streams.seen.pieces for one in rounds), counted_s)


def _streams_first(rounds: Sequence[Round]) -> Pair:
    return _pair(ms for one in rounds for ms in one.streams.seen.stream_first_ms)


def _mixed_first(rounds: Sequence[Round]) -> Pair:
    return _pair(ms for one in rounds for ms in one.mixed.seen.short_first_ms)


def _failures(rounds: Sequence[Round]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in rounds:
        for part in (one.streams, one.alone, one.mixed):
            for why, count in part.seen.failures.items():
                found[why] = found.get(why, 0) + count
    return found


def _pair(values_ms: Iterable[float]) -> Pair:
    found = list(values_ms)
    return Pair(percentile(found, 0.5), percentile(found, 0.99))


def _less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _per_s(amount: float, seconds: float) -> float:
    return amount / seconds if seconds else 0.0


# --- the tables ------------------------------------------------------------------------------------------


def overhead_data(found: Overhead) -> Json:
    """The figures as JSON."""
    data: Json = msgspec.json.decode(msgspec.json.encode(found))
    return data


def overhead_from_data(data: Json) -> Overhead:
    """What `overhead_data` gave. Raises msgspec.ValidationError for anything else."""
    return msgspec.convert(data, Overhead)


def overhead_text(found: Overhead) -> str:
    """The figures as Markdown."""
    setting = found.setting
    core = "all of the system on one core" if found.is_confined else "not confined: there is one core only"
    parts = [
        f"**{setting.streams} streams at once, {setting.chunks} chunks each, {setting.gap_ms:g} ms apart**",
        table(
            ("system", "version", "chunks/s", "of direct", "TTFT p50, p99 (ms)", "added (ms)", "CPU per chunk",
             f"of {YARDSTICK}"),
            [_streams_row(one, found.versions[one.system]) for one in found.figures],
            text_columns=2,
        ),
        "**One call after the other, of one token, to engines that need no time (ms)**",
        table(
            ("system", "whole, p50, p99", "first token streamed, p50, p99"),
            [(one.system, _ms(one.alone_whole, 3), _ms(one.alone_first, 3)) for one in found.figures],
        ),
        f"**{setting.rate:g} calls per second for one token beside {setting.streams} streams, {core}**",
        table(
            ("system", "chunks/s", "TTFT p50, p99 (ms)", "added (ms)", "of the core"),
            [_mixed_row(one) for one in found.figures],
        ),
        *(f"{name} was not measured: {why}" for name, why in found.absent.items()),
        *(
            f"{one.system}: {count} calls failed: {why}"
            for one in found.figures
            for why, count in one.failures.items()
        ),
        f"{setting.rounds} rounds; {found.busy:.0%} of all cores busy, {found.foreign:.0%} with foreign work.",
    ]  # fmt: skip
    return "\n\n".join(parts)


def _streams_row(one: Figures, version: str) -> tuple[str, ...]:
    return (
        one.system,
        version,
        f"{one.chunks_per_s:,.0f}",
        "-" if one.of_direct is None else f"{one.of_direct:.0%}",
        _ms(one.streams_first),
        _added(one.added_streams_first),
        "-" if one.us_per_chunk is None else f"{one.us_per_chunk:.1f} us",
        "-" if one.to_yardstick is None else f"{one.to_yardstick:.1f}",
    )


def _mixed_row(one: Figures) -> tuple[str, ...]:
    share = "-" if one.system == DIRECT else f"{one.mixed_core_share:.0%}"
    return (
        one.system,
        f"{one.mixed_chunks_per_s:,.0f}",
        _ms(one.mixed_first),
        _added(one.added_mixed_first),
        share,
    )


def _added(pair: Pair | None) -> str:
    return "-" if pair is None else _ms(pair)


def _ms(pair: Pair, digits: int = 2) -> str:
    values = (pair.p50_ms, pair.p99_ms)
    return ", ".join("-" if value is None else f"{value:.{digits}f}" for value in values)
