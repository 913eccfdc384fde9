"""What an emulated engine says: how many tokens a call brings, and their text.

A prompt may order it, anywhere in its last message: `<emulate tokens="8" text='{"kind": "order"}'/>`; the last such
directive counts. Without one the length is drawn from the seed and the prompt, so that every replica would give the
same answer. Here a token is four bytes of text. How requests and answers look on the wire is `emulated_wire.py`.
"""

from __future__ import annotations

import html
import re
import zlib
from dataclasses import dataclass
from math import exp
from random import Random

import msgspec

from tightrope.adapters.emulated_instance import instance_of
from tightrope.model.errors import InvalidInput
from tightrope.model.json import Json

BYTES_PER_TOKEN = 4
TYPICAL_SHARE = 0.4
"""Mean length of an answer as a part of its limit, as in the benchmark's workflows."""
TYPICAL_TOKENS = 200.0
"""Mean length of an answer where the limit is wide."""
SPREAD = 0.4
"""Sigma of the lognormal lengths."""

# Three letters and a space each: one token.
_WORDS = (
    "the sea was low and all the men who had set out for the bay saw how far off the fog lay one had his cap off "
    "but ate ham and rye two did row the big old tub her red oar dug and dug yet the ebb ran out too "
)
_DIRECTIVE = re.compile(r"""<emulate\b((?:[^<>"']|"[^"]*"|'[^']*')*)/>""")
_ATTRIBUTE = re.compile(r"""\s*([A-Za-z]+)\s*=\s*(?:"([^"]*)"|'([^']*)')\s*""")
_EXAMPLE = """write it like <emulate tokens="8" text='{"kind": "order"}'/>"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said, in `tokens` pieces of about the same size. `is_cut`: it would have gone on but for its limit."""

    text: str
    tokens: int
    is_cut: bool

    def piece(self, begin: int, end: int) -> str:
        """The text of the tokens from number `begin` up to `end`; together they are the whole text."""
        return self.text[self._place(begin) : self._place(end)]

    def _place(self, token: int) -> int:
        return -(-token * len(self.text) // self.tokens)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a directive orders; None where it leaves it open."""

    tokens: int | None = None
    text: str | None = None


def count_tokens(text: str) -> int:
    """Tokens of a text: one for every four bytes of UTF-8 that are begun."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def answer_to(
    last_message: str, limit_tokens: int, seed: int, *, schema: Json | None = None, is_endless: bool = False
) -> Answer:
    """The answer, of at least one and at most `limit_tokens` tokens; up to the limit if `is_endless`.

    A directive with a text wins over the schema. Raises InvalidInput for a directive or a schema that nothing can
    be made of.
    """
    wish = _wish(last_message)
    rng = Random(zlib.crc32(last_message.encode()) ^ seed << 32)
    text = wish.text
    if text is None and schema is not None:
        text = msgspec.json.encode(instance_of(schema, rng)).decode()
    if text is not None:
        return _said(text, wish.tokens or max(1, count_tokens(text)), limit_tokens)
    tokens = limit_tokens if is_endless else wish.tokens or _drawn(limit_tokens, rng)
    begin = rng.randrange(len(_WORDS) // BYTES_PER_TOKEN)
    said = min(tokens, limit_tokens)
    return Answer(_filler(begin, said), said, is_cut=tokens >= limit_tokens)


def _drawn(limit_tokens: int, rng: Random) -> int:
    mean = min(TYPICAL_SHARE * limit_tokens, TYPICAL_TOKENS)
    return max(1, round(mean * exp(rng.gauss(0.0, SPREAD) - SPREAD * SPREAD / 2)))


def _filler(begin: int, tokens: int) -> str:
    """Words from the paper, from word number `begin` on."""
    copies = 1 + (begin + tokens) * BYTES_PER_TOKEN // len(_WORDS)
    return (_WORDS * copies)[BYTES_PER_TOKEN * begin : BYTES_PER_TOKEN * (begin + tokens)]


def _said(text: str, tokens: int, limit_tokens: int) -> Answer:
    """A given text; of one that is too long its beginning."""
    whole = Answer(text, tokens, is_cut=False)
    if tokens <= limit_tokens:
        return whole
    return Answer(whole.piece(0, limit_tokens), limit_tokens, is_cut=True)


# --- directives ------------------------------------------------------------------------------------------


def _wish(message: str) -> Wish:
    begin = message.rfind("<emulate")
    if begin < 0:
        return Wish()
    directive = _DIRECTIVE.match(message, begin)
    if directive is None:
        raise InvalidInput(f"the directive {message[begin : begin + 60]!r} does not end; {_EXAMPLE}")
    attributes = _attributes(directive[1])
    tokens, text = attributes.pop("tokens", None), attributes.pop("text", None)
    if attributes:
        raise InvalidInput(f"a directive knows tokens and text, not {next(iter(attributes))}; {_EXAMPLE}")
    return Wish(None if tokens is None else _tokens(tokens), None if text is None else html.unescape(text))


def _attributes(inside: str) -> dict[str, str]:
    found: dict[str, str] = {}
    place = 0
    while place < len(inside.rstrip()):
        match = _ATTRIBUTE.match(inside, place)
        if match is None or match[1] in found:
            raise InvalidInput(f"the directive <emulate{inside[:60]}/> cannot be read; {_EXAMPLE}")
        found[match[1]] = match[2] if match[3] is None else match[3]
        place = match.end()
    return found


def _tokens(written: str) -> int:
    if not re.fullmatch(r"[0-9]{1,7}", written) or int(written) < 1:
        raise InvalidInput(
            f"{written[:20]!r} in a directive is no number of tokens from 1 to 9999999; {_EXAMPLE}"
        )
    return int(written)
