"""
Laws of the Python form
1. A mistake in a call is raised where it is made; mistakes in the graph come together from `build()`, with their lines.
2. Functions are named by where they can be imported from; prompt files lie beside the calling file.
3. A value of the workflow cannot be mistaken for a value of Python.
"""

from __future__ import annotations

import posixpath
from pathlib import Path

import pytest

from tightrope.flow.builder import Value, Workflow
from tightrope.model.errors import InvalidInput, InvalidWorkflow
from tightrope.model.workflow import Binding, CodeCall, ModelCall, PromptKind, Ref


def one_code(problem: pytest.ExceptionInfo[InvalidWorkflow]) -> str:
    (found,) = problem.value.problems
    assert found.line
    assert found.cure
    return found.code


def test_1_a_second_output_is_refused() -> None:
    wf = Workflow("w")
    answer = wf.llm("answer", model="m", prompt="x")
    wf.output(answer)
    with pytest.raises(InvalidWorkflow) as caught:
        wf.output(answer)
    assert one_code(caught) == "two_outputs"


def test_1_a_name_given_twice_is_refused() -> None:
    wf = Workflow("w")
    wf.llm("answer", model="m", prompt="x")
    with pytest.raises(InvalidWorkflow) as caught:
        wf.llm("answer", model="m", prompt="x")
    assert one_code(caught) == "duplicate_key"


def test_1_a_case_given_twice_is_refused() -> None:
    route = Workflow("w").switch("route")
    route.case("a", when="true", p="50%")
    with pytest.raises(InvalidWorkflow) as caught:
        route.default("a", p="50%")
    assert one_code(caught) == "duplicate_key"


def test_1_a_value_of_another_workflow_is_refused() -> None:
    other = Workflow("other").input("q")
    with pytest.raises(InvalidWorkflow) as caught:
        Workflow("w").llm("answer", model="m", prompt="{{ q }}", inputs={"q": other})
    assert one_code(caught) == "unknown_reference"


def test_1_a_constant_as_input_is_refused() -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        Workflow("w").llm("answer", model="m", prompt="{{ q }}", inputs={"q": "text"})  # type: ignore[dict-item]
    assert one_code(caught) == "bad_value"


def test_1_mistakes_in_the_graph_come_together_with_their_lines() -> None:
    wf = Workflow("w")
    wf.llm("lonely", model="m", prompt="{{ nothing }}")
    wf.output(wf.llm("answer", model="m", prompt="{{ q }}", timeout="3 parsecs"))
    with pytest.raises(InvalidWorkflow) as caught:
        wf.build()
    found = caught.value.problems
    assert [problem.code for problem in found] == [
        "missing_input",
        "unreachable_node",
        "bad_unit",
        "missing_input",
    ]
    lines = Path(__file__).read_text().splitlines()
    assert ["lonely" in lines[problem.line - 1] for problem in found] == [True, True, False, False]
    assert ['"answer"' in lines[problem.line - 1] for problem in found] == [False, False, True, True]


def test_1_a_workflow_without_output_says_so() -> None:
    wf = Workflow("w")
    wf.llm("answer", model="m", prompt="x")
    with pytest.raises(InvalidWorkflow, match="'output' is missing"):
        wf.build()


def test_2_a_function_is_named_by_its_module() -> None:
    wf = Workflow("w")
    wf.output(wf.code("join", fn=posixpath.join, inputs={"a": wf.input("a")}))
    assert wf.build().nodes[0].work == CodeCall("posixpath:join")


def test_2_a_function_that_cannot_be_imported_is_refused() -> None:
    def inner() -> None: ...

    for function in (inner, lambda: None, "x".join):
        with pytest.raises(InvalidWorkflow) as caught:
            Workflow("w").code("f", fn=function)
        assert one_code(caught) == "bad_value"


def test_2_prompts_lie_beside_the_calling_file_or_under_the_base(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "answer.txt").write_text("from the file\n")
    (tmp_path / "system.txt").write_text("be brief")
    wf = Workflow("w", base=tmp_path)
    wf.output(wf.llm("answer", model="m", system=wf.file("system.txt")))
    work = wf.build().nodes[0].work
    assert isinstance(work, ModelCall)
    assert (work.prompt.text, work.prompt.system) == ("from the file", "be brief")
    assert work.prompt.file == "prompts/answer.txt"
    beside = Workflow("w")
    beside.output(beside.llm("answer", model="m"))
    with pytest.raises(InvalidWorkflow, match=str(Path(__file__).parent / "prompts" / "answer.txt")):
        beside.build()


def test_2_the_request_can_be_passed_on() -> None:
    wf = Workflow("w")
    wf.output(wf.llm("answer", model="m", messages="request"))
    work = wf.build().nodes[0].work
    assert isinstance(work, ModelCall)
    assert work.prompt.kind is PromptKind.MESSAGES


def test_3_fields_alternatives_and_null() -> None:
    wf = Workflow("w")
    a = wf.code("a", fn="m:a")
    b = wf.code("b", fn="m:b")
    wf.output(
        wf.code(
            "c",
            fn="m:c",
            inputs={
                "x": a.notes["items"],
                "y": wf.first_of(a["optional"], b.optional),
                "z": wf.first_of(a, b),
            },
            after=[b, "a"],
        )
    )
    last = wf.build().nodes[-1]
    assert dict(last.inputs) == {
        "x": Binding((Ref("a", ("notes", "items")),)),
        "y": Binding((Ref("a", ("optional",)), Ref("b")), optional=True),
        "z": Binding((Ref("a"), Ref("b"))),
    }
    assert last.after == ("b", "a")


def test_3_values_are_not_values_of_python() -> None:
    wf = Workflow("w")
    value = wf.code("a", fn="m:a")
    with pytest.raises(TypeError, match="foreach"):
        list(value)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="switch"):
        bool(value)
    with pytest.raises(InvalidInput, match="before first_of"):
        _ = wf.first_of(value, value).field
    assert not hasattr(value, "_private")
    assert isinstance(value, Value)
