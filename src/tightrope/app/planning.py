"""`plan`: for a configuration and a load, the cheapest fleet of every mix of accelerators that keeps all promises.

Owns what load and which profiles are meant, and the look of the answer. Finding the fleets is `bench/mixes.py`,
reading a load from a journal `bench/observed.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tightrope.adapters.store_sqlite import SqliteStore
from tightrope.app.cli.frame import ANSWER_IS_NO, DONE, Answer, Common
from tightrope.app.compose import emulated_profile, identity_of, kernel_settings, tenants_of
from tightrope.app.config import LOCAL_TENANT, Config, load_config
from tightrope.app.progress import bar
from tightrope.app.tables import grid
from tightrope.app.workflows import load_workflows
from tightrope.bench.library import not_found
from tightrope.bench.mixes import (
    MOST_MIXES,
    Mix,
    Question,
    Stream,
    cheapest_of,
    fleet_words,
    mixes,
    possible_mixes,
)
from tightrope.bench.observed import BUSY_S, Observed, observed
from tightrope.bench.trial import assumed_flow, stand_in
from tightrope.model.errors import BadUnit, InvalidInput, NotFound
from tightrope.model.ids import AcceleratorName, ModelName, StepId, TenantId
from tightrope.model.json import Json
from tightrope.model.profile import Profile
from tightrope.model.slo import Slo, Tenant
from tightrope.model.units import format_ratio, format_seconds, per_second, ratio
from tightrope.model.workflow import ModelCall, Workflow
from tightrope.runtime.client import effective_slo, may_call, plain_workflows
from tightrope.sim.lengths import Fixed, Lognormal, always_the_mean
from tightrope.sim.workload import Flow
from tightrope.sim.world import CardKind


@dataclass(frozen=True, slots=True)
class Known:
    """What is believed of each pair: what was measured here, and, of pairs that were not, what the table of measured
    cards says of a model and a card of these names."""

    profiles: Mapping[CardKind, Profile]
    assumed: Mapping[CardKind, str]


def run(common: Common, *, loads: Sequence[str], journal: Path | None, attain: str | None) -> Answer:
    """The verb: plan, simulate, say. Exit status 1 when no mix of accelerators keeps every promise."""
    config = load_config(common.config)
    workflows = load_workflows(config)
    seen = None if journal is None else _observed(journal)
    streams = _streams(config, workflows, loads, seen, _share(attain))
    known = known_profiles(config)
    cards = {
        (model.name, name): placed.cards for model in config.models for name, placed in model.place.items()
    }
    question = Question(streams, config.accelerators, known.profiles, kernel_settings(config), cards)
    _refuse_unknown(config, question)
    with bar(common, "planning", "") as tell:
        found = mixes(question, tell)
    notes = _notes(config, question, known, seen)
    best = cheapest_of(question, found)
    data = _as_json(question, found, best, notes)
    text = _as_text(question, found, best, notes)
    return Answer(data, text, code=DONE if best is not None else ANSWER_IS_NO)


# --- the load --------------------------------------------------------------------------------------------


def _share(attain: str | None) -> float | None:
    if attain is None:
        return None
    found = ratio(attain)
    if not 0 < found < 1:
        raise InvalidInput(f"--attain {attain} cannot be planned for: write a share such as 99%, below 100%")
    return found


def _observed(journal: Path) -> Observed:
    try:
        with journal.open(encoding="utf-8") as lines:
            return observed(lines)
    except FileNotFoundError:
        message = (
            f"there is no journal {journal}: `tightrope serve` and `tightrope demo --keep DIR` write one"
        )
        raise NotFound(message) from None
    except OSError as error:
        raise NotFound(f"the journal {journal} cannot be read: {error.strerror}") from None


def _streams(
    config: Config,
    workflows: Sequence[Workflow],
    loads: Sequence[str],
    seen: Observed | None,
    attain: float | None,
) -> tuple[Stream, ...]:
    """What arrives: as it was said, else as it was seen; every workflow once for each promise made about it."""
    tenants = tenants_of(config, workflows)
    by_name = {one.name: one for one in (*workflows, *_plain(config, tenants))}
    said = dict(_said(one, by_name) for one in loads)
    rates: dict[tuple[str, TenantId], float] = {}
    if seen is not None and not said:
        rates = {key: per_s for key, per_s in seen.rates.items() if key[0] in by_name}
        if not rates:
            names = ", ".join(sorted({name for name, _ in seen.rates}))
            raise InvalidInput(
                f"no workflow of the journal ({names}) is one of {config.file}; say the load with --load"
            )
    for name, per_s in said.items():
        callers = _callers(tenants, name)
        rates |= {(name, tenant): per_s / len(callers) for tenant in callers}
    if not rates:
        named = ", ".join(one.name for one in workflows)
        raise InvalidInput(
            f"say the load: --load WORKFLOW=RATE, such as --load {_example(workflows)}, for one of {named};"
            " or --from JOURNAL"
        )
    by_id = {tenant.id: tenant for tenant in tenants}
    groups: dict[tuple[str, Slo], list[TenantId]] = {}
    for name, tenant in rates:
        promise = _promise(by_id.get(tenant), by_name[name])
        groups.setdefault((name, promise), []).append(tenant)
    flows = {name: _flow(by_name[name], seen) for name, _ in groups}
    return tuple(
        Stream(
            flows[name],
            tuple(asking),
            promise,
            sum(rates[name, tenant] for tenant in asking),
            promise.attain if attain is None else attain,
        )
        for (name, promise), asking in groups.items()
    )


def _plain(config: Config, tenants: Iterable[Tenant]) -> list[Workflow]:
    longest = max((tenant.limits.output_tokens for tenant in tenants), default=4096)
    return plain_workflows({model.name: longest for model in config.models})


def _said(text: str, by_name: Mapping[str, Workflow]) -> tuple[str, float]:
    name, sign, rate = text.rpartition("=")
    if not sign:
        raise InvalidInput(f"--load {text!r} says no rate: write WORKFLOW=RATE, such as {text}=2req/s")
    if name not in by_name:
        listed = [one for one in by_name if "/" not in one]
        raise NotFound(not_found("workflow", name, by_name, listed or None))
    try:
        return name, per_second(rate)
    except BadUnit as error:
        raise InvalidInput(f"--load {text!r}: {error}") from None


def _callers(tenants: Iterable[Tenant], name: str) -> list[TenantId]:
    """Who may ask for the workflow: those of the file before the one that stands for everybody."""
    found = [tenant.id for tenant in tenants if may_call(tenant, name)]
    return [one for one in found if one != LOCAL_TENANT] or [LOCAL_TENANT]


def _example(workflows: Sequence[Workflow]) -> str:
    return f"{workflows[0].name if workflows else 'model/NAME'}=2req/s"


def _promise(tenant: Tenant | None, workflow: Workflow) -> Slo:
    """What the contract promises this tenant's runs; to a stranger, what the workflow itself does."""
    return effective_slo(tenant or Tenant(LOCAL_TENANT), workflow, None, True)


