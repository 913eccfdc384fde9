"""The Python form of a workflow: calls that note the same plain data which the YAML form holds.

Owns handles, the case a node stands in, and the lines of the calling file. What the data means is
`reader.py`, so that both forms give equal objects.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import EllipsisType, TracebackType

from tightrope.flow.node_reader import DEFAULT_MAX_TOKENS
from tightrope.flow.places import Path as TreePath
from tightrope.flow.reader import read_tree
from tightrope.flow.shapes import spelled
from tightrope.model.errors import InvalidInput, InvalidWorkflow, Problem
from tightrope.model.json import Json
from tightrope.model.slo import Slo
from tightrope.model.workflow import EACH, INPUT
from tightrope.model.workflow import Workflow as BuiltWorkflow


@dataclass(frozen=True, slots=True)
class PromptFile:
    """A prompt in a file, relative to the base of its workflow."""

    path: str


@dataclass(frozen=True, slots=True)
class Joined:
    """The successes of a fan-out, as an input of a node."""

    spelling: Mapping[str, Json]


class Value:
    """A value that a node will have: pass it on as an input, or take a field: `x.field`, `x["field"]`."""

    __slots__ = ("_flow", "_is_optional", "_refs")

    def __init__(self, flow: Workflow, refs: tuple[str, ...], is_optional: bool = False) -> None:
        self._flow = flow
        self._refs = refs
        self._is_optional = is_optional

    def __getattr__(self, name: str) -> Value:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, name: str) -> Value:
        if len(self._refs) > 1:
            raise InvalidInput("take fields before first_of: first_of(x.field, y.field)")
        return Value(self._flow, (f"{self._refs[0]}.{name}",))

    @property
    def optional(self) -> Value:
        """The same value, or null when its node was skipped. A field of this name is `x["optional"]`."""
        return Value(self._flow, self._refs, is_optional=True)

    def __repr__(self) -> str:
        return f"<{self._spelled()}>"

    def __iter__(self) -> None:
        raise TypeError(f"{self!r} has no items before the workflow runs: give it to `foreach`")

    def __bool__(self) -> bool:
        raise TypeError(f"{self!r} has no truth before the workflow runs: use a switch or `when`")

    def _spelled(self) -> str:
        return " | ".join((*self._refs, *(["null"] if self._is_optional else [])))


class CaseScope:
    """One case of a switch; nodes and switches made inside its `with` block belong to it."""

    def __init__(self, flow: Workflow, name: str) -> None:
        self._flow = flow
        self._name = name

    def __enter__(self) -> None:
        self._flow._open_cases.append(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flow._open_cases.pop()


class SwitchScope:
    """A switch under construction: cases in the order they are tried, the default last."""

    def __init__(self, flow: Workflow, name: str, cases: dict[str, Json]) -> None:
        self._flow = flow
        self._name = name
        self._cases = cases

    def case(self, name: str, *, when: str, p: str) -> CaseScope:
        """Taken when the guard `when` (CEL over finished results) holds; `p` is how often, such as `35%`."""
        return self._add(name, {"when": when, "p": p})

    def default(self, name: str, *, p: str) -> CaseScope:
        """Taken when no case before it is. Use it with `with` when it has nodes of its own."""
        return self._add(name, {"else": True, "p": p})

    def _add(self, name: str, case: dict[str, Json]) -> CaseScope:
        path = ("switch", self._name, name)
        if name in self._cases:
            raise self._flow._wrong(
                "duplicate_key", path, f"{name!r} names two cases or is taken", "rename one"
            )
        self._cases[name] = case
        self._flow._note_line(path)
        return CaseScope(self._flow, f"{self._name}.{name}")


Inputs = Mapping[str, Value | Joined]
Prompted = str | PromptFile


class Workflow:
    """A workflow under construction. `build()` gives the finished, immutable one.

    Prompt files are relative to `base`, by default the folder of the calling file. Mistakes in the graph are
    reported together by `build()`, as InvalidWorkflow with the lines of the calling file.
    """

    def __init__(self, name: str, *, slo: Slo | None = None, base: str | Path | None = None) -> None:
        self.name = name
        self._slo = slo if slo is not None else Slo()
        self._file = _calling_file()
        self._base = Path(base) if base is not None else Path(self._file).parent
        self._inputs: dict[str, Json] = {}
        self._switches: dict[str, Json] = {}
        self._nodes: dict[str, Json] = {}
        self._output: str | None = None
        self._open_cases: list[str] = []
        self._lines: dict[TreePath, int] = {}

    @property
    def each(self) -> Value:
        """The current item, among the inputs of a node with `foreach`."""
        return Value(self, (EACH,))

    def input(self, name: str, *, source: str = "input", default: Json | EllipsisType = ...) -> Value:
        """A named input. `source` is `last_user_message`, `messages`, `prompt`, `metadata.<key>` or `input`.

        Without a `default` (null is one) the input must be given.
        """
        spec: dict[str, Json] = {"from": source}
        if not isinstance(default, EllipsisType):
            spec["default"] = default
        self._add(self._inputs, ("input", name), spec)
        return Value(self, (f"{INPUT}.{name}",))

    def llm(
        self,
        name: str,
        *,
        model: str,
        inputs: Inputs | None = None,
        prompt: Prompted | None = None,
        system: Prompted | None = None,
        messages: str | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        out: object = None,
        format: str | None = None,  # noqa: A002 - the word of the YAML form
        fallback: str | None = None,
        temperature: float | None = None,
        stop: Sequence[str] = (),
        stream: bool = False,
        foreach: Value | None = None,
        max_items: int | None = None,
        overflow: str | None = None,
        after: Sequence[Value | str] = (),
        when: str | None = None,
        p: str | None = None,
        timeout: str | Mapping[str, str] | None = None,
        retry: int | Mapping[str, int | Sequence[str]] | None = None,
        on_error: str | Mapping[str, Json] | None = None,
    ) -> Value:
        """A node that asks a model. Without `prompt` its prompt is the file `prompts/<name>.txt`.

        `out` is the shape of the answer, such as `{"notes": [str]}`; without it the answer is text.
        `fallback` is another model, tried once. `messages="request"` passes on the messages of the request.
        """
        work: dict[str, object] = {
            "llm": model,
            "prompt": _prompt(prompt),
            "system": _prompt(system),
            "messages": messages,
            "max_tokens": max_tokens,
            "out": out,
            "format": format,
            "fallback": fallback,
            "temperature": temperature,
            "stop": list(stop) or None,
            "stream": stream or None,
        }
        shared = self._shared(inputs, foreach, max_items, overflow, after, when, p, timeout, retry, on_error)
        return self._node(name, work | shared)

    def code(
        self,
        name: str,
        *,
        fn: str | Callable[..., object],
        inputs: Inputs | None = None,
        idempotent: bool = False,
        foreach: Value | None = None,
        max_items: int | None = None,
        overflow: str | None = None,
        after: Sequence[Value | str] = (),
        when: str | None = None,
        p: str | None = None,
        timeout: str | Mapping[str, str] | None = None,
        retry: int | Mapping[str, int | Sequence[str]] | None = None,
        on_error: str | Mapping[str, Json] | None = None,
    ) -> Value:
        """A node that calls Python: `fn` is `module:function` or a function at the top of a module.

        Only an `idempotent` one may have `retry`.
        """
        work: dict[str, object] = {"code": fn if isinstance(fn, str) else self._function(name, fn)}
        work["idempotent"] = idempotent or None
        shared = self._shared(inputs, foreach, max_items, overflow, after, when, p, timeout, retry, on_error)
        return self._node(name, work | shared)

    def switch(self, name: str) -> SwitchScope:
        """Exclusive cases, tried in order: `with route.case(...)`, and `route.default(...)` last."""
        cases: dict[str, Json] = {}
        if self._open_cases:
            cases["case"] = self._open_cases[-1]
        self._add(self._switches, ("switch", name), cases)
        return SwitchScope(self, name, cases)

    def first_of(self, *values: Value) -> Value:
        """The first of these that was not skipped. Null when all were and the last is `.optional`."""
        if not values:
            raise InvalidInput("first_of needs at least one value")
        refs = tuple(ref for value in values for ref in self._own(value)._refs)
        return Value(self, refs, values[-1]._is_optional)

    def gather(self, value: Value, *, min: int | None = None, within: str | None = None) -> Joined:  # noqa: A002
        """The successes of a fan-out: all, or those there `within` after it began, if at least `min`."""
        spelling: dict[str, Json] = {"gather": self._own(value)._spelled()}
        if min is not None:
            spelling["min"] = min
        if within is not None:
            spelling["within"] = within
        return Joined(spelling)

    def file(self, path: str | Path) -> PromptFile:
        """A prompt file, relative to the base of this workflow."""
        return PromptFile(Path(path).as_posix())

    def output(self, node: Value) -> None:
        """The node whose answer is the answer of the workflow. There is exactly one."""
        name = self._own(node)._spelled()
        if self._output is not None:
            message = f"the output is {self._output!r} already, so it cannot be {name!r} too"
            raise self._wrong("two_outputs", ("output",), message, "let one node read both")
        if name not in self._nodes:
            raise self._wrong(
                "unknown_reference", ("output",), f"{name!r} is not a node", "give the node itself"
            )
        self._note_line(("output",))
        self._output = name

    def build(self) -> BuiltWorkflow:
        """The finished workflow. Raises InvalidWorkflow with everything that is wrong."""
        reading = read_tree(self._tree(), self._base, slo=self._slo)
        if reading.problems:
            found = sorted((self._located(problem) for problem in reading.problems), key=lambda one: one.line)
            raise InvalidWorkflow(self.name, found)
        return reading.workflow

    # --- what the calls share ---------------------------------------------------------------------------

    def _tree(self) -> Json:
        tree: dict[str, Json] = {"workflow": self.name, "nodes": self._nodes}
        if self._inputs:
            tree["input"] = self._inputs
        if self._switches:
            tree["switch"] = self._switches
        if self._output is not None:
            tree["output"] = self._output
        return tree

    def _shared(
        self,
        inputs: Inputs | None,
        foreach: Value | None,
        max_items: int | None,
        overflow: str | None,
        after: Sequence[Value | str],
        when: str | None,
        p: str | None,
        timeout: object,
        retry: object,
        on_error: object,
    ) -> dict[str, object]:
        return {
            "case": self._open_cases[-1] if self._open_cases else None,
            "inputs": {name: self._input_text(name, value) for name, value in inputs.items()}
            if inputs
            else None,
            "foreach": self._own(foreach)._spelled() if foreach is not None else None,
            "max_items": max_items,
            "overflow": overflow,
            "after": [node if isinstance(node, str) else self._own(node)._spelled() for node in after]
            or None,
            "when": when,
            "p": p,
            "timeout": timeout,
            "retry": retry,
            "on_error": on_error,
        }

    def _node(self, name: str, keys: Mapping[str, object]) -> Value:
        try:
            given: dict[str, Json] = {key: spelled(value) for key, value in keys.items() if value is not None}
        except InvalidInput as error:
            raise self._wrong("bad_value", ("nodes", name), str(error), "use plain values there") from error
        self._add(self._nodes, ("nodes", name), given)
        return Value(self, (name,))

    def _add(self, table: dict[str, Json], path: TreePath, value: Json) -> None:
        if path[-1] in table:
            raise self._wrong("duplicate_key", path, f"{path[-1]!r} is there already", "give it another name")
        self._note_line(path)
        table[path[-1]] = value

    def _input_text(self, name: str, value: object) -> Json:
        match value:
            case Value():
                return self._own(value)._spelled()
            case Joined():
                return dict(value.spelling)
            case _:
                message = f"input {name!r} is {value!r}, not a value of this workflow"
                raise self._wrong(
                    "bad_value", (), message, "write constants into the prompt, or declare an input"
                )

    def _own(self, value: Value) -> Value:
        if value._flow is not self:
            message = f"{value!r} belongs to workflow {value._flow.name!r}"
            raise self._wrong("unknown_reference", (), message, "use values of this workflow")
        return value

    def _function(self, node: str, function: Callable[..., object]) -> str:
        module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
        if module is None or getattr(sys.modules.get(module), name, None) is not function:
            message = f"{function!r} cannot be imported by its name"
            raise self._wrong(
                "bad_value", ("nodes", node), message, "define it with `def` at the top of a module"
            )
        return f"{module}:{name}"

    def _wrong(self, code: str, path: TreePath, message: str, cure: str) -> InvalidWorkflow:
        line = _calling_line(self._file)
        return InvalidWorkflow(self.name, [Problem(code, path, message, cure, line, 1 if line else 0)])

    def _note_line(self, path: TreePath) -> None:
        line = _calling_line(self._file)
        if line:
            self._lines[path] = line

    def _located(self, problem: Problem) -> Problem:
        for length in range(len(problem.path), 0, -1):
            line = self._lines.get(problem.path[:length])
            if line is not None:
                return replace(problem, line=line, column=1)
        return problem


def _prompt(prompt: Prompted | None) -> Json:
    return {"file": prompt.path} if isinstance(prompt, PromptFile) else prompt


def _calling_file() -> str:
    """The file of the nearest caller outside this one."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame.f_code.co_filename if frame is not None else "."


def _calling_line(file: str) -> int:
    """The line being executed in `file`, 0 when it is not among the callers."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename != file:
        frame = frame.f_back
    return frame.f_lineno if frame is not None else 0
