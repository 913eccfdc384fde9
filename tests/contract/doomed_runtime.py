"""A runtime that is going to be killed: starts replicas, tells their processes, and waits.

Arguments: the directory, `duty-cycle` or `found`, `dies` or `lives`, the replicas.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from tightrope.adapters.cluster_local import LocalCluster
from tightrope.adapters.processor_share import DutyCycle
from tightrope.model.fleet import Accelerator, ReplicaSpec
from tightrope.model.ids import AcceleratorName, ModelName, ReplicaId

HALF = AcceleratorName("half")


def command(_: ReplicaSpec, port: int) -> Sequence[str]:
    server = Path(__file__).with_name("small_server.py")
    return [sys.executable, "-I", "-S", str(server), "--port", str(port)]


async def main(place: str, mechanism: str, dies: str, *replicas: str) -> None:
    cluster = LocalCluster(
        Path(place) / "state",
        command,
        accelerators={HALF: Accelerator(HALF, share=0.5)},
        log_dir=Path(place) / "logs",
        mechanism=DutyCycle() if mechanism == "duty-cycle" else None,
        die_with_parent=dies == "dies",
    )
    for replica in replicas:
        await cluster.start(ReplicaSpec(ReplicaId(replica), ModelName("small"), HALF))
    watch = cluster.watch()
    for _ in replicas:
        await anext(watch)
    print(*(cluster.process_id(ReplicaId(replica)) for replica in replicas), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
