"""A small OpenAI-compatible server with answers made from the prompt, and with faults on demand.

Run it with `python -m tightrope.testing.server --port 8191`, or in a test with `async with ScriptedServer()`.
Speaks the parts of llama.cpp's server that Tightrope uses: /health, /props, /slots, /tokenize, /v1.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal, Self

import msgspec
from aiohttp import web

from tightrope.testing.answers import Answer, answer_to, count_tokens


class Fault(msgspec.Struct, frozen=True):
    """What goes wrong, after `after_pieces` pieces of an answer (0: before anything was sent).

    `die`: the server is gone, by SIGKILL when it runs as a process. `drop`: the connection is cut. `stall`:
    silence until the client leaves. `status`: this HTTP status instead of an answer. `malformed`: an event
    that is no JSON. `nulls`: `choices` is null in one more event. `error`: an error object in the stream.
    `unfinished`: the stream ends without its closing marks. `plain`: text that is no event stream. `pause`:
    silence until the faults are cleared, then the rest of the answer. `slow`: `delay_ms` before each piece.
    It holds for the next `times` requests, None for all.
    """

    kind: Literal[
        "die",
        "drop",
        "stall",
        "status",
        "malformed",
        "nulls",
        "error",
        "unfinished",
        "plain",
        "pause",
        "slow",
    ]
    after_pieces: int = 0
    status: int = 500
    message: str = "a fault that was asked for"
    delay_ms: float = 0.0
    times: int | None = None


class _Message(msgspec.Struct):
    content: msgspec.Raw = msgspec.Raw(b'""')


class _SchemaOf(msgspec.Struct):
    schema: msgspec.Raw = msgspec.Raw(b"")


class _Format(msgspec.Struct):
    json_schema: _SchemaOf | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Asked(msgspec.Struct):
    model: str = ""
    messages: list[_Message] | None = None
    prompt: str = ""
    max_tokens: int = 16
    stream: bool = False
    stream_options: _StreamOptions | None = None
    response_format: _Format | None = None
    fault: Fault | None = None

    @property
    def text(self) -> str:
        """Everything the request says; content that is not a plain string counts as its JSON text."""
        return self.prompt if self.messages is None else "\n".join(map(_plain, self.messages))

    def answer(self) -> Answer:
        """The answer to it."""
        asked = self.response_format.json_schema if self.response_format is not None else None
        schema = bytes(asked.schema).decode() if asked is not None else ""
        return answer_to(self.text, self.max_tokens, schema or None)


class ScriptedServer:
    """The server on `host`:`port` (0: any free one) while its `async with` block runs.

    `slots` requests are answered at once, further ones wait. `delay_ms` passes before each piece. Until
    `load_s` after its start, /health says 503. `cancelled` counts requests whose client left.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        model: str = "small",
        slots: int = 4,
        context_tokens: int = 4096,
        delay_ms: float = 0.0,
        load_s: float = 0.0,
        on_die: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.fault: Fault | None = None
        self.in_flight = 0
        self.answered = 0
        self.cancelled = 0
        self._host = host
        self._port = port
        self._model = model
        self._slots = slots
        self._context_tokens = context_tokens
        self._delay_ms = delay_ms
        self._load_s = load_s
        self._on_die = on_die or self.go_away
        self._free = asyncio.Semaphore(slots)
        self._cleared = asyncio.Event()
        self._is_loaded = load_s <= 0
        self._runner: web.AppRunner | None = None

    @property
    def root(self) -> str:
        """Where the server listens, like `http://127.0.0.1:8191`."""
        return f"http://{self._host}:{self._port}"

    @property
    def url(self) -> str:
        """The base address for clients: `root` with `/v1`."""
        return f"{self.root}/v1"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 * 2**20)
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/props", self._props),
                web.get("/slots", self._slot_list),
                web.post("/tokenize", self._tokenize),
                web.post("/faults", self._set_fault),
                web.delete("/faults", self._clear_fault),
                web.get("/v1/models", self._models),
                web.post("/v1/chat/completions", self._generate),
                web.post("/v1/completions", self._generate),
            ]
        )
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        if not self._is_loaded:
            asyncio.get_running_loop().call_later(self._load_s, self._loaded)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def go_away(self) -> None:
        """Cut every connection and listen no more, as if the process had died."""
        if self._runner is None:
            return
        for site in list(self._runner.sites):
            await site.stop()
        for connection in self._runner.server.connections if self._runner.server is not None else []:
            if connection.transport is not None:
                connection.transport.abort()

    # --- what it says of itself --------------------------------------------------------------------------

    async def _health(self, _: web.Request) -> web.Response:
        if self._is_loaded:
            return web.json_response({"status": "ok"})
        return _error(503, "Loading model")

    async def _props(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "total_slots": self._slots,
                "default_generation_settings": {"n_ctx": self._context_tokens},
                "build_info": "scripted",
                "model_path": self._model,
            }
        )

    async def _slot_list(self, _: web.Request) -> web.Response:
        busy = min(self.in_flight, self._slots)
        return web.json_response([{"id": i, "is_processing": i < busy} for i in range(self._slots)])

    async def _models(self, _: web.Request) -> web.Response:
        meta = {"n_params": 1, "size": 1}
        return web.json_response(
            {"object": "list", "data": [{"id": self._model, "object": "model", "meta": meta}]}
        )

    async def _tokenize(self, request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=dict[str, msgspec.Raw])
        text = msgspec.json.decode(asked["content"], type=str)
        return web.json_response({"tokens": list(range(count_tokens(text)))})

    def _loaded(self) -> None:
        self._is_loaded = True

    # --- faults ------------------------------------------------------------------------------------------

    async def _set_fault(self, request: web.Request) -> web.Response:
        try:
            self.fault = msgspec.json.decode(await request.read(), type=Fault)
        except msgspec.MsgspecError as error:
            return _error(400, str(error))
        return web.json_response({"fault": msgspec.to_builtins(self.fault)})

    async def _clear_fault(self, _: web.Request) -> web.Response:
        self.fault = None
        self._cleared.set()
        self._cleared = asyncio.Event()
        return web.json_response({"fault": None})

    def _next_fault(self, asked: _Asked) -> Fault | None:
        if asked.fault is not None or self.fault is None:
            return asked.fault
        fault = self.fault
        if fault.times is not None:
            self.fault = msgspec.structs.replace(fault, times=fault.times - 1) if fault.times > 1 else None
        return fault

    # --- answers -----------------------------------------------------------------------------------------

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        try:
            asked = msgspec.json.decode(await request.read(), type=_Asked)
        except msgspec.MsgspecError as error:
            return _error(400, str(error))
        with self._counted():
            async with self._free:
                return await self._answer(request, asked)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.in_flight += 1
        try:
            yield
            self.answered += 1
        except (asyncio.CancelledError, ConnectionError):
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request, asked: _Asked) -> web.StreamResponse:
        if count_tokens(asked.text) >= self._context_tokens:
            return _error(
                400,
                f"the request exceeds the available context size ({self._context_tokens} tokens)",
                "exceed_context_size_error",
            )
        fault = self._next_fault(asked)
        if fault is not None and fault.kind == "status":
            return _error(fault.status, fault.message)
        if fault is not None and fault.kind == "plain":
            return web.Response(text=f"{fault.message}\n", content_type="text/plain")
        if not asked.stream:
            return self._whole(asked)
        return await self._stream(request, asked, fault)

    async def _stream(self, request: web.Request, asked: _Asked, fault: Fault | None) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        is_chat = asked.messages is not None
        answer = asked.answer()
        if fault is None or fault.kind == "slow" or fault.after_pieces:
            await response.prepare(request)
            if is_chat:
                await self._send(response, is_chat, {"role": "assistant", "content": None}, "")
        for number, piece in enumerate(answer.pieces):
            is_wrong = fault is not None and fault.after_pieces == number and fault.kind != "slow"
            if fault is not None and is_wrong and not await self._go_wrong(request, response, fault):
                return response
            await self._wait(fault)
            await self._send(response, is_chat, {"content": piece}, piece)
        await self._send(response, is_chat, {}, "", answer.finish_reason)
        if asked.stream_options is not None and asked.stream_options.include_usage:
            await self._write(response, {"choices": [], "usage": _usage(asked, answer)})
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _go_wrong(self, request: web.Request, response: web.StreamResponse, fault: Fault) -> bool:
        """Do what the fault says; True when the answer goes on after it."""
        if fault.kind == "die":
            await self._on_die()
        if fault.kind in ("die", "drop"):
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError
        if fault.kind == "stall":
            await asyncio.Event().wait()
        if not response.prepared:
            await response.prepare(request)
        match fault.kind:
            case "malformed":
                await response.write(b'data: {"choices": [{"index": 0, "delta": \n\n')
            case "error":
                told = {"code": fault.status, "message": fault.message, "type": "server_error"}
                await self._write(response, {"error": told})
            case "nulls":
                await response.write(b'data: {"choices": null}\n\n')
                return True
            case "pause":
                await self._cleared.wait()
                return True
            case _:
                pass
        await response.write_eof()
        return False

    async def _wait(self, fault: Fault | None) -> None:
        delay_ms = self._delay_ms + (fault.delay_ms if fault is not None and fault.kind == "slow" else 0.0)
        if delay_ms > 0:
            await asyncio.sleep(delay_ms / 1000)

    async def _send(
        self,
        response: web.StreamResponse,
        is_chat: bool,
        delta: dict[str, str | None],
        text: str,
        finish_reason: str | None = None,
    ) -> None:
        said: dict[str, object] = {"delta": delta} if is_chat else {"text": text}
        choice = {"index": 0, **said, "finish_reason": finish_reason}
        kind = "chat.completion.chunk" if is_chat else "text_completion"
        await self._write(response, {"object": kind, "choices": [choice]})

    async def _write(self, response: web.StreamResponse, frame: dict[str, object]) -> None:
        whole = {"id": "scripted", "created": 0, "model": self._model, **frame}
        await response.write(b"data: " + msgspec.json.encode(whole) + b"\n\n")

    def _whole(self, asked: _Asked) -> web.Response:
        answer = asked.answer()
        is_chat = asked.messages is not None
        message = {"role": "assistant", "content": answer.text}
        said: dict[str, object] = {"message": message} if is_chat else {"text": answer.text}
        return web.json_response(
            {
                "id": "scripted",
                "object": "chat.completion" if is_chat else "text_completion",
                "created": 0,
                "model": self._model,
                "choices": [{"index": 0, **said, "finish_reason": answer.finish_reason}],
                "usage": _usage(asked, answer),
            }
        )


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m tightrope.testing.server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8191)
    parser.add_argument("--model", default="small", help="the name under which it lists its model")
    parser.add_argument("--slots", type=int, default=4, help="requests answered at once")
    parser.add_argument("--context", type=int, default=4096, help="tokens of context; a word is a token")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="wait before each piece of an answer")
    parser.add_argument("--load-s", type=float, default=0.0, help="/health says 503 for so long")
    parser.add_argument("--fault", help='a fault as JSON, like \'{"kind": "die", "after_pieces": 3}\'')
    parser.add_argument(
        "--ignore-sigterm", action="store_true", help="go on after SIGTERM, as a hung engine does"
    )
    asyncio.run(_serve(parser.parse_args()))


async def _serve(options: argparse.Namespace) -> None:
    server = ScriptedServer(
        host=options.host,
        port=options.port,
        model=options.model,
        slots=options.slots,
        context_tokens=options.context,
        delay_ms=options.delay_ms,
        load_s=options.load_s,
        on_die=_die,
    )
    if options.fault:
        server.fault = msgspec.json.decode(options.fault, type=Fault)
    is_over = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, is_over.set)
    loop.add_signal_handler(signal.SIGTERM, (lambda: None) if options.ignore_sigterm else is_over.set)
    async with server:
        print(f"listening on {server.root}", flush=True)
        await is_over.wait()


async def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _plain(message: _Message) -> str:
    raw = bytes(message.content)
    with suppress(msgspec.MsgspecError):
        return msgspec.json.decode(raw, type=str)
    return raw.decode()


def _usage(asked: _Asked, answer: Answer) -> dict[str, object]:
    prompt_tokens, output_tokens = count_tokens(asked.text), len(answer.pieces)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def _error(status: int, message: str, kind: str = "server_error") -> web.Response:
    return web.json_response({"error": {"code": status, "message": message, "type": kind}}, status=status)


if __name__ == "__main__":
    main()
