"""The code nodes of a duel: each waits as long as the request says, and returns what the other side returns too."""

from __future__ import annotations

import asyncio

from tightrope.bench.duel_load import NOTES


async def retrieve(ask: str, **_: str) -> str:
    """Passages about a question."""
    return await _found(ask)


async def search(ask: str, **_: str) -> str:
    """Products that fit some words."""
    return await _found(ask)


async def look_up(ask: str, **_: str) -> str:
    """An order of a customer."""
    return await _found(ask)


async def _found(wait_s: str) -> str:
    await asyncio.sleep(float(wait_s))
    return NOTES
