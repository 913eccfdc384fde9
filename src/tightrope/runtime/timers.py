"""Timers: the kernel's WakeAt commands, in order of their moment.

Wake-ups of a run that has ended are thrown away, so that long deadlines do not pile up.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from tightrope.model.messages import Wake, WakeAt
from tightrope.ports import Clock

FEWEST_DEAD = 1000
"""Dead wake-ups that are left in the heap at least; beyond, they are taken out when they are half of it."""


class Timers:
    """A heap of wake-ups. `arm` is called with the moment of the earliest whenever that changes."""

    def __init__(self, clock: Clock, arm: Callable[[float], None]) -> None:
        self._clock = clock
        self._arm = arm
        self._heap: list[tuple[float, int, Wake]] = []
        self._serial = 0
        self._dead: set[int] = set()
        self._serials_by_owner: dict[str, list[int]] = {}

    def add(self, command: WakeAt) -> None:
        """Remember one wake-up."""
        self._serial += 1
        heapq.heappush(self._heap, (command.at_s, self._serial, command.wake))
        self._serials_by_owner.setdefault(owner(command.wake), []).append(self._serial)
        if self._heap[0][1] == self._serial:
            self._arm(command.at_s)

    def forget(self, run: str) -> None:
        """Throw away everything about a run."""
        self._dead.update(self._serials_by_owner.pop(run, ()))
        if len(self._dead) > max(FEWEST_DEAD, len(self._heap) // 2):
            self._heap = [entry for entry in self._heap if entry[1] not in self._dead]
            heapq.heapify(self._heap)
            self._dead.clear()

    def due(self) -> Iterator[Wake]:
        """Take out every wake-up whose moment has come, and arm the next."""
        while self._heap and (self._heap[0][0] <= self._clock.now() or self._heap[0][1] in self._dead):
            _, serial, wake = heapq.heappop(self._heap)
            if serial in self._dead:
                self._dead.discard(serial)
                continue
            serials = self._serials_by_owner.get(owner(wake))
            if serials is not None:
                serials.remove(serial)
                if not serials:
                    del self._serials_by_owner[owner(wake)]
            yield wake
        if self._heap:
            self._arm(self._heap[0][0])


def owner(wake: Wake) -> str:
    """The run that a wake-up is about, or its whole subject when it is about no run."""
    return wake.subject.split("/", 1)[0]
