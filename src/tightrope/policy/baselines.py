"""The usual routers: random, round-robin, power-of-two, shortest-queue, least-tokens.

Owns rules that count calls or tokens and never ask how long anything takes. All look only at replicas with a
free slot and bind a call the moment one has been found. Estimates in their decisions are for the reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from random import Random

from tightrope.model.fleet import Job, PoolView, ReplicaView, Routed
from tightrope.policy.estimate import estimate, has_slot
from tightrope.policy.load import standing
from tightrope.policy.route import Candidate, Reason, Router, routed


def choose_random(job: Job, pool: PoolView, now_s: float, rng: Random) -> Routed | None:
    """Any replica with a free slot, all equally likely."""
    free = _free(job, pool)
    if not free:
        return None
    rng.shuffle(free)
    found = [_candidate(job, view, now_s, 0.0, "not drawn") for view in free[:2]]
    return routed("random", Reason.UNIFORM, job, now_s, found)


def choose_round_robin(job: Job, pool: PoolView, now_s: float, _rng: Random) -> Routed | None:
    """The next in id order that has a free slot, counted on from the calls dispatched so far."""
    count = len(pool.replicas)
    in_turn = (pool.replicas[(pool.turn + step) % count] for step in range(count))
    free = list(islice(((float(step), view) for step, view in enumerate(in_turn) if has_slot(job, view)), 2))
    if not free:
        return None
    found = [_candidate(job, view, now_s, step, "not its turn") for step, view in free]
    return routed("round-robin", Reason.NEXT_IN_TURN, job, now_s, found)


def choose_power_of_two(job: Job, pool: PoolView, now_s: float, rng: Random) -> Routed | None:
    """Draw two distinct replicas and take the one with fewer calls (Mitzenmacher 2001; Ray Serve's default).

    If one of them is full the other is taken; if both are, the call waits and draws again.
    """
    drawn = rng.sample(pool.replicas, min(2, len(pool.replicas)))
    free = [view for view in drawn if has_slot(job, view)]
    return _fewest("power-of-two", job, free, now_s, rng)


def choose_shortest_queue(job: Job, pool: PoolView, now_s: float, rng: Random) -> Routed | None:
    """The replica with the fewest calls; chance decides between equals."""
    return _fewest("shortest-queue", job, _free(job, pool), now_s, rng)


def choose_least_tokens(job: Job, pool: PoolView, now_s: float, _rng: Random) -> Routed | None:
    """The replica with the fewest tokens before it: prompts not yet computed and expected output left."""
    tokens = ((tokens_left(view, now_s), len(view.held), view.id, view) for view in _free(job, pool))
    ranked = sorted(tokens, key=lambda entry: entry[:3])[:2]
    if not ranked:
        return None
    least = ranked[0][0]
    found = [
        _candidate(job, view, now_s, left, f"{left - least:.0f} tokens more") for left, _, _, view in ranked
    ]
    return routed("least-tokens", Reason.FEWEST_TOKENS, job, now_s, found)


def tokens_left(view: ReplicaView, now_s: float) -> float:
    """Tokens the replica has still to compute or to produce for the calls it holds."""
    now = standing(view, now_s)
    sums = now.gauge
    waiting = (*sums.prefilling, *sums.queued)
    prompts = now.left.tokens + sums.waiting.tokens
    return prompts + sum(now.output_left) + sum(call.output_tokens for call in waiting)


def room(job: Job, view: ReplicaView, _now_s: float) -> bool:
    """A free slot."""
    return has_slot(job, view)


BASELINES = (
    Router("random", choose_random, room, "arrival"),
    Router("round-robin", choose_round_robin, room, "arrival"),
    Router("power-of-two", choose_power_of_two, room, "arrival"),
    Router("shortest-queue", choose_shortest_queue, room, "arrival"),
    Router("least-tokens", choose_least_tokens, room, "arrival"),
)


def _free(job: Job, pool: PoolView) -> list[ReplicaView]:
    return [view for view in pool.replicas if has_slot(job, view)]


def _fewest(policy: str, job: Job, free: Sequence[ReplicaView], now_s: float, rng: Random) -> Routed | None:
    if not free:
        return None
    # A number drawn for each breaks ties at random, whatever the order of the candidates.
    ranked = sorted(free, key=lambda view: (len(view.held), rng.random()))[:2]
    fewest = len(ranked[0].held)
    found = []
    for view in ranked:
        more = len(view.held) - fewest
        loss = f"{more} more {'call' if more == 1 else 'calls'}" if more else "as many calls, not drawn"
        found.append(_candidate(job, view, now_s, float(len(view.held)), loss))
    is_tie = len(ranked) > 1 and len(ranked[1].held) == fewest
    return routed(policy, Reason.EQUAL_CALLS if is_tie else Reason.FEWER_CALLS, job, now_s, found)


def _candidate(job: Job, view: ReplicaView, now_s: float, score: float, loss: str) -> Candidate:
    return Candidate(view, estimate(job, view, now_s), score, loss)
