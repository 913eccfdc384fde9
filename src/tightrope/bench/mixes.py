"""Mixes: for every choice of kinds of cards the cheapest fleet that keeps what is promised to a load.

Owns the way from a load to such fleets. Plans are those of the provisioner (`policy/fleet_plan.py`): what calls are
like, and how much time each of them is granted, the kernel itself says, in a short simulation with a replica of every
sort. A plan is only the proposal; a fleet is shown with what came of it when the load was played against it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, combinations, islice
from statistics import fmean

from tightrope.bench.capacity import Demand, stability_limit
from tightrope.bench.cell import UNLIMITED, replica_id
from tightrope.bench.demand import scripted_demand
from tightrope.bench.metrics import quantile
from tightrope.kernel.kernel import Kernel
from tightrope.kernel.state import KernelSettings
from tightrope.model.errors import InvalidInput
from tightrope.model.fleet import Accelerator, ReplicaSpec
from tightrope.model.ids import AcceleratorName, ModelName, TenantId
from tightrope.model.messages import Command, Event, FinishRun
from tightrope.model.outcome import Outcome, Verdict
from tightrope.model.profile import Profile
from tightrope.model.provision import Bounds, Provisioning, ProvisionMode
from tightrope.model.slo import Slo, Tenant
from tightrope.model.units import format_ratio
from tightrope.policy.bearing import Kind, at_most_per_s, bearable_per_s, critical_s, most_at_once
from tightrope.policy.fleet_plan import Need, cheapest, need
from tightrope.policy.kinds import kinds_of
from tightrope.policy.provision import Group, PastCall
from tightrope.policy.spare_time import Claim, part_of_call, parts_of
from tightrope.sim.arrivals import Poisson
from tightrope.sim.driver import simulate
from tightrope.sim.engine import Truth
from tightrope.sim.script import RunScript
from tightrope.sim.workload import Flow, Plan, Share, scripts
from tightrope.sim.world import CardKind, RunRecord, World

MOST_MIXES = 15
"""All choices of up to four kinds of cards."""
PROBE_RUNS, MOST_PROBE_RUNS = 150, 1000
"""Runs that tell what calls are like; more where a model is asked rarely."""
PROBE_CALLS = 100
PROBE_LOAD = 0.1
"""Part of what the probed fleet bears at which hardly any call meets another."""
STEP = 1.1
"""Plans are made for loads that differ by this factor; which ones they are does not depend on the load that is asked
about, so that of two loads the larger one never gets the smaller plan."""
LESS = 8
"""So many steps below the provisioner's own plan it is looked for a fleet that the simulation finds good enough."""
MORE = (0, 2, 5, 9, 14, 20)
"""Steps above it that are tried as long as promises are broken; the last ones for promises so tight that a card keeps
them only while nearly idle."""
BUSY = 0.95
"""Part of its stability limit that a fleet may be loaded to: beyond it a line grows more slowly than is simulated."""
FEWEST_RUNS, MOST_RUNS = 300, 2000
PROMISES = 15
"""A simulation is to last so many times the longest promise, within the limits on runs."""
ENOUGH_MISSES = 5
"""So many missed runs shall be tolerable in every stream, or chance decides; within the limits on runs."""
WARM_UP = 0.1
"""Part of the runs that come first and are not counted."""
SURE = 2.0
"""Standard deviations by which too few runs are on time without any contention before more cards are given up."""
MOST_ATTAIN = 0.999
"""No queue has a wait that nobody exceeds: what is planned for at most."""
HARDLY = 0.1
"""A card has hardly time for calls of which it bears less than this part of what it would without a budget."""
SAMPLE_RUNS = 500
SEED = 1
START_S = 30.0
NEVER_S = 1e9

