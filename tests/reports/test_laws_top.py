"""
Laws of the view of this moment
1. After every event it counts what the kernel has: replicas by card and state, calls that wait and run, runs under way.
2. Rates and promises are those of all entries of the last while.
3. What costs money is every replica that is not lost, at the price of its cards.
4. A journal read in pieces, cut wherever, gives the same view; a new head begins anew.
5. Every reason of the provisioner has its words, and its numbers stand in them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench.tiny import tiny
from tests.kernel.test_machine import KernelMachine
from tests.sim.worlds import play, sessions
from tightrope.bench.cell import cell_scripts
from tightrope.bench.day import Ask, day_world
from tightrope.bench.scenario import Elastic
from tightrope.kernel.journal import Entry, Head, Reader, read
from tightrope.kernel.kernel import Kernel
from tightrope.model.fleet import ReplicaState
from tightrope.model.ids import AcceleratorName, ModelName
from tightrope.model.messages import CallFailed, Event, FinishRun, RunSubmitted
from tightrope.model.outcome import FailureKind, Outcome, Verdict
from tightrope.model.provision import Provisioning
from tightrope.reports.top import KEPT_S, LATELY_S, Follower, Top, follow
from tightrope.reports.top_text import render
from tightrope.sim.driver import simulate
from tightrope.sim.workload import RunScript
from tightrope.sim.world import Outage, World

CARDS = (AcceleratorName("h100"), AcceleratorName("l40s"))


@cache
def elastic_journal() -> tuple[str, ...]:
    """A provisioner that begins with nothing, and a while in which there are no cards."""
    scenario = tiny(elastic=Elastic(tuple((card, 3.0) for card in CARDS)), duration_s=40.0)
    quick = Provisioning(idle_after_s=5.0, cooldown_s=3.0)
    ask = Ask(scenario, 8.0, 1, quick, outages=tuple(Outage(card, 12.0, 16.0) for card in CARDS))
    runs = cell_scripts(scenario, ask.rate_per_s, 1)
    lines: list[str] = []
    simulate(day_world(ask, runs), runs, journal=lines.append)
    return tuple(lines)


def as_it_went(lines: Sequence[str]) -> Iterator[tuple[Kernel, Follower]]:
    """A kernel that is told the events, and a follower that is told everything, after each event."""
    kernel: Kernel | None = None
    follower = Follower()
    pending = False
    for item in read(lines):
        if isinstance(item, Entry) and not item.is_command and pending:
            assert kernel is not None
            yield kernel, follower
        follower.take(item)
        if isinstance(item, Head):
            kernel = Kernel(item.settings)
        elif isinstance(item, Entry) and not item.is_command:
            assert kernel is not None
            kernel.handle(cast(Event, item.message), item.at_s)
            pending = True
    assert kernel is not None
    yield kernel, follower


def looked(follower: Follower) -> Top:
    top = follower.top()
    assert top is not None
    return top


# --- 1, 3 ------------------------------------------------------------------------------------------------


def counted(kernel: Kernel) -> tuple[object, ...]:
    """What the kernel's own tables say."""
    state = kernel.state
    replicas = Counter(
        (one.spec.model, one.spec.accelerator, one.state.value) for one in state.replicas.values()
    )
    waiting = Counter({model: len(pool.line) for model, pool in state.pools.items()})
    running = Counter(
        {
            model: sum(len(replica.held) for replica in pool.replicas.values())
            for model, pool in state.pools.items()
        }
    )
    underway = Counter((run.tenant, run.template.workflow.name) for run in state.runs.values())
    usd = sum(
        state.accelerators[one.spec.accelerator].usd_per_h
        for one in state.replicas.values()
        if one.state is not ReplicaState.LOST
    )
    return +replicas, +waiting, +running, +underway, pytest.approx(usd)


def seen(top: Top) -> tuple[object, ...]:
    """The same as the view has it."""
    replicas: Counter[tuple[ModelName, AcceleratorName, str]] = Counter()
    for row in top.models:
        for card in row.cards:
            for name in ("starting", "ready", "ejected", "draining", "lost"):
                replicas[row.model, card.accelerator, name] += getattr(card, name)
    waiting = Counter({row.model: row.waiting for row in top.models})
    running = Counter({row.model: row.running for row in top.models})
    underway = Counter({(row.tenant, row.workflow): row.underway for row in top.runs})
    return +replicas, +waiting, +running, +underway, top.usd_per_h


