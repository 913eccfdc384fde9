"""YAML text as plain JSON values that remember where they stand, and problems drawn under their line.

Reads the YAML 1.2 core schema from the parser's events: only `true` and `false` are booleans, there are no
dates, and tags, anchors and aliases are refused. What the values mean is left to the readers of the tree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from tightrope.model.errors import Problem
from tightrope.model.json import Json

Path = tuple[str, ...]
"""The way into a tree: keys, and indices as decimal text."""

MAX_CHARACTERS = 1 << 18
"""A longer text is refused unread."""
MAX_DEPTH = 64
"""Deeper nesting ends the reading: the parser's work grows with the square of the depth."""

_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]{1,300}|0o[0-7]{1,300}|0x[0-9a-fA-F]{1,300}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_TOKEN = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^']|'')*'|[^\s,:{}\[\]]+|\S")


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a text; line and column count from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class PlacedTree:
    """One YAML document: its values, what is wrong with its text, and where everything stands."""

    tree: Json
    problems: tuple[Problem, ...] = ()
    key_places: Mapping[Path, Place] = field(default_factory=dict)
    value_places: Mapping[Path, Place] = field(default_factory=dict)
    scalars: frozenset[Path] = frozenset()

    def place(self, path: Path, *, of_key: bool = False) -> Place | None:
        """Where to point for `path`: a scalar itself, else the key that holds it, else its surroundings.

        `of_key` points at the key in any case. None when the text holds nothing.
        """
        for length in range(len(path), -1, -1):
            here = path[:length]
            if here in self.scalars and not of_key:
                return self.value_places[here]
            if here in self.key_places:
                return self.key_places[here]
            if here in self.value_places:
                return self.value_places[here]
        return None

    def located(self, problems: Iterable[Problem]) -> tuple[Problem, ...]:
        """The problems with line and column filled in where they were not, in the order of the text."""
        found = [self._located(problem) for problem in problems]
        return tuple(sorted(found, key=lambda problem: (problem.line, problem.column)))

    def _located(self, problem: Problem) -> Problem:
        if problem.line:
            return problem
        place = self.place(problem.path, of_key=problem.code in ("unknown_key", "not_supported"))
        return replace(problem, line=place.line, column=place.column) if place is not None else problem


