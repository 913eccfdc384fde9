"""Replicas on the machines of a Ray cluster: one detached, named actor per replica, and its engine beside it.

Owns the life of these replicas as the runtime sees it: a place, an engine, readiness, loss, the end, and what
becomes of them when the runtime is killed (they live on, and are adopted or ended at the next start). Calls go
straight to the engines. What is done with Ray is `ray_hands.py`, what happens on a node `ray_replica.py`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import aiohttp

from tightrope.adapters.cluster_work import ClusterWork, Told
from tightrope.adapters.health import max_sequences, probe, probing_session
from tightrope.adapters.ray_link import Failed, Gone, Json, RayLink, RayTrouble
from tightrope.adapters.ray_replica import machine
from tightrope.adapters.replica_record import digest_of, key_of
from tightrope.model.errors import InvalidInput, TightropeError
from tightrope.model.fleet import ReplicaSpec
from tightrope.model.ids import ReplicaId
from tightrope.model.messages import ReplicaLost, ReplicaReady, ReplicaStopped

LOOPBACK = "127.0.0.1"

# A replica is lost when its actor and its engine are both silent, asked one after the other: 1 + 1.5 + 2 s at most.
_BEAT_EVERY_S = 1.0
_BEAT_LIMIT_S = 1.5

_PORT_TRIES = 3
_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 0.5
_TELL_WAITING_AFTER_S = 5.0
_END_LIMIT_S = 20.0

_KEY_VARIABLES = ("LLAMA_API_KEY", "VLLM_API_KEY")

_OPEN_ENGINE = (
    "its engine answers without a key beyond this machine; start it with one (vLLM and llama.cpp take it from their "
    "environment, for others put {key} into the command), or allow that with cluster.ray.insecure: true"
)

log = logging.getLogger("tightrope")


@dataclass(frozen=True, slots=True)
class RayPlace:
    """Where Ray is, and how it is spoken to. `address` is `host:port`, or `local` for one that ends with us.

    `cards` are the resources that a `local` Ray has. With `token` Ray's token authentication is used; without, on this
    machine, what Ray's own programs would use.
    """

    address: str
    token: str | None = None
    cards: Mapping[str, float] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """The variables that Ray reads."""
        found = {"RAY_USAGE_STATS_ENABLED": "0"}
        if self.address == "local":
            found["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's name for: listen on loopback only
        if self.token is not None:
            found |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        elif self._is_on_loopback() and _ray_token_file().exists():
            # A Ray that is started where this file lies asks for the token in it. One that was told not to ignores it.
            found["RAY_AUTH_MODE"] = "token"
        return found

    def _is_on_loopback(self) -> bool:
        return self.address.rpartition(":")[0] in (LOOPBACK, "localhost", "[::1]")


def _ray_token_file() -> Path:
    return Path.home() / ".ray" / "auth_token"


@dataclass(frozen=True, slots=True)
class Listen:
    """Where an engine shall listen, and the key it shall ask for; it must, where others can reach it."""

    host: str
    port: int
    key: str


class RayCluster:
    """The Cluster port over a Ray cluster.

    `command_for(spec, listen)` is the argument list of an engine; it may raise a TightropeError, which is told as
    ReplicaLost. `resources_for(spec)` are the options of Ray that place it (`num_gpus`, `resources`). A replica that
    has no place or is not healthy after `start_limit_s` is lost. Engines beyond this machine must ask for their key
    unless `may_be_open`. Raises InvalidInput when Ray is not installed.
    """

    def __init__(
        self,
        place: RayPlace,
        state_dir: Path,
        command_for: Callable[[ReplicaSpec, Listen], Sequence[str]],
        *,
        resources_for: Callable[[ReplicaSpec], Mapping[str, Json]],
        health_path_for: Callable[[ReplicaSpec], str] = lambda _: "/health",
        start_limit_s: float = 120.0,
        stop_grace_s: float = 5.0,
        may_be_open: bool = False,
        die_with_parent: bool = False,
    ) -> None:
        if find_spec("ray") is None:
            raise InvalidInput("cluster.ray needs Ray: pip install 'tightrope[ray]'")
        self._command_for = command_for
        self._resources_for = resources_for
        self._health_path_for = health_path_for
        self._start_limit_s = start_limit_s
        self._stop_grace_s = stop_grace_s
        self._may_be_open = may_be_open
        self._is_detached = not die_with_parent and place.address != "local"
        settings = {"address": place.address, "namespace": _namespace(state_dir), "cards": dict(place.cards)}
        self._link = RayLink(place.environment(), settings, state_dir / "logs" / "ray.log", self._sweep)
        self._replica_by_id: dict[ReplicaId, _Replica] = {}
        self._work = ClusterWork()
        self._is_closed = False
        self._is_ordered = False

    # --- the port ----------------------------------------------------------------------------------------

    async def start(self, spec: ReplicaSpec) -> None:
        """Begin to bring a replica up, or adopt the actor that an earlier runtime left under this id."""
        if self._is_closed:
            self._work.tell(ReplicaLost(spec.id, "the cluster is closed"))
            return
        earlier = self._replica_by_id.get(spec.id)
        if earlier is not None and earlier.is_wanted:
            if earlier.url is not None:
                self._work.tell(ReplicaReady(spec.id, earlier.max_sequences))
            return
        replica = _Replica(spec)
        self._replica_by_id[spec.id] = replica
        self._work.spawn(self._live(replica, earlier))

    async def stop(self, replica: ReplicaId) -> None:
        """End a replica: its engine with SIGTERM, with SIGKILL if that does not help, and then its actor."""
        known = self._replica_by_id.get(replica)
        if known is None or known.is_lost:
            self._work.spawn(self._stop_unknown(replica, known))
        else:
            known.stop_asked.set()

    def watch(self) -> AsyncIterator[Told]:
        """What happens to replicas, once and in order; ends after `close`."""
        return self._work.watch()

    def url(self, replica: ReplicaId) -> str:
        """Base address of a ready replica. Raises KeyError if it is not ready."""
        url = self._replica_by_id[replica].url
        if url is None:
            raise KeyError(replica)
        return url

    async def close(self) -> None:
        """End every replica of this state, started or only left behind, also in the middle of a start."""
        if self._is_closed:
            return
        self._is_closed = True
        for replica in self._replica_by_id.values():
            replica.stop_asked.set()
        await self._work.done()
        if self._link.was_used:
            try:
                async with asyncio.timeout(_END_LIMIT_S):
                    await self.end_unclaimed()
            except (TimeoutError, RayTrouble) as error:
                log.warning("whether replicas are left cannot be asked: %s", self._link.trouble or error)
        await self._link.close()
        self._work.end()

    # --- beyond the port ---------------------------------------------------------------------------------

    async def end_unclaimed(self) -> tuple[str, ...]:
        """End every actor that an earlier runtime left and nobody has asked for since; their names.

        To be called once all replicas of the plan have been asked for with `start`. Raises RayTrouble.
        """
        ended = []
        for name in await self._link.ask("names"):
            if name not in {key_of(replica) for replica in self._replica_by_id}:
                await self._end(name)
                ended.append(name)
        return tuple(ended)

    def all_are_ordered(self) -> None:
        """That the plan is known: what is left from earlier is ended now, and again whenever Ray was away."""
        self._is_ordered = True
        self._sweep()

    def _sweep(self) -> None:
        if self._is_ordered and not self._is_closed:
            self._work.spawn(self._end_what_is_left())

    async def _end_what_is_left(self) -> None:
        with suppress(RayTrouble):  # a new connection begins a new sweep
            for name in await self.end_unclaimed():
                log.warning("ended %s on Ray, which an earlier runtime had left", name)

    def api_key(self, replica: ReplicaId) -> str | None:
        """The key that a replica's engine asks for; None where it needs none."""
        known = self._replica_by_id.get(replica)
        return known.key if known is not None else None

    def process_id(self, replica: ReplicaId) -> int:
        """The engine's process on its node. Raises KeyError if it has none."""
        pid = self._replica_by_id[replica].pid
        if pid is None:
            raise KeyError(replica)
        return pid

    # --- the life of one replica -------------------------------------------------------------------------

    async def _live(self, replica: _Replica, earlier: _Replica | None) -> None:
        if earlier is not None:
            await earlier.is_over.wait()
        name = key_of(replica.spec.id)
        course = asyncio.create_task(self._course(replica, name))
        stop = asyncio.create_task(replica.stop_asked.wait())
        await asyncio.wait({course, stop}, return_when=asyncio.FIRST_COMPLETED)
        replica.is_lost = is_lost = not stop.done()
        is_gone = is_lost or replica.pid is None
        replica.url = replica.pid = None
        if is_lost:
            self._work.tell(ReplicaLost(replica.spec.id, _why(course)))
        for task in (course, stop):
            task.cancel()
        await asyncio.gather(course, stop, return_exceptions=True)
        # Only now, so that losing a replica is not told late because its node does not answer.
        await self._end(name, is_gone=is_gone)
        if not is_lost:
            self._work.tell(ReplicaStopped(replica.spec.id))
        if self._replica_by_id.get(replica.spec.id) is replica:
            del self._replica_by_id[replica.spec.id]
        replica.is_over.set()

    async def _stop_unknown(self, replica: ReplicaId, lost: _Replica | None) -> None:
        if lost is not None:
            await lost.is_over.wait()
        await self._end(key_of(replica))
        self._work.tell(ReplicaStopped(replica))

    async def _course(self, replica: _Replica, name: str) -> str:
        """From the order to the loss: why it is lost. Cancelled when the replica is stopped."""
        if replica.spec.url is not None:
            return "it has an address of its own, so somebody else runs it"
        try:
            async with asyncio.timeout(self._start_limit_s):
                await self._bring_up(replica, name)
        except TimeoutError:
            return f"it was not ready after {self._start_limit_s:g} s: {await self._what_is_missing(replica)}"
        except Gone as error:
            return f"it lost its place: {error}"
        except (TightropeError, RayTrouble, OSError) as error:
            return f"it could not be started: {error}"
        self._work.tell(ReplicaReady(replica.spec.id, replica.max_sequences))
        return await self._until_lost(replica, name)

    async def _bring_up(self, replica: _Replica, name: str) -> None:
        why: str | None = "no port could be had"
        for _ in range(_PORT_TRIES):
            facts = await self._placed(replica, name)
            if facts["engine"] is None:
                await self._begin(replica, name, facts)
            why = await self._until_ready(replica, name)
            if why is None:
                return
        raise Failed(why)

    async def _placed(self, replica: _Replica, name: str) -> Json:
        """The facts of an actor that has its place, its engine among them if it is the one that is wanted."""
        options = {**self._resources_for(replica.spec)}
        if self._is_detached:
            options["lifetime"] = "detached"
        waiting = asyncio.create_task(self._tell_waiting(replica))
        try:
            facts = await self._link.ask("place", name=name, options=options)
            engine = facts["engine"]
            if engine is not None and engine["digest"] != self._digest(replica.spec, _listen_of(engine)):
                await self._end(name)
                facts = await self._link.ask("place", name=name, options=options)
        finally:
            waiting.cancel()
        if facts["engine"] is not None:
            replica.use(facts["engine"])
        return facts

    async def _begin(self, replica: _Replica, name: str, facts: Json) -> None:
        is_here = facts["machine"] == machine()
        host = LOOPBACK if is_here else str(facts["ip"])
        port = int(await self._link.call(name, "free_port", host))
        listen = Listen(host, port, secrets.token_urlsafe(24))
        command = [str(argument) for argument in self._command_for(replica.spec, listen)]
        told = {
            "host": host,
            "port": port,
            "key": listen.key,
            "digest": self._digest(replica.spec, listen),
        }
        variables = dict.fromkeys(_KEY_VARIABLES, listen.key)
        pid = await self._link.call(name, "begin", command, variables, self._stop_grace_s, told)
        replica.use({**told, "pid": pid})

    def _digest(self, spec: ReplicaSpec, listen: Listen) -> str:
        """What tells one way of serving from another: the command and the place."""
        options = sorted(self._resources_for(spec).items())
        return digest_of([*(str(part) for part in self._command_for(spec, listen)), str(options)])

    async def _until_ready(self, replica: _Replica, name: str) -> str | None:
        """None once our own engine answers well; else why another port is worth a try. Raises Failed."""
        ended = asyncio.create_task(self._link.call(name, "ended"))
        well = asyncio.create_task(self._until_well(replica, name))
        try:
            await asyncio.wait({ended, well}, return_when=asyncio.FIRST_COMPLETED)
            if well.done():
                replica.max_sequences = await well
                replica.url = f"http://{_in_url(replica.host)}:{replica.port}/v1"
                return None
            how = await ended
        finally:
            for task in (ended, well):
                task.cancel()
            await asyncio.gather(ended, well, return_exceptions=True)
        why = f"its engine {how['how']}{how['tail']}"
        if await self._link.call(name, "is_taken", replica.host, replica.port):
            return f"its port {replica.port} was taken by another process; {why}"
        raise Failed(why)

    async def _until_well(self, replica: _Replica, name: str) -> int | None:
        """Wait for a good answer that comes from our own engine; what it says of its slots."""
        root = f"http://{_in_url(replica.host)}:{replica.port}"
        wait_s = _FIRST_WAIT_S
        async with probing_session(replica.key) as session:
            while True:
                health = await probe(session, root + self._health_path_for(replica.spec))
                replica.last_health = health.said
                if health.state == "well" and await self._link.call(name, "listens", replica.port):
                    break
                await asyncio.sleep(wait_s)
                wait_s = min(_LONGEST_WAIT_S, 1.3 * wait_s)
        if replica.host != LOOPBACK and not self._may_be_open and await _is_open(f"{root}/v1"):
            raise Failed(_OPEN_ENGINE)
        return await max_sequences(f"{root}/v1", replica.key)

    async def _until_lost(self, replica: _Replica, name: str) -> str:
        """Why a ready replica is lost, as soon as that is known."""
        ended = asyncio.create_task(self._until_ended(name))
        silent = asyncio.create_task(self._until_silent(replica, name))
        try:
            await asyncio.wait({ended, silent}, return_when=asyncio.FIRST_COMPLETED)
            return await (ended if ended.done() else silent)
        finally:
            for task in (ended, silent):
                task.cancel()
            await asyncio.gather(ended, silent, return_exceptions=True)

    async def _until_ended(self, name: str) -> str:
        """What Ray tells of the end."""
        while True:
            try:
                how = await self._link.call(name, "ended")
                return f"its engine {how['how']}{how['tail']}"
            except Gone as error:
                return f"its actor is gone: {error}"
            except RayTrouble as error:
                log.warning("%s cannot be watched through Ray for now: %s", name, error)
                await asyncio.sleep(_BEAT_EVERY_S)

    async def _until_silent(self, replica: _Replica, name: str) -> str:
        """That neither the actor nor the engine answers. As long as the engine does, Ray may be away."""
        root = f"http://{_in_url(replica.host)}:{replica.port}"
        async with probing_session(replica.key) as session:
            while True:
                await asyncio.sleep(_BEAT_EVERY_S)
                with suppress(TimeoutError, RayTrouble):
                    async with asyncio.timeout(_BEAT_LIMIT_S):
                        await self._link.call(name, "beat")
                        continue
                health = await probe(session, root + self._health_path_for(replica.spec))
                if health.state != "well":
                    return f"its node does not answer: no word from the actor, and {health.said}"

    # --- what stands in the way, and ends ----------------------------------------------------------------

    async def _tell_waiting(self, replica: _Replica) -> None:
        await asyncio.sleep(_TELL_WAITING_AFTER_S)
        log.warning("%s waits for its place: %s", replica.spec.id, await self._what_is_missing(replica))

    async def _what_is_missing(self, replica: _Replica) -> str:
        """Why a replica is not ready yet, for people."""
        if replica.pid is not None:
            return f"its engine is not healthy: {replica.last_health}"
        if self._link.trouble is not None:
            return self._link.trouble
        wanted = self._resources_for(replica.spec)
        try:
            async with asyncio.timeout(_BEAT_LIMIT_S):
                nodes = await self._link.ask("nodes")
        except (TimeoutError, RayTrouble) as error:
            return f"Ray does not say ({str(error) or 'no answer'})"
        return _room(wanted, nodes)

    async def _end(self, name: str, *, is_gone: bool = False) -> None:
        """End the engine in order and then the actor; what is `is_gone` is only removed.

        What cannot be ended because Ray is away is swept when it is back.
        """
        if not is_gone:
            with suppress(TimeoutError, RayTrouble):
                async with asyncio.timeout(_BEAT_LIMIT_S):  # who waits for a place cannot be asked
                    await self._link.call(name, "beat")
                async with asyncio.timeout(self._stop_grace_s + _BEAT_LIMIT_S):
                    await self._link.call(name, "end")
        with suppress(TimeoutError, RayTrouble):
            async with asyncio.timeout(_END_LIMIT_S):
                await self._link.ask("kill", name=name)


