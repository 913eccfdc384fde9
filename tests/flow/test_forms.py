"""
Laws of the two forms
1. The same workflow written in Python and in YAML gives equal objects with equal versions.
2. Written as YAML and read again, a workflow is the same.
3. What is said of the RAG and the shopping workflow is what is in the object.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flow.forms import RAG, SHOP, rag_in_python, shop_in_python, write_prompts
from tightrope.flow.builder import Workflow as Builder
from tightrope.flow.document import read_workflow, write_workflow
from tightrope.model.outcome import FailureKind
from tightrope.model.slo import Slo
from tightrope.model.workflow import (
    Binding,
    CaseRef,
    FanOut,
    Gather,
    ModelCall,
    OnError,
    Ref,
    Retry,
    Timeouts,
    Workflow,
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_prompts(tmp_path)


def shop(base: Path) -> Workflow:
    return read_workflow(SHOP, source="shop.yaml", base=base)


def test_1_rag_is_the_same_in_both_forms(base: Path) -> None:
    in_yaml, in_python = read_workflow(RAG, source="rag.yaml", base=base), rag_in_python(base).build()
    assert in_yaml == in_python
    assert in_yaml.version == in_python.version


def test_1_shopping_is_the_same_in_both_forms(base: Path) -> None:
    in_yaml, in_python = shop(base), shop_in_python(base).build()
    assert in_yaml == in_python
    assert in_yaml.id == in_python.id


@pytest.mark.parametrize("text", [RAG, SHOP])
def test_2_written_and_read_again_they_are_the_same(text: str, base: Path) -> None:
    workflow = read_workflow(text, source="a.yaml", base=base)
    assert read_workflow(write_workflow(workflow), source="b.yaml", base=base) == workflow


def test_3_the_shopping_workflow_holds_what_its_text_says(base: Path) -> None:
    workflow = shop(base)
    node = {str(node.id): node for node in workflow.nodes}
    step = workflow.step_by_id
    assert workflow.slo == Slo(ttft_s=0.9, tpot_s=0.06, attain=0.95)
    assert [case.name for case in workflow.switches[0].cases] == ["order", "browse", "chat"]
    assert workflow.switches[0].reads == ("intent",)
    assert list(step) == ["intent", "orders", "rewrite", "search", "compare", "answer", "route"]
    intent = node["intent"]
    assert intent.timeouts == Timeouts(attempt_s=0.15, total_s=0.3)
    assert intent.retry == Retry(1, (FailureKind.TIMEOUT, FailureKind.REPLICA_LOST, FailureKind.BAD_OUTPUT))
    assert intent.on_error == OnError("value", '{"kind":"chat"}')
    compare = node["compare"]
    assert compare.fan_out == FanOut(Ref("search", ("batches",)), 2)
    assert compare.case == CaseRef(workflow.switches[0].id, "browse")
    assert dict(compare.inputs)["batch"] == Binding((Ref("each"),))
    answer = node[workflow.output]
    assert dict(answer.inputs)["orders"] == Binding((Ref("orders"),), optional=True)
    assert dict(answer.inputs)["notes"] == Binding((Ref("compare"),), True, Gather(1, 0.3))
    assert isinstance(answer.work, ModelCall)
    assert answer.work.stream
    assert answer.work.prompt.text == "Answer {{ question }} from {{ notes }}."
    assert answer.work.prompt.file == "prompts/answer.txt"


def test_3_the_text_of_a_plain_answer_is_the_answer(base: Path) -> None:
    search = next(node for node in shop(base).nodes if node.id == "search")
    assert dict(search.inputs)["query"] == Binding((Ref("rewrite"),))


def test_1_when_on_a_node_is_a_switch_of_two_cases() -> None:
    wf = Builder("maybe")
    question = wf.input("question", default=None)
    long = wf.llm(
        "long", model="m", prompt="{{ q }}", inputs={"q": question}, when="size(input.question) > 9", p="30%"
    )
    wf.output(wf.llm("answer", model="m", prompt="{{ x }}", inputs={"x": wf.first_of(long, question)}))
    in_yaml = """
workflow: maybe
input: {question: {default: null}}
nodes:
  long: {llm: m, prompt: "{{ q }}", inputs: {q: input.question}, when: 'size(input.question) > 9', p: 30%}
  answer: {llm: m, prompt: "{{ x }}", inputs: {x: long | input.question}}
output: answer
"""
    workflow = wf.build()
    assert workflow == read_workflow(in_yaml, source="x", base=Path())
    assert [case.probability for case in workflow.switches[0].cases] == [0.3, 0.7]
    assert read_workflow(write_workflow(workflow), source="x", base=Path()) == workflow


def test_1_a_switch_inside_a_case_belongs_to_it() -> None:
    wf = Builder("nested")
    question = wf.input("question")
    outer = wf.switch("outer")
    with outer.case("a", when='input.question == "a"', p="50%"):
        inner = wf.switch("inner")
        with inner.case("b", when='input.question != "b"', p="50%"):
            found = wf.llm("found", model="m", prompt="{{ q }}", inputs={"q": question})
        inner.default("c", p="50%")
    outer.default("d", p="50%")
    wf.output(wf.llm("answer", model="m", prompt="{{ x }}", inputs={"x": found.optional}))
    workflow = wf.build()
    assert workflow.switches[1].case == CaseRef(workflow.switches[0].id, "a")
    assert workflow.nodes[0].case == CaseRef(workflow.switches[1].id, "b")
    assert read_workflow(write_workflow(workflow), source="x", base=Path()) == workflow
