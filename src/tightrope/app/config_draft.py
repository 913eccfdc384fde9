"""From the text of `tightrope.yaml` and the environment to the checked form, or everything that is wrong.

Owns overrides by TIGHTROPE_SECTION__KEY, secrets, the origin of every value, and the sentences for what the
form refuses. The environment is handed in. Rules between sections are `config.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tightrope.app.config_form import File, Secret
from tightrope.app.config_shape import (
    KeyPath,
    Value,
    dotted,
    frozen,
    in_force,
    keys_of,
    leaves,
    matching,
    names_at,
    section_at,
    type_at,
    value_at,
    with_value,
    without_tags,
)
from tightrope.flow.places import PlacedTree, nearest, parse_yaml
from tightrope.model.errors import Problem

PREFIX = "TIGHTROPE_"
NOT_GIVEN = "-"
"""How a value is shown that nobody gave and that has no default."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One value in force: its dotted key, its text ("(set)" for a secret), and where it came from."""

    key: str
    value: str
    origin: str


@dataclass(slots=True)
class Draft:
    """The values on their way from text to form, and what was found wrong with them."""

    file: Path
    placed: PlacedTree
    values: Value
    problems: list[Problem] = field(default_factory=list)
    variable_by_path: dict[KeyPath, str] = field(default_factory=dict)
    secrets: dict[KeyPath, str] = field(default_factory=dict)
    """Where each secret comes from; "" for one that stands in the file itself."""

    def variable_of(self, path: KeyPath) -> str | None:
        """The environment variable that set this value, or a value around it."""
        return next((name for at, name in self.variable_by_path.items() if path[: len(at)] == at), None)

    def located(self) -> list[Problem]:
        """What is wrong: first with the environment, then in the order of the text."""
        from_env = [
            problem for problem in self.problems if problem.path[:1] and problem.path[0].startswith(PREFIX)
        ]
        in_text = [problem for problem in self.problems if problem not in from_env]
        return from_env + list(dict.fromkeys(self.placed.located(in_text)))


def drafted(text: str, file: Path, env: Mapping[str, str]) -> Draft:
    """Read `text` as if it stood at `file`, and put what `env` says in its place."""
    placed = parse_yaml(text)
    draft = Draft(file, placed, frozen(placed.tree), list(placed.problems))
    if not isinstance(draft.values, dict):
        if not draft.problems:
            message = "the top of the file is no mapping of keys and values"
            draft.problems.append(Problem("bad_value", (), message, "start it with `version: 1`", 1, 1))
        draft.values = {}
        return draft
    _override(draft, env)
    _fill_secrets(draft, env)
    return draft


def validated(draft: Draft) -> File | None:
    """The form that the values fill; None after a refusal, with `draft.problems` saying why."""
    try:
        return File.model_validate(draft.values, context=draft.file.parent)
    except ValidationError as error:
        refused = [problem.path for problem in draft.problems]
        for details in error.errors(include_url=False):
            path = without_tags(File, draft.values, details["loc"])
            if path not in refused:
                draft.problems.append(_blamed(draft, path, _problem(details, path, draft.values)))
        return None


def settings(draft: Draft) -> Iterator[Setting]:
    """Every value in force with its origin; a secret shows only that it is set."""
    for path, value in in_force(File, draft.values):
        is_secret = type_at(File, draft.values, path) is Secret
        yield Setting(dotted(path), _shown(value, is_secret), _origin(draft, path, is_secret))


def unknown(
    code: str, path: KeyPath, message: str, word: str, known: Sequence[str], cause: str = ""
) -> Problem:
    """A word that is not among the known ones; the cure names the nearest."""
    near = nearest(word, known)
    if near:
        return Problem(code, path, message, f'write "{near}"', cause=cause or f"known are {', '.join(known)}")
    cure = f"write one of {', '.join(known)}" if known else "define it first"
    return Problem(code, path, message, cure if not cause else f"remove it, or {cure}", cause=cause)


# --- the environment -------------------------------------------------------------------------------------


def _override(draft: Draft, env: Mapping[str, str]) -> None:
    """Put what TIGHTROPE_SECTION__KEY says in the place of what the file says.

    A name without `__` counts only if it is a key of the top level: platforms set such variables for purposes
    of their own (a service called tightrope makes Kubernetes set TIGHTROPE_PORT).
    """
    for variable in sorted(name for name in env if name.startswith(PREFIX)):
        words = variable.removeprefix(PREFIX).split("__")
        if len(words) > 1 or matching(words[0], keys_of(File)):
            path = _path_of(draft, variable, words)
            if path:
                is_text = type_at(File, draft.values, path) is Secret
                value = env[variable] if is_text else _parsed(env[variable])
                draft.values = with_value(draft.values, path, value)
                draft.variable_by_path[path] = variable


def _path_of(draft: Draft, variable: str, words: Sequence[str]) -> KeyPath:
    """The path that the words of a variable mean; () and a problem if there is none."""
    path: KeyPath = ()
    for word in words:
        names = names_at(File, draft.values, path)
        name = matching(word, names)
        if name is None:
            message = f'"{word}" in the variable {variable} is not a key of {dotted(path) or "the file"}'
            draft.problems.append(unknown("unknown_key", (variable,), message, word.lower(), names))
            return ()
        path = (*path, name)
    return path


def _parsed(text: str) -> Value:
    placed = parse_yaml(text)
    return text if placed.problems else frozen(placed.tree)


