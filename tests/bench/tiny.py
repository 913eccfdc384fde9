"""A scenario that is simulated in no time: one call a run on two unequal cards."""

from __future__ import annotations

from dataclasses import replace

from tightrope.bench.library import known
from tightrope.bench.scenario import Scenario
from tightrope.bench.scenario_form import read_scenario

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
