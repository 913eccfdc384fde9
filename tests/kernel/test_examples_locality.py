"""What the kernel takes caches to hold, and what readers were promised per token, as routers come to see it."""

from __future__ import annotations

import math
from random import Random

import pytest

from tests.kernel.script import Script, dispatched
from tightrope import policy
from tightrope.kernel.state import KernelSettings
from tightrope.model.fleet import Job, PoolView, Routed
from tightrope.model.messages import Item
from tightrope.model.slo import Slo
from tightrope.policy.route import Router
from tightrope.testing import a_chain, a_profile

ONE = a_chain("answer", max_tokens=100)
TWO = a_chain("think", "answer", max_tokens=100)
BLOCKS = (11, 12, 13, 14)
PROMPT = Item(prompt_tokens=500, blocks=BLOCKS, block_tokens=100)
ROOMY = a_profile(kv_tokens=10_000)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Job, PoolView]]:
    """Everything that the router `asked`, which otherwise chooses as prefix-aware does, was asked about."""
    seen: list[tuple[Job, PoolView]] = []
    plain = policy.router("prefix-aware")

    def choose(job: Job, pool: PoolView, now_s: float, rng: Random) -> Routed | None:
        seen.append((job, PoolView(pool.model, tuple(pool.replicas), pool.turn)))
        return plain.choose(job, pool, now_s, rng)

    monkeypatch.setattr(policy, "_ROUTERS", known := dict(policy.ROUTERS))
    monkeypatch.setattr(policy, "ROUTERS", known)
    policy.register(Router("asked", choose, plain.room, plain.line))
    return seen


def a_session() -> Script:
    """Two replicas behind the router `asked`, every prompt beginning with the same four blocks."""
    script = Script(ONE, replicas="a b", profiles=[ROOMY], settings=KernelSettings(router="asked"))
    script.items["answer"] = (PROMPT,)
    return script


def test_a_prompt_that_was_sent_before_is_known_where_it_was_sent(asked: list[tuple[Job, PoolView]]) -> None:
    """Nine tenths of four blocks of 100 tokens."""
    script = a_session()
    first = dispatched(script.submit("r1"))
    script.done(first)
    again = dispatched(script.submit("r2"))
    assert [job.hits for job, _ in asked] == [(), ((first.replica, 360.0),)]
    assert (again.replica, again.routed.reason) == (first.replica, "longest-prefix")


def test_a_prompt_that_begins_alike_hits_as_far_as_it_does(asked: list[tuple[Job, PoolView]]) -> None:
    script = a_session()
    first = dispatched(script.submit("r1"))
    script.items["answer"] = (Item(prompt_tokens=500, blocks=(11, 12, 98, 99), block_tokens=100),)
    script.submit("r2")
    assert asked[-1][0].hits == ((first.replica, 180.0),)


def test_what_a_lost_replica_had_is_gone(asked: list[tuple[Job, PoolView]]) -> None:
    script = a_session()
    first = dispatched(script.submit("r1"))
    script.done(first)
    script.lost(first.replica)
    script.ready(first.replica)
    script.submit("r2")
    assert asked[-1][0].hits == ()


def test_prompts_without_blocks_hit_nothing(asked: list[tuple[Job, PoolView]]) -> None:
    script = a_session()
    script.items["answer"] = (Item(prompt_tokens=500),)
    for run in ("r1", "r2"):
        script.done(dispatched(script.submit(run)))
    assert [job.hits for job, _ in asked] == [(), ()]


def test_the_reader_of_the_answer_is_promised_a_rate_and_nobody_else(
    asked: list[tuple[Job, PoolView]],
) -> None:
    script = Script(TWO, replicas="a", profiles=[ROOMY], settings=KernelSettings(router="asked"))
    promise = Slo(ttft_s=5.0, tpot_s=0.1)
    script.done(dispatched(script.submit("r1", slo=promise)))
    script.submit("r2", slo=promise)
    assert [job.tpot_s for job, _ in asked] == [math.inf, 0.1, math.inf]
    assert [call.tpot_s for call in asked[-1][1].replicas[0].held] == [0.1]
    script.submit("r3")
    assert asked[-1][0].tpot_s == math.inf
