"""A scenario in words: the rows of a report that say what was simulated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

from tightrope.bench.cell import accelerators, bill
from tightrope.bench.scenario import (
    Arrivals,
    Bursts,
    Day,
    Diurnal,
    Hardware,
    Mishap,
    Poisson,
    Scenario,
    Surge,
    Trace,
)
from tightrope.model.profile import Profile
from tightrope.model.units import format_ratio, format_seconds

Row = tuple[str, str]


def setting(scenario: Scenario) -> tuple[Row, ...]:
    """What was simulated, as (what, value); what is at its default and changes nothing is left out."""
    return tuple(_rows(scenario))


def _rows(scenario: Scenario) -> Iterator[Row]:
    yield "fleet", _fleet(scenario)
    yield "prices", ", ".join(f"{card.name} {card.usd_per_h:.2f} USD/h" for card in accelerators(scenario))
    yield "fleet in all", f"{bill(scenario).replicas} replicas, {bill(scenario).usd_per_h:.2f} USD/h"
    yield "engines", _engines(scenario.hardware)
    if scenario.measured:
        yield "measured", "; ".join(map(_profile, scenario.measured))
    yield "models", f"small is {scenario.small}, large is {scenario.large}"
    yield "load", _load(scenario)
    yield "arrivals", _arrivals(scenario)
    yield (
        "time",
        f"{format_seconds(scenario.duration_s)}, the first {format_seconds(scenario.warm_up_s)} not counted",
    )
    yield "promise", _promise(scenario)
    if scenario.beliefs:
        factors = (f"{belief.factor:g} x on {belief.accelerator}" for belief in scenario.beliefs)
        yield "believed step times", f"{', '.join(factors)}; the true ones otherwise"
    if scenario.telemetry_delay_s:
        yield "telemetry", f"first tokens are heard of {format_seconds(scenario.telemetry_delay_s)} late"
    if scenario.mishaps:
        yield "faults", "; ".join(map(_mishap, scenario.mishaps))


def _fleet(scenario: Scenario) -> str:
    by_model: dict[str, list[str]] = {}
    for placement in scenario.fleet:
        by_model.setdefault(placement.model, []).append(f"{placement.count} {placement.accelerator}")
    return "; ".join(f"{model} on {' + '.join(cards)}" for model, cards in by_model.items())


def _engines(setup: Hardware) -> str:
    parts = [
        f"{setup.step_tokens} tokens a step",
        f"{setup.max_sequences} sequences",
        f"{format_seconds(setup.host_overhead_s)} of host overhead a step",
    ]
    if setup.is_ahead:
        parts.append("steps composed one ahead")
    if setup.noise:
        parts.append(f"steps vary by {format_ratio(setup.noise)}")
    if setup.prefix_block_tokens:
        parts.append(f"prefix cache in blocks of {setup.prefix_block_tokens} tokens")
    if setup.network_s:
        parts.append(f"{format_seconds(setup.network_s)} of network each way")
    return ", ".join(parts)


def _profile(profile: Profile) -> str:
    """What a mean call of some size takes alone, of coefficients that nobody can picture."""
    first_ms, gap_ms = profile.solo_ttft_ms(100), (profile.solo_ms(100, 11) - profile.solo_ttft_ms(100)) / 10
    pair = f"{profile.model} on {profile.accelerator}"
    return f"{pair} reads 100 tokens in {first_ms:.0f} ms and says one in {gap_ms:.0f} ms"


def _load(scenario: Scenario) -> str:
    if scenario.recording is not None:
        return f"recorded: {scenario.recording}"
    streams = (f"{stream.workflow} for {stream.tenant} {stream.share:.0%}" for stream in scenario.streams)
    lengths = (
        "lengths drawn from data"
        if scenario.lengths == "varied"
        else "every call of a node of the mean length"
    )
    shrunk = "" if scenario.shrink == 1.0 else f", {format_ratio(scenario.shrink)} of that"
    return f"{', '.join(streams)}; {lengths}{shrunk}"


def _arrivals(scenario: Scenario) -> str:
    if scenario.recording is not None:
        return "as recorded, stretched to the rate; each seed begins somewhere else"
    return _process(scenario.arrivals)


def _process(arrivals: Arrivals) -> str:
    match arrivals:
        case Poisson():
            return "Poisson"
        case Bursts(factor, calm_s, burst_s):
            return f"MMPP: {format_seconds(burst_s)} at {factor:g} times the rate of {format_seconds(calm_s)} of calm"
        case Diurnal(swing, period_s):
            return f"Poisson, swinging by {format_ratio(swing)} over {format_seconds(period_s)}"
        case Trace(name):
            return f"the gaps of {name}, stretched to the rate; each seed begins somewhere else"
        case Surge(at_s, lasts_s, factor):
            return f"Poisson, {factor:g} times as fast from {format_seconds(at_s)} on for {format_seconds(lasts_s)}"
        case Day():
            rate = f"from {format_ratio(arrivals.trough)} to 100% and back over {format_seconds(arrivals.length_s)}"
            bursts = f"{arrivals.bursts} bursts of {format_seconds(arrivals.burst_s)} at {arrivals.factor:g} times that"
            return f"the gaps of {' and '.join(arrivals.traces)} under a day's rate, {rate}; {bursts}"
        case _:
            assert_never(arrivals)


def _promise(scenario: Scenario) -> str:
    promise = scenario.promise
    own = "of the run itself" if promise.per == "run" else "that runs of the workflow take on average"
    tpot = f"; {format_seconds(promise.tpot_s)} between tokens" if promise.tpot_s is not None else ""
    return (
        f"first token within {promise.scale:g} x the time without contention {own} + "
        f"{format_seconds(promise.buffer_s)}{tpot}"
    )


def _mishap(mishap: Mishap) -> str:
    what = "dies" if mishap.kind == "die" else f"takes {mishap.factor:g} x as long"
    return f"{mishap.model}/{mishap.accelerator}/{mishap.index} {what} at {format_seconds(mishap.at_s)}"
