"""Configuration: `tightrope.yaml` and the environment -> frozen structs, or every problem with its place.

The only reader of the environment. Owns overrides, secrets, rules between sections and the origin of every
value. The keys themselves are `config_form.py`; loading workflows is `workflows.py`.
"""

from __future__ import annotations

import ipaddress
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tightrope.adapters.emulated_truth import read_table
from tightrope.app.config_draft import Setting, drafted, settings, unknown, validated
from tightrope.app.config_form import (
    AcceleratorForm,
    Emulated,
    Endpoint,
    Engine,
    File,
    Journal,
    LlamaCpp,
    ModelForm,
    Provisioner,
    RayForm,
    Router,
    Server,
    Telemetry,
    TenantForm,
    Workflows,
)
from tightrope.app.config_shape import KeyPath
from tightrope.flow.places import PlacedTree
from tightrope.model.errors import InvalidConfig, InvalidInput, Problem
from tightrope.model.fleet import Accelerator
from tightrope.model.ids import AcceleratorName, ModelName, TenantId
from tightrope.model.json import Json
from tightrope.model.provision import Floor
from tightrope.model.slo import Limits, Tenant

DEFAULT_FILE = "tightrope.yaml"
SECRET_FILE = "tightrope.secret"
LOCAL_TENANT = TenantId("local")
"""The one tenant of a gateway with `auth: none`."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Replicas of a model on one kind of card: from `least` to `most`, each on `cards` of them."""

    least: int
    most: int
    cards: int = 1
    is_on_ray: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the file: its engine, how many replicas may be on which card, and servers of somebody else."""

    name: ModelName
    engine: Engine
    place: Mapping[AcceleratorName, Placed]
    replicas: tuple[Endpoint, ...]

    @property
    def may_be_away(self) -> bool:
        """Whether it may have no replica at all while nobody asks for it."""
        return not self.replicas and not any(placed.least for placed in self.place.values())


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the file and the environment say. Paths are absolute."""

    file: Path
    server: Server
    accelerators: tuple[Accelerator, ...]
    state: Path
    models: tuple[Model, ...]
    tenants: tuple[Tenant, ...]
    floors: tuple[Floor, ...]
    workflows: Workflows
    router: Router
    provisioner: Provisioner
    journal: Journal
    telemetry: Telemetry
    seed: int
    ray: RayForm | None = None
    gpus: Mapping[AcceleratorName, str] = field(default_factory=dict)
    """What Ray calls the accelerators that are GPUs."""

    @property
    def folder(self) -> Path:
        """The folder of the file; relative paths start here."""
        return self.file.parent

    @property
    def store_file(self) -> Path:
        """The SQLite file with profiles and keys."""
        return self.state / "tightrope.sqlite"

    @property
    def secret_file(self) -> Path:
        """The pepper of the key hashes."""
        return self.folder / SECRET_FILE

    def accelerator(self, name: str) -> Accelerator | None:
        """The row of this name."""
        return next((row for row in self.accelerators if row.name == name), None)

    def model(self, name: str) -> Model | None:
        """The model of this name."""
        return next((model for model in self.models if model.name == name), None)


@dataclass(frozen=True, slots=True)
class Reading:
    """A configuration together with the text it came from."""

    config: Config
    shown: str
    """The name of the file as messages give it."""
    text: str
    placed: PlacedTree
    settings: tuple[Setting, ...]

    def located(self, problems: Sequence[Problem]) -> tuple[Problem, ...]:
        """The problems with the places of their paths in the text."""
        return self.placed.located(problems)


def load_config(path: Path | str = DEFAULT_FILE, env: Mapping[str, str] | None = None) -> Config:
    """The configuration at `path`; `env` stands in for the environment. Raises InvalidConfig."""
    return read_config(path, env).config


def read_config(path: Path | str = DEFAULT_FILE, env: Mapping[str, str] | None = None) -> Reading:
    """As load_config, with the text, the places and the origin of every value."""
    file = Path(path)
    return parse_config(_text_of(file), file, os.environ if env is None else env)


