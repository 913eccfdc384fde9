"""One node from plain data: its kind of work, its inputs, its limits.

Owns the keys of a node. The mapping they stand in, and the cases around a node, are `reader.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path as FilePath

from tightrope.flow.fields import Fields, json_text, shown
from tightrope.flow.places import Path
from tightrope.flow.references import parse_binding, parse_case, parse_ref
from tightrope.flow.shapes import ANY_JSON, schema_of
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import ModelName, StepId
from tightrope.model.json import Json
from tightrope.model.outcome import FailureKind
from tightrope.model.workflow import (
    RETRIED_BY_DEFAULT,
    Binding,
    CodeCall,
    FanOut,
    Gather,
    ModelCall,
    Node,
    OnError,
    Prompt,
    PromptKind,
    Retry,
    Timeouts,
)

DEFAULT_MAX_TOKENS = 256
"""What a model call may answer when its node does not say."""
MAX_PROMPT_BYTES = 1 << 20
"""The longest prompt file."""

REQUEST = "request"
"""`messages: request` and `prompt: {from: request}` pass on what the client sent."""

_COMMON_KEYS = (
    "case",
    "when",
    "p",
    "inputs",
    "after",
    "foreach",
    "max_items",
    "overflow",
    "timeout",
    "retry",
    "on_error",
)
_LLM_KEYS = (
    "llm",
    "prompt",
    "system",
    "messages",
    "out",
    "format",
    "max_tokens",
    "fallback",
    "temperature",
    "stop",
    "stream",
)
_CODE_KEYS = ("code", "idempotent")
_LATER_KEYS = {
    "http": "call the service from a `code` node",
    "repeat": "write the steps out, each as its own node",
    "cache": "remove it; nothing is cached",
    "rollback": "remove it; only the output node streams",
}
_RETRIABLE = (
    FailureKind.TIMEOUT,
    FailureKind.STALLED,
    FailureKind.REPLICA_LOST,
    FailureKind.ENGINE_ERROR,
    FailureKind.BAD_OUTPUT,
    FailureKind.CODE_ERROR,
)


def node_fields(top: Fields, name: str, value: Json) -> Fields:
    """The keys of one node, with those reported that its kind of work does not have."""
    path = ("nodes", name)
    keys = value if isinstance(value, dict) else {}
    kinds = [kind for kind in ("llm", "code") if kind in keys]
    later = [key for key in _LATER_KEYS if key in keys]
    for key in later:
        message = f"`{key}` is not supported in this release"
        top.report("not_supported", (*path, key), message, _LATER_KEYS[key])
    if len(kinds) != 1 and "http" not in later:
        cure = 'give it one of `llm: <model>` and `code: "module:function"`'
        top.report(
            "missing_key" if not kinds else "bad_value",
            path,
            f"node {name!r} needs exactly one kind of work",
            cure,
        )
    own = {"llm": _LLM_KEYS, "code": _CODE_KEYS}.get(kinds[0] if kinds else "", _LLM_KEYS + _CODE_KEYS)
    if "http" in later:
        own = (*_LLM_KEYS, *_CODE_KEYS, "method", "url", "query")
    kept: Json = (
        {key: item for key, item in keys.items() if key not in later} if isinstance(value, dict) else value
    )
    what = {"llm": "a model node", "code": "a code node"}.get(kinds[0] if kinds else "", "a node")
    return Fields(kept, path, top.problems, what=what, known=(*own, *_COMMON_KEYS))


def read_node(fields: Fields, name: StepId, base: FilePath) -> Node:
    """The node; prompt files are looked for under `base`. What is wrong goes to the problems of `fields`."""
    is_call = "llm" in fields
    work = _model_call(fields, name, base) if is_call else _code_call(fields)
    retry = _retry(fields) if is_call or "code" in fields else Retry()
    after = fields.names("after", "name the nodes that come first: `after: [lookup]`")
    return Node(
        id=name,
        work=work,
        inputs=_bindings(fields),
        case=fields.parsed("case", parse_case, "write `case: route.order`"),
        after=tuple(StepId(node) for node in after),
        fan_out=_fan_out(fields),
        timeouts=_timeouts(fields),
        retry=retry,
        on_error=_on_error(fields),
    )


def _model_call(fields: Fields, name: StepId, base: FilePath) -> ModelCall:
    fallback = fields.text("fallback", "name another model") or None
    temperature = fields.number("temperature")
    if temperature is not None and temperature < 0:
        fields.report("bad_value", ("temperature",), "temperature is below 0", "give 0 or more")
    return ModelCall(
        model=ModelName(fields.text("llm", "name a model: `llm: small`")),
        prompt=_prompt(fields, name, base),
        max_tokens=fields.count("max_tokens", DEFAULT_MAX_TOKENS),
        shape=_shape(fields),
        fallback=ModelName(fallback) if fallback else None,
        temperature=temperature,
        stop=fields.names("stop", 'list the texts that end the answer: `stop: ["###"]`'),
        stream=_stream(fields),
    )


def _stream(fields: Fields) -> bool:
    if fields.raw("stream") in ("tokens", "lines", "items"):
        message = f"streaming {fields.raw('stream')} from node to node is not supported in this release"
        fields.report("not_supported", ("stream",), message, "write `stream: true` on the output node alone")
        return False
    return fields.flag("stream")


def _shape(fields: Fields) -> str | None:
    form = fields.text("format", "write text or json", "text" if "out" not in fields else "json")
    if form in ("yaml", "lines"):
        fields.report(
            "not_supported",
            ("format",),
            f"format {form} is not supported in this release",
            "use text or json",
        )
    elif form not in ("text", "json"):
        fields.report("bad_value", ("format",), f"{form!r} is not a format", "write text or json")
    out = fields.raw("out")
    if "out" not in fields:
        return ANY_JSON if form == "json" else None
    if out == "text":
        return None
    if "format" in fields and form == "text":
        fields.report(
            "bad_value", ("format",), "an answer with a shape is JSON", "write `format: json`, or remove it"
        )
    try:
        return schema_of(out)
    except InvalidInput as error:
        fields.report(
            "bad_value", ("out",), str(error), "write it like {kind: {enum: [a, b]}, notes: [string]}"
        )
        return ANY_JSON


def _prompt(fields: Fields, name: StepId, base: FilePath) -> Prompt:
    if "messages" in fields:
        if fields.raw("messages") != REQUEST:
            cure = "use `prompt` and `system`, or `messages: request` to pass on the messages of the request"
            fields.report(
                "not_supported", ("messages",), "messages cannot be spelled out in this release", cure
            )
        if "prompt" in fields or "system" in fields:
            fields.report("bad_value", ("messages",), "`messages` beside a prompt", "keep one of the two")
        return Prompt(PromptKind.MESSAGES)
    value = fields.raw("prompt")
    match value:
        case {"from": "request", **rest} if not rest:
            return Prompt(PromptKind.COMPLETION)
        case str():
            return Prompt(text=value, system=_system(fields, base))
        case {"file": str() as file, **rest} if not rest:
            text = _file_text(fields, ("prompt",), base, file)
            return Prompt(text=text, system=_system(fields, base), file=file)
        case None if "prompt" not in fields:
            file = f"prompts/{name}.txt"
            return Prompt(text=_file_text(fields, (), base, file), system=_system(fields, base), file=file)
        case _:
            cure = "write the text, `{file: prompts/answer.txt}` or `{from: request}`"
            fields.report("bad_value", ("prompt",), f"a prompt cannot be {shown(value)}", cure)
            return Prompt()


def _system(fields: Fields, base: FilePath) -> str:
    match fields.raw("system"):
        case {"file": str() as file}:
            return _file_text(fields, ("system",), base, file)
        case _:
            return fields.text("system", "write the text, or `{file: prompts/system.txt}`")


def _file_text(fields: Fields, path: Path, base: FilePath, file: str) -> str:
    """The text of a prompt file without the line end that editors add."""
    place = base / file
    try:
        if FilePath(file).is_absolute():
            raise OSError("the path is not relative to the workflow")
        if place.stat().st_size > MAX_PROMPT_BYTES:
            raise OSError(f"it is larger than {MAX_PROMPT_BYTES} bytes")
        return place.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        message = f"the prompt file {file!r} cannot be read: {why}"
        fields.report(
            "missing_prompt", path, message, f"write it beside the workflow, or give `prompt:` ({place})"
        )
        return ""


def _code_call(fields: Fields) -> CodeCall:
    function = fields.text("code", 'name a function: `code: "shop.nodes:lookup"`')
    module, colon, name = function.partition(":")
    is_path = all(part.isidentifier() for part in module.split("."))
    if "code" in fields and function and not (colon and is_path and name.isidentifier()):
        cure = "write `module:function`, a function at the top of an importable module"
        fields.report("bad_value", ("code",), f"{function!r} does not name a function", cure)
    return CodeCall(function, fields.flag("idempotent"))


# --- what every node may have ----------------------------------------------------------------------------


def _bindings(fields: Fields) -> tuple[tuple[str, Binding], ...]:
    found = []
    for name, value in fields.mapping("inputs", "`inputs`").items():
        if not name.isidentifier():
            fields.report(
                "bad_name", ("inputs", name), f"{name!r} cannot name an input", "use letters, digits and _"
            )
        is_gather = isinstance(value, dict)
        binding = _gathered(fields, name, value) if is_gather else _bound(fields, ("inputs", name), value)
        found.append((name, binding if binding is not None else Binding(())))
    return tuple(found)


def _bound(fields: Fields, path: Path, value: Json) -> Binding | None:
    cure = "name what it reads: `input.question`, `node.field`, `a | b | null`"
    if not isinstance(value, str):
        fields.report("bad_value", path, f"an input of a node is a reference, not {shown(value)}", cure)
        return None
    try:
        return parse_binding(value)
    except InvalidInput as error:
        fields.report("bad_value", path, str(error), cure)
        return None


def _gathered(fields: Fields, name: str, value: Json) -> Binding | None:
    path = ("inputs", name)
    join = Fields(
        value, (*fields.path, *path), fields.problems, what="a gather", known=("gather", "min", "within")
    )
    minimum = join.count("min", 1) if "min" in join else None
    if minimum is not None and minimum < 0:
        join.report("bad_value", ("min",), "min is below 0", "give 0 or more")
    binding = _bound(fields, (*path, "gather"), join.raw("gather"))
    if binding is None:
        return None
    return replace(binding, gather=Gather(minimum, join.duration("within")))


def _fan_out(fields: Fields) -> FanOut | None:
    if "foreach" not in fields:
        for key in ("max_items", "overflow"):
            if key in fields:
                fields.report(
                    "missing_key",
                    (key,),
                    f"`{key}` without `foreach`",
                    "name the list: `foreach: search.hits`",
                )
        return None
    over = fields.parsed("foreach", parse_ref, "name one list: `foreach: search.hits`")
    if "max_items" not in fields:
        message = "`foreach` without `max_items`: nobody could plan for a list of any length"
        fields.report("missing_key", ("foreach",), message, "bound it: `max_items: 4`")
    overflow = fields.text("overflow", "write fail or cut", "fail")
    if overflow not in ("fail", "cut"):
        fields.report(
            "bad_value",
            ("overflow",),
            f"{overflow!r} is not a way to treat a longer list",
            "write fail or cut",
        )
    if over is None:
        return None
    return FanOut(over, fields.count("max_items", 1), "cut" if overflow == "cut" else "fail")


def _timeouts(fields: Fields) -> Timeouts:
    value = fields.raw("timeout")
    if "timeout" not in fields:
        return Timeouts()
    if not isinstance(value, dict):
        return Timeouts(attempt_s=fields.duration("timeout"))
    known = ("queue", "attempt", "total", "idle")
    limits = Fields(value, (*fields.path, "timeout"), fields.problems, what="a timeout", known=known)
    return Timeouts(*(limits.duration(key) for key in known))


def _retry(fields: Fields) -> Retry:
    value = fields.raw("retry")
    if "retry" not in fields:
        return Retry()
    if not isinstance(value, dict):
        return Retry(_not_negative(fields, "retry"))
    inner = Fields(value, (*fields.path, "retry"), fields.problems, what="a retry", known=("max", "for"))
    if "max" not in inner:
        inner.report("missing_key", (), "a retry says how often", "add `max: 1`")
    return Retry(_not_negative(inner, "max"), _retried_kinds(inner))


def _not_negative(fields: Fields, key: str) -> int:
    times = fields.count(key, 1) if key in fields else 0
    if times < 0:
        fields.report("bad_value", (key,), f"{key} is below 0", "give the number of further attempts")
    return max(0, times)


def _retried_kinds(fields: Fields) -> tuple[FailureKind, ...]:
    if "for" not in fields:
        return RETRIED_BY_DEFAULT
    kind_by_name = {**{str(kind): kind for kind in _RETRIABLE}, "5xx": FailureKind.ENGINE_ERROR}
    names = fields.names("for", f"list kinds of failure: {', '.join(kind_by_name)}")
    for name in names:
        if name not in kind_by_name:
            cure = f"use some of {', '.join(kind_by_name)}"
            fields.report(
                "bad_value", ("for",), f"{name!r} is not a failure that another attempt can mend", cure
            )
    return tuple(dict.fromkeys(kind_by_name[name] for name in names if name in kind_by_name))


def _on_error(fields: Fields) -> OnError:
    match fields.raw("on_error"):
        case "fail":
            return OnError()
        case "skip":
            return OnError("skip")
        case {"value": value, **rest} if not rest:
            return OnError("value", json_text(value))
        case None if "on_error" not in fields:
            return OnError()
        case value:
            cure = "write fail, skip or {value: ...}"
            fields.report("bad_value", ("on_error",), f"on_error cannot be {shown(value)}", cure)
            return OnError()
