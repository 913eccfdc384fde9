"""
Laws of provisioning: what is granted of a proposal, whoever makes it
1. No increase ends above `most`, no decrease below `least`, and each changes something.
2. Nobody has more cards than there are, nor costs more than allowed, draining replicas included; where it is so already
   it grows no worse. One that drains is kept before another is started.
3. What is below `least` is raised to it, or it is said that there is no card or no money for it.
4. There is at most one entry for each action, model and card, and what is not there is not spoken of.
5. Who gets less than was wanted is told what stands in the way.

Laws of kinds and of the replay
6. Kinds are the calls of the past, each in one, with shares that add up to 1, in whatever order they came.
7. Of no calls none is late, without machines all are; a machine more spares some where there were too few.

Laws of least-cost
8. Under a constant demand it comes to a fleet within some rounds, however long starts take, and stays there; what it
   has let go it does not order again. Where calls come by chance, at a constant rate, it changes its direction twice in
   ten minutes at most, all but always.
9. That fleet bears the demand, and more demand never costs less.
10. Without demand for long there are the fewest replicas that are allowed; at most half of them go at once.
11. What the floors of the tenants need is always there.
12. Of a model that nobody hears of nothing is changed, and that is said; the others go on.
13. It asks for nothing else when asked again, and forgets nothing of other models.

14. Cards on which replicas failed are left alone for a while if there are others, and calls that are late because
   replicas are only on their way make it no more careful afterwards.

Laws of the rules of others
15. ray-serve: at once from none to one, else up after 30 s and down after 600 s of wanting it without a break.
16. queue-length: up at once by the length of the line, down to the highest wish of the last five minutes.
17. forecast-throughput: what is forecast over what a replica does of such calls, once a minute.
18. Replicas are laid out over the cards by price for work: the cheapest come first, the dearest go first. static does
   nothing.
19. Provisioners have names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.builders import H100, L40S, MODEL, numbers
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import AcceleratorName, ModelName
from tightrope.model.provision import Bounds, Provisioning, ScaleAction
from tightrope.policy.fleet_plan import need
from tightrope.policy.forecast import Arrivals
from tightrope.policy.kinds import kinds_of
from tightrope.policy.least_cost import LEAST_COST, decide
from tightrope.policy.provision import (
    Demanded,
    Group,
    PastCall,
    Proposal,
    ScaleReason,
    Scaling,
    Situation,
    Wanted,
    granted,
)
from tightrope.policy.provisioners import PROVISIONERS, provisioner
from tightrope.policy.replay import late_share, machines_of
from tightrope.policy.scaling_rules import BUSY, RULES
from tightrope.policy.utilisation import work_ms

OTHER = ModelName("n")
FAST, SLOW = H100.accelerator, L40S.accelerator
PRICES = {FAST: 4.0, SLOW: 1.2}
PROFILES = {FAST: replace(H100, max_sequences=16), SLOW: replace(L40S, max_sequences=16)}
OBSTACLES = {
    ScaleReason.AT_MOST,
    ScaleReason.NO_CARD,
    ScaleReason.BUDGET,
    ScaleReason.BLIND,
    ScaleReason.COOLDOWN,
    ScaleReason.STARTING,
    ScaleReason.REPLAY,
}


def a_group(
    card: AcceleratorName = FAST, *, least: int = 0, most: int = 4, cards: int = 1, **changes: Any
) -> Group:
    """No replica of the model on this card, and up to four of them."""
    bounds = Bounds(MODEL, card, least, most, cards)
    return replace(Group(bounds, PROFILES[card], PRICES[card]), **changes)


def a_demanded(*groups: Group, **changes: Any) -> Demanded:
    """A model that nobody has asked for."""
    return replace(Demanded(MODEL, groups or (a_group(),), Arrivals(), idle_s=math.inf), **changes)


def a_situation(*models: Demanded, now_s: float = 1000.0, cards: int = 100, **changes: Any) -> Situation:
    """The models and cards enough."""
    return replace(Situation(now_s, models, {FAST: cards, SLOW: cards}, Provisioning()), **changes)


def a_call(at_s: float, *, is_long: bool = False, budget_s: float | None = None) -> PastCall:
    """A streamed answer, or with `is_long` a step of work; in time on both cards unless told otherwise."""
    prompt, output = (1500, 250.0) if is_long else (800, 150.0)
    best = PROFILES[FAST]
    own_s = (best.solo_ms(prompt, output) if is_long else best.solo_ttft_ms(prompt)) / 1000
    spare_s = (budget_s or (9.0 if is_long else 2.0)) - own_s
    return PastCall(at_s, prompt, output, own_s, spare_s, math.inf, not is_long)


CHAT = a_call(0.0)
EACH_MS = work_ms(PROFILES[SLOW], CHAT.prompt_tokens, CHAT.output_tokens)


# --- any situation, any proposal -------------------------------------------------------------------------


@st.composite
def groups_on(draw: st.DrawFn, model: ModelName, card: AcceleratorName) -> Group:
    """A group in any state, also one that its bounds do not allow any more."""
    least = draw(st.integers(0, 3))
    bounds = Bounds(model, card, least, least + draw(st.integers(0, 4)), draw(st.sampled_from([1, 1, 2])))
    ready, starting, draining = (draw(st.sampled_from([0, 0, 1, 2, 5])) for _ in range(3))
    failing = draw(st.sampled_from([0, 0, 0, 1]))
    price = draw(st.sampled_from([0.0, 1.0, 1.2, 4.0]))
    return Group(bounds, PROFILES[card], price, ready, starting, draining, failing)


@st.composite
def demandeds(draw: st.DrawFn, model: ModelName) -> Demanded:
    """A model with calls of a minute, in any trouble."""
    cards = draw(st.lists(st.sampled_from([FAST, SLOW]), min_size=1, max_size=2, unique=True))
    groups = tuple(draw(groups_on(model, card)) for card in cards)
    arrivals, past = Arrivals(), list[PastCall]()
    for number in range(draw(st.sampled_from([0, 3, 40]))):
        arrivals.note(940.0 + number)
        past.append(a_call(940.0 + number, is_long=number % 4 == 0))
    return Demanded(
        model,
        groups,
        arrivals,
        tuple(past),
        calls_per_run=draw(st.sampled_from([1.0, 2.5])),
        ongoing=draw(st.sampled_from([0, 0, 7])),
        waiting=draw(st.sampled_from([0, 0, 30])),
        risk=draw(st.sampled_from([0.0, 0.03, 0.5])),
        floor_per_s=draw(st.sampled_from([0.0, 0.0, 20.0])),
        idle_s=draw(st.sampled_from([0.0, 500.0])),
        raised_s=draw(st.sampled_from([-math.inf, 995.0])),
        lowered_s=draw(st.sampled_from([-math.inf, 995.0])),
        is_blind=draw(st.booleans()) and draw(st.booleans()),
    )


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    """Two models on the same cards, of which there may be too few, with a budget that may be too small."""
    models = tuple(draw(demandeds(model)) for model in (MODEL, OTHER))
    cards = {FAST: draw(st.integers(0, 20)), SLOW: draw(st.integers(0, 20))}
    budget = draw(st.sampled_from([math.inf, 3.0, 10.0, 40.0]))
    return Situation(1000.0, models, cards, Provisioning(max_usd_per_h=budget))


@st.composite
def proposals(draw: st.DrawFn) -> tuple[Situation, Proposal]:
    """A situation, and what somebody makes of it: one of the provisioners, or a monkey."""
    situation = draw(situations())
    who = draw(st.sampled_from([None, None, *PROVISIONERS]))
    if who is not None:
        return situation, PROVISIONERS[who].decide(situation)
    some = st.builds(
        Wanted,
        st.sampled_from([MODEL, OTHER, ModelName("stranger")]),
        st.sampled_from([FAST, SLOW]),
        st.integers(0, 12),
        st.just(ScaleReason.TARGET),
    )
    held = st.builds(replace, some, reason=st.sampled_from(sorted(OBSTACLES)))
    wanted, refused = draw(st.lists(some, max_size=6)), draw(st.lists(held, max_size=3))
    return situation, Proposal(tuple(wanted), tuple(refused))


Key = tuple[ModelName, AcceleratorName]


def groups_of(situation: Situation) -> dict[Key, Group]:
    """Every group by its model and card."""
    return {(one.model, group.bounds.accelerator): group for one in situation.models for group in one.groups}


def done(situation: Situation, scalings: Sequence[Scaling]) -> dict[Key, Group]:
    """The groups once the scalings are carried out: what drains is kept first, what goes drains."""
    groups = groups_of(situation)
    for one in scalings:
        key = one.model, one.accelerator
        group, change = groups[key], one.wants - one.had
        if one.action is ScaleAction.UP:
            kept = min(change, group.draining)
            groups[key] = replace(
                group,
                ready=group.ready + kept,
                starting=group.starting + change - kept,
                draining=group.draining - kept,
            )
        elif one.action is ScaleAction.DOWN:
            leaves = min(-change, group.ready)
            groups[key] = replace(group, ready=group.ready - leaves, draining=group.draining + leaves)
    return groups


def cards_used(groups: dict[Key, Group], card: AcceleratorName) -> int:
    """Cards of one kind that somebody has."""
    return sum(
        (group.have + group.draining) * group.bounds.cards
        for (_, accelerator), group in groups.items()
        if accelerator == card
    )


def usd_per_h(groups: dict[Key, Group]) -> float:
    """The price of all."""
    return sum((group.have + group.draining) * group.usd_per_h for group in groups.values())


@given(proposals())
def test_1_bounds_are_kept(asked: tuple[Situation, Proposal]) -> None:
    situation, proposal = asked
    groups = groups_of(situation)
    for one in granted(situation, proposal):
        group = groups[one.model, one.accelerator]
        if one.action is ScaleAction.UP:
            assert group.have == one.had < one.wants <= max(group.bounds.most, group.bounds.least)
        if one.action is ScaleAction.DOWN:
            assert group.have == one.had > one.wants >= group.bounds.least


@given(proposals())
def test_2_cards_and_money_are_kept(asked: tuple[Situation, Proposal]) -> None:
    situation, proposal = asked
    before, after = groups_of(situation), done(situation, granted(situation, proposal))
    for card, count in situation.cards.items():
        assert cards_used(after, card) <= max(count, cards_used(before, card))
    assert usd_per_h(after) <= max(situation.settings.max_usd_per_h + 1e-6, usd_per_h(before))


def test_2_what_drains_is_kept_first() -> None:
    situation = a_situation(a_demanded(a_group(ready=1, draining=2)), cards=3)
    proposal = Proposal((Wanted(MODEL, FAST, 4, ScaleReason.TARGET),))
    assert [(one.action, one.had, one.wants) for one in granted(situation, proposal)] == [
        (ScaleAction.UP, 1, 3),
        (ScaleAction.HOLD, 3, 4),
    ]
    assert granted(situation, proposal)[1].reason is ScaleReason.NO_CARD


def test_2_what_drains_is_paid_already() -> None:
    group = a_group(ready=1, draining=2)
    situation = a_situation(
        a_demanded(group), settings=Provisioning(max_usd_per_h=3 * group.usd_per_h), cards=9
    )
    proposal = Proposal((Wanted(MODEL, FAST, 4, ScaleReason.TARGET),))
    assert [(one.wants, one.reason) for one in granted(situation, proposal)] == [
        (3, ScaleReason.TARGET),
        (4, ScaleReason.BUDGET),
    ]


def test_2_a_decrease_frees_nothing_in_the_same_round() -> None:
    other = replace(a_group(), bounds=Bounds(OTHER, FAST, 0, 4))
    situation = a_situation(a_demanded(a_group(ready=1)), a_demanded(other, model=OTHER), cards=1)
    less, more = Wanted(MODEL, FAST, 0, ScaleReason.IDLE), Wanted(OTHER, FAST, 1, ScaleReason.FORECAST)
    found = granted(situation, Proposal((less, more)))
    assert [(one.action, one.model, one.reason) for one in found] == [
        (ScaleAction.DOWN, MODEL, ScaleReason.IDLE),
        (ScaleAction.HOLD, OTHER, ScaleReason.NO_CARD),
    ]


@given(proposals())
def test_3_the_least_is_there_or_it_is_said_why_not(asked: tuple[Situation, Proposal]) -> None:
    situation, proposal = asked
    scalings = granted(situation, proposal)
    after = done(situation, scalings)
    for key, group in groups_of(situation).items():
        if group.have < group.bounds.least and after[key].have < group.bounds.least:
            said = {one.reason for one in scalings if (one.model, one.accelerator) == key}
            assert said & {ScaleReason.NO_CARD, ScaleReason.BUDGET}
        if group.have >= group.bounds.least:
            assert after[key].have >= group.bounds.least


@given(proposals())
def test_4_everything_is_said_once(asked: tuple[Situation, Proposal]) -> None:
    situation, proposal = asked
    said = [(one.action, one.model, one.accelerator) for one in granted(situation, proposal)]
    assert len(said) == len(set(said))
    assert {key[1:] for key in said} <= set(groups_of(situation))


@given(proposals())
def test_5_who_gets_less_is_told_why(asked: tuple[Situation, Proposal]) -> None:
    situation, proposal = asked
    scalings = granted(situation, proposal)
    held = {(one.model, one.accelerator) for one in scalings if one.action is ScaleAction.HOLD}
    assert all(one.reason in OBSTACLES for one in scalings if one.action is ScaleAction.HOLD)
    assert not any(one.reason in OBSTACLES for one in scalings if one.action is not ScaleAction.HOLD)
    after, seen = done(situation, scalings), set[Key]()
    for wanted in proposal.wanted:
        key = wanted.model, wanted.accelerator
        group = groups_of(situation).get(key)
        if group is None or key in seen or group.have < group.bounds.least:
            continue
        seen.add(key)
        if wanted.count >= group.have:
            assert after[key].have >= wanted.count or key in held
    assert {(one.model, one.accelerator) for one in proposal.refused} & set(after) <= held


# --- kinds and the replay --------------------------------------------------------------------------------

CALLS = st.lists(
    st.builds(
        PastCall,
        at_s=numbers(0, 60),
        prompt_tokens=st.integers(1, 3000),
        output_tokens=numbers(1, 400),
        own_s=numbers(0.01, 5),
        spare_s=st.one_of(st.just(math.inf), numbers(0.05, 20)),
        tpot_s=st.sampled_from([math.inf, 0.05]),
        is_terminal=st.booleans(),
    ),
    max_size=12,
)


@given(CALLS, st.randoms(use_true_random=False), numbers(0.05, 1))
def test_6_every_call_is_of_one_kind(calls: list[PastCall], rng: Any, part: float) -> None:
    cards = list(PROFILES.values())
    kinds = kinds_of(calls, cards, part)
    assert sum(kind.share for kind in kinds) == pytest.approx(1.0 if calls else 0.0)
    for name in ("prompt_tokens", "output_tokens"):
        mean = sum(kind.share * getattr(kind, name) for kind in kinds) * len(calls)
        assert mean == pytest.approx(sum(getattr(call, name) for call in calls))
    shuffled = list(calls)
    rng.shuffle(shuffled)
    for kind, again in zip(kinds, kinds_of(shuffled, cards, part), strict=True):
        assert (again.share, again.budget_s, again.tpot_s) == (kind.share, kind.budget_s, kind.tpot_s)


def test_6_calls_are_parted_by_where_they_can_be_in_time() -> None:
    easy, hard = a_call(0.0), a_call(1.0, budget_s=0.05)
    kinds = kinds_of([easy, hard, easy, easy], [PROFILES[FAST], PROFILES[SLOW]], 1.0)
    assert [(kind.share, round(kind.budget_s, 6)) for kind in kinds] == [(0.25, 0.05), (0.75, 2.0)]


@given(CALLS, numbers(0.05, 1), numbers(0.05, 1))
def test_6_more_of_the_spare_time_is_more_time(calls: list[PastCall], one: float, other: float) -> None:
    less, more = sorted((one, other))
    for call in calls:
        assert call.own_s <= call.budget_s(less) <= call.budget_s(more)


@given(CALLS, numbers(0.05, 1))
def test_7_none_of_none_and_all_without_machines(calls: list[PastCall], part: float) -> None:
    calls.sort(key=lambda call: call.at_s)
    machines = list(PROFILES.values())
    assert late_share([], part, machines) == 0
    assert late_share(calls, part, []) == float(bool(calls))
    assert late_share(calls, 1.0, machines) <= late_share(calls, part, machines) <= 1
    patient = [replace(call, spare_s=math.inf) for call in calls]
    assert late_share(patient, part, machines) == 0


def test_7_a_machine_more_helps() -> None:
    group = a_group(SLOW, ready=1, starting=1, draining=3, failing=1)
    assert machines_of([group]) == [PROFILES[SLOW]] * 2
    assert machines_of([group], {SLOW: 1}) == [PROFILES[SLOW]] * 3
    assert machines_of([group, a_group()], {FAST: 1}) == [PROFILES[SLOW], PROFILES[SLOW], PROFILES[FAST]]
    calls = [a_call(index / 16) for index in range(60)]
    shares = [late_share(calls, 1.0, [PROFILES[SLOW]] * count) for count in (1, 2, 4)]
    assert shares[0] > shares[1] > shares[2] == 0


# --- least-cost ------------------------------------------------------------------------------------------


@dataclass
class Loop:
    """A provisioner in a small world: calls come evenly, or by chance if there is an `rng`, and replicas after
    `start_rounds` rounds."""

    per_s: float
    start_rounds: int = 0
    groups: tuple[Group, ...] = (a_group(FAST, most=8), a_group(SLOW, most=8))
    decide: Callable[[Situation], Proposal] = decide
    settings: Provisioning = field(default_factory=Provisioning)
    risk: float = 0.03
    """Tolerated, but too much to become bolder."""
    rng: Random | None = None
    floor_per_s: float = 0.0
    arrivals: Arrivals = field(default_factory=Arrivals)
    past: list[PastCall] = field(default_factory=list)
    moved: list[tuple[int, Scaling]] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)
    coming: list[tuple[int, int]] = field(default_factory=list)
    raised_s: float = -math.inf
    lowered_s: float = -math.inf
    gap: float = 1.0
    rounds: int = 0

    def run(self, rounds: int) -> Loop:
        """So many rounds more."""
        for _ in range(rounds):
            self._round()
        return self

    @property
    def have(self) -> tuple[int, ...]:
        """Replicas by group."""
        return tuple(group.have for group in self.groups)

    @property
    def usd_per_h(self) -> float:
        """What they cost."""
        return sum(group.have * group.usd_per_h for group in self.groups)

    def demanded(self) -> Demanded:
        """The model as the provisioner sees it."""
        now_s = self.rounds * self.settings.every_s
        ready = sum(group.ready for group in self.groups)
        last_s = self.past[-1].at_s if self.past else -math.inf
        return Demanded(
            MODEL,
            self.groups,
            self.arrivals,
            tuple(self.past[-200:]),
            waiting=0 if ready or now_s - last_s > 60 else 1,
            risk=self.risk if ready else 0.0,
            floor_per_s=self.floor_per_s,
            idle_s=now_s - last_s,
            raised_s=self.raised_s,
            lowered_s=self.lowered_s,
        )

    def borne_per_s(self) -> float:
        """What the fleet bears of such calls."""
        settings, one = self.settings, self.demanded()
        kinds = kinds_of(one.past, list(PROFILES.values()), 1.0)
        found = need(MODEL, one.groups, kinds, 0.0, settings.attain, settings.headroom)
        return found.borne_per_s(self.have)

    def _round(self) -> None:
        self.rounds += 1
        now_s = self.rounds * self.settings.every_s
        while self.per_s and (at_s := self._next_s()) < now_s:
            self.arrivals.note(at_s)
            self.past.append(a_call(at_s, is_long=len(self.past) % 4 == 0))
            self.gap = self.rng.expovariate(1.0) if self.rng else 1.0
        for due, at in [one for one in self.coming if one[0] <= self.rounds]:
            self.coming.remove((due, at))
            self._change(at, starting=-1, ready=1)
        situation = a_situation(self.demanded(), now_s=now_s, settings=self.settings, memory=self.memory)
        proposal = self.decide(situation)
        self.memory = dict(proposal.memory)
        for one in granted(situation, proposal):
            if one.action is not ScaleAction.HOLD:
                self.moved.append((self.rounds, one))
                self._carry_out(one, now_s)

    def _next_s(self) -> float:
        if self.rng is None:
            return (len(self.past) + 1) / self.per_s
        return (self.past[-1].at_s if self.past else 0.0) + self.gap / self.per_s

    def _carry_out(self, one: Scaling, now_s: float) -> None:
        (at,) = (at for at, group in enumerate(self.groups) if group.bounds.accelerator == one.accelerator)
        if one.action is ScaleAction.DOWN:
            self.lowered_s = now_s
            self._change(at, ready=one.wants - one.had)
            return
        self.raised_s = now_s
        for _ in range(one.wants - one.had):
            self._change(at, starting=1)
            self.coming.append((self.rounds + self.start_rounds, at))

    def _change(self, at: int, starting: int = 0, ready: int = 0) -> None:
        groups = list(self.groups)
        group = groups[at]
        groups[at] = replace(group, starting=group.starting + starting, ready=group.ready + ready)
        assert min(groups[at].starting, groups[at].ready) >= 0
        self.groups = tuple(groups)


@pytest.mark.parametrize("start_rounds", [0, 1, 5])
@pytest.mark.parametrize("per_s", [0.2, 1.0, 3.0, 9.0])
def test_8_a_constant_demand_comes_to_rest(per_s: float, start_rounds: int) -> None:
    loop = Loop(per_s, start_rounds).run(60)
    assert loop.have != (0, 0)
    assert all(
        rounds <= 12 + 2 * start_rounds or one.action is ScaleAction.DOWN for rounds, one in loop.moved
    )
    assert all(rounds <= 40 for rounds, _ in loop.moved)
    directions = [one.action for _, one in loop.moved]
    assert (ScaleAction.DOWN, ScaleAction.UP) not in pairwise(directions)


@pytest.mark.parametrize("per_s", [1.0, 3.0])
def test_8_also_where_nothing_is_ever_late(per_s: float) -> None:
    loop = Loop(per_s, start_rounds=2, risk=0.0).run(110)
    directions = [one.action for _, one in loop.moved]
    assert (ScaleAction.DOWN, ScaleAction.UP) not in pairwise(directions)
    assert all(rounds <= 90 for rounds, _ in loop.moved)


def most_turns(loop: Loop, within_s: float = 600.0) -> int:
    """The most changes of direction within so many seconds; other cards in place of some are none."""
    every_s = loop.settings.every_s
    moved = [pair for pair in loop.moved if pair[1].reason is not ScaleReason.CHEAPER]
    turned_s = [
        rounds * every_s
        for (_, before), (rounds, after) in pairwise(moved)
        if before.action is not after.action
    ]
    return max((sum(start <= at_s < start + within_s for at_s in turned_s) for start in turned_s), default=0)


@pytest.mark.parametrize("per_s", [0.4, 1.5, 2.3])
def test_8_chance_alone_hardly_ever_turns_it_more_than_twice_in_ten_minutes(per_s: float) -> None:
    loops = [Loop(per_s, start_rounds=seed % 4, rng=Random(seed)).run(160) for seed in range(5)]
    turns = sorted(most_turns(loop) for loop in loops)
    assert turns[-2] <= 2, turns
    assert turns[-1] <= 4, turns


def test_9_more_demand_never_costs_less() -> None:
    loops = [Loop(per_s, start_rounds=1).run(45) for per_s in (0.2, 0.8, 1.5, 3.0, 6.0, 12.0, 24.0)]
    prices = [loop.usd_per_h for loop in loops]
    assert prices == sorted(prices)
    assert prices[0] < prices[-1]
    for loop in loops:
        assert loop.borne_per_s() >= loop.per_s


@pytest.mark.parametrize("least", [0, 1])
def test_10_without_demand_the_fewest_remain(least: int) -> None:
    groups = (a_group(FAST, least=least, ready=2), a_group(SLOW, ready=2))
    loop = Loop(0.0, groups=groups).run(80)
    assert loop.have == (least, 0)
    assert {one.action for _, one in loop.moved} == {ScaleAction.DOWN}
    cooldown_s = loop.settings.cooldown_s
    moments = sorted({rounds * loop.settings.every_s for rounds, _ in loop.moved})
    assert all(later - earlier >= cooldown_s for earlier, later in pairwise(moments))
    assert [one.accelerator for _, one in loop.moved][:1] == [FAST]  # the dearest one first
    first = [one.had - one.wants for rounds, one in loop.moved if rounds == loop.moved[0][0]]
    assert sum(first) == 2


def test_10_not_before_it_was_idle_for_long() -> None:
    loop = Loop(1.0, groups=(a_group(SLOW, ready=1),)).run(4)
    last_s = loop.past[-1].at_s
    loop.per_s = 0.0
    loop.run(90)
    assert loop.have == (0,)
    rounds, last = loop.moved[-1]
    assert (last.wants, last.reason) == (0, ScaleReason.IDLE)
    assert rounds * loop.settings.every_s - last_s >= loop.settings.idle_after_s


@pytest.mark.parametrize("ready", [0, 6])
@pytest.mark.parametrize("calls", [0, 8])
def test_11_the_floor_is_there(ready: int, calls: int) -> None:
    loop = Loop(0.0, groups=(a_group(FAST, most=8, ready=ready),), floor_per_s=12.0)
    loop.past = [a_call(-1000.0, is_long=number % 4 == 0) for number in range(calls)]
    if ready:
        assert loop.borne_per_s() > 12.0
    for _ in range(90):
        loop.run(1)
        assert loop.borne_per_s() >= 12.0 or loop.rounds <= 5
    assert loop.have != (ready,)


@settings(max_examples=30)
@given(situations())
def test_12_blind_ones_are_left_alone(situation: Situation) -> None:
    blind = replace(situation.models[0], is_blind=True)
    seen = replace(situation, models=(blind, *situation.models[1:]))
    proposal = decide(seen)
    assert not any(one.model == blind.model for one in proposal.wanted)
    said = [one for one in proposal.refused if one.model == blind.model]
    assert [one.reason for one in said] == [ScaleReason.BLIND]
    if all(group.have >= group.bounds.least for group in blind.groups):
        entries = [one for one in granted(seen, proposal) if one.model == blind.model]
        assert [(one.action, one.reason) for one in entries] == [(ScaleAction.HOLD, ScaleReason.BLIND)]


def test_12_the_others_go_on() -> None:
    blind = a_demanded(a_group(ready=1), is_blind=True, ongoing=3)
    other = a_demanded(replace(a_group(), bounds=Bounds(OTHER, FAST, 0, 4)), model=OTHER, waiting=1)
    situation = a_situation(blind, other)
    assert [(one.action, one.model) for one in granted(situation, decide(situation))] == [
        (ScaleAction.UP, OTHER),
        (ScaleAction.HOLD, MODEL),
    ]


# --- what went wrong, and what is only on its way --------------------------------------------------------


def test_14_cards_that_failed_are_left_alone_for_a_while() -> None:
    groups = (a_group(FAST, failing=1), a_group(SLOW))
    past = tuple(a_call(940.0 + number) for number in range(40))
    arrivals = Arrivals()
    for call in past:
        arrivals.note(call.at_s)
    one = a_demanded(*groups, past=past, arrivals=arrivals, waiting=9, idle_s=0.0)
    first = decide(a_situation(one))
    assert {(wanted.accelerator, wanted.count > 0) for wanted in first.wanted} == {(SLOW, True)}
    gone = replace(one, groups=(a_group(FAST), a_group(SLOW)))
    for after_s, is_avoided in ((10.0, True), (290.0, True), (310.0, False)):
        situation = a_situation(replace(gone, waiting=900), now_s=1000.0 + after_s, memory=first.memory)
        cards = {wanted.accelerator for wanted in decide(situation).wanted}
        assert (FAST not in cards) == is_avoided
    alone = replace(gone, groups=(a_group(FAST),))
    assert [one.accelerator for one in decide(a_situation(alone, memory=first.memory)).wanted] == [FAST]


def test_14_lateness_while_replicas_start_makes_nobody_careful() -> None:
    def pressure(**changes: Any) -> float:
        memory: dict[str, float] = {}
        for rounds in range(12):
            one = a_demanded(a_group(**changes), risk=0.5, idle_s=0.0)
            memory = dict(decide(a_situation(one, now_s=1000.0 + 5 * rounds, memory=memory)).memory)
        return memory[f"{MODEL}/pressure"]

    assert pressure(ready=1, starting=1) == 1.0
    assert pressure() == 1.0
    assert pressure(ready=1) > 1.5


@settings(max_examples=30)
@given(situations())
def test_13_it_is_a_function_of_what_it_sees(situation: Situation) -> None:
    remembered = replace(situation, memory={"stranger/pressure": 1.5})
    proposal = decide(remembered)
    assert decide(remembered) == proposal
    assert proposal.memory["stranger/pressure"] == 1.5
    assert remembered.memory == {"stranger/pressure": 1.5}


# --- the rules of others ---------------------------------------------------------------------------------


class Course:
    """One rule, asked again and again about a model as it changes; None where it changes nothing."""

    def __init__(self, name: str, **settings: Any) -> None:
        self.decide = provisioner(name).decide
        self.settings = Provisioning(policy=name, **settings)
        self.memory: dict[str, float] = {}

    def at(self, now_s: float, ready: int, **changes: Any) -> int | None:
        """What it wants now of a model with so many replicas on one kind of card."""
        one = a_demanded(a_group(SLOW, most=20, ready=ready), **changes)
        situation = a_situation(one, now_s=now_s, settings=self.settings, memory=self.memory)
        proposal = self.decide(situation)
        self.memory = dict(proposal.memory)
        assert not proposal.refused
        assert len(proposal.wanted) <= 1
        return proposal.wanted[0].count if proposal.wanted else None


def test_15_ray_serve_goes_from_none_to_one_at_once() -> None:
    course = Course("ray-serve")
    assert course.at(0.0, 0) is None
    assert course.at(5.0, 0, waiting=9) == 1


def test_15_ray_serve_waits_before_it_goes_up() -> None:
    course = Course("ray-serve")
    assert course.at(0.0, 1, ongoing=7, waiting=2) is None
    assert course.at(29.0, 1, ongoing=7, waiting=2) is None
    assert course.at(30.0, 1, ongoing=7, waiting=2) == 5
    assert course.at(35.0, 5, ongoing=10, waiting=0) is None


def test_15_ray_serve_waits_anew_after_a_break() -> None:
    course = Course("ray-serve")
    assert course.at(0.0, 1, ongoing=4) is None
    assert course.at(20.0, 1, ongoing=2) is None
    assert course.at(25.0, 1, ongoing=4) is None
    assert course.at(50.0, 1, ongoing=4) is None
    assert course.at(55.0, 1, ongoing=4) == 2


def test_15_ray_serve_waits_long_before_it_goes_down() -> None:
    course = Course("ray-serve")
    assert course.at(0.0, 4, ongoing=2) is None
    assert course.at(599.0, 4, ongoing=2) is None
    assert course.at(600.0, 4, ongoing=2) == 1
    idle = Course("ray-serve")
    assert idle.at(0.0, 1) is None
    assert idle.at(600.0, 1) == 0


def test_15_ray_serve_has_a_target() -> None:
    course = Course("ray-serve", target=10.0)
    assert course.at(0.0, 1, ongoing=21) is None
    assert course.at(30.0, 1, ongoing=21) == 3


def test_16_queue_length_goes_up_at_once() -> None:
    course = Course("queue-length")
    assert course.at(0.0, 0) is None
    assert course.at(1.0, 0, waiting=7) == 1
    assert course.at(2.0, 2, waiting=6) == 6
    assert Course("queue-length", target=3.0).at(0.0, 2, waiting=9) == 3


def test_16_queue_length_tolerates_a_tenth() -> None:
    assert Course("queue-length").at(0.0, 12, waiting=13, ongoing=1) is None
    assert Course("queue-length").at(0.0, 12, waiting=14, ongoing=1) == 14


def test_16_queue_length_goes_down_to_the_highest_wish() -> None:
    course = Course("queue-length")
    assert course.at(0.0, 4, waiting=8, ongoing=1) == 8
    assert course.at(10.0, 8, waiting=3, ongoing=1) is None
    assert course.at(299.0, 8, waiting=3, ongoing=1) is None
    assert course.at(300.0, 8, waiting=3, ongoing=1) == 3
    assert course.at(600.0, 3, waiting=0, ongoing=1) == 1
    assert course.at(900.0, 1, waiting=0, ongoing=0) == 0


@pytest.mark.parametrize("target", [None, 0.5])
def test_17_throughput_divides_what_is_forecast(target: float | None) -> None:
    arrivals = Arrivals()
    for index in range(2000):
        arrivals.note(index / 20)
    expected = math.ceil(20 / ((target or BUSY) * 1000 / EACH_MS))
    course = Course("forecast-throughput", target=target)
    assert expected > 2
    assert course.at(100.0, 2, past=(CHAT,), arrivals=arrivals) == expected


def test_17_throughput_decides_once_a_minute() -> None:
    arrivals = Arrivals()
    for index in range(2000):
        arrivals.note(index / 20)
    course = Course("forecast-throughput")
    assert course.at(0.0, 1) == 0
    assert course.at(59.0, 1, past=(CHAT,), arrivals=arrivals) is None
    assert course.at(100.0, 1, past=(CHAT,), arrivals=arrivals) is not None
    assert course.at(105.0, 0, waiting=1) == 1  # from none at once


@given(
    st.integers(0, 12),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=2),
    st.sampled_from([2.0, 3.0, 20.0]),
)
def test_18_the_cheapest_come_first_and_the_dearest_go_first(
    ongoing: int, counts: list[tuple[int, int, int]], fast_price: float
) -> None:
    groups = tuple(
        a_group(card, least=min(least, ready), most=max(ready, most, least), ready=ready)
        for card, (least, ready, most) in zip((FAST, SLOW), counts, strict=True)
    )
    groups = (replace(groups[0], usd_per_h=fast_price), groups[1])
    one = a_demanded(*groups, ongoing=2 * ongoing, past=(CHAT,))
    if one.have == 0:
        return
    memory = {f"{MODEL}/since": 0.0, f"{MODEL}/side": float((ongoing > one.have) - (ongoing < one.have))}
    found = provisioner("ray-serve").decide(a_situation(one, memory=memory)).wanted
    after = {group.bounds.accelerator: group.have for group in groups}
    after |= {wanted.accelerator: wanted.count for wanted in found}
    lowest = sum(group.bounds.least for group in groups)
    highest = sum(group.bounds.most for group in groups)
    assert sum(after.values()) == min(max(ongoing, lowest), highest)
    by_price = sorted(
        groups,
        key=lambda group: group.usd_per_h * work_ms(group.profile, CHAT.prompt_tokens, CHAT.output_tokens),
    )
    cheap, dear = (group.bounds.accelerator for group in by_price)
    if after[dear] > by_price[1].have:
        assert after[cheap] == by_price[0].bounds.most
    if after[cheap] < by_price[0].have:
        assert after[dear] == by_price[1].bounds.least


@settings(max_examples=30)
@given(situations())
def test_18_static_does_nothing(situation: Situation) -> None:
    proposal = provisioner("static").decide(replace(situation, memory={"x": 1.0}))
    assert proposal == Proposal(memory={"x": 1.0})


def test_19_names() -> None:
    assert provisioner("least-cost") is LEAST_COST
    assert set(PROVISIONERS) >= {LEAST_COST.name, *(rule.name for rule in RULES)}
    with pytest.raises(InvalidInput, match="name one of: least-cost, static, ray-serve"):
        provisioner("cheapest")
    assert all(found.name == name for name, found in PROVISIONERS.items())
