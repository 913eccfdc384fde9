"""Ground truth of one replica: an engine with continuous batching and chunked prefill, in virtual time.

Owns what runs in each step, how long the step takes, and what memory allows (vLLM, 2309.06180; Sarathi-Serve,
2403.02310). Steps that change nothing but lengths are taken in one leap. The engine knows nothing of the kernel,
and the kernel's picture of an engine (`policy/load.py`) shares no code with it, so that each can refute the other.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from dataclasses import dataclass
from random import Random

from tightrope.model.errors import TightropeBug
from tightrope.model.ids import CallId
from tightrope.model.profile import Profile
from tightrope.sim.prefix_cache import PrefixCache


@dataclass(frozen=True, slots=True)
class Truth:
    """How one kind of replica really behaves.

    `profile` has its true coefficients and limits. `noise` is the relative standard deviation of the time of one
    step. `block_tokens` is the size of a block of the prefix cache; 0: it has none.
    """

    profile: Profile
    noise: float = 0.0
    block_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """A call as the engine sees it. `output_tokens` (at least 1) is how many it will really produce; the first
    one comes with the last prompt token. `blocks` are the hashes of the leading blocks of its prompt."""

    call: CallId
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FirstOut:
    """The call's first token came."""

    call: CallId
    at_s: float


