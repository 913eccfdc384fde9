"""What replicas have in their prefix caches, as far as our own dispatches tell.

Owns the index block -> replicas, which forgets by age and by size as engines do: least recently used first,
and of one prompt the end before the beginning. Blocks are hashes of a prompt's leading pieces, each with all
before it; whoever makes them mixes in the tenant, so that nobody can find out what others asked.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from tightrope.model.ids import ReplicaId

KNOWN_FOR_S = 600.0
"""After this many seconds without use a block is taken to be gone."""
CERTAINTY = 0.9
"""Share of a hit that is counted: some of the blocks were evicted without our knowing."""
FULL_AT = 0.9
"""Share of a replica's memory that prefixes are taken to fill at most: the rest is for calls that run."""


class PrefixIndex:
    """The blocks that the replicas of one pool have lately computed. `now_s` never goes back."""

    def __init__(self, known_for_s: float = KNOWN_FOR_S) -> None:
        self._known_for_s = known_for_s
        self._used_s: dict[int, dict[ReplicaId, float]] = {}
        self._oldest_first: dict[ReplicaId, OrderedDict[int, None]] = {}

    def learn(self, replica: ReplicaId, blocks: Sequence[int], most_blocks: int, now_s: float) -> None:
        """A prompt that begins with these blocks was sent there; it can keep `most_blocks` in all.

        Of a prompt that is too long, and of what must go to make room, the beginning is kept longest.
        """
        known = self._oldest_first.setdefault(replica, OrderedDict())
        for block in reversed(blocks):
            self._used_s.setdefault(block, {})[replica] = now_s
            known[block] = None
            known.move_to_end(block)
        while known and (len(known) > most_blocks or self._is_stale(next(iter(known)), replica, now_s)):
            self._drop(known.popitem(last=False)[0], replica)

    def forget(self, replica: ReplicaId) -> None:
        """The replica is gone, and its cache with it. Nothing happens if it was not known."""
        for block in self._oldest_first.pop(replica, ()):
            self._drop(block, replica)

    def runs(self, blocks: Sequence[int], now_s: float) -> dict[ReplicaId, int]:
        """How many of these blocks, from the first one on without a gap, each replica knows.

        Replicas that know none are not in it. Costs the sum of the answers.
        """
        found: dict[ReplicaId, int] = {}
        on = list(self._used_s.get(blocks[0], ())) if blocks else []
        for count, block in enumerate(blocks, start=1):
            used_s = self._used_s.get(block, {})
            on = [one for one in on if now_s - used_s.get(one, -math.inf) <= self._known_for_s]
            if not on:
                break
            found |= dict.fromkeys(on, count)
        return found

    def size(self, replica: ReplicaId) -> int:
        """Blocks remembered of this replica, stale ones that nothing has pushed out yet included."""
        return len(self._oldest_first.get(replica, ()))

    def __len__(self) -> int:
        """Different blocks remembered."""
        return len(self._used_s)

    def _is_stale(self, block: int, replica: ReplicaId, now_s: float) -> bool:
        return now_s - self._used_s[block][replica] > self._known_for_s

    def _drop(self, block: int, replica: ReplicaId) -> None:
        used_s = self._used_s[block]
        del used_s[replica]
        if not used_s:
            del self._used_s[block]


def hit_tokens(run: int, block_tokens: int, prompt_tokens: int) -> float:
    """Prompt tokens that need not be computed after a run of so many known blocks.

    A little is taken off for what was evicted unseen, and one token is always computed: it makes the first
    token of the answer.
    """
    return max(0.0, min(CERTAINTY * run * block_tokens, prompt_tokens - 1.0))


def most_blocks(kv_tokens: int, block_tokens: int) -> int:
    """How many blocks a replica with this memory can keep beside the calls that run; 0 without blocks."""
    return int(FULL_AT * kv_tokens) // block_tokens if block_tokens > 0 else 0
