"""The HTTP application: its routes, who may use which, and the way of a request through the gateway.

Owns the table of routes and roles. Everything a request passes is in `_Routes`, `_Gate` and `_Calls`, from the top.
A framework's layers would each be passed once more for every piece of every stream.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, assert_never

from tightrope.gateway import wire
from tightrope.gateway.errors import ApiError, of_error
from tightrope.gateway.exchange import (
    EVENTS,
    JSON,
    Application,
    ClientGone,
    Exchange,
    Receive,
    Scope,
    Send,
    Settings,
)
from tightrope.gateway.hints import Hints, granted, hints
from tightrope.gateway.keys import Authenticate, Principal
from tightrope.gateway.offers import WORKFLOW, Catalogue, Offer, describe
from tightrope.gateway.stream import Headers, stream, unless_gone
from tightrope.model.errors import TightropeError
from tightrope.model.ids import TenantId
from tightrope.model.key import Role
from tightrope.model.slo import Slo
from tightrope.runtime.client import PLAIN_CHAT, PLAIN_COMPLETION, RunHandle, RunRequest

__all__ = ["EVENTS", "ROUTES", "Metrics", "Rule", "Settings", "build_app"]

log = logging.getLogger(__name__)

Action = Literal["chat", "completion", "models", "metrics", "health", "ready"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One route: what it does, and the roles that may use it (None: everybody, without a key)."""

    method: Literal["GET", "POST"]
    path: str
    action: Action
    roles: frozenset[Role] | None


_CALLERS: frozenset[Role] = frozenset({"tenant", "operator", "admin"})
_SCRAPERS: frozenset[Role] = frozenset({"metrics", "operator", "admin"})

ROUTES = (
    Rule("POST", "/v1/chat/completions", "chat", _CALLERS),
    Rule("POST", "/v1/completions", "completion", _CALLERS),
    Rule("GET", "/v1/models", "models", _CALLERS),
    Rule("GET", "/metrics", "metrics", _SCRAPERS),
    Rule("GET", "/healthz", "health", None),
    Rule("GET", "/readyz", "ready", None),
)


class Runs(Protocol):
    """The part of the runtime's client that the gateway uses."""

    def submit(self, request: RunRequest) -> RunHandle:
        """Start a run. Raises TightropeError."""
        ...


