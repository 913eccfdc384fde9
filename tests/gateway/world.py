"""A runtime that answers what a test tells it to, and an ASGI client driven by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tightrope.gateway.app import Settings, build_app
from tightrope.gateway.exchange import Application
from tightrope.gateway.keys import Authenticate, Principal
from tightrope.gateway.offers import Offer
from tightrope.model.ids import RunId, StepId, TenantId, WorkflowId
from tightrope.model.messages import FinishRun
from tightrope.model.outcome import FailureKind, Outcome, Refusal, Usage, Verdict
from tightrope.model.slo import Slo
from tightrope.runtime.client import Chunk, RunHandle, RunRequest

SHOP, OTHER = TenantId("shop"), TenantId("research")
LIMIT_S = 60.0
"""How long a test waits for what must happen; far more than it takes."""
USAGE = Usage(prompt_tokens=20, output_tokens=5, cached_tokens=4)


def finish(
    outcome: Outcome = Outcome.SUCCEEDED,
    *,
    failure: FailureKind | None = None,
    refusal: Refusal | None = None,
    message: str = "",
    workflow: str = "rag@1",
    retry_after_s: float | None = None,
) -> FinishRun:
    return FinishRun(
        run=RunId("run_1"), tenant=SHOP, workflow=WorkflowId(workflow), outcome=outcome, verdict=Verdict.NONE,
        duration_s=1.0, ttft_s=0.5, tpot_s=None, usage=USAGE, failure=failure, refusal=refusal,
        step=StepId("answer") if failure is not None else None, message=message, retry_after_s=retry_after_s,
    )  # fmt: skip


def piece(delta: Mapping[str, object], reason: str | None = None) -> Chunk:
    text = delta.get("content") or ""
    choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
    return Chunk(str(text), json.dumps(choices).encode(), bool(set(delta) - {"role"}), reason)


def completion_piece(text: str, reason: str | None = None) -> Chunk:
    choices = [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}]
    return Chunk(text, json.dumps(choices).encode(), bool(text), reason)


USAGE_PIECE = Chunk("", b"[]", False, usage=USAGE)
HELLO = (
    piece({"role": "assistant", "content": ""}),
    piece({"content": "Hel"}),
    piece({"content": "lo"}),
    piece({}, "stop"),
    USAGE_PIECE,
)


Script = Callable[[RunHandle, RunRequest], None]


def says(pieces: Sequence[Chunk], end: FinishRun | None = None) -> Script:
    """Push these pieces at once, then end."""

    def script(handle: RunHandle, _: RunRequest) -> None:
        for one in pieces:
            handle.push(one)
        handle.end(end or finish())

    return script


def is_silent(handle: RunHandle, request: RunRequest) -> None:
    """Leave the run under way; the test goes on by hand."""


async def until(is_so: Callable[[], bool]) -> None:
    """Let the loop go round until something is so."""
    async with asyncio.timeout(LIMIT_S):
        while not is_so():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0)


@dataclass
class FakeRuns:
    """Stands where the runtime's client stands. `script` decides what a run does; it may raise."""

    script: Script = field(default_factory=lambda: says(HELLO))
    requests: list[RunRequest] = field(default_factory=list)
    handles: list[RunHandle] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    submitted: asyncio.Event = field(default_factory=asyncio.Event)

    def submit(self, request: RunRequest) -> RunHandle:
        self.requests.append(request)

        def cancel(why: str) -> None:
            self.cancelled.append(why)
            handle.end(finish(Outcome.CANCELLED, message=why))

        handle = RunHandle(RunId(f"run_{len(self.requests)}"), request.is_streamed, cancel)
        handle.note("queue", 0.012)
        self.handles.append(handle)
        self.script(handle, request)
        self.submitted.set()
        return handle


