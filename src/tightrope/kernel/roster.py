"""The ready replicas of one pool as policies see them, kept from event to event instead of made anew.

Owns their order by id and, in a large pool, the orders by the router's rank within each kind. What a view says
comes from the tables (`state.py`); which replica is chosen is asked of the router (`placing.py`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import overload

from tightrope.model.fleet import Kind, ReplicaView
from tightrope.model.ids import ReplicaId
from tightrope.policy.route import Rank

FEW = 16
"""Up to this many replicas a router looks at all of them."""

_Key = tuple[float, int, ReplicaId]
"""Place in an order: the score (ms), then fewer calls, then the id."""


class Roster(Sequence[ReplicaView]):
    """A sequence of views in id order in which one can be exchanged without copying the others.

    A policy may read it while it decides and must not keep it: it changes with the next event.
    """

    def __init__(
        self, rank: Callable[[ReplicaView, float], Rank] | None = None, views: Iterable[ReplicaView] = ()
    ) -> None:
        self._rank = rank
        self._ids: list[ReplicaId] = []
        self._view_by_id: dict[ReplicaId, ReplicaView] = {}
        self._full: set[ReplicaId] = set()
        self._changed: dict[ReplicaId, None] = {}
        self._kinds: tuple[Kind, ...] = ()
        self._ranked: dict[int, _Ranked] = {}
        self._place_by_id: dict[ReplicaId, _Place] = {}
        self._falling: list[tuple[float, ReplicaId]] = []
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
        self.settle(now_s)
        return self._kinds

    def settle(self, now_s: float) -> None:
        """Give the replicas that have changed their new places, and let scores stand that have fallen long enough."""
        if self._rank is None or len(self._ids) <= FEW:
            self._kinds = ()
            return
        while self._falling and self._falling[0][0] <= now_s:
            self._let_stand(*heappop(self._falling))
        for replica in self._changed:
            self._leave(replica)
            view = self._view_by_id.get(replica)
            if view is not None:
                self._join(view, self._rank(view, now_s), now_s)
        if self._changed:
            self._changed.clear()
            self._kinds = tuple(ranked.kind for ranked in self._ranked.values())
        for ranked in self._ranked.values():
            for order in ranked.orders:
                order.now_ms = 1000 * now_s

    def _let_stand(self, until_s: float, replica: ReplicaId) -> None:
        place = self._place_by_id.get(replica)
        if place is None or place.falls_until_s != until_s:
            return
        keys = tuple((key[0] - 1000 * until_s, *key[1:]) for key in place.keys)
        _take_out(place)
        self._put_in(replica, _Place(place.ranked, keys, None))

    def _leave(self, replica: ReplicaId) -> None:
        place = self._place_by_id.pop(replica, None)
        if place is None:
            return
        _take_out(place)
        if not place.ranked.orders[0]:
            del self._ranked[id(place.ranked.kind.profile)]

    def _join(self, view: ReplicaView, rank: Rank, now_s: float) -> None:
        ranked = self._ranked.get(id(view.profile))
        if ranked is None:
            orders = tuple(_Order(self._view_by_id) for _ in rank.scores_ms)
            ranked = self._ranked[id(view.profile)] = _Ranked(Kind(view.profile, orders), orders)
        until_s, then_ms = rank.falls_until_s, 0.0
        if until_s is not None:
            then_ms = 1000 * now_s
            heappush(self._falling, (until_s, view.id))
        keys = tuple((score_ms + then_ms, len(view.held), view.id) for score_ms in rank.scores_ms)
        self._put_in(view.id, _Place(ranked, keys, until_s))

    def _put_in(self, replica: ReplicaId, place: _Place) -> None:
        self._place_by_id[replica] = place
        for order, key in zip(place.ranked.orders, place.keys, strict=True):
            insort(order.keys if place.falls_until_s is None else order.falling, key)


def _take_out(place: _Place) -> None:
    for order, key in zip(place.ranked.orders, place.keys, strict=True):
        keys = order.keys if place.falls_until_s is None else order.falling
        del keys[bisect_left(keys, key)]


def _is_full(view: ReplicaView) -> bool:
    view = view.plain or view
    limit = view.profile.max_sequences
    return len(view.held) >= limit and sum(call.has_slot for call in view.held) >= limit


@dataclass(slots=True)
class _Order(Sequence[ReplicaView]):
    """The replicas of a kind, those with the smallest scores at `now_ms` first.

    The scores of some stand still (`keys`); those of the others (`falling`) all fall alike, so that they too keep
    their order: their keys are the moments (ms) at which the scores would be 0.
    """

    view_by_id: Mapping[ReplicaId, ReplicaView]
    keys: list[_Key] = field(default_factory=list)
    falling: list[_Key] = field(default_factory=list)
    now_ms: float = 0.0

    def __len__(self) -> int:
        return len(self.keys) + len(self.falling)

    @overload
    def __getitem__(self, at: int) -> ReplicaView: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[ReplicaView]: ...

    def __getitem__(self, at: int | slice) -> ReplicaView | Sequence[ReplicaView]:
        return list(self)[at]

    def __iter__(self) -> Iterator[ReplicaView]:
        still, falling = iter(self.keys), iter(self.falling)
        one, other = next(still, None), next(falling, None)
        while one is not None or other is not None:
            if other is None or (one is not None and one[0] <= other[0] - self.now_ms):
                assert one is not None
                yield self.view_by_id[one[2]]
                one = next(still, None)
            else:
                yield self.view_by_id[other[2]]
                other = next(falling, None)


@dataclass(frozen=True, slots=True)
class _Ranked:
    """A kind, and its orders as tables."""

    kind: Kind
    orders: tuple[_Order, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a replica stands in each order of its kind."""

    ranked: _Ranked
    keys: tuple[_Key, ...]
    falls_until_s: float | None
