"""Any OpenAI-compatible engine over HTTP: llama.cpp, vLLM, SGLang, hosted ones.

Owns the translation of requests, streams, errors and facts. Sets no limit on how long an answer takes, and
tries nothing twice. Connections are `http_stream.py`; how events are cut out of a stream is `sse.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Sequence
from contextlib import suppress

import aiohttp
import msgspec

from tightrope.adapters.http_stream import CONNECT_LIMIT_S, HttpStreams, NotHttp, Origin, head_of_post
from tightrope.adapters.sse import BLANK, FIELD, EventReader, EventTooLong
from tightrope.model.errors import EngineFailed, InvalidInput
from tightrope.model.outcome import FailureKind, Usage
from tightrope.ports import Chunk, EngineFacts, EngineRequest, Message, Take

EVENT_LIMIT_BYTES = 16 * 2**20

_ERROR_BODY_BYTES = 64 * 1024
_QUOTE_CHARACTERS = 300
_ECHO_CHARACTERS = 24


class OpenAIEngine:
    """The engine behind one base address, like `http://127.0.0.1:8191/v1`. Any number of calls at once."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._root = self._url.removesuffix("/v1")
        self._headers = {"Accept-Encoding": "identity"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._streams, self._chat, self._completion = self._calls()
        self._opened: aiohttp.ClientSession | None = None
        self._has_tokenizer = True

    async def generate(self, request: EngineRequest, take: Take) -> None:
        """Make one call. Cancelling it closes the connection at once, which cancels the request.

        Raises EngineFailed; its message quotes the engine, never the prompt.
        """
        head = self._completion if request.messages is None else self._chat
        try:
            await self._streams.post(head, _body(request), _Answer(request, take))
        except NotHttp as error:
            raise _nonsense(f"{self._url} answered with something that is not HTTP: {error}") from error
        except OSError as error:
            raise self._failed(error) from error

    async def count_tokens(self, text: str) -> int | None:
        """Tokens of `text` by the engine's tokenizer, without special tokens; None where it offers none."""
        if not self._has_tokenizer:
            return None
        # llama.cpp reads `content`, vLLM reads `prompt`; each ignores the other's field.
        body = {"content": text, "prompt": text, "add_special_tokens": False}
        try:
            async with self._session().post(
                f"{self._root}/tokenize", data=msgspec.json.encode(body), allow_redirects=False
            ) as response:
                if response.status in (400, 403, 404, 405, 422, 501):
                    self._has_tokenizer = False
                if response.status != 200:
                    return None
                counted = _decode_tokenized(await response.read())
        except (aiohttp.ClientError, OSError, msgspec.MsgspecError):
            return None
        return len(counted.tokens) if counted.count is None else counted.count

    async def facts(self) -> EngineFacts:
        """What the engine says of itself. Raises EngineFailed(REPLICA_LOST) when it cannot be reached.

        The digest is of the shape of the weights (parameters, size, quantisation), not of their values.
        """
        try:
            model = _first_model(await self._get(f"{self._url}/models"))
            props = _props(await self._get(f"{self._root}/props"))
            build = props.build_info or _version(await self._get(f"{self._root}/version"))
        except (aiohttp.ClientError, OSError) as error:
            raise self._failed(error) from error
        settings = props.default_generation_settings
        context = settings.n_ctx if settings is not None else None
        return EngineFacts(
            build=build,
            digest=_shape_digest(model.meta),
            max_sequences=props.total_slots,
            context_tokens=context or model.max_model_len,
        )

    async def close(self) -> None:
        """Close every connection; requests under way end with EngineFailed(REPLICA_LOST)."""
        await self._streams.close()
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    def _calls(self) -> tuple[HttpStreams, bytes, bytes]:
        """Connections to the engine, and what every chat and every completion begins with."""
        try:
            origin = Origin.of(self._url)
            headers = {
                **self._headers,
                "User-Agent": "tightrope",
                "Content-Type": "application/json",
                "Accept": "text/event-stream",
            }
            chat = head_of_post(origin, f"{origin.path}/chat/completions", headers)
            completion = head_of_post(origin, f"{origin.path}/completions", headers)
        except ValueError as error:
            raise InvalidInput(f"the engine at {self._url} cannot be called: {error}") from error
        return HttpStreams(origin), chat, completion

    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                # Such calls are few, and an open connection costs some engines a thread.
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_LIMIT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
            )
        return self._opened

    async def _get(self, url: str) -> bytes | None:
        async with self._session().get(url, allow_redirects=False) as response:
            return await response.read() if response.status == 200 else None

    def _failed(self, error: Exception) -> EngineFailed:
        said = str(error) or type(error).__name__
        if isinstance(error, aiohttp.ClientResponseError):
            return _nonsense(
                f"{self._url} answered with something that is not HTTP: {said[:_QUOTE_CHARACTERS]}"
            )
        return EngineFailed(
            FailureKind.REPLICA_LOST, f"the connection to {self._url} failed: {said[:_QUOTE_CHARACTERS]}"
        )


