"""`profile`: one engine of a configuration, alone, measured, checked and its profile stored.

Owns which replica is measured and under which identity the result is kept. Measuring is `profiler/`; the
prediction that is checked is the router's own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from tightrope.adapters.cluster_local import LocalCluster
from tightrope.adapters.cluster_static import StaticCluster
from tightrope.adapters.engine_openai import OpenAIEngine
from tightrope.adapters.store_sqlite import SqliteStore
from tightrope.app.cli.frame import ANSWER_IS_NO, Answer, Common
from tightrope.app.compose import (
    MonotonicClock,
    api_key,
    engine_command,
    health_path,
    identity_of,
    is_on_ray,
    possible_replicas,
    ray_cluster,
    step_tokens_of,
    stored_profiles,
)
from tightrope.app.config import Config, Model, load_config
from tightrope.app.config_form import LlamaCpp
from tightrope.app.embedded import cache_dir, ensure_engine
from tightrope.app.progress import bar
from tightrope.model.codec import encode
from tightrope.model.errors import EngineFailed, NotFound
from tightrope.model.fleet import Accelerator, HeldCall, Job, ReplicaSpec, ReplicaView
from tightrope.model.ids import CallId, ReplicaId
from tightrope.model.json import Json
from tightrope.model.messages import ReplicaLost, ReplicaReady
from tightrope.model.outcome import FailureKind
from tightrope.model.profile import Profile
from tightrope.policy.estimate import estimate
from tightrope.ports import Cluster, Engine
from tightrope.profiler import plot
from tightrope.profiler.grid import FULL, Grid
from tightrope.profiler.measure import Profiled, Progress, profile_engine
from tightrope.profiler.verify import Others, Verification, verify


@dataclass(frozen=True, slots=True)
class Started:
    """A replica that runs for a measurement alone, and what starting it cost."""

    engine: Engine
    serves: str
    load_s: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What one measurement gave, and how well it predicts if that was asked."""

    profiled: Profiled
    verification: Verification | None
    is_new: bool = True

    @property
    def is_accepted(self) -> bool:
        """Whether the profile may be used and keeps its promise."""
        return self.profiled.refusal is None and (self.verification is None or self.verification.is_accepted)


def run(
    common: Common, *, model: str, accelerator: str, quick: bool, verify: bool, plot: Path | None, fresh: bool
) -> Answer:
    """The verb: measure, store, say. Exit status 1 when the profile is refused or predicts too badly."""
    config = load_config(common.config)
    asked = config.model(model)
    if asked is not None and isinstance(asked.engine, LlamaCpp):
        ensure_engine(cache_dir(), common.say)
    with bar(common, f"{model} on {accelerator}") as progress:
        measured = asyncio.run(
            measure_pair(
                config, model, accelerator, quick=quick, check=verify, fresh=fresh, progress=progress
            )
        )
    pictures = _draw(measured, plot) if plot is not None else ()
    code = 0 if measured.is_accepted else ANSWER_IS_NO
    return Answer(_as_json(measured), _as_text(measured, pictures), code=code)


async def measure_pair(
    config: Config,
    model_name: str,
    card_name: str,
    *,
    quick: bool,
    check: bool,
    fresh: bool,
    progress: Progress,
) -> Measured:
    """Start one replica, measure it alone, store the profile if it may be used.

    `check` predicts fresh prompts afterwards. A pair that was measured before, on this grid or a larger one, is
    not measured again, and an interrupted measurement goes on where it stopped, unless `fresh`. Raises NotFound
    for an unknown pair, EngineFailed when the replica does not come up, ProfilingFailed when it misbehaves,
    StoreFailed; the earlier profile stays in place in each case.
    """
    spec, model, card = _pair(config, model_name, card_name)
    stored = None if fresh else _stored(config, model, card, quick)
    if stored is not None and not check:
        return Measured(Profiled(stored, (), ()), None, is_new=False)
    resume = config.state / "profiling"
    if fresh:
        _forget(resume)
    async with _started(config, spec) as started:
        if stored is not None:
            return Measured(Profiled(stored, (), ()), await _verified(started, stored), is_new=False)
        profiled = await _measure(started, model, card, Grid.quick() if quick else None, resume, progress)
        if profiled.refusal is None:
            _store(config, profiled.profile)
        return Measured(profiled, await _verified(started, profiled.profile) if check else None)