class Metrics(Protocol):
    """Where metrics come from, and where the gateway's own go."""

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the format that the Accept header asks for, and its media type."""
        ...

    def observe_gateway_overhead(self, seconds: float) -> None:
        """Time from the head of a request to the runtime having it."""
        ...


def build_app(
    client: Runs,
    authenticate: Authenticate,
    catalogue: Catalogue,
    settings: Settings,
    metrics: Metrics,
    is_ready: Callable[[], bool],
) -> Application:
    """The application for any ASGI server. It has the routes of ROUTES and no others; metrics only if set so."""
    calls = _Calls(client, catalogue, metrics)
    pages = _Pages(catalogue, metrics, is_ready)

    def act(rule: Rule) -> _Act:
        match rule.action:
            case "chat":
                return lambda exchange, who: calls.serve("chat", exchange, who)
            case "completion":
                return lambda exchange, who: calls.serve("completion", exchange, who)
            case "models":
                return pages.models
            case "metrics":
                return pages.metrics
            case "health":
                return pages.health
            case "ready":
                return pages.ready
            case _:
                assert_never(rule.action)

    return _Routes(
        {
            rule: _Gate(rule, act(rule), authenticate, settings)
            for rule in ROUTES
            if settings.has_metrics or rule.action != "metrics"
        },
        settings,
    )


_Act = Callable[[Exchange, Principal], Awaitable[None]]

_NOBODY = Principal(TenantId(""), "tenant")


class _Routes:
    """Finds the route of a request. What may be got may be asked for with HEAD, too."""

    def __init__(self, gates: Mapping[Rule, _Gate], settings: Settings) -> None:
        self._settings = settings
        self._gate_by_method: dict[str, dict[str, _Gate]] = {}
        for rule, gate in gates.items():
            methods = ("GET", "HEAD") if rule.method == "GET" else (rule.method,)
            self._gate_by_method.setdefault(rule.path, {}).update(dict.fromkeys(methods, gate))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gate_by_method = self._gate_by_method.get(scope["path"], {})
        gate = gate_by_method.get(scope["method"])
        if gate is not None:
            await gate(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self._settings)
        if gate_by_method:
            allowed = {"allow": ", ".join(sorted(gate_by_method))}
            await exchange.fail(ApiError("method_not_allowed"), allowed)
        else:
            await exchange.fail(ApiError("route_not_found"))


class _Gate:
    """One route as an ASGI application: lets in who may, and turns what is raised into answers."""

    def __init__(self, rule: Rule, act: _Act, authenticate: Authenticate, settings: Settings) -> None:
        self._rule = rule
        self._act = act
        self._authenticate = authenticate
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._settings)
        try:
            exchange.check_head()
            await self._act(exchange, self._let_in(exchange))
        except ApiError as error:
            await _fail(exchange, error)
        except TightropeError as error:
            await _fail(exchange, of_error(error))
        except ClientGone as gone:
            log.info("request %s: client_gone %s", exchange.request_id, gone)
        except Exception:
            log.exception("request %s: internal_error", exchange.request_id)
            await _fail(exchange, ApiError("internal_error", f"request {exchange.request_id}"))

    def _let_in(self, exchange: Exchange) -> Principal:
        if self._rule.roles is None:
            return _NOBODY
        who = self._authenticate(exchange.header(b"authorization"))
        if who is None:
            raise ApiError("invalid_api_key")
        if who.role not in self._rule.roles:
            raise ApiError("role_forbidden", f"{who.role} may not use {self._rule.path}")
        return who


async def _fail(exchange: Exchange, error: ApiError) -> None:
    if exchange.has_begun:
        # The head is out, so the only honest end is to break off; the server does that when we return.
        return
    await exchange.fail(error)


class _Pages:
    """The routes that do not call a model."""

    def __init__(self, catalogue: Catalogue, metrics: Metrics, is_ready: Callable[[], bool]) -> None:
        self._catalogue = catalogue
        self._metrics = metrics
        self._is_ready = is_ready

    async def models(self, exchange: Exchange, who: Principal) -> None:
        created_by_name = {name: offer.created_s for name, offer in self._catalogue(who.tenant).items()}
        await exchange.answer(200, wire.models(created_by_name), JSON)

    async def metrics(self, exchange: Exchange, _: Principal) -> None:
        body, media = self._metrics.exposition(exchange.header(b"accept") or "")
        await exchange.answer(200, body, media)

    async def health(self, exchange: Exchange, _: Principal) -> None:
        await exchange.answer(200, b"ok\n", "text/plain; charset=utf-8")

    async def ready(self, exchange: Exchange, _: Principal) -> None:
        is_ready = self._is_ready()
        await exchange.answer(
            200 if is_ready else 503, b"ok\n" if is_ready else b"not ready\n", "text/plain; charset=utf-8"
        )


class _Calls:
    """The routes that call a model or a workflow."""

    def __init__(self, client: Runs, catalogue: Catalogue, metrics: Metrics) -> None:
        self._client = client
        self._catalogue = catalogue
        self._metrics = metrics

    async def serve(self, kind: wire.Kind, exchange: Exchange, who: Principal) -> None:
        """From the body to the last byte of the answer. Whatever happens, the run is not left behind."""
        asked = hints(exchange.headers)
        auth_s = time.perf_counter() - exchange.arrived_s
        body = await exchange.body()
        received_s = time.perf_counter()
        ask = wire.read(kind, body)
        offer = self._offer(who, ask.model)
        slo = _slo(asked, offer, ask.is_streamed)
        handle = self._client.submit(_request(ask, offer, who, exchange.request_id, asked))
        admit_s = time.perf_counter() - received_s
        self._metrics.observe_gateway_overhead(auth_s + admit_s)
        label = wire.Label(kind, handle.run, offer.name, int(time.time()), ask.has_tier)

        def headers(has_content: bool) -> dict[str, str]:
            found = {"x-tightrope-run": handle.run, "x-tightrope-slo": describe(slo)}
            if exchange.settings.has_timing_header:
                parts = {"auth": auth_s, "admit": admit_s, **handle.timing_s()}
                if has_content:
                    parts["ttft"] = time.perf_counter() - exchange.arrived_s
                found["server-timing"] = _timing(parts)
            return found

        try:
            if ask.is_streamed:
                frames = wire.Frames(label, wants_usage=ask.wants_usage, is_workflow=offer.is_workflow)
                await stream(exchange, handle, frames, headers, asked.silence_s)
            else:
                await self._whole(exchange, handle, label, headers, offer.is_workflow)
        finally:
            # Does nothing once the run has ended.
            handle.cancel("the client has left")

    async def _whole(
        self,
        exchange: Exchange,
        handle: RunHandle,
        label: wire.Label,
        headers: Headers,
        is_workflow: bool,
    ) -> None:
        try:
            result = await unless_gone(exchange, handle.result())
        except TightropeError as error:
            await exchange.fail(of_error(error), headers(False))
            return
        await exchange.answer(200, wire.answer(label, result, is_workflow), JSON, headers(False))

    def _offer(self, who: Principal, model: str) -> Offer:
        offer = self._catalogue(who.tenant).get(model)
        if offer is None:
            raise ApiError("model_not_found", param="model")
        return offer


def _request(ask: wire.Ask, offer: Offer, who: Principal, request: str, asked: Hints) -> RunRequest:
    inputs, sampling = wire.inputs(ask, offer.is_workflow)
    limits_s = [offer.deadline_s]
    if asked.deadline_s is not None:
        limits_s.append(asked.deadline_s)
    if asked.silence_s is not None and not ask.is_streamed:
        # An answer that is not streamed is one silence until it is there.
        limits_s.append(asked.silence_s)
    slo = granted(asked, offer.slo, offer.floor)
    return RunRequest(
        tenant=who.tenant,
        workflow=_target(ask.kind, offer),
        inputs=inputs,
        slo=slo if slo != offer.slo else None,
        deadline_s=min(limits_s),
        is_streamed=ask.is_streamed,
        sampling=sampling,
        request_id=request,
    )


def _target(kind: wire.Kind, offer: Offer) -> str:
    if offer.is_workflow:
        return offer.name.removeprefix(WORKFLOW)
    return (PLAIN_CHAT if kind == "chat" else PLAIN_COMPLETION) + offer.name


def _slo(asked: Hints, offer: Offer, is_streamed: bool) -> Slo:
    """What the run is judged by; without streaming there is no first token to see, only the end."""
    slo = granted(asked, offer.slo, offer.floor)
    return slo if is_streamed else Slo(e2e_s=slo.e2e_s, attain=slo.attain)


def _timing(seconds_by_part: Mapping[str, float]) -> str:
    return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in seconds_by_part.items())