class FakeMetrics:
    """Counts what the gateway tells, and shows one line."""

    def __init__(self) -> None:
        self.overheads: list[float] = []

    def exposition(self, accept: str) -> tuple[bytes, str]:
        return b"tightrope_up 1\n", "text/plain; version=0.0.4"

    def observe_gateway_overhead(self, seconds: float) -> None:
        self.overheads.append(seconds)


OFFERS = {
    offer.name: offer
    for offer in (
        Offer("small", False, Slo(ttft_s=1.5), None, 120.0, 1_700_000_000),
        Offer(
            "workflow/rag", True, Slo(ttft_s=1.2, e2e_s=10.0), Slo(ttft_s=0.4, e2e_s=2.0), 60.0, 1_700_000_001
        ),
    )
}


def catalogue(tenant: TenantId) -> Mapping[str, Offer]:
    return OFFERS if tenant == SHOP else {}


def by_word(header: str | None) -> Principal | None:
    """`Bearer tenant:shop` is the tenant shop in the role tenant."""
    role, _, tenant = (header or "").removeprefix("Bearer ").partition(":")
    if role in ("tenant", "metrics", "operator", "admin"):
        return Principal(TenantId(tenant), role, "key")  # type: ignore[arg-type]
    return None


@dataclass
class World:
    """The application around a fake runtime."""

    runs: FakeRuns = field(default_factory=FakeRuns)
    metrics: FakeMetrics = field(default_factory=FakeMetrics)
    settings: Settings = field(default_factory=Settings)
    authenticate: Authenticate = by_word
    is_ready: bool = True

    @property
    def app(self) -> Application:
        return build_app(
            self.runs, self.authenticate, catalogue, self.settings, self.metrics, lambda: self.is_ready
        )

    def client(self, key: str = "tenant:shop") -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers)

    async def post(self, body: object = None, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """A chat request; `body` is changed into JSON unless it is bytes."""
        content = (
            body if isinstance(body, bytes) else json.dumps(body if body is not None else chat()).encode()
        )
        async with self.client() as client:
            return await client.post(
                "/v1/chat/completions",
                content=content,
                headers={"content-type": "application/json", **(headers or {})},
            )


def chat(model: Any = "workflow/rag", **fields: Any) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "How are you?"}], **fields}


class Caller:
    """One request over ASGI, part by part: what the server sent can be awaited, the client can leave or stall."""

    def __init__(self, app: Application, body: object, headers: Mapping[str, str] | None = None) -> None:
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.reading = asyncio.Event()
        self.reading.set()
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        if body is not None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self._inbox.put_nowait({"type": "http.request", "body": content, "more_body": False})
        raw = {"authorization": "Bearer tenant:shop", "content-type": "application/json", **(headers or {})}
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "scheme": "http", "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions",
            "query_string": b"", "root_path": "", "server": ("gateway", 80), "client": ("client", 1),
            "headers": [(name.encode(), value.encode()) for name, value in raw.items()],
        }  # fmt: skip
        self.task = asyncio.ensure_future(app(scope, self._inbox.get, self._send))

    async def head(self) -> tuple[int, dict[str, str]]:
        message = await self.next()
        assert message["type"] == "http.response.start"
        return message["status"], {name.decode(): value.decode() for name, value in message["headers"]}

    async def part(self) -> bytes:
        message = await self.next()
        assert message["type"] == "http.response.body"
        return bytes(message["body"])

    async def next(self) -> dict[str, Any]:
        return await asyncio.wait_for(self.sent.get(), LIMIT_S)

    def leave(self) -> None:
        self._inbox.put_nowait({"type": "http.disconnect"})

    def say(self, body: bytes, *, more_body: bool) -> None:
        self._inbox.put_nowait({"type": "http.request", "body": body, "more_body": more_body})

    async def end(self) -> None:
        await asyncio.wait_for(self.task, LIMIT_S)

    async def _send(self, message: Any) -> None:
        await self.reading.wait()
        self.sent.put_nowait(dict(message))