async def measure_running(
    engine: Engine, model: Model, card: Accelerator, *, load_s: float, memory_bytes: int, progress: Progress
) -> Profiled:
    """The quick profile of an engine that runs already and that nobody uses meanwhile."""
    started = Started(engine, model.name, load_s, memory_bytes)
    return await _measure(started, model, card, Grid.quick(), None, progress)


def predicted_ttft_ms(profile: Profile, prompt_tokens: int, others: Others) -> float:
    """The router's own estimate of the time to the first token, among what else is on the replica."""
    decoding = [
        HeldCall(CallId(f"decoding-{n}"), tokens, 32.0, 0.0, 0.0, True, first_token_s=0.0)
        for n, tokens in enumerate(others.decoding_tokens)
    ]
    ahead = [
        HeldCall(CallId(f"ahead-{n}"), tokens, 32.0, 0.0, 0.0, True)
        for n, tokens in enumerate(others.ahead_tokens)
    ]
    held = (*decoding, *ahead)
    view = ReplicaView(ReplicaId("verified"), profile.model, profile.accelerator, profile, held=held)
    job = Job(CallId("fresh"), profile.model, prompt_tokens, 8.0, 8, 0.0, 1.0, 1.0, True)
    return estimate(job, view, 0.0).ttft


# --- one replica -----------------------------------------------------------------------------------------


def _pair(config: Config, model_name: str, card_name: str) -> tuple[ReplicaSpec, Model, Accelerator]:
    model, card = config.model(model_name), config.accelerator(card_name)
    specs = possible_replicas(config)
    for spec in specs:
        if (
            model is not None
            and card is not None
            and (spec.model, spec.accelerator) == (model_name, card_name)
        ):
            return replace(spec, id=ReplicaId(f"profile-{spec.id}")), model, card
    known = ", ".join(sorted({f"{spec.model} on {spec.accelerator}" for spec in specs}))
    raise NotFound(f"no replica of {model_name} is placed on {card_name} in {config.file}; known: {known}")


@asynccontextmanager
async def _started(config: Config, spec: ReplicaSpec) -> AsyncIterator[Started]:
    """The replica, up for this block. Raises EngineFailed."""
    local = LocalCluster(
        config.state / "profiling",
        lambda ordered, port: engine_command(config, ordered, port),
        accelerators={card.name: card for card in config.accelerators},
        log_dir=config.state / "logs",
        health_path_for=lambda asked: health_path(config, asked),
        die_with_parent=True,
    )
    ray = ray_cluster(config, state=config.state / "profiling", die_with_parent=True)
    cluster: Cluster = local
    if spec.url is not None:
        cluster = StaticCluster(api_key_for=lambda asked: api_key(config, asked))
    elif ray is not None and is_on_ray(config, spec):
        cluster = ray
    try:
        load_s = await _up(cluster, spec)
        memory = memory_of(local, spec.id) if cluster is local else 0
        engine = OpenAIEngine(cluster.url(spec.id), api_key=api_key(config, spec, ray))
        try:
            yield Started(engine, spec.serves or spec.model, load_s, memory)
        finally:
            await engine.close()
    finally:
        await cluster.close()
        await local.close()


async def _up(cluster: Cluster, spec: ReplicaSpec) -> float:
    """Seconds until the replica was ready."""
    began_s = time.monotonic()
    await cluster.start(spec)
    async for event in cluster.watch():
        if isinstance(event, ReplicaReady):
            return time.monotonic() - began_s
        if isinstance(event, ReplicaLost):
            raise EngineFailed(FailureKind.REPLICA_LOST, f"{spec.model} did not start: {event.why}")
    raise EngineFailed(FailureKind.REPLICA_LOST, f"{spec.model} did not start")


