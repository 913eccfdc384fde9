"""Starts Ray and one of the applications on this machine, says when it is ready, and ends both when its input ends.

One argument: a JSON object with `port`, `temp`, the folder of Ray's files, `application`, either `workflows` or
`relay`, and what that one is asked. One line on standard output once requests are taken: `ready`. Standard input is
held open by whoever wants it to go on, so that it also ends when that one dies; Ray takes signals for itself.
"""

from __future__ import annotations

import json
import sys

import ray
import relay
import workflows
from ray import serve

APPLICATIONS = {"workflows": workflows.application, "relay": relay.application}
ATTEMPTS = 3


def main() -> int:
    """Serve until the input ends."""
    asked = json.loads(sys.argv[1])
    _start_ray(asked["temp"])
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": asked["port"]})
        serve.run(APPLICATIONS[asked["application"]](asked), route_prefix="/")
        print("ready", flush=True)
        sys.stdin.read()
    finally:
        serve.shutdown()
        ray.shutdown()
    return 0


def _start_ray(temp: str) -> None:
    """Ray gives its own processes half a minute to start, which is little on a machine that was busy for a moment."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(
                num_cpus=4,
                num_gpus=0,
                include_dashboard=False,
                object_store_memory=200_000_000,
                log_to_driver=False,
                _temp_dir=temp,
            )
        except Exception:
            if attempt == ATTEMPTS:
                raise
            ray.shutdown()
        else:
            return


if __name__ == "__main__":
    raise SystemExit(main())
