"""`tightrope keys`: API keys made, listed, replaced and ended. A secret is printed once and never again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import click

from tightrope.app.cli.frame import Answer, Common, Refused, verb
from tightrope.model.errors import InvalidInput, NotFound
from tightrope.model.ids import TenantId
from tightrope.model.json import Json
from tightrope.model.key import KeyRecord, Role

if TYPE_CHECKING:
    from tightrope.adapters.store_sqlite import SqliteStore
    from tightrope.app.config import Config

ROLES = ("tenant", "metrics", "operator", "admin")


@click.group()
def keys() -> None:
    """Make, list, replace and end API keys."""


@keys.command()
@click.option("--tenant", metavar="NAME", help="Whom the key speaks for; needed for role tenant.")
@click.option("--role", type=click.Choice(ROLES), default="tenant", show_default=True)
@click.option("--expires", metavar="TIME", help="Life of the key, like 90d; without it the key never ends.")
@verb("keys")
def create(common: Common, tenant: str | None, role: str, expires: str | None) -> Answer:
    """Make a key and print it, this once."""
    from tightrope.app.config import LOCAL_TENANT, load_config
    from tightrope.app.pepper import ensure_pepper
    from tightrope.gateway.keys import mint

    config = load_config(common.config)
    if tenant is None and role == "tenant":
        raise InvalidInput("a key of role tenant speaks for a tenant: add --tenant NAME")
    if tenant is not None and tenant not in [row.id for row in config.tenants]:
        known = ", ".join(row.id for row in config.tenants) or "none"
        raise NotFound(f"there is no tenant {tenant!r} in {config.file.name}; known are {known}")
    now_s = time.time()
    ends_s = None if expires is None else now_s + _seconds(expires)
    whom = LOCAL_TENANT if tenant is None else TenantId(tenant)
    text, record = mint(whom, cast(Role, role), now_s, ends_s, ensure_pepper(config.secret_file))
    with _store(config) as store:
        store.save_key(record)
    hint = f"key {record.public_id} for {whom} ({role}), {_life(record)}; it is not shown again"
    return Answer({"key": text, **_facts(record)}, hint, output=text)


@keys.command(name="list")
@verb("keys")
def list_(common: Common) -> Answer:
    """List keys, without their secrets."""
    from tightrope.app.config import load_config
    from tightrope.reports.render import table

    with _store(load_config(common.config)) as store:
        records = store.keys()
    rows: list[Json] = [_facts(record) for record in records]
    if not records:
        return Answer({"keys": rows}, "there are no keys: `tightrope keys create --tenant NAME` makes one")
    cells = [(record.public_id, record.tenant, record.role, _life(record)) for record in records]
    return Answer({"keys": rows}, "\n".join(table(("id", "tenant", "role", "life"), cells, (0, 1, 2, 3))))


@keys.command()
@click.argument("key_id")
@click.option(
    "--grace", metavar="TIME", default="24h", show_default=True, help="How long the old key lives on."
)
@verb("keys")
def rotate(common: Common, key_id: str, grace: str) -> Answer:
    """Make a new key in place of KEY_ID and print it; the old one ends after the grace."""
    from tightrope.app.config import load_config
    from tightrope.app.pepper import read_pepper
    from tightrope.gateway.keys import rotate as rotated

    config = load_config(common.config)
    now_s = time.time()
    with _store(config) as store:
        old = _named(store.keys(), key_id)
        if not _is_alive(old, now_s):
            raise Refused(f"key {old.public_id} has ended; make a new one with `tightrope keys create`")
        text, new, ending = rotated(old, now_s, _seconds(grace), read_pepper(config.secret_file))
        store.save_key(new)
        store.save_key(ending)
    hint = f"key {new.public_id} replaces {old.public_id}, which {_life(ending)}; it is not shown again"
    return Answer({"key": text, **_facts(new), "replaces": _facts(ending)}, hint, output=text)


@keys.command()
@click.argument("key_id")
@verb("keys")
def revoke(common: Common, key_id: str) -> Answer:
    """End KEY_ID now."""
    from tightrope.app.config import load_config
    from tightrope.gateway.keys import revoke as revoked

    with _store(load_config(common.config)) as store:
        ended = revoked(_named(store.keys(), key_id), time.time())
        store.save_key(ended)
    return Answer(_facts(ended), f"key {ended.public_id} of {ended.tenant} is revoked")


@contextmanager
def _store(config: Config) -> Iterator[SqliteStore]:
    from tightrope.adapters.store_sqlite import SqliteStore

    config.state.mkdir(parents=True, exist_ok=True)
    store = SqliteStore(config.store_file)
    try:
        yield store
    finally:
        store.close()


def _named(records: Sequence[KeyRecord], key_id: str) -> KeyRecord:
    """The record of a public id; a whole key is understood too."""
    wanted = key_id.removeprefix("tr_").partition("_")[0]
    for record in records:
        if record.public_id == wanted:
            return record
    raise NotFound("there is no such key: `tightrope keys list` shows them")


def _seconds(text: str) -> float:
    from tightrope.model.units import seconds

    return seconds(text)


def _is_alive(record: KeyRecord, now_s: float) -> bool:
    return record.revoked_at is None and (record.expires_at is None or now_s < record.expires_at)


def _life(record: KeyRecord) -> str:
    if record.revoked_at is not None:
        return f"was revoked at {_moment(record.revoked_at)}"
    return "never ends" if record.expires_at is None else f"ends at {_moment(record.expires_at)}"


def _moment(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _facts(record: KeyRecord) -> dict[str, Json]:
    return {
        "id": record.public_id,
        "tenant": record.tenant,
        "role": record.role,
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "revoked_at": record.revoked_at,
    }
