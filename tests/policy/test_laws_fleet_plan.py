"""
Laws of the cheapest fleet
1. It costs, starts included, what the best of all fleets costs that bear as large a part of the demand, and no larger
   part of SHARES can be borne.
2. It stays within cards, bounds and budget, and bears the part that it says, of all that its model may have.
3. Where as large a part of it can be borne, more demand never costs less; fractions of replicas, never more.
4. Other units of money change no plan, and other units of time neither.
5. What does not come up is not counted on; what is there already is preferred to what must be started.
6. A need leaves `headroom` free, and what no card that can be had does in time, or is so rare that it may be late, is
   borne by all the time that there is.
7. A large search looks at some fleets only: what it finds is possible, bears as much as any fleet could, and is no
   dearer than the best fleet on one kind of card.
8. The linear program finds the largest rate: that of scipy, and of the cases that can be said in a line.
9. The price of a need rises with it, is highest where it cannot be borne, and lower for replicas that are there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.policy.builders import H100, L40S, numbers
from tightrope.model.ids import AcceleratorName, ModelName
from tightrope.model.provision import Bounds
from tightrope.policy.bearing import Kind, at_most_per_s, bearable_per_s
from tightrope.policy.fleet_plan import KEEP_S, SHARES, FleetPlanned, Need, cheapest, need, price
from tightrope.policy.provision import Group
from tightrope.policy.simplex import largest_rate

CARDS = tuple(AcceleratorName(name) for name in ("a", "b", "c"))
MODELS = (ModelName("small"), ModelName("big"))
RATES = st.one_of(st.just(0.0), numbers(0.1, 10))
PRICES = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.75, 8.0])


@dataclass(frozen=True)
class Ask:
    """A question to `cheapest`."""

    needs: tuple[Need, ...]
    cards: Mapping[AcceleratorName, int]
    max_usd_per_h: float
    is_starting_free: bool

    def answer(self) -> FleetPlanned:
        """What it says."""
        return cheapest(self.needs, self.cards, self.max_usd_per_h, is_starting_free=self.is_starting_free)


@st.composite
def needs(draw: st.DrawFn, model: ModelName) -> Need:
    """A model on one to three kinds of card, and one or two kinds of its calls."""
    names = draw(st.lists(st.sampled_from(CARDS), min_size=1, max_size=3, unique=True))
    groups = tuple(draw(groups_on(model, name)) for name in names)
    share = draw(st.sampled_from([0.1, 0.5, 0.8, 1.0]))
    shares = (share, 1 - share) if share < 1 else (1.0,)
    rows = st.tuples(*(RATES for _ in names))
    return Need(model, groups, shares, tuple(draw(rows) for _ in shares), draw(numbers(0, 20)))


@st.composite
def groups_on(draw: st.DrawFn, model: ModelName, card: AcceleratorName) -> Group:
    """Up to three replicas, some of which may be there."""
    least = draw(st.sampled_from([0, 0, 0, 1]))
    bounds = Bounds(model, card, least, draw(st.integers(0, 3)), cards=draw(st.sampled_from([1, 1, 2])))
    return Group(
        bounds,
        H100,
        draw(PRICES),
        ready=draw(st.integers(0, 2)),
        starting=draw(st.integers(0, 1)),
        failing=draw(st.sampled_from([0, 0, 0, 1])),
        load_s=draw(st.sampled_from([0.0, 30.0, 240.0])),
    )


@st.composite
def asks(draw: st.DrawFn) -> Ask:
    """One or two models that share the cards."""
    return Ask(
        needs=tuple(draw(needs(model)) for model in MODELS[: draw(st.integers(1, 2))]),
        cards={name: draw(st.integers(0, 5)) for name in CARDS},
        max_usd_per_h=draw(st.one_of(st.just(math.inf), st.sampled_from([2.0, 5.0, 12.0]))),
        is_starting_free=draw(st.booleans()),
    )


# --- by brute force --------------------------------------------------------------------------------------


def fleets(one: Need) -> list[tuple[int, ...]]:
    """Every fleet that the bounds allow."""
    return list(product(*(range(least(group), max(group.most, least(group)) + 1) for group in one.groups)))


def least(group: Group) -> int:
    return group.bounds.least


def objective(ask: Ask, counts: Sequence[Sequence[int]]) -> float:
    """The price of a fleet and of the starts it needs, in USD/h."""
    found = 0.0
    for one, own in zip(ask.needs, counts, strict=True):
        for group, count in zip(one.groups, own, strict=True):
            started = 0 if ask.is_starting_free else max(0, count - group.have)
            found += group.usd_per_h * (count + started * group.load_s / KEEP_S)
    return found


def usd_per_h(ask: Ask, counts: Sequence[Sequence[int]]) -> float:
    """The price of a fleet."""
    return sum(
        count * group.usd_per_h
        for one, own in zip(ask.needs, counts, strict=True)
        for group, count in zip(one.groups, own, strict=True)
    )


def is_within(ask: Ask, counts: Sequence[Sequence[int]]) -> bool:
    """Whether there are cards and money for a fleet."""
    free = dict(ask.cards)
    for one, own in zip(ask.needs, counts, strict=True):
        for group, count in zip(one.groups, own, strict=True):
            free[group.bounds.accelerator] -= count * group.bounds.cards
    return min(free.values()) >= 0 and usd_per_h(ask, counts) <= ask.max_usd_per_h + 1e-9


def possible_per_s(ask: Ask, one: Need) -> float:
    """What is asked of a model, or all it could bear with all cards if that is less."""
    fitting = [
        max(least(group), min(group.most, ask.cards[group.bounds.accelerator] // group.bounds.cards))
        for group in one.groups
    ]
    return min(one.per_s, one.borne_per_s(fitting))


def by_brute_force(ask: Ask) -> tuple[float, float] | None:
    """The largest part that any fleet bears, and the smallest objective of those that do; None if none is within."""
    for share in SHARES:
        choices = []
        for one in ask.needs:
            per_s = share * possible_per_s(ask, one)
            choices.append([own for own in fleets(one) if per_s <= 0 or one.borne_per_s(own) >= per_s - 1e-9])
        found = [objective(ask, counts) for counts in product(*choices) if is_within(ask, counts)]
        if found:
            return share, min(found)
    return None


def told(ask: Ask, plan: FleetPlanned) -> list[tuple[int, ...]]:
    """The fleets of a plan, in the order of the needs."""
    return [plan.counts[one.model] for one in ask.needs]


@given(asks())
def test_1_nothing_is_cheaper(ask: Ask) -> None:
    plan, best = ask.answer(), by_brute_force(ask)
    if best is None:
        assert plan.share == 0
        assert told(ask, plan) == [tuple(least(group) for group in one.groups) for one in ask.needs]
        return
    assert plan.share == best[0]
    assert objective(ask, told(ask, plan)) == pytest.approx(best[1])


@given(asks())
def test_2_it_is_possible_and_bears_what_it_says(ask: Ask) -> None:
    plan = ask.answer()
    assert set(plan.counts) == {one.model for one in ask.needs}
    assert plan.usd_per_h == pytest.approx(usd_per_h(ask, told(ask, plan)))
    assert is_within(ask, told(ask, plan)) or (plan.share == 0 and by_brute_force(ask) is None)
    for one in ask.needs:
        counts = plan.counts[one.model]
        assert counts in fleets(one)
        if plan.share > 0:
            assert one.borne_per_s(counts) >= plan.share * possible_per_s(ask, one) - 1e-6


@given(asks(), numbers(1, 4))
def test_3_more_demand_never_costs_less(ask: Ask, factor: float) -> None:
    larger = replace(ask, needs=tuple(replace(one, per_s=factor * one.per_s) for one in ask.needs))
    plan, more = ask.answer(), larger.answer()
    assert more.share <= plan.share
    if more.share == plan.share:
        assert objective(ask, told(ask, plan)) <= objective(ask, told(ask, more)) + 1e-9


@given(asks(), st.sampled_from([1 / 64, 0.5, 2.0, 1024.0]))
def test_4_another_currency_changes_nothing(ask: Ask, rate: float) -> None:
    exchanged = replace(
        ask,
        needs=tuple(
            replace(
                one,
                groups=tuple(replace(group, usd_per_h=rate * group.usd_per_h) for group in one.groups),
            )
            for one in ask.needs
        ),
        max_usd_per_h=rate * ask.max_usd_per_h,
    )
    plan, other = ask.answer(), exchanged.answer()
    assert (other.counts, other.share) == (plan.counts, plan.share)
    assert other.usd_per_h == pytest.approx(rate * plan.usd_per_h)


@given(asks(), st.sampled_from([0.5, 2.0, 8.0]))
def test_4_another_clock_changes_nothing(ask: Ask, factor: float) -> None:
    faster = tuple(
        replace(
            one,
            per_s=factor * one.per_s,
            bears=tuple(tuple(factor * rate for rate in row) for row in one.bears),
        )
        for one in ask.needs
    )
    assert replace(ask, needs=faster).answer() == ask.answer()


@given(asks())
def test_3_fractions_of_replicas_would_cost_no_more(ask: Ask) -> None:
    plan = ask.answer()
    for one in ask.needs:
        counts = plan.counts[one.model]
        price = sum(count * group.usd_per_h for count, group in zip(counts, one.groups, strict=True))
        borne_per_s = plan.share * possible_per_s(ask, one)
        assert replace(one, per_s=borne_per_s).usd_per_h <= price + 1e-6


def a_group(card: str, usd_per_h: float, **changes: int) -> Group:
    """Up to four replicas on a card, each on its way for half a minute."""
    group = Group(Bounds(MODELS[0], AcceleratorName(card), 0, 4), H100, usd_per_h)
    return replace(group, **changes)  # type: ignore[arg-type]


def test_5_what_fails_is_not_counted_on() -> None:
    cards = {CARDS[0]: 4, CARDS[1]: 4}
    well = Need(MODELS[0], (a_group("a", 1.0), a_group("b", 3.0)), (1.0,), ((1.0, 1.0),), 2.0)
    assert cheapest([well], cards, math.inf).counts[MODELS[0]] == (2, 0)
    failing = replace(well, groups=(a_group("a", 1.0, failing=1), a_group("b", 3.0)))
    assert cheapest([failing], cards, math.inf).counts[MODELS[0]] == (0, 2)
    partly = replace(well, groups=(a_group("a", 1.0, ready=1, failing=1), a_group("b", 3.0)))
    assert cheapest([partly], cards, math.inf).counts[MODELS[0]] == (1, 1)


def test_5_what_is_there_is_preferred() -> None:
    cards = {CARDS[0]: 4, CARDS[1]: 4}
    groups = (a_group("a", 1.0), a_group("b", 1.02, ready=2))
    one = Need(MODELS[0], groups, (1.0,), ((1.0, 1.0),), 2.0)
    assert cheapest([one], cards, math.inf).counts[MODELS[0]] == (0, 2)
    assert cheapest([one], cards, math.inf, is_starting_free=True).counts[MODELS[0]] == (2, 0)


CHAT = Kind(0.75, prompt_tokens=800, output_tokens=150, budget_s=2.0, is_terminal=True)
WORK = Kind(0.25, prompt_tokens=1200, output_tokens=200, budget_s=8.0)
UNLIKE = (
    Group(Bounds(MODELS[0], CARDS[0], 0, 4), H100, 4.0),
    Group(Bounds(MODELS[0], CARDS[1], 0, 4), L40S, 1.0),
)


@given(numbers(0, 0.5), numbers(0.6, 0.99))
def test_6_headroom_is_left_free(headroom: float, attain: float) -> None:
    found = need(MODELS[0], UNLIKE, (CHAT, WORK), 3.0, attain, headroom)
    assert found.shares == (0.75, 0.25)
    assert found.per_s == 3.0
    for kind, row in zip((CHAT, WORK), found.bears, strict=True):
        expected = [(1 - headroom) * bearable_per_s(group.profile, kind, attain) for group in UNLIKE]
        assert row == pytest.approx(expected, rel=1e-2)


def test_6_what_is_late_anyway_is_borne_by_all_the_time_there_is() -> None:
    late = replace(CHAT, budget_s=0.001)
    found = need(MODELS[0], UNLIKE, (late,), 3.0, 0.95, 0.0)
    expected = [at_most_per_s(group.profile, replace(late, budget_s=math.inf)) for group in UNLIKE]
    assert found.bears[0] == pytest.approx(expected, rel=1e-2)
    one_can = replace(CHAT, budget_s=0.06)
    assert bearable_per_s(L40S, one_can, 0.5) == 0 < bearable_per_s(H100, one_can, 0.5)
    assert need(MODELS[0], UNLIKE, (one_can,), 3.0, 0.5, 0.0).bears[0][1] == 0


@given(numbers(0.5, 0.99), numbers(0.01, 0.3))
def test_6_what_is_rare_needs_no_card_of_its_own(attain: float, share: float) -> None:
    fussy = replace(CHAT, share=share, budget_s=0.06)
    found = need(MODELS[0], UNLIKE, (fussy, replace(CHAT, share=1 - share)), 3.0, attain, 0.0)
    assert (found.bears[0][1] > 0) == (share <= 0.5 * (1 - attain))
    assert found.bears[1][1] == pytest.approx(bearable_per_s(L40S, CHAT, attain), rel=1e-2)


def test_6_cards_that_cannot_be_had_make_no_budget_possible() -> None:
    one_can = replace(CHAT, budget_s=0.06)
    gone = replace(UNLIKE[0], bounds=replace(UNLIKE[0].bounds, most=0))
    found = need(MODELS[0], (gone, UNLIKE[1]), (one_can,), 3.0, 0.9, 0.0)
    assert found.bears[0][1] == pytest.approx(at_most_per_s(L40S, one_can), rel=1e-2)


# --- the price of one need -------------------------------------------------------------------------------


@given(needs(MODELS[0]), numbers(1.1, 4))
def test_9_the_price_rises_with_the_need(one: Need, factor: float) -> None:
    cards = dict.fromkeys(CARDS, 9)
    low, high = price(one, cards), price(replace(one, per_s=factor * one.per_s), cards)
    assert low <= high + 1e-9


def test_9_what_cannot_be_borne_is_the_dearest() -> None:
    cards = dict.fromkeys(CARDS, 9)
    possible = Need(MODELS[0], UNLIKE, (1.0,), ((1.0, 0.5),), 5.9)
    assert price(possible, cards) < price(replace(possible, bears=((0.0, 0.0),)), cards)


def test_9_who_is_there_is_cheaper_than_who_must_come() -> None:
    cards = dict.fromkeys(CARDS, 9)
    new = Need(MODELS[0], UNLIKE, (1.0,), ((3.0, 1.0),), 2.5)
    there = replace(new, groups=(UNLIKE[0], replace(UNLIKE[1], ready=3)))
    assert price(there, cards) < price(new, cards)


# --- large fleets ------------------------------------------------------------------------------------------


@st.composite
def large_asks(draw: st.DrawFn) -> Ask:
    """One model on three kinds of card, more than can be counted up."""
    groups = tuple(
        Group(Bounds(MODELS[0], name, draw(st.integers(0, 2)), draw(st.integers(20, 60))), H100, draw(PRICES))
        for name in CARDS
    )
    row = tuple(draw(numbers(0.1, 10)) for _ in CARDS)
    cards = {name: draw(st.integers(2, 60)) for name in CARDS}
    return Ask((Need(MODELS[0], groups, (1.0,), (row,), draw(numbers(0, 200))),), cards, math.inf, True)


@given(large_asks())
def test_7_large_fleets_bear_all_that_is_possible(ask: Ask) -> None:
    (one,) = ask.needs
    plan = ask.answer()
    counts = plan.counts[MODELS[0]]
    assert plan.share == 1.0
    assert is_within(ask, [counts])
    assert one.borne_per_s(counts) >= possible_per_s(ask, one) - 1e-6
    for group, count in zip(one.groups, counts, strict=True):
        assert least(group) <= count <= group.most


@given(large_asks())
def test_7_large_fleets_are_no_dearer_than_plain_ones(ask: Ask) -> None:
    (one,) = ask.needs
    fewest = [least(group) for group in one.groups]
    for at, group in enumerate(one.groups):
        most = min(group.most, ask.cards[group.bounds.accelerator])
        missing_per_s = one.per_s - one.borne_per_s(fewest)
        count = fewest[at] + max(0, math.ceil(missing_per_s / one.bears[0][at] - 1e-9))
        if count <= most:
            plain = [*fewest[:at], count, *fewest[at + 1 :]]
            assert ask.answer().usd_per_h <= usd_per_h(ask, [plain]) + 1e-6


def test_7_cards_that_are_short_are_filled_up_by_others() -> None:
    groups = tuple(
        Group(Bounds(MODELS[0], name, 0, 60), H100, usd)
        for name, usd in zip(CARDS, (1.0, 1.5, 9.0), strict=True)
    )
    one = Need(MODELS[0], groups, (1.0,), ((1.0, 1.0, 1.0),), 40.0)
    plan = cheapest([one], {CARDS[0]: 30, CARDS[1]: 30, CARDS[2]: 0}, math.inf)
    assert (plan.counts[MODELS[0]], plan.share) == ((30, 10, 0), 1.0)


# --- the linear program ----------------------------------------------------------------------------------

TABLES = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(RATES, min_size=width, max_size=width), min_size=1, max_size=4)
)


@given(TABLES)
def test_8_scipy_finds_the_same(rates: list[list[float]]) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    kinds, cards = len(rates), len(rates[0])
    target = [-1.0] + [0.0] * (kinds * cards)
    done = [
        [1.0, *(-rates[own][card] if own == kind else 0.0 for own in range(kinds) for card in range(cards))]
        for kind in range(kinds)
    ]
    time = [
        [0.0, *(float(own == card) for _ in range(kinds) for own in range(cards))] for card in range(cards)
    ]
    solved = optimize.linprog(target, A_ub=done + time, b_ub=[0.0] * kinds + [1.0] * cards)
    assert largest_rate(rates) == pytest.approx(-solved.fun, rel=1e-6, abs=1e-9)


@given(st.lists(numbers(0.1, 10), min_size=1, max_size=5), numbers(0.01, 100))
def test_8_one_kind_is_shared_and_one_card_shares(rates: list[float], factor: float) -> None:
    assert largest_rate([rates]) == pytest.approx(sum(rates))
    assert largest_rate([[rate] for rate in rates]) == pytest.approx(1 / sum(1 / rate for rate in rates))
    assert largest_rate([[factor * rate for rate in rates]]) == pytest.approx(factor * sum(rates))


@given(TABLES)
def test_8_a_kind_that_is_done_nowhere(rates: list[list[float]]) -> None:
    assume(all(max(row) > 0 for row in rates))
    assert largest_rate(rates) > 0
    assert largest_rate([*rates, [0.0] * len(rates[0])]) == 0


def test_8_specialists_each_do_what_they_are_good_at() -> None:
    assert largest_rate([[4.0, 1.0], [1.0, 4.0]]) == pytest.approx(4.0)
    assert largest_rate([[4.0, 4.0], [0.0, 1.0]]) == pytest.approx(1.0)
    assert largest_rate([]) == 0
