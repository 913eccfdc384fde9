"""`bench parity`: the demo's load on this machine's own engines, decided again and played again from its journal.

Owns the course. The parts of the demo are `demo.py`, the comparison is `bench/parity.py`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from tightrope.app.cli.frame import Common
from tightrope.app.config import Config
from tightrope.app.demo import bearable, running, until_ready
from tightrope.app.embedded import cache_dir, ensure_engine
from tightrope.app.staging import demo_config
from tightrope.bench.load import Arrival, play, poisson
from tightrope.bench.parity import Parity, parity

POLICY = "foresight"


def bench_parity(common: Common, *, runs: int, share: float, seed: int) -> tuple[Parity, Path]:
    """Measure the engines, load them with `runs` at `share` of the stability limit, compare; and the journal."""
    ensure_engine(cache_dir(), common.say)
    config = demo_config(cache_dir() / "parity", f"parity-{seed}.journal")
    began_s = asyncio.run(_live(common, config, runs, share, seed))
    journal = config.journal.path
    common.say("playing the same runs on simulated engines")
    return parity(journal.read_text(encoding="utf-8").splitlines(keepends=True), began_s), journal


async def _live(common: Common, config: Config, runs: int, share: float, seed: int) -> float:
    """Leave the journal of the load; when its first request was due, on the journal's clock."""
    async with running(config, POLICY) as runtime:
        await until_ready(runtime, runtime.plan.replicas)
        rate, asks = await bearable(runtime, share, common.say, is_fresh=True)
        await play(runtime.client, [Arrival(0.0, group[-1]) for group in asks])
        common.say(f"{runs} runs at {rate:.3f} runs/s, {share:.0%} of what these replicas can bear")
        began_s = runtime.driver.clock.now()
        await play(runtime.client, poisson(asks, runs, rate, seed))
    return began_s
