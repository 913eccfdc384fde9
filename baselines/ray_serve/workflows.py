"""The two workflows of the benchmark as a Ray Serve application, composed as its documents say.

A deployment for each model, whose replicas each stand before one engine; a deployment that takes requests and
runs the workflows, and reaches the models through handles. Which replica gets a call is Ray Serve's to decide.
Every directive for an engine comes with the request, so nothing here knows how long an answer will be.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaRank
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

NOTES = "notes that a search has found"
"""What the code of the workflows returns, as on the other side."""

INGRESS_CONCURRENCY = 10_000
"""Runs are waits, not work: one process holds any number of them."""


@serve.deployment
class Model:
    """One model. Replica number r stands before the engine at `urls[r]`: unequal cards are unequal replicas."""

    def __init__(self, name: str, urls: list[str]) -> None:
        self._name = name
        self._urls = urls
        self._url = ""
        self._session: aiohttp.ClientSession | None = None

    def reconfigure(self, _: object, rank: ReplicaRank) -> None:
        """Take the engine of this rank; Ray gives another one when replicas before it have gone."""
        self._url = self._urls[rank.rank] + "/chat/completions"

    async def complete(self, prompt: str, max_tokens: int) -> str:
        """A whole answer."""
        async with self._post(prompt, max_tokens, is_streamed=False) as response:
            await self._refuse_errors(response)
            return (await response.json())["choices"][0]["message"]["content"]

    async def stream(self, prompt: str, max_tokens: int) -> AsyncIterator[str]:
        """An answer in pieces, as the engine makes them."""
        async with self._post(prompt, max_tokens, is_streamed=True) as response:
            await self._refuse_errors(response)
            async for line in response.content:
                if line.startswith(b"data: {"):
                    choices = json.loads(line[6:])["choices"]
                    text = choices[0]["delta"].get("content") if choices else None
                    if text:
                        yield text

    def _post(
        self, prompt: str, max_tokens: int, *, is_streamed: bool
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if self._session is None:  # made where the event loop runs
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
            )
        body = {
            "model": self._name,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "stream": is_streamed,
        }
        return self._session.post(self._url, json=body)

    async def _refuse_errors(self, response: aiohttp.ClientResponse) -> None:
        if response.status != 200:
            raise RuntimeError(f"{self._url} answered {response.status}: {(await response.text())[:300]}")


@serve.deployment
class Workflows:
    """Takes requests in the shape of OpenAI's chat API and runs the workflow that they name, answers streamed."""

    def __init__(self, small: DeploymentHandle, large: DeploymentHandle) -> None:
        self._small = small.options(method_name="complete")
        self._large = large.options(method_name="complete")
        self._reader = large.options(method_name="stream", stream=True)

    async def __call__(self, request: Request) -> JSONResponse | StreamingResponse:
        if request.method != "POST":
            return JSONResponse({"status": "ok"})
        body = await request.json()
        question, asks = body["messages"][-1]["content"], body["metadata"]
        run = self._rag if body["model"] == "workflow/rag" else self._shop
        return StreamingResponse(_frames(run(question, asks)), media_type="text/event-stream")

    # --- the workflows -------------------------------------------------------------------------------

    async def _rag(self, question: str, asks: Mapping[str, str]) -> AsyncIterator[str]:
        found = await _code(asks["retrieve"])
        rewritten = await self._small.remote(_prompt(question, found, asks["rewrite"]), 192)
        async for piece in self._reader.remote(_prompt(question, found, rewritten, asks["answer"]), 600):
            yield piece

    async def _shop(self, question: str, asks: Mapping[str, str]) -> AsyncIterator[str]:
        intent = await self._small.remote(_prompt(question, asks["classify"]), 16)
        rank = look_up = draft = check = ""
        if intent == "products":
            refined = await self._small.remote(_prompt(question, asks["refine"]), 64)
            found = await _code(asks["search"], refined)
            rank = await self._large.remote(_prompt(question, found, asks["rank"]), 256)
        elif intent == "order":
            look_up = await _code(asks["look_up"])
        elif intent == "complaint":
            summary, draft = await asyncio.gather(
                self._small.remote(_prompt(question, asks["summarise"]), 256),
                self._large.remote(_prompt(question, asks["draft"]), 400),
            )
            check = await self._small.remote(_prompt(summary, draft, asks["check"]), 128)
        prompt = _prompt(question, rank, look_up, draft, check, asks["reply"])
        async for piece in self._reader.remote(prompt, 600):
            yield piece


def _prompt(*parts: str) -> str:
    return "\n".join(parts)


async def _code(wait_s: str, *_: str) -> str:
    await asyncio.sleep(float(wait_s))
    return NOTES


async def _frames(pieces: AsyncIterator[str]) -> AsyncIterator[str]:
    async for piece in pieces:
        yield "data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": piece}}]}) + "\n\n"
    yield "data: [DONE]\n\n"


def application(asked: Mapping[str, Any]) -> serve.Application:
    """`small` and `large` each have a `name` and the `urls` of their engines; `max_ongoing_requests` calls at once are
    given to one replica. With `autoscaling`, keys of Ray's own, there are as many replicas as these say, one for each
    engine at most; without it, one for each engine. One model may be both."""
    ingress = Workflows.options(max_ongoing_requests=INGRESS_CONCURRENCY, ray_actor_options={"num_cpus": 0})
    small = _model(asked, "small")
    large = small if asked["large"] == asked["small"] else _model(asked, "large")
    return ingress.bind(small, large)


def _model(asked: Mapping[str, Any], role: str) -> serve.Application:
    name, urls, autoscaling = asked[role]["name"], asked[role]["urls"], asked.get("autoscaling")
    replicas: dict[str, Any] = {"num_replicas": len(urls)}
    if autoscaling is not None:
        replicas = {"autoscaling_config": {"min_replicas": 1, **autoscaling, "max_replicas": len(urls)}}
    return Model.options(
        name=name,
        max_ongoing_requests=asked["max_ongoing_requests"],
        ray_actor_options={"num_cpus": 0},
        user_config={},  # without one, Ray does not tell a replica of its new rank
        **replicas,
    ).bind(name, urls)
