"""Streamed pieces of a plain model put together into the choices of one whole answer.

Owns what `delta` means in OpenAI's streams: texts grow, tool calls grow by their index, log-probabilities are
appended, everything else is said once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from tightrope.runtime.client import Chunk

# Fields of a delta that come in parts; others are whole each time they come.
_GROWING = frozenset({"content", "refusal", "reasoning_content", "reasoning"})


def merged(pieces: Iterable[Chunk]) -> list[dict[str, Any]]:
    """The choices, by index, as a server that does not stream would have sent them."""
    choice_by_index: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        for part in msgspec.json.decode(piece.choices):
            index = part.get("index", 0)
            choice = choice_by_index.setdefault(
                index, {"index": index, "logprobs": None, "finish_reason": None}
            )
            _add_part(choice, part)
    for choice in choice_by_index.values():
        if "tool_calls" in choice.get("message", {}):
            choice["message"]["tool_calls"] = list(choice["message"]["tool_calls"].values())
    return [choice_by_index[index] for index in sorted(choice_by_index)]


def _add_part(choice: dict[str, Any], part: dict[str, Any]) -> None:
    for name, value in part.items():
        if name == "delta":
            _add_delta(choice.setdefault("message", {"role": "assistant", "content": None}), value or {})
        elif name == "text":
            choice["text"] = choice.get("text", "") + (value or "")
        elif name == "logprobs" and value is not None:
            _add_lists(choice, value)
        elif value is not None:
            choice[name] = value


def _add_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if value is None:
            continue
        if name in _GROWING:
            message[name] = (message.get(name) or "") + value
        elif name == "tool_calls":
            _add_tool_calls(message.setdefault("tool_calls", {}), value)
        elif name == "function_call":
            _add_function(message.setdefault("function_call", {}), value)
        else:
            message[name] = value


def _add_tool_calls(call_by_index: dict[int, dict[str, Any]], parts: list[dict[str, Any]]) -> None:
    for part in parts:
        call = call_by_index.setdefault(part.get("index", 0), {})
        for name, value in part.items():
            if name == "function":
                _add_function(call.setdefault("function", {}), value or {})
            elif name != "index" and value is not None:
                call[name] = value


def _add_function(function: dict[str, Any], part: dict[str, Any]) -> None:
    if part.get("name"):
        function["name"] = part["name"]
    function["arguments"] = function.get("arguments", "") + (part.get("arguments") or "")


def _add_lists(choice: dict[str, Any], logprobs: dict[str, Any]) -> None:
    if choice["logprobs"] is None:
        choice["logprobs"] = {}
    known = choice["logprobs"]
    for name, value in logprobs.items():
        known[name] = (
            [*(known.get(name) or []), *value] if isinstance(value, list) else known.get(name, value)
        )
