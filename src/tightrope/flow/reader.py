"""A workflow from plain data: the one reader behind the Python and the YAML form.

Owns the keys of a workflow and what their values mean. Where the data came from, and where a problem stands
in a text, is known to `builder.py` and `document.py`; whether models and functions exist is asked by `check.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath

from tightrope.flow.check import content_problems
from tightrope.flow.fields import Fields, json_text, shown
from tightrope.flow.guards import compile_guard
from tightrope.flow.node_reader import node_fields, read_node
from tightrope.flow.places import Path
from tightrope.flow.references import parse_case
from tightrope.model.errors import InvalidInput, Problem
from tightrope.model.ids import StepId
from tightrope.model.json import Json
from tightrope.model.slo import Slo
from tightrope.model.units import ratio
from tightrope.model.workflow import (
    INPUT,
    Case,
    CaseRef,
    InputSpec,
    ModelCall,
    Node,
    Ref,
    Switch,
    Workflow,
    problems,
)

_WORKFLOW_KEYS = ("workflow", "slo", "input", "switch", "nodes", "output")
_SLO_KEYS = ("ttft", "tpot", "e2e", "attain")
_CASE_TAKEN, _CASE_LEFT = "run", "pass"
_INPUT_SOURCES = "last_user_message, messages, prompt, metadata.<key> or input"


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read: the workflow, as far as it could be understood, and everything that is wrong with it."""

    workflow: Workflow
    problems: tuple[Problem, ...]


def read_tree(tree: Json, base: FilePath, *, slo: Slo | None = None) -> Reading:
    """A workflow from plain data; prompt files are looked for under `base`. Never raises for bad data.

    `slo` stands in for the one that the tree does not hold.
    """
    found: list[Problem] = []
    top = Fields(tree, (), found, what="a workflow", known=_WORKFLOW_KEYS)
    nodes, sugar = _nodes(top, base)
    workflow = Workflow(
        name=top.required_text("workflow", "give it a name: `workflow: rag`"),
        nodes=_without_text_fields(nodes),
        output=StepId(top.required_text("output", "name the node that answers: `output: answer`")),
        slo=slo if slo is not None else _slo(top),
        inputs=_inputs(top),
        switches=_switches(top) + tuple(switch for switch, _ in sugar.values()),
    )
    if not nodes and isinstance(tree, dict):
        top.report("missing_key", ("nodes",), "a workflow has at least one node", "describe it under `nodes`")
    found += _beyond(found, _aliased(content_problems(workflow), sugar))
    found += _beyond(found, _aliased(problems(workflow), sugar))
    return Reading(workflow, tuple(found))


def _beyond(found: Sequence[Problem], more: Iterable[Problem]) -> list[Problem]:
    """Those of `more` that are not mere consequences of what was found: at the same place, or in the graph."""
    taken = {problem.path for problem in found if problem.code != "unknown_key"}
    is_graph_known = not any(_hides_references(path) for path in taken)
    return [
        problem
        for problem in more
        if not any(_may_follow(problem, path) for path in taken)
        and (is_graph_known or not _is_about_the_graph(problem))
    ]


def _may_follow(problem: Problem, path: Path) -> bool:
    """True when something wrong at `path` may be all there is to `problem`."""
    if problem.path == path:
        return True
    if problem.path != path[: len(problem.path)] or _is_about_the_graph(problem):
        return False
    return problem.code != "cases_not_100" or path[-1] != "when"


def _hides_references(path: Path) -> bool:
    """True when a problem at `path` leaves a reference or a whole step unknown."""
    match path:
        case ("nodes", _, "inputs" | "foreach" | "after" | "case" | "when", *_) | ("nodes", _):
            return True
        case ("switch" | "output" | "nodes", *rest):
            return path[0] != "nodes" or not rest
        case _:
            return False


def _is_about_the_graph(problem: Problem) -> bool:
    is_about_a_step = len(problem.path) == 2 or problem.path[2:] == ("inputs",)
    return problem.code in ("cycle", "unreachable_node") and is_about_a_step


def _aliased(found: Iterable[Problem], sugar: Mapping[StepId, tuple[Switch, StepId]]) -> list[Problem]:
    """Problems of a switch that stands for `when:` point at that key."""
    moved = []
    for problem in found:
        match problem.path:
            case ("switch", switch, *_) if switch in sugar:
                moved.append(replace(problem, path=("nodes", sugar[StepId(switch)][1], "when")))
            case _:
                moved.append(problem)
    return moved


# --- the workflow ----------------------------------------------------------------------------------------


def _slo(top: Fields) -> Slo:
    if "slo" not in top:
        return Slo()
    fields = Fields(
        top.raw("slo"), (*top.path, "slo"), top.problems, what="the SLO of a workflow", known=_SLO_KEYS
    )
    attain = fields.share("attain")
    return Slo(
        ttft_s=fields.duration("ttft"),
        tpot_s=fields.duration("tpot"),
        e2e_s=fields.duration("e2e"),
        attain=attain if attain is not None else Slo().attain,
    )


