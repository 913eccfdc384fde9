"""fmware-greedy and fmware-target: Algorithm 1 of the paper this system starts from.

Zhang et al., Software Performance Engineering for Foundation Model-Powered Software (2026), section 4. Owns
the serial cost model lx + lq + lr and the two ways to choose by it; what the paper leaves open is a field of
`Reading`, and every reading is a variant. Its budgets come from `slack.py`.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from random import Random
from typing import Literal, get_args

from tightrope.model.fleet import Estimate, Job, PoolView, ReplicaView, Routed
from tightrope.model.ids import AcceleratorName, ReplicaId
from tightrope.model.profile import Profile
from tightrope.policy.baselines import room
from tightrope.policy.estimate import has_slot
from tightrope.policy.route import MOST_OFFERS, Candidate, Choose, Reason, Router, routed

Tokens = Literal["default", "actual"]
Scope = Literal["replica", "card"]
Terminal = Literal["full", "ttft"]
Prefer = Literal["slowest", "fullest"]

GREEDY = "fmware-greedy"
TARGET = "fmware-target"


@dataclass(frozen=True, slots=True)
class Reading:
    """How to read what the paper does not say.

    `tokens`: costs from the profile's fixed token count, or from each call's own. `scope`: delays of the
    replica, or averaged over the pool's replicas on that card. `terminal`: an output node costs the whole
    call, or the time to its first token. `prefer`, in target mode among those within the budget: the slowest
    card, or the replica with the largest cost.
    """

    tokens: Tokens = "default"
    scope: Scope = "replica"
    terminal: Terminal = "full"
    prefer: Prefer = "slowest"


DEFAULT = Reading()


@dataclass(frozen=True, slots=True)
class Priced:
    """A replica and its cost in milliseconds, which is exactly lx + lq + lr, added in this order."""

    view: ReplicaView
    cost: Estimate

    @property
    def rank(self) -> tuple[float, int, str]:
        """Cheapest first, then fewer calls, then the id."""
        return (self.cost.crit, len(self.view.held), self.view.id)


def costs(job: Job, pool: PoolView, now_s: float, reading: Reading = DEFAULT) -> list[Priced]:
    """What the call costs on each replica with a free slot, adding up calls as if they ran one by one."""
    delays = {view.id: _delays(view, now_s, reading) for view in pool.replicas}
    if reading.scope == "card":
        delays = _averaged(pool, delays)
    return [
        Priced(view, _cost(job, view.profile, *delays[view.id], reading))
        for view in pool.replicas
        if has_slot(job, view)
    ]


def greedy(reading: Reading = DEFAULT, name: str = GREEDY) -> Choose:
    """The smallest cost."""

    def choose(job: Job, pool: PoolView, now_s: float, _rng: Random) -> Routed | None:
        return _cheapest(name, job, costs(job, pool, now_s, reading), now_s)

    return choose


def target(reading: Reading = DEFAULT, name: str = TARGET) -> Choose:
    """Of the replicas with a cost strictly below the budget, what leaves the most free; else greedy."""

    def choose(job: Job, pool: PoolView, now_s: float, _rng: Random) -> Routed | None:
        priced = costs(job, pool, now_s, reading)
        budget_ms = job.budget_s * 1000
        within = [one for one in priced if one.cost.crit < budget_ms]
        if not within:
            return _cheapest(name, job, priced, now_s)
        beyond = [one for one in priced if not one.cost.crit < budget_ms]
        return _on_time(name, job, within, beyond, now_s, reading.prefer)

    return choose


FMWARE = (Router(GREEDY, greedy(), room, "arrival"), Router(TARGET, target(), room, "arrival"))


def readings() -> list[Reading]:
    """Every way to read the paper that `greedy` can tell apart: tokens x scope x terminal."""
    return [Reading(*choices) for choices in product(get_args(Tokens), get_args(Scope), get_args(Terminal))]


def _variants() -> Iterator[Router]:
    """`fmware-greedy/actual-replica-ttft`, `fmware-target/actual-replica-ttft-fullest` and so on."""
    for reading in readings():
        fields = f"{reading.tokens}-{reading.scope}-{reading.terminal}"
        name = f"{GREEDY}/{fields}"
        yield Router(name, greedy(reading, name), room, "arrival")
        for prefer in get_args(Prefer):
            name = f"{TARGET}/{fields}-{prefer}"
            yield Router(name, target(replace(reading, prefer=prefer), name), room, "arrival")


FMWARE_VARIANTS = tuple(_variants())


def _delays(view: ReplicaView, now_s: float, reading: Reading) -> tuple[float, float]:
    """lq: the whole work of what waits on the replica. lr: what is left of what runs, by its age."""
    profile, lq, lr = view.profile, 0.0, 0.0
    usual_ms = profile.solo_ms(profile.default_prompt, profile.default_output)
    held = [call for call in view.held if call.has_slot]
    for place, call in enumerate(held):
        is_actual = reading.tokens == "actual"
        full_ms = profile.solo_ms(call.prompt_tokens, call.output_tokens) if is_actual else usual_ms
        if place < profile.max_sequences:
            lr += max(0.0, full_ms - (now_s - call.dispatched_s) * 1000)
        else:
            lq += full_ms
    return lq, lr


def _averaged(
    pool: PoolView, delays: dict[ReplicaId, tuple[float, float]]
) -> dict[ReplicaId, tuple[float, float]]:
    ids_by_card: dict[AcceleratorName, list[ReplicaId]] = defaultdict(list)
    for view in pool.replicas:
        ids_by_card[view.accelerator].append(view.id)
    averaged: dict[ReplicaId, tuple[float, float]] = {}
    for ids in ids_by_card.values():
        lq = sum(delays[replica][0] for replica in ids) / len(ids)
        lr = sum(delays[replica][1] for replica in ids) / len(ids)
        averaged |= dict.fromkeys(ids, (lq, lr))
    return averaged


def _cost(job: Job, profile: Profile, lq: float, lr: float, reading: Reading) -> Estimate:
    prompt, output = float(profile.default_prompt), float(profile.default_output)
    if reading.tokens == "actual":
        prompt, output = float(job.prompt_tokens), job.output_tokens
    first, rest = profile.solo_ttft_ms(prompt), profile.solo_decode_ms(prompt, output)
    lx = first if reading.terminal == "ttft" and job.is_terminal else first + rest
    return Estimate(lx=lx, lq=lq, lr=lr, ttft=first + lq + lr, decode=rest)


def _cheapest(policy: str, job: Job, priced: Sequence[Priced], now_s: float) -> Routed | None:
    if not priced:
        return None
    ranked = heapq.nsmallest(MOST_OFFERS, priced, key=lambda one: one.rank)
    best = ranked[0].cost.crit
    found = [
        Candidate(one.view, one.cost, one.cost.crit, f"slower by {one.cost.crit - best:.0f} ms")
        for one in ranked
    ]
    return routed(policy, Reason.SMALLEST_ESTIMATE, job, now_s, found)


def _on_time(
    policy: str, job: Job, within: Sequence[Priced], beyond: Sequence[Priced], now_s: float, prefer: Prefer
) -> Routed:
    """The choice among those within the budget; those beyond it lose for that reason."""
    budget_ms = job.budget_s * 1000
    free = [
        Candidate(one.view, one.cost, score, "leaves less free for others")
        for score, one in _ranked(within, prefer)
    ]
    over = [
        Candidate(one.view, one.cost, score, f"over the budget by {one.cost.crit - budget_ms:.0f} ms")
        for score, one in _ranked(beyond, prefer)
    ]
    reason = Reason.SLOWEST_ON_TIME if prefer == "slowest" else Reason.FULLEST_ON_TIME
    return routed(policy, reason, job, now_s, free + over)


def _ranked(priced: Sequence[Priced], prefer: Prefer) -> list[tuple[float, Priced]]:
    """What leaves the most free first, with its score: the slower card, or the larger cost."""
    scored = [(-one.cost.lx if prefer == "slowest" else -one.cost.crit, one) for one in priced]
    return heapq.nsmallest(
        MOST_OFFERS, scored, key=lambda pair: (pair[0], pair[1].cost.crit, pair[1].view.id)
    )
