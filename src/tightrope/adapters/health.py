"""One question to a server: are you there and ready? And a second one: how many calls do you take at once?

Owns the reading of the answers. How often to ask, and what follows from it, is said by the clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import aiohttp

from tightrope.adapters.engine_openai import OpenAIEngine
from tightrope.model.errors import EngineFailed

PROBE_LIMIT_S = 2.0


@dataclass(frozen=True, slots=True)
class Health:
    """What a probe found. `gone`: nobody listens; `unwell`: no good answer in time. `said` is for people."""

    state: Literal["well", "unwell", "gone", "no-such-path"]
    said: str


async def probe(session: aiohttp.ClientSession, url: str) -> Health:
    """Ask once, for PROBE_LIMIT_S at most. A status below 300 is good. Never raises for a bad server."""
    try:
        async with session.get(
            url, timeout=aiohttp.ClientTimeout(total=PROBE_LIMIT_S), allow_redirects=False
        ) as response:
            await response.read()
            return _judged(url, response.status)
    except TimeoutError:
        return Health("unwell", f"{url} did not answer within {PROBE_LIMIT_S:g} s")
    except (aiohttp.ClientError, OSError) as error:
        return Health("gone", f"{url} cannot be reached: {str(error) or type(error).__name__}")


def probing_session(api_key: str | None = None) -> aiohttp.ClientSession:
    """A session whose probes never share a connection: a stale one would look like a dead server."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key is not None else {}
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=headers,
    )


async def max_sequences(url: str, api_key: str | None = None) -> int | None:
    """What the engine at this base address says of its slots; None where it does not say."""
    engine = OpenAIEngine(url, api_key=api_key)
    try:
        return (await engine.facts()).max_sequences
    except EngineFailed:
        return None
    finally:
        await engine.close()


def _judged(url: str, status: int) -> Health:
    if status < 300:
        return Health("well", f"{url} answered {status}")
    return Health("no-such-path" if status in (404, 405) else "unwell", f"{url} answered {status}")
