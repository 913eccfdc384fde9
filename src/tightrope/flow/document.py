"""The YAML form of a workflow, read and written. What the keys mean is `reader.py`."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from tightrope.flow.node_reader import DEFAULT_MAX_TOKENS, REQUEST
from tightrope.flow.places import parse_yaml, render_problem
from tightrope.flow.reader import read_tree
from tightrope.flow.references import write_binding
from tightrope.flow.shapes import ANY_JSON, short_form
from tightrope.model.errors import InvalidWorkflow, Problem
from tightrope.model.json import Json
from tightrope.model.slo import Slo
from tightrope.model.units import format_ratio, format_seconds, ratio, seconds
from tightrope.model.workflow import (
    RETRIED_BY_DEFAULT,
    Binding,
    CodeCall,
    InputSpec,
    ModelCall,
    Node,
    OnError,
    Prompt,
    PromptKind,
    Retry,
    Switch,
    Timeouts,
    Workflow,
)

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*( \| [A-Za-z][A-Za-z0-9_.-]*)*|[0-9]+(\.[0-9]+)?(ms|s|%)")
"""Texts that are nothing but texts to every reader of YAML, unless they are among _WORDS."""
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n", "inf", "nan"})


def read_workflow(text: str, *, source: str, base: Path) -> Workflow:
    """The workflow that a YAML text describes; prompt files are relative to `base`.

    Raises InvalidWorkflow with every problem and its place in the text; `source` names the text there when it
    has no name of its own.
    """
    placed = parse_yaml(text)
    if placed.tree is None and placed.problems:
        raise InvalidWorkflow(source, placed.problems)
    reading = read_tree(placed.tree if placed.tree is not None else {}, base)
    problems = placed.located((*placed.problems, *reading.problems))
    if problems:
        raise InvalidWorkflow(reading.workflow.name or source, problems)
    return reading.workflow


def located(problems: Iterable[Problem], text: str) -> tuple[Problem, ...]:
    """Problems found in a workflow after it was read, with their places in its YAML text, in order."""
    return parse_yaml(text).located(problems)


def explain_problems(error: InvalidWorkflow, *, source: str, text: str) -> str:
    """Every problem under its line, for people."""
    return "\n\n".join(render_problem(problem, source, text) for problem in error.problems)


def write_workflow(workflow: Workflow) -> str:
    """The YAML text of a workflow. Read again beside the same prompt files it gives an equal workflow."""
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 1 << 20
    yaml.allow_unicode = True
    out = io.StringIO()
    yaml.dump(_quoted(_tree(workflow)), out)
    return out.getvalue()


# --- writing ---------------------------------------------------------------------------------------------


def _tree(workflow: Workflow) -> dict[str, Json]:
    tree: dict[str, Json] = {"workflow": workflow.name}
    if workflow.slo != Slo():
        tree["slo"] = _slo(workflow.slo)
    if workflow.inputs:
        tree["input"] = {spec.name: _input(spec) for spec in workflow.inputs}
    if workflow.switches:
        tree["switch"] = {switch.id: _switch(switch) for switch in workflow.switches}
    tree["nodes"] = {node.id: _node(node) for node in workflow.nodes}
    tree["output"] = workflow.output
    return tree


def _slo(slo: Slo) -> Json:
    tree: dict[str, Json] = {}
    for key, value_s in (("ttft", slo.ttft_s), ("tpot", slo.tpot_s), ("e2e", slo.e2e_s)):
        if value_s is not None:
            tree[key] = _duration(value_s)
    tree["attain"] = _share(slo.attain)
    return tree


def _input(spec: InputSpec) -> Json:
    tree: dict[str, Json] = {"from": spec.source}
    if spec.default is not None:
        tree["default"] = json.loads(spec.default)
    return tree


def _switch(switch: Switch) -> Json:
    tree: dict[str, Json] = {}
    if switch.case is not None:
        tree["case"] = f"{switch.case.switch}.{switch.case.case}"
    for case in switch.cases:
        guard: dict[str, Json] = {"else": True} if case.guard is None else {"when": case.guard}
        tree[case.name] = {**guard, "p": _share(case.probability)}
    return tree


def _node(node: Node) -> Json:
    tree: dict[str, Json] = {}
    if node.case is not None:
        tree["case"] = f"{node.case.switch}.{node.case.case}"
    match node.work:
        case ModelCall():
            tree |= _model_call(node.work)
        case CodeCall(function, idempotent):
            tree["code"] = function
            if idempotent:
                tree["idempotent"] = True
    if node.fan_out is not None:
        tree |= {"foreach": str(node.fan_out.over), "max_items": node.fan_out.max_items}
        if node.fan_out.overflow != "fail":
            tree["overflow"] = node.fan_out.overflow
    if node.inputs:
        tree["inputs"] = {name: _binding(binding) for name, binding in node.inputs}
    if node.after:
        tree["after"] = [str(step) for step in node.after]
    return tree | _limits(node)


def _limits(node: Node) -> dict[str, Json]:
    tree: dict[str, Json] = {}
    if node.timeouts != Timeouts():
        tree["timeout"] = _timeout(node.timeouts)
    if node.retry != Retry():
        tree["retry"] = _retry(node.retry)
    if node.on_error != OnError():
        value = node.on_error.value
        tree["on_error"] = node.on_error.action if value is None else {"value": json.loads(value)}
    return tree


def _model_call(call: ModelCall) -> dict[str, Json]:
    tree: dict[str, Json] = {"llm": call.model, **_prompt(call.prompt)}
    if call.shape == ANY_JSON:
        tree["format"] = "json"
    elif call.shape is not None:
        tree["out"] = short_form(call.shape)
    if call.max_tokens != DEFAULT_MAX_TOKENS:
        tree["max_tokens"] = call.max_tokens
    if call.fallback is not None:
        tree["fallback"] = call.fallback
    if call.temperature is not None:
        tree["temperature"] = call.temperature
    if call.stop:
        tree["stop"] = list(call.stop)
    if call.stream:
        tree["stream"] = True
    return tree


def _prompt(prompt: Prompt) -> dict[str, Json]:
    match prompt.kind:
        case PromptKind.MESSAGES:
            return {"messages": REQUEST}
        case PromptKind.COMPLETION:
            return {"prompt": {"from": REQUEST}}
        case PromptKind.TEMPLATE:
            tree: dict[str, Json] = {"prompt": prompt.text if prompt.file is None else {"file": prompt.file}}
            return tree | ({"system": prompt.system} if prompt.system else {})


def _binding(binding: Binding) -> Json:
    text = write_binding(binding)
    if binding.gather is None:
        return text
    tree: dict[str, Json] = {"gather": text}
    if binding.gather.minimum is not None:
        tree["min"] = binding.gather.minimum
    if binding.gather.within_s is not None:
        tree["within"] = _duration(binding.gather.within_s)
    return tree


def _timeout(limits: Timeouts) -> Json:
    if limits.attempt_s is not None and limits == Timeouts(attempt_s=limits.attempt_s):
        return _duration(limits.attempt_s)
    value_by_key = {
        "queue": limits.queue_s,
        "attempt": limits.attempt_s,
        "total": limits.total_s,
        "idle": limits.idle_s,
    }
    return {key: _duration(value_s) for key, value_s in value_by_key.items() if value_s is not None}


def _retry(retry: Retry) -> Json:
    if retry.on == RETRIED_BY_DEFAULT:
        return retry.times
    return {"max": retry.times, "for": [str(kind) for kind in retry.on]}


def _duration(value_s: float) -> str:
    """The shortest text that is read as exactly this number."""
    short = format_seconds(value_s)
    return short if seconds(short) == value_s else f"{_plain(value_s)}s"


def _share(value: float) -> str:
    """The shortest text that is read as exactly this number, where there is one."""
    for digits in range(1, 18):
        text = f"{_plain(float(f'{value * 100:.{digits}g}'))}%"
        if ratio(text) == value:
            return text
    return format_ratio(value)


def _plain(value: float) -> str:
    """All digits of a number, without an exponent."""
    return format(Decimal(repr(value)), "f")


def _quoted(value: Json) -> Json:
    """The same tree with every text in quotes that a reader could take for something else."""
    match value:
        case dict():
            return {_quoted_text(key): _quoted(item) for key, item in value.items()}
        case list():
            return [_quoted(item) for item in value]
        case str():
            return _quoted_text(value)
        case _:
            return value


def _quoted_text(text: str) -> str:
    is_plain = _PLAIN.fullmatch(text) is not None and text.lower() not in _WORDS
    return str(text) if is_plain else DoubleQuotedScalarString(text)