def memory_of(cluster: LocalCluster, replica: ReplicaId) -> int:
    """Resident bytes of a replica's process; 0 where the system does not say."""
    try:
        status = Path(f"/proc/{cluster.process_id(replica)}/status").read_text("ascii", "replace")
    except (OSError, KeyError):
        return 0
    lines = (line.split() for line in status.splitlines() if line.startswith("VmRSS:"))
    return next((int(words[1]) * 1024 for words in lines), 0)


async def _measure(
    started: Started,
    model: Model,
    card: Accelerator,
    grid: Grid | None,
    resume: Path | None,
    progress: Progress,
) -> Profiled:
    """Measure under our own name for the engine: settings that change its speed are part of that."""
    said, identity = await started.engine.facts(), identity_of(model, card)
    step_tokens = step_tokens_of(model) or said.step_tokens
    facts = replace(said, digest=identity.digest, build=identity.engine, step_tokens=step_tokens)
    profiled = await profile_engine(
        started.engine,
        model=type(model.name)(started.serves),
        accelerator=card.name,
        facts=facts,
        grid=grid or Grid.full(facts.context_tokens or 2048, facts.max_sequences or 4),
        clock=MonotonicClock(),
        resume=resume,
        progress=progress,
        load_s=started.load_s,
        memory_bytes=started.memory_bytes,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return replace(profiled, profile=replace(profiled.profile, model=model.name))


async def _verified(started: Started, profile: Profile) -> Verification:
    return await verify(
        started.engine,
        model=type(profile.model)(started.serves),
        step_tokens=profile.step_tokens,
        predict=lambda tokens, others: predicted_ttft_ms(profile, tokens, others),
        clock=MonotonicClock(),
    )


def _stored(config: Config, model: Model, card: Accelerator, quick: bool) -> Profile | None:
    """What is known of the pair already, if it is good enough."""
    if not config.store_file.exists():
        return None
    store = SqliteStore(config.store_file)
    try:
        known = {(kept.model, kept.accelerator): kept for kept in stored_profiles(config, store)}
    finally:
        store.close()
    found = known.get((model.name, card.name))
    return found if found is not None and (quick or found.grid == FULL) else None


def _store(config: Config, profile: Profile) -> None:
    config.state.mkdir(parents=True, exist_ok=True)
    store = SqliteStore(config.store_file)
    try:
        store.save_profile(profile)
    finally:
        store.close()


def _forget(resume: Path) -> None:
    """Throw away what earlier, interrupted measurements kept."""
    for file in resume.glob("profiling-*.jsonl"):
        file.unlink()


# --- what is said ----------------------------------------------------------------------------------------


def _draw(measured: Measured, folder: Path) -> tuple[Path, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    drawn: tuple[Path, ...] = ()
    if measured.is_new:
        drawn += plot.draw_fit(measured.profiled.profile, measured.profiled.samples, folder)
    if measured.verification is not None:
        drawn += plot.draw_verification(measured.profiled.profile, measured.verification, folder)
    return drawn


def _as_text(measured: Measured, pictures: tuple[Path, ...]) -> str:
    profiled = measured.profiled
    parts = [plot.fit_table(profiled.profile, profiled.samples)]
    if not measured.is_new:
        parts.append(f"measured {profiled.profile.measured_at}; --fresh measures anew")
    parts += [f"warning: {warning}" for warning in profiled.warnings]
    if profiled.refusal is not None:
        parts.append(f"refused, and the earlier profile stands: {profiled.refusal}")
    if measured.verification is not None:
        parts.append(plot.verification_table(measured.verification))
    parts += [f"drawn: {picture}" for picture in pictures]
    return "\n\n".join(parts)


def _as_json(measured: Measured) -> Json:
    checked = measured.verification
    rows: list[Json] = [] if checked is None else [cast(Json, encode(row)) for row in checked.by_streams]
    warnings: list[Json] = list(measured.profiled.warnings)
    return {
        "profile": cast(Json, encode(measured.profiled.profile)),
        "warnings": warnings,
        "refusal": measured.profiled.refusal,
        "verification": rows if checked is not None else None,
    }
