"""The OpenAI shapes of an emulated engine: requests read and checked, pieces and whole answers written.

Owns what a request may say and how errors look, as vLLM has them. What is answered is `emulated_answers.py`, when is
`emulated_clockwork.py`.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec

from tightrope.adapters.emulated_answers import BYTES_PER_TOKEN
from tightrope.model.json import Json

DONE = b"data: [DONE]\n\n"

_Positive = Annotated[int, msgspec.Meta(ge=1)]


class Refused(Exception):
    """A request that gets an error instead of an answer; `param` is the field that is wrong."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, kind: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, kind or "invalid_request_error", param, code or str(status))


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for an answer. `text` is all that its messages say, `last_message` the last of them.

    `limit_tokens` is None where the client sets no limit. `schema` is the shape that is asked for.
    """

    model: str
    is_chat: bool
    text: str
    last_message: str
    prompt_tokens: int
    limit_tokens: int | None
    is_streamed: bool
    includes_usage: bool
    is_endless: bool
    schema: Json | None

    def blocks(self, size_tokens: int) -> tuple[int, ...]:
        """Hashes of the full blocks of so many tokens that the prompt begins with; none for a size of 0."""
        if not size_tokens:
            return ()
        said, size = self.text.encode(), size_tokens * BYTES_PER_TOKEN
        hashes: list[int] = []
        for begin in range(0, len(said) - size + 1, size):
            hashes.append(hash((hashes[-1] if hashes else 0, said[begin : begin + size])))
        return tuple(hashes)


def read_request(body: bytes, is_chat: bool) -> Asked:
    """Raises Refused that names the field."""
    asked = _decoded(body, _Chat) if is_chat else _decoded(body, _Completion)
    _check_supported(asked)
    limit_tokens = asked.max_tokens
    if isinstance(asked, _Chat):
        texts = [_content(message, at) for at, message in enumerate(asked.messages)]
        limit_tokens = asked.max_completion_tokens or limit_tokens
        count = None
    else:
        texts, count = _prompt(asked.prompt)
    text = "".join(texts)
    options = asked.stream_options
    return Asked(
        model=asked.model,
        is_chat=is_chat,
        text=text,
        last_message=texts[-1],
        prompt_tokens=max(1, -(-len(text.encode()) // BYTES_PER_TOKEN) if count is None else count),
        limit_tokens=limit_tokens,
        is_streamed=bool(asked.stream),
        includes_usage=options is not None and bool(options.include_usage),
        is_endless=bool(asked.ignore_eos),
        schema=_schema(asked.response_format),
    )


class Frames:
    """The events of one answer and, for who wants no stream, the answer as a whole."""

    def __init__(self, number: int, asked: Asked, created_s: int) -> None:
        self._asked = asked
        name = f"{'chatcmpl' if asked.is_chat else 'cmpl'}-{number}"
        self._top = {"id": name, "object": "", "created": created_s, "model": asked.model}
        kind = "chat.completion.chunk" if asked.is_chat else "text_completion"
        head = msgspec.json.encode(self._top | {"object": kind})[:-1]
        self._usage_head = b"data: " + head + b',"choices":[],"usage":'
        opening = b'"delta":{"content":' if asked.is_chat else b'"text":'
        self._head = b"data: " + head + b',"choices":[{"index":0,' + opening
        self._end = b'}],"usage":null}\n\n' if asked.includes_usage else b"}]}\n\n"
        middle = b"}" if asked.is_chat else b""
        self._middle = middle + b',"logprobs":null,"finish_reason":'
        self._tail = self._middle + b"null" + self._end

    def first(self, text: str) -> bytes:
        """The first piece; in a chat it says who speaks."""
        if not self._asked.is_chat:
            return self.piece(text)
        role = b'"delta":{"role":"assistant",'
        return self.piece(text).replace(b'"delta":{', role, 1)

    def piece(self, text: str) -> bytes:
        """One piece of the text."""
        return self._head + msgspec.json.encode(text) + self._tail

    def finish(self, reason: str) -> bytes:
        """That the text has ended, and why."""
        return self._head + b'""' + self._middle + msgspec.json.encode(reason) + self._end

    def last(self, output_tokens: int, cached_tokens: int) -> bytes:
        """What comes after the text: its usage if that was asked for, and the mark of the end."""
        if not self._asked.includes_usage:
            return DONE
        usage = msgspec.json.encode(self._usage(output_tokens, cached_tokens))
        return self._usage_head + usage + b"}\n\n" + DONE

    def whole(self, text: str, reason: str, output_tokens: int, cached_tokens: int) -> bytes:
        """The answer in one piece."""
        is_chat = self._asked.is_chat
        said = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        kind = "chat.completion" if is_chat else "text_completion"
        usage = self._usage(output_tokens, cached_tokens)
        return msgspec.json.encode(self._top | {"object": kind, "choices": [choice], "usage": usage})

    def _usage(self, output_tokens: int, cached_tokens: int) -> dict[str, object]:
        prompt_tokens = self._asked.prompt_tokens
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": prompt_tokens + output_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        }


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> bytes:
    """An error as OpenAI shapes it."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


