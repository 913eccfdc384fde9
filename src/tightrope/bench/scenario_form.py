"""The written form of a scenario: one YAML file, every quantity with its unit, unknown keys refused.

Owns the keys, their defaults and what is wrong with a file. What the values mean is `scenario.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeVar

from tightrope.bench.scenario import (
    Arrivals,
    Belief,
    Bursts,
    Day,
    Diurnal,
    Elastic,
    Hardware,
    Lengths,
    Mishap,
    Placement,
    Poisson,
    Rate,
    Scenario,
    Stream,
    Trace,
)
from tightrope.flow.fields import Fields, read_quantity, shown
from tightrope.flow.places import Path, nearest, parse_yaml
from tightrope.model.errors import BadUnit, InvalidConfig, Problem
from tightrope.model.ids import AcceleratorName, ModelName, TenantId
from tightrope.model.json import Json
from tightrope.model.units import per_second, ratio, seconds, tokens, usd_per_h
from tightrope.sim.promise import Promise

FIRST_REPORTED_SEED = 100
"""Smaller seeds are for tuning."""
DEFAULT_LOADS = (20, 40, 60, 70, 80, 90, 100, 110, 120, 130)
"""Rates of a scenario that states none, in % of the stability limit."""

_KEYS = (
    "scenario", "about", "fleet", "roles", "tenants", "recording", "hardware", "lengths", "arrivals", "slo",
    "policies", "rates", "seeds", "duration", "warm_up", "beliefs", "telemetry_delay", "faults", "elastic",
)  # fmt: skip
_HARDWARE_KEYS = (
    "host_overhead", "step", "sequences", "noise", "prefix_block", "start", "network", "ahead",
    "prices",
)  # fmt: skip
_SLO_KEYS = ("scale", "buffer", "tpot", "per")
_FAULT_KEYS = ("at", "replica", "slow", "die")
_ARRIVAL_KEYS = {
    "mmpp": ("factor", "calm", "burst"),
    "diurnal": ("swing", "period"),
    "trace": (),
    "day": ("traces", "length", "trough", "bursts", "factor", "burst"),
}
_ELASTIC_KEYS = ("start", "spread", "attain", "max_cost")
_ARRIVALS_CURE = "write poisson, {mmpp: {...}}, {diurnal: {...}}, {day: {...}} or {trace: NAME}"
_SEEDS = re.compile(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Known:
    """The names a scenario may use."""

    models: Collection[str]
    accelerators: Collection[str]
    workflows: Collection[str]
    recordings: Collection[str]
    traces: Collection[str]
    policies: Sequence[str]


def read_scenario(text: str, source: str, known: Known) -> Scenario:
    """The scenario a file describes. Raises InvalidConfig with everything that is wrong, each under its line."""
    placed = parse_yaml(text)
    problems = list(placed.problems)
    if problems:
        raise InvalidConfig(source, placed.located(problems))
    top = Fields(placed.tree, (), problems, what="a scenario", known=_KEYS)
    scenario = _scenario(top, known)
    if not problems:
        problems += _contradictions(scenario)
    if problems:
        raise InvalidConfig(source, placed.located(problems))
    return scenario


def _scenario(top: Fields, known: Known) -> Scenario:
    fleet = tuple(_fleet(top, known))
    small, large = _roles(top, [placement.model for placement in fleet])
    return Scenario(
        name=top.required_text("scenario", "give it the name of its file: `scenario: mixed`"),
        about=top.required_text("about", "say in a sentence what it is for"),
        fleet=fleet,
        small=small,
        large=large,
        streams=tuple(_streams(top, known)),
        recording=_recording(top, known),
        hardware=_hardware(top, known),
        lengths=_lengths(top),
        arrivals=_arrivals(top, known),
        promise=_promise(top),
        policies=_policies(top, known),
        rates=tuple(_rates(top)),
        seeds=_seeds(top),
        duration_s=_duration(top, "duration", 150.0),
        warm_up_s=_duration(top, "warm_up", 30.0),
        beliefs=tuple(_beliefs(top, known)),
        telemetry_delay_s=_duration(top, "telemetry_delay", 0.0),
        mishaps=tuple(_mishaps(top)),
        elastic=_elastic(top, fleet, known),
    )


# --- the fleet -------------------------------------------------------------------------------------------


def _fleet(top: Fields, known: Known) -> Iterable[Placement]:
    rows = top.mapping("fleet", "the fleet")
    if not rows:
        top.report("missing_key", ("fleet",), "a fleet has replicas", "write `fleet: {MODEL: {CARD: 1}}`")
    for model in rows:
        _check_name(top, ("fleet", model), "model", model, known.models)
        cards = Fields(
            rows[model], ("fleet", model), top.problems, what="a model", known=tuple(known.accelerators)
        )
        for card in _in_order(rows[model], known.accelerators):
            count = cards.count(card, 0)
            if count < 1:
                cards.report("bad_value", (card,), f"{count} replicas", "write 1 or more, or remove the card")
            else:
                yield Placement(ModelName(model), AcceleratorName(card), count)


def _roles(top: Fields, models: Sequence[ModelName]) -> tuple[ModelName, ModelName]:
    """The small and the large model; either stands for both where the other is not given."""
    fields = Fields(top.raw("roles"), ("roles",), top.problems, what="`roles`", known=("small", "large"))
    cure = f"name a model of the fleet: {', '.join(dict.fromkeys(models))}"
    found = {role: fields.text(role, cure) for role in ("small", "large") if role in fields}
    for role, model in found.items():
        _check_name(fields, (role,), "model in the fleet", model, list(dict.fromkeys(models)))
    if not found:
        top.report("missing_key", ("roles",), "nobody knows which model is small or large", cure)
        return ModelName(""), ModelName("")
    small, large = found.get("small"), found.get("large")
    return ModelName(small or large or ""), ModelName(large or small or "")


def _streams(top: Fields, known: Known) -> Iterable[Stream]:
    tenants = top.mapping("tenants", "`tenants`")
    if not tenants and "recording" not in top:
        cure = "write `tenants: {shop: {rag: 100%}}`, or `recording: NAME`"
        top.report("missing_key", ("tenants",), "nobody asks for anything", cure)
    for tenant in tenants:
        path = ("tenants", tenant)
        asked = Fields(tenants[tenant], path, top.problems, what="a tenant", known=tuple(known.workflows))
        for workflow in _in_order(tenants[tenant], known.workflows):
            share = asked.share(workflow)
            if share is not None:
                yield Stream(TenantId(tenant), workflow, share)


def _recording(top: Fields, known: Known) -> str | None:
    if "recording" not in top:
        return None
    name = top.text("recording", f"name one of: {', '.join(known.recordings)}")
    _check_name(top, ("recording",), "recording", name, known.recordings)
    for key in ("tenants", "arrivals", "lengths"):
        if key in top:
            message = f"a recording has {key} of its own"
            top.report("bad_value", (key,), message, f"remove `{key}`, or `recording`")
    return name


def _hardware(top: Fields, known: Known) -> Hardware:
    fields = Fields(
        top.raw("hardware"), ("hardware",), top.problems, what="the hardware", known=_HARDWARE_KEYS
    )
    default = Hardware()
    prices = fields.mapping("prices", "`prices`")
    for card in prices:
        _check_name(fields, ("prices", card), "accelerator", card, known.accelerators)
    path = (*fields.path, "prices")
    read = {card: read_quantity(prices[card], (*path, card), usd_per_h, top.problems) for card in prices}
    return Hardware(
        host_overhead_s=_duration(fields, "host_overhead", default.host_overhead_s),
        step_tokens=int(_or(fields.quantity("step", tokens), default.step_tokens)),
        max_sequences=fields.count("sequences", default.max_sequences),
        noise=_or(fields.share("noise"), default.noise),
        prefix_block_tokens=int(_or(fields.quantity("prefix_block", tokens), 0)),
        start_s=_duration(fields, "start", default.start_s),
        network_s=_duration(fields, "network", default.network_s),
        is_ahead=fields.flag("ahead"),
        usd_per_h=tuple((AcceleratorName(card), price) for card, price in read.items() if price is not None),
    )


# --- the load --------------------------------------------------------------------------------------------


def _lengths(top: Fields) -> Lengths:
    return "fixed" if _word(top, "lengths", ("varied", "fixed")) == "fixed" else "varied"


def _arrivals(top: Fields, known: Known) -> Arrivals:
    value = top.raw("arrivals")
    if value == "poisson" or "arrivals" not in top:
        return Poisson()
    if not isinstance(value, dict) or len(value) != 1:
        top.report("bad_value", ("arrivals",), f"{shown(value)} is no kind of arrivals", _ARRIVALS_CURE)
        return Poisson()
    of_kind = Fields(value, ("arrivals",), top.problems, what="arrivals", known=tuple(_ARRIVAL_KEYS))
    if "trace" in of_kind:
        name = of_kind.text("trace", f"name a trace: {', '.join(known.traces)}")
        _check_name(of_kind, ("trace",), "trace", name, known.traces)
        return Trace(name)
    kind = next((name for name in ("diurnal", "day") if name in of_kind), "mmpp")
    inner = Fields(
        of_kind.raw(kind), ("arrivals", kind), top.problems, what=f"`{kind}`", known=_ARRIVAL_KEYS[kind]
    )
    if kind == "diurnal":
        swing = _or(inner.share("swing"), 0.5)
        if swing > 1:
            inner.report("bad_value", ("swing",), "a rate cannot swing below zero", "write at most 100%")
        return Diurnal(min(1.0, swing), _duration(inner, "period", 240.0))
    if kind == "day":
        return _day(inner, known)
    return Bursts(
        _or(inner.number("factor"), 4.0), _duration(inner, "calm", 20.0), _duration(inner, "burst", 5.0)
    )


def _day(fields: Fields, known: Known) -> Day:
    listed = fields.raw("traces")
    names = (
        tuple(name for name in listed if isinstance(name, str)) if isinstance(listed, list | tuple) else ()
    )
    for name in names:
        _check_name(fields, ("traces",), "trace", name, known.traces)
    if not names:
        cure = f"write `traces: [{', '.join(known.traces)}]`"
        fields.report("missing_key", ("traces",), "a day has the gaps of a trace", cure)
    return Day(
        names,
        _duration(fields, "length", 3600.0),
        _or(fields.share("trough"), 0.1),
        fields.count("bursts", 4),
        _or(fields.number("factor"), 2.0),
        _duration(fields, "burst", 60.0),
    )


def _elastic(top: Fields, fleet: Sequence[Placement], known: Known) -> Elastic | None:
    if "elastic" not in top:
        return None
    fields = Fields(top.raw("elastic"), ("elastic",), top.problems, what="`elastic`", known=_ELASTIC_KEYS)
    starts = Fields(
        fields.raw("start"),
        ("elastic", "start"),
        top.problems,
        what="`start`",
        known=tuple(known.accelerators),
    )
    cards = dict.fromkeys(placement.accelerator for placement in fleet)
    return Elastic(
        start_s=tuple((card, _duration(starts, card, Hardware().start_s)) for card in cards),
        start_spread=_or(fields.share("spread"), 0.0),
        attain=_or(fields.share("attain"), 0.99),
        max_usd_per_h=_or(fields.quantity("max_cost", usd_per_h), math.inf),
    )


def _promise(top: Fields) -> Promise:
    fields = Fields(top.raw("slo"), ("slo",), top.problems, what="the SLO of a scenario", known=_SLO_KEYS)
    default = Promise()
    no_tpot = "tpot" in fields and fields.raw("tpot") is None
    return Promise(
        scale=_or(fields.number("scale"), default.scale),
        buffer_s=_duration(fields, "buffer", default.buffer_s),
        tpot_s=None if no_tpot else _or(fields.duration("tpot"), default.tpot_s),
        per="workflow" if _word(fields, "per", ("run", "workflow")) == "workflow" else "run",
    )


def _rates(top: Fields) -> Iterable[Rate]:
    values = top.raw("rates")
    if values is None:
        yield from (Rate(share=percent / 100) for percent in DEFAULT_LOADS)
        return
    for index, value in enumerate(values if isinstance(values, list) else [values]):
        path = ("rates", str(index)) if isinstance(values, list) else ("rates",)
        rate = _rate(value, path, top.problems)
        if rate is not None:
            yield rate


def parse_rate(text: str) -> Rate:
    """`80%` of the stability limit, or `6 req/s`. Raises BadUnit for anything else."""
    problems: list[Problem] = []
    rate = _rate(text, (), problems)
    if rate is None:
        raise BadUnit(f"{problems[0].message}; {problems[0].cure}")
    return rate


def _rate(value: Json, path: Path, problems: list[Problem]) -> Rate | None:
    is_share = isinstance(value, str) and value.rstrip().endswith("%")
    number = read_quantity(value, path, ratio if is_share else per_second, problems)
    if number is not None and number <= 0:
        cure = "write a share like 50%, or a rate like 6 req/s"
        problems.append(Problem("bad_value", path, f"{shown(value)} is not above zero", cure))
        return None
    if number is None:
        return None
    return Rate(share=number) if is_share else Rate(per_s=number)


# --- what is compared ------------------------------------------------------------------------------------


def _policies(top: Fields, known: Known) -> tuple[str, ...]:
    words = top.names("policies", f"name some of: {', '.join(known.policies)}")
    for index, word in enumerate(words):
        if not matching([word], known.policies):
            _check_name(top, ("policies", str(index)), "policy", word, known.policies)
    return matching(words, known.policies) or tuple(name for name in known.policies if "/" not in name)


def matching(words: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    """The names that the words stand for, each once: a name for itself, `fmware-greedy/*` for all such."""
    found = (name for word in words for name in names if fnmatchcase(name, word))
    return tuple(dict.fromkeys(found))


def _seeds(top: Fields) -> tuple[int, ...]:
    value = top.raw("seeds") if "seeds" in top else "100-109"
    cure = "write a range like 100-109, or a list like [100, 101]"
    try:
        seeds = parse_seeds(value)
    except BadUnit as error:
        top.report("bad_value", ("seeds",), str(error), cure)
        return ()
    if seeds and min(seeds) < FIRST_REPORTED_SEED:
        message = f"seed {min(seeds)} is for tuning; a scenario lists those that are reported"
        top.report("bad_value", ("seeds",), message, f"begin at {FIRST_REPORTED_SEED}")
    return seeds


def parse_seeds(value: Json) -> tuple[int, ...]:
    """`100-109`, `7`, or a list of such. Raises BadUnit for anything else."""
    found: list[int] = []
    for item in value if isinstance(value, list) else [value]:
        match = _SEEDS.fullmatch(str(item))
        if match is None or isinstance(item, bool):
            raise BadUnit(f"{shown(item)} is no seed and no range of seeds")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(dict.fromkeys(found))


def _beliefs(top: Fields, known: Known) -> Iterable[Belief]:
    fields = Fields(
        top.raw("beliefs"), ("beliefs",), top.problems, what="`beliefs`", known=tuple(known.accelerators)
    )
    for card in _in_order(top.raw("beliefs"), known.accelerators):
        factor = fields.number(card)
        if factor is not None and factor <= 0:
            fields.report(
                "bad_value", (card,), f"{factor:g} is not above zero", "write 0.5 for twice as fast"
            )
        elif factor is not None:
            yield Belief(AcceleratorName(card), factor)


def _mishaps(top: Fields) -> Iterable[Mishap]:
    values = top.raw("faults")
    if values is not None and not isinstance(values, list):
        top.report(
            "bad_value", ("faults",), f"faults are a list, not {shown(values)}", "write `- {at: 60s, ...}`"
        )
        return
    for index, value in enumerate(values or []):
        fields = Fields(value, ("faults", str(index)), top.problems, what="a fault", known=_FAULT_KEYS)
        mishap = _mishap(fields)
        if mishap is not None:
            yield mishap


def _mishap(fields: Fields) -> Mishap | None:
    cure = "write it as MODEL/CARD/NUMBER: qwen3-8b/h100/0"
    parts = fields.required_text("replica", cure).rsplit("/", 2)
    at_s = fields.duration("at")
    factor = fields.number("slow")
    if ("slow" in fields) == ("die" in fields):
        fields.report("bad_value", (), "a fault is either `slow` or `die`", "write `slow: 3` or `die: true`")
    if len(parts) != 3 or not parts[2].isdecimal():
        fields.report("bad_value", ("replica",), "this names no replica", cure)
        return None
    model, card, number = parts
    kind: Literal["slow", "die"] = "die" if fields.flag("die") else "slow"
    return Mishap(at_s or 0.0, ModelName(model), AcceleratorName(card), int(number), kind, _or(factor, 1.0))


# --- between keys ----------------------------------------------------------------------------------------


def _contradictions(scenario: Scenario) -> Iterable[Problem]:
    whole = sum(stream.share for stream in scenario.streams)
    if scenario.recording is None and abs(whole - 1) > 1e-6:
        message = f"the shares of all tenants' workflows add up to {whole:.4%}"
        yield Problem("bad_value", ("tenants",), message, "make it 100%")
    if scenario.warm_up_s >= scenario.duration_s:
        message = "nothing is left after the warm-up"
        yield Problem("bad_value", ("warm_up",), message, "make it shorter than the duration")
    for index, mishap in enumerate(scenario.mishaps):
        if not any(_is_hit(placement, mishap) for placement in scenario.fleet):
            message = f"the fleet has no replica {mishap.model}/{mishap.accelerator}/{mishap.index}"
            yield Problem("bad_value", ("faults", str(index), "replica"), message, "count from 0")


def _is_hit(placement: Placement, mishap: Mishap) -> bool:
    same = (placement.model, placement.accelerator) == (mishap.model, mishap.accelerator)
    return same and mishap.index < placement.count


# --- small readings --------------------------------------------------------------------------------------


def _check_name(fields: Fields, path: Path, what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        near = nearest(name, known)
        cure = f'write "{near}"' if near else f"name one of: {', '.join(known)}"
        fields.report("unknown_name", path, f"there is no {what} {name!r}", cure)


def _in_order(value: Json, known: Collection[str]) -> list[str]:
    """The known keys of a mapping, in the order of the text."""
    return [key for key in value if key in known] if isinstance(value, dict) else []


def _word(fields: Fields, key: str, words: Sequence[str]) -> str:
    cure = f"write one of: {', '.join(words)}"
    word = fields.text(key, cure, words[0])
    if word not in words:
        fields.report("bad_value", (key,), f"{key} cannot be {word!r}", cure)
    return word


def _duration(fields: Fields, key: str, default_s: float) -> float:
    return _or(fields.quantity(key, seconds), default_s)


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value
