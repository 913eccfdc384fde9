"""What runs carry: inputs, prompts, answers. Renders, evaluates guards, parses and repairs.

Owns every value that the kernel never sees. Decides nothing: what to prepare, to keep or to repeat is told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from tightrope.flow.guards import Guard, compile_guard
from tightrope.flow.shapes import check
from tightrope.flow.templates import render
from tightrope.model.errors import EngineFailed, InvalidInput
from tightrope.model.ids import StepId
from tightrope.model.json import Json
from tightrope.model.messages import Item, Settlement
from tightrope.model.outcome import FailureKind
from tightrope.model.workflow import (
    EACH,
    INPUT,
    Binding,
    CodeCall,
    InputSpec,
    ModelCall,
    Node,
    PromptKind,
    Ref,
    Switch,
    Workflow,
)
from tightrope.ports import EngineRequest, Message

REASK = "Your answer did not have the required form: {problem}. Answer again with nothing but valid JSON."


@dataclass(frozen=True, slots=True)
class RunInputs:
    """What a request brings: chat messages or a raw prompt, metadata, and named values of in-process callers."""

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    named: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a request asks of the output node, bounded by the node's own limits.

    `extra` are further body fields of the request as JSON text; they reach plain model calls untouched.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    stop: tuple[str, ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Result:
    """What readers of a step see. `items` are the successes of a fan-out by index."""

    value: Json = None
    is_skipped: bool = False
    items: dict[int, Json] | None = None

    @property
    def whole(self) -> Json:
        """The value; of a fan-out, the list of its successes in item order."""
        if self.items is None:
            return self.value
        listed: list[Json] = [self.items[index] for index in sorted(self.items)]
        return listed


class RunPayload:
    """The values of one run. Methods raise InvalidInput for inputs that cannot be built."""

    def __init__(self, workflow: Workflow, inputs: RunInputs, sampling: Sampling) -> None:
        self.workflow = workflow
        self.sampling = sampling
        self._request = inputs
        self._inputs: dict[str, Json] = {spec.name: _input_value(spec, inputs) for spec in workflow.inputs}
        self._results: dict[StepId, _Result] = {}
        self._prepared: dict[tuple[StepId, int], Mapping[str, Json]] = {}
        self._problems: dict[tuple[StepId, int], str] = {}
        self._given: set[StepId] = set()

    # --- told by the driver --------------------------------------------------------------------------

    def prepare(self, step: StepId) -> tuple[Item, ...]:
        """Build the inputs of a node, once per item of its fan-out."""
        node = self._node(step)
        elements = self._elements(node)
        items = []
        for index, element in enumerate(elements):
            values = {name: self._bound(node, name, binding, element) for name, binding in node.inputs}
            self._prepared[step, index] = values
            items.append(Item(prompt_bytes=self._prompt_bytes(node, values)))
        if node.fan_out is not None:
            self._results[step] = _Result(items={})
        return tuple(items)

    def decide(self, step: StepId) -> str:
        """The case of a switch: the first whose guard is true."""
        switch = self.workflow.step_by_id[step]
        if not isinstance(switch, Switch):
            raise InvalidInput(f"{step} is not a switch")
        values: dict[str, Json] = {INPUT: dict(self._inputs)}
        for source in switch.reads:
            value = self._results[source].whole
            values[source] = {"text": value} if isinstance(value, str) else value
        for case in switch.cases:
            if case.guard is None or _guard(case.guard).evaluate(values):
                return case.name
        raise InvalidInput(f"no case of {step} applies")

    def settle(self, step: StepId, settlement: Settlement) -> None:
        """A step ended otherwise than by its own result."""
        if settlement is Settlement.SKIPPED:
            self._results[step] = _Result(is_skipped=True)
        elif settlement is Settlement.VALUE:
            text = self._node(step).on_error.value
            self._results[step] = _Result(value=json.loads(text) if text is not None else None)
            self._given.add(step)
        elif step not in self._results:
            self._results[step] = _Result(items={})

    def keep(self, step: StepId, index: int, value: Json) -> None:
        """The result of an item of a node."""
        found = self._results.setdefault(step, _Result())
        if found.items is not None:
            found.items[index] = value
        else:
            found.value = value

    def value(self, step: StepId) -> Json:
        """The result of a step, null while there is none."""
        found = self._results.get(step)
        return None if found is None else found.value

    # --- calls ---------------------------------------------------------------------------------------

    def pipes(self, step: StepId) -> bool:
        """Whether what the step says is the answer as it comes: text is; a shape is checked first, and a
        declared value was never said."""
        work = self._node(step).work
        is_text = isinstance(work, ModelCall) and work.shape is None
        return step == self.workflow.output and is_text and step not in self._given

    def function(self, step: StepId) -> str:
        """The `module:function` of a code node."""
        work = self._node(step).work
        if isinstance(work, ModelCall):
            raise InvalidInput(f"{step} asks a model and runs no code")
        return work.function

    def arguments(self, step: StepId, index: int) -> Mapping[str, Json]:
        """The prepared inputs of an item of a code node."""
        return self._prepared[step, index]

    def request(
        self, step: StepId, index: int, serves: str, max_tokens: int, is_reask: bool
    ) -> EngineRequest:
        """The model call of an item, as an engine sees it. A re-ask says what was wrong with the answer before."""
        node = self._node(step)
        work = node.work
        if isinstance(work, CodeCall):
            raise InvalidInput(f"{step} is code and asks no model")
        messages = self._messages(work, self._prepared[step, index])
        if is_reask and messages is not None:
            problem = self._problems.get((step, index), "it was not valid JSON")
            messages = (*messages, Message("user", REASK.format(problem=problem)))
        asked = self.sampling if step == self.workflow.output else Sampling()
        return EngineRequest(
            model=serves,
            max_tokens=max_tokens,
            messages=messages,
            prompt=self._request.prompt if work.prompt.kind is PromptKind.COMPLETION else None,
            temperature=work.temperature if asked.temperature is None else asked.temperature,
            stop=work.stop + asked.stop,
            schema=work.shape,
            extra=asked.extra,
        )

    def parse(self, step: StepId, index: int, text: str) -> tuple[Json, bool]:
        """The value of an answer and whether it had to be repaired. Raises EngineFailed(BAD_OUTPUT)."""
        work = self._node(step).work
        if isinstance(work, CodeCall) or work.shape is None:
            return text, False
        try:
            value, was_repaired = check(text, work.shape)
            # Half of a surrogate pair can be written in JSON, and nowhere else.
            json.dumps(value, ensure_ascii=False).encode()
            return value, was_repaired
        except (InvalidInput, UnicodeEncodeError) as error:
            self._problems[step, index] = str(error)
            raise EngineFailed(
                FailureKind.BAD_OUTPUT, f"the answer of {step} has the wrong form: {error}"
            ) from error

    # --- values --------------------------------------------------------------------------------------

    def _node(self, step: StepId) -> Node:
        found = self.workflow.step_by_id[step]
        if not isinstance(found, Node):
            raise InvalidInput(f"{step} is a switch, not a node")
        return found

    def _elements(self, node: Node) -> Sequence[Json]:
        if node.fan_out is None:
            return [None]
        found = self._resolved(node.fan_out.over, f"{node.id}.foreach")
        if not isinstance(found, list):
            raise InvalidInput(f"{node.id} fans out over {node.fan_out.over}, which is not a list")
        if len(found) > node.fan_out.max_items and node.fan_out.overflow == "fail":
            raise InvalidInput(
                f"{node.fan_out.over} has {len(found)} elements, {node.id} takes {node.fan_out.max_items}; "
                "raise `max_items` or set `overflow: cut`"
            )
        return found[: node.fan_out.max_items]

    def _bound(self, node: Node, name: str, binding: Binding, element: Json) -> Json:
        place = f"{node.id}.inputs.{name}"
        for ref in binding.refs:
            if ref.source == EACH:
                return _follow(element, ref, place)
            if ref.source == INPUT or not self._results[StepId(ref.source)].is_skipped:
                return self._resolved(ref, place)
        return None

    def _resolved(self, ref: Ref, place: str) -> Json:
        if ref.source == INPUT:
            return _follow(dict(self._inputs), ref, place)
        found = self._results[StepId(ref.source)]
        if found.items is not None:
            listed: list[Json] = [_follow(found.items[index], ref, place) for index in sorted(found.items)]
            return listed
        return _follow(found.value, ref, place)

    # --- prompts -------------------------------------------------------------------------------------

    def _messages(self, work: ModelCall, values: Mapping[str, Json]) -> tuple[Message, ...] | None:
        prompt = work.prompt
        if prompt.kind is PromptKind.COMPLETION:
            return None
        if prompt.kind is PromptKind.MESSAGES:
            return self._request.messages
        system = (Message("system", render(prompt.system, values)),) if prompt.system else ()
        return (*system, Message("user", render(prompt.text, values)))

    def _prompt_bytes(self, node: Node, values: Mapping[str, Json]) -> int:
        if isinstance(node.work, CodeCall):
            return 0
        if node.work.prompt.kind is PromptKind.COMPLETION:
            return len((self._request.prompt or "").encode())
        return sum(len(message.content.encode()) for message in self._messages(node.work, values) or ())


def _input_value(spec: InputSpec, inputs: RunInputs) -> Json:
    """The value of a declared input. Raises InvalidInput when a required one is missing."""
    found = inputs.named.get(spec.name)
    if found is None and spec.source == "last_user_message":
        texts = [message.content for message in inputs.messages if message.role == "user"]
        found = texts[-1] if texts else None
    elif found is None and spec.source == "messages":
        found = [{"role": message.role, "content": message.content} for message in inputs.messages] or None
    elif found is None and spec.source == "prompt":
        found = inputs.prompt
    elif found is None and spec.source.startswith("metadata."):
        found = inputs.metadata.get(spec.source.removeprefix("metadata."))
    if found is None and spec.default is not None:
        default: Json = json.loads(spec.default)
        return default
    if found is None:
        raise InvalidInput(f"the input {spec.name!r} is missing: give it as {spec.source}")
    return found


def _follow(value: Json, ref: Ref, place: str) -> Json:
    """The value at the end of a path. `x.text` of a text is the text itself."""
    path = ref.path[1:] if ref.source == INPUT else ref.path
    if ref.source == INPUT and isinstance(value, dict):
        value = value[ref.path[0]]
    for key in path:
        if isinstance(value, str) and key == "text":
            continue
        if not isinstance(value, dict) or key not in value:
            raise InvalidInput(f"{place} needs {ref}, and there is no field {key!r} in what came")
        value = value[key]
    return value


@lru_cache(maxsize=4096)
def _guard(text: str) -> Guard:
    return compile_guard(text)