# --- reading ---------------------------------------------------------------------------------------------


class _Message(msgspec.Struct):
    role: str
    content: msgspec.Raw = msgspec.Raw(b"null")


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _SchemaOf(msgspec.Struct):
    schema: msgspec.Raw = msgspec.Raw(b"{}")


class _Format(msgspec.Struct):
    type: str
    json_schema: _SchemaOf | None = None


class _Common(msgspec.Struct):
    model: str
    max_tokens: _Positive | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    response_format: _Format | None = None
    ignore_eos: bool | None = None
    n: int | None = None
    logprobs: bool | int | None = None
    echo: bool | None = None
    tool_choice: msgspec.Raw = msgspec.Raw(b"null")


class _Chat(_Common, kw_only=True):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: _Positive | None = None


class _Completion(_Common, kw_only=True):
    prompt: str | list[str | int]


class _Part(msgspec.Struct):
    type: str = ""
    text: str = ""


class Tokenize(msgspec.Struct):
    """A text to count: llama.cpp calls it `content`, vLLM `prompt` or `messages`."""

    content: str | None = None
    prompt: str | None = None
    messages: list[_Message] | None = None


class Slow(msgspec.Struct):
    """How many times as long everything shall take."""

    factor: Annotated[float, msgspec.Meta(gt=0, le=1e6)]


_AT = re.compile(r" - at `\$\.?([^`]*)`")


def read_tokenize(body: bytes) -> str:
    """The text to count. Raises Refused."""
    asked = _decoded(body, Tokenize)
    if asked.messages is not None:
        return "".join(_content(message, at) for at, message in enumerate(asked.messages))
    text = asked.prompt if asked.content is None else asked.content
    if text is None:
        raise Refused(400, "there is no text to count; give it as prompt or content", "prompt")
    return text


def read_slow(body: bytes) -> float:
    """The factor. Raises Refused."""
    return _decoded(body, Slow).factor


_T = TypeVar("_T")


def _decoded(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        said = str(error)
        at = _AT.search(said)
        named = re.search(r"required field `([^`]+)`", said)
        param = ".".join(part for part in (at[1] if at else "", named[1] if named else "") if part)
        raise Refused(400, f"{param or 'the body'}: {_AT.sub('', said)}", param or None) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, f"the body is not JSON: {error}") from None


def _check_supported(asked: _Common) -> None:
    """Refuse what would change the answer and cannot be emulated, rather than ignore it."""
    if asked.n not in (None, 1):
        raise Refused(400, "an emulated engine gives one answer; leave n out", "n")
    if asked.logprobs is not None and asked.logprobs is not False:
        raise Refused(400, "an emulated engine knows no probabilities; leave logprobs out", "logprobs")
    if asked.echo:
        raise Refused(400, "an emulated engine does not repeat prompts; leave echo out", "echo")
    if bytes(asked.tool_choice) not in (b"null", b'"none"', b'"auto"'):
        raise Refused(400, "an emulated engine calls no tools; leave tool_choice out", "tool_choice")


def _content(message: _Message, at: int) -> str:
    """The text of a message; parts that are no text count as the JSON they are."""
    raw = bytes(message.content)
    if raw == b"null":
        return ""
    with suppress(msgspec.ValidationError):
        return msgspec.json.decode(raw, type=str)
    try:
        parts = msgspec.json.decode(raw, type=list[_Part])
    except msgspec.ValidationError:
        field = f"messages[{at}].content"
        raise Refused(400, f"{field}: this is neither text nor a list of parts", field) from None
    return "".join(part.text if part.type == "text" else raw.decode() for part in parts)


def _prompt(prompt: str | list[str | int]) -> tuple[list[str], int | None]:
    """The texts of a prompt, and its tokens if they are given as numbers."""
    match prompt:
        case str():
            return [prompt], None
        case [str() as only]:
            return [only], None
        case [int(), *_]:
            return [""], len(prompt)
        case _:
            raise Refused(
                400, "prompt: exactly one text, or the numbers of its tokens, can be answered", "prompt"
            )


def _schema(asked: _Format | None) -> Json | None:
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return {"type": "object"}
    if asked.type != "json_schema" or asked.json_schema is None:
        message = "response_format: its type is text, json_object, or json_schema with a json_schema"
        raise Refused(400, message, "response_format")
    schema: Json = msgspec.json.decode(asked.json_schema.schema)
    return schema