Counts = tuple[tuple[ModelName, AcceleratorName, int], ...]
"""So many replicas of each model on each kind of card."""
StreamKey = tuple[str, TenantId]
Tell = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Stream:
    """Runs of one workflow with one promise: `per_s` of them arrive per second, and a share `attain` of them is to keep
    it. `tenants` are those who ask; an empty `slo` promises nothing."""

    flow: Flow
    tenants: tuple[TenantId, ...]
    slo: Slo
    per_s: float
    attain: float

    @property
    def tenant(self) -> TenantId:
        """Who asks in the simulation; two streams of one workflow have different ones."""
        return self.tenants[0]

    @property
    def key(self) -> StreamKey:
        """What tells its runs from others."""
        return self.flow.workflow.name, self.tenant


@dataclass(frozen=True)
class Question:
    """What is asked: the load, the cards that may be had (`count` of each at most), and what is believed of each pair.
    `cards` says on how many cards a replica is, where that is more than one.

    Where no card has a price, the fewest cards are the cheapest.
    """

    streams: tuple[Stream, ...]
    accelerators: tuple[Accelerator, ...]
    profiles: Mapping[CardKind, Profile]
    settings: KernelSettings
    cards: Mapping[CardKind, int] = field(default_factory=dict)

    @cached_property
    def models(self) -> tuple[ModelName, ...]:
        """Every model that a run may call, sorted."""
        return tuple(sorted({model for one in self.streams for model in one.flow.workflow.required_models()}))

    @cached_property
    def per_s(self) -> float:
        """Runs per second in all."""
        return sum(one.per_s for one in self.streams)

    @cached_property
    def demand(self) -> Mapping[ModelName, Sequence[Demand]]:
        """What a run asks of each model on average."""
        return scripted_demand(_scripts(self, 1.0, SAMPLE_RUNS))

    @cached_property
    def has_prices(self) -> bool:
        """Whether any card costs something."""
        return any(card.usd_per_h > 0 for card in self.accelerators)

    def each(self, model: ModelName, card: AcceleratorName) -> int:
        """Cards of one replica."""
        return self.cards.get((model, card), 1)

    def price(self, model: ModelName, card: Accelerator) -> float:
        """What a replica counts for: USD/h, or its cards where nothing has a price."""
        return self.each(model, card.name) * (card.usd_per_h if self.has_prices else 1.0)

    def usd_per_h(self, counts: Counts) -> float:
        """What a fleet costs."""
        prices = {card.name: card.usd_per_h for card in self.accelerators}
        return sum(count * self.each(model, card) * prices[card] for model, card, count in counts)

    def left(self, cards: Sequence[Accelerator], counts: Counts) -> dict[AcceleratorName, int]:
        """The cards that a fleet does not take."""
        free = {card.name: card.count for card in cards}
        for model, name, count in counts:
            free[name] -= count * self.each(model, name)
        return free


@dataclass(frozen=True, slots=True)
class Attained:
    """What came of a stream in the simulation: the share of `runs` that kept their promise, None without one."""

    workflow: str
    tenants: tuple[TenantId, ...]
    runs: int
    share: float | None
    asked: float

    @property
    def is_enough(self) -> bool:
        """Whether it is what was asked."""
        return self.share is None or self.share >= self.asked


@dataclass(frozen=True, slots=True)
class Mix:
    """The cheapest fleet of some kinds of cards. Where there is none `why` says so, and the fleet is the last one
    tried, if any was.

    `headroom` is the part of every replica that the plan left free. `like` are fewer kinds that the same fleet is made
    of, where these were the ones that it was found for.
    """

    accelerators: tuple[AcceleratorName, ...]
    counts: Counts = ()
    usd_per_h: float = 0.0
    attained: tuple[Attained, ...] = ()
    headroom: float = 0.0
    like: tuple[AcceleratorName, ...] = ()
    why: tuple[str, ...] = ()

    @property
    def is_possible(self) -> bool:
        """Whether the fleet keeps every promise."""
        return not self.why

    @property
    def replicas(self) -> int:
        """How many there are in all."""
        return sum(count for _, _, count in self.counts)


