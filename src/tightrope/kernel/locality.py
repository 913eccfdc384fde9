"""Caches of prompts: asked before a call is placed, told when it was dispatched.

Owns when the index of a pool is read and written. What the index remembers is `policy/prefix.py`; what a hit is
worth is for routers to say.
"""

from __future__ import annotations

from dataclasses import replace

from tightrope.kernel.state import Pool
from tightrope.model.fleet import Job, ReplicaView
from tightrope.model.messages import Item
from tightrope.policy.prefix import hit_tokens, most_blocks


def with_hits(job: Job, item: Item, pool: Pool, now_s: float) -> Job:
    """The job, knowing which replicas are taken to have a part of its prompt now."""
    if not item.blocks:
        return job
    runs = pool.prefixes.runs(item.blocks, now_s)
    hits = ((replica, hit_tokens(run, item.block_tokens, job.prompt_tokens)) for replica, run in runs.items())
    return replace(job, hits=tuple(hits))


def note_prompt(item: Item, pool: Pool, replica: ReplicaView, now_s: float) -> None:
    """The prompt was sent to the replica, which will have it in its cache."""
    if item.blocks:
        most = most_blocks(replica.profile.kv_tokens, item.block_tokens)
        pool.prefixes.learn(replica.id, item.blocks, most, now_s)
