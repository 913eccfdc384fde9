"""An OpenAI-compatible server whose timing is that of `sim/engine.py` in real time: a replica without a card.

Run it with `python -m tightrope.adapters.engine_emulated --port 8191 --name small --truth truth.json`. Owns the
routes, among them faults on command (loopback only), and the process. The answers are filler: only their times and
lengths mean something.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import uvloop

from tightrope.adapters.emulated_answers import count_tokens
from tightrope.adapters.emulated_calls import Calls, Later
from tightrope.adapters.emulated_desk import Desk
from tightrope.adapters.emulated_http import Connection, HttpRequest, Reply
from tightrope.adapters.emulated_paced import PacedCalls
from tightrope.adapters.emulated_truth import Setting, read_truth
from tightrope.adapters.emulated_wire import (
    Refused,
    read_request,
    read_slow,
    read_tokenize,
)
from tightrope.adapters.http_stream import Origin
from tightrope.model.errors import InvalidInput

BUILD = "tightrope-emulated"
CRASHED = 70
"""Exit status of a crash on command."""


class EmulatedEngine:
    """What one replica answers. `crash` ends the process; `clock` and `later` are its time, see `Calls`.

    Equal seeds give equal answers; `noise_seed` sets the noise of one replica apart from that of another.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        noise_seed: str = "",
        crash: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        later: Later | None = None,
    ) -> None:
        self._setting = setting
        self._crash = crash or _crash
        self._clock = clock
        self._ready_s = clock() + setting.time_scale * setting.start_s
        self._desk = Desk(
            context_tokens=setting.longest, tokens_per_chunk=setting.tokens_per_chunk, seed=setting.seed
        )
        self._calls: Calls | PacedCalls
        if setting.paced_by is not None:
            self._calls = PacedCalls(setting.paced_by, setting.truth.profile.max_sequences, self._desk)
        else:
            self._calls = Calls(setting.scaled, self._desk, noise_seed=noise_seed, clock=clock, later=later)
        self._routes = {
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/props"): self._props,
            ("GET", "/version"): self._version,
            ("GET", "/v1/models"): self._models,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/v1/chat/completions"): lambda request, reply: self._answer(
                request, reply, is_chat=True
            ),
            ("POST", "/v1/completions"): lambda request, reply: self._answer(request, reply, is_chat=False),
            ("POST", "/emulated/slow"): self._slow,
            ("POST", "/emulated/hang"): self._hang,
            ("POST", "/emulated/resume"): self._resume,
            ("POST", "/emulated/crash"): self._die,
        }

    def connection(self) -> Connection:
        """The protocol of one more client."""
        return Connection(self._handle)

    def _handle(self, request: HttpRequest, reply: Reply) -> None:
        try:
            self._route(request)(request, reply)
        except Refused as refused:
            reply.send(refused.status, refused.body)

    def _route(self, request: HttpRequest) -> Callable[[HttpRequest, Reply], None]:
        found = self._routes.get((request.method, request.path))
        if found is None:
            methods = [method for method, path in self._routes if path == request.path]
            if methods:
                raise Refused(405, f"{request.path} takes {' or '.join(methods)}, not {request.method}")
            raise Refused(
                404, f"there is no {request.path}; there are {', '.join(path for _, path in self._routes)}"
            )
        if request.path.startswith("/emulated/"):
            if not request.is_local:
                raise Refused(403, "faults are taken from this machine only: ask over the loopback address")
        elif self._clock() < self._ready_s:
            raise Refused(503, "the engine is starting", kind="unavailable_error")
        return found

    # --- answers -----------------------------------------------------------------------------------------

    def _answer(self, request: HttpRequest, reply: Reply, *, is_chat: bool) -> None:
        asked = read_request(request.body, is_chat)
        if asked.model != self._setting.name:
            message = f"the model {asked.model!r} does not exist; this engine serves {self._setting.name!r}"
            raise Refused(404, message, "model", "model_not_found")
        self._calls.begin(asked, reply)

    def _tokenize(self, request: HttpRequest, reply: Reply) -> None:
        count = count_tokens(read_tokenize(request.body))
        reply.send(
            200,
            msgspec.json.encode(
                {"count": count, "max_model_len": self._setting.longest, "tokens": list(range(count))}
            ),
        )

    # --- what it says of itself --------------------------------------------------------------------------

    def _health(self, _: HttpRequest, reply: Reply) -> None:
        reply.send(200, b'{"status":"ok"}')

    def _version(self, _: HttpRequest, reply: Reply) -> None:
        reply.send(200, msgspec.json.encode({"version": BUILD}))

    def _props(self, _: HttpRequest, reply: Reply) -> None:
        props = {
            "total_slots": self._setting.truth.profile.max_sequences,
            "default_generation_settings": {"n_ctx": self._setting.longest},
            "build_info": BUILD,
        }
        reply.send(200, msgspec.json.encode(props))

    def _models(self, _: HttpRequest, reply: Reply) -> None:
        model = {
            "id": self._setting.name,
            "object": "model",
            "created": 0,
            "owned_by": BUILD,
            "max_model_len": self._setting.longest,
        }
        reply.send(200, msgspec.json.encode({"object": "list", "data": [model]}))

    def _metrics(self, _: HttpRequest, reply: Reply) -> None:
        """The gauges and counters that routers read, under the names that vLLM gives them."""
        occupied = self._calls.occupancy()
        values = (
            ("num_requests_running", "gauge", occupied.running),
            ("num_requests_waiting", "gauge", occupied.waiting),
            ("kv_cache_usage_perc", "gauge", occupied.kv_tokens / self._setting.truth.profile.kv_tokens),
            ("prompt_tokens_total", "counter", self._desk.prompt_tokens),
            ("generation_tokens_total", "counter", self._desk.output_tokens),
            ("request_success_total", "counter", self._desk.answered),
        )
        label = msgspec.json.encode(self._setting.name).decode()
        lines = "".join(
            f"# TYPE vllm:{name} {kind}\nvllm:{name}{{model_name={label}}} {value}\n"
            for name, kind, value in values
        )
        reply.send(200, lines.encode(), "text/plain; version=0.0.4")

    # --- faults on command -------------------------------------------------------------------------------

    def _slow(self, request: HttpRequest, reply: Reply) -> None:
        factor = read_slow(request.body)
        self._calls.slow_down(factor)
        reply.send(200, msgspec.json.encode({"factor": factor}))

    def _hang(self, _: HttpRequest, reply: Reply) -> None:
        self._calls.hang()
        reply.send(200, b'{"hangs":true}')

    def _resume(self, _: HttpRequest, reply: Reply) -> None:
        self._calls.resume()
        reply.send(200, b'{"hangs":false,"factor":1.0}')

    def _die(self, _request: HttpRequest, _reply: Reply) -> None:
        self._crash()


