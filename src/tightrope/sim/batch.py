"""What the next step of a simulated engine is made of: sequences, prompt tokens, memory.

Owns seats, the token budget, preemption by recomputation and what is known to the scheduler when. How long a step
takes, and when things happen, is `engine.py`; which prefixes are in memory is `prefix_cache.py`.
Rules of vLLM's scheduler (2309.06180) with chunked prefill (Sarathi-Serve, 2403.02310).
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass

from tightrope.model.ids import CallId
from tightrope.model.profile import Profile
from tightrope.sim.prefix_cache import PrefixCache


@dataclass(slots=True, eq=False)
class Sequence:
    """A request in the engine.

    `done` of `target` tokens are computed; after a preemption the target includes what was generated. While it
    decodes, `generated` was right at step number `since`, and it ends with step number `end` (0: it does not
    decode). `pinned` counts its blocks in the prefix cache, `cached_tokens` is what it found there at its first
    start.
    """

    call: CallId
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    target: int
    done: int = 0
    generated: int = 0
    since: int = 0
    end: int = 0
    pinned: int = 0
    cached_tokens: int | None = None
    is_gone: bool = False

    def context(self, step: int) -> int:
        """Tokens it holds in memory after step number `step`, while it decodes; the latest one included."""
        return self.prompt_tokens + self.generated + step - self.since


Output = tuple[Sequence, bool]
"""A sequence whose first (False) or last (True) token came."""


class Batch:
    """The sequences of one engine, step by step: `compose` a step, then `finish` it or several like it.

    `decoding` sequences read `context_tokens`; the composed step also computes `prompt_tokens`, at a cost of
    `pairs` squared tokens. A scheduler that `is_ahead` composes a step while the one before it runs, as vLLM's
    asynchronous scheduling does: what arrives or ends in a step counts two steps later.
    """

    def __init__(self, profile: Profile, block_tokens: int = 0, is_ahead: bool = False) -> None:
        self.decoding = 0
        self.context_tokens = 0
        self.prompt_tokens = 0
        self.pairs = 0.0
        self.waiting: OrderedDict[CallId, Sequence] = OrderedDict()
        self.running: dict[CallId, Sequence] = {}
        """In order of start."""
        self._profile, self._is_ahead = profile, is_ahead
        self._cache = PrefixCache(block_tokens)
        self._reserved_tokens = 0
        self._partial: Sequence | None = None
        self._chunks: list[tuple[Sequence, int]] = []
        self._room = 0
        self._step = 0
        self._ends: list[tuple[int, int, Sequence]] = []
        self._serial = 0
        # What a scheduler ahead does not know yet, and whether it has just learned something.
        self._arrived: dict[CallId, Sequence] = {}
        self._ended: list[Sequence] = []
        self._has_news = False
        self._is_composed_ahead = False

    @property
    def held_tokens(self) -> int:
        """Tokens of memory in use in the composed step."""
        return self.context_tokens + self._reserved_tokens - self._cache.shared_tokens

    @property
    def waits(self) -> int:
        """Sequences that wait for their start."""
        return len(self.waiting) + len(self._arrived)

    def holds(self, call: CallId) -> bool:
        """Whether the call is here and has not ended."""
        return call in self.running or call in self.waiting or call in self._arrived

    def arrive(self, sequence: Sequence) -> bool:
        """One more, in the middle of a step. Whether it may change the step after this one or the next."""
        if self._is_ahead:
            self._arrived[sequence.call] = sequence
            return True
        self.waiting[sequence.call] = sequence
        return len(self.waiting) == 1 and len(self.running) < self._profile.max_sequences

    def join(self, sequence: Sequence) -> None:
        """One more, at the very moment at which the composed step begins: into it if it fits, else the next."""
        self.waiting[sequence.call] = sequence
        if self._is_composed_ahead:
            self._has_news = True
        else:
            self._admit()

    def remove(self, call: CallId) -> bool:
        """Give the call up and free its memory; False if there is no such call."""
        sequence = self.waiting.pop(call, None) or self._arrived.pop(call, None)
        if sequence is None:
            sequence = self.running.get(call)
            if sequence is None:
                return False
            self._leave(sequence)
        sequence.is_gone = True
        return True

    def produced(self, steps: int) -> dict[CallId, int]:
        """Tokens of each sequence that runs or was put out, once `steps` more steps like the composed one are over."""
        over = self._step + steps
        counts = {
            call: one.generated + (over - one.since if one.end else 0) for call, one in self.running.items()
        }
        for call, one in self.waiting.items():
            if not one.generated:  # those that were put out stand before all others
                break
            counts[call] = one.generated
        return counts

    # --- composing a step --------------------------------------------------------------------------------

    def compose(self) -> bool:
        """The next step: decoding sequences, then the prompt that was begun, then those that wait, in order of
        arrival. False if there is nothing to do."""
        self._chunks = []
        self.prompt_tokens, self.pairs = 0, 0.0
        self._fill()
        self._learn()
        self._is_composed_ahead = self._is_ahead and bool(self.running)
        if not self.running and self._has_news:
            self._fill()
            self._has_news = False
        return bool(self.running)

    def unchanged_steps(self) -> int:
        """How many steps like the composed one come before anything but lengths changes."""
        if self._chunks or self._has_news or not self.decoding:
            return 1
        while self._ends[0][2].end != self._ends[0][0]:
            heapq.heappop(self._ends)
        free_tokens = self._profile.kv_tokens - self.held_tokens
        return min(self._ends[0][0] - self._step, 1 + free_tokens // self.decoding)

    def _fill(self) -> None:
        had_to_preempt = self._preempt()
        self._room = max(1, self._profile.step_tokens - self.decoding)
        if self._partial is not None:
            self._compute(self._partial)
        if had_to_preempt:
            self._room = 0  # whoever was just put out would be the first to come in again
        self._admit()

    def _preempt(self) -> bool:
        """Put out the latest starters until the others fit; they are the next in line and start anew."""
        had_to = False
        while self.held_tokens > self._profile.kv_tokens:
            had_to = True
            sequence = self.running[next(reversed(self.running))]
            if sequence.end:
                sequence.generated += self._step - sequence.since
                sequence.since = self._step
            self._leave(sequence)
            sequence.target, sequence.done = sequence.prompt_tokens + sequence.generated, 0
            self.waiting[sequence.call] = sequence
            self.waiting.move_to_end(sequence.call, last=False)
        if self._cache.block_tokens:
            self._cache.trim(self._profile.kv_tokens - self.held_tokens)
        return had_to

    def _admit(self) -> None:
        """Start sequences while the step has room, and the engine seats and memory."""
        while self._room and self.waiting and self._has_seat():
            sequence = next(iter(self.waiting.values()))
            if not self._take_memory(sequence):
                return
            self.waiting.popitem(last=False)
            self.running[sequence.call] = sequence
            self._compute(sequence)

    def _has_seat(self) -> bool:
        return len(self.running) + len(self._ended) < self._profile.max_sequences

    def _take_memory(self, sequence: Sequence) -> bool:
        """Reserve the whole prompt, less what is in the cache; False if there is not enough memory."""
        found = sequence.blocks[: self._cache.match(sequence.blocks)]
        need_tokens = sequence.target - self._cache.pinned_tokens(found)
        if self.held_tokens + need_tokens > self._profile.kv_tokens:
            return False
        self._reserved_tokens += sequence.target
        sequence.done = len(found) * self._cache.block_tokens
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.done
        if sequence.blocks:
            self._cache.pin(found)
            sequence.pinned = len(found)
            self._cache.trim(self._profile.kv_tokens - self.held_tokens)
        return True

    def _compute(self, sequence: Sequence) -> None:
        """As much of its prompt as the step has room for."""
        tokens = min(sequence.target - sequence.done, self._room)
        self._room -= tokens
        self.prompt_tokens += tokens
        self.pairs += tokens * (sequence.done + tokens / 2)
        self._chunks.append((sequence, tokens))

    def _learn(self) -> None:
        """A scheduler ahead sees what has happened by now, and heeds it from the step after this one."""
        self._has_news = bool(self._arrived or self._ended)
        if self._has_news:
            self.waiting.update(self._arrived)
            self._arrived.clear()
            for sequence in self._ended:
                self._free(sequence)
            self._ended.clear()

    # --- finishing it ------------------------------------------------------------------------------------

    def finish(self, steps: int) -> list[Output]:
        """`steps` steps as composed are over: whose first or last token came with the last of them."""
        outputs: list[Output] = []
        self._step += steps
        self.context_tokens += steps * self.decoding
        while self._ends and self._ends[0][0] <= self._step:
            end, _, sequence = heapq.heappop(self._ends)
            if sequence.end == end:
                self._end(sequence, outputs)
        self._partial = None
        for sequence, tokens in self._chunks:
            if not sequence.is_gone:
                self._computed(sequence, tokens, outputs)
        return outputs

    def _computed(self, sequence: Sequence, tokens: int, outputs: list[Output]) -> None:
        """A chunk is in memory; the last one brings a token, and the sequence decodes from then on."""
        sequence.done += tokens
        if sequence.blocks:
            self._publish(sequence)
        if sequence.done < sequence.target:
            self._partial = sequence
            return
        sequence.generated += 1
        if sequence.generated == 1:
            outputs.append((sequence, False))
        if sequence.generated == sequence.output_tokens:
            self._end(sequence, outputs)
        else:
            self._decode(sequence)

    def _publish(self, sequence: Sequence) -> None:
        """Blocks that are computed can be found by others from the next step on."""
        full = min(len(sequence.blocks), sequence.done // self._cache.block_tokens)
        self._cache.pin(sequence.blocks[sequence.pinned : full])
        sequence.pinned = max(sequence.pinned, full)

    def _decode(self, sequence: Sequence) -> None:
        self._reserved_tokens -= sequence.target
        sequence.since = self._step
        sequence.end = self._step + sequence.output_tokens - sequence.generated
        self.context_tokens += sequence.context(self._step)
        self.decoding += 1
        self._serial += 1
        heapq.heappush(self._ends, (sequence.end, self._serial, sequence))

    def _end(self, sequence: Sequence, outputs: list[Output]) -> None:
        outputs.append((sequence, True))
        sequence.is_gone = True
        if not self._is_ahead:
            self._leave(sequence)
            return
        if sequence.end:  # its last token is never read, so it takes no memory
            sequence.generated -= 1
            self.context_tokens -= 1
        self._stop(sequence)
        self._ended.append(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Out of the running ones, with all it holds."""
        self._stop(sequence)
        self._free(sequence)

    def _stop(self, sequence: Sequence) -> None:
        """It computes no more; what it holds stays reserved."""
        del self.running[sequence.call]
        if self._partial is sequence:
            self._partial = None
        if sequence.end:
            sequence.target = sequence.context(self._step)
            self.context_tokens -= sequence.target
            self._reserved_tokens += sequence.target
            self.decoding -= 1
            sequence.end = 0

    def _free(self, sequence: Sequence) -> None:
        self._reserved_tokens -= sequence.target
        self._cache.unpin(sequence.blocks[: sequence.pinned])
        sequence.pinned = 0
