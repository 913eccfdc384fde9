"""A runtime that is going to be killed: starts replicas on Ray, tells their engines' processes, and waits.

Arguments: Ray's address, the state directory, `replica=card` for each replica; one on the card `nowhere` stays waiting.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.contract.doomed_runtime import command
from tests.ray.machines import TOKEN
from tightrope.adapters.cluster_ray import RayCluster, RayPlace
from tightrope.model.fleet import ReplicaSpec
from tightrope.model.ids import AcceleratorName, ModelName, ReplicaId


async def main(address: str, state: str, *replicas: str) -> None:
    cluster = RayCluster(
        RayPlace(address, TOKEN),
        Path(state),
        lambda spec, listen: command(spec, listen.port),
        resources_for=lambda spec: {"resources": {f"accelerator_type:{spec.accelerator}": 1}},
    )
    cards = dict(word.split("=") for word in replicas)
    for name, card in cards.items():
        await cluster.start(ReplicaSpec(ReplicaId(name), ModelName("small"), AcceleratorName(card)))
    watch = cluster.watch()
    placed = [ReplicaId(name) for name, card in cards.items() if card != "nowhere"]
    for _ in placed:
        await anext(watch)
    await cluster._link.ask("names")  # the order of the waiting one has reached Ray
    print(*(cluster.process_id(name) for name in placed), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