@dataclass(frozen=True, slots=True)
class _Calls:
    """What a mix is asked: for each model its calls as the kernel sees them, and how many come with a run; what each
    stream attained where calls did not get into each other's way, and the seconds within which as many as asked were.
    `unit_per_s` is a number of runs per second of these workflows that one replica of each sort bears.
    """

    past: Mapping[ModelName, tuple[PastCall, ...]]
    each: Mapping[ModelName, float]
    alone: tuple[Attained, ...]
    takes_s: tuple[float | None, ...]
    unit_per_s: float

    def part(self, model: ModelName) -> float:
        """The part of its run's spare time that a call of the model is planned with, as the provisioner begins."""
        claims = [
            Claim(one, self.each[one], fmean(call.own_s for call in past))
            for one, past in self.past.items()
            if past
        ]
        by_model = {claim.model: claim for claim in claims}
        return part_of_call(by_model[model], parts_of(claims, {})) if model in by_model else 1.0


Played = dict[Counts, tuple[Attained, ...]]
"""What came of the load on fleets that were simulated."""


def mixes(question: Question, tell: Tell = lambda *_: None) -> list[Mix]:
    """The mixes, the smallest first, of at most MOST_MIXES choices; what each costs, or why it cannot be done.

    None is dearer than one with fewer kinds of cards, as it may be made of these alone. `tell` hears of progress: mixes
    done, how many there are, and the one that is looked at. Raises InvalidInput without a load or without a promise.
    """
    _refuse(question)
    chosen = choices(question)
    found: list[Mix] = []
    played: Played = {}
    for at, cards in enumerate(chosen):
        tell(at, len(chosen), " + ".join(card.name for card in cards))
        names = {card.name for card in cards}
        inside = [one for one in found if names.issuperset(one.accelerators)]
        found.append(_mix(question, cards, inside, played))
    return found


def choices(question: Question) -> list[tuple[Accelerator, ...]]:
    """Sets of kinds of cards that have a profile for some model, the smallest first, at most MOST_MIXES."""
    useful = _useful(question)
    every = chain.from_iterable(combinations(useful, size) for size in range(1, len(useful) + 1))
    return list(islice(every, MOST_MIXES))


def possible_mixes(question: Question) -> int:
    """How many such sets there are."""
    return (1 << len(_useful(question))) - 1


def _useful(question: Question) -> list[Accelerator]:
    models, pairs = question.models, question.profiles
    return [card for card in question.accelerators if any((one, card.name) in pairs for one in models)]


def cheapest_of(question: Question, found: Sequence[Mix]) -> Mix | None:
    """The cheapest of those that keep every promise, of equals the one with the fewest replicas, then of the fewest
    kinds; None where none does."""
    possible = [one for one in found if one.is_possible]
    return min(possible, key=lambda one: (*_worth(question, one.counts), len(one.accelerators)), default=None)


def _worth(question: Question, counts: Counts) -> tuple[float, int]:
    """What fleets are compared by: the price, then the number of replicas."""
    card_by_name = {card.name: card for card in question.accelerators}
    price = sum(count * question.price(model, card_by_name[card]) for model, card, count in counts)
    return round(price, 9), sum(count for _, _, count in counts)


def _refuse(question: Question) -> None:
    names = ", ".join(sorted({one.flow.workflow.name for one in question.streams}))
    if question.per_s <= 0:
        raise InvalidInput("there is no load: no run arrives")
    if all(one.slo.is_empty for one in question.streams):
        raise InvalidInput(f"nothing is promised to runs of {names}, so any fleet will do; give it an `slo`")
    if not question.models:
        raise InvalidInput(f"runs of {names} call no model, so there is nothing to plan")


# --- one mix ---------------------------------------------------------------------------------------------


def _mix(question: Question, cards: Sequence[Accelerator], smaller: Sequence[Mix], played: Played) -> Mix:
    """Plan, simulate, and plan for more as long as promises are broken; `smaller` are those of fewer of these kinds."""
    names, inside = tuple(card.name for card in cards), cheapest_of(question, smaller)
    nowhere = [model for model in question.models if not _groups(question, model, cards)]
    if nowhere:
        return Mix(names, why=tuple(f"{model} has no profile on {_or(names)}" for model in nowhere))
    calls = _probed(question, cards)
    failed = tuple(one.counts for one in smaller if one.counts and not one.is_possible)
    looking = _Looking(question, cards, calls, inside, failed, played)
    found = _late_anyway(question, cards, calls) or _planned(looking)
    if inside is not None and not found.is_possible:
        found = inside
    if found is inside:
        return replace(found, accelerators=names, like=found.like or found.accelerators)
    return found


