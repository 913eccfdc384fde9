"""RunHandle: one run as its caller sees it, a stream of pieces and one end.

Owns the buffer between engine and reader. What the pieces are and when they end is told by the driver.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

from tightrope.model.errors import TightropeError
from tightrope.model.ids import RunId
from tightrope.model.messages import FinishRun
from tightrope.model.outcome import Outcome, Usage
from tightrope.ports import Chunk

BUFFER_BYTES = 256 * 1024
"""What a slow reader may leave unread before the engine's stream is paused."""


class RunFailed(TightropeError):
    """The run ended without an answer; `finish` says how and where."""

    def __init__(self, finish: FinishRun) -> None:
        super().__init__(finish.message or finish.outcome.value)
        self.finish = finish


@dataclass(frozen=True, slots=True)
class RunResult:
    """A whole answer. `pieces` are the chunks of the output node in order, `finish` the end of the run."""

    run: RunId
    text: str
    finish_reason: str
    pieces: tuple[Chunk, ...]
    finish: FinishRun


class RunHandle:
    """One submitted run. Pieces can be read once, by one reader; `result` reads them itself.

    `finish` is the end of the run as soon as it has come; `is_over`: that, and everything has been read.
    """

    def __init__(self, run: RunId, is_streamed: bool, cancel: Callable[[str], None]) -> None:
        self.run = run
        self.is_streamed = is_streamed
        self.finish: FinishRun | None = None
        self.is_over = False
        self._cancel = cancel
        self._pieces: list[Chunk] = []
        self._bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Callable[[Sequence[Chunk]], bool] | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._timing: dict[str, float] = {}
        self._error: TightropeError | None = None

    # --- for the caller ------------------------------------------------------------------------------

    async def pieces(self) -> AsyncIterator[Chunk]:
        """The output as it comes. Raises RunFailed at the end if the run did not succeed."""
        while True:
            for piece in await self.some():
                yield piece
            if self.is_over:
                return

    async def some(self) -> Sequence[Chunk]:
        """What has come since the last time, all at once; waits for it, for the end or for `nudge`.

        Raises RunFailed instead of saying that nothing more comes if the run did not succeed.
        """
        if not self._pieces and not self.has_ended:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        pieces, self._pieces = self._pieces, []
        self._bytes = 0
        self._room.set()
        if self.has_ended and (self._failure() is None or not pieces):
            self.is_over = True
            if (failure := self._failure()) is not None:
                raise failure
        return pieces

    def pass_on(self, sink: Callable[[Sequence[Chunk]], bool]) -> None:
        """Give further pieces to `sink` in the moment they come, until it does not take some: it gives False then.

        Those and what comes after them wait for `some`, as all do without a sink. No task is woken for what is taken.
        Nothing is passed on while something waits.
        """
        self._sink = None if self._pieces else sink

    def nudge(self) -> None:
        """Let a `some` that waits return with nothing."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def result(self) -> RunResult:
        """The whole answer. Raises RunFailed if there is none."""
        pieces = [piece async for piece in self.pieces()]
        reasons = [piece.finish_reason for piece in pieces if piece.finish_reason is not None]
        if self.finish is None:
            raise TightropeError("the run has pieces and no end")
        text = "".join(piece.text for piece in pieces)
        return RunResult(self.run, text, reasons[-1] if reasons else "stop", tuple(pieces), self.finish)

    def cancel(self, why: str) -> None:
        """End the run; everything it holds is given back. Does nothing once it has ended."""
        if not self.has_ended:
            self._cancel(why)

    def timing_s(self) -> Mapping[str, float]:
        """Where the time went so far, in seconds: `queue` is the sum over all calls of their time in lines."""
        return dict(self._timing)

    @property
    def usage(self) -> Usage:
        """Tokens of all calls of the run; complete at its end."""
        return self.finish.usage if self.finish is not None else Usage()

    def _failure(self) -> TightropeError | None:
        if self._error is None and self.finish is not None and self.finish.outcome is not Outcome.SUCCEEDED:
            return RunFailed(self.finish)
        return self._error

    # --- for the driver ------------------------------------------------------------------------------

    def push(self, *pieces: Chunk) -> None:
        """Some more pieces of the output."""
        if self._sink is not None:
            if self._sink(pieces):
                return
            self._sink = None
        self._pieces += pieces
        self._bytes += sum(len(piece.choices) for piece in pieces)
        if self._bytes >= BUFFER_BYTES:
            self._room.clear()
        self.nudge()

    async def wait_for_room(self) -> None:
        """Return when the reader has kept up."""
        await self._room.wait()

    @property
    def has_ended(self) -> bool:
        """Whether the last piece has come."""
        return self.finish is not None or self._error is not None

    @property
    def is_full(self) -> bool:
        """Whether the reader is behind by a whole buffer."""
        return not self._room.is_set()

    def note(self, name: str, seconds: float) -> None:
        """Add to a named part of the time."""
        self._timing[name] = self._timing.get(name, 0.0) + seconds

    def end(self, finish: FinishRun) -> None:
        """The run is over; nothing more will come."""
        self.finish = finish
        self._room.set()
        self.nudge()

    def fail(self, error: TightropeError) -> None:
        """The runtime itself broke; nothing more will come."""
        self._error = error
        self._room.set()
        self.nudge()
