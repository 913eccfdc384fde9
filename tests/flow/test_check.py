"""
Laws of the check against an installation
1. Models that do not exist, modules that are not allowed and missing functions are found, with the nearest name.
2. A workflow that is right here has no problems.
3. Content of a workflow built without a reader is checked all the same.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.flow.forms import SHOP, write_prompts
from tightrope.flow.check import check_workflow, content_problems
from tightrope.flow.document import read_workflow
from tightrope.model.workflow import CodeCall, ModelCall, Workflow

MODELS = ("tiny", "small", "big")


@pytest.fixture
def shop(tmp_path: Path) -> Workflow:
    return read_workflow(SHOP, source="shop.yaml", base=write_prompts(tmp_path))


def calling(shop: Workflow, function: str) -> Workflow:
    work = CodeCall(function, True)
    nodes = [replace(node, work=work) if isinstance(node.work, CodeCall) else node for node in shop.nodes]
    return replace(shop, nodes=tuple(nodes))


def test_2_a_right_workflow_has_no_problems(shop: Workflow) -> None:
    assert check_workflow(shop, models=MODELS, allow_python=["shop.*"]) == []


def test_1_an_unknown_model_and_the_nearest_name(shop: Workflow) -> None:
    found = check_workflow(shop, models=("tinny", "small", "big"), allow_python=["shop.*"])
    assert {problem.code for problem in found} == {"unknown_model"}
    assert [problem.path for problem in found] == [("nodes", "intent", "llm"), ("nodes", "rewrite", "llm")]
    assert found[0].cure == 'write "tinny"'


def test_1_an_unknown_fallback(shop: Workflow) -> None:
    found = check_workflow(shop, models=("tiny", "big"), allow_python=["shop.*"])
    assert ("nodes", "answer", "fallback") in [problem.path for problem in found]


@pytest.mark.parametrize(
    ("patterns", "is_allowed"), [([], False), (["shop"], False), (["shop.*"], True), (["*"], True)]
)
def test_1_modules_are_allowed_by_pattern(shop: Workflow, patterns: list[str], is_allowed: bool) -> None:
    found = check_workflow(shop, models=MODELS, allow_python=patterns)
    assert [problem.code for problem in found] == ([] if is_allowed else ["module_not_allowed"] * 2)
    assert is_allowed or "workflows.allow_python" in found[0].cure


@pytest.mark.parametrize(
    ("function", "message", "cure"),
    [
        ("no_such_module_here:f", "cannot be imported", "make it importable"),
        ("posixpath:jion", "has no function 'jion'", 'write "join"'),
        ("posixpath:sep", "has no function 'sep'", "name one of"),
    ],
)
def test_1_a_function_that_is_not_there(shop: Workflow, function: str, message: str, cure: str) -> None:
    workflow = calling(shop, function)
    found = check_workflow(workflow, models=MODELS, allow_python=["*"], import_functions=True)
    assert {problem.code for problem in found} == {"function_missing"}
    assert message in found[0].message
    assert cure in found[0].cure
    assert check_workflow(workflow, models=MODELS, allow_python=["*"]) == []


def test_2_a_function_that_is_there(shop: Workflow) -> None:
    workflow = calling(shop, "posixpath:join")
    assert check_workflow(workflow, models=MODELS, allow_python=["posixpath"], import_functions=True) == []


def test_3_guards_templates_and_schemas_of_any_workflow_are_checked(shop: Workflow) -> None:
    switch = shop.switches[0]
    cases = (replace(switch.cases[0], guard="1 +"), *switch.cases[1:])
    nodes = list(shop.nodes)
    answer = nodes[-1]
    assert isinstance(answer.work, ModelCall)
    prompt = replace(answer.work.prompt, text="{{ nothing }}")
    nodes[-1] = replace(answer, work=replace(answer.work, prompt=prompt, shape='{"pattern": "x"}'))
    workflow = replace(shop, nodes=tuple(nodes), switches=(replace(switch, cases=cases),))
    assert [(problem.code, problem.path) for problem in content_problems(workflow)] == [
        ("guard_invalid", ("switch", "route", "order", "when")),
        ("missing_input", ("nodes", "answer", "prompt")),
        ("bad_value", ("nodes", "answer", "out")),
    ]
