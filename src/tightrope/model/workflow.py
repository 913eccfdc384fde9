"""A workflow as data: nodes, switches, and the references between them.

Owns the shape, what is wrong with it (`problems`) and the graph derived from it (`Graph`). Guards are kept
as text together with the nodes they read; parsing and evaluating them is `flow/guards.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from functools import cached_property
from itertools import islice, product
from typing import Literal

from tightrope.model.errors import Problem
from tightrope.model.ids import ModelName, StepId, WorkflowId
from tightrope.model.outcome import FailureKind
from tightrope.model.slo import Slo

INPUT = "input"
"""The source that stands for the request itself in a reference: `input.question`."""
EACH = "each"
"""The source that stands for the current item of a fan-out."""

RESERVED_NAMES = (INPUT, EACH, "null", "true", "false", "in")
"""Words with a meaning of their own in references and guards; no step can be called so."""

RETRIED_BY_DEFAULT = (
    FailureKind.TIMEOUT,
    FailureKind.REPLICA_LOST,
    FailureKind.ENGINE_ERROR,
    FailureKind.CODE_ERROR,
)


@dataclass(frozen=True, slots=True)
class Ref:
    """A value somewhere: the result of node `source` (or INPUT, or EACH) and the way into it."""

    source: str
    path: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ".".join((self.source, *self.path))


@dataclass(frozen=True, slots=True)
class Gather:
    """How a reader joins a fan-out: at least `minimum` successes (None: all), waiting `within_s` at most."""

    minimum: int | None = None
    within_s: float | None = None


@dataclass(frozen=True, slots=True)
class Binding:
    """One input of a node: the first of `refs` that was not skipped; null if `optional` and all were.

    With `gather`, the single ref names a fan-out and the value is the list of its successes in item order.
    """

    refs: tuple[Ref, ...]
    optional: bool = False
    gather: Gather | None = None


class PromptKind(StrEnum):
    """Where the prompt of a model call comes from."""

    TEMPLATE = "template"
    """`text` (and `system`), with `{{ name }}` replaced by inputs."""
    MESSAGES = "messages"
    """The chat messages of the request, unchanged."""
    COMPLETION = "completion"
    """The raw prompt of a /v1/completions request, unchanged."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model call says. `file` only remembers where `text` was read from, relative to the document."""

    kind: PromptKind = PromptKind.TEMPLATE
    text: str = ""
    system: str = ""
    file: str | None = None


@dataclass(frozen=True, slots=True)
class ModelCall:
    """The work of a node that asks a model.

    `shape` is a JSON Schema as canonical JSON text, or None for plain text. `fallback` is another model, tried
    once after the attempts on the first are spent.
    """

    model: ModelName
    prompt: Prompt
    max_tokens: int
    shape: str | None = None
    fallback: ModelName | None = None
    temperature: float | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False


