"""Calls of OpenAI's chat API handed on to engines as they come, as a Ray Serve application.

What a call costs on its way through Ray Serve and nothing else: the body is passed on unread but for `stream`, and
so is every part of the answer. Which replica gets a call is Ray Serve's to decide.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaRank
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

INGRESS_CONCURRENCY = 10_000
"""Calls are waits, not work: one process holds any number of them."""


@serve.deployment
class Engine:
    """Replica number r stands before the engine at `urls[r]`."""

    def __init__(self, urls: list[str]) -> None:
        self._urls = urls
        self._url = ""
        self._session: aiohttp.ClientSession | None = None

    def reconfigure(self, _: object, rank: ReplicaRank) -> None:
        """Take the engine of this rank."""
        self._url = self._urls[rank.rank] + "/chat/completions"

    async def whole(self, body: bytes) -> bytes:
        """An answer at once."""
        async with self._opened().post(self._url, data=body, headers=_JSON) as response:
            await self._refuse_errors(response)
            return await response.read()

    async def stream(self, body: bytes) -> AsyncIterator[bytes]:
        """An answer in parts, as they come."""
        async with self._opened().post(self._url, data=body, headers=_JSON) as response:
            await self._refuse_errors(response)
            async for part in response.content.iter_any():
                yield part

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:  # made where the event loop runs
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
            )
        return self._session

    async def _refuse_errors(self, response: aiohttp.ClientResponse) -> None:
        if response.status != 200:
            raise RuntimeError(f"{self._url} answered {response.status}: {(await response.text())[:300]}")


_JSON = {"content-type": "application/json"}


@serve.deployment
class Ingress:
    """Takes calls and gives them to a replica."""

    def __init__(self, engines: DeploymentHandle) -> None:
        self._whole = engines.options(method_name="whole")
        self._reader = engines.options(method_name="stream", stream=True)

    async def __call__(self, request: Request) -> Response:
        if request.method != "POST":
            return JSONResponse({"status": "ok"})
        body = await request.body()
        if json.loads(body).get("stream"):
            return StreamingResponse(self._reader.remote(body), media_type="text/event-stream")
        return Response(await self._whole.remote(body), media_type="application/json")


def application(asked: Mapping[str, Any]) -> serve.Application:
    """`urls` are the engines; `max_ongoing_requests` calls at once are given to one."""
    ingress = Ingress.options(max_ongoing_requests=INGRESS_CONCURRENCY, ray_actor_options={"num_cpus": 0})
    engines = Engine.options(
        num_replicas=len(asked["urls"]),
        max_ongoing_requests=asked["max_ongoing_requests"],
        ray_actor_options={"num_cpus": 0},
        user_config={},  # without one, Ray does not tell a replica of its new rank
    )
    return ingress.bind(engines.bind(asked["urls"]))
