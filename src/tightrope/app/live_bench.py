"""`bench live`: policies compared on this machine's own engines, under the load of the demo.

Owns the course and the table. The parts of the demo are `demo.py`, the load is `bench/load.py`.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from tightrope.app.cli.frame import Common
from tightrope.app.demo import bearable, running, until_ready
from tightrope.app.embedded import cache_dir, ensure_engine
from tightrope.app.staging import demo_config
from tightrope.app.tables import grid
from tightrope.bench.demand import observed_demand
from tightrope.bench.load import Arrival, Played, play, poisson
from tightrope.kernel.journal import entries
from tightrope.model.codec import encode
from tightrope.model.errors import InvalidInput
from tightrope.model.json import Json
from tightrope.model.outcome import Outcome, Verdict
from tightrope.reports.summary import Summary, percentile, summarize

LIVE_POLICIES = (
    "foresight",
    "fmware-greedy",
    "fmware-target",
    "power-of-two",
    "shortest-queue",
    "least-tokens",
    "round-robin",
    "random",
)


@dataclass(frozen=True, slots=True)
class Round:
    """One policy under one seed's load. Times in seconds over all runs that gave content."""

    policy: str
    seed: int
    runs: int
    succeeded: int
    met: int
    mean_ttft_s: float
    p50_ttft_s: float
    p95_ttft_s: float
    shares: tuple[tuple[str, float], ...]
    prediction_error: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Live:
    """A live comparison: `runs` at `share` of the stability limit, for each policy and seed."""

    policies: tuple[str, ...]
    runs: int
    share: float
    seeds: tuple[int, ...]


def bench_live(common: Common, live: Live) -> tuple[Json, str]:
    """The demo's load under each policy, on the same engines, with the same arrivals for all."""
    unknown = [policy for policy in live.policies if policy not in LIVE_POLICIES]
    if unknown:
        raise InvalidInput(f"there is no policy {unknown[0]!r}; name some of: {', '.join(LIVE_POLICIES)}")
    ensure_engine(cache_dir(), common.say)
    rounds: list[Round] = []
    for index, seed in enumerate(live.seeds):
        turn = index % len(live.policies)
        for policy in live.policies[turn:] + live.policies[:turn]:
            rounds.append(asyncio.run(_round(common, live, policy, seed, is_first=not rounds)))
            one = rounds[-1]
            common.say(
                f"seed {seed} {policy}: mean TTFT {one.mean_ttft_s:.2f} s, {one.met} of {one.runs} met"
            )
    return [cast(Json, encode(one)) for one in rounds], _table(rounds, live)


async def _round(common: Common, live: Live, policy: str, seed: int, is_first: bool) -> Round:
    """The first one measures the engines anew: profiles of another hour are of another machine, if others used it."""
    config = demo_config(cache_dir() / "demo", f"bench-{policy}-{seed}.journal")
    async with running(config, policy) as runtime:
        await until_ready(runtime, runtime.plan.replicas)
        rate, asks = await bearable(runtime, live.share, common.say, is_fresh=is_first)
        warm_up = [Arrival(0.0, group[-1]) for group in asks]
        await play(runtime.client, warm_up)
        began_s = runtime.driver.clock.now()
        played = await play(runtime.client, poisson(asks, live.runs, rate, seed))
    with config.journal.path.open(encoding="utf-8") as lines:
        kept = [entry for entry in entries(lines) if entry.at_s >= began_s]
    common.say(f"  {rate:.3f} runs/s; asked of the models: {observed_demand(kept)}")
    return _summed(policy, seed, played, summarize(kept))


def _summed(policy: str, seed: int, played: Sequence[Played], summary: Summary) -> Round:
    ttft_s = [one.ttft_s for one in played if one.ttft_s is not None]
    return Round(
        policy=policy,
        seed=seed,
        runs=len(played),
        succeeded=sum(one.outcome is Outcome.SUCCEEDED for one in played),
        met=sum(one.verdict is Verdict.MET for one in played),
        mean_ttft_s=statistics.fmean(ttft_s),
        p50_ttft_s=percentile(ttft_s, 0.5) or 0.0,
        p95_ttft_s=percentile(ttft_s, 0.95) or 0.0,
        shares=tuple((share.accelerator, share.share) for share in summary.total.shares),
        prediction_error=tuple((error.accelerator, error.median) for error in summary.errors),
    )


def _table(rounds: Sequence[Round], live: Live) -> str:
    head = ("policy", "mean TTFT", "vs foresight", "p50", "p95", "met", "ended well", "share per accelerator")
    means = {policy: _mean(rounds, policy, lambda one: one.mean_ttft_s) for policy in live.policies}
    own = means.get("foresight")
    rows = []
    for policy in sorted(live.policies, key=lambda name: means[name]):
        mine = [one for one in rounds if one.policy == policy]
        total = sum(one.runs for one in mine)
        shares = dict(mine[0].shares)
        rows.append(
            (
                policy,
                f"{means[policy]:.2f} s",
                "-" if own is None else f"{own / means[policy] - 1:+.0%}",
                f"{_mean(rounds, policy, lambda one: one.p50_ttft_s):.2f} s",
                f"{_mean(rounds, policy, lambda one: one.p95_ttft_s):.2f} s",
                f"{sum(one.met for one in mine)}/{total}",
                f"{sum(one.succeeded for one in mine)}/{total}",
                ", ".join(f"{card} {share:.0%}" for card, share in shares.items()),
            )
        )
    title = (
        f"{live.runs} runs at {live.share:.0%} of the stability limit, seeds "
        f"{', '.join(map(str, live.seeds))}; `vs foresight` is foresight's mean TTFT against the row's"
    )
    return title + "\n\n" + grid(head, rows, right=(1, 2, 3, 4, 5, 6))


def _mean(rounds: Sequence[Round], policy: str, figure: Callable[[Round], float]) -> float:
    return statistics.fmean(figure(one) for one in rounds if one.policy == policy)
