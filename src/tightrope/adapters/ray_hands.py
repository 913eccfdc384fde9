"""The hands of `cluster_ray.py`: a process of its own that does what it is told with Ray. The only importer of ray.

Apart from the runtime because Ray ends the process that uses it when the cluster's head is gone for a minute, and
because its calls block. Told and answers by lines of JSON on standard input and output; ends when the input does.
Remembers nothing: actors are found by their names, in the namespace of the runtime's state.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tightrope.adapters import engine_process, process, ray_replica

PR_SET_PDEATHSIG = 1
_FREE_NAME_LIMIT_S = 5.0
_FREE_NAME_WAIT_S = 0.05
_LINE_LIMIT_BYTES = 2**20

Json = Any
Say = Callable[..., None]


def main() -> None:
    """`prepare` reads the environment Ray shall have from the first line and begins anew with it; else works."""
    if sys.argv[1] == "prepare":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        first = bytearray()
        while (byte := os.read(0, 1)) not in (b"\n", b""):
            first += byte
        for name, value in json.loads(first).items():
            os.putenv(name, value)
        os.execv(sys.executable, [sys.executable, "-m", __spec__.name, "work"])
    # Ray and its libraries print; what they print must not stand between our lines.
    mouth = os.dup(1)
    os.dup2(2, 1)
    asyncio.run(_work(lambda **told: _say(mouth, told)))


async def _work(say: Say) -> None:
    told = asyncio.StreamReader(limit=_LINE_LIMIT_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    settings = json.loads(await told.readline())
    try:
        hands = await asyncio.to_thread(Hands, settings)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the runtime has to hear of it
        say(failed=_first_lines(error))
        return
    say(connected=True)
    tasks: set[asyncio.Task[None]] = set()
    while line := await told.readline():
        task = asyncio.create_task(_answer(hands, json.loads(line), say))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    hands.leave()


async def _answer(hands: Hands, asked: Mapping[str, Json], say: Say) -> None:
    try:
        done = await hands.do[asked["ask"]](**asked["with"])
    except (Gone, hands.actor_died) as error:
        say(id=asked["id"], gone=_first_lines(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the runtime has to hear of it
        say(id=asked["id"], failed=_first_lines(error))
    else:
        say(id=asked["id"], done=done)


def _say(mouth: int, told: Mapping[str, Json]) -> None:
    os.write(mouth, json.dumps(told).encode() + b"\n")


class Gone(Exception):
    """There is no such actor any more."""


class Hands:
    """One connection to Ray. Raises what Ray raises when it cannot be had."""

    def __init__(self, settings: Mapping[str, Json]) -> None:
        import ray
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(ray_replica)
        cloudpickle.register_pickle_by_value(process)
        cloudpickle.register_pickle_by_value(engine_process)
        self._ray = ray
        self.actor_died = ray.exceptions.ActorDiedError
        self._keeper_source = Path(ray_replica.__file__).with_name("keeper.py").read_text("utf-8")
        own = {"include_dashboard": False, "object_store_memory": 100 * 2**20, "resources": settings["cards"]}
        ray.init(
            address=settings["address"],
            namespace=settings["namespace"],
            log_to_driver=False,
            **(own if settings["address"] == "local" else {}),
        )
        self._made: dict[str, Any] = {}
        self.do: dict[str, Callable[..., Awaitable[Json]]] = {
            "place": self.place,
            "call": self.call,
            "kill": self.kill,
            "names": self.names,
            "nodes": self.nodes,
        }

    async def place(self, name: str, options: dict[str, Json]) -> Json:
        """Find or make the actor of this name; answer when it has its place, with its facts and its node's address."""
        actor = await asyncio.to_thread(self._found_or_made, name, options)
        facts = await actor.facts.remote()
        facts["ip"] = await actor.__ray_call__.remote(_node_ip_address)
        return facts

    async def call(self, name: str, method: str, args: list[Json]) -> Json:
        """What a method of the actor answers."""
        try:
            actor = await asyncio.to_thread(self._ray.get_actor, name)
        except ValueError:
            raise Gone(f"there is no actor {name} any more") from None
        return await getattr(actor, method).remote(*args)

    async def kill(self, name: str) -> None:
        """End an actor as it is, and wait until its name is free; nothing if there is none."""
        await asyncio.to_thread(self._kill, name)

    async def names(self) -> list[str]:
        """The names of all actors of this namespace."""
        return sorted(await asyncio.to_thread(self._ray.util.list_named_actors))

    async def nodes(self) -> list[Json]:
        """The nodes that are there: address, what they have, and what of it is free."""
        return await asyncio.to_thread(self._nodes)

    def leave(self) -> None:
        """Let go of Ray; one that was started here ends."""
        self._ray.shutdown()

    def _found_or_made(self, name: str, options: dict[str, Json]) -> Any:
        with suppress(ValueError):
            return self._ray.get_actor(name)
        made = self._ray.remote(ray_replica.ReplicaActor).options(
            name=name, num_cpus=0, max_restarts=0, max_task_retries=0, **options
        )
        # One that is not detached ends with the handle that made it.
        self._made[name] = made.remote(name, self._keeper_source)
        return self._made[name]

    def _kill(self, name: str) -> None:
        self._made.pop(name, None)
        until_s = time.monotonic() + _FREE_NAME_LIMIT_S
        while time.monotonic() < until_s:
            try:
                actor = self._ray.get_actor(name)
            except ValueError:
                return
            self._ray.kill(actor, no_restart=True)
            time.sleep(_FREE_NAME_WAIT_S)
        raise TimeoutError(f"the actor {name} is still there {_FREE_NAME_LIMIT_S:g} s after it was killed")

    def _nodes(self) -> list[Json]:
        free = self._ray._private.state.available_resources_per_node()
        return [
            {
                "ip": node["NodeManagerAddress"],
                "has": node["Resources"],
                "free": free.get(node["NodeID"], {}),
            }
            for node in self._ray.nodes()
            if node["Alive"]
        ]


def _node_ip_address(_: object) -> str:
    import ray

    address: str = ray.util.get_node_ip_address()
    return address


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])}"[:400]


if __name__ == "__main__":
    main()