def _fill_secrets(draft: Draft, env: Mapping[str, str]) -> None:
    """Replace `${env:NAME}` and `${file:PATH}` where a secret is expected; elsewhere they are refused."""
    for path, value in list(leaves(draft.values)):
        if not isinstance(value, str):
            continue
        source = re.fullmatch(r"\s*\$\{(env|file):([^{}]+)\}\s*", value)
        if type_at(File, draft.values, path) is Secret:
            draft.secrets[path] = source[2] if source else ""
            if source:
                _fill(draft, path, source[1], source[2], env)
        elif re.search(r"\$\{(env|file):", value):
            message = f"{dotted(path)} is not a secret, so it takes no ${{env:...}} and no ${{file:...}}"
            variable = PREFIX + "__".join(re.sub(r"[-.]", "_", part).upper() for part in path)
            cure = f"write the value, or set the variable {variable}"
            draft.problems.append(Problem("bad_value", path, message, cure))


def _fill(draft: Draft, path: KeyPath, kind: str, name: str, env: Mapping[str, str]) -> None:
    secret = env.get(name, "") if kind == "env" else _read_secret(draft.file.parent / name)
    if secret:
        draft.values = with_value(draft.values, path, secret)
    elif kind == "env":
        message = f"{dotted(path)}: the variable {name} is not set"
        draft.problems.append(Problem("secret_missing", path, message, f"set {name}"))
    else:
        message = f"{dotted(path)}: the file {name} cannot be read, or is empty"
        cure = f"write the secret into {name}, readable by its owner only"
        draft.problems.append(Problem("secret_missing", path, message, cure))


def _read_secret(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


# --- what is in force ------------------------------------------------------------------------------------


def _shown(value: Value, is_secret: bool) -> str:
    if value is None:
        return NOT_GIVEN
    if is_secret:
        return "(set)"
    if isinstance(value, bool):
        return str(value).lower()
    return "[]" if value == () else "{}" if value == {} else str(value)


def _origin(draft: Draft, path: KeyPath, is_secret: bool) -> str:
    if draft.secrets.get(path):
        return draft.secrets[path]
    written = value_at(frozen(draft.placed.tree), path)
    variable = draft.variable_of(path)
    if variable is not None:
        is_told = written is not None and not is_secret and not isinstance(written, dict | tuple)
        return variable + (f" (file says {_shown(written, is_secret)})" if is_told else "")
    place = draft.placed.value_places.get(path)
    return f"{draft.file.name}:{place.line}:{place.column}" if place else "default"


# --- sentences -------------------------------------------------------------------------------------------


def _blamed(draft: Draft, path: KeyPath, problem: Problem) -> Problem:
    variable = draft.variable_of(path)
    if variable is None:
        return problem
    return replace(problem, path=(variable,), message=f"{problem.message} (set by the variable {variable})")


def _problem(details: Any, path: KeyPath, values: Value) -> Problem:
    """What pydantic refused, as a Problem."""
    context = details.get("ctx", {})
    where = dotted(path) or "the file"
    around = dotted(path[:-1]) or "the file"
    match details["type"]:
        case code if "cure" in context:
            return Problem(
                code, path, f"{where}: {context['message']}", context["cure"], cause=context["cause"]
            )
        case "extra_forbidden":
            section = section_at(File, values, path[:-1])
            known = keys_of(section) if section is not None else []
            cause = f"{around} knows {', '.join(known)}"
            return unknown(
                "unknown_key", path, f'"{path[-1]}" is not a key of {around}', path[-1], known, cause
            )
        case "missing":
            return Problem("missing_key", path, f'{around} lacks "{path[-1]}"', f'add "{path[-1]}"')
        case "union_tag_not_found":
            cure = "add kind: llamacpp, openai or command"
            return Problem("missing_key", (*path, "kind"), f'{where} lacks "kind"', cure)
        case "literal_error":
            return _not_among(path, details["input"], str(context["expected"]))
        case "union_tag_invalid":
            return _not_among((*path, "kind"), context["tag"], str(context["expected_tags"]))
        case kind:
            return Problem("bad_value", path, _complaint(kind, details, path), _cure(kind))


def _not_among(path: KeyPath, given: object, expected: str) -> Problem:
    known = [quoted or bare for quoted, bare in re.findall(r"'([^']*)'|(\d+)", expected)]
    return unknown("bad_value", path, f'{dotted(path)} cannot be "{given}"', str(given), known)


def _complaint(kind: str, details: Any, path: KeyPath) -> str:
    where = dotted(path) or "the file"
    match kind:
        case "string_pattern_mismatch":
            given = path[-1] if details["loc"][-1] == "[key]" else details["input"]
            return f'"{given}" cannot be used here'
        case "model_type" | "mapping_type" | "dict_type":
            return f"{where} is no mapping of keys and values"
        case "tuple_type":
            return f"{where} is no list"
        case _:
            return f"{where} {details['msg'].removeprefix('Input ')}"


def _cure(kind: str) -> str:
    match kind:
        case "string_pattern_mismatch":
            return "write letters, digits, dots, underscores and hyphens, at most 64 (a path starts with /)"
        case "model_type" | "mapping_type" | "dict_type":
            return "write keys and values, like {a: 1}"
        case "tuple_type":
            return "write a list, like [a, b]"
        case "bool_type":
            return "write true or false"
        case "int_type":
            return "write a whole number without a unit"
        case "float_type":
            return "write a number without a unit"
        case "string_type":
            return "write text; put it in quotes if it looks like a number"
        case "greater_than" | "greater_than_equal":
            return "write a larger number"
        case "too_short":
            return "add at least one"
        case _:
            return "see docs/configuration.md"
