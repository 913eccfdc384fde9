"""OpenAI request and response shapes: bodies in, answers, stream frames and error bodies out.

Owns what is legal in a body and how bytes are put together. A chunk of an engine is spliced into a frame that
is built once a request; nothing is encoded per chunk. When bytes are sent is `stream.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from tightrope.gateway.errors import ApiError
from tightrope.gateway.merge import merged
from tightrope.model.outcome import Usage
from tightrope.runtime.client import Chunk, Message, RunInputs, RunResult, Sampling

Kind = Literal["chat", "completion"]

DEEPEST = 100
DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"

_MOST = 2**31 - 1


# --- requests --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """One decoded request. `further` are the body fields that mean nothing to the gateway itself."""

    kind: Kind
    model: str
    messages: tuple[Mapping[str, Any], ...]
    prompt: str | None
    metadata: Mapping[str, str]
    max_tokens: int | None
    temperature: float | None
    stop: tuple[str, ...]
    is_streamed: bool
    wants_usage: bool
    has_tier: bool
    further: Mapping[str, Any]


def read(kind: Kind, body: bytes) -> Ask:
    """Decode a body. Raises ApiError, for what cannot be used with its place."""
    found = _json(body)
    if found.get("priority") is not None:
        raise ApiError("ambiguous_priority", param="priority")
    shape = _Chat if kind == "chat" else _Completion
    try:
        form = msgspec.convert(found, shape)
    except msgspec.ValidationError as error:
        raise _invalid(*_place(error)) from None
    if form.stream_options is not None and not form.stream:
        raise _invalid("stream_options needs `stream: true`", "stream_options")
    _check_tier(form.service_tier)
    own = shape.__struct_fields__
    return Ask(
        kind=kind,
        model=form.model,
        messages=tuple(found["messages"]) if kind == "chat" else (),
        prompt=_prompt(form.prompt) if isinstance(form, _Completion) else None,
        metadata=form.metadata or {},
        max_tokens=form.max_completion_tokens or form.max_tokens,
        temperature=form.temperature,
        stop=(form.stop,) if isinstance(form.stop, str) else tuple(form.stop or ()),
        is_streamed=bool(form.stream),
        wants_usage=form.stream_options is not None and bool(form.stream_options.include_usage),
        has_tier=form.service_tier is not None,
        further={
            name: value
            for name, value in found.items()
            if name not in own and name not in _GATEWAY_OWNED and value is not None
        },
    )


def inputs(ask: Ask, is_workflow: bool) -> tuple[RunInputs, Sampling]:
    """What the run gets. Raises ApiError(unsupported_parameter) for what a workflow has no meaning for."""
    if is_workflow:
        _refuse_further(ask)
        messages = tuple(_workflow_message(index, raw) for index, raw in enumerate(ask.messages))
        extra: Mapping[str, str] = {}
    else:
        messages = tuple(_model_message(raw) for raw in ask.messages)
        extra = {name: _text(value) for name, value in ask.further.items()}
    return (
        RunInputs(messages=messages, prompt=ask.prompt, metadata=ask.metadata),
        Sampling(max_tokens=ask.max_tokens, temperature=ask.temperature, stop=ask.stop, extra=extra),
    )


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None


class _Form(msgspec.Struct):
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=_MOST)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1, le=_MOST)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=16)] | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class _Chat(_Form, kw_only=True):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]


class _Completion(_Form, kw_only=True):
    prompt: str | list[Any]


# Read elsewhere or replaced, and never given to an engine as they come.
_GATEWAY_OWNED = frozenset({"cache_salt", "nvext", "priority"})

# Values that say what a workflow does anyway.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "echo": (False,),
    "store": (False,),
    "top_p": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


class _Twice(ValueError):
    """A key that stands twice in one object."""


def _json(body: bytes) -> dict[str, Any]:
    """The object in a body: strict JSON in UTF-8 without NaN, numbers out of range, lone surrogates, repeated
    keys, and depth beyond DEEPEST."""
    try:
        found = msgspec.json.decode(body)
        if _is_deep(body, found):
            raise _invalid(f"the JSON is nested deeper than {DEEPEST}")
        # msgspec is strict about everything but this.
        _UNIQUE.decode(body.decode())
    except _Twice as error:
        raise _invalid(f"the key {str(error)[:40]!r} stands twice in one object") from None
    except RecursionError:
        raise _invalid(f"the JSON is nested deeper than {DEEPEST}") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise _invalid(f"the body is not JSON that can be read: {error}") from None
    if not isinstance(found, dict):
        raise _invalid("the body is not a JSON object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))


_UNIQUE = json.JSONDecoder(object_pairs_hook=_unique)


def _is_deep(body: bytes, found: Any) -> bool:
    # Counting brackets is much cheaper than walking, and decides nearly always.
    if body.count(b"[") + body.count(b"{") <= DEEPEST:
        return False
    level: list[Any] = [found]
    for _ in range(DEEPEST):
        level = [child for item in level for child in _children(item)]
        if not level:
            return False
    return True


def _children(item: Any) -> list[Any]:
    inside = item.values() if isinstance(item, dict) else item
    return (
        [child for child in inside if isinstance(child, (dict, list))]
        if isinstance(item, (dict, list))
        else []
    )


def _invalid(cause: str, param: str | None = None) -> ApiError:
    return ApiError("invalid_request", cause, param=param)


def _place(error: msgspec.ValidationError) -> tuple[str, str | None]:
    """msgspec writes `what - at `$.field[0]``: the sentence, and the field as OpenAI names it."""
    what, _, at = str(error).partition(" - at `")
    param = at.removesuffix("`").removeprefix("$").removeprefix(".")
    if not param and "field `" in what:
        param = what.partition("field `")[2].partition("`")[0]
    return (f"{what} at {param}" if param else what), param or None


def _check_tier(tier: str | None) -> None:
    if tier not in (None, "auto", "default"):
        raise ApiError("unsupported_parameter", "only the tiers auto and default exist", param="service_tier")


def _prompt(prompt: str | list[Any]) -> str:
    if isinstance(prompt, list):
        if len(prompt) != 1 or not isinstance(prompt[0], str):
            raise ApiError(
                "unsupported_parameter", "prompt is one text, no list and no tokens", param="prompt"
            )
        return prompt[0]
    return prompt


def _refuse_further(ask: Ask) -> None:
    for name, value in ask.further.items():
        # bool and int compare equal, so the kind is compared too.
        if not any(
            value == known and isinstance(value, bool) == isinstance(known, bool)
            for known in _NEUTRAL.get(name, ())
        ):
            raise ApiError("unsupported_parameter", f"a workflow does not know {name[:80]}", param=name[:80])


def _workflow_message(index: int, raw: Mapping[str, Any]) -> Message:
    place = f"messages[{index}]"
    for name, value in raw.items():
        if name not in ("role", "content") and value is not None:
            raise ApiError(
                "unsupported_parameter", f"a workflow does not know {place}.{name[:80]}", param=place
            )
    content = raw.get("content")
    if isinstance(content, str):
        return Message(raw["role"], content)
    if content is None:
        raise _invalid("a message without content", f"{place}.content")
    texts = [part.get("text") for part in content if part.get("type") == "text"]
    if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
        raise ApiError("unsupported_parameter", "a workflow reads text only", param=f"{place}.content")
    return Message(raw["role"], "\n".join(texts))


def _model_message(raw: Mapping[str, Any]) -> Message:
    further = {name: _text(value) for name, value in raw.items() if name not in ("role", "content")}
    content = raw.get("content")
    if isinstance(content, str):
        return Message(raw["role"], content, further=further)
    return Message(raw["role"], _text(content), is_json=True, further=further)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# --- answers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Label:
    """What stands around every answer to one request. `created_s` is a Unix time."""

    kind: Kind
    run: str
    model: str
    created_s: int
    has_tier: bool = False

    def head(self, suffix: str) -> bytes:
        """The beginning of an answer's object, up to its `choices`."""
        name, prefix = (
            ("chat.completion", "chatcmpl-") if self.kind == "chat" else ("text_completion", "cmpl-")
        )
        head: dict[str, object] = {
            "id": prefix + self.run,
            "object": name + (suffix if self.kind == "chat" else ""),
            "created": self.created_s,
            "model": self.model,
        }
        if self.has_tier:
            head["service_tier"] = "default"
        return msgspec.json.encode(head)[:-1] + b',"choices":'