def _planned(looking: _Looking) -> Mix:
    """The smallest plan with which every promise is kept, found by bisection."""
    question, calls = looking.question, looking.calls
    own = math.ceil(math.log(question.per_s / (1 - Provisioning().headroom) / calls.unit_per_s, STEP) - 1e-9)
    bad, good = own - LESS, None
    found = looking.at(own)
    for more in MORE:
        found = looking.at(own + more)
        if found.is_possible:
            good = own + more
            break
        bad = own + more
        if looking.is_short:
            break
    if good is None:
        return found
    while good - bad > 1:
        middle = (good + bad) // 2
        tried = looking.at(middle)
        if tried.is_possible:
            good, found = middle, tried
        else:
            bad = middle
    return found


@dataclass(slots=True)
class _Looking:
    """Plans of one mix, each simulated once. `inside` is the best fleet of fewer kinds, `failed` are such that do not
    keep the promises. `is_short`: the cards were too few for the last plan."""

    question: Question
    cards: Sequence[Accelerator]
    calls: _Calls
    inside: Mix | None
    failed: tuple[Counts, ...]
    played: Played
    is_short: bool = False

    def at(self, step: int) -> Mix:
        """What comes of the plan for the load that is so many steps above the unit. One that is no cheaper than what is
        inside is not looked at: that does as well. Where the cards are too few, all that are left are added."""
        planned_per_s = self.calls.unit_per_s * STEP**step
        needs = _needs(self.question, self.cards, self.calls, planned_per_s)
        counts, self.is_short = _fleet(needs, self.cards)
        headroom = 1 - self.question.per_s / planned_per_s
        found = self._tried(counts, headroom)
        if found.is_possible or not self.is_short:
            return found
        for start in (
            counts,
            (),
            *self.failed,
        ):  # what is planned with too few cards need not be the best use of them
            found = self._tried(_filled(needs, start, self.question.left(self.cards, start)), headroom)
            if found.is_possible:
                return found
        wanted = _needs(self.question, self.cards, self.calls, self.question.per_s)
        return replace(found, why=(_too_few(wanted, self.cards), *found.why))

    def _tried(self, counts: Counts, headroom: float) -> Mix:
        question, inside = self.question, self.inside
        if inside is not None and _worth(question, counts) >= _worth(question, inside.counts):
            return inside
        if counts not in self.played:
            self.played[counts] = _played(question, counts)
        return _of(self, counts, self.played[counts], headroom)


def _of(looking: _Looking, counts: Counts, attained: tuple[Attained, ...], headroom: float) -> Mix:
    names = tuple(card.name for card in looking.cards)
    usd_per_h = looking.question.usd_per_h(counts)
    broken = tuple(f"{fleet_words(counts)}: {_broken(one)}" for one in attained if not one.is_enough)
    return Mix(names, counts, usd_per_h, attained, headroom, why=broken)


def _broken(one: Attained) -> str:
    if not one.runs:
        return f"too few for so many calls, the line of {one.workflow} grows without end"
    return f"in the simulation {one.share or 0:.1%} of the runs of {one.workflow} are on time"


def _groups(question: Question, model: ModelName, cards: Sequence[Accelerator]) -> list[Group]:
    return [
        Group(
            Bounds(
                model,
                card.name,
                0,
                card.count // question.each(model, card.name),
                question.each(model, card.name),
            ),
            question.profiles[model, card.name],
            question.price(model, card),
        )
        for card in cards
        if (model, card.name) in question.profiles
    ]


def _needs(
    question: Question, cards: Sequence[Accelerator], calls: _Calls, planned_per_s: float
) -> list[Need]:
    """What the provisioner would say that each model needs for so many runs per second."""
    attain, found = _attain(question), []
    for model in question.models:
        groups = _groups(question, model, cards)
        kinds = kinds_of(calls.past[model], [group.profile for group in groups], calls.part(model))
        per_s = planned_per_s * calls.each[model]
        found.append(_bounded(need(model, groups, kinds, per_s, attain, headroom=0.0)))
    return found


