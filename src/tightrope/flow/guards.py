"""Guards: boolean expressions of the Common Expression Language over results that are already there.

Owns which part of CEL is allowed: no map, filter, timestamps, nested quantifiers or computed patterns, so
that every guard is pure and its cost bounded by its length and its data. When it is asked is the kernel's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from tightrope.model.errors import InvalidInput
from tightrope.model.json import Json

if TYPE_CHECKING:
    import cel

MAX_CHARACTERS = 1000
"""The longest guard."""
MAX_DEPTH = 64
"""The deepest value a guard may look into."""
MAX_WORK = 20_000_000
"""A bound on elementary comparisons: a guard over a huge list fails instead of holding up the runtime."""

_QUANTIFIERS = frozenset({"all", "exists", "exists_one"})
_METHODS = frozenset({"size", "contains", "startsWith", "endsWith", "matches"})
_FUNCTIONS = frozenset({"has", "size", "int", "double", "string"})
_CONSTANTS = frozenset({"true", "false", "null", "in"})
_CHARACTERS_PER_CELL = 64

_LEXER = re.compile(
    r"""
    (?P<space>\s+|//[^\n]*)
  | (?P<string>[bB]?[rR](?:\"\"\"(?s:.*?)\"\"\"|'''(?s:.*?)'''|\"[^\"\n]*\"|'[^'\n]*')
      |[bB]?(?:\"\"\"(?s:(?:\\.|[^\\])*?)\"\"\"|'''(?s:(?:\\.|[^\\])*?)'''|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'))
  | (?P<number>[0-9][0-9A-Za-z]*(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?[uU]?)
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<sign>&&|\|\||[=!<>]=|[-+*/%<>!?:,.()\[\]])
    """,
    re.VERBOSE,
)
_UNDEFINED = re.compile(r"Undefined variable or function: ('[^']*')")
_CEL_PLACE = re.compile(r"<input>:(\d+):(\d+): (?:Syntax error: )?([^\n]*)")


@dataclass(frozen=True, slots=True)
class Guard:
    """A compiled guard. `reads` are the names it uses, nodes and `input`; `fields` the ways into them."""

    text: str
    reads: tuple[str, ...]
    fields: tuple[tuple[str, ...], ...]
    outer_reads_in_quantifiers: int = field(repr=False)

    def evaluate(self, values: Mapping[str, Json]) -> bool:
        """The truth of the guard for these results; `values` needs every name in `reads`.

        Pure. Raises InvalidInput, naming the guard, when a field is missing, types do not fit, the answer is
        not a boolean or the data is too large to compare.
        """
        missing = [name for name in self.reads if name not in values]
        if missing:
            raise self._failed(f"{missing[0]!r} has no value")
        used = {name: values[name] for name in self.reads}
        self._check_size(used)
        try:
            answer = _program(self.text).execute(used)
        except KeyError as error:
            raise self._failed(f"there is no field {error}; test for it first with has(...)") from error
        except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise self._failed(_reason(str(error))) from error
        if not isinstance(answer, bool):
            raise self._failed(f"it gives {type(answer).__name__}, not true or false; compare with something")
        return answer

    def _check_size(self, used: Mapping[str, Json]) -> None:
        cells = len(self.text)
        for name, value in used.items():
            size = _cells(value)
            if size is None:
                raise self._failed(
                    f"{name} is nested deeper than {MAX_DEPTH}; compute the answer in a code node"
                )
            cells += size
        if cells + self.outer_reads_in_quantifiers * cells**2 > MAX_WORK:
            raise self._failed("there is too much data to compare; compute the answer in a code node")

    def _failed(self, why: str) -> InvalidInput:
        return InvalidInput(f"guard {self.text!r} has no answer: {why}")


def compile_guard(text: str) -> Guard:
    """Check and compile a guard. Raises InvalidInput with position and cure when it cannot be used."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidInput(
            f"the guard has {len(text)} characters, at most {MAX_CHARACTERS} are allowed: "
            "compute the answer in a code node and test its result"
        )
    tokens = _tokens(text)
    scan = _Scan(text, tokens)
    scan.check()
    try:
        _program(text)
    except ValueError as error:
        raise _not_cel(text, str(error)) from error
    return Guard(text, tuple(scan.reads), tuple(scan.fields), scan.outer_reads_in_quantifiers)


@lru_cache(maxsize=1024)
def _program(text: str) -> cel.Program:
    import cel  # it brings a command line with it, which would cost every start a second

    return cel.compile(text)


def _reason(said: str) -> str:
    """What the library says, in one sentence. A function that does not fit its value is "undefined" to it."""
    misfit = _UNDEFINED.match(said)
    if misfit is not None:
        return f"{misfit.group(1)} does not fit the value it is used on"
    return said.split("\n", maxsplit=1)[0].split(". ", maxsplit=1)[0]


def _cells(value: Json) -> int | None:
    """How much there is to look at: scalars, and long strings by their length. None when nested too deep."""
    total = 0
    open_values: list[tuple[Json, int]] = [(value, 0)]
    while open_values:
        current, depth = open_values.pop()
        if depth > MAX_DEPTH:
            return None
        total += 1
        match current:
            case str():
                total += len(current) // _CHARACTERS_PER_CELL
            case list():
                open_values += [(item, depth + 1) for item in current]
            case dict():
                open_values += [(item, depth + 1) for item in current.values()]
            case _:
                pass
    return total


# --- what a guard reads and whether it may --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


def _tokens(text: str) -> list[_Token]:
    tokens = []
    at = 0
    while at < len(text):
        found = _LEXER.match(text, at)
        if found is None:
            raise _refused(
                text, at, f"{text[at]!r} has no meaning in a guard", "compare fields with ==, <, in, &&, ||"
            )
        if found.lastgroup != "space":
            tokens.append(_Token(str(found.lastgroup), found.group(), at))
        at = found.end()
    return tokens


class _Scan:
    """One pass over the tokens: what is read, and what is refused."""

    def __init__(self, text: str, tokens: Sequence[_Token]) -> None:
        self.reads: dict[str, None] = {}
        self.fields: dict[tuple[str, ...], None] = {}
        self.outer_reads_in_quantifiers = 0
        self._text = text
        self._tokens = tokens
        self._bound: list[tuple[str, int]] = []
        self._depth = 0

    def check(self) -> None:
        for index, token in enumerate(self._tokens):
            if token.text == "(":
                self._depth += 1
            elif token.text == ")":
                self._depth -= 1
                self._bound = [(name, depth) for name, depth in self._bound if depth <= self._depth]
            elif token.text == "." and not self._ends_operand(index - 1):
                raise _refused(
                    self._text, token.at, "a `.` with nothing before it", "name the node: `node.field`"
                )
            elif token.kind == "name":
                self._name(index, token)

    def _name(self, index: int, token: _Token) -> None:
        is_member = self._text_at(index - 1) == "."
        is_called = self._text_at(index + 1) == "("
        if is_called:
            self._call(index, token, is_member)
        elif not is_member and token.text not in _CONSTANTS:
            self._variable(index, token)

    def _variable(self, index: int, token: _Token) -> None:
        if any(name == token.text for name, _ in self._bound):
            return
        if self._bound:
            self.outer_reads_in_quantifiers += 1
        self.reads[token.text] = None
        self.fields[(token.text, *self._members(index + 1))] = None

    def _members(self, index: int) -> Iterator[str]:
        """The plain fields that follow a name: `.kind.size()` gives `kind`."""
        while self._text_at(index) == "." and index + 1 < len(self._tokens):
            if self._tokens[index + 1].kind != "name" or self._text_at(index + 2) == "(":
                return
            yield self._tokens[index + 1].text
            index += 2

    def _call(self, index: int, token: _Token, is_member: bool) -> None:
        known = (_METHODS | _QUANTIFIERS) if is_member else _FUNCTIONS
        if token.text not in known:
            cure = f"use {', '.join(sorted(known))}, or compute it in a code node"
            raise _refused(self._text, token.at, f"a guard cannot call {token.text!r} here", cure)
        if token.text in _QUANTIFIERS:
            self._quantifier(index, token)
        if token.text == "matches":
            self._pattern(index, token)

    def _quantifier(self, index: int, token: _Token) -> None:
        if self._bound:
            cure = "compute the answer in a code node"
            raise _refused(self._text, token.at, f"{token.text!r} inside another quantifier", cure)
        if (
            index + 3 >= len(self._tokens)
            or self._tokens[index + 2].kind != "name"
            or self._text_at(index + 3) != ","
        ):
            cure = f"write it like `list.{token.text}(item, item.score > 3)`"
            raise _refused(self._text, token.at, f"{token.text!r} needs a name and a condition", cure)
        name = self._tokens[index + 2].text
        if name in _CONSTANTS or name == "input":
            raise _refused(
                self._text, self._tokens[index + 2].at, f"{name!r} cannot name an item", "choose another"
            )
        self._bound.append((name, self._depth + 1))

    def _pattern(self, index: int, token: _Token) -> None:
        """Patterns are literals outside loops: each is built once, from text its author wrote."""
        is_literal = index + 3 < len(self._tokens) and self._tokens[index + 2].kind == "string"
        if self._bound or not is_literal or self._text_at(index + 3) != ")":
            cure = "give the pattern as one string, outside all(), exists() and exists_one()"
            raise _refused(self._text, token.at, "`matches` with a computed or repeated pattern", cure)

    def _text_at(self, index: int) -> str:
        return self._tokens[index].text if 0 <= index < len(self._tokens) else ""

    def _ends_operand(self, index: int) -> bool:
        if index < 0 or self._tokens[index].text == "in":
            return False
        return self._tokens[index].kind in ("name", "string") or self._tokens[index].text in (")", "]")


def _not_cel(text: str, said: str) -> InvalidInput:
    found = _CEL_PLACE.search(said)
    if found is None:
        return InvalidInput(f"guard {text!r} does not parse: {said[:200]}; check brackets and operators")
    line, column, why = int(found.group(1)), int(found.group(2)), found.group(3)
    at = sum(len(part) + 1 for part in text.split("\n")[: line - 1]) + column - 1
    return _refused(text, at, why.split(" expecting ")[0], "check brackets, quotes and operators there")


def _refused(text: str, at: int, why: str, cure: str) -> InvalidInput:
    return InvalidInput(f"guard {text!r} does not parse at character {at + 1}: {why}; {cure}")
