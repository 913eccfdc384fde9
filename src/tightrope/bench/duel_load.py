"""The load of a duel: the very runs that are simulated, as requests to a live system.

Owns what a request says. Each step finds its own words in the request's metadata: filler up to the length that was
drawn, and an order to the emulated engine how much to answer. So no system can know a length, or the case that a
switch will take, before the engine has said it. Sending is `duel_client.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import assert_never

from tightrope.bench.cell import cell_scripts, profiles
from tightrope.bench.scenario import Scenario
from tightrope.model.ids import ModelName, StepId
from tightrope.model.json import Json
from tightrope.model.profile import Profile
from tightrope.model.workflow import (
    Binding,
    CodeCall,
    InputSpec,
    ModelCall,
    Node,
    Prompt,
    Ref,
    Workflow,
)
from tightrope.sim.promise import promised
from tightrope.sim.script import CallScript, RunScript

QUESTION = "What is there to know about this?"
NOTES = "notes that a search has found"
"""What code returns, whatever it was asked."""
BYTES_PER_TOKEN = 4
"""Of an emulated engine, exactly."""
NODES = "tightrope.bench.duel_nodes"
"""The module with the functions of the code nodes."""

_ASK = "ask"
_WORDS = "so much of this prompt is there for its length alone and says nothing "


# --- the workflows ---------------------------------------------------------------------------------------


def asked_by_request(workflow: Workflow) -> Workflow:
    """The same graph, each node also reading what the request says to it: a prompt ends with it, code waits so long."""
    nodes = tuple(_asked(node) for node in workflow.nodes)
    asks = (InputSpec(node.id, f"metadata.{node.id}", '""') for node in workflow.nodes)
    return replace(workflow, nodes=nodes, inputs=(*workflow.inputs, *asks))


def _asked(node: Node) -> Node:
    ask = (_ASK, Binding((Ref("input", (node.id,)),)))
    return replace(node, work=_work(node.work), inputs=(*node.inputs, ask))


def _work(work: ModelCall | CodeCall) -> ModelCall | CodeCall:
    match work:
        case ModelCall(prompt=prompt):
            return replace(work, prompt=Prompt(text=f"{prompt.text}\n{{{{ {_ASK} }}}}"))
        case CodeCall(function):
            return replace(work, function=f"{NODES}:{function.rpartition(':')[2]}")
        case _:
            assert_never(work)


# --- the runs --------------------------------------------------------------------------------------------


def duel_runs(scenario: Scenario, rate_per_s: float, seed: int) -> list[RunScript]:
    """The runs of a cell, with prompts of exactly BYTES_PER_TOKEN and none too short for what it must hold.

    Both the simulation and the live systems get these. Times are the scenario's.
    """
    fitted = [_fitted(run) for run in cell_scripts(scenario, rate_per_s, seed)]
    cards: dict[ModelName, list[Profile]] = {}
    for (model, _), profile in profiles(scenario).items():
        cards.setdefault(model, []).append(profile)
    return promised(fitted, scenario.promise, cards)


def _fitted(run: RunScript) -> RunScript:
    calls = dict(run.calls)
    for node in run.workflow.nodes:
        if isinstance(node.work, ModelCall):
            (item,) = run.calls[node.id]
            output = min(item.output_tokens, node.work.max_tokens)
            # Two bytes more than what is there: a prompt that ends between two tokens counts the last one whole.
            least = -(
                -(_given_bytes(run, node, calls) + len(_order(run, node, output)) + 2) // BYTES_PER_TOKEN
            )
            tokens = max(item.prompt_tokens, least)
            calls[node.id] = (CallScript(tokens, output, prompt_bytes=BYTES_PER_TOKEN * tokens),)
    return replace(run, calls=calls)


def _given_bytes(run: RunScript, node: Node, calls: dict[StepId, tuple[CallScript, ...]]) -> int:
    """Bytes of a prompt before what the request says: its other inputs, and a line end behind each."""
    return sum(1 + _value_bytes(run, binding, calls) for _, binding in node.inputs)


def _value_bytes(run: RunScript, binding: Binding, calls: dict[StepId, tuple[CallScript, ...]]) -> int:
    (ref,) = binding.refs
    if ref.source == "input":
        return len(QUESTION)
    source = StepId(ref.source)
    node = run.workflow.step_by_id[source]
    if not isinstance(node, Node) or not is_taken(run, node):
        return 0
    if isinstance(node.work, CodeCall):
        return len(NOTES)
    told = _told(run, node)
    return len(told) if told is not None else BYTES_PER_TOKEN * calls[source][0].output_tokens


def is_taken(run: RunScript, node: Node) -> bool:
    """Whether the run reaches this node."""
    return node.case is None or run.cases[node.case.switch] == node.case.case


def _order(run: RunScript, node: Node, output_tokens: int) -> str:
    """What tells an emulated engine its answer."""
    told = _told(run, node)
    text = "" if told is None else f" text='{told}'"
    return f'<emulate tokens="{output_tokens}"{text}/>'


def _told(run: RunScript, node: Node) -> str | None:
    """The text that a node must answer with because a switch reads it: the name of the case that the run takes."""
    switches = [switch for switch in run.workflow.switches if node.id in switch.reads]
    return run.cases[switches[0].id] if switches else None


# --- requests --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the client sends it, `at_s` after the start by the clock on the wall.

    Its answer is whole with `answer_bytes` of text.
    """

    run: str
    at_s: float
    headers: dict[str, str]
    body: Json
    answer_bytes: int


def requests(runs: Sequence[RunScript], time_scale: float) -> Iterator[Request]:
    """The runs as requests, everything `time_scale` times as slow. The promise goes along in headers."""
    for run in runs:
        output = run.workflow.step_by_id[run.workflow.output]
        (answer,) = run.calls[run.workflow.output]
        assert isinstance(output, Node)
        yield Request(
            run=run.run,
            at_s=run.at_s * time_scale,
            headers=_promise(run, time_scale),
            body={
                "model": f"workflow/{run.workflow.name}",
                "stream": True,
                "messages": [{"role": "user", "content": QUESTION}],
                "metadata": {
                    node.id: _words_to(run, node, time_scale)
                    for node in run.workflow.nodes
                    if is_taken(run, node)
                },
            },
            answer_bytes=BYTES_PER_TOKEN * answer.output_tokens,
        )


def _promise(run: RunScript, time_scale: float) -> dict[str, str]:
    ttft_s, tpot_s = run.slo.ttft_s, run.slo.tpot_s
    found = {"x-tightrope-slo-ttft-ms": ttft_s, "x-tightrope-slo-tpot-ms": tpot_s}
    return {name: f"{1000 * time_scale * value:.3f}" for name, value in found.items() if value is not None}


def _words_to(run: RunScript, node: Node, time_scale: float) -> str:
    (item,) = run.calls[node.id]
    if isinstance(node.work, CodeCall):
        return f"{item.seconds * time_scale:.6f}"
    order = _order(run, node, item.output_tokens)
    whole = BYTES_PER_TOKEN * item.prompt_tokens - 1
    return _filler(whole - _given_bytes(run, node, dict(run.calls)) - len(order)) + order


def _filler(length: int) -> str:
    return "".join(islice(cycle(_WORDS), max(0, length)))
