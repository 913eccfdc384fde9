"""Replicas that somebody else runs, at addresses that are known from the start.

Owns the question whether they are there. Starting and stopping one only begins and ends the asking.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp

from tightrope.adapters.cluster_work import ClusterWork, Told
from tightrope.adapters.health import Health, max_sequences, probe, probing_session
from tightrope.model.fleet import ReplicaSpec
from tightrope.model.ids import ReplicaId
from tightrope.model.messages import ReplicaLost, ReplicaReady, ReplicaStopped

_FIRST_WAIT_S = 0.05

# A server that is refused once is gone. One that merely does not answer well is asked once more, at once, so
# that a hung one is known after two probe limits and one pause.
_UNWELL_LIMIT = 2

# A server that is well and busy is given longer to say what it is: not knowing its sequences costs more than waiting.
_FACTS_LIMIT_S = 15.0


class StaticCluster:
    """The Cluster port over fixed addresses: `ReplicaSpec.url` is a base address like `http://host:8000/v1`.

    Each is probed every `probe_every_s`. One that has not answered after `start_limit_s` is told as lost,
    with the reason. `api_key_for` gives the key of an address, None where it needs none.
    """

    def __init__(
        self,
        *,
        probe_every_s: float = 1.0,
        start_limit_s: float = 30.0,
        api_key_for: Callable[[ReplicaSpec], str | None] = lambda _: None,
    ) -> None:
        self._probe_every_s = probe_every_s
        self._start_limit_s = start_limit_s
        self._api_key_for = api_key_for
        self._replica_by_id: dict[ReplicaId, _Replica] = {}
        self._work = ClusterWork()

    async def start(self, spec: ReplicaSpec) -> None:
        """Begin to ask at the replica's address until it answers."""
        if spec.url is None:
            self._work.tell(ReplicaLost(spec.id, "it has no address; give it a `url`"))
            return
        earlier = self._replica_by_id.get(spec.id)
        if earlier is not None and not earlier.stop_asked.is_set():
            if earlier.is_ready:
                self._work.tell(ReplicaReady(spec.id, earlier.max_sequences))
            return
        replica = _Replica(spec, spec.url.rstrip("/"))
        self._replica_by_id[spec.id] = replica
        self._work.spawn(self._live(replica, earlier))

    async def stop(self, replica: ReplicaId) -> None:
        """Forget a replica. Its server goes on."""
        known = self._replica_by_id.get(replica)
        if known is None:
            self._work.tell(ReplicaStopped(replica))
        else:
            known.stop_asked.set()

    def watch(self) -> AsyncIterator[Told]:
        """What happens to replicas, once and in order; ends after `close`."""
        return self._work.watch()

    def url(self, replica: ReplicaId) -> str:
        """Base address of a ready replica. Raises KeyError if it is not ready."""
        known = self._replica_by_id[replica]
        if not known.is_ready:
            raise KeyError(replica)
        return known.url

    async def close(self) -> None:
        """Stop asking. Nothing was started, so nothing is ended."""
        for replica in list(self._replica_by_id):
            await self.stop(replica)
        await self._work.done()
        self._work.end()

    async def _live(self, replica: _Replica, earlier: _Replica | None) -> None:
        if earlier is not None:
            await earlier.is_over.wait()
        why: str | None = "nobody asks for it any more"
        session = probing_session(self._api_key_for(replica.spec))
        try:
            why = await self._until_ready(replica, session)
            if why is None and not replica.stop_asked.is_set():
                replica.max_sequences = await self._max_sequences(replica)
                replica.is_ready = True
                self._work.tell(ReplicaReady(replica.spec.id, replica.max_sequences))
                why = await self._until_gone(replica, session)
        finally:
            replica.is_ready = False
            replica.is_over.set()
            if self._replica_by_id.get(replica.spec.id) is replica:
                del self._replica_by_id[replica.spec.id]
            told = ReplicaStopped(replica.spec.id) if why is None else ReplicaLost(replica.spec.id, why)
            self._work.tell(told)
            await session.close()

    async def _until_ready(self, replica: _Replica, session: aiohttp.ClientSession) -> str | None:
        """None when it answers or was stopped, else why it is given up."""
        said = f"{replica.url} was not asked yet"
        wait_s = _FIRST_WAIT_S
        with suppress(TimeoutError):
            async with asyncio.timeout(self._start_limit_s):
                while not replica.stop_asked.is_set():
                    health = await _ask(replica, session)
                    if health.state == "well":
                        return None
                    said = health.said
                    await replica.pause(wait_s)
                    wait_s = min(self._probe_every_s, 1.5 * wait_s)
                return None
        return f"it was not ready after {self._start_limit_s:g} s: {said}"

    async def _until_gone(self, replica: _Replica, session: aiohttp.ClientSession) -> str | None:
        """None when it was stopped, else why it counts as gone."""
        unwell = 0
        while True:
            if not unwell:
                await replica.pause(self._probe_every_s)
            if replica.stop_asked.is_set():
                return None
            health = await _ask(replica, session)
            unwell = 0 if health.state == "well" else unwell + 1
            if health.state == "gone" or unwell >= _UNWELL_LIMIT:
                return health.said

    async def _max_sequences(self, replica: _Replica) -> int | None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_FACTS_LIMIT_S):
                return await max_sequences(replica.url, self._api_key_for(replica.spec))
        return None


@dataclass(slots=True)
class _Replica:
    spec: ReplicaSpec
    url: str
    is_ready: bool = False
    max_sequences: int | None = None
    stop_asked: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    async def pause(self, wait_s: float) -> None:
        """Wait so long, or until the replica shall be forgotten."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self.stop_asked.wait()


async def _ask(replica: _Replica, session: aiohttp.ClientSession) -> Health:
    """Is it well? `/health` where it is offered, else the list of models, which every OpenAI server has."""
    health = await probe(session, f"{replica.url.removesuffix('/v1')}/health")
    return await probe(session, f"{replica.url}/models") if health.state == "no-such-path" else health