@dataclass(frozen=True, slots=True)
class CodeCall:
    """The work of a node that runs a Python function, named `module:function`; sync ones run off the loop."""

    function: str
    idempotent: bool = False


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits in seconds; None means the hard deadline of the run alone.

    `queue_s` waiting for a replica, `attempt_s` one attempt once dispatched, `total_s` the node in all,
    `idle_s` silence between two pieces of an answer.
    """

    queue_s: float | None = None
    attempt_s: float | None = None
    total_s: float | None = None
    idle_s: float | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """At most `times` further attempts, for these kinds of failure only."""

    times: int = 0
    on: tuple[FailureKind, ...] = RETRIED_BY_DEFAULT


@dataclass(frozen=True, slots=True)
class OnError:
    """What happens after the attempts: fail the run, skip the node, or use `value` (JSON text)."""

    action: Literal["fail", "skip", "value"] = "fail"
    value: str | None = None


@dataclass(frozen=True, slots=True)
class FanOut:
    """One call per element of the list at `over`. A longer list fails the node, or is cut to `max_items`."""

    over: Ref
    max_items: int
    overflow: Literal["fail", "cut"] = "fail"


@dataclass(frozen=True, slots=True)
class CaseRef:
    """Runs only in this case of this switch."""

    switch: StepId
    case: str


@dataclass(frozen=True, slots=True)
class Node:
    """One step: a model call or a piece of code, once or once per item."""

    id: StepId
    work: ModelCall | CodeCall
    inputs: tuple[tuple[str, Binding], ...] = ()
    case: CaseRef | None = None
    after: tuple[StepId, ...] = ()
    fan_out: FanOut | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    retry: Retry = field(default_factory=Retry)
    on_error: OnError = field(default_factory=OnError)


@dataclass(frozen=True, slots=True)
class Case:
    """One branch: its guard (CEL; None is `else`) and the declared probability, the prior of the learned one."""

    name: str
    guard: str | None
    probability: float


@dataclass(frozen=True, slots=True)
class Switch:
    """Exactly one of `cases` is taken, tried in order. `reads` are the nodes whose results the guards use.

    A switch inside a case of another one is skipped with it.
    """

    id: StepId
    cases: tuple[Case, ...]
    reads: tuple[StepId, ...] = ()
    case: CaseRef | None = None


@dataclass(frozen=True, slots=True)
class InputSpec:
    """A named input of the workflow.

    `source` is `last_user_message`, `messages`, `prompt`, `metadata.<key>` or `input` (given by name by an
    in-process caller). `default` is JSON text; None means that the input is required.
    """

    name: str
    source: str = "input"
    default: str | None = None


@dataclass(frozen=True)
class Workflow:
    """A named, acyclic graph with one output node and one SLO. Equal content is an equal object."""

    name: str
    nodes: tuple[Node, ...]
    output: StepId
    slo: Slo = field(default_factory=Slo)
    inputs: tuple[InputSpec, ...] = ()
    switches: tuple[Switch, ...] = ()

    @cached_property
    def version(self) -> str:
        """Twelve hex digits of a digest of the content: two equal workflows have the same, on every machine.

        The order in which inputs are listed means nothing and does not change it.
        """
        return hashlib.sha256(_canonical(self).encode()).hexdigest()[:12]

    @cached_property
    def id(self) -> WorkflowId:
        """`name@version`."""
        return WorkflowId(f"{self.name}@{self.version}")

    @cached_property
    def graph(self) -> Graph:
        """The graph derived from the references. Only meaningful when `problems` is empty."""
        return Graph.of(self)

    @cached_property
    def step_by_id(self) -> Mapping[StepId, Node | Switch]:
        """Every node and switch under its name."""
        return {step.id: step for step in self.steps}

    @property
    def steps(self) -> tuple[Node | Switch, ...]:
        """Nodes, then switches, in the order of the text."""
        return self.nodes + self.switches

    def required_models(self) -> tuple[ModelName, ...]:
        """The models that nodes ask first, each once, in order of appearance."""
        calls = (node.work for node in self.nodes if isinstance(node.work, ModelCall))
        return tuple(dict.fromkeys(call.model for call in calls))

    def models(self) -> tuple[ModelName, ...]:
        """Every model the workflow may call, fallbacks included, each once, in order of appearance."""
        named: dict[ModelName, None] = {}
        for node in self.nodes:
            if isinstance(node.work, ModelCall):
                named[node.work.model] = None
                if node.work.fallback is not None:
                    named[node.work.fallback] = None
        return tuple(named)


@dataclass(frozen=True, slots=True)
class Need:
    """What a step waits for: the first of `any_of` that is not skipped. All skipped: the step is skipped too,
    unless `optional`. `gather` marks the need as a join of a fan-out."""

    any_of: tuple[StepId, ...]
    optional: bool = False
    gather: Gather | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """The steps in topological order, what each waits for, and who reads it."""

    order: tuple[StepId, ...]
    needs_by_step: Mapping[StepId, tuple[Need, ...]]
    readers_by_step: Mapping[StepId, tuple[StepId, ...]]
    case_by_step: Mapping[StepId, CaseRef | None]

    @classmethod
    def of(cls, workflow: Workflow) -> Graph:
        """Derive the graph. Raises ValueError when the references form a cycle."""
        needs = {step.id: _needs(step) for step in workflow.steps}
        readers: dict[StepId, list[StepId]] = {step: [] for step in needs}
        for step, step_needs in needs.items():
            for source in _sources(step_needs):
                if source in readers and step not in readers[source]:
                    readers[source].append(step)
        order = _topological(needs)
        if len(order) < len(needs):
            raise ValueError(f"workflow {workflow.name!r} has a cycle")
        return cls(
            order=order,
            needs_by_step=needs,
            readers_by_step={step: tuple(found) for step, found in readers.items()},
            case_by_step={step.id: step.case for step in workflow.steps},
        )


def problems(workflow: Workflow) -> list[Problem]:
    """Everything that is wrong with the shape of a workflow, in the order of its text; empty if it can run.

    Which models exist, whether guards parse and whether functions may be called is asked elsewhere.
    """
    found: list[Problem] = []
    found += _name_problems(workflow)
    found += _reference_problems(workflow)
    found += _switch_problems(workflow)
    found += _node_problems(workflow)
    if not found:
        found += _cycle_problems(workflow)
    if not found:
        found += _unused_problems(workflow)
        found += _skipped_problems(workflow)
    return found


# --- the graph -----------------------------------------------------------------------------------------


def _needs(step: Node | Switch) -> tuple[Need, ...]:
    needs: list[Need] = []
    if step.case is not None:
        needs.append(Need((step.case.switch,)))
    if isinstance(step, Switch):
        return tuple(needs + [Need((node,)) for node in step.reads])
    for _, binding in step.inputs:
        sources = tuple(dict.fromkeys(StepId(ref.source) for ref in binding.refs if _is_node(ref)))
        if not sources:
            continue
        needs.append(Need(sources, binding.optional or len(sources) < len(binding.refs), binding.gather))
    if step.fan_out is not None and _is_node(step.fan_out.over):
        needs.append(Need((StepId(step.fan_out.over.source),)))
    needs += [Need((node,), optional=True) for node in step.after]
    return tuple(dict.fromkeys(needs))


def _is_node(ref: Ref) -> bool:
    return ref.source not in (INPUT, EACH)


def _sources(needs: tuple[Need, ...]) -> Iterator[StepId]:
    for need in needs:
        yield from need.any_of


def _topological(needs: Mapping[StepId, tuple[Need, ...]]) -> tuple[StepId, ...]:
    """Kahn's algorithm, stable in the order of the text; shorter than `needs` exactly when there is a cycle."""
    done: dict[StepId, None] = {}
    left = list(needs)
    while True:
        ready = [step for step in left if all(source in done for source in _sources(needs[step]))]
        if not ready:
            return tuple(done)
        done.update(dict.fromkeys(ready))
        left = [step for step in left if step not in done]


