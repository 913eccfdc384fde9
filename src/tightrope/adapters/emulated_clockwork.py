"""The clockwork of an emulated engine: which tokens of which call are out at which moment.

Owns the way from the leaps of `sim.engine` to single tokens, and the moments at which somebody must look. Has no
clock of its own: every method is told the time. What the tokens say, and who reads them, is left to others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from tightrope.model.ids import CallId
from tightrope.sim.engine import LastOut, Occupancy, Request, SimEngine, Truth


@dataclass(frozen=True, slots=True)
class Progress:
    """So many `tokens` of the call are out; `is_over`: that was all. `cached_tokens` is known at the end."""

    call: CallId
    tokens: int
    is_over: bool = False
    cached_tokens: int = 0


class Clockwork:
    """One engine whose tokens are told one by one: the first of a call at once, further ones by `stride`.

    Times never go back; a call is told of until it is over or cancelled. While it stands still, see `halt`, no time
    passes in the engine.
    """

    def __init__(self, truth: Truth, rng: Random, *, stride: int = 1, now_s: float = 0.0) -> None:
        self._engine = SimEngine(truth, rng)
        self._stride = stride
        self._output_by_call: dict[CallId, int] = {}
        self._told: dict[CallId, int] = {}
        self._own_s, self._behind_s = 0.0, now_s
        """The engine's own time, and how far it is behind that of the caller."""
        self._halted_at_s: float | None = None
        self._named = math.inf, math.inf
        """The moment that was named as the next one: of the caller, and of the engine."""

    @property
    def is_halted(self) -> bool:
        """Whether it stands still."""
        return self._halted_at_s is not None

    @property
    def calls(self) -> int:
        """How many calls are not over."""
        return len(self._told)

    def submit(self, request: Request, now_s: float) -> list[Progress]:
        """One more call; what else has happened by now. Raises TightropeBug when it can never be served."""
        progress = self.advance(now_s)
        self._engine.submit(request, self._own(now_s))
        self._output_by_call[request.call] = request.output_tokens
        self._told[request.call] = 0
        return progress

    def cancel(self, call: CallId, now_s: float) -> list[Progress]:
        """The call is given up, and its memory free; what else has happened by now."""
        progress = self.advance(now_s)
        if self._told.pop(call, None) is not None:
            del self._output_by_call[call]
            self._engine.cancel(call, self._own(now_s))
        return progress

    def slow_down(self, factor: float, now_s: float) -> list[Progress]:
        """Steps take `factor` times as long as they should from the next one on; what has happened by now."""
        progress = self.advance(now_s)
        self._engine.slow_down(factor, self._own(now_s))
        return progress

    def halt(self, now_s: float) -> list[Progress]:
        """Stand still from now on; what has happened by now."""
        progress = self.advance(now_s)
        self._halted_at_s = now_s if self._halted_at_s is None else self._halted_at_s
        return progress

    def go_on(self, now_s: float) -> None:
        """Go on where it stood still."""
        if self._halted_at_s is not None:
            self._behind_s += now_s - self._halted_at_s
            self._halted_at_s = None

    def advance(self, now_s: float) -> list[Progress]:
        """What was not told yet and has happened by now, at most once for each call."""
        happened = self._engine.advance(self._own(now_s))
        over = [self._over(one) for one in happened if isinstance(one, LastOut)]
        produced = self._engine.produced().items()
        return over + [news for call, tokens in produced if (news := self._news(call, tokens)) is not None]

    def next_s(self) -> float:
        """When to look again; infinity while it stands still or has nothing to do."""
        if self._halted_at_s is not None:
            return math.inf
        steps = min((self._steps_left(tokens) for tokens in self._engine.produced().values()), default=0)
        own_s = self._engine.after_steps_s(steps) if steps else self._engine.next_s()
        self._named = self._behind_s + own_s, own_s
        return self._named[0]

    def occupancy(self) -> Occupancy:
        """What the engine works on and holds."""
        return self._engine.occupancy()

    # --- inside ------------------------------------------------------------------------------------------

    def _own(self, now_s: float) -> float:
        """The engine's own time. Rounding neither sets it back nor keeps it short of a moment that was named."""
        moment_s = now_s if self._halted_at_s is None else self._halted_at_s
        named_s, own_s = self._named
        self._own_s = max(self._own_s, own_s if moment_s == named_s else moment_s - self._behind_s)
        return self._own_s

    def _over(self, last: LastOut) -> Progress:
        del self._told[last.call]
        return Progress(last.call, self._output_by_call.pop(last.call), True, last.cached_tokens)

    def _news(self, call: CallId, tokens: int) -> Progress | None:
        whole = 1 + (tokens - 1) // self._stride * self._stride if tokens else 0
        if whole <= self._told[call]:
            return None
        self._told[call] = whole
        return Progress(call, whole)

    def _steps_left(self, tokens: int) -> int:
        """Steps until the call is to be told of again; one without a token gets its first at the end of a leap."""
        return self._stride - (tokens - 1) % self._stride if tokens else 1