def _crash() -> None:
    print("crashed, as it was told to", file=sys.stderr, flush=True)
    os._exit(CRASHED)


@asynccontextmanager
async def listening(engine: EmulatedEngine, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve on a port (0: any free one) while the block runs; the value is like `http://127.0.0.1:8191`."""
    server = await asyncio.get_running_loop().create_server(engine.connection, host, port)
    try:
        yield f"http://{host}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


# --- the process -----------------------------------------------------------------------------------------


def main() -> int:
    """Serve until SIGTERM or SIGINT; status 2 for options that cannot be used."""
    parser = option_parser()
    options = parser.parse_args()
    try:
        setting = setting_of(options)
    except InvalidInput as error:
        parser.error(str(error))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(_serve(setting, options.host, options.port))
        except OSError as error:
            print(f"cannot listen on {options.host}:{options.port}: {error.strerror}", file=sys.stderr)
            return 1


def option_parser() -> argparse.ArgumentParser:
    """The options of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m tightrope.adapters.engine_emulated", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", required=True, help="the name under which it lists its model")
    parser.add_argument(
        "--truth", required=True, help="a file with what is emulated as JSON, or the JSON itself"
    )
    parser.add_argument(
        "--time-scale", type=float, default=1.0, help="how many times as long everything takes"
    )
    parser.add_argument("--tokens-per-chunk", type=int, default=1, help="tokens in an event of a stream")
    parser.add_argument("--start-up", type=float, default=0.0, help="seconds for which /health says 503")
    parser.add_argument(
        "--noise", type=float, help="relative standard deviation of a step; default: the truth's"
    )
    parser.add_argument("--context", type=int, help="tokens that prompt and answer may have together")
    parser.add_argument(
        "--paced-by",
        help="the address of a llama.cpp server: tokens come in the moments in which it makes them",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the lengths of answers and of the noise")
    return parser


def setting_of(options: argparse.Namespace) -> Setting:
    """What the options say. Raises InvalidInput that names the one that cannot be used."""
    try:
        truth = read_truth(options.truth)
    except InvalidInput as error:
        raise InvalidInput(f"--truth: {error}") from error
    for name, is_wrong, need in (
        ("--time-scale", not 0 < options.time_scale <= 1e6, "above 0"),
        ("--tokens-per-chunk", options.tokens_per_chunk < 1, "at least 1"),
        ("--start-up", not 0 <= options.start_up <= 1e6, "at least 0 seconds"),
        ("--noise", options.noise is not None and not 0 <= options.noise < 1, "from 0 to below 1, like 0.02"),
        ("--context", options.context is not None and options.context < 2, "at least 2 tokens"),
        ("--time-scale", options.paced_by is not None and options.time_scale != 1, "1 with --paced-by"),
        ("--start-up", options.paced_by is not None and options.start_up > 0, "0 with --paced-by"),
        ("--paced-by", not _is_address(options.paced_by), "an http:// address"),
        ("--port", not 0 <= options.port <= 65535, "from 0 to 65535"),
    ):
        if is_wrong:
            raise InvalidInput(f"{name} must be {need}")
    return Setting(
        name=options.name,
        truth=truth if options.noise is None else replace(truth, noise=options.noise),
        time_scale=options.time_scale,
        tokens_per_chunk=options.tokens_per_chunk,
        start_s=options.start_up,
        context_tokens=options.context,
        seed=options.seed,
        paced_by=options.paced_by,
    )


def _is_address(url: str | None) -> bool:
    try:
        return url is None or bool(Origin.of(url))
    except ValueError:
        return False


async def _serve(setting: Setting, host: str, port: int) -> int:
    is_over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, is_over.set)
    async with listening(EmulatedEngine(setting, noise_seed=str(port)), host, port) as root:
        print(f"listening on {root}", flush=True)
        await is_over.wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
