"""The written form of `tightrope.yaml`: every key, its unit, its default and what it is for.

The JSON Schema, the validation and `docs/configuration.md` come from here. Reading the file and the
environment, and rules between sections, are `config.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tightrope.model import units
from tightrope.model.errors import BadUnit
from tightrope.model.slo import Slo

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Policy = Literal[
    "foresight",
    "fmware-greedy",
    "fmware-target",
    "hexgen-flow",
    "just-enough",
    "least-tokens",
    "power-of-two",
    "prefix-aware",
    "random",
    "round-robin",
    "shortest-queue",
    "slo-headroom-least",
    "slo-headroom-most",
]
ProvisionPolicy = Literal[
    "forecast-throughput",
    "least-cost",
    "queue-length",
    "ray-serve",
    "static",
]


def wrong(code: str, message: str, cure: str, cause: str = "") -> PydanticCustomError:
    """What a validator raises: the parts of a Problem, without its place."""
    context = {"message": message, "cure": cure, "cause": cause}
    return PydanticCustomError(code, "{message}", context)


# --- quantities ------------------------------------------------------------------------------------------


def _quantity(parse: Callable[[str], float], unit: str, example: str) -> Any:
    """An annotation: text with its unit, parsed once; a bare number or one not above zero is refused."""

    def read(given: object) -> float:
        if isinstance(given, bool) or not isinstance(given, int | float | str):
            raise wrong(
                "bad_unit", f"this is no quantity with a unit: {_short(given)}", f"write it like {example}"
            )
        try:
            value = parse(given) if isinstance(given, str) else parse(str(given))
        except BadUnit as error:
            message, _, cause = str(error).partition(": ")
            is_bare = isinstance(given, int | float) or re.fullmatch(r"\s*[0-9.]+\s*", given)
            code = "missing_unit" if is_bare else "bad_unit"
            raise wrong(code, message, f"write it like {example}", cause) from None
        if value <= 0:
            raise wrong("bad_value", f"{given!r} is not above zero", f"write it like {example}")
        return value

    pattern = rf"^\s*[0-9]+(\.[0-9]+)?\s*({unit})\s*$"
    return (
        BeforeValidator(read),
        WithJsonSchema({"type": "string", "pattern": pattern, "examples": [example]}),
    )


_SIZE_UNITS = "B|kB|KB|MB|GB|KiB|MiB|GiB"
Duration = Annotated[float, *_quantity(units.seconds, "us|ms|s|m|h|d", "800ms")]
Size = Annotated[int, *_quantity(units.size_bytes, _SIZE_UNITS, "64MiB")]
Ratio = Annotated[float, *_quantity(units.ratio, "%", "95%")]
Tokens = Annotated[int, *_quantity(units.tokens, "tok", "1024 tok")]
Rate = Annotated[float, *_quantity(units.per_second, "req/s", "2 req/s")]


def _or_zero(parse: Callable[[str], float], unit: str, example: str) -> Any:
    """An annotation as `_quantity`, and zero is legal."""
    above_zero, schema = _quantity(parse, unit, example)

    def read(given: object) -> float:
        if isinstance(given, str) and re.fullmatch(rf"\s*0+(\.0+)?\s*({unit})\s*", given):
            return 0.0
        value: float = above_zero.func(given)
        return value

    return BeforeValidator(read), schema


Price = Annotated[float, *_or_zero(units.usd_per_h, "USD/h", "3.90 USD/h")]
Delay = Annotated[float, *_or_zero(units.seconds, "us|ms|s|m|h|d", "30s")]


def _at_most_all(value: float) -> float:
    if value > 1:
        raise wrong("bad_value", f"{units.format_ratio(value)} is more than all of it", "write at most 100%")
    return value


def _not_all(value: float) -> float:
    if value >= 1:
        raise wrong("bad_value", f"{units.format_ratio(value)} leaves nothing", "write less than 100%")
    return value


Part = Annotated[Ratio, AfterValidator(_at_most_all)]
Reserve = Annotated[float, *_or_zero(units.ratio, "%", "10%"), AfterValidator(_not_all)]


# --- words, places, secrets ------------------------------------------------------------------------------

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. Port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Secret:
    """Text that is never printed; `reveal` is the only way to it."""

    _text: str = field(repr=False)

    def reveal(self) -> str:
        """The secret itself."""
        return self._text

    def __str__(self) -> str:
        return "(set)"


def _address(given: object) -> Address:
    match = (
        re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:/\s]+)):([0-9]{1,5})", given)
        if isinstance(given, str)
        else None
    )
    if match is None or int(match[3]) > 65535:
        message = f"{_short(given)} is no address to listen on"
        raise wrong("bad_value", message, "write host:port, like 127.0.0.1:8080 or [::1]:8080")
    return Address(match[1] or match[2], int(match[3]))


def _ray_address(given: object) -> str:
    if given == "local" or (isinstance(given, str) and re.fullmatch(r"[^\s:/@]+:[0-9]{1,5}", given)):
        return str(given)
    message = f"{_short(given)} is no address of a Ray cluster"
    cure = "write host:port of its head, like 10.0.0.9:6379, or local; this machine must be one of its nodes"
    raise wrong("bad_value", message, cure)


def _place(given: object, info: ValidationInfo) -> Path:
    if not isinstance(given, str) or not given:
        raise wrong(
            "bad_value", f"{_short(given)} is no path", "write a path, relative to this file or absolute"
        )
    return (_folder(info) / Path(given).expanduser()).resolve()


def _weights(given: object, info: ValidationInfo) -> str:
    if isinstance(given, str) and given.startswith("embedded:"):
        if given.removeprefix("embedded:") in ("Q4_0", "Q8_0"):
            return given
        raise wrong(
            "bad_value", f"{given!r} is not embedded", "write embedded:Q4_0 or embedded:Q8_0, or a path"
        )
    return str(_place(given, info))


def _secret(given: object) -> Secret:
    if not isinstance(given, str) or not given:
        raise wrong("bad_value", "a secret is text", 'write "${env:NAME}" or "${file:./path}"')
    return Secret(given)


def _url(given: object) -> str:
    if isinstance(given, str) and re.fullmatch(r"https?://[^\s/@?#]+(/[^\s?#]*)?", given):
        return given.rstrip("/")
    message = f"{_short(given)} is no http address of an engine"
    raise wrong("bad_value", message, "write it like http://10.0.0.5:8000/v1, without credentials in it")


def _argument(given: object) -> bool | int | float | str:
    if isinstance(given, bool | int | float | str):
        return given
    raise wrong("bad_value", f"{_short(given)} is no single value", "write a number, text, true or false")


def _module_pattern(given: object) -> str:
    if isinstance(given, str) and re.fullmatch(r"[A-Za-z_*?][\w.*?]*", given):
        return given
    raise wrong("bad_value", f"{_short(given)} is no pattern of module names", 'write it like "shop.*"')


def _written(text: str, alias: str | None = None) -> Any:
    """A default as people would write it, and the key it is written under if that is not the field's name."""
    return Field(default=text, alias=alias)


