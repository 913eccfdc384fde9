"""The ready replicas of one pool as policies see them, kept from event to event instead of made anew.

Owns their order by id. What a view says comes from the tables (`state.py`); which replica is chosen is asked of
the router (`placing.py`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import overload

from tightrope.model.fleet import ReplicaView
from tightrope.model.ids import ReplicaId


class Roster(Sequence[ReplicaView]):
    """A sequence of views in id order in which one can be exchanged without copying the others.

    A policy may read it while it decides and must not keep it: it changes with the next event.
    """

    def __init__(self, views: Sequence[ReplicaView] = ()) -> None:
        self._views = sorted(views, key=lambda view: view.id)
        self._ids = [view.id for view in self._views]

    def __len__(self) -> int:
        return len(self._views)

    @overload
    def __getitem__(self, at: int) -> ReplicaView: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[ReplicaView]: ...

    def __getitem__(self, at: int | slice) -> ReplicaView | Sequence[ReplicaView]:
        return self._views[at]

    def __iter__(self) -> Iterator[ReplicaView]:
        return iter(self._views)

    def of(self, replica: ReplicaId) -> ReplicaView | None:
        """The view of this replica; None if it is not ready."""
        at = bisect_left(self._ids, replica)
        return self._views[at] if at < len(self._ids) and self._ids[at] == replica else None

    def put(self, view: ReplicaView) -> None:
        """Show the replica like this from now on."""
        at = bisect_left(self._ids, view.id)
        if at < len(self._ids) and self._ids[at] == view.id:
            self._views[at] = view
        else:
            self._ids.insert(at, view.id)
            self._views.insert(at, view)

    def drop(self, replica: ReplicaId) -> None:
        """Show the replica no more; nothing happens if it was not shown."""
        at = bisect_left(self._ids, replica)
        if at < len(self._ids) and self._ids[at] == replica:
            del self._ids[at]
            del self._views[at]