def _canonical(value: object) -> str:
    if is_dataclass(value) and not isinstance(value, type):
        inner = ",".join(f"{f.name}={_canonical(_sorted_inputs(f.name, value))}" for f in fields(value))
        return f"{type(value).__name__}({inner})"
    if isinstance(value, tuple):
        return "[" + ",".join(_canonical(item) for item in value) + "]"
    return repr(str(value) if isinstance(value, StrEnum) else value)


def _sorted_inputs(name: str, owner: object) -> object:
    found = getattr(owner, name)
    return tuple(sorted(found, key=_canonical)) if name == "inputs" else found


# --- what can be wrong ---------------------------------------------------------------------------------


def _name_problems(workflow: Workflow) -> list[Problem]:
    found = []
    seen: set[str] = set()
    for kind, step in _all_steps(workflow):
        if step.id in seen:
            found.append(
                Problem(
                    "duplicate_key", (kind, step.id), f"{step.id!r} names two steps", "rename one of them"
                )
            )
        if step.id in RESERVED_NAMES or not step.id.isidentifier():
            cure = f"use letters, digits and _, and none of {', '.join(RESERVED_NAMES)}"
            found.append(Problem("bad_name", (kind, step.id), f"{step.id!r} cannot name a step", cure))
        seen.add(step.id)
    if workflow.output not in {node.id for node in workflow.nodes}:
        names = ", ".join(node.id for node in workflow.nodes)
        message = f"the output node {workflow.output!r} does not exist"
        found.append(Problem("unknown_reference", ("output",), message, f"name one of: {names}"))
    return found


def _all_steps(workflow: Workflow) -> Iterator[tuple[str, Node | Switch]]:
    yield from (("switch", switch) for switch in workflow.switches)
    yield from (("nodes", node) for node in workflow.nodes)


def _reference_problems(workflow: Workflow) -> list[Problem]:
    found = []
    nodes = {node.id for node in workflow.nodes}
    inputs = {spec.name for spec in workflow.inputs}
    for node in workflow.nodes:
        here = ("nodes", node.id)
        for name, binding in node.inputs:
            if not binding.refs:
                message = f"the input {name!r} reads nothing"
                found.append(Problem("bad_value", (*here, "inputs", name), message, "name what it reads"))
            for ref in binding.refs:
                found += _ref_problem(ref, (*here, "inputs", name), nodes, inputs, node.fan_out is not None)
            if binding.gather is not None:
                found += _gather_problem(binding, (*here, "inputs", name), workflow)
        if node.fan_out is not None:
            found += _ref_problem(node.fan_out.over, (*here, "foreach"), nodes, inputs, False)
        for other in node.after:
            if other not in nodes:
                found.append(_unknown(other, (*here, "after"), nodes))
    for switch in workflow.switches:
        found += [_unknown(r, ("switch", switch.id), nodes) for r in switch.reads if r not in nodes]
    return found