def _folder(info: ValidationInfo) -> Path:
    context = info.context
    return context if isinstance(context, Path) else Path()


def _short(given: object) -> str:
    text = "a mapping" if isinstance(given, dict) else "a list" if isinstance(given, tuple) else repr(given)
    return text if len(text) <= 60 else text[:57] + "..."


_TEXT = {"type": "string"}
ListenAt = Annotated[
    Address, BeforeValidator(_address), WithJsonSchema({**_TEXT, "examples": ["127.0.0.1:8080"]})
]
RayAddress = Annotated[
    str, BeforeValidator(_ray_address), WithJsonSchema({**_TEXT, "examples": ["10.0.0.9:6379", "local"]})
]
Place = Annotated[Path, BeforeValidator(_place), WithJsonSchema({**_TEXT, "format": "path"})]
Weights = Annotated[str, BeforeValidator(_weights), WithJsonSchema({**_TEXT, "examples": ["embedded:Q4_0"]})]
SecretText = Annotated[
    Secret, BeforeValidator(_secret), WithJsonSchema({**_TEXT, "examples": ["${env:NAME}", "${file:./path}"]})
]
Url = Annotated[
    str, BeforeValidator(_url), WithJsonSchema({**_TEXT, "examples": ["http://127.0.0.1:8000/v1"]})
]
Argument = Annotated[
    bool | int | float | str,
    BeforeValidator(_argument),
    WithJsonSchema({"type": ["boolean", "number", "string"]}),
]
ModulePattern = Annotated[
    str, BeforeValidator(_module_pattern), WithJsonSchema({**_TEXT, "examples": ["shop.*"]})
]


# --- sections --------------------------------------------------------------------------------------------


_EMPTY: Any = Field(default={})
"""A section or a mapping that was not given: validated like one that was given empty, so that defaults that
depend on the folder of the file are right."""