@dataclass(frozen=True, slots=True)
class LastOut:
    """The call ended. `cached_tokens` of its prompt were found in the prefix cache when it first started."""

    call: CallId
    at_s: float
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Sequences in the running step, sequences waiting, and the tokens of memory that the former hold."""

    running: int
    waiting: int
    kv_tokens: int


@dataclass(slots=True, eq=False)
class _Sequence:
    """A request in the engine. `done` of `target` prompt tokens are computed; after a preemption the target
    includes what was generated. While it decodes, `generated` was right at step number `since`, and it ends
    with step number `end` (0: it does not decode). `pinned` counts its blocks that are in the prefix cache."""

    request: Request
    target: int
    blocks: tuple[int, ...]
    done: int = 0
    generated: int = 0
    since: int = 0
    end: int = 0
    pinned: int = 0
    cached_tokens: int | None = None
    is_gone: bool = False

    def context(self, step: int) -> int:
        """Tokens it holds in memory in the step after step number `step`, while it decodes."""
        return self.request.prompt_tokens + self.generated + step - self.since


class SimEngine:
    """One engine. Call `advance` up to a moment before anything else at that moment; time never goes back.

    A request that comes in the middle of a step waits for the step to end; at the very moment at which a step
    begins it may still join it.
    """

    def __init__(self, truth: Truth, rng: Random, *, now_s: float = 0.0) -> None:
        self._profile, self._noise, self._rng = truth.profile, truth.noise, rng
        self._cache = PrefixCache(truth.block_tokens)
        self._now_s = now_s
        self._slowness = 1.0
        self._pace_s = 0.0
        # Sequences by what they do. `_running` is in order of start, `_ends` a heap of when decoding ones end.
        self._waiting: OrderedDict[CallId, _Sequence] = OrderedDict()
        self._running: dict[CallId, _Sequence] = {}
        self._partial: _Sequence | None = None
        self._ends: list[tuple[int, int, _Sequence]] = []
        self._serial = 0
        self._decoding = 0
        self._context_tokens = 0
        self._reserved_tokens = 0
        # The running leap: `_planned` steps (0: idle) from `_begin_s`, the first one after step number `_step`.
        self._step = 0
        self._planned = 0
        self._begin_s = now_s
        self._end_s = math.inf
        self._first_s = 0.0
        self._slope_s = 0.0
        self._had_decoding = False
        self._draw = 0.0
        self._chunks: list[tuple[_Sequence, int]] = []
        self._room = 0
        self._prompt_tokens = 0
        self._pairs = 0.0

    # --- the door ----------------------------------------------------------------------------------------

    def submit(self, request: Request, now_s: float) -> None:
        """A request arrives. Raises TightropeBug when it can never be served: empty, or larger than the memory."""
        self._be_at(now_s)
        self._check(request)
        self._waiting[request.call] = _Sequence(request, request.prompt_tokens, self._usable_blocks(request))
        if not self._planned:
            self._begin(now_s)
        elif self._begin_s == now_s:
            self._admit()
            self._time()
        elif len(self._waiting) == 1 and len(self._running) < self._profile.max_sequences:
            self._cut(now_s)

    def cancel(self, call: CallId, now_s: float) -> None:
        """The call is given up and its memory freed at once; the running step takes as long as it was to take.

        Nothing happens when it is unknown or has ended.
        """
        self._be_at(now_s)
        waiting = self._waiting.pop(call, None)
        sequence = waiting or self._running.get(call)
        if sequence is None:
            return
        sequence.is_gone = True
        if waiting is None:
            self._leave(sequence)
        self._cut(now_s)

    def slow_down(self, factor: float, now_s: float) -> None:
        """Steps that begin from now on take `factor` times as long as profiled."""
        self._be_at(now_s)
        self._slowness = factor
        if self._planned and self._begin_s == now_s:
            self._time()
        else:
            self._cut(now_s)

    def next_s(self) -> float:
        """The next moment at which something may happen; infinity while idle."""
        return self._end_s

    def advance(self, now_s: float) -> list[FirstOut | LastOut]:
        """All that happened since the last time, up to and including `now_s`, in order of time."""
        if now_s < self._now_s:
            raise TightropeBug(f"an engine at {self._now_s} s was asked to go back to {now_s} s")
        out: list[FirstOut | LastOut] = []
        while self._end_s <= now_s:
            self._finish(out)
        self._now_s = now_s
        return out

    def occupancy(self) -> Occupancy:
        """What the engine works on and holds in the step that runs now."""
        grown = self._decoding * self._steps_over(self._now_s) if self._planned else 0
        return Occupancy(len(self._running), len(self._waiting), self._held() + grown)

    def pace(self, now_s: float) -> float:
        """Milliseconds of the latest finished step in which sequences decoded; 0.0 before the first one."""
        if self._planned and self._had_decoding:
            over = self._steps_over(now_s)
            if over:
                return 1000 * (self._first_s + self._slope_s * (over - 1))
        return 1000 * self._pace_s

    def _be_at(self, now_s: float) -> None:
        if now_s < self._now_s:
            raise TightropeBug(f"an engine at {self._now_s} s was told of something at {now_s} s")
        if self._end_s < now_s or self._begin_s < self._end_s == now_s:
            raise TightropeBug(f"an engine whose step ends at {self._end_s} s was not advanced to {now_s} s")
        self._now_s = now_s

    def _check(self, request: Request) -> None:
        if request.call in self._running or request.call in self._waiting:
            raise TightropeBug(f"{request.call} was submitted twice")
        if request.prompt_tokens < 1 or request.output_tokens < 1:
            raise TightropeBug(f"{request.call} has no prompt or no output")
        peak = request.prompt_tokens + request.output_tokens - 1
        if peak > self._profile.kv_tokens:
            raise TightropeBug(f"{request.call} needs {peak} tokens of {self._profile.kv_tokens} in memory")

    def _usable_blocks(self, request: Request) -> tuple[int, ...]:
        """The blocks that are full of prompt: one token at least is always computed, so that there is an output."""
        if not self._cache.block_tokens:
            return ()
        return request.blocks[: (request.prompt_tokens - 1) // self._cache.block_tokens]

    # --- what a step is made of --------------------------------------------------------------------------

    def _begin(self, at_s: float) -> None:
        """The next step: decoding sequences first, then the prompt that was begun, then those that wait."""
        self._begin_s = at_s
        self._chunks = []
        self._prompt_tokens, self._pairs = 0, 0.0
        had_to_preempt = self._preempt()
        self._had_decoding = self._decoding > 0
        self._room = max(1, self._profile.step_tokens - self._decoding)
        if self._partial is not None:
            self._compute(self._partial)
        if had_to_preempt:
            self._room = 0  # whoever was just put out would be the first to come in again
        self._admit()
        if not self._running:
            self._planned, self._end_s = 0, math.inf
            return
        self._draw = self._rng.gauss(0.0, 1.0) if self._noise else 0.0
        self._time()

    def _preempt(self) -> bool:
        """Put out the latest starters until the others fit; they are the next in line and start anew."""
        had_to = False
        while self._held() > self._profile.kv_tokens:
            had_to = True
            sequence = self._running[next(reversed(self._running))]
            generated = sequence.generated + (self._step - sequence.since if sequence.end else 0)
            self._leave(sequence)
            sequence.generated, sequence.done = generated, 0
            sequence.target = sequence.request.prompt_tokens + generated
            self._waiting[sequence.request.call] = sequence
            self._waiting.move_to_end(sequence.request.call, last=False)
        if self._cache.block_tokens:
            self._cache.trim(self._profile.kv_tokens - self._held())
        return had_to

    def _leave(self, sequence: _Sequence) -> None:
        """Out of the running ones, with all it holds."""
        del self._running[sequence.request.call]
        if sequence.end:
            self._context_tokens -= sequence.context(self._step)
            self._decoding -= 1
            sequence.end = 0
        else:
            self._reserved_tokens -= sequence.target
            if self._partial is sequence:
                self._partial = None
        if sequence.pinned:
            self._cache.unpin(sequence.blocks[: sequence.pinned])
            sequence.pinned = 0

    def _admit(self) -> None:
        """Start sequences in order of arrival while the step has room, and the engine seats and memory."""
        while self._room and self._waiting and len(self._running) < self._profile.max_sequences:
            sequence = next(iter(self._waiting.values()))
            if not self._take_memory(sequence):
                return
            self._waiting.popitem(last=False)
            self._running[sequence.request.call] = sequence
            self._compute(sequence)

    def _take_memory(self, sequence: _Sequence) -> bool:
        """Reserve the whole prompt, less what is in the cache; False if there is not enough memory."""
        found = sequence.blocks[: self._cache.match(sequence.blocks)]
        need = sequence.target - self._cache.pinned_tokens(found)
        if self._held() + need > self._profile.kv_tokens:
            return False
        self._reserved_tokens += sequence.target
        sequence.done = len(found) * self._cache.block_tokens
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.done
        if sequence.blocks:
            self._cache.pin(found)
            sequence.pinned = len(found)
            self._cache.trim(self._profile.kv_tokens - self._held())
        return True

    def _held(self) -> int:
        return self._context_tokens + self._reserved_tokens - self._cache.shared_tokens

    def _compute(self, sequence: _Sequence) -> None:
        """As much of its prompt as the step has room for."""
        tokens = min(sequence.target - sequence.done, self._room)
        self._room -= tokens
        self._prompt_tokens += tokens
        self._pairs += tokens * (sequence.done + tokens / 2)
        self._chunks.append((sequence, tokens))

    # --- how long it takes -------------------------------------------------------------------------------

    def _time(self) -> None:
        """Set the end of the step; of as many as come before anything changes, if no prompt is computed."""
        k = self._profile.coefficients
        self._planned = 1 if self._chunks or not self._decoding else self._unchanged_steps()
        spread = self._noise / math.sqrt(self._planned)
        factor = self._slowness * math.exp(spread * self._draw - spread * spread / 2) / 1000
        step_ms = k.step_ms(self._decoding, self._context_tokens, self._prompt_tokens, self._pairs)
        self._first_s = factor * step_ms
        self._slope_s = factor * k.c * self._decoding
        self._end_s = self._begin_s + self._lasts_s(self._planned)

    def _unchanged_steps(self) -> int:
        """Steps until the first sequence ends or memory runs out."""
        while self._ends[0][2].end != self._ends[0][0]:
            heapq.heappop(self._ends)
        free = self._profile.kv_tokens - self._held()
        return min(self._ends[0][0] - self._step, 1 + free // self._decoding)

    def _lasts_s(self, steps: int) -> float:
        """The first `steps` steps of the leap: an arithmetic series, each reads one token more of every sequence."""
        return steps * self._first_s + self._slope_s * (steps * (steps - 1) / 2)

    def _steps_over(self, now_s: float) -> int:
        """Steps of the leap that have ended by `now_s`, all but the last at most: that one ends by `advance`."""
        passed_s = now_s - self._begin_s
        if self._planned == 1 or passed_s <= 0:
            return 0
        linear = self._first_s - self._slope_s / 2
        root = math.sqrt(linear * linear + 2 * self._slope_s * passed_s)
        steps = min(int(2 * passed_s / (linear + root)), self._planned - 1)
        while self._begin_s + self._lasts_s(steps) > now_s:  # rounding may put the root one step off
            steps -= 1
        while steps < self._planned - 1 and self._begin_s + self._lasts_s(steps + 1) <= now_s:
            steps += 1
        return steps

    def _cut(self, now_s: float) -> None:
        """End the leap with the step that runs now."""
        if self._planned < 2:
            return
        over = self._steps_over(now_s)
        self._planned = over or 1
        self._end_s = self._begin_s + self._lasts_s(self._planned)
        if self._end_s < now_s:
            self._planned = over + 1
            self._end_s = self._begin_s + self._lasts_s(self._planned)
        elif over:
            self._finish([])  # a step ended at this very moment, and nothing happened in it

    # --- what comes of it --------------------------------------------------------------------------------

    def _finish(self, out: list[FirstOut | LastOut]) -> None:
        """The leap is over: tokens came, sequences ended. Begin the next one."""
        at_s = self._end_s
        self._step += self._planned
        self._context_tokens += self._planned * self._decoding
        if self._had_decoding:
            self._pace_s = self._first_s + self._slope_s * (self._planned - 1)
        while self._ends and self._ends[0][0] <= self._step:
            end, _, sequence = heapq.heappop(self._ends)
            if sequence.end == end:
                self._end(sequence, at_s, out)
        self._partial = None
        for sequence, tokens in self._chunks:
            if not sequence.is_gone:
                self._computed(sequence, tokens, at_s, out)
        self._begin(at_s)

    def _end(self, sequence: _Sequence, at_s: float, out: list[FirstOut | LastOut]) -> None:
        self._leave(sequence)
        sequence.is_gone = True
        out.append(LastOut(sequence.request.call, at_s, sequence.cached_tokens or 0))

    def _computed(self, sequence: _Sequence, tokens: int, at_s: float, out: list[FirstOut | LastOut]) -> None:
        """A chunk is in memory; the last one brings a token, and the sequence decodes from then on."""
        sequence.done += tokens
        if sequence.blocks:
            self._publish(sequence)
        if sequence.done < sequence.target:
            self._partial = sequence
            return
        sequence.generated += 1
        if sequence.generated == 1:
            out.append(FirstOut(sequence.request.call, at_s))
        if sequence.generated == sequence.request.output_tokens:
            self._end(sequence, at_s, out)
            return
        self._reserved_tokens -= sequence.target
        sequence.since = self._step
        sequence.end = self._step + sequence.request.output_tokens - sequence.generated
        self._context_tokens += sequence.context(self._step)
        self._decoding += 1
        self._serial += 1
        heapq.heappush(self._ends, (sequence.end, self._serial, sequence))

    def _publish(self, sequence: _Sequence) -> None:
        """Blocks that are computed can be found by others from the next step on."""
        full = min(len(sequence.blocks), sequence.done // self._cache.block_tokens)
        self._cache.pin(sequence.blocks[sequence.pinned : full])
        sequence.pinned = max(sequence.pinned, full)
