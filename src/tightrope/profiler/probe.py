"""Probe: one measured request to an engine, and the prompts measurements are made with.

Owns unique prompts of a wanted length, the moments at which tokens come, and what counts as no answer.
Which requests are sent together is `measure.py` and `verify.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from tightrope.model.errors import EngineFailed, ProfilingFailed
from tightrope.model.outcome import FailureKind, Usage
from tightrope.ports import Chunk, Clock, Engine, EngineRequest

_WORDS = (
    "river stone cloud table window garden market paper winter summer bridge forest letter engine harbor copper "
    "silver candle ladder basket pocket mirror butter pepper carpet ticket rocket planet valley island meadow "
    "thunder shadow feather hammer needle button cotton leather marble timber velvet barrel bottle kettle saddle "
    "anchor compass lantern whistle cabin tower castle village temple palace desert canyon glacier volcano orchard "
    "pasture stable kennel tunnel subway"
).split()
_WARM_UP_WORDS = 32


@dataclass(slots=True)
class Call:
    """A request under way: when it was sent, when each piece of content came, and what the engine counted."""

    place: str
    sent_s: float
    token_s: list[float] = field(default_factory=list)
    usage: Usage | None = None
    is_over: bool = False

    @property
    def first_s(self) -> float:
        """When the first content came. Only for a call that has some."""
        return self.token_s[0]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, as the engine counted them; 0 until the call is over."""
        return self.usage.prompt_tokens if self.usage else 0

    @property
    def cached_tokens(self) -> int:
        """Those of them the engine did not compute."""
        return self.usage.cached_tokens if self.usage else 0

    def context_at(self, moment_s: float) -> int:
        """Tokens this sequence held at that moment. Only for a call that is over."""
        return self.prompt_tokens + sum(at_s <= moment_s for at_s in self.token_s)


class Probe:
    """Asks one engine and tells when tokens come. Prompts never repeat, so that no cache answers for the engine."""

    def __init__(self, engine: Engine, model: str, clock: Clock, rng: Random, limit_s: float) -> None:
        self._engine = engine
        self._model = model
        self._clock = clock
        self._rng = rng
        self._limit_s = limit_s
        self._tokens_per_word = 1.0
        self._extra = {"ignore_eos": "true"}
        self._news = asyncio.Event()

    async def warm_up(self) -> None:
        """Learn tokens per word, and whether the engine can be told not to stop early.

        The first request of a process also pays for what is set up lazily; it is not measured.
        """
        try:
            call = await self.ask(_WARM_UP_WORDS, 4, "warm-up")
        except ProfilingFailed as failed:
            cause = failed.__cause__
            if not (isinstance(cause, EngineFailed) and cause.kind is FailureKind.BAD_REQUEST):
                raise
            self._extra = {}
            call = await self.ask(_WARM_UP_WORDS, 4, "warm-up")
        self._tokens_per_word = call.prompt_tokens / _WARM_UP_WORDS

    def open(self, place: str) -> Call:
        """A call that is about to be sent, for `run`."""
        return Call(place, self._clock.now())

    async def ask(self, prompt_tokens: int, max_tokens: int, place: str) -> Call:
        """Send a fresh prompt of about that many tokens and wait for the end of its answer."""
        call = self.open(place)
        await self.run(call, prompt_tokens, max_tokens)
        return call

    async def run(self, call: Call, prompt_tokens: int, max_tokens: int) -> None:
        """Send the request of `call` and fill it in as the answer comes.

        Raises ProfilingFailed when the engine fails, is silent past the limit, sends no token or no usage.
        """
        request = EngineRequest(
            model=self._model,
            max_tokens=max_tokens,
            prompt=self._prompt(prompt_tokens),
            temperature=0.0,
            extra=self._extra,
        )
        call.sent_s = self._clock.now()
        try:
            async with asyncio.timeout(self._limit_s):
                await self._stream(call, request)
        except EngineFailed as error:
            raise ProfilingFailed(f"{call.place}: the engine failed ({error.kind}): {error}") from error
        except TimeoutError as error:
            raise ProfilingFailed(
                f"{call.place}: no complete answer within {self._limit_s:g} s, {len(call.token_s)} tokens came; "
                "look whether the engine hangs, or give it a larger share of its accelerator"
            ) from error
        finally:
            call.is_over = True
            self._news.set()
        _check(call)

    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready()`, looked at after every token and every end of a call of this probe."""
        while not ready():
            self._news.clear()
            await self._news.wait()

    async def _stream(self, call: Call, request: EngineRequest) -> None:
        def take(pieces: Sequence[Chunk]) -> None:
            for piece in pieces:
                if piece.is_content:
                    call.token_s.append(self._clock.now())
                    self._news.set()
                if piece.usage is not None:
                    call.usage = piece.usage

        await self._engine.generate(request, take)

    def _prompt(self, tokens: int) -> str:
        words = max(1, round(tokens / self._tokens_per_word))
        return " ".join(self._rng.choices(_WORDS, k=words))


def _check(call: Call) -> None:
    usage = call.usage
    if usage is None or usage.prompt_tokens <= 0:
        raise ProfilingFailed(
            f"{call.place}: the engine reports no usage, so prompts cannot be counted; "
            "it must answer stream_options.include_usage"
        )
    if not call.token_s or usage.output_tokens <= 0:
        raise ProfilingFailed(f"{call.place}: the engine ended its answer without a single token")
