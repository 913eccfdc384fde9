"""What one routing decision costs, by policy, size of the pool and calls on each replica.

Owns the pool that is asked: replicas on two unequal cards, kept by the kernel's roster, with calls in all phases.
Calls are dispatched as the policy says (one that finds no room is lost), have their first tokens and end about
when they are expected to, as many as begin. Keeping the replicas in order is a part of those events (`kernel.py`).
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import fmean

from tightrope.kernel.roster import Roster
from tightrope.model.fleet import HeldCall, Job, PoolView, ReplicaView
from tightrope.model.ids import AcceleratorName, CallId, ModelName, ReplicaId
from tightrope.model.profile import Coefficients, Profile
from tightrope.policy import ROUTERS
from tightrope.policy.load import standing

CELLS = ((4, 8), (64, 8), (64, 64), (1000, 8), (10_000, 8))
"""Replicas, and calls on each of the faster half; the others hold half as many."""
NOW_S = 100.0
MODEL = ModelName("llama")
# Llama-3.1-8B on two cards, fitted from the measured tables of ai-dynamo/aiconfigurator (Apache-2.0).
CARDS = {
    "h100": Coefficients(6.366, 0.010993, 4.1558e-5, 0.015197, 9.7802e-7, 4.0),
    "l40s": Coefficients(22.447, 0.033405, 1.92881e-4, 0.048263, 3.6192e-6, 4.0),
}
PROFILES = [
    Profile(MODEL, AcceleratorName(card), CARDS[card], 2048, 128, 400_000) for card in ("h100", "l40s")
]


@dataclass(frozen=True, slots=True)
class DecisionCost:
    """Microseconds of processor time of one decision, over `decisions` of them."""

    policy: str
    replicas: int
    calls: int
    decisions: int
    p50_us: float
    p99_us: float


def decision_costs(
    cells: Sequence[tuple[int, int]] = CELLS,
    policies: Sequence[str] = tuple(ROUTERS),
    budget_s: float = 1.0,
    seed: int = 1,
) -> list[DecisionCost]:
    """Every policy in every cell; each takes about `budget_s` and at least 20 decisions."""
    return [_cost(policy, *cell, budget_s, seed) for policy in policies for cell in cells]


def _cost(policy: str, replicas: int, calls: int, budget_s: float, seed: int) -> DecisionCost:
    rng = Random(seed)
    world = SteadyPool(policy, replicas, calls, rng)
    world.decide()  # the first one sorts the whole pool
    took_us: list[float] = []
    until_s = time.perf_counter() + budget_s
    while len(took_us) < 20 or time.perf_counter() < until_s:
        took_us.append(world.decide() / 1000)
    took_us.sort()
    return DecisionCost(policy, replicas, calls, len(took_us), _at(took_us, 0.5), _at(took_us, 0.99))


def _at(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


class SteadyPool:
    """A pool in which as many calls end as begin."""

    def __init__(self, policy: str, replicas: int, calls: int, rng: Random) -> None:
        self.now_s = NOW_S
        views = a_pool(replicas, calls, rng).replicas
        self.roster = Roster(ROUTERS[policy].rank, views)
        self._router = ROUTERS[policy]
        self._rng = rng
        self._jobs = 0
        self._heap: list[tuple[float, ReplicaId, CallId, float]] = []
        for view in views:
            for call in view.held:
                self._expect(call, view)
        left_s = fmean(end_s - self.now_s for _, _, _, end_s in self._heap)
        self._gap_s = left_s / len(self._heap)

    def decide(self) -> int:
        """One decision, in nanoseconds of processor time; then the pool goes on as if it had been carried out."""
        job = self.next_job()
        self.roster.settle(self.now_s)
        began_ns = time.process_time_ns()
        pool = PoolView(MODEL, self.roster, self._jobs, self.roster.kinds(self.now_s))
        routed = self._router.choose(job, pool, self.now_s, self._rng)
        took_ns = time.process_time_ns() - began_ns
        view = self.roster.of(routed.replica) if routed is not None else None
        if view is not None and self._router.room(job, view, self.now_s):
            self._dispatch(job, view)
        self._go_on()
        return took_ns

    def next_job(self) -> Job:
        """A call that is ready now."""
        self._jobs += 1
        return a_job(self._jobs, self.now_s, self._rng)

    def _dispatch(self, job: Job, view: ReplicaView) -> None:
        held = HeldCall(
            call=job.call,
            prompt_tokens=job.prompt_tokens,
            output_tokens=job.output_tokens,
            dispatched_s=self.now_s,
            due_s=job.due_s,
            is_terminal=job.is_terminal,
        )
        self._expect(held, view)
        self.roster.put(replace(view, held=(*view.held, held)))

    def _expect(self, call: HeldCall, view: ReplicaView) -> None:
        """Its first token and its end will come up to a third sooner or later than expected."""
        now = standing(view, self.now_s)
        first_s = call.first_token_s
        if first_s is None:
            prompts_ms = now.step_ms + view.profile.solo_ttft_ms(now.left.tokens + call.prompt_tokens)
            first_s = self.now_s + prompts_ms / 1000 * self._rng.uniform(0.7, 1.3)
        end_s = first_s + call.output_tokens * now.step_ms / 1000 * self._rng.uniform(0.7, 1.3)
        end_s = max(end_s, self.now_s + self._rng.uniform(0.01, 1.0))
        next_s = first_s if call.first_token_s is None else end_s
        heapq.heappush(self._heap, (next_s, view.id, call.call, end_s))

    def _go_on(self) -> None:
        """What happens until the next call is ready."""
        self.now_s += self._gap_s
        while self._heap and self._heap[0][0] <= self.now_s:
            at_s, replica, call, end_s = heapq.heappop(self._heap)
            view = self.roster.of(replica)
            assert view is not None
            if at_s < end_s:
                held = tuple(
                    replace(one, first_token_s=min(at_s, self.now_s)) if one.call == call else one
                    for one in view.held
                )
                heapq.heappush(self._heap, (end_s, replica, call, end_s))
            else:
                held = tuple(one for one in view.held if one.call != call)
            self.roster.put(replace(view, held=held))


# --- a pool in the middle of its work ---------------------------------------------------------------------


def a_pool(replicas: int, calls: int, rng: Random) -> PoolView:
    """Replicas of one model, alternating between the cards; on the faster ones about `calls` calls each, on the
    others half as many. At most two of them are in prefill, as late binding leaves it; the others are anywhere
    between their first token and their end, and most can still be on time."""
    return PoolView(MODEL, tuple(_replica(index, calls / (1 + index % 2), rng) for index in range(replicas)))


def _replica(index: int, calls: float, rng: Random) -> ReplicaView:
    profile = PROFILES[index % len(PROFILES)]
    count = max(0, round(rng.gauss(calls, calls / 6)))
    prefilling = min(count, rng.choices((0, 1, 2), (5, 3, 2))[0])
    step_s = profile.coefficients.step_ms(count, 1000 * count) / 1000
    held = [_decoding(f"{index}-{n}", step_s, rng) for n in range(count - prefilling)]
    held.sort(key=lambda call: call.dispatched_s)
    held += [_prefilling(f"{index}-{n}", step_s, rng) for n in range(count - prefilling, count)]
    replica = ReplicaId(f"r{index:05d}")
    return ReplicaView(replica, MODEL, profile.accelerator, profile, 1.0, tuple(held))


def _decoding(name: str, step_s: float, rng: Random) -> HeldCall:
    output = _output(rng)
    begun_s = NOW_S - output * rng.random() * step_s
    due_s = begun_s + 1.2 * output * step_s + rng.uniform(-0.5, 3.0)
    return HeldCall(
        CallId(name), _prompt(rng), output, begun_s - 0.1, due_s, rng.random() < 0.5, first_token_s=begun_s
    )


def _prefilling(name: str, step_s: float, rng: Random) -> HeldCall:
    is_terminal, output = rng.random() < 0.5, _output(rng)
    due_s = NOW_S + 0.2 + (0.0 if is_terminal else 1.2 * output * step_s) + rng.uniform(-0.2, 3.0)
    return HeldCall(
        CallId(name), min(1000, _prompt(rng)), output, NOW_S - rng.uniform(0, 0.1), due_s, is_terminal
    )


def a_job(number: int, now_s: float, rng: Random) -> Job:
    """A call of any size that is ready now; one in two counts until its first token."""
    due_s = now_s + rng.uniform(0.2, 4.0)
    return Job(
        call=CallId(f"job-{number}"),
        model=MODEL,
        prompt_tokens=_prompt(rng),
        output_tokens=_output(rng),
        output_high=600,
        ready_s=now_s,
        due_s=due_s,
        budget_s=due_s - now_s,
        is_terminal=rng.random() < 0.5,
    )


def _prompt(rng: Random) -> int:
    return rng.randint(100, 3000)


def _output(rng: Random) -> float:
    return min(600.0, max(5.0, rng.lognormvariate(5.0, 0.7)))
