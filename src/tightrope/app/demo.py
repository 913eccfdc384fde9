"""`demo`: two tenants' workflows on unequal replicas of this machine, from nothing to a table.

Owns the course of the demonstration: engines up, one streamed answer, a quick profile of what was never
measured, a load at a share of what the fleet can bear under promises that it can keep, and the journal's own account.
Which fleet and workflows are shown, real ones or emulated, is `staging.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tightrope.app.cli.frame import ANSWER_IS_NO, DONE, Answer, Common
from tightrope.app.compose import Runtime, compose, pairs_of
from tightrope.app.config import Config, Model
from tightrope.app.embedded import cache_dir, ensure_engine
from tightrope.app.feasible import slo_within_reach
from tightrope.app.profiling import measure_running, memory_of
from tightrope.app.staging import REAL, Staging, emulated
from tightrope.app.tables import summary_table
from tightrope.app.workflows import load_workflows
from tightrope.bench.capacity import stability_limit
from tightrope.bench.load import Ask, Played, ask_once, play, poisson
from tightrope.kernel.journal import entries
from tightrope.model.errors import EngineFailed
from tightrope.model.fleet import Accelerator, ReplicaSpec
from tightrope.model.ids import ModelName
from tightrope.model.json import Json
from tightrope.model.outcome import FailureKind
from tightrope.model.profile import Profile
from tightrope.model.units import format_seconds
from tightrope.reports.summary import Summary, summarize
from tightrope.reports.summary import as_json as summary_json
from tightrope.runtime.driver import Observer

FIRST = 0
"""The question that is shown: its place among those of the first workflow."""
SHARE_OF_CAPACITY = 0.6
READY_WITHIN_S = 120.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What happened: the first answer, the load and its summary."""

    question: str
    answer: str
    first_token_s: float
    policy: str
    rate_per_s: float
    share_of_capacity: float
    summary: Summary
    journal: Path


def run(
    common: Common, *, fleet: str | None, runs: int | None, policy: str | None, seed: int, keep: Path | None
) -> Answer:
    """The verb: everything from the engines to the table. Exit status 1 when a run did not end well."""
    started_s = time.monotonic()
    staging = REAL if fleet is None else emulated(fleet)
    if staging.is_real:
        ensure_engine(cache_dir(), common.say)
    runs = runs or staging.runs
    folder = keep or cache_dir() / staging.name
    found = asyncio.run(
        _demonstrate(common, staging, runs=runs, policy=policy, seed=seed, folder=folder, started_s=started_s)
    )
    total = found.summary.total
    hint = f"tightrope explain last-late --journal {found.journal}"
    text = "\n\n".join((summary_table(found.summary), f"where the time of a run went: {hint}"))
    return Answer(_as_json(found), text, code=DONE if total.succeeded == total.runs == runs else ANSWER_IS_NO)


async def _demonstrate(
    common: Common,
    staging: Staging,
    *,
    runs: int,
    policy: str | None,
    seed: int,
    folder: Path,
    started_s: float,
) -> Demonstration:
    config = staging.config(folder)
    asks = staging.asks()
    write: Say = (lambda _: None) if common.as_json else (lambda text: print(text, end="", flush=True))
    async with running(config, policy) as runtime:
        replicas = runtime.plan.replicas
        common.say(f"starting {len(replicas)} engines")
        await until_ready(runtime, {spec.model: spec for spec in reversed(replicas)}.values())
        first, first_token_s = await _first_answer(runtime, asks[0][FIRST], common.say, write, started_s)
        await until_ready(runtime, replicas)
        rate, asks = await bearable(runtime, SHARE_OF_CAPACITY, common.say, staging)
        common.say(
            f"{runs} runs at {rate:.2f} runs/s, {SHARE_OF_CAPACITY:.0%} of what these replicas can bear"
        )
        began_s = runtime.driver.clock.now()
        await play(runtime.client, poisson(asks, runs, rate, seed), _counter(common.say, runs))
        name = runtime.driver.kernel.settings.router
    with config.journal.path.open(encoding="utf-8") as lines:
        summary = summarize(entry for entry in entries(lines) if entry.at_s >= began_s)
    question = asks[0][FIRST].inputs.messages[-1].content
    return Demonstration(
        question, first.text, first_token_s, name, rate, SHARE_OF_CAPACITY, summary, config.journal.path
    )


# --- the parts, shared with the benches ------------------------------------------------------------------


@asynccontextmanager
async def running(
    config: Config, policy: str | None, observers: Sequence[Observer] = ()
) -> AsyncIterator[Runtime]:
    """A runtime with a new journal that is started on entry and leaves nothing running on exit."""
    runtime = compose(
        config,
        load_workflows(config),
        policy=policy,
        die_with_parent=True,
        has_new_journal=True,
        observers=observers,
    )
    try:
        await runtime.start()
        yield runtime
    finally:
        await runtime.close()