def variable(name: str) -> str | None:
    """A variable of the environment, for verbs that are told its name."""
    return os.environ.get(name)


def parse_config(text: str, file: Path, env: Mapping[str, str]) -> Reading:
    """The configuration in `text`, as if it stood at `file`. Raises InvalidConfig with every problem."""
    draft = drafted(text, file.absolute(), env)
    form = validated(draft) if draft.values else None
    config = None if form is None else _config(draft.file, form)
    if config is not None:
        draft.problems += _problems_between(config)
    if draft.problems or config is None:
        raise InvalidConfig(str(file), draft.located())
    return Reading(config, str(file), text, draft.placed, tuple(settings(draft)))


def json_schema() -> dict[str, Json]:
    """The JSON Schema of `tightrope.yaml`."""
    schema: dict[str, Json] = File.model_json_schema(by_alias=True)
    described: dict[str, Json] = {
        "title": "tightrope.yaml",
        "description": "Configuration of Tightrope, one file.",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, **described}


def schema_text() -> str:
    """The JSON Schema as it is published, ending with a newline."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def unsafe_listen(config: Config) -> tuple[Problem, ...]:
    """Why it would not be safe to serve with this configuration; empty if it is."""
    return (*_open_door(config), *_open_ray(config), *_readable_secret(config))


def tenant_problems(config: Config, workflows: Sequence[str]) -> list[Problem]:
    """Grants of workflows that do not exist; `workflows` are the names that do."""
    found = []
    for tenant in config.tenants:
        for index, name in enumerate(tenant.workflows):
            if name not in workflows:
                path = ("tenants", tenant.id, "workflows", str(index))
                found.append(
                    unknown("unknown_workflow", path, f'there is no workflow "{name}"', name, workflows)
                )
    return found


# --- reading ---------------------------------------------------------------------------------------------


def _text_of(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except FileNotFoundError:
        cure = "run `tightrope init` to write one, or name another file with --config"
        raise InvalidConfig(
            str(file), [Problem("config_missing", (), "there is no such file", cure)]
        ) from None
    except UnicodeDecodeError as error:
        message = f"byte {error.start} is not UTF-8"
        raise InvalidConfig(str(file), [Problem("not_yaml", (), message, "save the file as UTF-8")]) from None
    except OSError as error:
        message = f"the file cannot be read: {error.strerror or error}"
        raise InvalidConfig(
            str(file), [Problem("config_missing", (), message, "check its permissions")]
        ) from None


# --- from the form to our vocabulary ---------------------------------------------------------------------


def _config(file: Path, form: File) -> Config:
    return Config(
        file=file,
        server=form.server,
        accelerators=tuple(_accelerator(name, row) for name, row in form.accelerators.items()),
        state=form.cluster.local.state,
        models=tuple(
            _model(name, model, form.cluster.ray is not None) for name, model in form.models.items()
        ),
        tenants=tuple(_tenant(name, tenant) for name, tenant in form.tenants.items()),
        floors=tuple(
            Floor(TenantId(name), tenant.floor) for name, tenant in form.tenants.items() if tenant.floor
        ),
        workflows=form.workflows,
        router=form.router,
        provisioner=form.provisioner,
        journal=form.journal,
        telemetry=form.telemetry,
        seed=form.seed,
        ray=form.cluster.ray,
        gpus={AcceleratorName(name): row.gpu for name, row in form.accelerators.items() if row.gpu},
    )


def _accelerator(name: str, form: AcceleratorForm) -> Accelerator:
    return Accelerator(
        AcceleratorName(name), form.usd_per_h, form.memory_bytes or 0, count=form.count, share=form.share
    )


def _model(name: str, form: ModelForm, has_ray: bool) -> Model:
    place = {
        AcceleratorName(card): Placed(
            placing.min,
            placing.most,
            placing.cards,
            (placing.cluster or ("ray" if has_ray else "local")) == "ray",
        )
        for card, placing in form.place.items()
    }
    return Model(ModelName(name), form.engine, place, form.replicas)


def _tenant(name: str, form: TenantForm) -> Tenant:
    limits = form.limits
    return Tenant(
        id=TenantId(name),
        slo=form.slo.slo() if form.slo else None,
        slo_floor=form.slo_floor.slo() if form.slo_floor else None,
        limits=Limits(limits.concurrent, limits.queue, limits.output_tokens, limits.deadline_s),
        models=tuple(ModelName(model) for model in form.models),
        workflows=tuple(grant.name for grant in form.workflows),
        slo_by_workflow=tuple((grant.name, grant.slo.slo()) for grant in form.workflows if grant.slo),
    )


# --- rules between sections ------------------------------------------------------------------------------


def _problems_between(config: Config) -> Iterator[Problem]:
    yield from _placing_problems(config)
    yield from _ray_problems(config)
    yield from _count_problems(config)
    yield from _elastic_problems(config)
    yield from _budget_problems(config)
    yield from _grant_problems(config)


def _placing_problems(config: Config) -> Iterator[Problem]:
    cards = [card.name for card in config.accelerators]
    for model in config.models:
        used: list[tuple[KeyPath, AcceleratorName]] = [(("place", name), name) for name in model.place]
        used += [
            (("replicas", str(at), "place"), AcceleratorName(row.place))
            for at, row in enumerate(model.replicas)
        ]
        for tail, name in used:
            if name not in cards:
                message = f'"{name}" is not one of the accelerators'
                yield unknown("unknown_accelerator", ("models", model.name, *tail), message, name, cards)
        yield from _weights_problems(model)
        yield from _speed_problems(model)


def _speed_problems(model: Model) -> Iterator[Problem]:
    """Cards on which it is not known how fast the emulated model would be."""
    match model.engine:
        case Emulated(profile=profile, table=file):
            path = ("models", model.name, "engine")
            try:
                table = read_table(file)
            except InvalidInput as error:
                message, _, cure = str(error).rpartition("; ")
                yield Problem("bad_value", (*path, "table"), message, cure)
                return
            if profile not in table.models:
                message = f"the speed of {profile} is not known"
                yield unknown("unknown_profile", (*path, "profile"), message, profile, table.models)
                return
            known = table.accelerators(profile)
            for card in model.place:
                if card not in known:
                    message = f"the speed of {profile} on {card} is not known"
                    at = ("models", model.name, "place", card)
                    yield unknown("unknown_profile", at, message, card, known)
        case _:
            pass


def _ray_problems(config: Config) -> Iterator[Problem]:
    for model in config.models:
        for name, placed in model.place.items():
            path, card = ("models", model.name, "place", name), config.accelerator(name)
            if placed.is_on_ray and config.ray is None:
                message = "there is no cluster.ray that could start these replicas"
                yield Problem("bad_value", (*path, "cluster"), message, "add cluster.ray, or write local")
            elif placed.is_on_ray and card is not None and card.share is not None:
                message = (
                    f"{name} has a share of a processor core, and only local processes can be held to one"
                )
                yield Problem("bad_value", path, message, "remove the share, or write cluster: local here")


def _weights_problems(model: Model) -> Iterator[Problem]:
    match model.engine:
        case LlamaCpp(weights=weights) if not weights.startswith("embedded:") and not Path(weights).is_file():
            path = ("models", model.name, "engine", "weights")
            yield Problem(
                "weights_missing", path, f"there is no file {weights}", "correct the path, or fetch it"
            )
        case _:
            pass


def _count_problems(config: Config) -> Iterator[Problem]:
    for card in config.accelerators:
        placed = {model.name: model.place[card.name] for model in config.models if card.name in model.place}
        wanted = {name: one.least * one.cards for name, one in placed.items()}
        if sum(wanted.values()) > card.count:
            asked = " + ".join(f"{count} by {name}" for name, count in wanted.items())
            yield Problem(
                "count_exceeded",
                ("accelerators", card.name, "count"),
                f"{sum(wanted.values())} cards are taken on {card.name}, which has {card.count}",
                f"set its count to {sum(wanted.values())}, or lower a min",
                cause=asked,
            )


def _elastic_problems(config: Config) -> Iterator[Problem]:
    """What needs a provisioner that acts, and is not given one."""
    mode = config.provisioner.mode
    for model in config.models:
        at = ("models", model.name)
        for card, placed in model.place.items():
            if placed.most == placed.least:
                continue
            if mode == "none":
                message = f"nobody would start more than {placed.least} replicas of {model.name} on {card}"
                cure = f"add provisioner: {{mode: act}}, or write max: {placed.least}"
                yield Problem("no_provisioner", (*at, "place", card, "max"), message, cure)
            if model.replicas:
                message = (
                    f"the provisioner does not count servers of somebody else, and {model.name} has some"
                )
                cure = "write max as large as min, or serve them as a model of another name"
                yield Problem("bad_value", (*at, "place", card, "max"), message, cure)
        if mode == "advise" and model.may_be_away:
            message = f"{model.name} would never have a replica: in mode advise nobody starts one"
            yield Problem("no_provisioner", (*at, "place"), message, "give it a min, or write mode: act")
    for floor in config.floors:
        if mode == "none":
            path = ("tenants", floor.tenant, "floor")
            message = f"nobody would keep capacity for {floor.tenant}"
            yield Problem(
                "no_provisioner", path, message, "add provisioner: {mode: act}, or remove the floor"
            )


def _budget_problems(config: Config) -> Iterator[Problem]:
    """What is always there must be paid for."""
    most = config.provisioner.max_cost
    if most is None:
        return
    prices = {card.name: card.usd_per_h for card in config.accelerators}
    always = sum(
        placed.least * placed.cards * prices.get(card, 0.0)
        for model in config.models
        for card, placed in model.place.items()
    )
    if always > most:
        yield Problem(
            "budget_exceeded",
            ("provisioner", "max_cost"),
            f"the replicas that are always there cost {always:g} USD/h, and {most:g} USD/h may be spent",
            f"write {always:g} USD/h or more, or lower a min",
        )


def _grant_problems(config: Config) -> Iterator[Problem]:
    models = [model.name for model in config.models]
    for tenant in config.tenants:
        for index, name in enumerate(tenant.models):
            if name not in models:
                path = ("tenants", tenant.id, "models", str(index))
                yield unknown("unknown_model", path, f'there is no model "{name}"', name, models)
        seen: set[str] = set()
        for index, workflow in enumerate(tenant.workflows):
            if workflow in seen:
                path = ("tenants", tenant.id, "workflows", str(index))
                yield Problem("duplicate_key", path, f'"{workflow}" is granted twice', "keep one of the two")
            seen.add(workflow)


def _open_door(config: Config) -> Iterator[Problem]:
    listen = config.server.listen
    if config.server.auth == "none" and not _is_loopback(listen.host):
        yield Problem(
            "unsafe_listen",
            ("server", "listen"),
            f"{listen} can be reached from other machines, and calls need no key",
            "write auth: required, or listen on 127.0.0.1",
        )


def _open_ray(config: Config) -> Iterator[Problem]:
    ray = config.ray
    if ray is None or ray.address == "local" or ray.token is not None or ray.insecure:
        return
    if not _is_loopback(ray.address.rpartition(":")[0]):
        yield Problem(
            "unsafe_ray",
            ("cluster", "ray", "address"),
            f"whoever reaches the Ray at {ray.address} can run programs there, and no token is given",
            "start Ray with RAY_AUTH_MODE=token and give cluster.ray.token, or write insecure: true",
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _readable_secret(config: Config) -> Iterator[Problem]:
    try:
        mode = stat.S_IMODE(config.secret_file.stat().st_mode)
    except OSError:
        return
    if mode & 0o077:
        yield Problem(
            "unsafe_secret",
            (),
            f"{config.secret_file} can be read or written by others (mode {mode:04o})",
            f"chmod 600 {config.secret_file}",
        )