def _attain(question: Question) -> float:
    """The share of calls that the queues are planned for: the strictest that was asked for runs."""
    return min(MOST_ATTAIN, max(one.attain for one in question.streams if not one.slo.is_empty))


def _bounded(one: Need) -> Need:
    """The same, with no more of any card than would bear all that it can bear of the calls alone: a fleet with more is
    never the cheapest, and the search gets through all that may be."""
    groups = []
    for at, group in enumerate(one.groups):
        each = [
            one.per_s * share / row[at]
            for share, row in zip(one.shares, one.bears, strict=True)
            if row[at] > 0
        ]
        most = min(group.bounds.most, math.ceil(sum(each)))
        groups.append(replace(group, bounds=replace(group.bounds, most=most)))
    return replace(one, groups=tuple(groups))


def _fleet(needs: Sequence[Need], cards: Sequence[Accelerator]) -> tuple[Counts, bool]:
    """The cheapest fleet, and whether the cards are too few for it: then it is the best that can be had."""
    planned = cheapest(needs, {card.name: card.count for card in cards}, math.inf, is_starting_free=True)
    is_short = planned.share < 1 or any(
        one.borne_per_s(planned.counts[one.model]) < one.per_s * (1 - 1e-9) for one in needs
    )
    counts = {
        (one.model, group.bounds.accelerator): count
        for one in needs
        for group, count in zip(one.groups, planned.counts[one.model], strict=True)
        if count
    }
    free = {card.name: card.count for card in cards}
    for one in needs:
        for group in one.groups:
            name = group.bounds.accelerator
            free[name] -= group.bounds.cards * counts.get((one.model, name), 0)
    for one in needs:  # a model that is hardly ever asked needs one all the same, or no run is let in
        if any((one.model, group.bounds.accelerator) in counts for group in one.groups):
            continue
        fit = [group for group in one.groups if free[group.bounds.accelerator] >= group.bounds.cards]
        if not fit:
            return tuple((*key, count) for key, count in counts.items()), True
        first = min(fit, key=lambda group: group.usd_per_h).bounds
        counts[one.model, first.accelerator] = 1
        free[first.accelerator] -= first.cards
    return tuple((*key, count) for key, count in sorted(counts.items())), is_short


def _filled(needs: Sequence[Need], counts: Counts, free: Mapping[AcceleratorName, int]) -> Counts:
    """The fleet with what cards are left, each given to the model that bears the smallest part of its calls."""
    found, left = {(model, card): count for model, card, count in counts}, dict(free)

    def part(one: Need) -> float:
        have = [found.get((one.model, group.bounds.accelerator), 0) for group in one.groups]
        return one.borne_per_s(have) / one.per_s if one.per_s else math.inf

    while True:
        open_to = [
            (one, group.bounds)
            for one in needs
            for group in one.groups
            if left[group.bounds.accelerator] >= group.bounds.cards
            and found.get((one.model, group.bounds.accelerator), 0) < group.bounds.most
        ]
        if not open_to:
            return tuple((*key, count) for key, count in sorted(found.items()))
        one, bounds = min(open_to, key=lambda pair: part(pair[0]))
        found[one.model, bounds.accelerator] = found.get((one.model, bounds.accelerator), 0) + 1
        left[bounds.accelerator] -= bounds.cards


# --- what the kernel says of the calls -------------------------------------------------------------------