def _flow(workflow: Workflow, seen: Observed | None) -> Flow:
    return assumed_flow(workflow, {}) if seen is None else seen.flow(workflow)


# --- profiles --------------------------------------------------------------------------------------------


def known_profiles(config: Config) -> Known:
    """For each model on each accelerator, placed there or not, what was measured of it, else what may be assumed."""
    stored = _stored(config)
    profiles: dict[CardKind, Profile] = {}
    assumed: dict[CardKind, str] = {}
    for model in config.models:
        for card in config.accelerators:
            pair = (model.name, card.name)
            found = None
            if stored:
                identity = identity_of(model, card)
                found = stored.get((identity.digest, identity.engine, card.name))
            found = found or emulated_profile(model, card)
            stands = stand_in(model.name, card.name) if found is None else None
            if found is not None:
                profiles[pair] = replace(found, model=model.name)
            elif stands is not None:
                assumed[pair], profiles[pair] = stands
    return Known(profiles, assumed)


def _stored(config: Config) -> dict[tuple[str, str, str], Profile]:
    """Every profile that is kept, by what it belongs to; the store is not made if it is not there."""
    if not config.store_file.exists():
        return {}
    store = SqliteStore(config.store_file)
    try:
        return {(kept.digest, kept.engine, kept.accelerator): kept for kept in store.profiles()}
    finally:
        store.close()