@dataclass(slots=True)
class _Replica:
    """A replica from the order to its end."""

    spec: ReplicaSpec
    host: str = LOOPBACK
    port: int = 0
    key: str | None = None
    pid: int | None = None
    url: str | None = None
    max_sequences: int | None = None
    last_health: str = "it was not asked yet"
    is_lost: bool = False
    stop_asked: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_wanted(self) -> bool:
        """Whether it is neither lost nor told to stop."""
        return not self.is_lost and not self.stop_asked.is_set()

    def use(self, engine: Json) -> None:
        """Take over what is known of its engine."""
        self.host, self.port, self.key = str(engine["host"]), int(engine["port"]), engine["key"]
        self.pid = int(engine["pid"])


def _namespace(state_dir: Path) -> str:
    """The namespace of the actors of this state, drawn once: a path would be the same on two machines."""
    file = state_dir / "ray-namespace"
    state_dir.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), file.open("x", encoding="ascii") as fresh:
        fresh.write(f"tightrope-{secrets.token_hex(8)}")
    return file.read_text("ascii")


def _listen_of(engine: Json) -> Listen:
    return Listen(str(engine["host"]), int(engine["port"]), engine["key"])


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _why(course: asyncio.Task[str]) -> str:
    error = course.exception()
    return course.result() if error is None else f"watching it failed: {error!r}"