# --- the request -----------------------------------------------------------------------------------------


def _body(request: EngineRequest) -> bytes:
    # Our own fields come last and win: an `extra` must not turn streaming or usage off.
    body: dict[str, object] = {name: msgspec.Raw(value.encode()) for name, value in request.extra.items()}
    body |= {
        "model": request.model,
        "max_tokens": request.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.messages is None:
        body["prompt"] = request.prompt or ""
    else:
        body["messages"] = [_message(message) for message in request.messages]
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.stop:
        body["stop"] = request.stop
    if request.schema is not None:
        shape = {"name": "answer", "schema": msgspec.Raw(request.schema.encode()), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": shape}
    return msgspec.json.encode(body)


def _message(message: Message) -> dict[str, object]:
    content = msgspec.Raw(message.content.encode()) if message.is_json else message.content
    further = {name: msgspec.Raw(value.encode()) for name, value in message.further.items()}
    return {**further, "role": message.role, "content": content}


# --- the stream ------------------------------------------------------------------------------------------


# Not `| None`: msgspec takes a union of Raw and None for None alone.
_NOTHING = msgspec.Raw(b"")


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[msgspec.Raw] | None = None
    function_call: msgspec.Raw = _NOTHING


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Error(msgspec.Struct):
    message: str = ""
    type: str | None = None
    code: int | str | None = None


class _Frame(msgspec.Struct):
    choices: msgspec.Raw = msgspec.Raw(b"[]")
    usage: _Usage | None = None
    error: _Error | str | None = None


_decode_frame = msgspec.json.Decoder(_Frame).decode
_decode_choices = msgspec.json.Decoder(list[_Choice]).decode


class _Answer:
    """Reads one answer of an engine: its pieces, or the error it is."""

    def __init__(self, request: EngineRequest, take: Take) -> None:
        self.is_over = False
        self._request = request
        self._take = take
        self._events = EventReader(EVENT_LIMIT_BYTES)
        self._chunks = _Chunks(request)
        self._status = 0
        self._media = ""
        self._is_stream = False
        self._is_finished = False
        self._has_body = self._has_events = False
        self._refusal = bytearray()

    def head(self, status: int, media: str) -> None:
        """A stream, or an error?"""
        self._status, self._media = status, media
        self._is_stream = status == 200 and media not in ("application/json", "text/html")

    def body(self, data: bytes) -> Awaitable[None] | None:
        """Give every piece that is whole to the reader."""
        self._has_body = True
        if not self._is_stream:
            self._refusal += data
            self.is_over = len(self._refusal) >= _ERROR_BODY_BYTES
            return None
        if self.is_over:
            return None
        if self._events.is_between:
            pieces = self._chunks.at_once(data)
            if pieces:
                return self._take(pieces)
        try:
            return self._give(self._events.feed(data))
        except EventTooLong as error:
            raise _nonsense(f"the engine's answer cannot be read: {error}") from error

    def end(self, broken: OSError | None) -> None:
        """Raises EngineFailed unless the answer is whole, and OSError if the connection is to blame."""
        if not self._is_stream:
            raise _refused(self._status, self._media, bytes(self._refusal), self._request)
        if self.is_over:
            return
        rest = self._events.rest() if broken is None else None
        if rest is not None and rest.strip() == b"[DONE]":
            return
        if rest is not None and _is_json(rest):
            self._give([rest])
        # Only the closing marks of the answer can be missing then.
        if self._is_finished:
            return
        if broken is not None:
            raise broken
        if not self._has_events and rest is None and self._has_body:
            raise _nonsense("the engine answered with something that is no event stream")
        raise EngineFailed(FailureKind.REPLICA_LOST, "the engine's answer broke off before its end")

    def _give(self, events: Sequence[bytes]) -> Awaitable[None] | None:
        """Give what these events say. If one cannot be read, what came before it is given first."""
        pieces: list[Chunk] = []
        try:
            for event in events:
                self._has_events = True
                if event.strip() == b"[DONE]":
                    self.is_over = True
                    break
                piece = self._chunks.read(event)
                self._is_finished = self._is_finished or piece.finish_reason is not None
                pieces.append(piece)
        except EngineFailed as failed:
            wait = self._take(pieces) if pieces else None
            if wait is None:
                raise
            return _fail_after(wait, failed)
        return self._take(pieces) if pieces else None


async def _fail_after(wait: Awaitable[None], failed: EngineFailed) -> None:
    await wait
    raise failed


class _Chunks:
    """Reads the events of one stream.

    Engines repeat everything around `choices` from event to event, and nearly always all but the text in them. What is
    as it was before is compared, and not decoded again.
    """

    def __init__(self, request: EngineRequest) -> None:
        self._request = request
        self._before = self._after = b""
        self._until_text = self._from_text = b""
        self._choices_from = self._choices_until = 0

    def at_once(self, received: bytes) -> Sequence[Chunk]:
        """The pieces in whole events that have nothing new but their text; none if anything else is among them."""
        if not (self._until_text and received.endswith(BLANK)):
            return ()
        one = self._only_text(received)
        if one is not None:
            return (one,)
        pieces: list[Chunk] = []
        for event in received[: -len(BLANK)].split(BLANK):
            piece = self._only_text(event + BLANK)
            if piece is None:
                return ()
            pieces.append(piece)
        return pieces

    def _only_text(self, event: bytes) -> Chunk | None:
        until, beyond = self._until_text, self._from_text
        if not (event.startswith(until) and event.endswith(beyond)):
            return None
        text = _plain(event[len(until) : -len(beyond)])
        return Chunk(text, event[self._choices_from : self._choices_until], True) if text else None

    def read(self, event: bytes) -> Chunk:
        """The piece of an answer in an event. Raises EngineFailed for an error and for nonsense."""
        before, after = self._before, self._after
        if before and event.startswith(before) and event.endswith(after):
            raw = event[len(before) : len(event) - len(after)]
            if raw[:1] == b"[" and raw[-1:] == b"]":
                try:
                    # Were there anything but one list between them, this would fail.
                    choices = _decode_choices(raw)
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    pass
                else:
                    if not self._until_text:
                        self._learn_text(raw, choices)
                    return _piece(raw, choices)
        return self._read_new(event)

    def _read_new(self, event: bytes) -> Chunk:
        try:
            frame = _decode_frame(event)
            raw = bytes(frame.choices)
            if raw == b"null":
                raw = b"[]"
            choices = _decode_choices(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise _nonsense(f"the engine sent an event that is no piece of an answer: {error}") from error
        if frame.error is not None:
            raise _told_in_stream(frame.error, self._request)
        if frame.usage is None:
            self._learn(event, raw)
        return _piece(raw, choices, _usage(frame.usage))

    def _learn(self, event: bytes, raw: bytes) -> None:
        _, _, tail = event.partition(_CHOICES)
        value = tail.lstrip(b" \t\r\n:")
        if value.startswith(raw) and _CHOICES not in value:
            after = value[len(raw) :]
            self._before, self._after = event[: len(event) - len(value)], after
            self._until_text = b""

    def _learn_text(self, raw: bytes, choices: Sequence[_Choice]) -> None:
        """Keep what stands around the text of a piece that says one text and nothing else."""
        if len(choices) != 1 or choices[0].finish_reason is not None or _text(choices[0]) in ("", _PROBE):
            return
        found = _TEXT.search(raw)
        if found is None:
            return
        until, beyond = raw[: found.start(1)], raw[found.end(1) :]
        try:
            probed = _piece(raw, _decode_choices(until + _PROBE.encode() + beyond))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        # Any other text there is read as exactly that, or it is another place.
        if probed == Chunk(_PROBE, raw, True):
            self._until_text = b"".join((FIELD, self._before, until))
            self._from_text = b"".join((beyond, self._after, BLANK))
            self._choices_from = len(FIELD) + len(self._before)
            self._choices_until = -len(self._after) - len(BLANK)


_CHOICES = b'"choices"'
_TEXT = re.compile(rb'"(?:content|text)"\s*:\s*"((?:[^"\\]|\\.)*)"')
_PROBE = "another text"


def _plain(written: bytes) -> str:
    """The inside of a string of JSON that means itself; "" for anything else."""
    try:
        text = written.decode()
    except UnicodeDecodeError:
        return ""
    return text if '"' not in text and "\\" not in text and text.isprintable() else ""


def _piece(raw: bytes, choices: Sequence[_Choice], usage: Usage | None = None) -> Chunk:
    first, is_content = None, False
    for choice in choices:
        is_content = is_content or _is_content(choice)
        if first is None and choice.index == 0:
            first = choice
    if first is None:
        return Chunk("", raw, is_content, None, usage)
    return Chunk(_text(first), raw, is_content, first.finish_reason, usage)


def _text(choice: _Choice) -> str:
    if choice.text is not None:
        return choice.text
    return (choice.delta.content or "") if choice.delta is not None else ""


def _is_content(choice: _Choice) -> bool:
    delta = choice.delta
    if choice.text or (delta is not None and delta.content):
        return True
    if delta is None:
        return False
    spoken = delta.reasoning_content or delta.reasoning or delta.refusal
    return bool(spoken or delta.tool_calls) or bytes(delta.function_call) not in (b"", b"null")


def _usage(usage: _Usage | None) -> Usage | None:
    if usage is None:
        return None
    details = usage.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details is not None else 0
    return Usage(usage.prompt_tokens, usage.completion_tokens, cached)


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True


# --- errors ----------------------------------------------------------------------------------------------

_CONTEXT_WORDS = (
    "exceed_context_size", "context_length_exceeded", "context size", "context length", "context window",
    "maximum context", "max_model_len", "longest input", "is longer than the model", "too many tokens",
)  # fmt: skip


class _ErrorBody(msgspec.Struct):
    error: _Error | str | None = None
    message: str | None = None
    detail: msgspec.Raw = _NOTHING


def _refused(status: int, media: str, body: bytes, request: EngineRequest) -> EngineFailed:
    """What an answer says that is no stream."""
    error = _error_in(body[:_ERROR_BODY_BYTES])
    said = error.message or body[:_ERROR_BODY_BYTES].decode(errors="replace")
    if status == 200:
        return _nonsense(f"the engine did not stream, it sent {media}{_quote(said, request)}")
    kind = _kind(status, f"{error.type} {error.code} {said}")
    answered = "is busy, it answered" if status in (429, 503) else "answered"
    return EngineFailed(kind, f"the engine {answered} {status}{_quote(said, request)}")


def _kind(status: int, said: str) -> FailureKind:
    if status in (429, 503) or not 400 <= status < 500:
        return FailureKind.ENGINE_ERROR
    if status in (400, 413, 422) and any(words in said.lower() for words in _CONTEXT_WORDS):
        return FailureKind.CONTEXT_TOO_LONG
    return FailureKind.BAD_REQUEST


def _error_in(body: bytes) -> _Error:
    try:
        decoded = msgspec.json.decode(body, type=_ErrorBody)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _Error()
    if isinstance(decoded.error, _Error):
        return decoded.error
    detail = bytes(decoded.detail).decode(errors="replace")
    return _Error(message=decoded.error or decoded.message or detail)


def _nonsense(message: str) -> EngineFailed:
    return EngineFailed(FailureKind.ENGINE_ERROR, message)


def _told_in_stream(error: _Error | str, request: EngineRequest) -> EngineFailed:
    told = error if isinstance(error, _Error) else _Error(message=error)
    kind = FailureKind.ENGINE_ERROR
    if told.code == 400 and _kind(400, f"{told.type} {told.message}") is FailureKind.CONTEXT_TOO_LONG:
        kind = FailureKind.CONTEXT_TOO_LONG
    return EngineFailed(kind, f"the engine broke its answer off{_quote(told.message, request)}")


def _quote(said: str, request: EngineRequest) -> str:
    """`: ` and the engine's own words, cut; left out where they repeat a part of the prompt."""
    words = " ".join(said[: 4 * _QUOTE_CHARACTERS].split())[:_QUOTE_CHARACTERS]
    if not words:
        return ""
    prompts = [request.prompt or ""] if request.messages is None else [m.content for m in request.messages]
    if any(_repeats(words, prompt) for prompt in prompts):
        return " (its words repeat the prompt and are left out)"
    return f": {words}"


def _repeats(words: str, prompt: str) -> bool:
    """Whether `words` hold a short prompt whole, or a stretch of _ECHO_CHARACTERS of a longer one."""
    if len(prompt) < _ECHO_CHARACTERS:
        return len(prompt) > 3 and prompt in words
    # Pieces of half that length, every half a length: such a stretch contains at least one of them.
    half = _ECHO_CHARACTERS // 2
    return any(words[at : at + half] in prompt for at in range(0, len(words) - half + 1, half))


# --- facts -----------------------------------------------------------------------------------------------


class _Tokenized(msgspec.Struct):
    tokens: list[msgspec.Raw] = []
    count: int | None = None


class _Settings(msgspec.Struct):
    n_ctx: int | None = None


class _Props(msgspec.Struct):
    total_slots: int | None = None
    build_info: str = ""
    default_generation_settings: _Settings | None = None


class _ModelRow(msgspec.Struct):
    max_model_len: int | None = None
    meta: dict[str, int | float | str | bool | None] | None = None


class _Models(msgspec.Struct):
    data: Sequence[_ModelRow] = ()


class _Version(msgspec.Struct):
    version: str = ""


_decode_tokenized = msgspec.json.Decoder(_Tokenized).decode

# `n_ctx` is a setting of the server, not a property of the weights.
_NOT_SHAPE = frozenset({"n_ctx"})


def _props(body: bytes | None) -> _Props:
    with suppress(msgspec.MsgspecError, UnicodeDecodeError):
        return msgspec.json.decode(body or b"{}", type=_Props)
    return _Props()


def _first_model(body: bytes | None) -> _ModelRow:
    with suppress(msgspec.MsgspecError, UnicodeDecodeError):
        models = msgspec.json.decode(body or b"{}", type=_Models)
        return models.data[0] if models.data else _ModelRow()
    return _ModelRow()


def _version(body: bytes | None) -> str:
    with suppress(msgspec.MsgspecError, UnicodeDecodeError):
        return msgspec.json.decode(body or b"{}", type=_Version).version
    return ""


def _shape_digest(meta: dict[str, int | float | str | bool | None] | None) -> str:
    shape = sorted((name, value) for name, value in (meta or {}).items() if name not in _NOT_SHAPE)
    return hashlib.sha256(msgspec.json.encode(shape)).hexdigest()[:16] if shape else ""
