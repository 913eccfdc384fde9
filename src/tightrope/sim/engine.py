"""Ground truth of one replica: an engine with continuous batching and chunked prefill, in virtual time.

Owns how long a step takes and when things happen. Steps that change nothing but lengths are taken in one leap.
What a step is made of is `batch.py`. The engine knows nothing of the kernel, and the kernel's picture of an engine
(`policy/load.py`) shares no code with it, so that each can refute the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from tightrope.model.errors import TightropeBug
from tightrope.model.ids import CallId
from tightrope.model.profile import Profile
from tightrope.sim.batch import Batch, Sequence


@dataclass(frozen=True, slots=True)
class Truth:
    """How one kind of replica really behaves.

    `profile` has its true coefficients and limits. `noise` is the relative standard deviation of the time of one
    step. `block_tokens` is the size of a block of the prefix cache; 0: it has none. `is_ahead`: it composes a step
    while the one before it runs (asynchronous scheduling), so that what arrives or ends counts one step later.
    """

    profile: Profile
    noise: float = 0.0
    block_tokens: int = 0
    is_ahead: bool = False


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
    """Sequences in the running step, sequences waiting, and the tokens of memory in use."""

    running: int
    waiting: int
    kv_tokens: int


class SimEngine:
    """One engine. Call `advance` up to a moment before anything else at that moment; time never goes back.

    A request that comes in the middle of a step waits for the step to end; at the very moment at which a step
    begins it may still join it.
    """

    def __init__(self, truth: Truth, rng: Random, *, now_s: float = 0.0) -> None:
        self._truth, self._rng = truth, rng
        self._batch = Batch(truth.profile, truth.block_tokens, truth.is_ahead)
        self._now_s = now_s
        self._slowness = 1.0
        self._pace_s = 0.0
        # The running leap: `_planned` steps (0: idle) from `_begin_s`, of which the first takes `_first_s` and
        # each later one `_slope_s` more than the one before.
        self._planned = 0
        self._begin_s, self._end_s = now_s, math.inf
        self._first_s, self._slope_s = 0.0, 0.0
        self._draw = 0.0
        self._decodes = False

    def submit(self, request: Request, now_s: float) -> None:
        """A request arrives. Raises TightropeBug when it can never be served: empty, or larger than the memory."""
        self._be_at(now_s)
        sequence = self._sequence(request)
        if self._planned and self._begin_s == now_s:
            self._batch.join(sequence)
            self._time()
            return
        may_matter = self._batch.arrive(sequence)
        if not self._planned:
            self._begin(now_s)
        elif may_matter:
            self._cut(now_s)

    def cancel(self, call: CallId, now_s: float) -> None:
        """The call is given up and its memory freed at once; the running step takes as long as it was to take.

        Nothing happens when it is unknown or has ended.
        """
        self._be_at(now_s)
        if self._batch.remove(call):
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
        happenings: list[FirstOut | LastOut] = []
        while self._end_s <= now_s:
            happenings += self._finish()
        self._now_s = now_s
        return happenings

    def occupancy(self) -> Occupancy:
        """What the engine works on and holds in the step that runs now."""
        batch = self._batch
        grown = batch.decoding * self._steps_over(self._now_s)
        return Occupancy(len(batch.running), batch.waits, batch.held_tokens + grown)

    def pace(self, now_s: float) -> float:
        """Milliseconds of the latest finished step in which sequences decoded; 0.0 before the first one."""
        over = self._steps_over(now_s) if self._decodes else 0
        return 1000 * (self._first_s + self._slope_s * (over - 1) if over else self._pace_s)

    def produced(self) -> dict[CallId, int]:
        """Tokens that each call has produced by now that runs or was put out, also in the middle of a leap."""
        return self._batch.produced(self._steps_over(self._now_s))

    def after_steps_s(self, steps: int) -> float:
        """When `steps` (at least 1) more steps of the leap will be over, or all of it; infinity while idle."""
        over = self._steps_over(self._now_s) + steps
        return self._begin_s + self._lasts_s(over) if over < self._planned else self._end_s

    # --- what may be asked -------------------------------------------------------------------------------

    def _be_at(self, now_s: float) -> None:
        if now_s < self._now_s:
            raise TightropeBug(f"an engine at {self._now_s} s was told of something at {now_s} s")
        if self._end_s < now_s or self._begin_s < self._end_s == now_s:
            raise TightropeBug(f"an engine whose step ends at {self._end_s} s was not advanced to {now_s} s")
        self._now_s = now_s

    def _sequence(self, request: Request) -> Sequence:
        prompt, output = request.prompt_tokens, request.output_tokens
        if self._batch.holds(request.call):
            raise TightropeBug(f"{request.call} was submitted twice")
        if prompt < 1 or output < 1:
            raise TightropeBug(f"{request.call} has no prompt or no output")
        memory = self._truth.profile.kv_tokens
        if prompt + output - 1 > memory:
            raise TightropeBug(f"{request.call} needs {prompt + output - 1} tokens of {memory} in memory")
        return Sequence(request.call, prompt, output, self._usable_blocks(request), prompt)

    def _usable_blocks(self, request: Request) -> tuple[int, ...]:
        """Blocks full of prompt, without its last token: one is always computed, so that there is an output."""
        size = self._truth.block_tokens
        return request.blocks[: (request.prompt_tokens - 1) // size] if size else ()

    # --- steps -------------------------------------------------------------------------------------------

    def _begin(self, at_s: float) -> None:
        self._begin_s = at_s
        if not self._batch.compose():
            self._planned, self._end_s = 0, math.inf
            return
        self._decodes = self._batch.decoding > 0
        self._draw = self._rng.gauss(0.0, 1.0) if self._truth.noise else 0.0
        self._time()

    def _time(self) -> None:
        """Set the end of the composed step, or of all that come before anything changes."""
        batch, k = self._batch, self._truth.profile.coefficients
        self._planned = batch.unchanged_steps()
        spread = self._truth.noise / math.sqrt(self._planned)
        # Lognormal with mean 1: a step never takes no time. The mean of n steps deviates by noise / sqrt(n).
        factor = self._slowness * math.exp(spread * self._draw - spread * spread / 2) / 1000
        self._first_s = factor * k.step_ms(
            batch.decoding, batch.context_tokens, batch.prompt_tokens, batch.pairs
        )
        self._slope_s = factor * k.c * batch.decoding
        self._end_s = self._begin_s + self._lasts_s(self._planned)

    def _lasts_s(self, steps: int) -> float:
        """The first `steps` steps of the leap: an arithmetic series, each reads one token more of every sequence."""
        return steps * self._first_s + self._slope_s * (steps * (steps - 1) / 2)

    def _finish(self) -> list[FirstOut | LastOut]:
        """The leap is over: what came of it. The next one begins."""
        at_s = self._end_s
        if self._decodes:
            self._pace_s = self._first_s + self._slope_s * (self._planned - 1)
        happenings = [
            LastOut(sequence.call, at_s, sequence.cached_tokens or 0)
            if is_last
            else FirstOut(sequence.call, at_s)
            for sequence, is_last in self._batch.finish(self._planned)
        ]
        self._begin(at_s)
        return happenings

    def _steps_over(self, now_s: float) -> int:
        """Steps of the leap that have ended by `now_s`; the last one does not count, it ends by `advance`."""
        passed_s = now_s - self._begin_s
        if self._planned < 2 or passed_s <= 0:
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
        """Let the leap end with the step that runs now, or at once if a step has ended at this very moment."""
        if self._planned < 2:
            return
        over = self._steps_over(now_s)
        has_just_ended = over > 0 and self._begin_s + self._lasts_s(over) == now_s
        self._planned = over if has_just_ended else over + 1
        self._end_s = self._begin_s + self._lasts_s(self._planned)
        if has_just_ended:
            self._finish()  # nothing happens in the steps of a leap but the last