def _ref_problem(
    ref: Ref, path: tuple[str, ...], nodes: set[StepId], inputs: set[str], in_fan_out: bool
) -> list[Problem]:
    if ref.source == EACH:
        if in_fan_out:
            return []
        return [
            Problem(
                "unknown_reference",
                path,
                "`each` outside a fan-out",
                "add `foreach` and `max_items` to the node",
            )
        ]
    if ref.source == INPUT:
        if ref.path and ref.path[0] in inputs:
            return []
        known = ", ".join(sorted(inputs)) or "none declared"
        missing = ".".join(("input", *ref.path))
        return [
            Problem(
                "missing_input",
                path,
                f"{missing} is not an input of the workflow",
                f"declare it under `input` (known: {known})",
            )
        ]
    return [] if StepId(ref.source) in nodes else [_unknown(ref.source, path, nodes)]


def _unknown(name: str, path: tuple[str, ...], nodes: set[StepId]) -> Problem:
    known = ", ".join(sorted(nodes))
    return Problem("unknown_reference", path, f"there is no node {name!r}", f"name one of: {known}")


def _gather_problem(binding: Binding, path: tuple[str, ...], workflow: Workflow) -> list[Problem]:
    fans = {node.id: node.fan_out for node in workflow.nodes if node.fan_out is not None}
    if len(binding.refs) == 1 and StepId(binding.refs[0].source) in fans:
        least = binding.gather.minimum if binding.gather is not None else None
        most = fans[StepId(binding.refs[0].source)].max_items
        if least is None or least <= most:
            return []
        message = f"gather waits for at least {least} of at most {most} items"
        return [Problem("bad_value", path, message, f"ask for {most} or fewer, or raise `max_items`")]
    names = ", ".join(sorted(fans)) or "none in this workflow"
    return [
        Problem(
            "unknown_reference",
            path,
            "gather joins exactly one fan-out node",
            f"name a node with `foreach` ({names})",
        )
    ]


def _switch_problems(workflow: Workflow) -> list[Problem]:
    found = []
    cases_by_switch = {switch.id: {case.name for case in switch.cases} for switch in workflow.switches}
    for switch in workflow.switches:
        here = ("switch", switch.id)
        total = sum(case.probability for case in switch.cases)
        if abs(total - 1) > 1e-6:
            message = f"the probabilities sum to {total * 100:.6g} %"
            found.append(Problem("cases_not_100", here, message, "make them sum to 100 %"))
        defaults = [index for index, case in enumerate(switch.cases) if case.guard is None]
        if defaults != [len(switch.cases) - 1]:
            message = "a switch has exactly one `else`, and it stands last"
            found.append(
                Problem("guard_invalid", here, message, "end the cases with `name: {else: true, p: ...}`")
            )
    for kind, step in _all_steps(workflow):
        if step.case is None:
            continue
        path = (kind, step.id, "case")
        if step.case.switch not in cases_by_switch:
            known = ", ".join(cases_by_switch) or "none"
            found.append(
                Problem(
                    "unknown_reference", path, f"there is no switch {step.case.switch!r}", f"known: {known}"
                )
            )
        elif step.case.case not in cases_by_switch[step.case.switch]:
            known = ", ".join(sorted(cases_by_switch[step.case.switch]))
            message = f"{step.case.switch} has no case {step.case.case!r}, so {step.id} could never run"
            found.append(Problem("unreachable_node", path, message, f"name one of: {known}"))
    return found


def _node_problems(workflow: Workflow) -> list[Problem]:
    found = []
    streaming = [node.id for node in workflow.nodes if isinstance(node.work, ModelCall) and node.work.stream]
    for node_id in streaming:
        if node_id != workflow.output and workflow.output in workflow.step_by_id:
            message = f"{node_id} streams, but the output is {workflow.output}"
            cure = "keep `stream: true` on the output node alone: a workflow has one final node"
            found.append(Problem("two_outputs", ("nodes", node_id, "stream"), message, cure))
    for node in workflow.nodes:
        here = ("nodes", node.id)
        if isinstance(node.work, CodeCall) and node.retry.times and not node.work.idempotent:
            message = "code that is not idempotent is never repeated"
            found.append(
                Problem(
                    "retry_needs_idempotent",
                    (*here, "retry"),
                    message,
                    "set `idempotent: true` or remove `retry`",
                )
            )
        if isinstance(node.work, ModelCall) and node.work.max_tokens < 1:
            found.append(
                Problem("bad_value", (*here, "max_tokens"), "max_tokens is below 1", "give a positive number")
            )
        if node.fan_out is not None and node.fan_out.max_items < 1:
            found.append(
                Problem("bad_value", (*here, "max_items"), "max_items is below 1", "give a positive number")
            )
        if node.id == workflow.output and node.fan_out is not None:
            found.append(
                Problem(
                    "two_outputs",
                    (*here, "foreach"),
                    "the output node cannot fan out",
                    "gather its items in one more node",
                )
            )
        if node.id == workflow.output and node.on_error.action == "skip":
            found.append(
                Problem(
                    "bad_value",
                    (*here, "on_error"),
                    "the output node cannot be skipped",
                    "use `fail` or a value",
                )
            )
        if node.id == workflow.output and node.case is not None:
            message = "the output node stands inside a case, so some runs would have no answer"
            found.append(
                Problem(
                    "unreachable_node",
                    (*here, "case"),
                    message,
                    "let one node read every branch with `a | b | null`",
                )
            )
    return found


