"""What is wrong with a workflow beyond its shape: guards, templates, fields, models, modules.

`content_problems` needs nothing but the workflow; `check_workflow` asks it against an installation. Whether
an SLO can be met is asked where profiles and policies are known.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase

from tightrope.flow.guards import Guard, compile_guard
from tightrope.flow.places import nearest
from tightrope.flow.shapes import check_schema
from tightrope.flow.templates import names_in
from tightrope.model.errors import InvalidInput, Problem
from tightrope.model.json import Json
from tightrope.model.workflow import (
    EACH,
    INPUT,
    CodeCall,
    ModelCall,
    Node,
    PromptKind,
    Ref,
    Workflow,
    problems,
)


def check_workflow(
    workflow: Workflow,
    *,
    models: Collection[str],
    allow_python: Sequence[str] = (),
    import_functions: bool = False,
) -> list[Problem]:
    """Everything that keeps the workflow from running here, shape included; empty if it can.

    `models` are the names that exist, `allow_python` patterns of modules that code nodes may name. With
    `import_functions` allowed modules are imported to see whether the functions are there.
    """
    found = problems(workflow)
    if not found:
        found += content_problems(workflow)
    for node in workflow.nodes:
        match node.work:
            case ModelCall():
                found += _model_problems(node.work, ("nodes", node.id), models)
            case CodeCall():
                found += _code_problems(node.work, ("nodes", node.id, "code"), allow_python, import_functions)
    return found


def content_problems(workflow: Workflow) -> list[Problem]:
    """Guards that do not compile or read what is not there, templates and shapes that cannot be used."""
    shapes = _Shapes(workflow)
    found: list[Problem] = []
    for switch in workflow.switches:
        for case in switch.cases:
            if case.guard is not None:
                found += _guard_problems(
                    case.guard, ("switch", switch.id, case.name, "when"), workflow, shapes
                )
    for node in workflow.nodes:
        found += _field_problems(node, shapes)
        if isinstance(node.work, ModelCall):
            found += _prompt_problems(node, node.work)
            found += _shape_problems(node.work, ("nodes", node.id, "out"))
    return found


# --- guards ----------------------------------------------------------------------------------------------


def _guard_problems(text: str, path: tuple[str, ...], workflow: Workflow, shapes: _Shapes) -> list[Problem]:
    try:
        guard = compile_guard(text)
    except InvalidInput as error:
        message, _, cure = str(error).rpartition("; ")
        return [Problem("guard_invalid", path, message or str(error), cure or "write it as CEL")]
    return [*_unknown_names(guard, path, workflow), *_unknown_fields(guard, path, workflow, shapes)]


def _unknown_names(guard: Guard, path: tuple[str, ...], workflow: Workflow) -> Iterator[Problem]:
    nodes = [str(node.id) for node in workflow.nodes]
    inputs = [spec.name for spec in workflow.inputs]
    for way in guard.fields:
        name, rest = way[0], way[1:]
        if name == INPUT and rest and rest[0] not in inputs:
            yield Problem(
                "missing_input",
                path,
                f"input.{rest[0]} is not an input of the workflow",
                _cure(rest[0], inputs),
            )
        elif name != INPUT and name not in nodes:
            yield Problem(
                "unknown_reference", path, f"the guard reads {name!r}, which is no node", _cure(name, nodes)
            )


def _unknown_fields(
    guard: Guard, path: tuple[str, ...], workflow: Workflow, shapes: _Shapes
) -> Iterator[Problem]:
    nodes = {str(node.id) for node in workflow.nodes}
    for way in guard.fields:
        name, rest = way[0], way[1:]
        if name not in nodes:
            continue
        if shapes.schema(Ref(name)) != {"type": "string"}:
            yield from shapes.problem(Ref(name, rest), path, None)
        elif rest != ("text",):
            message = f"{name} answers in plain text, which a guard sees as the field `text` of {name}"
            yield Problem("guard_invalid", path, message, f'write "{name}.text"')


# --- fields of shaped answers ----------------------------------------------------------------------------


class _Shapes:
    """What is known about the values of a workflow: the schema of each node that has one."""

    def __init__(self, workflow: Workflow) -> None:
        self._schema_by_node: dict[str, Json] = {}
        for node in workflow.nodes:
            schema = _schema_of_answer(node)
            if schema is not None:
                self._schema_by_node[node.id] = schema

    def problem(self, ref: Ref, path: tuple[str, ...], node: Node | None) -> Iterator[Problem]:
        """The field of `ref` that cannot exist, if any. `node` is the reader; `each` is one of its items."""
        if ref.source == EACH and node is not None and node.fan_out is not None:
            over = node.fan_out.over
            schema = _item(self.schema(over))
        else:
            schema = self._schema_by_node.get(ref.source)
        way = ref.source
        for key in ref.path:
            wrong = _wrong_step(schema, key, way)
            if wrong is not None:
                yield Problem("unknown_reference", path, *wrong)
                return
            schema = _step(schema, key)
            way = f"{way}.{key}"

    def schema(self, ref: Ref) -> Json:
        """What is known about the value of a reference; None when nothing."""
        schema = self._schema_by_node.get(ref.source)
        for key in ref.path:
            schema = _step(schema, key)
        return schema


def _schema_of_answer(node: Node) -> Json:
    match node.work:
        case ModelCall(shape=None):
            single: Json = {"type": "string"}
        case ModelCall(shape=str() as shape):
            try:
                single = json.loads(shape)
            except ValueError:
                return None
        case _:
            return None
    return {"type": "array", "items": single} if node.fan_out is not None else single


def _wrong_step(schema: Json, key: str, way: str) -> tuple[str, str] | None:
    """Message and cure when a value of this schema has no `key`; None when it may have one."""
    match schema:
        case {"type": "object", "properties": dict() as fields, "additionalProperties": False} if (
            key not in fields
        ):
            return f"{way} has no field {key!r}", _cure(key, list(fields))
        case {"type": "array"}:
            return (
                f"{way} is a list, so it has no field {key!r}",
                f"read `{way}` itself, or fan out over it with `foreach`",
            )
        case {"type": "string" | "number" | "integer" | "boolean" as kind}:
            what = "plain text" if kind == "string" else f"a {kind}"
            return (
                f"{way} is {what}, so it has no field {key!r}",
                f"read `{way}` itself, or give its node a shape with `out`",
            )
        case _:
            return None


def _step(schema: Json, key: str) -> Json:
    """What is known about the field `key`; None when nothing."""
    match schema:
        case {"type": "object", "properties": dict() as fields}:
            return fields.get(key)
        case _:
            return None


def _item(schema: Json) -> Json:
    """What is known about the items of a list; None when nothing."""
    match schema:
        case {"type": "array", "items": items}:
            return items
        case _:
            return None


def _field_problems(node: Node, shapes: _Shapes) -> Iterator[Problem]:
    for name, binding in node.inputs:
        for ref in binding.refs:
            yield from shapes.problem(ref, ("nodes", node.id, "inputs", name), node)
    if node.fan_out is None:
        return
    path = ("nodes", node.id, "foreach")
    yield from shapes.problem(node.fan_out.over, path, None)
    match shapes.schema(node.fan_out.over):
        case {"type": str() as kind} if kind != "array":
            message = f"{node.fan_out.over} is not a list but {kind}"
            yield Problem("bad_value", path, message, "name a list, such as a field declared as [string]")


# --- prompts and shapes ----------------------------------------------------------------------------------


def _prompt_problems(node: Node, call: ModelCall) -> Iterator[Problem]:
    if call.prompt.kind is not PromptKind.TEMPLATE:
        return
    given = [name for name, _ in node.inputs]
    for key, text in (("prompt", call.prompt.text), ("system", call.prompt.system)):
        path = ("nodes", node.id, key)
        try:
            names = names_in(text)
        except InvalidInput as error:
            message, _, cure = str(error).rpartition(". ")
            yield Problem("bad_value", path, message, cure)
            continue
        place = f" ({call.prompt.file})" if key == "prompt" and call.prompt.file else ""
        for name in names:
            if name not in given:
                message = f"the {key}{place} inserts {name!r}, which {node.id} does not have"
                cure = f"add it under `inputs` of {node.id} (there: {', '.join(given) or 'none'})"
                yield Problem("missing_input", path, message, cure)


def _shape_problems(call: ModelCall, path: tuple[str, ...]) -> Iterator[Problem]:
    if call.shape is None:
        return
    try:
        check_schema(call.shape)
    except InvalidInput as error:
        message, _, cure = str(error).rpartition("; ")
        yield Problem("bad_value", path, message or str(error), cure or "correct the schema")


# --- this installation -----------------------------------------------------------------------------------


def _model_problems(call: ModelCall, path: tuple[str, ...], models: Collection[str]) -> Iterator[Problem]:
    for key, name in (("llm", call.model), ("fallback", call.fallback)):
        if name is not None and name not in models:
            yield Problem(
                "unknown_model", (*path, key), f"there is no model {str(name)!r}", _cure(name, sorted(models))
            )


def _code_problems(
    call: CodeCall, path: tuple[str, ...], allow_python: Sequence[str], import_functions: bool
) -> Iterator[Problem]:
    module, _, name = call.function.partition(":")
    if not any(fnmatchcase(module, pattern) for pattern in allow_python):
        allowed = ", ".join(allow_python) or "none"
        yield Problem(
            "module_not_allowed",
            path,
            f"code nodes may not name the module {module!r}",
            f"add a pattern for it to workflows.allow_python (there: {allowed})",
        )
    elif import_functions:
        yield from _import_problems(module, name, path)


def _import_problems(module: str, name: str, path: tuple[str, ...]) -> Iterator[Problem]:
    try:
        loaded = importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - a user's module may raise anything while it is imported
        why = f"{type(error).__name__}: {error}"
        yield Problem(
            "function_missing", path, f"{module!r} cannot be imported: {why}", "make it importable here"
        )
        return
    if callable(getattr(loaded, name, None)):
        return
    functions = [key for key, value in vars(loaded).items() if callable(value) and not key.startswith("_")]
    yield Problem("function_missing", path, f"{module!r} has no function {name!r}", _cure(name, functions))


def _cure(name: str, known: Sequence[str]) -> str:
    near = nearest(name, known)
    return f'write "{near}"' if near else f"name one of: {', '.join(known) or 'none there'}"
