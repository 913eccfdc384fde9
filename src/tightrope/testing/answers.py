"""Answers made from the prompt alone: the same prompt gives the same answer, everywhere and for ever.

One word is one token, so that lengths can be worked out by hand.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from random import Random

from tightrope.model.json import Json

_WORDS = [
    "amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty", "karst", "ledge",
    "maple", "north", "ocean", "petal", "quarry", "ridge", "stone", "timber", "upland", "valley", "willow",
]  # fmt: skip

_SHORTEST, _LONGEST = 8, 24
_MOST_ITEMS = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """The pieces of one answer, a token each, in order. `is_cut`: the limit came before its natural end."""

    pieces: tuple[str, ...]
    is_cut: bool

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.pieces)

    @property
    def finish_reason(self) -> str:
        """`length` or `stop`, as engines say it."""
        return "length" if self.is_cut else "stop"


def answer_to(prompt: str, max_tokens: int, schema: str | None = None) -> Answer:
    """Words drawn from the prompt's digest, or an instance of `schema`; at most `max_tokens` pieces."""
    rng = Random(hashlib.sha256(prompt.encode()).digest())
    if schema is None:
        text = " ".join(rng.choices(_WORDS, k=rng.randint(_SHORTEST, _LONGEST)))
    else:
        text = json.dumps(instance_of(json.loads(schema), rng))
    return cut(text, max_tokens)


def cut(text: str, max_tokens: int) -> Answer:
    """`text` as pieces that begin at its words, the first `max_tokens` of them."""
    pieces = pieces_of(text)
    return Answer(tuple(pieces[:max_tokens]), len(pieces) > max_tokens)


def pieces_of(text: str) -> list[str]:
    """`text` cut before each word; joined they give `text` again."""
    words = text.split(" ")
    return [words[0], *(f" {word}" for word in words[1:])] if text else []


def count_tokens(text: str) -> int:
    """Tokens of `text`: its words."""
    return len(text.split())


def instance_of(schema: Json, rng: Random) -> Json:
    """A small value that follows a JSON Schema made of types, properties, items, enum, const and bounds.

    Raises ValueError for a schema that uses anything else to say what is allowed.
    """
    if not isinstance(schema, dict):
        return None
    if "const" in schema:
        return schema["const"]
    match schema:
        case {"enum": [*values]}:
            return rng.choice(values)
        case {"anyOf": [first, *_]} | {"oneOf": [first, *_]}:
            return instance_of(first, rng)
        case {"type": [first, *_]}:
            return instance_of({**schema, "type": first}, rng)
        case {"type": "object"}:
            return _object(schema.get("properties"), rng)
        case {"type": "array"}:
            fewest, most = _bounds(schema, "minItems", "maxItems", 1, _MOST_ITEMS)
            return [instance_of(schema.get("items"), rng) for _ in range(rng.randint(fewest, most))]
        case {"type": "integer"} | {"type": "number"}:
            return rng.randint(*_bounds(schema, "minimum", "maximum", 0, 9))
        case {"type": "boolean"}:
            return rng.random() < 0.5
        case {"type": "string"}:
            return rng.choice(_WORDS)
        case {"type": "null"}:
            return None
        case _ if not schema:
            return None
        case _:
            raise ValueError(f"no instance can be made of {json.dumps(schema)[:100]}")


def _object(properties: Json, rng: Random) -> Json:
    named = properties if isinstance(properties, dict) else {}
    return {name: instance_of(schema, rng) for name, schema in named.items()}


def _bounds(schema: dict[str, Json], low: str, high: str, lowest: int, highest: int) -> tuple[int, int]:
    least, most = schema.get(low), schema.get(high)
    floor = round(least) if isinstance(least, int | float) else lowest
    if isinstance(most, int | float):
        return (floor if isinstance(least, int | float) else min(lowest, round(most))), round(most)
    return floor, max(floor, highest)