def _cycle_problems(workflow: Workflow) -> list[Problem]:
    needs = {step.id: _needs(step) for step in workflow.steps}
    done = set(_topological(needs))
    left = [step for step in needs if step not in done]
    if not left:
        return []
    loop = _one_loop(left, needs)
    kind = "switch" if any(switch.id == loop[0] for switch in workflow.switches) else "nodes"
    return [
        Problem(
            "cycle",
            (kind, loop[0]),
            "these wait for each other: " + " -> ".join((*loop, loop[0])),
            "remove one of the references",
        )
    ]


def _one_loop(left: list[StepId], needs: Mapping[StepId, tuple[Need, ...]]) -> list[StepId]:
    way = [left[0]]
    while True:
        step = next(source for source in _sources(needs[way[-1]]) if source in left)
        if step in way:
            return way[way.index(step) :]
        way.append(step)


def _unused_problems(workflow: Workflow) -> list[Problem]:
    """Every step must lead to the output."""
    found = []
    needs = {step.id: _needs(step) for step in workflow.steps}
    used = {workflow.output}
    frontier = [workflow.output]
    while frontier:
        for source in _sources(needs[frontier.pop()]):
            if source not in used:
                used.add(source)
                frontier.append(source)
    for kind, step in _all_steps(workflow):
        if step.id not in used:
            message = f"nothing that leads to the output {workflow.output!r} reads {step.id!r}"
            found.append(
                Problem(
                    "unreachable_node", (kind, step.id), message, "read it from a later node, or remove it"
                )
            )
    return found


def _skipped_problems(workflow: Workflow) -> list[Problem]:
    """No combination of cases may skip the output, and some combination must reach every node."""
    graph = Graph.of(workflow)
    reached: set[StepId] = set()
    for case_by_switch in _case_combinations(workflow):
        skipped_because = _skipped(graph, case_by_switch)
        reached |= {step for step in graph.order if step not in skipped_because}
        if workflow.output in skipped_because:
            cases = ", ".join(f"{switch}.{case}" for switch, case in case_by_switch.items())
            waits_for = skipped_because[workflow.output]
            message = (
                f"in case {cases} there is no answer: {workflow.output} needs {waits_for}, which is skipped"
            )
            cure = f"read it as `{waits_for} | null`, or read a node of every case with `a | b`"
            return [Problem("unreachable_node", ("nodes", workflow.output, "inputs"), message, cure)]
    return [
        Problem(
            "unreachable_node",
            ("nodes", node.id),
            f"no combination of cases reaches {node.id}",
            "let what it reads belong to the same case, or read it with `a | b | null`",
        )
        for node in workflow.nodes
        if node.id not in reached
    ]


_COMBINATIONS_AT_MOST = 4096
"""Twelve independent switches of two cases; of more, only the first combinations are looked at."""


def _case_combinations(workflow: Workflow) -> Iterator[dict[StepId, str]]:
    names = [[case.name for case in switch.cases] for switch in workflow.switches]
    ids = [switch.id for switch in workflow.switches]
    for cases in islice(product(*names), _COMBINATIONS_AT_MOST):
        yield dict(zip(ids, cases, strict=True))


def _skipped(graph: Graph, case_by_switch: Mapping[StepId, str]) -> dict[StepId, StepId]:
    """The steps that do not run when these cases are taken, each with the step that is the reason."""
    because: dict[StepId, StepId] = {}
    for step in graph.order:
        case = graph.case_by_step[step]
        if case is not None and case_by_switch[case.switch] != case.case:
            because[step] = case.switch
            continue
        for need in graph.needs_by_step[step]:
            if not need.optional and all(source in because for source in need.any_of):
                because[step] = need.any_of[0]
                break
    return because
