"""
Laws of the YAML form
1. Every workflow that can run is the same after it was written and read again.
2. Its version does not change by that, nor by the order in which inputs are listed; any change of content changes it.
3. Any text is either a workflow or a list of problems, each with a place and a cure.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.flow.forms import RAG
from tests.flow.generated import workflows
from tightrope.flow.check import content_problems
from tightrope.flow.document import read_workflow, write_workflow
from tightrope.model.errors import InvalidWorkflow, Problem
from tightrope.model.workflow import Workflow, problems


@given(workflows())
@settings(deadline=None, max_examples=60)
def test_1_2_a_workflow_survives_being_written_and_read(workflow: Workflow) -> None:
    assert problems(workflow) == []
    assert content_problems(workflow) == []
    again = read_workflow(write_workflow(workflow), source="again.yaml", base=Path())
    assert again == workflow
    assert again.version == workflow.version


@given(workflows(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=20)
def test_2_the_order_of_inputs_does_not_change_the_version(workflow: Workflow, random: Random) -> None:
    nodes = [
        replace(node, inputs=tuple(random.sample(node.inputs, len(node.inputs)))) for node in workflow.nodes
    ]
    shuffled = replace(workflow, nodes=tuple(nodes), inputs=tuple(reversed(workflow.inputs)))
    assert shuffled.version == workflow.version


@given(workflows())
@settings(deadline=None, max_examples=20)
def test_2_other_content_is_another_version(workflow: Workflow) -> None:
    assert replace(workflow, name=workflow.name + "x").version != workflow.version
    node = replace(workflow.nodes[0], timeouts=replace(workflow.nodes[0].timeouts, total_s=123.25))
    assert replace(workflow, nodes=(node, *workflow.nodes[1:])).version != workflow.version


@given(st.integers(0, len(RAG)), st.integers(0, 40), st.text(max_size=12))
@settings(deadline=None, max_examples=200)
def test_3_a_damaged_text_gives_problems_with_places_and_cures(at: int, length: int, other: str) -> None:
    for problem in _problems(RAG[:at] + other + RAG[at + length :]):
        assert problem.code
        assert problem.message
        assert problem.cure
        assert problem.line


@given(st.text(max_size=80) | st.binary(max_size=80).map(lambda raw: raw.decode("latin-1")))
@settings(deadline=None, max_examples=200)
def test_3_any_text_is_refused_with_problems(text: str) -> None:
    assert _problems(text)


def _problems(text: str) -> tuple[Problem, ...]:
    try:
        read_workflow(text, source="x.yaml", base=Path())
    except InvalidWorkflow as error:
        return error.problems
    return ()