def _probed(question: Question, cards: Sequence[Accelerator]) -> _Calls:
    """Play some runs on one replica of every sort, so rarely that hardly any call meets another."""
    pairs = [
        (one, group.bounds.accelerator) for one in question.models for group in _groups(question, one, cards)
    ]
    fleet = {one: [question.profiles[pair] for pair in pairs if pair[0] == one] for one in question.models}
    demand = question.demand
    rarest = min(sum(kind.calls for kind in demand.get(one, [])) for one in question.models)
    count = round(max(PROBE_RUNS, min(MOST_PROBE_RUNS, PROBE_CALLS / rarest if rarest else math.inf)))
    limit_per_s = stability_limit(demand, fleet)
    if math.isinf(limit_per_s):
        raise InvalidInput("no run calls a model, so there is nothing to plan")
    runs = _scripts(question, PROBE_LOAD * limit_per_s, count)
    kernel = Kernel(question.settings)
    watching = Provisioning(
        "static", mode=ProvisionMode.ADVISE, every_s=NEVER_S
    )  # it only takes note of calls
    world = replace(_world(question, tuple((*pair, 1) for pair in pairs)), provisioning=watching)
    records = simulate(world, runs, kernel=kernel)
    each = Counter(call.model for record in records for call in record.calls)
    return _Calls(
        past={one: tuple(kernel.state.pool(one).demand.past) for one in question.models},
        each={one: each[one] / len(runs) for one in question.models},
        alone=_all_attained(question, records),
        takes_s=tuple(_takes_s(one, records) for one in question.streams),
        unit_per_s=limit_per_s,
    )


def _takes_s(stream: Stream, records: Sequence[RunRecord]) -> float | None:
    """The time within which as many runs as asked have come to the first moment that is promised; None if not so many
    ever do."""
    own = [one for one in records if (one.workflow, one.tenant) == stream.key]
    times_s = [
        one.duration_s if stream.slo.ttft_s is None else one.ttft_s or math.inf
        for one in own
        if one.outcome is Outcome.SUCCEEDED
    ]
    found = quantile([*times_s, *(math.inf for _ in range(len(own) - len(times_s)))], stream.attain)
    return None if found is None or math.isinf(found) else found


def _late_anyway(question: Question, cards: Sequence[Accelerator], calls: _Calls) -> Mix | None:
    """The answer for cards on which too few runs are on time whatever their number; None where more may help."""
    names = tuple(card.name for card in cards)
    late = [
        f"{_few(one.share)} of the runs of {one.workflow} are on time on {_or(names)} even without others"
        f"{_within(one, takes_s)}"
        for one, takes_s in zip(calls.alone, calls.takes_s, strict=True)
        if one.share is not None
        and one.share < one.asked - SURE * math.sqrt(one.asked * (1 - one.asked) / one.runs)
    ]
    if not late:
        return None
    slow = [
        why
        for one in _needs(question, cards, calls, question.per_s)
        for why in (*_too_large(one, question), *_hardly_in_time(one, calls, question))
    ]
    return Mix(names, why=(*late, *slow))


def _few(share: float) -> str:
    return f"only {share:.0%}" if share >= 0.005 else "none"


def _within(one: Attained, takes_s: float | None) -> str:
    return "" if takes_s is None else f"; {format_ratio(one.asked)} take up to {_time(takes_s)}"


def _too_large(one: Need, question: Question) -> Iterator[str]:
    """A sentence for calls that no card has the memory for."""
    most = max(group.profile.kv_tokens for group in one.groups)
    for kind in question.demand.get(one.model, ()):
        if kind.prompt_tokens + kind.output_tokens > most:
            sizes = f"{kind.prompt_tokens:.0f} tokens in, {kind.output_tokens:.0f} out"
            yield f"calls of {one.model} (about {sizes}) do not fit into the {most} tokens of memory of any card"


def _hardly_in_time(one: Need, calls: _Calls, question: Question) -> Iterator[str]:
    """A sentence for each kind of call for which every card is too slow, or nearly so."""
    model, cards = one.model, [group.profile for group in one.groups]
    if calls.each[model] and not calls.past[model]:
        yield f"calls of {model} come when they cannot be on time any more; alone they take {_typically(one, question)}"
    for kind in kinds_of(calls.past[model], cards, calls.part(model)):
        if any(
            bearable_per_s(card, kind, _attain(question)) > HARDLY * at_most_per_s(card, kind)
            for card in cards
        ):
            continue
        sizes = f"{kind.prompt_tokens:.0f} tokens in, {kind.output_tokens:.0f} out"
        what = f"{kind.share:.0%} of the calls of {model} (about {sizes})"
        if not any(most_at_once(card, kind) for card in cards):
            gap_ms = 1000 * kind.tpot_s
            yield f"{what} come with more than the promised {gap_ms:.0f} ms between tokens on every card"
        else:
            yield f"{what} have {_time(kind.budget_s)}; alone they take {_alone(kind, cards)}"