def _inputs(top: Fields) -> tuple[InputSpec, ...]:
    specs = []
    for name, value in top.mapping("input", "`input`").items():
        fields = Fields(value, ("input", name), top.problems, what="an input", known=("from", "default"))
        source = fields.text("from", f"write one of {_INPUT_SOURCES}", "input")
        if not _is_input_source(source):
            fields.report(
                "bad_value",
                ("from",),
                f"{source!r} is not part of a request",
                f"write one of {_INPUT_SOURCES}",
            )
        if not name.isidentifier():
            fields.report("bad_name", (), f"{name!r} cannot name an input", "use letters, digits and _")
        default = json_text(fields.raw("default")) if "default" in fields else None
        specs.append(InputSpec(name, source, default))
    return tuple(specs)


def _is_input_source(source: str) -> bool:
    kind, dot, key = source.partition(".")
    if kind == "metadata":
        return bool(dot and key)
    return source in ("last_user_message", "messages", "prompt", "input")


def _switches(top: Fields) -> tuple[Switch, ...]:
    return tuple(_switch(top, name, value) for name, value in top.mapping("switch", "`switch`").items())


def _switch(top: Fields, name: str, value: Json) -> Switch:
    path = ("switch", name)
    cases_value = value if isinstance(value, dict) else {}
    if not isinstance(value, dict) or not value:
        cure = "give it cases: `order: {when: ..., p: 40%}`, the last one `{else: true, p: ...}`"
        top.report("bad_value", path, f"a switch is a mapping of cases, not {shown(value)}", cure)
    outer = None
    if "case" in cases_value:
        outer = Fields(value, path, top.problems, what="a switch", known=tuple(cases_value)).parsed(
            "case",
            parse_case,
            "name the case around this switch: `case: route.order`; no case can be called `case`",
        )
    cases = tuple(
        _case(top, (*path, case), case, cases_value[case]) for case in cases_value if case != "case"
    )
    return Switch(StepId(name), cases, _reads(cases), outer)


def _case(top: Fields, path: Path, name: str, value: Json) -> Case:
    fields = Fields(value, path, top.problems, what="a case", known=("when", "else", "p"))
    if not name.isidentifier():
        fields.report("bad_name", (), f"{name!r} cannot name a case", "use letters, digits and _")
    is_default = fields.flag("else")
    if is_default == ("when" in fields):
        fields.report(
            "guard_invalid",
            (),
            f"case {name!r} needs a guard or `else`",
            "give it `when: ...` or `else: true`",
        )
    if "p" not in fields:
        fields.report(
            "missing_key", (), f"case {name!r} has no probability", "say how often it is taken: `p: 40%`"
        )
    guard = (
        None if is_default else fields.text("when", "write a condition in quotes: 'intent.kind == \"order\"'")
    )
    return Case(name, guard, fields.share("p") or 0.0)


def _reads(cases: Iterable[Case]) -> tuple[StepId, ...]:
    """The nodes the guards use. A guard that does not compile reads nothing; `check.py` reports it."""
    reads: dict[StepId, None] = {}
    for case in cases:
        if case.guard is None:
            continue
        try:
            guard = compile_guard(case.guard)
        except InvalidInput:
            continue
        reads.update((StepId(name), None) for name in guard.reads if name != INPUT)
    return tuple(reads)


# --- nodes -----------------------------------------------------------------------------------------------


def _nodes(top: Fields, base: FilePath) -> tuple[tuple[Node, ...], dict[StepId, tuple[Switch, StepId]]]:
    """The nodes, and the switches that stand for `when:` on one of them, with that node."""
    nodes = []
    sugar: dict[StepId, tuple[Switch, StepId]] = {}
    for name, value in top.mapping("nodes", "`nodes`").items():
        fields = node_fields(top, name, value)
        node = read_node(fields, StepId(name), base)
        if "when" in fields:
            switch = _sugar_switch(fields, node)
            sugar[switch.id] = (switch, node.id)
            node = replace(node, case=CaseRef(switch.id, _CASE_TAKEN))
        elif "p" in fields:
            fields.report(
                "missing_key", ("p",), "`p` without `when`", "say when the node runs, or remove `p`"
            )
        nodes.append(node)
    return tuple(nodes), sugar


def _sugar_switch(fields: Fields, node: Node) -> Switch:
    """`when:` on a node: a switch of two cases, of which one holds the node and the other nothing."""
    guard = fields.text("when", "write a condition in quotes: 'intent.kind == \"order\"'")
    taken = fields.share("p") if "p" in fields else 0.5
    probability = taken if taken is not None else 0.5
    left = ratio(f"{(1 - min(1.0, probability)) * 100:.10f}%")  # 30%, not 30.000000000000004%
    cases = (Case(_CASE_TAKEN, guard, probability), Case(_CASE_LEFT, None, left))
    return Switch(StepId(f"{node.id}_when"), cases, _reads(cases), node.case)


def _without_text_fields(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """`x.text` of a node that answers in plain text is its whole answer: the same reference as `x`."""
    plain = {node.id for node in nodes if _answers_in_text(node)}

    def whole(ref: Ref) -> Ref:
        return Ref(ref.source) if ref.path == ("text",) and ref.source in plain else ref

    return tuple(
        replace(
            node,
            inputs=tuple(
                (name, replace(binding, refs=tuple(whole(ref) for ref in binding.refs)))
                for name, binding in node.inputs
            ),
            fan_out=replace(node.fan_out, over=whole(node.fan_out.over))
            if node.fan_out is not None
            else None,
        )
        for node in nodes
    )


def _answers_in_text(node: Node) -> bool:
    return isinstance(node.work, ModelCall) and node.work.shape is None and node.fan_out is None