def answer(label: Label, result: RunResult, is_workflow: bool) -> bytes:
    """The body of an answer that is not streamed."""
    choices = [] if is_workflow else merged(result.pieces)
    choices = choices or [_text_choice(label.kind, result)]
    return b"".join(
        (label.head(""), msgspec.json.encode(choices), b',"usage":', _usage(result.finish.usage), b"}")
    )


def _text_choice(kind: Kind, result: RunResult) -> dict[str, object]:
    said: dict[str, object] = (
        {"message": {"role": "assistant", "content": result.text}}
        if kind == "chat"
        else {"text": result.text}
    )
    return {"index": 0, **said, "logprobs": None, "finish_reason": result.finish_reason}


def models(names: Mapping[str, int]) -> bytes:
    """The body of GET /v1/models: what may be called, each with the Unix time it was made."""
    rows = [
        {"id": name, "object": "model", "created": created_s, "owned_by": "tightrope"}
        for name, created_s in names.items()
    ]
    return msgspec.json.encode({"object": "list", "data": rows})


def error_body(error: ApiError, usage: Usage | None = None) -> bytes:
    """`{"error": {message, type, param, code}}`, with usage where tokens were spent on a broken stream."""
    said: dict[str, object] = {
        "message": error.message,
        "type": error.entry.type,
        "param": error.param.encode(errors="replace").decode() if error.param is not None else None,
        "code": error.entry.code,
    }
    if usage is not None:
        said["usage"] = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.output_tokens}
    return msgspec.json.encode({"error": said})


