"""
Laws of the load of a duel
1. An emulated engine reads and says, for each step of a run, as many tokens as are simulated for it.
2. The first engine's word decides the case that the run takes.
3. Both systems ask the engines for the same: the same models, prompts and limits.
4. Everything takes the time scale times as long, the promise too.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from tests.architecture.sources import ROOT
from tightrope.adapters.emulated_answers import answer_to, count_tokens
from tightrope.bench.duel_load import (
    NODES,
    NOTES,
    QUESTION,
    Request,
    asked_by_request,
    duel_runs,
    is_taken,
    requests,
)
from tightrope.bench.library import load_scenario
from tightrope.flow.check import check_workflow
from tightrope.flow.guards import compile_guard
from tightrope.flow.templates import render
from tightrope.model.ids import ModelName
from tightrope.model.json import Json
from tightrope.model.workflow import CodeCall, ModelCall, Node
from tightrope.sim.script import RunScript

MIXED = replace(load_scenario("mixed"), duration_s=12.0, warm_up_s=1.0)
RUNS = duel_runs(MIXED, 6.0, 3)

Asked = tuple[str, int, int, int]
"""A model, the tokens of its prompt, those of its answer, and its limit."""


def _metadata(request: Request) -> Mapping[str, str]:
    body = request.body
    assert isinstance(body, dict)
    metadata = body["metadata"]
    assert isinstance(metadata, dict)
    return {name: str(text) for name, text in metadata.items()}


def _by_tightrope(run: RunScript, request: Request) -> tuple[list[Asked], dict[str, Json]]:
    """What the engines are asked as Tightrope renders it, and what each step gave."""
    workflow, metadata = asked_by_request(run.workflow), _metadata(request)
    values: dict[str, Json] = {}
    asked: list[Asked] = []
    for step in workflow.graph.order:
        node = workflow.step_by_id[step]
        if not isinstance(node, Node) or not is_taken(run, node):
            continue
        if isinstance(node.work, CodeCall):
            values[step] = NOTES
            continue
        given: dict[str, Json] = {}
        for name, binding in node.inputs:
            (ref,) = binding.refs
            if ref.source == "input":
                given[name] = QUESTION if ref.path == ("question",) else metadata[ref.path[0]]
            else:
                given[name] = values.get(ref.source)
        prompt = render(node.work.prompt.text, given)
        answer = answer_to(prompt, node.work.max_tokens, 1)
        values[step] = answer.text
        asked.append((node.work.model, count_tokens(prompt), answer.tokens, node.work.max_tokens))
    return asked, values


def test_1_engines_read_and_say_what_is_simulated() -> None:
    for run, request in zip(RUNS, requests(RUNS, 4.0), strict=True):
        nodes = [
            node for node in run.workflow.nodes if isinstance(node.work, ModelCall) and is_taken(run, node)
        ]
        scripted = {
            (run.calls[node.id][0].prompt_tokens, run.calls[node.id][0].output_tokens) for node in nodes
        }
        asked, values = _by_tightrope(run, request)
        assert {(prompt, output) for _, prompt, output, _ in asked} == scripted
        assert len(str(values[run.workflow.output])) == request.answer_bytes


def test_2_what_the_first_engine_says_decides_the_case() -> None:
    shops = [(run, request) for run, request in zip(RUNS, requests(RUNS, 1.0), strict=True) if run.cases]
    assert len({run.cases["route"] for run, _ in shops}) == 4  # type: ignore[index]
    for run, request in shops:
        (switch,) = run.workflow.switches
        _, values = _by_tightrope(run, request)
        seen: dict[str, Json] = {"classify": {"text": values["classify"]}}
        taken = next(
            case.name
            for case in switch.cases
            if case.guard is None or compile_guard(case.guard).evaluate(seen)
        )
        assert taken == run.cases[switch.id]


def test_the_workflows_can_be_deployed() -> None:
    for workflow in {run.workflow.id: run.workflow for run in RUNS}.values():
        found = check_workflow(
            asked_by_request(workflow), models=list(MIXED.models), allow_python=[NODES], import_functions=True
        )
        assert found == []


def test_4_everything_is_as_slow_as_the_time_scale_says() -> None:
    for run, plain, slow in zip(RUNS, requests(RUNS, 1.0), requests(RUNS, 4.0), strict=True):
        assert slow.at_s == pytest.approx(4 * run.at_s)
        for name, value in plain.headers.items():
            assert float(slow.headers[name]) == pytest.approx(4 * float(value), abs=0.01)
        waits = [
            node.id for node in run.workflow.nodes if isinstance(node.work, CodeCall) and is_taken(run, node)
        ]
        for wait in waits:
            assert float(_metadata(slow)[wait]) == pytest.approx(4 * float(_metadata(plain)[wait]), abs=1e-5)
        assert slow.answer_bytes == plain.answer_bytes


# --- the peer --------------------------------------------------------------------------------------------


class _Handle:
    """Stands for a handle of Ray Serve: answers as an emulated engine would, and notes what it was asked."""

    def __init__(self, model: ModelName, asked: list[Asked], is_streamed: bool = False) -> None:
        self._model, self._asked, self._is_streamed = model, asked, is_streamed

    def options(self, *, method_name: str, stream: bool = False) -> _Handle:
        assert stream == (method_name == "stream")
        return _Handle(self._model, self._asked, stream)

    def remote(self, prompt: str, max_tokens: int) -> Any:
        answer = answer_to(prompt, max_tokens, 1)
        self._asked.append((self._model, count_tokens(prompt), answer.tokens, max_tokens))
        return _pieces(answer.text) if self._is_streamed else _whole(answer.text)


async def _whole(text: str) -> str:
    return text


async def _pieces(text: str) -> AsyncIterator[str]:
    yield text[:4]
    yield text[4:]


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The application for Ray Serve, with as much of Ray as it needs to be read."""

    def deployment(found: type) -> type:
        return found

    ray, serve, handle = ModuleType("ray"), ModuleType("ray.serve"), ModuleType("ray.serve.handle")
    for module, names in (
        (serve, {"deployment": deployment, "Application": object}),
        (ray, {"serve": serve}),
    ):
        vars(module).update(names)
    vars(handle)["DeploymentHandle"] = _Handle
    schema = ModuleType("ray.serve.schema")
    vars(schema)["ReplicaRank"] = object
    requests, responses = ModuleType("starlette.requests"), ModuleType("starlette.responses")
    vars(requests)["Request"] = vars(responses)["JSONResponse"] = vars(responses)["StreamingResponse"] = (
        object
    )
    for module in (ray, serve, handle, schema, requests, responses, ModuleType("starlette")):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    file = ROOT / "baselines" / "ray_serve" / "workflows.py"
    spec = importlib.util.spec_from_file_location("ray_serve_workflows", file)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)

    async def at_once(_: float) -> None:
        pass

    monkeypatch.setattr(found.asyncio, "sleep", at_once)
    return found


async def _by_ray(peer: ModuleType, run: RunScript, request: Request) -> tuple[list[Asked], str]:
    asked: list[Asked] = []
    workflows = peer.Workflows(_Handle(MIXED.small, asked), _Handle(MIXED.large, asked))
    play: Callable[[str, Mapping[str, str]], AsyncIterator[str]] = getattr(workflows, f"_{run.workflow.name}")
    pieces = [piece async for piece in play(QUESTION, _metadata(request))]
    return asked, "".join(pieces)


async def test_3_both_systems_ask_for_the_same(peer: ModuleType) -> None:
    for run, request in zip(RUNS, requests(RUNS, 1.0), strict=True):
        ours, values = _by_tightrope(run, request)
        theirs, answer = await asyncio.wait_for(_by_ray(peer, run, request), 10)
        assert sorted(theirs) == sorted(ours)
        assert answer == values[run.workflow.output]
    assert peer.NOTES == NOTES
