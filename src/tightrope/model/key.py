"""API keys as stored, and what they allow. Minting and checking them is `gateway/keys.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tightrope.model.ids import TenantId

Role = Literal["tenant", "metrics", "operator", "admin"]
"""`tenant`: its own calls; `metrics`: scraping only; `operator`: reads all, applies config; `admin`: keys too."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key as stored: never the secret, only its keyed hash. Times are Unix seconds."""

    public_id: str
    tenant: TenantId
    role: Role
    hash: bytes
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
