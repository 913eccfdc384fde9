"""Starts Ray and the application on this machine, says when it is ready, and ends both when its input ends.

One argument: a JSON object with `port`, `temp`, the folder of Ray's files, and what `application` is asked. One line
on standard output once requests are taken: `ready`. Standard input is held open by whoever wants it to go on, so that
it also ends when that one dies; Ray takes signals for itself.
"""

from __future__ import annotations

import json
import sys

import ray
from application import application
from ray import serve


def main() -> int:
    """Serve until the input ends."""
    asked = json.loads(sys.argv[1])
    ray.init(
        num_cpus=4,
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=200_000_000,
        log_to_driver=False,
        _temp_dir=asked["temp"],
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": asked["port"]})
        serve.run(application(asked), route_prefix="/")
        print("ready", flush=True)
        sys.stdin.read()
    finally:
        serve.shutdown()
        ray.shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
