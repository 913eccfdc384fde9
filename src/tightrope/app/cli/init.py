"""`tightrope init`: a commented `tightrope.yaml` for an endpoint that runs already, or for the embedded model."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

import click

from tightrope.app.cli.frame import Answer, Common, Refused, Unreachable, verb
from tightrope.model.errors import InvalidInput
from tightrope.model.json import Json

SCHEMA_FILE = "tightrope.schema.json"
_PROBE_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Found:
    """What an endpoint says: the models it serves, the calls it takes at once, and its build."""

    names: tuple[str, ...]
    slots: int | None
    build: str


@click.command()
@click.option(
    "--model", "url", metavar="URL", help="An OpenAI-compatible endpoint, like http://127.0.0.1:8000/v1."
)
@click.option("--key-env", metavar="NAME", help="The variable that holds the API key of the endpoint.")
@click.option("--force", is_flag=True, help="Overwrite a configuration that exists.")
@verb("init")
def init(common: Common, url: str | None, key_env: str | None, force: bool) -> Answer:
    """Write a configuration to start from."""
    from tightrope.app.config import SECRET_FILE, schema_text, variable
    from tightrope.app.pepper import ensure_pepper

    file = common.config
    if file.exists() and not force:
        raise Refused(f"{file} exists; --force overwrites it, --config FILE writes another one")
    if url is None:
        text = embedded_config()
    else:
        key = variable(key_env) if key_env else None
        text = endpoint_config(url.rstrip("/"), asyncio.run(probe(url, key)), key_env)
    secret, schema = file.parent / SECRET_FILE, file.parent / SCHEMA_FILE
    _write(file, text)
    _write(schema, schema_text())
    ensure_pepper(secret)
    data: Json = {"config": str(file), "schema": str(schema), "secret": str(secret)}
    return Answer(data, _next_steps(file, secret))


async def probe(url: str, key: str | None) -> Found:
    """Ask an endpoint what it serves. Raises Unreachable with what it answered, InvalidInput for no address."""
    if not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s?#]*)?", url):
        raise InvalidInput(f"{url!r} is no http address: write it like http://127.0.0.1:8000/v1")
    from tightrope.adapters.engine_openai import OpenAIEngine
    from tightrope.model.errors import EngineFailed

    engine = OpenAIEngine(url, api_key=key)
    try:
        async with asyncio.timeout(_PROBE_LIMIT_S):
            facts = await engine.facts()
            names = await _names(url.rstrip("/"), key)
    except EngineFailed as error:
        raise Unreachable(f"{url} cannot be used: {error}") from error
    except TimeoutError:
        raise Unreachable(f"{url} did not answer within {_PROBE_LIMIT_S:.0f} s") from None
    finally:
        await engine.close()
    return Found(names, facts.max_sequences, facts.build)


async def _names(url: str, key: str | None) -> tuple[str, ...]:
    import aiohttp

    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(f"{url}/models") as response,
        ):
            listed = await response.json(content_type=None) if response.status == 200 else None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise Unreachable(f"{url}/models cannot be read: {error}") from error
    rows = listed.get("data") if isinstance(listed, dict) else None
    names = [row["id"] for row in rows or () if isinstance(row, dict) and isinstance(row.get("id"), str)]
    if not names:
        raise Unreachable(f"{url}/models lists no model; is the address the one that ends in /v1?")
    return tuple(dict.fromkeys(names))


# --- what is written -------------------------------------------------------------------------------------

_HEAD = f"""\
# yaml-language-server: $schema=./{SCHEMA_FILE}
# `tightrope check` checks this file, `tightrope check --effective` shows every value with its origin.
# Quantities carry their unit. Every key: `tightrope check --schema`.
version: 1
server:
  listen: 127.0.0.1:8080     # beyond loopback only with auth: required
  auth: required             # `tightrope keys create --tenant me` makes a key; none: no keys, loopback only
"""

_TAIL = """\
tenants:
  me:
    slo: {{ttft: 2s, attain: 95%}}        # for plain calls, and for workflows without an SLO of their own
    limits: {{concurrent: 32, queue: 100, output: 1024 tok, deadline: 120s}}
    models: [{models}]
    workflows: []                       # names from the files below
workflows:
  files: []                             # like ["./workflows/*.yaml", "my.flows:shopping"]
  allow_python: []                      # modules that code nodes may name, like ["my.*"]
router: {{policy: foresight}}
journal: {{path: ./tightrope.journal}}    # read by `tightrope explain`
seed: 1
"""

_EMBEDDED = """\
accelerators:
  cpu: {cost: 0.05 USD/h, memory: 4GB, count: 1}    # a label, a price, a size, and how many may be used
models:
  small:                     # SmolLM2-135M-Instruct on llama.cpp, as a process of this machine
    engine: {kind: llamacpp, weights: "embedded:Q4_0", slots: 4, threads: 1, context: 8192 tok}
    place: {cpu: {min: 1}}
"""


def embedded_config() -> str:
    """The configuration for the embedded model."""
    return _HEAD + _EMBEDDED + _TAIL.format(models="small")


def endpoint_config(url: str, found: Found, key_env: str | None) -> str:
    """The configuration for models that somebody else serves at `url`."""
    lines = [
        "accelerators:",
        "  theirs: {count: 1}         # where the endpoint runs: a label, and a price if it has one",
    ]
    lines.append("models:")
    names = _our_names(found.names)
    for name, served in names.items():
        slots = f", slots: {found.slots}" if found.slots else ""
        key = f', key: "${{env:{key_env}}}"' if key_env else ""
        build = f"    # {_comment(found.build)}" if found.build else ""
        lines += [
            f"  {name}:",
            f"    engine: {{kind: openai{slots}}}{build}",
            "    replicas:",
            f'      - {{url: "{url}", place: theirs, serves: {_quoted(served)}{key}}}',
        ]
    return _HEAD + "\n".join(lines) + "\n" + _TAIL.format(models=", ".join(names))


def _our_names(served: tuple[str, ...]) -> dict[str, str]:
    """Short names of ours for the names that an endpoint uses: `Qwen/Qwen3-1.7B` -> `Qwen3-1.7B`."""
    names: dict[str, str] = {}
    for name in served:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name.rsplit("/", 1)[-1]).strip("-._")[:56] or "model"
        ours, number = plain, 2
        while ours in names:
            ours, number = f"{plain}-{number}", number + 1
        names[ours] = name
    return names


def _quoted(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)


def _comment(text: str) -> str:
    return " ".join(text.split())[:60]


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, "utf-8")
    except OSError as error:
        raise Refused(f"{file} cannot be written: {error.strerror or error}") from error


def _next_steps(file: Path, secret: Path) -> str:
    return (
        f"wrote {file}, {SCHEMA_FILE} and {secret.name} (keep that one to yourself)\n"
        "   next:  tightrope check; tightrope keys create --tenant me; tightrope serve"
    )
