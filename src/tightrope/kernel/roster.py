"""The ready replicas of one pool as policies see them, kept from event to event instead of made anew.

Owns their order by id and, in a large pool, the orders by the router's rank within each kind. What a view says
comes from the tables (`state.py`); which replica is chosen is asked of the router (`placing.py`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

from tightrope.model.fleet import Kind, ReplicaView
from tightrope.model.ids import ReplicaId
from tightrope.policy.route import Rank

FEW = 16
"""Up to this many replicas a router looks at all of them."""

_Key = tuple[float, int, ReplicaId]
"""Place in an order: the rank, then fewer calls, then the id."""


class Roster(Sequence[ReplicaView]):
    """A sequence of views in id order in which one can be exchanged without copying the others.

    A policy may read it while it decides and must not keep it: it changes with the next event.
    """

    def __init__(self, rank: Rank | None = None, views: Iterable[ReplicaView] = ()) -> None:
        self._rank = rank
        self._ids: list[ReplicaId] = []
        self._view_by_id: dict[ReplicaId, ReplicaView] = {}
        self._full: set[ReplicaId] = set()
        self._changed: dict[ReplicaId, None] = {}
        self._kinds: tuple[Kind, ...] = ()
        self._ranked: dict[int, _Ranked] = {}
        self._place_by_id: dict[ReplicaId, tuple[_Ranked, tuple[_Key, ...]]] = {}
        for view in views:
            self.put(view)

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, at: int) -> ReplicaView: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[ReplicaView]: ...

    def __getitem__(self, at: int | slice) -> ReplicaView | Sequence[ReplicaView]:
        if isinstance(at, slice):
            return [self._view_by_id[replica] for replica in self._ids[at]]
        return self._view_by_id[self._ids[at]]

    def __iter__(self) -> Iterator[ReplicaView]:
        return map(self._view_by_id.__getitem__, self._ids)

    def of(self, replica: ReplicaId) -> ReplicaView | None:
        """The view of this replica; None if it is not ready."""
        return self._view_by_id.get(replica)

    def put(self, view: ReplicaView) -> None:
        """Show the replica like this from now on."""
        if view.id not in self._view_by_id:
            insort(self._ids, view.id)
        self._view_by_id[view.id] = view
        self._changed[view.id] = None
        if _is_full(view):
            self._full.add(view.id)
        else:
            self._full.discard(view.id)

    def drop(self, replica: ReplicaId) -> None:
        """Show the replica no more; nothing happens if it was not shown."""
        if self._view_by_id.pop(replica, None) is not None:
            del self._ids[bisect_left(self._ids, replica)]
            self._changed[replica] = None
            self._full.discard(replica)

    @property
    def has_free_sequence(self) -> bool:
        """Whether some replica holds fewer calls than it runs at once."""
        return len(self._full) < len(self._ids)

    # --- kinds -----------------------------------------------------------------------------------------

    def kinds(self, now_s: float) -> tuple[Kind, ...]:
        """The replicas by kind, in the orders of the rank; none where they are few or there is no rank."""
        if self._changed:
            self.settle(now_s)
        return self._kinds

    def settle(self, now_s: float) -> None:
        """Put the replicas that have changed since the last time into their new places."""
        if self._rank is None or len(self._ids) <= FEW:
            self._kinds = ()
            return
        for replica in self._changed:
            self._leave(replica)
            view = self._view_by_id.get(replica)
            if view is not None:
                self._join(view, self._rank(view, now_s))
        self._changed.clear()
        self._kinds = tuple(ranked.kind for ranked in self._ranked.values())

    def _leave(self, replica: ReplicaId) -> None:
        ranked, keys = self._place_by_id.pop(replica, (None, ()))
        if ranked is None:
            return
        for order, key in zip(ranked.orders, keys, strict=True):
            del order.keys[bisect_left(order.keys, key)]
        if not ranked.orders[0]:
            del self._ranked[id(ranked.kind.profile)]

    def _join(self, view: ReplicaView, ranks: tuple[float, ...]) -> None:
        ranked = self._ranked.get(id(view.profile))
        if ranked is None:
            orders = tuple(_Order(self._view_by_id) for _ in ranks)
            ranked = self._ranked[id(view.profile)] = _Ranked(Kind(view.profile, orders), orders)
        keys = tuple((rank, len(view.held), view.id) for rank in ranks)
        self._place_by_id[view.id] = (ranked, keys)
        for order, key in zip(ranked.orders, keys, strict=True):
            insort(order.keys, key)


def _is_full(view: ReplicaView) -> bool:
    limit = view.profile.max_sequences
    return len(view.held) >= limit and sum(call.has_slot for call in view.held) >= limit


@dataclass(slots=True)
class _Order(Sequence[ReplicaView]):
    """The replicas of a kind, those with the smallest keys first."""

    view_by_id: Mapping[ReplicaId, ReplicaView]
    keys: list[_Key] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, at: int) -> ReplicaView: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[ReplicaView]: ...

    def __getitem__(self, at: int | slice) -> ReplicaView | Sequence[ReplicaView]:
        if isinstance(at, slice):
            return [self.view_by_id[key[2]] for key in self.keys[at]]
        return self.view_by_id[self.keys[at][2]]

    def __iter__(self) -> Iterator[ReplicaView]:
        return (self.view_by_id[key[2]] for key in self.keys)


@dataclass(frozen=True, slots=True)
class _Ranked:
    """A kind, and its orders as tables."""

    kind: Kind
    orders: tuple[_Order, ...]