def _typically(one: Need, question: Question) -> str:
    """What a call of the model takes on average."""
    kinds = question.demand[one.model]
    calls = sum(kind.calls for kind in kinds)
    prompt = sum(kind.calls * kind.prompt_tokens for kind in kinds) / calls
    output = sum(kind.calls * kind.output_tokens for kind in kinds) / calls
    cards = [group.profile for group in one.groups]
    return " or ".join(
        f"{_time(card.solo_ms(prompt, output) / 1000)} on {card.accelerator}" for card in cards
    )


def _alone(kind: Kind, cards: Sequence[Profile]) -> str:
    return " or ".join(f"{_time(critical_s(card, kind, 1))} on {card.accelerator}" for card in cards)


def _time(value_s: float) -> str:
    return f"{1000 * value_s:.0f} ms" if value_s < 1 else f"{value_s:.3g} s"


def _too_few(needs: Sequence[Need], cards: Sequence[Accelerator]) -> str:
    """The sentence for cards that do not suffice, by what the plan for the load itself needs."""
    have = " and ".join(f"{card.count} {card.name}" for card in cards)
    short = [
        f"{one.model} is asked {one.per_s:.3g} calls/s, and all of them bear {borne:.3g}"
        for one in needs
        if (borne := one.borne_per_s([group.bounds.most for group in one.groups])) < one.per_s * (1 - 1e-9)
    ]
    if len(cards) == 1:
        wants = {
            one.model: math.ceil(one.per_s / one.borne_per_s([1]) - 1e-9)
            for one in needs
            if one.borne_per_s([1])
        }
        cards_each = {one.model: one.groups[0].bounds.cards for one in needs}
        if sum(count * cards_each[model] for model, count in wants.items()) > cards[0].count:
            plan = " and ".join(f"{count} for {model}" for model, count in wants.items())
            return f"{have} are too few: the plan is {plan}"
    elif short:
        return f"{have} are too few: {'; '.join(short)}"
    return f"{have} are too few for {' and '.join(one.model for one in needs)}"


def _or(names: Sequence[str]) -> str:
    return " or ".join(names)


def fleet_words(counts: Counts) -> str:
    """`small on 2 fast, big on 1 fast and 2 slow`."""
    by_model: dict[ModelName, list[str]] = {}
    for model, card, count in counts:
        by_model.setdefault(model, []).append(f"{count} {card}")
    return ", ".join(f"{model} on {' and '.join(cards)}" for model, cards in by_model.items())


# --- playing it ------------------------------------------------------------------------------------------


def _played(question: Question, counts: Counts) -> tuple[Attained, ...]:
    """What comes of every stream when the load arrives at random at this fleet; of one that breaks too many promises,
    what had come of it by then. Nothing of what would be kept at first counts where lines grow without end."""
    if not _bears(question, counts):
        return tuple(
            Attained(one.flow.workflow.name, one.tenants, 0, 0.0, one.attain) for one in question.streams
        )
    runs = _scripts(question, question.per_s, _enough_runs(question))
    judge = _Judge(question, runs)
    try:
        return _all_attained(question, simulate(_world(question, counts), runs, kernel=judge))
    except _GivenUpError:
        return judge.attained()


def _bears(question: Question, counts: Counts) -> bool:
    """Whether there is a replica for every call, and its machines are not busy all the time."""
    fleet: dict[ModelName, list[Profile]] = {}
    for model, card, count in counts:
        fleet.setdefault(model, []).extend([question.profiles[model, card]] * count)
    if not fleet.keys() >= set(question.models):
        return False
    return question.per_s <= BUSY * stability_limit(question.demand, fleet)


class _GivenUpError(Exception):
    """Whatever comes now, too many promises are broken."""