class Section(BaseModel):
    """What all sections share: nothing unknown, nothing coerced, nothing changed later."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        use_attribute_docstrings=True,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
    )


class Server(Section):
    """The gateway."""

    listen: ListenAt = _written("127.0.0.1:8080")
    """Host and port; port 0 lets the system choose."""
    auth: Literal["required", "none"] = "required"
    """Whether calls need a key. `none` is legal on loopback only; then there is one tenant, `local`."""
    max_body_bytes: Size = _written("8MiB", alias="max_body")
    """Largest request body."""
    drain_s: Duration = _written("120s", alias="drain")
    """Time granted to running runs after SIGTERM."""
    keepalive_s: Duration = _written("15s", alias="keepalive")
    """Silence after which a stream sends its headers and a comment."""
    timing_header: bool = True
    """Whether answers carry `Server-Timing`."""


class AcceleratorForm(Section):
    """A kind of card: a label, a price, a size, and how many may be used."""

    usd_per_h: Price = _written("0 USD/h", alias="cost")
    """Price of one card while a replica sits on it."""
    memory_bytes: Size | None = Field(default=None, alias="memory")
    """Memory of one card."""
    count: Count = 1
    """How many cards of this kind Tightrope may place replicas on."""
    share: Ratio | None = None
    """Part of one processor core that a local engine on this card may use; all it can get if not given."""
    gpu: str | None = Field(default=None, min_length=1)
    """What Ray calls this GPU, such as `L40S`; without it a card is a resource of Ray named `accelerator_type:NAME`."""


class LocalCluster(Section):
    """Replicas as processes of this machine."""

    state: Place = _written("./.tightrope")
    """Folder for logs, process records, profiles and keys."""


class RayForm(Section):
    """Replicas as actors of a Ray cluster."""

    address: RayAddress
    """Host and port of Ray's head; `local` starts a Ray on this machine, which ends with Tightrope."""
    token: SecretText | None = None
    """Ray's authentication token."""
    insecure: bool = False
    """Whether Ray beyond loopback may have no token, and engines there no key."""


class Cluster(Section):
    """Who starts replicas."""

    local: LocalCluster = _EMPTY
    """Local processes."""
    ray: RayForm | None = None
    """Ray; replicas are local processes if not given."""


class LlamaCpp(Section):
    """llama.cpp's server as a local process."""

    kind: Literal["llamacpp"]
    """The kind of engine."""
    weights: Weights = "embedded:Q4_0"
    """A GGUF file, or the embedded SmolLM2-135M-Instruct as `embedded:Q4_0` or `embedded:Q8_0`."""
    binary: Place | None = None
    """The `llama-server` to run; if not given, the one on the PATH, else the one from the package."""
    slots: Count = 4
    """Calls served at once."""
    threads: Count = 1
    """Threads of the engine."""
    context_tokens: Tokens = _written("8192 tok", alias="context")
    """Context memory, shared by all slots."""
    args: Mapping[str, Argument] = _EMPTY
    """Further command-line arguments, by name without the leading dashes; `true` for a bare flag."""


class OpenAi(Section):
    """OpenAI-compatible servers that somebody else runs; listed under `replicas`."""

    kind: Literal["openai"]
    """The kind of engine."""
    slots: Count | None = None
    """Calls one server takes at once; what its profile says if not given."""
    context_tokens: Tokens | None = Field(default=None, alias="context")
    """Context of the model, where the server does not say."""


class CommandLine(Section):
    """Any program that serves the OpenAI API, started by Tightrope."""

    kind: Literal["command"]
    """The kind of engine."""
    command: tuple[str, ...] = Field(min_length=1)
    """The program and its arguments; `{host}`, `{port}`, `{model}` and, on Ray, `{key}` are replaced."""
    health: str = Field(default="/health", pattern=r"^/\S*$")
    """Path that answers 200 once the engine is ready."""
    slots: Count = 8
    """Calls served at once."""
    context_tokens: Tokens | None = Field(default=None, alias="context")
    """Context of the model, where the server does not say."""

    @model_validator(mode="after")
    def _names_its_port(self) -> CommandLine:
        if not any("{port}" in part for part in self.command):
            message = "the start line does not say where the port goes"
            raise wrong("bad_value", message, "put {port} into one of its arguments")
        return self