def _room(wanted: Mapping[str, Json], nodes: Sequence[Json]) -> str:
    """What a replica asks for and what the nodes have of it, as a sentence."""
    asked = dict(wanted.get("resources", {}))
    if "num_gpus" in wanted:
        asked["GPU"] = wanted["num_gpus"]
    words = ", ".join(f"{amount:g} {name}" for name, amount in sorted(asked.items()))
    having = [node for node in nodes if all(node["has"].get(name, 0) > 0 for name in asked)]
    if not having:
        return f"no node has {words} ({len(nodes)} nodes are there)"
    free = "; ".join(f"{_free(node, asked)} on {node['ip']}" for node in having)
    return f"it needs {words}, and free is {free}"


def _free(node: Json, names: Iterable[str]) -> str:
    return ", ".join(
        f"{node['free'].get(name, 0):g} of {node['has'][name]:g} {name}" for name in sorted(names)
    )


async def _is_open(url: str) -> bool:
    """Whether an engine answers calls without its key. An empty call is refused by all: for the key or for its form."""
    async with probing_session() as session:
        try:
            async with session.post(
                f"{url}/chat/completions", json={}, timeout=aiohttp.ClientTimeout(total=_END_LIMIT_S)
            ) as response:
                return response.status not in (401, 403)
        except (aiohttp.ClientError, OSError, TimeoutError):
            return True
