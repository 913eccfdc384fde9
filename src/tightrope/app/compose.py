"""The parts list: builds everything a configuration asks for and wires it.

Owns which adapter stands behind which port, and the facts that the kernel is told before the first request.
A plain function each; whoever wants other parts calls the constructors themselves.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, assert_never

from tightrope.adapters import llamacpp
from tightrope.adapters.cluster_local import LocalCluster
from tightrope.adapters.cluster_ray import RayCluster, RayPlace
from tightrope.adapters.cluster_static import StaticCluster
from tightrope.adapters.emulated_truth import Setting, read_table
from tightrope.adapters.emulated_truth import command_line as emulated_command
from tightrope.adapters.engine_openai import OpenAIEngine
from tightrope.adapters.store_sqlite import SqliteStore
from tightrope.adapters.telemetry import Telemetry
from tightrope.app.config import LOCAL_TENANT, Config, Model, Placed
from tightrope.app.config_form import CommandLine, Emulated, LlamaCpp, OpenAi
from tightrope.app.embedded import cache_dir, ensure_weights
from tightrope.kernel.journal import Head
from tightrope.kernel.kernel import Kernel
from tightrope.kernel.state import KernelSettings
from tightrope.model.errors import NotFound
from tightrope.model.fleet import Accelerator, FleetPlan, ReplicaSpec, numbered
from tightrope.model.ids import AcceleratorName, ModelName, ReplicaId
from tightrope.model.messages import (
    AcceleratorRegistered,
    DrainRequested,
    FleetPlanned,
    ProfileLoaded,
    ProvisioningSet,
    TenantRegistered,
    WorkflowDeployed,
)
from tightrope.model.profile import Profile
from tightrope.model.provision import Bounds, Provisioning, ProvisionMode
from tightrope.model.slo import Tenant
from tightrope.model.workflow import Workflow
from tightrope.ports import Clock, Cluster
from tightrope.runtime.client import Client, plain_workflows
from tightrope.runtime.driver import Driver, Observer
from tightrope.runtime.journal_file import JournalFile
from tightrope.sim.engine import Truth

LOAD_S = 30.0
"""Seconds from order to ready that are expected of a pair that was never started."""
NOISE = 0.02
"""Relative standard deviation of the steps of emulated engines."""

RAY_START_LIMIT_S = 900.0
"""Time a replica has on Ray from its order until it is ready: a machine may have to join, and weights to come."""
RAY_TYPE_MARK = 0.001
"""As much of `accelerator_type:X` as Ray itself asks for when an actor wants a GPU of this type."""


class MonotonicClock:
    """The Clock of the live system; the wall clock decides nothing."""

    def now(self) -> float:
        """Seconds since some moment before this process began."""
        return time.monotonic()


@dataclass(frozen=True, slots=True)
class Identity:
    """What a profile belongs to: the weights, and the engine with the settings that change its speed."""

    digest: str
    engine: str


@dataclass(frozen=True, slots=True)
class Runtime:
    """Everything of one configuration, wired. `start` it once, `close` it once. `plan` is the fleet that is there at
    first; `provisioning` is None where it stays as it is."""

    config: Config
    driver: Driver
    client: Client
    store: SqliteStore
    telemetry: Telemetry
    local: LocalCluster
    static: StaticCluster
    ray: RayCluster | None
    workflows: tuple[Workflow, ...]
    plan: FleetPlan
    provisioning: Provisioning | None = None

    async def start(self) -> None:
        """Order the fleet; readiness comes later. What an earlier runtime left and this one does not want is ended."""
        self.driver.start()
        self.driver.post(FleetPlanned(self.plan))
        await self.driver.until_ordered()
        await self.local.end_unclaimed()
        if self.ray is not None:
            self.ray.all_are_ordered()
        # Last: a replica that the provisioner orders must not be taken for one that was left.
        if self.provisioning is not None:
            self.driver.post(ProvisioningSet(self.provisioning))

    def use_profile(self, profile: Profile) -> None:
        """Believe this from now on."""
        self.driver.post(ProfileLoaded(profile))

    def drain(self) -> None:
        """Take no new runs; those under way go on."""
        self.driver.post(DrainRequested())

    async def close(self) -> None:
        """End every run and every replica that was started here."""
        await self.driver.close()
        await self.local.close()
        if self.ray is not None:
            await self.ray.close()
        await self.static.close()
        self.store.close()


def compose(
    config: Config,
    workflows: Sequence[Workflow],
    *,
    policy: str | None = None,
    die_with_parent: bool = False,
    has_new_journal: bool = False,
    observers: Sequence[Observer] = (),
    clock: Clock | None = None,
) -> Runtime:
    """Build and wire everything; nothing runs yet. `policy` stands in for the configured one, `clock` for that of the
    system. With `has_new_journal` that of earlier sessions is removed, as soon as nobody else can be writing it."""
    clock = clock or MonotonicClock()
    settings = kernel_settings(config, policy)
    kernel = Kernel(settings)
    journal = JournalFile(config.journal.path, Head(settings, time.time(), clock.now()))
    config.state.mkdir(parents=True, exist_ok=True)
    store = SqliteStore(config.store_file)
    telemetry = Telemetry()
    local = local_cluster(config, die_with_parent=die_with_parent)
    static = StaticCluster(api_key_for=lambda spec: api_key(config, spec))
    ray = ray_cluster(config, die_with_parent=die_with_parent)

    def cluster_for(spec: ReplicaSpec) -> Cluster:
        if spec.url is not None:
            return static
        return ray if ray is not None and is_on_ray(config, spec) else local

    if has_new_journal:  # the state directory is ours by now
        config.journal.path.unlink(missing_ok=True)
    driver = Driver(
        kernel=kernel,
        clock=clock,
        journal=journal,
        clusters=(local, static) if ray is None else (local, static, ray),
        cluster_for=cluster_for,
        engine_for=lambda spec, url: OpenAIEngine(url, api_key=api_key(config, spec, ray)),
        observers=(telemetry.observe, *observers),
    )
    tenants = tenants_of(config, workflows)
    known = (*workflows, *plain_workflows(_output_limits(config, tenants)))
    for tenant in tenants:
        driver.post(TenantRegistered(tenant))
    for card in config.accelerators:
        driver.post(AcceleratorRegistered(card))
    profiles = known_profiles(config, store)
    for profile in profiles:
        driver.post(ProfileLoaded(profile))
    for workflow in known:
        driver.post(WorkflowDeployed(workflow))
    client = Client(driver, tenants, known)
    plan, provisioning = plan_of(config), provisioning_of(config, profiles)
    return Runtime(
        config, driver, client, store, telemetry, local, static, ray, tuple(workflows), plan, provisioning
    )


def kernel_settings(config: Config, policy: str | None = None) -> KernelSettings:
    """The part of the configuration that decides."""
    return KernelSettings(
        router=policy or config.router.policy,
        quantile=config.router.quantile,
        failovers=config.router.attempts - 1,
        retry_share=config.router.retry_budget,
        seed=config.seed,
    )


def tenants_of(config: Config, workflows: Sequence[Workflow]) -> tuple[Tenant, ...]:
    """The tenants of the file; without keys everybody is `local`, which may call everything."""
    if config.server.auth == "required":
        return config.tenants
    declared = next((tenant for tenant in config.tenants if tenant.id == LOCAL_TENANT), Tenant(LOCAL_TENANT))
    local = replace(
        declared,
        models=tuple(model.name for model in config.models),
        workflows=tuple(workflow.name for workflow in workflows),
    )
    return (*(tenant for tenant in config.tenants if tenant.id != LOCAL_TENANT), local)


def _output_limits(config: Config, tenants: Sequence[Tenant]) -> Mapping[ModelName, int]:
    longest = max((tenant.limits.output_tokens for tenant in tenants), default=4096)
    return {model.name: longest for model in config.models}


# --- the fleet -------------------------------------------------------------------------------------------


def plan_of(config: Config) -> FleetPlan:
    """Every replica that is there from the start."""
    return FleetPlan(tuple(_specs(config, lambda placed: placed.least)))


def possible_replicas(config: Config) -> tuple[ReplicaSpec, ...]:
    """Every replica that may ever be there, the first ones those of the plan for each model and card."""
    return tuple(_specs(config, lambda placed: placed.most))


def _specs(config: Config, count: Callable[[Placed], int]) -> list[ReplicaSpec]:
    specs: list[ReplicaSpec] = []
    for model in config.models:
        for card, placed in model.place.items():
            names = (numbered(model.name, card, number) for number in range(1, count(placed) + 1))
            specs += [ReplicaSpec(name, model.name, card) for name in names]
        for number, endpoint in enumerate(model.replicas, start=1):
            card = AcceleratorName(endpoint.place)
            name = ReplicaId(f"{model.name}-{card}-x{number}")
            specs.append(ReplicaSpec(name, model.name, card, endpoint.url, endpoint.serves))
    return specs


def provisioning_of(config: Config, profiles: Sequence[Profile] = ()) -> Provisioning | None:
    """What the provisioner may do, None if there is none. `profiles` say how long a start is expected to take."""
    asked = config.provisioner
    if asked.mode == "none":
        return None
    load_s = {(one.model, one.accelerator): one.load_s for one in profiles if one.load_s > 0}
    bounds = tuple(
        Bounds(
            model.name, card, placed.least, placed.most, placed.cards, load_s.get((model.name, card), LOAD_S)
        )
        for model in config.models
        for card, placed in model.place.items()
    )
    return Provisioning(
        policy=asked.policy,
        bounds=bounds,
        floors=config.floors,
        mode=ProvisionMode(asked.mode),
        every_s=asked.every_s,
        attain=asked.attain,
        headroom=asked.headroom,
        risk=asked.risk,
        idle_after_s=asked.idle_after_s,
        cooldown_s=asked.cooldown_s,
        max_usd_per_h=math.inf if asked.max_cost is None else asked.max_cost,
        target=asked.target,
    )


def local_cluster(config: Config, *, die_with_parent: bool = False) -> LocalCluster:
    """Local processes, each started as its model's engine says."""
    return LocalCluster(
        config.state,
        lambda spec, port: engine_command(config, spec, port),
        accelerators={card.name: card for card in config.accelerators},
        log_dir=config.state / "logs",
        health_path_for=lambda spec: health_path(config, spec),
        die_with_parent=die_with_parent,
    )