class Emulated(Section):
    """An engine without a card: it answers with filler, as fast as the model would be on each accelerator."""

    kind: Literal["emulated"]
    """The kind of engine."""
    profile: str
    """The model whose speed is emulated, by its name in the table; accelerators have their names there, too."""
    table: Place | None = None
    """A file with the speed of models on cards; the table of the package if not given."""
    time_scale: float = Field(default=1.0, gt=0, le=1e6)
    """How many times as long everything takes."""
    tokens_per_chunk: Count = 1
    """Tokens in one event of a stream; more of them cost the machine less."""
    start_s: Delay = _written("0s", alias="start")
    """Time from order to ready."""


Engine = Annotated[LlamaCpp | OpenAi | CommandLine | Emulated, Field(discriminator="kind")]


class Placing(Section):
    """Replicas of a model on one kind of card."""

    min: int = Field(default=1, ge=0)
    """How many replicas there always are."""
    max: int | None = Field(default=None, ge=0)
    """How many there may be where the provisioner acts; as many as `min` if not given."""
    cards: Count = 1
    """Cards that one replica takes."""
    cluster: Literal["local", "ray"] | None = None
    """Who starts them: `ray` where there is a `cluster.ray` and nothing else is said, else `local`."""

    @property
    def most(self) -> int:
        """`max`, or what stands for it."""
        return self.min if self.max is None else self.max

    @model_validator(mode="after")
    def _is_a_range(self) -> Placing:
        if self.most < self.min:
            message = f"max is {self.most}, which is less than min, {self.min}"
            raise wrong("bad_value", message, f"write max: {self.min} or more, or lower min")
        return self


class Endpoint(Section):
    """One server that somebody else runs."""

    url: Url
    """Its base address, up to and including `/v1`."""
    place: Name
    """The accelerator it sits on: a name from `accelerators`."""
    serves: str | None = None
    """The model name it expects; ours if not given."""
    key: SecretText | None = None
    """Its API key."""


class ModelForm(Section):
    """A model: the program that serves it, and where."""

    engine: Engine
    """The program that serves it."""
    place: Mapping[Name, Placing] = _EMPTY
    """Replicas that Tightrope starts, by accelerator."""
    replicas: tuple[Endpoint, ...] = ()
    """Servers that somebody else runs: routed to, never started or stopped."""

    @model_validator(mode="after")
    def _can_be_served(self) -> ModelForm:
        if isinstance(self.engine, OpenAi) and self.place:
            message = "an engine of kind openai cannot be started, so it cannot be placed"
            raise wrong("bad_value", message, "list its servers under replicas, or choose kind command")
        if not any(placing.most for placing in self.place.values()) and not self.replicas:
            message = "no replica will ever serve this model"
            cure = "add place: {ACCELERATOR: {min: 1}}, or replicas: [{url: …, place: ACCELERATOR}]"
            raise wrong("missing_key", message, cure, "a model needs place or replicas")
        return self


class SloForm(Section):
    """A promise about one run; every time counts from the arrival of the request."""

    ttft: Duration | None = None
    """Time to the first content of the answer."""
    tpot: Duration | None = None
    """Mean time between two tokens of the answer."""
    e2e: Duration | None = None
    """Time to the end of the answer."""
    attain: Part = _written("95%")
    """Share of arrived runs that shall meet it."""

    @model_validator(mode="after")
    def _promises_something(self) -> SloForm:
        if self.ttft is None and self.tpot is None and self.e2e is None:
            raise wrong(
                "missing_key", "this SLO promises nothing", "give ttft, tpot or e2e, or remove the slo"
            )
        return self

    def slo(self) -> Slo:
        """The promise in our vocabulary."""
        return Slo(ttft_s=self.ttft, tpot_s=self.tpot, e2e_s=self.e2e, attain=self.attain)


class LimitsForm(Section):
    """What one tenant may hold at once."""

    concurrent: Count = 1000
    """Runs under way."""
    queue: int = Field(default=1000, ge=0)
    """Calls waiting for a replica."""
    output_tokens: Tokens = _written("4096 tok", alias="output")
    """Longest answer of one call."""
    deadline_s: Duration = _written("600s", alias="deadline")
    """Hard limit of a run; it ends as expired."""


class Grant(Section):
    """A workflow that a tenant may run, with an SLO of its own if it needs one."""

    name: Name
    """The workflow."""
    slo: SloForm | None = None
    """Overrides the SLO of the workflow for this tenant."""


def _grant(given: object) -> object:
    if isinstance(given, str):
        return {"name": given}
    if isinstance(given, dict):
        return given
    raise wrong("bad_value", f"{_short(given)} is no workflow", "write its name, or {name: NAME, slo: {...}}")