def _refuse_unknown(config: Config, question: Question) -> None:
    for name in question.models:
        if not any(model == name for model, _ in question.profiles):
            cards = _cards(config, name) or [card.name for card in config.accelerators]
            todo = " and ".join(f"`tightrope profile {name} --on {card}`" for card in cards)
            raise NotFound(
                f"{name} has no profile on any accelerator, so nobody knows what it bears; run {todo}"
            )


def _cards(config: Config, name: str) -> list[str]:
    """Where the file places a model."""
    model = config.model(name)
    if model is None:
        return []
    return list(dict.fromkeys([*model.place, *(endpoint.place for endpoint in model.replicas)]))


# --- what is said ----------------------------------------------------------------------------------------


def _notes(config: Config, question: Question, known: Known, seen: Observed | None) -> list[str]:
    """What has to be known beside the table."""
    found = []
    if seen is not None:
        busiest = f"in the busiest {min(BUSY_S, seen.span_s):.0f} s it was {seen.busiest_per_s:.3g} runs/s"
        found.append(f"the journal has {seen.runs} runs in {seen.span_s:.0f} s; {busiest}")
    left_out = [
        (name, card)
        for name in question.models
        for card in _cards(config, name)
        if (name, AcceleratorName(card)) not in known.profiles
    ]
    found += [
        f"{name} on {card} has no profile and is left out: `tightrope profile {name} --on {card}`"
        for name, card in left_out
    ]
    for name in question.models:
        cards = [card for model, card in known.assumed if model == name]
        if cards:
            measured, where = known.assumed[name, cards[0]], " and ".join(cards)
            found.append(f"{name} was not measured on {where}: it is taken to be as fast as {measured} there")
    if not question.has_prices:
        found.append("no accelerator has a price (`cost`), so the fewest replicas count as the cheapest")
    if possible_mixes(question) > MOST_MIXES:
        found.append(f"{possible_mixes(question)} mixes can be made; these are the {MOST_MIXES} smallest")
    best_effort = sorted({one.flow.workflow.name for one in question.streams if one.slo.is_empty})
    if best_effort:
        found.append(f"nothing is promised to runs of {', '.join(best_effort)}: they only have to be borne")
    return found


def _as_text(question: Question, found: Sequence[Mix], best: Mix | None, notes: Sequence[str]) -> str:
    several = _several(question)
    load = [
        (
            _label(one, several),
            f"{one.per_s:.3g}",
            _promised(one.slo),
            "-" if one.slo.is_empty else format_ratio(one.attain),
        )
        for one in question.streams
    ]
    parts = [
        grid(("workflow", "runs/s", "promised", "to"), load, right=(1, 3)),
        grid(("workflow", "node", "model", "tokens in", "out", "from"), _node_rows(question), right=(3, 4)),
        "cheapest fleets, with the share of runs that are on time in a simulation:",
        _mix_table(question, found, best, several),
    ]
    whys = [
        "\n".join([f"{_mixed(one.accelerators)} cannot do it:", *(f"  {why}" for why in one.why)])
        for one in found
        if not one.is_possible
    ]
    parts += whys
    if notes:
        parts.append("\n".join(f"note: {one}" for one in notes))
    return "\n\n".join(parts)


