"""One engine's answer while it comes: collected, watched for silence, and piped to the reader of the run.

Pieces are held back until there is content: until then another replica may still take over unseen.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence

from tightrope.model.errors import EngineFailed
from tightrope.model.json import Json
from tightrope.model.outcome import FailureKind, Usage
from tightrope.ports import Chunk, Engine, EngineRequest
from tightrope.runtime.handle import RunHandle


class Answer:
    """Reads one stream. `reader` gets the pieces at once if its run is streamed, else on `hand_over`."""

    def __init__(self, reader: RunHandle | None, on_first_content: Callable[[], None]) -> None:
        self.usage: Usage | None = None
        self.content_pieces = 0
        self._reader = reader
        self._on_first_content = on_first_content
        self._held: list[Chunk] = []
        self._texts: list[str] = []
        self._silence: _Silence | None = None

    @property
    def text(self) -> str:
        """All content so far."""
        return "".join(self._texts)

    async def read(self, engine: Engine, request: EngineRequest, idle_s: float) -> None:
        """Make the call and take its answer. Raises EngineFailed, STALLED after `idle_s` of silence between pieces.

        The silence before the first content is the kernel's to judge. Cancelling this cancels the request on the
        engine.
        """
        self._silence = silence = _Silence(idle_s)
        try:
            await engine.generate(request, self.take)
        except asyncio.CancelledError:
            silence.raise_if_it_was_you()
            raise
        finally:
            silence.stop()

    def take(self, pieces: Sequence[Chunk]) -> Awaitable[None] | None:
        """Some more of the answer. Gives what to wait for when the reader is behind."""
        for piece in pieces:
            if piece.usage is not None:
                self.usage = piece.usage
            if piece.text:
                self._texts.append(piece.text)
            if piece.is_content:
                self.content_pieces += 1
                if self.content_pieces == 1:
                    self._on_first_content()
        reader = self._reader
        if reader is not None:
            if not (reader.is_streamed and self.content_pieces):
                self._held += pieces
            else:
                self.hand_over()
                reader.push(*pieces)
                if reader.is_full:
                    return self._until_room(reader)
        self._listen()
        return None

    def hand_over(self) -> None:
        """Give the reader what was held back."""
        if self._reader is not None and self._held:
            held, self._held = self._held, []
            self._reader.push(*held)

    def _listen(self) -> None:
        if self._silence is not None and self.content_pieces:
            self._silence.begin()

    async def _until_room(self, reader: RunHandle) -> None:
        # What the reader does not take is no silence of the engine.
        if self._silence is not None:
            self._silence.pause()
        await reader.wait_for_room()
        self._listen()


class _Silence:
    """Cancels the task it was made in when nothing comes for too long.

    One timer serves a whole stream: it is moved on only when it fires, so a token costs no timer of its own.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._since_s: float | None = None
        self._has_struck = False
        self._timer = self._loop.call_later(limit_s, self._look)

    def begin(self) -> None:
        """Something came; from now on it is silent."""
        self._since_s = self._loop.time()

    def pause(self) -> None:
        """Nothing is expected for a while."""
        self._since_s = None

    def stop(self) -> None:
        """The stream is over."""
        self._timer.cancel()

    def raise_if_it_was_you(self) -> None:
        """Turn the cancellation this object caused into EngineFailed; leave any other alone."""
        if self._has_struck and self._task is not None:
            self._task.uncancel()
            raise EngineFailed(
                FailureKind.STALLED, f"the engine fell silent for {self._limit_s:.1f} s"
            ) from None

    def _look(self) -> None:
        quiet_s = 0.0 if self._since_s is None else self._loop.time() - self._since_s
        if quiet_s >= self._limit_s and self._task is not None:
            self._has_struck = True
            self._task.cancel()
            return
        self._timer = self._loop.call_later(self._limit_s - quiet_s, self._look)


def whole_answer(value: Json) -> tuple[Chunk, Chunk]:
    """The pieces of an answer that was made here and not by an engine: its text, and the end."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    delta = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
    end = {"index": 0, "delta": {}, "finish_reason": "stop"}
    return (
        Chunk(text=text, choices=json.dumps([delta]).encode(), is_content=True),
        Chunk(text="", choices=json.dumps([end]).encode(), is_content=False, finish_reason="stop"),
    )
