"""What every cluster has: tasks under way, and what it tells of its replicas, once and in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine

from tightrope.model.messages import ReplicaLost, ReplicaReady, ReplicaStopped

Told = ReplicaReady | ReplicaLost | ReplicaStopped


class ClusterWork:
    """The tasks and the news of one cluster."""

    def __init__(self) -> None:
        self._told: asyncio.Queue[Told | None] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Begin it; it is kept until it is done."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def done(self) -> None:
        """Return when everything that was begun before is done."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def tell(self, told: Told) -> None:
        """Let whoever watches know."""
        self._told.put_nowait(told)

    def end(self) -> None:
        """There is no more to tell."""
        self._told.put_nowait(None)

    async def watch(self) -> AsyncIterator[Told]:
        """What was told, in order, until the end."""
        while (told := await self._told.get()) is not None:
            yield told
        self.end()  # for whoever watches next
