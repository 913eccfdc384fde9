"""The prefix cache of one simulated engine: which prompt blocks are in memory, and who uses them.

Owns sharing and the order of eviction (least recently used). How much memory there is at all, and who may
enter, is `engine.py`. Blocks are hashes of everything up to their end, so an equal hash is an equal prefix.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PrefixCache:
    """Blocks of `block_tokens` tokens: pinned by sequences that run, or idle and evictable.

    `shared_tokens` is how many tokens are in memory once although several sequences count them as theirs.
    """

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.shared_tokens = 0
        self._pins: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    def match(self, blocks: Sequence[int]) -> int:
        """How many leading blocks are in memory."""
        for count, block in enumerate(blocks):
            if block not in self._pins and block not in self._idle:
                return count
        return len(blocks)

    def pinned_tokens(self, blocks: Sequence[int]) -> int:
        """Tokens of those among `blocks` that running sequences hold already."""
        return self.block_tokens * sum(block in self._pins for block in blocks)

    def pin(self, blocks: Sequence[int]) -> None:
        """One more sequence holds these blocks; those that were not in memory are from now on."""
        for block in blocks:
            if block in self._pins:
                self._pins[block] += 1
                self.shared_tokens += self.block_tokens
            else:
                self._idle.pop(block, None)
                self._pins[block] = 1

    def unpin(self, blocks: Sequence[int]) -> None:
        """One sequence less holds these blocks. Of those that nobody holds, the last goes first."""
        for block in reversed(blocks):
            self._pins[block] -= 1
            if self._pins[block]:
                self.shared_tokens -= self.block_tokens
            else:
                del self._pins[block]
                self._idle[block] = None

    def trim(self, free_tokens: int) -> None:
        """Evict idle blocks, the least recently used first, until the rest fits into `free_tokens`."""
        while len(self._idle) * self.block_tokens > free_tokens:
            self._idle.popitem(last=False)