def parse_yaml(text: str) -> PlacedTree:
    """Read one document. Never raises for a bad text: what is wrong with it is in `problems`."""
    if len(text) > MAX_CHARACTERS:
        message = f"the text has {len(text)} characters; at most {MAX_CHARACTERS} are read"
        return PlacedTree(None, (Problem("not_yaml", (), message, "split the document", line=1, column=1),))
    walk = _Walk(YAML(typ="safe", pure=True).parse(text))
    try:
        tree = walk.document()
    except _Unreadable as error:
        return PlacedTree(None, (*walk.problems, error.problem))
    except MarkedYAMLError as error:
        return PlacedTree(None, (*walk.problems, _syntax_problem(error)))
    except (YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        return PlacedTree(None, (Problem("not_yaml", (), said, "write it as YAML 1.2", line=1, column=1),))
    return PlacedTree(tree, tuple(walk.problems), walk.key_places, walk.value_places, frozenset(walk.scalars))


def render_problem(problem: Problem, source: str, text: str) -> str:
    """The problem as people read it: place, code, sentence, the line with carets, cause and cure."""
    place = f"{source}:{problem.line}:{problem.column}" if problem.line else source
    parts = [f"{place}  {problem.code}: {problem.message}"]
    lines = text.splitlines()
    if 0 < problem.line <= len(lines):
        parts += _snippet(lines[problem.line - 1], problem.line, problem.column)
    if problem.cause:
        parts.append(f"   cause: {problem.cause}")
    parts.append(f"   next:  {problem.cure}")
    return "\n".join(parts)


def unknown_key(path: Path, known: Iterable[str], what: str) -> Problem:
    """`path` ends in a key that `what` does not know; the cure names the nearest one."""
    names = list(known)
    key = path[-1]
    near = nearest(key, names)
    return Problem(
        "unknown_key",
        path,
        f'"{key}" is not a key of {".".join(path[:-1]) or "the document"}',
        f'write "{near}"' if near else "remove it",
        cause=f"{what} knows {', '.join(names)}",
    )


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like `name`, if any comes near."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return close[0] if close else None


# --- from events to values -------------------------------------------------------------------------------


class _Unreadable(Exception):
    """The text is such that reading on makes no sense."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class _Walk:
    """One pass over the events of a text."""

    def __init__(self, events: Iterator[Event]) -> None:
        self.problems: list[Problem] = []
        self.key_places: dict[Path, Place] = {}
        self.value_places: dict[Path, Place] = {}
        self.scalars: set[Path] = set()
        self._events = events

    def document(self) -> Json:
        tree: Json = None
        seen = 0
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                seen += 1
                if seen > 1:
                    self._refuse((), event, "a second document in one text", "remove the second `---`")
                    return tree
                tree = self._value(next(self._events), ())
        return tree

    def _value(self, event: Event, path: Path) -> Json:
        self.value_places[path] = _place(event)
        if getattr(event, "anchor", None) is not None:
            self._refuse(path, event, "an anchor or an alias", "write the value out where it is used")
        tag = getattr(event, "tag", None)
        if tag is not None:
            self._refuse(path, event, f"the tag {tag}", "remove it: values are plain data")
        match event:
            case ScalarEvent():
                return self._scalar(event, path)
            case MappingStartEvent():
                return self._mapping(event, path)
            case SequenceStartEvent():
                return self._sequence(event, path)
            case _:
                return None

    def _mapping(self, start: Event, path: Path) -> Json:
        values: dict[str, Json] = {}
        self._check_depth(start, path)
        for event in self._events:
            if isinstance(event, MappingEndEvent):
                break
            key = self._key(event, path)
            if key is None or key in values:
                if key is not None:
                    self._duplicate((*path, key), event)
                self._pass_over(next(self._events))
                continue
            here = (*path, key)
            self.key_places[here] = _place(event)
            values[key] = self._value(next(self._events), here)
        return values

    def _sequence(self, start: Event, path: Path) -> Json:
        values: list[Json] = []
        self._check_depth(start, path)
        for event in self._events:
            if isinstance(event, SequenceEndEvent):
                break
            values.append(self._value(event, (*path, str(len(values)))))
        return values

    def _key(self, event: Event, path: Path) -> str | None:
        if isinstance(event, ScalarEvent) and event.anchor is None and event.tag is None:
            return str(event.value)
        self._refuse(path, event, "a key that is not plain text", "write the key as one word")
        self._pass_over(event)
        return None

    def _scalar(self, event: ScalarEvent, path: Path) -> Json:
        self.scalars.add(path)
        text = str(event.value)
        if any("\ud800" <= char <= "\udfff" for char in text):
            self._refuse(path, event, "half of a surrogate pair", "write the whole character")
            return ""
        if event.style is not None:
            return text
        if _NULL.fullmatch(text):
            return None
        if _BOOL.fullmatch(text):
            return text.lower() == "true"
        if _INT.fullmatch(text):
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if _NOT_FINITE.fullmatch(text) or (_FLOAT.fullmatch(text) and not math.isfinite(float(text))):
            self._refuse(path, event, f"{text} is not a number one can write down", "give a finite number")
            return 0.0
        return float(text) if _FLOAT.fullmatch(text) else text

    def _pass_over(self, event: Event) -> None:
        """Leave a value out, however deep it is."""
        depth = _opens(event)
        while depth > 0:
            following = next(self._events)
            depth += _opens(following)
            if depth > MAX_DEPTH:
                self._check_depth(following, ("",) * depth)

    def _check_depth(self, event: Event, path: Path) -> None:
        if len(path) >= MAX_DEPTH:
            place = _place(event)
            message = f"nesting deeper than {MAX_DEPTH}"
            raise _Unreadable(Problem("not_yaml", path, message, "make it flatter", place.line, place.column))

    def _duplicate(self, path: Path, event: Event) -> None:
        first = self.key_places[path]
        place = _place(event)
        message = f'"{path[-1]}" stands twice in {".".join(path[:-1]) or "the document"}'
        cause = f"it was given before, in line {first.line}"
        self.problems.append(
            Problem("duplicate_key", path, message, "remove one of the two", place.line, place.column, cause)
        )

    def _refuse(self, path: Path, event: Event, message: str, cure: str) -> None:
        place = _place(event)
        self.problems.append(Problem("not_yaml", path, message, cure, place.line, place.column))


def _opens(event: Event) -> int:
    if isinstance(event, MappingStartEvent | SequenceStartEvent):
        return 1
    return -1 if isinstance(event, MappingEndEvent | SequenceEndEvent) else 0


def _place(event: Event) -> Place:
    return Place(event.start_mark.line + 1, event.start_mark.column + 1)


def _syntax_problem(error: MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    said = ", ".join(part for part in (error.context, error.problem) if part)
    cure = "check quotes, brackets and the indentation here and in the line above"
    return Problem("not_yaml", (), f"this is not YAML: {said}", cure, line, column)


def _snippet(line: str, number: int, column: int) -> Sequence[str]:
    """The line, and carets under the word at `column`."""
    word = _TOKEN.match(line, column - 1)
    carets = "^" * (len(word.group()) if word is not None else 1)
    padding = "".join("\t" if char == "\t" else " " for char in line[: column - 1])
    return [f"{number:>5} | {line}", f"      | {padding}{carets}"]
