"""A scenario that is simulated in no time: one call a run on two unequal cards."""

from __future__ import annotations

from dataclasses import replace

from tightrope.bench.duel_real import CONTEXT_TOKENS, MODEL, SLOTS
from tightrope.bench.library import known
from tightrope.bench.scenario import Scenario
from tightrope.bench.scenario_form import read_scenario
from tightrope.model.ids import AcceleratorName
from tightrope.model.profile import Coefficients, Profile

TEXT = """\
scenario: tiny
about: For tests.
fleet:
  Qwen3-8B: {h100: 1, l40s: 1}
roles: {large: Qwen3-8B}
tenants: {a: {chat: 60%}, b: {chat: 40%}}
policies: [foresight, power-of-two]
rates: [20%, 40%]
seeds: 100-101
duration: 4s
warm_up: 1s
"""


def tiny(**changes: object) -> Scenario:
    """The scenario, with some fields otherwise."""
    return replace(read_scenario(TEXT, "tiny.yaml", known()), **changes)  # type: ignore[arg-type]


def own_profiles() -> tuple[Profile, ...]:
    """What may have been measured of the engines of a duel on this machine."""
    fast = Profile(
        MODEL,
        AcceleratorName("fast"),
        Coefficients(a=2.4, b=23.0, c=0.03, d=14.0, e=0.01),
        step_tokens=64,
        max_sequences=SLOTS,
        kv_tokens=SLOTS * CONTEXT_TOKENS,
        digest="d",
        engine="llama.cpp",
    )
    slow = replace(
        fast, accelerator=AcceleratorName("slow"), coefficients=fast.coefficients.scaled(2.6), load_s=2.5
    )
    return fast, slow