class Frames:
    """The frames of one stream, as the official client expects them; the first says the role."""

    def __init__(self, label: Label, *, wants_usage: bool, is_workflow: bool) -> None:
        self._label = label
        # The output node of a workflow speaks chat, whatever the client speaks.
        self._is_spliced = label.kind == "chat" or not is_workflow
        self._head = b"data: " + label.head(".chunk")
        self._tail = b',"usage":null}\n\n' if wants_usage else b"}\n\n"
        self._wants_usage = wants_usage
        self._is_role_said = label.kind != "chat"
        self._is_reason_said = False

    def of(self, chunk: Chunk) -> bytes:
        """The frame of a chunk; b"" for one that says nothing a client would see, like the engine's usage."""
        self._is_reason_said = self._is_reason_said or chunk.finish_reason is not None
        choices = chunk.choices
        if not self._is_spliced:
            choices = (
                self._of_text(chunk.text, chunk.finish_reason) if chunk.text or chunk.finish_reason else b"[]"
            )
        elif b"\n" in choices:
            # A line feed inside JSON is only layout, but it would end the event.
            choices = choices.translate(None, b"\r\n")
        if choices == b"[]":
            return b""
        return b"".join((self._role(choices), self._head, choices, self._tail))

    def closing(self, usage: Usage) -> bytes:
        """The end of a stream that succeeded."""
        parts: list[bytes] = []
        if not self._is_reason_said:
            end = self._of_text("", "stop")
            parts += (self._role(end), self._head, end, self._tail)
        if self._wants_usage:
            parts += (self._head, b'[],"usage":', _usage(usage), b"}\n\n")
        return b"".join((*parts, DONE))

    def failed(self, error: ApiError, usage: Usage) -> bytes:
        """The end of a stream that broke: one event, and no [DONE]."""
        return b"data: " + error_body(error, usage) + b"\n\n"

    def _of_text(self, text: str, reason: str | None) -> bytes:
        said: dict[str, object] = {"text": text}
        if self._label.kind == "chat":
            said = {"delta": {"content": text} if text else {}}
        return msgspec.json.encode([{"index": 0, **said, "logprobs": None, "finish_reason": reason}])

    def _role(self, first: bytes) -> bytes:
        """A frame that says the role, where the first piece of the engine does not."""
        if self._is_role_said:
            return b""
        self._is_role_said = True
        return b"" if b'"role"' in first else b"".join((self._head, _ROLE, self._tail))


_ROLE = b'[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'


def _usage(usage: Usage) -> bytes:
    return msgspec.json.encode(
        {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.prompt_tokens + usage.output_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        }
    )