class TenantForm(Section):
    """A contract: an SLO, limits, and what the tenant may call."""

    slo: SloForm | None = None
    """For plain calls, and for workflows that declare none; best effort if not given."""
    slo_floor: SloForm | None = None
    """The tightest promise that a request may ask for in its headers; none beyond the contract if not given."""
    limits: LimitsForm = _EMPTY
    """What the tenant may hold at once."""
    floor: Rate | None = None
    """Runs per second for which the provisioner keeps capacity, whether they come or not."""
    models: tuple[Name, ...] = ()
    """Models the tenant may call directly."""
    workflows: tuple[
        Annotated[
            Grant,
            BeforeValidator(_grant, json_schema_input_type=Name | Grant),
        ],
        ...,
    ] = ()
    """Workflows the tenant may run: a name, or `{name, slo}`."""

    @model_validator(mode="after")
    def _may_call_something(self) -> TenantForm:
        if not self.models and not self.workflows:
            raise wrong("missing_key", "this tenant may call nothing", "list models or workflows")
        return self


class Workflows(Section):
    """Where workflows come from, and what their code nodes may do."""

    files: tuple[str, ...] = ()
    """YAML files (patterns allowed), and Python workflows as `module:name`."""
    allow_python: tuple[ModulePattern, ...] = ()
    """Modules that code nodes may name."""
    path: tuple[Place, ...] = ()
    """Folders in which Python modules are looked for."""


class Router(Section):
    """How calls are given to replicas."""

    policy: Policy = "foresight"
    """The rule that chooses a replica."""
    quantile: Part = _written("80%")
    """Quantile of the remaining time that a latest finish leaves room for."""
    attempts: Count = 3
    """Attempts per call when replicas are lost, the first included."""
    retry_budget: Part = _written("10%")
    """Share of active calls that may be repetitions at any moment; at least 3 always may."""


class Provisioner(Section):
    """Who starts and stops replicas as the load goes."""

    mode: Literal["none", "advise", "act"] = "none"
    """`none`: the fleet is what `min` says. `advise`: what would be done is written down. `act`: it is done."""
    policy: ProvisionPolicy = "least-cost"
    """The rule that decides."""
    every_s: Duration = _written("5s", alias="every")
    """Time between two looks at the load; a call that finds no replica is seen at once."""
    attain: Part = _written("95%")
    """Share of calls that shall be within their budget as the fleet is planned."""
    headroom: Reserve = _written("10%")
    """Part of every replica that is left free in the plan."""
    risk: Part = _written("5%")
    """Share of calls that may be predicted late before another replica is started, whatever the plan says."""
    idle_after_s: Duration = _written("120s", alias="idle_after")
    """Time after which a replica that nobody needed may go."""
    cooldown_s: Duration = _written("60s", alias="cooldown")
    """Time after a change of a model during which no replica of it goes."""
    max_cost: Price | None = None
    """Most that all replicas may cost at once, draining ones included; no limit if not given."""
    target: float | None = Field(default=None, gt=0)
    """What `ray-serve`, `queue-length` or `forecast-throughput` aims at, in its own unit; its default if not given."""


class Journal(Section):
    """The record of every event and decision."""

    path: Place = _written("./tightrope.journal")
    """The file it is appended to."""


class Telemetry(Section):
    """What the outside may watch."""

    metrics: bool = True
    """Whether `/metrics` is served."""


class File(Section):
    """tightrope.yaml"""

    version: Literal[1]
    """Version of this form."""
    server: Server = _EMPTY
    """The gateway."""
    accelerators: Mapping[Name, AcceleratorForm] = _EMPTY
    """Kinds of cards, by name."""
    cluster: Cluster = _EMPTY
    """Who starts replicas."""
    models: Mapping[Name, ModelForm] = Field(min_length=1)
    """Models, by the name that callers use."""
    tenants: Mapping[Name, TenantForm] = _EMPTY
    """Tenants, by name."""
    workflows: Workflows = _EMPTY
    """Where workflows come from."""
    router: Router = _EMPTY
    """How calls are given to replicas."""
    provisioner: Provisioner = _EMPTY
    """Who starts and stops replicas as the load goes."""
    journal: Journal = _EMPTY
    """The record of every event and decision."""
    telemetry: Telemetry = _EMPTY
    """What the outside may watch."""
    seed: int = 1
    """Seed of every random choice."""