def ray_cluster(
    config: Config, *, state: Path | None = None, die_with_parent: bool = False
) -> RayCluster | None:
    """Replicas on the machines of a Ray cluster, each started as its model's engine says; None where there is none.

    `state` stands in for the configured folder. Raises InvalidInput when Ray is not installed.
    """
    ray = config.ray
    if ray is None:
        return None
    cards = {
        _ray_resource(config, card.name): float(card.count)
        for card in config.accelerators
        if card.name not in config.gpus
    }
    return RayCluster(
        RayPlace(ray.address, None if ray.token is None else ray.token.reveal().strip(), cards),
        state or config.state,
        lambda spec, listen: engine_command(config, spec, listen.port, listen.host, listen.key),
        resources_for=lambda spec: ray_resources(config, spec),
        health_path_for=lambda spec: health_path(config, spec),
        start_limit_s=RAY_START_LIMIT_S,
        may_be_open=ray.insecure,
        die_with_parent=die_with_parent,
    )


def is_on_ray(config: Config, spec: ReplicaSpec) -> bool:
    """Whether a replica of our own is started by Ray."""
    return _model(config, spec.model).place[spec.accelerator].is_on_ray


def ray_resources(config: Config, spec: ReplicaSpec) -> dict[str, Any]:
    """What Ray is asked for: so many GPUs of this type, or so many of a resource that stands for the card.

    What one actor holds is always on one node, so cards of one replica need no placement group.
    """
    cards = _model(config, spec.model).place[spec.accelerator].cards
    resource = _ray_resource(config, spec.accelerator)
    if spec.accelerator in config.gpus:
        return {"num_gpus": cards, "resources": {resource: RAY_TYPE_MARK}}
    return {"resources": {resource: cards}}


