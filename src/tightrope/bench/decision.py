"""What one routing decision costs, by policy and size of the pool.

Owns the pool that is asked: replicas on two unequal cards, each holding the same number of calls in all phases.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tightrope.model.fleet import HeldCall, Job, PoolView, ReplicaView
from tightrope.model.ids import AcceleratorName, CallId, ModelName, ReplicaId
from tightrope.model.profile import Coefficients, Profile
from tightrope.policy import ROUTERS

SIZES = (4, 64, 1000)
CALLS_EACH = 8

# Llama-3.1-8B on two cards, fitted from the measured tables of ai-dynamo/aiconfigurator (Apache-2.0).
CARDS = {
    "h100": Coefficients(6.366, 0.010993, 4.1558e-5, 0.015197, 9.7802e-7, 4.0),
    "l40s": Coefficients(22.447, 0.033405, 1.92881e-4, 0.048263, 3.6192e-6, 4.0),
}


@dataclass(frozen=True, slots=True)
class DecisionCost:
    """Microseconds of processor time of one decision, over `decisions` of them."""

    policy: str
    replicas: int
    decisions: int
    p50_us: float
    p99_us: float


def decision_costs(sizes: Sequence[int] = SIZES, budget_s: float = 1.0, seed: int = 1) -> list[DecisionCost]:
    """Every policy at every size; each cell takes about `budget_s` and at least 20 decisions."""
    return [_cost(policy, size, budget_s, seed) for policy in ROUTERS for size in sizes]


def _cost(policy: str, size: int, budget_s: float, seed: int) -> DecisionCost:
    rng = Random(seed)
    router, pool = ROUTERS[policy], a_pool(size, rng)
    took_us: list[float] = []
    until_s = time.perf_counter() + budget_s
    while len(took_us) < 20 or time.perf_counter() < until_s:
        job = _job(len(took_us), rng)
        began_ns = time.process_time_ns()
        router.choose(job, pool, 100.0, rng)
        took_us.append((time.process_time_ns() - began_ns) / 1000)
    took_us.sort()
    return DecisionCost(policy, size, len(took_us), _at(took_us, 0.5), _at(took_us, 0.99))


def _at(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def a_pool(size: int, rng: Random) -> PoolView:
    """`size` replicas of one model, alternating between the cards, with CALLS_EACH calls each."""
    names = list(CARDS)
    return PoolView(
        ModelName("llama"), tuple(_replica(index, names[index % len(names)], rng) for index in range(size))
    )


def _replica(index: int, card: str, rng: Random) -> ReplicaView:
    profile = Profile(ModelName("llama"), AcceleratorName(card), CARDS[card], 2048, 128, 400_000)
    held = tuple(_held(f"{index}-{number}", rng) for number in range(CALLS_EACH))
    return ReplicaView(ReplicaId(f"r{index:05d}"), profile.model, profile.accelerator, profile, 1.0, held)


def _held(name: str, rng: Random) -> HeldCall:
    dispatched_s = 100.0 - rng.uniform(0.0, 2.0)
    has_begun = rng.random() < 0.75
    return HeldCall(
        call=CallId(name),
        prompt_tokens=rng.randint(100, 2000),
        output_tokens=rng.uniform(20, 400),
        dispatched_s=dispatched_s,
        due_s=100.0 + rng.uniform(-0.5, 3.0),
        is_terminal=rng.random() < 0.5,
        first_token_s=dispatched_s + 0.1 if has_begun else None,
    )


def _job(number: int, rng: Random) -> Job:
    due_s = 100.0 + rng.uniform(0.2, 4.0)
    prompt, output = rng.randint(100, 3000), rng.uniform(20, 400)
    return Job(
        call=CallId(f"job-{number}"),
        model=ModelName("llama"),
        prompt_tokens=prompt,
        output_tokens=output,
        output_high=600,
        ready_s=100.0,
        due_s=due_s,
        budget_s=due_s - 100.0,
        is_terminal=rng.random() < 0.5,
    )