def test_1_and_3_a_fleet_that_follows_the_load_is_counted_as_the_kernel_does() -> None:
    states = set()
    for kernel, follower in as_it_went(elastic_journal()):
        assert seen(looked(follower)) == counted(kernel)
        states |= {one.state for one in kernel.state.replicas.values()}
    assert states == set(ReplicaState) - {ReplicaState.EJECTED}


@settings(deadline=None, max_examples=15)
@given(sessions())
def test_1_and_3_simulated_sessions_are_counted_as_the_kernel_does(
    session: tuple[World, list[RunScript]],
) -> None:
    for kernel, follower in as_it_went(play(*session).lines):
        assert seen(looked(follower)) == counted(kernel)


class FollowedMachine(KernelMachine):
    """The same for whatever may happen to a kernel. Whether an answer of the wrong shape is asked for again depends on
    what was learned, which no journal tells, so none is wrong."""

    def tell(self, event: Event) -> None:
        if isinstance(event, CallFailed) and event.failure is FailureKind.BAD_OUTPUT:
            event = replace(event, failure=FailureKind.BAD_REQUEST)
        if not self.events:
            self.follower = Follower()
            self.follower.take(Head(self.kernel.settings, 0.0, 0.0))
        super().tell(event)
        self.follower.take(Entry(self.now_s, event, False))
        for command in self.said[-1]:
            self.follower.take(Entry(self.now_s, command, True))
        assert seen(looked(self.follower)) == counted(self.kernel)

    def replays_alike(self) -> None:
        """That is another law."""


FollowedMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=60, deadline=None)
TestFollowed = FollowedMachine.TestCase


# --- 2 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0.2, 0.6, 1.0])
def test_2_rates_and_promises_are_those_of_the_last_while(part: float) -> None:
    lines = elastic_journal()
    lines = lines[: round(part * len(lines))]
    found = [item for item in read(lines) if isinstance(item, Entry)]
    now_s = found[-1].at_s
    top = follow(read(lines))
    assert top is not None
    for row in top.runs:
        arrived = [
            entry
            for entry in found
            if isinstance(entry.message, RunSubmitted)
            and (entry.message.tenant, entry.message.workflow.partition("@")[0]) == (row.tenant, row.workflow)
        ]
        lately = [entry for entry in arrived if entry.at_s > now_s - LATELY_S]
        assert row.per_s == pytest.approx(len(lately) / max(1.0, min(LATELY_S, now_s)))
        runs = {entry.message.run for entry in arrived if isinstance(entry.message, RunSubmitted)}
        ends = [
            entry.message
            for entry in found
            if isinstance(entry.message, FinishRun)
            and entry.message.run in runs
            and entry.at_s > now_s - KEPT_S
        ]
        assert row.ended == len(ends)
        assert row.met == sum(end.verdict is Verdict.MET for end in ends)
        assert row.promised == sum(end.verdict is not Verdict.NONE for end in ends)
        assert row.failed == sum(end.outcome is not Outcome.SUCCEEDED for end in ends)


def test_2_later_nothing_is_new_any_more() -> None:
    follower = Follower()
    for item in read(elastic_journal()):
        follower.take(item)
    later = follower.top(KEPT_S + 1)
    assert later is not None
    assert all(row.per_s == 0 for row in later.models)
    assert all(row.per_s == 0 for row in later.runs)
    assert all(row.ended == 0 and row.attainment is None for row in later.runs)
    assert any(row.ended for row in looked(follower).runs)


# --- 4 ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 10**6))
def test_4_a_session_before_is_of_no_account(cut: int) -> None:
    lines = elastic_journal()
    before = "".join(lines[: cut % len(lines)])
    torn = before[: len(before) - cut % 40].splitlines(keepends=True)
    assert follow(read([*torn, *lines])) == follow(read(lines))


def test_4_without_a_session_there_is_no_view() -> None:
    assert follow([]) is None
    assert Reader().take("\n") is None


# --- 5 ---------------------------------------------------------------------------------------------------


def test_5_the_text_holds_what_the_provisioner_said() -> None:
    top = follow(read(elastic_journal()))
    assert top is not None
    text = render(top)
    assert all(said.sentence in text for said in top.said)
    assert "provisioner least-cost, act" in text
    assert "ejected" not in text
