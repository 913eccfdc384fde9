"""
Laws of a simulated fleet that changes
1. A day of arrivals has its mean rate, its trough at both ends and its peak in the middle, and bursts as high as
   said; a surge is as high and as long as said.
2. Equal seeds give equal days; every day is like the first.
3. In an outage the replicas on a card are lost, and none comes up on it before it is over; other cards go on.
4. A slowness is that of the model, wherever it is, also of replicas that come later, and of no other model.
5. Replicas are rented from order to end, one of a fixed fleet for the whole time.
6. A start takes as long as said, give or take the spread, and differs from replica to replica.
7. With a provisioner equal seeds give equal journals, byte by byte, and they replay.
8. No call is aborted because the fleet shrinks: who was dispatched ends.
9. At no moment is more rented than the budget allows, nor more than there are cards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from random import Random
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.worlds import BIG, FAST, SLOW, SMALL, START_S, Played, a_profile, a_script, a_world, play
from tightrope.kernel.journal import replay
from tightrope.model.fleet import Accelerator
from tightrope.model.ids import AcceleratorName, ReplicaId
from tightrope.model.messages import (
    CallDone,
    CallFailed,
    CancelCall,
    Command,
    Dispatch,
    Event,
    NoteScaling,
    ReplicaLost,
    ReplicaReady,
    StartReplica,
    StopReplica,
)
from tightrope.model.outcome import Outcome
from tightrope.model.provision import Bounds, Provisioning, ScaleAction
from tightrope.model.slo import Slo
from tightrope.sim.arrivals import Day, Surge, times
from tightrope.sim.driver import simulate
from tightrope.sim.engine import Truth
from tightrope.sim.workload import CallScript, RunScript
from tightrope.sim.world import Fault, Outage, Rented, Slowness, World
from tightrope.testing import a_chain

M = TypeVar("M", bound=Event | Command)
S0, S1 = ReplicaId("s0"), ReplicaId("s1")
CHAT = a_chain("answer", max_tokens=500, slo=Slo(ttft_s=1.0))


def of(kind: type[M], played: Played) -> list[tuple[float, M]]:
    return [(at_s, message) for at_s, message in played.said if isinstance(message, kind)]


# --- days ------------------------------------------------------------------------------------------------


def a_trace(seed: int, gaps: int = 300) -> tuple[float, ...]:
    """A recorded load of some other rate."""
    rng, at_s, seen = Random(seed), 0.0, list[float]()
    for _ in range(gaps):
        seen.append(at_s)
        at_s += rng.expovariate(17.0)
    return tuple(seen)


TRACES = (a_trace(1), a_trace(2, 211))
PLAIN = Day(TRACES, rate_per_s=4.0, length_s=200.0, trough=0.1, bursts=0)
DAYS = 40


def counted(moments: Sequence[float], day: Day, from_s: float, to_s: float) -> float:
    """Arrivals per second between two times of the day, over all days."""
    count = sum(from_s <= at_s % day.length_s < to_s for at_s in moments)
    return count / (to_s - from_s) / DAYS


def expected(day: Day, from_s: float, to_s: float) -> float:
    """The mean of a half cosine wave between two times of the day, without bursts."""
    high = 2 * day.rate_per_s / (1 + day.trough)
    middle, half = high * (1 + day.trough) / 2, high * (1 - day.trough) / 2
    turn = math.tau / day.length_s
    return middle - half * (math.sin(turn * to_s) - math.sin(turn * from_s)) / (turn * (to_s - from_s))


def test_1_a_day_has_its_rates() -> None:
    moments = times(PLAIN, Random(3), duration_s=DAYS * PLAIN.length_s)
    assert moments == sorted(moments)
    assert len(moments) / DAYS / PLAIN.length_s == pytest.approx(PLAIN.rate_per_s, rel=0.03)
    for tenth in range(10):
        from_s, to_s = tenth * 20.0, (tenth + 1) * 20.0
        assert counted(moments, PLAIN, from_s, to_s) == pytest.approx(expected(PLAIN, from_s, to_s), rel=0.15)
    night = (counted(moments, PLAIN, 0, 10) + counted(moments, PLAIN, 190, 200)) / 2
    noon = counted(moments, PLAIN, 90, 110)
    assert 0.08 < night / noon < 0.16


@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_1_bursts_are_as_high_as_said(factor: float) -> None:
    day = replace(PLAIN, bursts=1, factor=factor, burst_s=25.0)
    start_s = Random(5).uniform(0, day.length_s - day.burst_s)  # the first thing that is drawn
    moments = times(day, Random(5), duration_s=DAYS * day.length_s)
    inside = counted(moments, day, start_s, start_s + day.burst_s)
    assert inside == pytest.approx(factor * expected(day, start_s, start_s + day.burst_s), rel=0.15)
    outside = [at_s for at_s in moments if not start_s <= at_s % day.length_s < start_s + day.burst_s]
    usual = day.length_s * day.rate_per_s - day.burst_s * expected(day, start_s, start_s + day.burst_s)
    assert len(outside) / DAYS == pytest.approx(usual, rel=0.05)


def test_1_a_surge_is_as_high_and_as_long_as_said() -> None:
    surge = Surge(rate_per_s=5.0, at_s=1000.0, lasts_s=500.0, factor=3.0)
    moments = times(surge, Random(1), duration_s=3000.0)
    assert moments == sorted(moments)
    spells = [
        sum(start <= at_s < start + 500 for at_s in moments) / 500 for start in (0, 500, 1000, 1500, 2500)
    ]
    assert spells == pytest.approx([5.0, 5.0, 15.0, 5.0, 5.0], rel=0.1)


@given(
    st.integers(0, 2**32),
    st.builds(
        Day,
        st.just(TRACES),
        st.floats(0.5, 20),
        st.floats(50, 500),
        st.floats(0, 1),
        st.integers(0, 5),
        st.floats(1, 5),
        st.floats(1, 50),
    ),
)
def test_2_equal_seeds_give_equal_days(seed: int, day: Day) -> None:
    first = times(day, Random(seed), count=50)
    assert first == times(day, Random(seed), count=50)
    assert first == sorted(first)
    assert first != times(day, Random(seed + 1), count=50)


# --- outages, slownesses, starts -------------------------------------------------------------------------


def runs(*moments_s: float, answer: CallScript | None = None) -> list[RunScript]:
    """One run at each of these moments."""
    made = CallScript(400, 20, prompt_bytes=1600) if answer is None else answer
    return [a_script(CHAT, at_s=at_s, number=number, answer=made) for number, at_s in enumerate(moments_s)]


def test_3_an_outage_takes_a_card_away() -> None:
    outage = Outage(FAST, 1.0, 20.0)
    world = a_world(CHAT, replicas="s0:small@fast s1:small@slow", outages=(outage,))
    played = play(world, runs(0.0, 0.99, 2.0, 10.0, 40.0))
    lost = [at_s for at_s, event in of(ReplicaLost, played) if event.replica == S0]
    ready = [at_s for at_s, event in of(ReplicaReady, played) if event.replica == S0]
    assert lost[0] == outage.from_s
    assert len(lost) >= 2  # what was ordered meanwhile did not come
    assert all(outage.from_s <= at_s < outage.to_s for at_s in lost)
    assert ready[0] == 0.0
    assert len(ready) == 2
    assert ready[1] >= outage.to_s
    assert all(event.replica != S1 for _, event in of(ReplicaLost, played))
    assert [record.outcome for record in played.records] == [Outcome.SUCCEEDED] * 5
    on = [record.calls[-1].replica for record in played.records]
    assert on[2:] == [S1, S1, S0]


def test_3_what_is_on_order_is_lost_too() -> None:
    bounds = (Bounds(SMALL, FAST, 0, 1),)
    world = replace(
        an_elastic_world(Provisioning(bounds=bounds)),
        outages=(Outage(FAST, 2.0, 9.0),),
    )
    played = play(world, runs(0.5))
    assert of(StartReplica, played)[0][0] == 0.5
    assert of(ReplicaLost, played)[0][0] == 2.0
    ((ready_s, _),) = of(ReplicaReady, played)
    assert ready_s >= 9.0
    assert played.records[0].outcome is Outcome.SUCCEEDED


def test_4_a_slow_model_is_slow_everywhere() -> None:
    chat = a_chain("answer", name="chat-big", model="big", max_tokens=500)
    world = a_world(
        CHAT,
        chat,
        slownesses=(Slowness(1.0, SMALL, 4.0), Slowness(30.0, SMALL, 1.0)),
        faults=(Fault(10.0, S0, "die"),),
    )
    moments = (0.0, 2.0, 20.0, 31.0)
    small = simulate(world, runs(*moments))
    took = [record.duration_s for record in small]
    assert took[1] == pytest.approx(4 * took[0])
    assert took[2] == pytest.approx(4 * took[0])  # the replica that came up after the first one died
    assert took[3] == pytest.approx(took[0])
    big = simulate(world, [a_script(chat, at_s=at_s, number=at) for at, at_s in enumerate(moments)])
    assert [record.duration_s for record in big] == pytest.approx([big[0].duration_s] * 4)


@pytest.mark.parametrize("seed", range(8))
def test_6_starts_differ_within_the_spread(seed: int) -> None:
    world = a_world(
        CHAT,
        replicas="s0:small@fast s1:small@fast",
        faults=(Fault(1.0, S0, "die"), Fault(1.0, S1, "die")),
        seed=seed,
    )
    back = []
    for spread in (0.0, 0.2):
        played = play(replace(world, start_spread=spread), runs(0.0, 9.0))
        ordered = {event.spec.id: at_s for at_s, event in of(StartReplica, played)}
        back.append([at_s - ordered[event.replica] for at_s, event in of(ReplicaReady, played) if at_s > 0])
    assert back[0] == pytest.approx([START_S, START_S])
    assert all(0.8 * START_S <= took_s <= 1.2 * START_S for took_s in back[1])
    assert len({round(took_s, 6) for took_s in back[1]}) == 2


# --- what is rented --------------------------------------------------------------------------------------


def rented_in(world: World, scripts: Sequence[RunScript]) -> tuple[list[Rented], float]:
    """What was there, and when the last run had ended."""
    rented: list[Rented] = []
    records = simulate(world, scripts, rented=rented)
    return rented, max(record.arrived_s + record.duration_s for record in records)


def test_5_a_fixed_fleet_is_rented_all_the_time() -> None:
    world = a_world(CHAT)
    rented, end_s = rented_in(world, runs(0.0, 3.0))
    assert [(one.spec, one.from_s) for one in rented] == [(spec, 0.0) for spec in world.replicas]
    assert [one.to_s for one in rented] == pytest.approx([end_s, end_s])


def test_5_who_is_lost_is_not_rented_until_it_is_ordered_again() -> None:
    rented, end_s = rented_in(a_world(CHAT, faults=(Fault(1.0, S0, "die"),)), runs(0.0, 8.0))
    spans = [(one.from_s, one.to_s) for one in rented if one.spec.id == S0]
    assert spans == [(0.0, 1.0), (1.5, pytest.approx(end_s))]


@given(st.lists(st.floats(0.0, 20.0), min_size=1, max_size=4), st.integers(0, 99))
def test_5_nobody_is_rented_twice_at_once(moments_s: list[float], seed: int) -> None:
    faults = tuple(
        Fault(at_s, replica, "die") for at_s, replica in zip(moments_s, (S0, S1, S0, S1), strict=False)
    )
    world = a_world(CHAT, replicas="s0:small@fast s1:small@slow", faults=faults, seed=seed, start_spread=0.3)
    rented, end_s = rented_in(world, runs(0.0, 25.0))
    for replica in (S0, S1):
        spans = sorted((one.from_s, one.to_s) for one in rented if one.spec.id == replica)
        assert spans[0][0] == 0.0
        assert spans[-1][1] == pytest.approx(end_s)
        assert all(from_s <= to_s for from_s, to_s in spans)
        assert all(to_s <= next_s for (_, to_s), (next_s, _) in pairwise(spans))


# --- elastic ---------------------------------------------------------------------------------------------

PRICES = {FAST: 4.0, SLOW: 1.0}
CARDS = {FAST: 2, SLOW: 3}
BUDGET_USD_PER_H = 8.0
BOUNDS = (Bounds(SMALL, FAST, 0, 2, load_s=START_S), Bounds(SMALL, SLOW, 0, 4, load_s=START_S))


def an_elastic_world(provisioning: Provisioning, seed: int = 1) -> World:
    """No replica at first, and some noise in everything."""
    kinds = [(model, card) for model in (SMALL, BIG) for card in (FAST, SLOW)]
    world = a_world(
        CHAT,
        accelerators=tuple(Accelerator(card, PRICES[card], count=CARDS[card]) for card in (FAST, SLOW)),
        truths={kind: Truth(a_profile(*kind), noise=0.05) for kind in kinds},
        beliefs={kind: a_profile(*kind) for kind in kinds},
        seed=seed,
        start_spread=0.2,
        network_s=0.001,
        provisioning=provisioning,
    )
    return replace(world, replicas=())


def two_waves(seed: int) -> list[RunScript]:
    """Many runs for a while, hardly any for a while, and many again; long answers among them."""
    rng, at_s, found = Random(seed), 0.5, list[RunScript]()
    while at_s < 110.0:
        answer = CallScript(rng.randint(50, 900), rng.choice([20, 60, 400]), prompt_bytes=2000)
        found.append(a_script(CHAT, at_s=at_s, number=len(found), answer=answer))
        at_s += rng.expovariate(3.0 if at_s < 25 or at_s > 85 else 0.1)
    return found


def a_session(policy: str, seed: int) -> tuple[Played, list[Rented]]:
    """Two waves under one provisioner."""
    hasty = Provisioning(
        policy, BOUNDS, idle_after_s=15.0, cooldown_s=5.0, every_s=2.0, max_usd_per_h=BUDGET_USD_PER_H
    )
    world, lines, rented = an_elastic_world(hasty, seed), list[str](), list[Rented]()
    records = simulate(world, two_waves(seed), lines.append, rented=rented)
    return Played(records, lines), rented


known_session = cache(a_session)
POLICIES = ["least-cost", "queue-length", "ray-serve", "forecast-throughput"]


@pytest.mark.parametrize("policy", POLICIES)
def test_7_the_same_seed_gives_the_same_journal(policy: str) -> None:
    first, again = known_session(policy, 1), a_session(policy, 1)
    assert first[0].lines == again[0].lines
    assert first == again
    assert replay(first[0].lines) is None
    assert known_session(policy, 2)[0].lines != first[0].lines


def held_when_stopped(played: Played) -> list[str]:
    """Calls that were at a replica as it was told to end."""
    there: dict[str, ReplicaId] = {}
    found = []
    for _, message in played.said:
        match message:
            case Dispatch(call, replica=replica):
                there[call] = replica
            case StopReplica(replica):
                found += [call for call, where in there.items() if where == replica]
            case CallDone(call) | CallFailed(call) | CancelCall(call):
                there.pop(call, None)
            case _:
                pass
    return found


def most_at_once(rented: Sequence[Rented], weight: dict[AcceleratorName, float]) -> float:
    """The largest sum of weights that was rented at any moment."""
    moments = {one.from_s for one in rented if one.to_s > one.from_s}
    return max(
        sum(weight[one.spec.accelerator] for one in rented if one.from_s <= at_s < one.to_s)
        for at_s in moments
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", [1, 2])
def test_8_and_9_nobody_is_aborted_and_nothing_is_exceeded(policy: str, seed: int) -> None:
    played, rented = known_session(policy, seed)
    moved = {note.action for _, note in of(NoteScaling, played)}
    assert ScaleAction.UP in moved
    assert ScaleAction.DOWN in moved or policy in ("ray-serve", "queue-length")  # which wait for minutes
    assert of(CancelCall, played) == []
    assert held_when_stopped(played) == []
    for record in played.records:
        assert record.outcome is Outcome.SUCCEEDED
        assert all(call.ended_s is not None for call in record.calls)
    assert most_at_once(rented, PRICES) <= BUDGET_USD_PER_H
    for card, count in CARDS.items():
        assert most_at_once(rented, {FAST: 0.0, SLOW: 0.0, card: 1.0}) <= count


def test_8_a_replica_drains_with_calls_under_way() -> None:
    played = known_session("least-cost", 1)[0]
    downs = [at_s for at_s, note in of(NoteScaling, played) if note.action is ScaleAction.DOWN]
    stops = [at_s for at_s, _ in of(StopReplica, played)]
    assert set(stops) - set(downs)  # some of them later than it was decided
    assert len(stops) <= len(downs)