async def until_ready(
    runtime: Runtime, replicas: Iterable[ReplicaSpec], within_s: float = READY_WITHIN_S
) -> None:
    """Return when these replicas are ready. Raises EngineFailed with the reason when that takes too long."""
    try:
        async with asyncio.timeout(within_s):
            await runtime.driver.until_ready(spec.id for spec in replicas)
    except TimeoutError:
        why = "; ".join(runtime.driver.reasons_lost.values()) or "they are still loading"
        raise EngineFailed(
            FailureKind.REPLICA_LOST, f"not all engines came up within {within_s:g} s: {why}"
        ) from None


async def bearable(
    runtime: Runtime, share: float, say: Say, staging: Staging = REAL, *, is_fresh: bool = False
) -> tuple[float, list[list[Ask]]]:
    """The rate, in runs/s, at which the demo's load is this share of the stability limit, and what is asked then, with
    promises that can be kept; measures what is not known, or everything anew."""
    await _measure(runtime, say, is_fresh)
    rate = share * stability_limit(staging.demand, _fleet_profiles(runtime))
    return rate, _within_reach(staging.asks(), runtime, say)


async def _measure(runtime: Runtime, say: Say, is_fresh: bool) -> None:
    """Measure every pair that no profile is known for, or every one, on the running, idle engines.

    The models on one kind of card are measured together: each of their replicas has a card of its own.
    """
    known = {} if is_fresh else runtime.driver.kernel.state.profiles
    missing = [
        (model, card) for model, card in pairs_of(runtime.config) if (model.name, card.name) not in known
    ]
    for card in dict.fromkeys(card for _, card in missing):
        models = [model for model, other in missing if other is card]
        say(f"profiling {' and '.join(model.name for model in models)} on {card.name}")
        await asyncio.gather(*(_profile(runtime, model, card) for model in models))


async def _profile(runtime: Runtime, model: Model, card: Accelerator) -> None:
    pair = (model.name, card.name)
    replica = next(spec.id for spec in runtime.plan.replicas if (spec.model, spec.accelerator) == pair)
    profiled = await measure_running(
        runtime.driver.engine(replica),
        model,
        card,
        load_s=runtime.driver.load_s[replica],
        memory_bytes=memory_of(runtime.local, replica),
        progress=lambda *_: None,
    )
    runtime.use_profile(profiled.profile)
    runtime.store.save_profile(profiled.profile)


def _within_reach(asks: Sequence[Sequence[Ask]], runtime: Runtime, say: Say) -> list[list[Ask]]:
    """The same with the promise that this machine can keep; says where that is less than the workflow's own."""
    profiles = [profile for found in _fleet_profiles(runtime).values() for profile in found]
    slos = {workflow.name: slo_within_reach(workflow, profiles) for workflow in runtime.workflows}
    for workflow in runtime.workflows:
        own, slo = workflow.slo, slos[workflow.name]
        if own.ttft_s is not None and slo.ttft_s is not None and slo.ttft_s > own.ttft_s:
            say(
                f"{workflow.name} promises its first token within {format_seconds(own.ttft_s)}; this machine is too"
                f" slow for that and promises {format_seconds(round(slo.ttft_s, 1))}"
            )
    return [[replace(ask, slo=slos[ask.workflow]) for ask in group] for group in asks]


def _fleet_profiles(runtime: Runtime) -> dict[ModelName, list[Profile]]:
    """A profile for every replica of the plan."""
    state = runtime.driver.kernel.state
    found: dict[ModelName, list[Profile]] = {}
    for spec in runtime.plan.replicas:
        found.setdefault(spec.model, []).append(state.profile(spec.model, spec.accelerator))
    return found


# --- one after the other ---------------------------------------------------------------------------------


async def _first_answer(
    runtime: Runtime, ask: Ask, say: Say, write: Say, started_s: float
) -> tuple[Played, float]:
    """The first run, shown as it streams; the second value is its first token since the command, in seconds."""
    say(f"{ask.tenant} asks {ask.workflow}: {ask.inputs.messages[-1].content}")
    first_s: list[float] = []

    def show(text: str) -> None:
        if not first_s:
            first_s.append(time.monotonic() - started_s)
        write(text)

    played = await ask_once(runtime.client, ask, show)
    write("\n")
    if not first_s:
        raise EngineFailed(
            FailureKind.ENGINE_ERROR, f"the first run gave no answer: {played.message or played.outcome}"
        )
    say(f"first token {first_s[0]:.1f} s after the command")
    return played, first_s[0]


def _counter(say: Say, runs: int) -> Callable[[Played], None]:
    """Says every eighth run how far the load is."""
    done = 0

    def count(_: Played) -> None:
        nonlocal done
        done += 1
        if done % 8 == 0 or done == runs:
            say(f"{done} of {runs} runs done")

    return count


# --- what is said ----------------------------------------------------------------------------------------


def _as_json(found: Demonstration) -> Json:
    return {
        "first": {
            "question": found.question,
            "answer": found.answer,
            "first_token_s": round(found.first_token_s, 3),
        },
        "policy": found.policy,
        "rate_per_s": round(found.rate_per_s, 4),
        "share_of_capacity": found.share_of_capacity,
        "journal": str(found.journal),
        "summary": summary_json(found.summary),
    }
