"""Prompts that begin alike, from the scripts of a simulation to what engines find in their caches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sim.worlds import BIG, FAST, a_profile, a_script, a_world
from tightrope.kernel.state import KernelSettings
from tightrope.sim.driver import simulate
from tightrope.sim.engine import Truth
from tightrope.sim.workload import CallScript
from tightrope.testing import a_chain

CHAT = a_chain("answer", model=BIG, max_tokens=100)
TOKENS = 100
"""Of one block."""


def cached_share(router: str, block_tokens: int = TOKENS) -> float:
    """The share of all prompt tokens that engines had already: five conversations in turn, on three replicas."""
    world = a_world(
        CHAT, replicas="b0:big@fast b1:big@fast b2:big@fast", settings=KernelSettings(router=router)
    )
    truth = Truth(a_profile(BIG, FAST), block_tokens=block_tokens)
    runs = []
    for number in range(60):
        conversation = number % 5
        blocks = tuple(range(100 * conversation, 100 * conversation + 8))
        call = CallScript(prompt_tokens=900, output_tokens=20, prompt_bytes=3600, blocks=blocks)
        runs.append(a_script(CHAT, at_s=0.4 * number, number=number, answer=call))
    records = simulate(replace(world, truths={(BIG, FAST): truth}), runs)
    calls = [call for record in records for call in record.calls]
    return sum(call.cached_tokens for call in calls) / sum(call.prompt_tokens for call in calls)


def test_prefix_aware_finds_in_caches_what_others_compute_again() -> None:
    """Of 60 prompts the first of each conversation is new; of the others eight ninths are known on one replica."""
    assert cached_share("prefix-aware") == pytest.approx(55 / 60 * 8 / 9)
    assert cached_share("round-robin") < 0.8


def test_without_caches_nothing_is_found_and_everything_is_served() -> None:
    assert cached_share("prefix-aware", block_tokens=0) == 0