def _ray_resource(config: Config, card: AcceleratorName) -> str:
    return f"accelerator_type:{config.gpus.get(card, card)}"


def health_path(config: Config, spec: ReplicaSpec) -> str:
    """Where a replica's engine says that it is ready."""
    engine = _model(config, spec.model).engine
    return engine.health if isinstance(engine, CommandLine) else "/health"


def engine_command(
    config: Config, spec: ReplicaSpec, port: int, host: str = "127.0.0.1", key: str = ""
) -> list[str]:
    """The argument list of a replica's engine. Raises a TightropeError when its program or weights are missing."""
    model = _model(config, spec.model)
    match model.engine:
        case LlamaCpp() as engine:
            return llamacpp.command_line(server_of(engine), server_options(model.name, engine, port, host))
        case CommandLine(command=command):
            words = {"{port}": str(port), "{model}": model.name, "{host}": host, "{key}": key}
            return [_filled(part, words) for part in command]
        case Emulated() as engine:
            setting = emulated_setting(model.name, engine, spec.accelerator, config.seed)
            return emulated_command(setting, port, host)
        case OpenAi():
            raise NotFound(f"the engine of {model.name} is run by somebody else; list it under `replicas`")
        case _:
            assert_never(model.engine)


def _filled(part: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        part = part.replace(word, value)
    return part


def server_of(engine: LlamaCpp) -> Path:
    """The llama-server that an engine runs on."""
    return llamacpp.find_server(None if engine.binary is None else str(engine.binary), cache_dir())


def server_options(name: str, engine: LlamaCpp, port: int, host: str = "127.0.0.1") -> llamacpp.ServerOptions:
    """How a llama-server of this model is started."""
    return llamacpp.ServerOptions(
        model=weights_of(engine),
        alias=name,
        port=port,
        host=host,
        threads=engine.threads,
        slots=engine.slots,
        context_tokens=engine.context_tokens // engine.slots,
        extra=tuple(_arguments(engine.args)),
    )


def emulated_setting(name: str, engine: Emulated, card: str, seed: int) -> Setting:
    """What an emulated engine of this model is on a card. Raises NotFound for a card that is not in the table."""
    profile = read_table(engine.table).profile(engine.profile, card)
    return Setting(
        name,
        Truth(profile, NOISE),
        time_scale=engine.time_scale,
        tokens_per_chunk=engine.tokens_per_chunk,
        start_s=engine.start_s,
        seed=seed,
    )


def step_tokens_of(model: Model) -> int | None:
    """Prompt tokens in one engine step, where the configuration fixes them."""
    match model.engine:
        case LlamaCpp(args=args):
            asked = args.get("ubatch-size", args.get("batch-size", llamacpp.STEP_TOKENS))
            return int(asked) if not isinstance(asked, bool) else None
        case Emulated(profile=profile, table=file):
            return min(one.step_tokens for one in read_table(file).profiles if one.model == profile)
        case _:
            return None


def weights_of(engine: LlamaCpp) -> Path:
    """The GGUF file of an engine; the embedded one is made now if it is missing."""
    if engine.weights.startswith("embedded:"):
        return ensure_weights(cache_dir(), engine.weights.removeprefix("embedded:"))
    return Path(engine.weights)


def _arguments(args: Mapping[str, bool | int | float | str]) -> list[str]:
    found: list[str] = []
    for name, value in args.items():
        if value is False:
            continue
        found += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return found


def _model(config: Config, name: str) -> Model:
    model = config.model(name)
    if model is None:
        raise NotFound(f"there is no model {name!r} in {config.file}")
    return model


def api_key(config: Config, spec: ReplicaSpec, ray: RayCluster | None = None) -> str | None:
    """The key of somebody else's server, or of an engine that Ray has started; None where it needs none."""
    if ray is not None and spec.url is None:
        return ray.api_key(spec.id)
    model = config.model(spec.model)
    endpoints = () if model is None else model.replicas
    keys = [endpoint.key for endpoint in endpoints if endpoint.url == spec.url and endpoint.key is not None]
    return keys[0].reveal() if keys else None


# --- profiles --------------------------------------------------------------------------------------------


def known_profiles(config: Config, store: SqliteStore) -> list[Profile]:
    """What was measured earlier and, for emulated engines that never were, what they are told to be."""
    return with_emulated(config, stored_profiles(config, store))


def with_emulated(config: Config, measured: Sequence[Profile]) -> list[Profile]:
    """These and the truth of every emulated engine that is not among them."""
    known = {(one.model, one.accelerator) for one in measured}
    told = [
        emulated_profile(model, card)
        for model, card in pairs_of(config)
        if (model.name, card.name) not in known
    ]
    return [*measured, *(profile for profile in told if profile is not None)]


def emulated_profile(model: Model, card: Accelerator) -> Profile | None:
    """The truth of an emulated engine as a profile; None for other engines, and for cards that are not in its table."""
    match model.engine:
        case Emulated() as engine if card.name in read_table(engine.table).accelerators(engine.profile):
            identity = identity_of(model, card)
            return replace(
                emulated_setting(model.name, engine, card.name, 0).scaled.profile,
                model=model.name,
                load_s=engine.time_scale * engine.start_s,
                digest=identity.digest,
                engine=identity.engine,
            )
        case _:
            return None


def stored_profiles(config: Config, store: SqliteStore) -> list[Profile]:
    """What was measured earlier for exactly the weights, engines and cards of this configuration."""
    by_identity = {(kept.digest, kept.engine, kept.accelerator): kept for kept in store.profiles()}
    found = []
    for model, card in pairs_of(config):
        identity = identity_of(model, card)
        kept = by_identity.get((identity.digest, identity.engine, card.name))
        if kept is not None:
            found.append(replace(kept, model=model.name))
    return found


def pairs_of(config: Config) -> list[tuple[Model, Accelerator]]:
    """Every (model, accelerator) that some replica has or may have."""
    pairs: dict[tuple[str, str], tuple[Model, Accelerator]] = {}
    for spec in possible_replicas(config):
        card = config.accelerator(spec.accelerator)
        if card is not None:
            pairs[spec.model, spec.accelerator] = (_model(config, spec.model), card)
    return list(pairs.values())


def identity_of(model: Model, card: Accelerator) -> Identity:
    """What a profile of the pair is kept under: other weights, another build or other settings measure anew."""
    match model.engine:
        case LlamaCpp() as engine:
            build = _build_of(server_of(engine))
            options = server_options(model.name, engine, 0)
            speed = (options.threads, options.slots, options.context_tokens, options.step_tokens)
            settings = _short(f"{speed} {options.extra} {card.share}")
            return Identity(_digest(options.model), f"llama.cpp {build} [{settings}]")
        case CommandLine() as engine:
            return Identity(model.name, f"command [{_short(' '.join(engine.command) + str(card.share))}]")
        case Emulated() as engine:
            speeds = [one for one in read_table(engine.table).profiles if one.model == engine.profile]
            settings = _short(f"{speeds} {engine.time_scale} {engine.tokens_per_chunk} {card.share}")
            return Identity(engine.profile, f"emulated [{settings}]")
        case OpenAi():
            return Identity(model.name, "openai")
        case _:
            assert_never(model.engine)


@lru_cache(maxsize=16)
def _build_of(server: Path) -> str:
    return llamacpp.server_build(server)


def _digest(file: Path) -> str:
    status = file.stat()
    return _digest_of(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest_of(file: Path, _size: int, _changed_ns: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
