"""
Laws of planned fleets
1. What is shown as possible was simulated and keeps every promise, in a simulation of its own too.
2. More load never costs less.
3. More kinds of cards never cost more; what is as good with fewer kinds says so.
4. A mix that cannot do it says why: no profile, too slow, too few cards, no room.
5. Leaving out replicas that are of no use changes no plan.
6. Where nothing has a price, the fewest replicas are the cheapest.
7. What cannot be planned is refused.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.worlds import BIG, FAST, SLOW, SMALL, a_profile
from tightrope.bench import mixes as planning
from tightrope.bench.mixes import Mix, Question, Stream, cheapest_of, choices, fleet_words, mixes
from tightrope.kernel.state import KernelSettings
from tightrope.model.errors import InvalidInput
from tightrope.model.fleet import Accelerator
from tightrope.model.ids import AcceleratorName, StepId, TenantId
from tightrope.model.profile import Profile
from tightrope.model.provision import Bounds
from tightrope.model.slo import Slo
from tightrope.model.workflow import Binding, CodeCall, ModelCall, Node, Prompt, Ref, Workflow
from tightrope.policy.fleet_plan import Need, cheapest
from tightrope.policy.provision import Group
from tightrope.sim.driver import simulate
from tightrope.sim.lengths import CodeTime, Lengths, Lognormal
from tightrope.sim.workload import Flow
from tightrope.sim.world import CardKind

CARDS = (Accelerator(FAST, 3.0, count=6), Accelerator(SLOW, 1.0, count=12))
PAIRS = {(model, card): a_profile(model, card) for model in (SMALL, BIG) for card in (FAST, SLOW)}


def chat(prompt: float = 300.0, output: float = 20.0, name: str = "chat") -> Flow:
    """One call whose answer is read as it is made."""
    node = Node(StepId("answer"), ModelCall(BIG, Prompt(text="say"), 40, stream=True))
    return Flow(Workflow(name, (node,), node.id), {node.id: Lognormal(prompt, output, 40)})


def chain() -> Flow:
    """A draft by the small model, then an answer by the big one."""
    draft = Node(StepId("draft"), ModelCall(SMALL, Prompt(text="draft"), 40))
    answer = Node(
        StepId("answer"),
        ModelCall(BIG, Prompt(text="say"), 40, stream=True),
        inputs=(("draft", Binding((Ref("draft"),))),),
    )
    lengths: dict[StepId, Lengths] = {node.id: Lognormal(300.0, 16.0, 40) for node in (draft, answer)}
    return Flow(Workflow("chain", (draft, answer), answer.id), lengths)


def stream(flow: Flow, slo: Slo, per_s: float, attain: float = 0.95, tenant: str = "me") -> Stream:
    return Stream(flow, (TenantId(tenant),), slo, per_s, attain)


def question(*streams: Stream, **changes: object) -> Question:
    plain = Question(streams, CARDS, PAIRS, KernelSettings())
    return replace(plain, **changes)  # type: ignore[arg-type]


@cache
def planned(per_s: float) -> tuple[Question, tuple[Mix, ...]]:
    """Two workflows on two kinds of cards, one of which is too dear and the other a little slow."""
    asked = question(
        stream(chat(), Slo(ttft_s=0.25), per_s), stream(chain(), Slo(ttft_s=0.9), per_s / 3, tenant="you")
    )
    return asked, tuple(mixes(asked))


LOADS = (6.0, 20.0, 40.0)


def by_cards(found: tuple[Mix, ...]) -> dict[tuple[AcceleratorName, ...], Mix]:
    return {one.accelerators: one for one in found}


# --- 1, 2, 3 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_s", LOADS)
def test_1_what_is_possible_keeps_every_promise(per_s: float) -> None:
    asked, found = planned(per_s)
    assert [one.accelerators for one in found] == [(FAST,), (SLOW,), (FAST, SLOW)]
    best = cheapest_of(asked, found)
    assert best is not None
    for one in found:
        assert all(part.is_enough for part in one.attained) is one.is_possible
        assert one.is_possible == (not one.why)
    runs = planning._scripts(asked, per_s * 4 / 3, 600)
    records = simulate(planning._world(asked, best.counts), runs)
    for part, own in zip(best.attained, asked.streams, strict=True):
        mine = [record for record in records if record.tenant == own.tenant]
        assert part.share is not None
        assert sum(record.is_met for record in mine) / len(mine) == pytest.approx(part.share, abs=0.04)


def test_2_more_load_never_costs_less() -> None:
    prices = []
    for per_s in LOADS:
        asked, found = planned(per_s)
        best = cheapest_of(asked, found)
        prices.append({cards: one.usd_per_h for cards, one in by_cards(found).items() if one.is_possible})
        assert best is not None
    for less, more in pairwise(prices):
        assert all(less[cards] <= more[cards] for cards in less.keys() & more.keys())
        assert more.keys() <= less.keys()


@pytest.mark.parametrize("per_s", LOADS)
def test_3_more_kinds_never_cost_more(per_s: float) -> None:
    _, found = planned(per_s)
    one = by_cards(found)
    both = one[FAST, SLOW]
    for cards in ((FAST,), (SLOW,)):
        if one[cards].is_possible:
            assert both.is_possible
            assert both.usd_per_h <= one[cards].usd_per_h
    if both.like:
        assert both.counts == one[both.like].counts


# --- 4 ---------------------------------------------------------------------------------------------------


def why(asked: Question, *cards: AcceleratorName) -> str:
    (found,) = [one for one in mixes(asked) if one.accelerators == cards]
    assert not found.is_possible
    return "\n".join(found.why)


def test_4_without_a_profile() -> None:
    pairs = {pair: own for pair, own in PAIRS.items() if pair != (SMALL, SLOW)}
    asked = question(stream(chain(), Slo(ttft_s=3.0), 2.0), profiles=pairs)
    assert why(asked, SLOW) == "small has no profile on slow"


def test_4_on_cards_that_are_too_slow() -> None:
    said = why(question(stream(chat(), Slo(ttft_s=0.03), 2.0), accelerators=CARDS[1:]), SLOW)
    assert "of the runs of chat are on time on slow even without others; 95% take up to" in said
    assert "calls of big come when they cannot be on time any more; alone they take" in said
    tight = why(question(stream(chat(), Slo(ttft_s=0.055), 2.0), accelerators=CARDS[1:]), SLOW)
    assert "of the calls of big (about" in tight
    assert "alone they take" in tight


def test_4_after_steps_that_take_too_long() -> None:
    said = why(question(stream(chain(), Slo(ttft_s=0.05), 2.0), accelerators=CARDS[1:]), SLOW)
    assert said.startswith("none of the runs of chain are on time on slow even without others")
    assert "calls of big come when they cannot be on time any more; alone they take" in said


def test_4_with_too_few_cards() -> None:
    one = question(stream(chat(), Slo(ttft_s=0.3), 300.0), accelerators=(replace(CARDS[0], count=2),))
    said = why(one, FAST)
    assert said.startswith("2 fast are too few: the plan is ")
    assert "big on 2 fast: " in said
    few = tuple(replace(card, count=1) for card in CARDS)
    both = question(stream(chain(), Slo(ttft_s=0.9), 100.0), accelerators=few)
    assert why(both, FAST, SLOW).startswith("1 fast and 1 slow are too few: ")


def test_4_without_room_or_with_gaps() -> None:
    tiny = {pair: replace(own, kv_tokens=64) for pair, own in PAIRS.items()}
    assert "do not fit into the 64 tokens of memory of any card" in why(
        question(stream(chat(), Slo(ttft_s=0.3), 1.0), profiles=tiny, accelerators=CARDS[:1]), FAST
    )
    assert "come with more than the promised 5 ms between tokens on every card" in why(
        question(stream(chat(), Slo(ttft_s=0.3, tpot_s=0.005), 1.0), accelerators=CARDS[:1]), FAST
    )


# --- 5 ---------------------------------------------------------------------------------------------------


@st.composite
def needs(draw: st.DrawFn) -> Need:
    groups = tuple(
        Group(Bounds(BIG, AcceleratorName(f"c{at}"), 0, draw(st.integers(0, 6))), PAIRS[BIG, FAST], price)
        for at, price in enumerate(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    )
    kinds = draw(st.integers(1, 3))
    bears = tuple(
        tuple(draw(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5])) for _ in groups) for _ in range(kinds)
    )
    return Need(BIG, groups, tuple(1 / kinds for _ in range(kinds)), bears, draw(st.floats(0.1, 8.0)))


@settings(deadline=None)
@given(needs())
def test_5_replicas_of_no_use_change_no_plan(one: Need) -> None:
    cards = {group.bounds.accelerator: 6 for group in one.groups}
    plain = cheapest([one], cards, math.inf, is_starting_free=True)
    bounded = cheapest([planning._bounded(one)], cards, math.inf, is_starting_free=True)
    assert bounded.share == plain.share
    assert bounded.usd_per_h == pytest.approx(plain.usd_per_h)


# --- 6, 7 ------------------------------------------------------------------------------------------------


def test_6_without_prices_the_fewest_replicas_are_the_cheapest() -> None:
    free = tuple(replace(card, usd_per_h=0.0) for card in CARDS)
    asked = question(stream(chat(), Slo(ttft_s=0.4), 30.0), accelerators=free)
    found = mixes(asked)
    best = cheapest_of(asked, found)
    assert best is not None
    assert best.usd_per_h == 0.0
    assert best.replicas == min(one.replicas for one in found if one.is_possible)
    assert best.accelerators == (FAST,)


def test_6_a_replica_on_several_cards_takes_and_costs_them_all() -> None:
    asked = question(
        stream(chat(), Slo(ttft_s=0.4), 30.0),
        accelerators=(replace(CARDS[0], count=3),),
        cards={(BIG, FAST): 2},
    )
    (found,) = mixes(asked)
    assert found.counts == ((BIG, FAST, 1),)
    assert found.usd_per_h == 6.0
    assert asked.left(asked.accelerators, found.counts) == {FAST: 1}
    more = replace(asked, streams=(stream(chat(), Slo(ttft_s=0.4), 300.0),))
    assert why(more, FAST).splitlines()[-1].startswith("big on 1 fast: ")


def test_7_what_cannot_be_planned_is_refused() -> None:
    code = Node(StepId("answer"), CodeCall("module:function"))
    mute = Flow(Workflow("mute", (code,), code.id), {code.id: CodeTime(0.1)})
    for asked, said in (
        (question(), "there is no load"),
        (question(stream(chat(), Slo(), 1.0)), "nothing is promised to runs of chat"),
        (question(stream(mute, Slo(e2e_s=1.0), 1.0)), "runs of mute call no model"),
    ):
        with pytest.raises(InvalidInput, match=said):
            mixes(asked)


def test_at_most_fifteen_mixes_are_looked_at_the_smallest_first() -> None:
    cards = tuple(Accelerator(AcceleratorName(f"c{at}")) for at in range(6))
    pairs: dict[CardKind, Profile] = {(BIG, card.name): a_profile(BIG, FAST) for card in cards[:5]}
    found = choices(question(stream(chat(), Slo(ttft_s=1.0), 1.0), accelerators=cards, profiles=pairs))
    assert len(found) == 15
    assert [len(one) for one in found] == [1] * 5 + [2] * 10
    assert cards[5] not in {card for one in found for card in one}


def test_fleets_in_words() -> None:
    assert fleet_words(((SMALL, FAST, 2), (SMALL, SLOW, 1), (BIG, FAST, 3))) == (
        "small on 2 fast and 1 slow, big on 3 fast"
    )
