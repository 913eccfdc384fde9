"""`serve`: the gateway over a composed runtime, until it is told to stop.

Owns the listening socket, readiness, the keys in force and the order of an orderly end: no new runs, running
ones finish, then engines end. A second signal ends at once.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import uvicorn
import uvloop

from tightrope.app.cli.frame import Answer, Common, Refused, Unsafe
from tightrope.app.compose import Runtime, compose, pairs_of
from tightrope.app.config import Config, Model, load_config, read_config, tenant_problems, unsafe_listen
from tightrope.app.config_form import LlamaCpp
from tightrope.app.embedded import cache_dir, ensure_engine
from tightrope.app.pepper import read_pepper
from tightrope.app.workflows import load_workflows
from tightrope.gateway.app import Settings, build_app
from tightrope.gateway.exchange import Application
from tightrope.gateway.keys import Authenticate, Keyring, without_keys
from tightrope.gateway.offers import Offer, offers
from tightrope.gateway.server import Protocol
from tightrope.model.errors import InvalidConfig, StoreFailed
from tightrope.model.fleet import ReplicaState
from tightrope.model.ids import TenantId
from tightrope.model.messages import Command, Event, NoteScaling
from tightrope.model.provision import ProvisionMode
from tightrope.model.workflow import Workflow
from tightrope.reports.scaling import sentence
from tightrope.runtime.driver import Observer

log = logging.getLogger("tightrope")

RELOAD_KEYS_EVERY_S = 2.0
"""How long a revoked key may go on working."""

CLOSE_WITHIN_S = 5
"""What connections get to take the rest of their answer once all runs have ended."""

Say = Callable[[str], None]


class CannotListen(Refused):
    """The address is taken, or not ours to use."""


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the gateway is, once it is."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The base URL for an OpenAI client."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/v1"


def run(common: Common) -> Answer:
    """The verb: serve until told to stop. Raises Unsafe, InvalidConfig, InvalidWorkflow and CannotListen."""
    config = load_config(common.config)
    problems = unsafe_listen(config)
    if problems:
        raise Unsafe(problems)
    workflows = list(load_workflows(config))
    unknown = tenant_problems(config, [workflow.name for workflow in workflows])
    if unknown:
        raise InvalidConfig(str(config.file), read_config(common.config).located(unknown))
    if any(isinstance(model.engine, LlamaCpp) and model.engine.binary is None for model in config.models):
        ensure_engine(cache_dir(), common.say)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    place: list[Listening] = []
    # uvloop spends much less on every chunk that passes.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(config, workflows, common.say, on_listening=place.append))
    return Answer({"listen": place[0].url} if place else None, "stopped")


async def serve(
    config: Config,
    workflows: list[Workflow],
    say: Say,
    *,
    die_with_parent: bool = False,
    on_listening: Callable[[Listening], None] = lambda _: None,
) -> None:
    """Serve until SIGTERM or SIGINT. Raises CannotListen, InvalidInput and StoreFailed before anything started."""
    listener = listen(config)
    runtime = compose(config, workflows, die_with_parent=die_with_parent, observers=(_telling(say),))
    # Signals are taken until all is closed: one too many must not end this process before its engines.
    with _Signals() as signals:
        try:
            await _serve(runtime, listener, signals, say, on_listening)
        finally:
            await runtime.close()
            listener.close()


async def _serve(
    runtime: Runtime,
    listener: socket.socket,
    signals: _Signals,
    say: Say,
    on_listening: Callable[[Listening], None],
) -> None:
    keyring = _keyring(runtime.config, runtime)
    authenticate = without_keys if keyring is None else keyring.authenticate
    server = _Server(
        uvicorn.Config(
            gateway(runtime, authenticate),
            http=Protocol,
            proxy_headers=False,  # nobody asks where a client is
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=CLOSE_WITHIN_S,
        )
    )
    await runtime.start()
    _say_profiles(runtime, say)
    # What is there now stays until the end: looking through it again and again would only hold up calls.
    gc.collect()
    gc.freeze()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    beside = (
        asyncio.create_task(_reload_keys(runtime, keyring)),
        asyncio.create_task(_hurry(signals, server)),
    )
    place = Listening(*listener.getsockname()[:2])
    on_listening(place)
    say(f"listening on {place.url}; Ctrl-C or SIGTERM drains")
    await _first(signals.stop.wait(), serving)
    await _drain(runtime, runtime.config.server.drain_s, signals, say)
    server.should_exit = True
    await serving
    for task in beside:
        task.cancel()


def gateway(runtime: Runtime, authenticate: Authenticate) -> Application:
    """The HTTP application of a runtime."""
    server = runtime.config.server
    slo_by_workflow = {workflow.name: workflow.slo for workflow in runtime.workflows}
    created_s = int(time.time())
    offers_by_tenant = {
        tenant.id: offers(tenant, slo_by_workflow, created_s, tenant.slo_floor)
        for tenant in runtime.driver.kernel.state.tenants.values()
    }

    def catalogue(tenant: TenantId) -> dict[str, Offer]:
        return offers_by_tenant.get(tenant, {})

    settings = Settings(
        max_body_bytes=server.max_body_bytes,
        keepalive_s=server.keepalive_s,
        has_timing_header=server.timing_header,
        has_metrics=runtime.config.telemetry.metrics,
    )
    return build_app(
        runtime.client, authenticate, catalogue, settings, runtime.telemetry, lambda: is_ready(runtime)
    )


def is_ready(runtime: Runtime) -> bool:
    """Whether a request would be served: not draining, not broken, and every model has a replica or is started for the
    first request that needs it."""
    state = runtime.driver.kernel.state
    if state.is_draining or runtime.driver.broken is not None:
        return False
    return all(
        state.pool(model.name).ready() or _comes_when_asked(runtime, model) for model in runtime.config.models
    )


def _comes_when_asked(runtime: Runtime, model: Model) -> bool:
    """Whether the model may be away, and nothing is known that keeps its replicas from coming up."""
    provisioning = runtime.provisioning
    if provisioning is None or provisioning.mode is not ProvisionMode.ACT or not model.may_be_away:
        return False
    replicas = runtime.driver.kernel.state.pool(model.name).replicas.values()
    return not any(replica.state is ReplicaState.LOST for replica in replicas)


def _keyring(config: Config, runtime: Runtime) -> Keyring | None:
    """The keys in force; None where none are asked for."""
    if config.server.auth == "none":
        return None
    return Keyring(runtime.store.keys(), read_pepper(config.secret_file))


def listen(config: Config) -> socket.socket:
    """The bound socket. Raises CannotListen."""
    address = config.server.listen
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # Only of a socket that says TCP does asyncio send small writes at once; else each answer waits 40 ms for an ACK.
    listener = socket.socket(family, proto=socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise CannotListen(
                f"{address} is taken by another program; stop it, or change server.listen"
            ) from error
        raise CannotListen(f"cannot listen on {address}: {error.strerror}; change server.listen") from error
    listener.setblocking(False)
    return listener


async def _drain(runtime: Runtime, limit_s: float, signals: _Signals, say: Say) -> None:
    """No new runs; those under way get their time, unless somebody is in a hurry."""
    runtime.drain()
    count = runtime.driver.runs_underway
    if not count or signals.hurry.is_set():
        return
    say(f"draining: {count} runs under way get {limit_s:g} s; a second signal ends them at once")
    await asyncio.wait(
        [
            asyncio.create_task(runtime.driver.wait_until_idle()),
            asyncio.create_task(signals.hurry.wait()),
        ],
        timeout=limit_s,
        return_when=asyncio.FIRST_COMPLETED,
    )
    runtime.driver.cancel_all("the server is shutting down")


async def _hurry(signals: _Signals, server: _Server) -> None:
    """Whoever is in a hurry does not wait for connections either."""
    await signals.hurry.wait()
    server.force_exit = True


async def _reload_keys(runtime: Runtime, keyring: Keyring | None) -> None:
    """New and revoked keys take effect while the store can be read; while it cannot, the known ones stay."""
    while keyring is not None:
        await asyncio.sleep(RELOAD_KEYS_EVERY_S)
        try:
            keyring.reload(await asyncio.to_thread(runtime.store.keys))
        except StoreFailed as error:
            log.warning("keys could not be read again: %s", error)


async def _first(*waits: object) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]  # type: ignore[call-overload]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


def _say_profiles(runtime: Runtime, say: Say) -> None:
    known = runtime.driver.kernel.state.profiles
    for model, card in pairs_of(runtime.config):
        if (model.name, card.name) not in known:
            say(
                f"{model.name} on {card.name} has no profile yet: run `tightrope profile {model.name} --on {card.name}`"
            )


def _telling(say: Say) -> Observer:
    """Says what the provisioner does to the fleet, and what stands in its way."""

    def observe(message: Event | Command, _: float) -> None:
        if isinstance(message, NoteScaling):
            say(sentence(message))

    return observe


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: the order of an orderly end is ours."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `serve`."""
        yield


class _Signals:
    """SIGINT and SIGTERM, taken within a `with` block: the first asks to `stop`, the second is in a `hurry`."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._asked)
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)

    def _asked(self) -> None:
        if self.stop.is_set():
            self.hurry.set()
        self.stop.set()