class _Judge(Kernel):
    """The kernel, until more runs of a stream have broken their promise than may: most of the time that it takes to
    simulate an overloaded fleet is saved."""

    def __init__(self, question: Question, runs: Sequence[RunScript]) -> None:
        super().__init__(question.settings)
        self._question = question
        self._ended: Counter[StreamKey] = Counter()
        self._missed: Counter[StreamKey] = Counter()
        counted = runs[round(WARM_UP * len(runs)) :]
        self._counted = {run.run: (run.workflow.name, run.tenant) for run in counted}
        total = Counter(self._counted.values())
        self._may_miss = {one.key: (1 - one.attain) * total[one.key] for one in question.streams}

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """As the kernel does. Raises _GivenUpError."""
        commands = super().handle(event, now_s)
        for command in commands:
            if isinstance(command, FinishRun) and command.run in self._counted:
                key = self._counted[command.run]
                self._ended[key] += 1
                self._missed[key] += command.verdict is Verdict.MISSED
                if self._missed[key] > self._may_miss[key] + 1:  # one for what the clients may see otherwise
                    raise _GivenUpError
        return commands

    def attained(self) -> tuple[Attained, ...]:
        """By the runs that have ended."""
        return tuple(self._of(one) for one in self._question.streams)

    def _of(self, stream: Stream) -> Attained:
        ended, missed = self._ended[stream.key], self._missed[stream.key]
        is_over = missed > self._may_miss[stream.key]
        share = None if stream.slo.is_empty or not is_over else 1 - missed / ended
        return Attained(stream.flow.workflow.name, stream.tenants, ended, share, stream.attain)


def _all_attained(question: Question, records: Sequence[RunRecord]) -> tuple[Attained, ...]:
    counted = records[round(WARM_UP * len(records)) :]
    return tuple(_attained(one, counted) for one in question.streams)


def _attained(stream: Stream, records: Sequence[RunRecord]) -> Attained:
    own = [one for one in records if (one.workflow, one.tenant) == stream.key]
    share = None if stream.slo.is_empty or not own else sum(one.is_met for one in own) / len(own)
    return Attained(stream.flow.workflow.name, stream.tenants, len(own), share, stream.attain)


def _enough_runs(question: Question) -> int:
    """So many that the misses which are tolerated in any stream are a few, and that lines have the time to grow."""
    wanted = [
        ENOUGH_MISSES / max(1e-9, 1 - one.attain) / (one.per_s / question.per_s)
        for one in question.streams
        if one.per_s > 0 and not one.slo.is_empty
    ]
    promises_s = [one.slo.ttft_s or one.slo.e2e_s or 0.0 for one in question.streams]
    lasting = PROMISES * max(promises_s) * question.per_s
    return round(min(MOST_RUNS, max(FEWEST_RUNS, lasting, *wanted)) / (1 - WARM_UP))


def _scripts(question: Question, per_s: float, count: int) -> list[RunScript]:
    shares = tuple(Share(one.flow, one.tenant, one.per_s) for one in question.streams)
    promises = {(one.flow.workflow.id, one.tenant): one.slo for one in question.streams}
    found = scripts(Plan(shares, Poisson(per_s), count=count), SEED)
    return [replace(run, slo=promises[run.workflow.id, run.tenant]) for run in found]


def _world(question: Question, counts: Counts) -> World:
    workflows = {one.flow.workflow.id: one.flow.workflow for one in question.streams}
    return World(
        accelerators=question.accelerators,
        replicas=tuple(_replicas(counts)),
        truths={pair: Truth(profile) for pair, profile in question.profiles.items()},
        beliefs=question.profiles,
        tenants=tuple(Tenant(one.tenant, limits=UNLIMITED) for one in question.streams),
        workflows=tuple(workflows.values()),
        settings=question.settings,
        start_s={card.name: START_S for card in question.accelerators},
        seed=SEED,
    )


def _replicas(counts: Counts) -> Iterator[ReplicaSpec]:
    for model, card, count in counts:
        for index in range(count):
            yield ReplicaSpec(replica_id(model, card, index), model, card)
