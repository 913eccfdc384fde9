"""The calls of an emulated engine: from a request to the last byte of its answer, in real time.

Owns the one timer, and what a fault does to calls. When tokens come is `emulated_clockwork.py`, how they are written
`emulated_desk.py`; what routes there are is `engine_emulated.py`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Protocol

from tightrope.adapters.emulated_clockwork import Clockwork, Progress
from tightrope.adapters.emulated_desk import Call, Desk
from tightrope.adapters.emulated_http import Reply
from tightrope.adapters.emulated_wire import Asked
from tightrope.model.ids import CallId
from tightrope.sim.engine import Occupancy, Request, Truth


class Cancellable(Protocol):
    """A timer that is set."""

    def cancel(self) -> None:
        """It shall not ring."""


Later = Callable[[float, Callable[[], None]], Cancellable]
"""Calls after so many seconds."""


class Calls:
    """Every call of one engine. `clock` gives seconds, `later` calls once they have passed; by default these are the
    monotonic clock and the running loop."""

    def __init__(
        self,
        truth: Truth,
        desk: Desk,
        *,
        noise_seed: str = "",
        clock: Callable[[], float] = time.monotonic,
        later: Later | None = None,
    ) -> None:
        self._truth = truth
        self._desk = desk
        self._clock, self._later = clock, later or asyncio.get_running_loop().call_later
        rng = Random(f"{desk.seed} {noise_seed}")
        self._clockwork = Clockwork(truth, rng, stride=desk.tokens_per_chunk, now_s=clock())
        self._call_by_id: dict[CallId, Call] = {}
        self._held: dict[CallId, Call] = {}
        """What came while the engine hangs."""
        self._due_s = math.inf
        self._timer: Cancellable | None = None

    def begin(self, asked: Asked, reply: Reply) -> None:
        """Take a call and answer it in time. Raises Refused when it cannot be answered."""
        call = self._desk.take(asked, reply)
        name = CallId(str(call.number))
        reply.on_gone = partial(self._drop, name)
        if self._clockwork.is_halted:
            self._held[name] = call
            return
        self._submit(name, call)
        self._wind()

    def slow_down(self, factor: float) -> None:
        """Everything takes `factor` times as long from the next step on."""
        self._tell(self._clockwork.slow_down(factor, self._clock()))
        self._wind()

    def hang(self) -> None:
        """Nothing comes any more, and what is asked is not begun."""
        self._tell(self._clockwork.halt(self._clock()))
        self._wind()

    def resume(self) -> None:
        """As fast as it should be; what hung goes on where it was, and what came in the meantime begins."""
        self._clockwork.go_on(self._clock())
        self._tell(self._clockwork.slow_down(1.0, self._clock()))
        held, self._held = self._held, {}
        for name, call in held.items():
            self._submit(name, call)
        self._wind()

    def occupancy(self) -> Occupancy:
        """What the engine works on and holds."""
        self._tell(self._clockwork.advance(self._clock()))
        self._wind()
        occupied = self._clockwork.occupancy()
        return Occupancy(occupied.running, occupied.waiting + len(self._held), occupied.kv_tokens)

    # --- from a request to the engine --------------------------------------------------------------------

    def _submit(self, name: CallId, call: Call) -> None:
        blocks = call.asked.blocks(self._truth.block_tokens)
        request = Request(name, call.asked.prompt_tokens, call.answer.tokens, blocks)
        self._call_by_id[name] = call
        if call.asked.is_streamed:
            call.reply.begin()
        self._tell(self._clockwork.submit(request, self._clock()))

    def _drop(self, name: CallId) -> None:
        """The client has left."""
        self._held.pop(name, None)
        if self._call_by_id.pop(name, None) is not None:
            self._tell(self._clockwork.cancel(name, self._clock()))
            self._wind()

    # --- from the engine to the client -------------------------------------------------------------------

    def _wind(self) -> None:
        """Set the timer to the moment at which something comes next."""
        due_s = self._clockwork.next_s()
        if due_s == self._due_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due_s, self._timer = due_s, None
        if due_s < math.inf:
            delay_s = max(0.0, due_s - self._clock())
            self._timer = self._later(delay_s, self._ring)

    def _ring(self) -> None:
        # A loop whose timers are cut to milliseconds may ring a little early: that is as good as in time.
        now_s = max(self._clock(), self._due_s)
        self._due_s = math.inf
        self._tell(self._clockwork.advance(now_s))
        self._wind()

    def _tell(self, progress: list[Progress]) -> None:
        for one in progress:
            call = self._call_by_id[one.call]
            if one.is_over:
                del self._call_by_id[one.call]
                self._desk.finish(call, one.cached_tokens)
            else:
                self._desk.tell(call, one.tokens)
