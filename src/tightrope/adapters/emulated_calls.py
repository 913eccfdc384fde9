"""The calls of an emulated engine: from a request to the last byte of its answer, in real time.

Owns the one timer, the tokens that were sent, and what a fault does to them. When tokens come is
`emulated_clockwork.py`; what routes there are is `engine_emulated.py`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Protocol

from tightrope.adapters.emulated_answers import Answer, answer_to
from tightrope.adapters.emulated_clockwork import Clockwork, Progress
from tightrope.adapters.emulated_http import Reply
from tightrope.adapters.emulated_wire import Asked, Frames, Refused
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import CallId
from tightrope.sim.engine import Occupancy, Request, Truth


class Cancellable(Protocol):
    """A timer that is set."""

    def cancel(self) -> None:
        """It shall not ring."""


Later = Callable[[float, Callable[[], None]], Cancellable]
"""Calls after so many seconds."""


@dataclass(slots=True)
class _Call:
    asked: Asked
    answer: Answer
    frames: Frames
    reply: Reply
    sent: int = 0


class Calls:
    """Every call of one engine. `clock` gives seconds, `later` calls once they have passed; by default these are the
    monotonic clock and the running loop."""

    def __init__(
        self,
        truth: Truth,
        *,
        context_tokens: int,
        tokens_per_chunk: int = 1,
        seed: int = 1,
        noise_seed: str = "",
        clock: Callable[[], float] = time.monotonic,
        later: Later | None = None,
    ) -> None:
        self._truth = truth
        self._context_tokens = context_tokens
        self._tokens_per_chunk = tokens_per_chunk
        self._seed = seed
        self._clock, self._later = clock, later or asyncio.get_running_loop().call_later
        rng = Random(f"{seed} {noise_seed}")
        self._clockwork = Clockwork(truth, rng, stride=tokens_per_chunk, now_s=clock())
        self._call_by_id: dict[CallId, _Call] = {}
        self._held: dict[CallId, _Call] = {}
        """What came while the engine hangs."""
        self._number = 0
        self._due_s = math.inf
        self._timer: Cancellable | None = None
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.answered = 0

    def begin(self, asked: Asked, reply: Reply) -> None:
        """Take a call and answer it in time. Raises Refused when it cannot be answered."""
        call = _Call(asked, self._answer(asked), Frames(self._number, asked, int(time.time())), reply)
        name = CallId(str(self._number))
        self._number += 1
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

    def _answer(self, asked: Asked) -> Answer:
        prompt, context = asked.prompt_tokens, self._context_tokens
        limit = asked.limit_tokens or max(1, context - prompt)
        if prompt + limit > context:
            raise Refused(
                400,
                f"the maximum context length is {context} tokens, and the request asks for {prompt + limit}: "
                f"{prompt} in the prompt and {limit} in the answer; shorten one of them",
                "max_tokens" if prompt < context else "messages" if asked.is_chat else "prompt",
                "context_length_exceeded",
            )
        try:
            return answer_to(
                asked.last_message, limit, self._seed, schema=asked.schema, is_endless=asked.is_endless
            )
        except InvalidInput as error:
            field = "messages" if asked.is_chat else "prompt"
            param = "response_format" if str(error).startswith("schema") else field
            raise Refused(400, f"{param}: {error}", param) from error

    def _submit(self, name: CallId, call: _Call) -> None:
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
                self._finish(call, one.cached_tokens)
            elif call.asked.is_streamed:
                call.reply.write(self._pieces(call, one.tokens))

    def _pieces(self, call: _Call, tokens: int) -> bytes:
        """The pieces that are out and were not sent: the first token alone, then `tokens_per_chunk` in each."""
        pieces = []
        while call.sent < tokens:
            begin = call.sent
            call.sent = min(tokens, begin + self._tokens_per_chunk) if begin else 1
            text = call.answer.piece(begin, call.sent)
            pieces.append(call.frames.piece(text) if begin else call.frames.first(text))
        return b"".join(pieces)

    def _finish(self, call: _Call, cached_tokens: int) -> None:
        answer, frames = call.answer, call.frames
        reason = "length" if answer.is_cut else "stop"
        self.prompt_tokens += call.asked.prompt_tokens
        self.output_tokens += answer.tokens
        self.answered += 1
        if call.asked.is_streamed:
            rest = self._pieces(call, answer.tokens) + frames.finish(reason)
            call.reply.end(rest + frames.last(answer.tokens, cached_tokens))
        else:
            call.reply.send(200, frames.whole(answer.text, reason, answer.tokens, cached_tokens))