def _mix_table(question: Question, found: Sequence[Mix], best: Mix | None, several: set[str]) -> str:
    head = (
        "accelerators",
        "fleet",
        "USD/h",
        *(_label(one, several) for one in question.streams),
        "",
    )
    rows = []
    for one in found:
        attained = ["-" if part.share is None else f"{part.share:.1%}" for part in one.attained]
        if not one.is_possible:
            rows.append((_mixed(one.accelerators), "-", "-", *("-" for _ in question.streams), "cannot"))
            continue
        remark = "cheapest" if one is best else f"as {_mixed(one.like)}" if one.like else ""
        rows.append(
            (_mixed(one.accelerators), fleet_words(one.counts), f"{one.usd_per_h:.2f}", *attained, remark)
        )
    right = tuple(range(2, 3 + len(question.streams)))
    return grid(head, rows, right=right)


def _mixed(names: Sequence[str]) -> str:
    return " + ".join(names)


def _several(question: Question) -> set[str]:
    """Workflows about which more than one promise is made."""
    names = [one.flow.workflow.name for one in question.streams]
    return {name for name in names if names.count(name) > 1}


def _label(one: Stream, several: set[str]) -> str:
    name = one.flow.workflow.name
    return f"{name} ({', '.join(one.tenants)})" if name in several else name


def _promised(slo: Slo) -> str:
    times = {"ttft": slo.ttft_s, "tpot": slo.tpot_s, "e2e": slo.e2e_s}
    return (
        ", ".join(f"{name} {format_seconds(at_s)}" for name, at_s in times.items() if at_s is not None)
        or "nothing"
    )


def _sizes(question: Question) -> list[tuple[str, StepId, ModelName, float, float, bool]]:
    """Workflow, node, model, mean tokens in and out of a call, and whether these were assumed."""
    found = {}
    for one in question.streams:
        for node in one.flow.workflow.nodes:
            lengths = one.flow.lengths[node.id]
            mean = always_the_mean(lengths)
            if isinstance(node.work, ModelCall) and isinstance(mean, Fixed):
                row = (
                    one.flow.workflow.name,
                    node.id,
                    node.work.model,
                    mean.prompt_tokens,
                    mean.output_tokens,
                )
                found[row[:2]] = (*row, isinstance(lengths, Lognormal))
    return list(found.values())


def _node_rows(question: Question) -> list[tuple[str, ...]]:
    return [
        (name, step, model, f"{prompt:.0f}", f"{output:.0f}", "assumed" if is_assumed else "the journal")
        for name, step, model, prompt, output, is_assumed in _sizes(question)
    ]


def _as_json(question: Question, found: Sequence[Mix], best: Mix | None, notes: Sequence[str]) -> Json:
    streams: list[Json] = [
        {
            "workflow": one.flow.workflow.name,
            "tenants": list(one.tenants),
            "per_s": one.per_s,
            "promised": {"ttft_s": one.slo.ttft_s, "tpot_s": one.slo.tpot_s, "e2e_s": one.slo.e2e_s},
            "attain": one.attain,
        }
        for one in question.streams
    ]
    sizes: list[Json] = [
        {
            "workflow": name,
            "node": step,
            "model": model,
            "prompt_tokens": prompt,
            "output_tokens": output,
            "is_assumed": is_assumed,
        }
        for name, step, model, prompt, output, is_assumed in _sizes(question)
    ]
    rows: list[Json] = [_mix_json(one, one is best) for one in found]
    said: list[Json] = list(notes)
    return {"load": streams, "calls": sizes, "mixes": rows, "notes": said}


def _mix_json(one: Mix, is_cheapest: bool) -> Json:
    fleet: list[Json] = [
        {"model": model, "accelerator": card, "replicas": count} for model, card, count in one.counts
    ]
    attained: list[Json] = [
        {
            "workflow": part.workflow,
            "tenants": list(part.tenants),
            "runs": part.runs,
            "share": part.share,
            "asked": part.asked,
        }
        for part in one.attained
    ]
    why: list[Json] = list(one.why)
    return {
        "accelerators": list(one.accelerators),
        "is_possible": one.is_possible,
        "is_cheapest": is_cheapest,
        "like": list(one.like),
        "fleet": fleet,
        "usd_per_h": one.usd_per_h,
        "headroom": round(one.headroom, 4),
        "attained": attained,
        "why": why,
    }
