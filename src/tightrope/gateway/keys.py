"""API keys: `tr_` + 8-character public id + `_` + secret of 192 random bits, and who one speaks for.

Only an HMAC-SHA-256 of the key under the pepper is kept. Owns making and checking keys; where records and
the pepper are stored is left to the caller. Times are Unix seconds.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
import string
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from tightrope.model.ids import TenantId
from tightrope.model.key import KeyRecord, Role

PATTERN = re.compile(r"tr_([A-Za-z0-9]{8})_[A-Za-z0-9_-]{32}", re.ASCII)

_ALPHABET = string.ascii_letters + string.digits
_SECRET_BYTES = 24


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `key` is the public id of the key, "" where none is needed."""

    tenant: TenantId
    role: Role
    key: str = ""


Authenticate = Callable[[str | None], Principal | None]
"""From the value of the Authorization header (None: missing) to who asks (None: not let in)."""

LOCAL = Principal(TenantId("local"), "admin")


def without_keys(_: str | None) -> Principal:
    """`auth: none`, for loopback only: everybody is the one tenant `local`."""
    return LOCAL


def mint(
    tenant: TenantId, role: Role, now_s: float, expires_s: float | None, pepper: bytes
) -> tuple[str, KeyRecord]:
    """A new key: its text, which is shown once and kept nowhere, and the record to store."""
    public_id = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    secret = base64.urlsafe_b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
    text = f"tr_{public_id}_{secret}"
    return text, KeyRecord(public_id, tenant, role, _hash(text, pepper), now_s, expires_s)


def rotate(old: KeyRecord, now_s: float, grace_s: float, pepper: bytes) -> tuple[str, KeyRecord, KeyRecord]:
    """A new key in place of `old`: its text, its record, and the old record, which ends after the grace.

    The new key lives as long as the old one was made to. The grace never lengthens the life of the old one.
    """
    lifetime_s = None if old.expires_at is None else old.expires_at - old.created_at
    text, new = mint(old.tenant, old.role, now_s, None if lifetime_s is None else now_s + lifetime_s, pepper)
    ends_s = now_s + grace_s if old.expires_at is None else min(old.expires_at, now_s + grace_s)
    return text, new, replace(old, expires_at=ends_s)


def revoke(record: KeyRecord, now_s: float) -> KeyRecord:
    """The record of a key that ends now. A key that was revoked stays revoked at its first moment."""
    return record if record.revoked_at is not None else replace(record, revoked_at=now_s)


class Keyring:
    """The keys in force, checked in a time that does not depend on why one is refused."""

    def __init__(
        self, records: Iterable[KeyRecord], pepper: bytes, now: Callable[[], float] = time.time
    ) -> None:
        self._pepper = pepper
        self._now = now
        self._record_by_id: dict[str, KeyRecord] = {}
        self._nobody = mint(TenantId(""), "tenant", 0.0, 0.0, pepper)[1]
        self.reload(records)

    def reload(self, records: Iterable[KeyRecord]) -> None:
        """Take these records instead; requests that were let in go on."""
        self._record_by_id = {record.public_id: record for record in records}

    def authenticate(self, header: str | None) -> Principal | None:
        """Who `Bearer KEY` speaks for; None if missing, malformed, unknown, expired or revoked."""
        text = _bearer(header)
        match = PATTERN.fullmatch(text)
        # One hash and one comparison in every case, also for what is no key at all.
        record = self._record_by_id.get(match.group(1), self._nobody) if match else self._nobody
        is_right = hmac.compare_digest(_hash(text, self._pepper), record.hash)
        is_in_force = record.revoked_at is None and (
            record.expires_at is None or self._now() < record.expires_at
        )
        if not (is_right and is_in_force):
            return None
        return Principal(record.tenant, record.role, record.public_id)


def _bearer(header: str | None) -> str:
    scheme, _, text = (header or "").partition(" ")
    return text.strip() if scheme.lower() == "bearer" else ""


def _hash(text: str, pepper: bytes) -> bytes:
    return hmac.digest(pepper, text.encode(errors="surrogatepass"), "sha256")
