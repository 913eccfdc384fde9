"""
Laws of what is reported about a YAML workflow
1. Every kind of mistake is found, at its line and column, with its code and a cure.
2. All mistakes of a text are reported together, in the order of the text.
3. A problem is drawn under its line with carets, cause and cure.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flow.forms import RAG, SHOP, write_prompts
from tightrope.flow.document import explain_problems, located, read_workflow
from tightrope.flow.places import render_problem
from tightrope.model.errors import InvalidWorkflow, Problem


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("workflow"))


def problems_of(text: str, base: Path) -> tuple[Problem, ...]:
    with pytest.raises(InvalidWorkflow) as caught:
        read_workflow(text, source="x.yaml", base=base)
    return caught.value.problems


def small(**changes: str) -> str:
    """A workflow of two nodes, one line each, with some lines changed."""
    lines = {
        "workflow": "workflow: small",
        "slo": "slo: {ttft: 900ms, attain: 95%}",
        "input": "input: {q: {from: last_user_message}}",
        "switch": "switch: {}",
        "nodes": "nodes:",
        "first": '  first: {llm: m, prompt: "{{ q }}", inputs: {q: input.q}, out: {items: [string], kind: string}}',
        "last": '  last: {llm: m, prompt: "{{ x }}", inputs: {x: first.items}, stream: true}',
        "output": "output: last",
    }
    return "\n".join((lines | changes).values()) + "\n"


def test_1_the_small_workflow_is_right(base: Path) -> None:
    assert read_workflow(small(), source="x", base=base).name == "small"


SWITCH = "switch: {s: {a: {when: 'first.kind == \"a\"', p: 50%}, b: {else: true, p: 50%}}}"
MISTAKES = {
    "cycle": (
        small(
            first='  first: {llm: m, prompt: "{{ x }}", inputs: {x: last}}',
            last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: first}}',
        ),
        ("cycle", "first"),
        "these wait for each other: first -> last -> first",
        "remove one of the references",
    ),
    "unreachable node": (
        small(nodes='nodes:\n  alone: {llm: m, prompt: "hello"}'),
        ("unreachable_node", "alone"),
        "nothing that leads to the output 'last' reads 'alone'",
        "read it from a later node",
    ),
    "a case that does not exist": (
        small(
            switch=SWITCH,
            nodes='nodes:\n  one: {llm: m, prompt: "x", case: s.c}',
            last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: one | null}}',
        ),
        ("unreachable_node", "s.c"),
        "s has no case 'c'",
        "name one of: a, b",
    ),
    "a node of two cases at once": (
        small(
            switch=SWITCH,
            nodes='nodes:\n  one: {case: s.a, llm: m, prompt: "x"}',
            output='  two: {case: s.b, llm: m, prompt: "{{ y }}", inputs: {y: one}}\noutput: last',
            last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: two | null}}',
        ),
        ("unreachable_node", "two: "),
        "no combination of cases reaches two",
        "a | b | null",
    ),
    "an output that some case skips": (
        small(
            switch=SWITCH,
            nodes='nodes:\n  one: {case: s.a, llm: m, prompt: "x"}',
            last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: one}}',
        ),
        ("unreachable_node", "inputs: {x: one}"),
        "in case s.b there is no answer: last needs one",
        "read it as `one | null`",
    ),
    "missing input": (
        small(
            first='  first: {llm: m, prompt: "{{ q }}", inputs: {q: input.question}, out: {items: [string]}}'
        ),
        ("missing_input", "input.question"),
        "input.question is not an input of the workflow",
        "declare it under `input` (known: q)",
    ),
    "template with a name it does not have": (
        small(last='  last: {llm: m, prompt: "{{ x }} {{ y }}", inputs: {x: first.items}}'),
        ("missing_input", '"{{ x }} {{ y }}"'),
        "the prompt inserts 'y', which last does not have",
        "add it under `inputs` of last (there: x)",
    ),
    "template with an expression": (
        small(last='  last: {llm: m, prompt: "{{ x.y }}", inputs: {x: first.items}}'),
        ("bad_value", '"{{ x.y }}"'),
        "a template inserts `{{ name }}` and nothing else",
        "Name an input",
    ),
    "guard that does not parse": (
        small(switch="switch: {s: {a: {when: 'first.kind == ', p: 50%}, b: {else: true, p: 50%}}}"),
        ("guard_invalid", "'first.kind == '"),
        "does not parse at character 15",
        "check brackets, quotes and operators there",
    ),
    "guard over an unknown node": (
        small(switch="switch: {s: {a: {when: 'frist.kind == 1', p: 50%}, b: {else: true, p: 50%}}}"),
        ("unknown_reference", "'frist.kind == 1'"),
        "the guard reads 'frist', which is no node",
        'write "first"',
    ),
    "guard over an unknown field": (
        small(switch="switch: {s: {a: {when: 'first.knid == 1', p: 50%}, b: {else: true, p: 50%}}}"),
        ("unknown_reference", "'first.knid == 1'"),
        "first has no field 'knid'",
        'write "kind"',
    ),
    "guard over a plain text": (
        small(
            nodes='nodes:\n  one: {llm: m, prompt: "x"}',
            switch="switch: {s: {a: {when: 'one == \"x\"', p: 50%}, b: {else: true, p: 50%}}}",
        ),
        ("guard_invalid", "'one == "),
        "one answers in plain text",
        'write "one.text"',
    ),
    "guard over an undeclared input": (
        small(switch="switch: {s: {a: {when: 'input.z == 1', p: 50%}, b: {else: true, p: 50%}}}"),
        ("missing_input", "'input.z == 1'"),
        "input.z is not an input",
        "name one of: q",
    ),
    "a wrong guard on a single node": (
        small(
            nodes="nodes:\n  one: {llm: m, prompt: x, when: 'first.kind ==', p: 50%}",
            last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: one | null}}',
        ),
        ("guard_invalid", "'first.kind =='"),
        "does not parse",
        "check brackets",
    ),
    "two final nodes": (
        small(
            first='  first: {llm: m, prompt: "{{ q }}", inputs: {q: input.q}, stream: true, out: {items: [string]}}'
        ),
        ("two_outputs", "true, out"),
        "first streams, but the output is last",
        "keep `stream: true` on the output node alone",
    ),
    "a fan-out as output": (
        small(
            last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: each}, foreach: first.items, max_items: 2}'
        ),
        ("two_outputs", "first.items, max"),
        "the output node cannot fan out",
        "gather its items in one more node",
    ),
    "cases that do not sum to 100": (
        small(switch="switch: {s: {a: {when: 'first.kind == \"a\"', p: 50%}, b: {else: true, p: 40%}}}"),
        ("cases_not_100", "s: {a"),
        "the probabilities sum to 90 %",
        "make them sum to 100 %",
    ),
    "no else": (
        small(switch="switch: {s: {a: {when: 'first.kind == \"a\"', p: 100%}}}"),
        ("guard_invalid", "s: {a"),
        "exactly one `else`",
        "else: true",
    ),
    "bad unit": (
        small(slo="slo: {ttft: 900 mins}"),
        ("bad_unit", "900 mins"),
        "'mins' is not a unit of a duration",
        "ms",
    ),
    "missing unit": (
        small(slo="slo: {ttft: 900}"),
        ("missing_unit", "900"),
        "900 has no unit",
        "a duration is written like 800ms",
    ),
    "a bare probability": (
        small(switch="switch: {s: {a: {when: 'first.kind == \"a\"', p: 0.5}, b: {else: true, p: 50%}}}"),
        ("missing_unit", "0.5"),
        "0.5 has no unit",
        "a percentage is written like 95%",
    ),
    "unknown key": (
        small(slo="slo: {ttft: 900ms, atain: 95%}"),
        ("unknown_key", "atain"),
        '"atain" is not a key of slo',
        'write "attain"',
    ),
    "unknown key of a node": (
        small(last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: first.items}, max_tokns: 9}'),
        ("unknown_key", "max_tokns"),
        '"max_tokns" is not a key of nodes.last',
        'write "max_tokens"',
    ),
    "a key of another kind of node": (
        small(first='  first: {code: "a.b:c", inputs: {q: input.q}, stream: true}'),
        ("unknown_key", "stream"),
        '"stream" is not a key of nodes.first',
        "remove it",
    ),
    "duplicate key": (
        small(slo="slo: {ttft: 900ms, ttft: 800ms}"),
        ("duplicate_key", "ttft: 800ms"),
        '"ttft" stands twice in slo',
        "remove one of the two",
    ),
    "foreach without max_items": (
        small(
            nodes='nodes:\n  one: {llm: m, prompt: "{{ x }}", inputs: {x: each}, foreach: first.items}',
            last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: one}}',
        ),
        ("missing_key", "first.items}"),
        "`foreach` without `max_items`",
        "max_items: 4",
    ),
    "max_items without foreach": (
        small(last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: first.items}, max_items: 4}'),
        ("missing_key", "4}"),
        "`max_items` without `foreach`",
        "name the list",
    ),
    "foreach over what is no list": (
        small(
            nodes='nodes:\n  one: {llm: m, prompt: "{{ x }}", inputs: {x: each}, foreach: first.kind, max_items: 2}',
            last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: one}}',
        ),
        ("bad_value", "first.kind"),
        "first.kind is not a list but string",
        "name a list",
    ),
    "each without foreach": (
        small(last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: each}}'),
        ("unknown_reference", "each"),
        "`each` outside a fan-out",
        "add `foreach` and `max_items`",
    ),
    "gather of what is no fan-out": (
        small(last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: {gather: first}}}'),
        ("unknown_reference", "x: {gather"),
        "gather joins exactly one fan-out node",
        "name a node with `foreach`",
    ),
    "gather of more than there can be": (
        small(
            nodes='nodes:\n  one: {llm: m, prompt: "{{ x }}", inputs: {x: each}, foreach: first.items, max_items: 2}',
            last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: {gather: one, min: 3}}}',
        ),
        ("bad_value", "x: {gather"),
        "at least 3 of at most 2",
        "ask for 2 or fewer",
    ),
    "unknown node": (
        small(last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: frist}}'),
        ("unknown_reference", "frist"),
        "there is no node 'frist'",
        "name one of: first, last",
    ),
    "unknown field": (
        small(last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: first.itmes}}'),
        ("unknown_reference", "first.itmes"),
        "first has no field 'itmes'",
        'write "items"',
    ),
    "field of a plain text": (
        small(
            nodes='nodes:\n  one: {llm: m, prompt: "x"}',
            last='  last: {llm: m, prompt: "{{ x }}{{ y }}", inputs: {x: first.items, y: one.notes}}',
        ),
        ("unknown_reference", "one.notes"),
        "one is plain text",
        "give its node a shape with `out`",
    ),
    "unknown output": (
        small(output="output: lst"),
        ("unknown_reference", "lst"),
        "the output node 'lst' does not exist",
        "name one of: first, last",
    ),
    "no output": (
        small(output=""),
        ("missing_key", "workflow: small"),
        "'output' is missing",
        "`output: answer`",
    ),
    "a step called like a word of ours": (
        small(first='  null: {llm: m, prompt: "x"}', last='  last: {llm: m, prompt: "x", after: ["null"]}'),
        ("bad_name", "null: {llm"),
        "'null' cannot name a step",
        "none of input, each, null",
    ),
    "a name used twice": (
        small(switch=SWITCH.replace("{s:", "{last:")),
        ("duplicate_key", "last: {llm"),
        "'last' names two steps",
        "rename one of them",
    ),
    "retry of code that is not idempotent": (
        small(first='  first: {code: "a.b:c", inputs: {q: input.q}, retry: 1}'),
        ("retry_needs_idempotent", "1}"),
        "code that is not idempotent is never repeated",
        "set `idempotent: true`",
    ),
    "http": (
        small(first='  first: {http: {method: GET, url: "https://a/b"}, inputs: {q: input.q}}'),
        ("not_supported", "http"),
        "`http` is not supported in this release",
        "call the service from a `code` node",
    ),
    "repeat": (
        small(last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: first.items}, repeat: {max: 2}}'),
        ("not_supported", "repeat"),
        "`repeat` is not supported in this release",
        "write the steps out",
    ),
    "streaming between nodes": (
        small(
            first='  first: {llm: m, prompt: "{{ q }}", inputs: {q: input.q}, stream: lines, out: {items: [string]}}'
        ),
        ("not_supported", "stream: lines"),
        "streaming lines from node to node is not supported",
        "`stream: true` on the output node alone",
    ),
    "messages spelled out": (
        small(last="  last: {llm: m, messages: [{role: user}], inputs: {x: first.items}}"),
        ("not_supported", "messages"),
        "messages cannot be spelled out",
        "`prompt` and `system`",
    ),
    "another format": (
        small(
            first='  first: {llm: m, prompt: "{{ q }}", inputs: {q: input.q}, format: yaml}',
            last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: first}}',
        ),
        ("not_supported", "format"),
        "format yaml is not supported",
        "use text or json",
    ),
    "no prompt": (
        small(last="  last: {llm: m, inputs: {x: first.items}}"),
        ("missing_prompt", "last: {llm"),
        "the prompt file 'prompts/last.txt' cannot be read: No such file",
        "write it beside the workflow",
    ),
    "prompt file that is a way out": (
        small(last="  last: {llm: m, prompt: {file: /etc/hostname}, inputs: {x: first.items}}"),
        ("missing_prompt", "prompt: {file"),
        "the path is not relative",
        "beside the workflow",
    ),
    "constant as input": (
        small(last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: 3}}'),
        ("bad_value", "3}"),
        "an input of a node is a reference, not 3",
        "name what it reads",
    ),
    "null in front": (
        small(last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: null | first}}'),
        ("bad_value", "null | first"),
        "`null` does not stand last",
        "a | b | null",
    ),
    "wrong shape": (
        small(first='  first: {llm: m, prompt: "{{ q }}", inputs: {q: input.q}, out: {items: [strin]}}'),
        ("bad_value", "out"),
        "'strin' is not a type",
        "write it like",
    ),
    "no kind of work": (
        small(first="  first: {inputs: {q: input.q}}"),
        ("missing_key", "first: {inputs"),
        "needs exactly one kind of work",
        "llm: <model>",
    ),
    "wrong kind of failure": (
        small(
            last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: first.items}, retry: {max: 1, for: [bad_request]}}'
        ),
        ("bad_value", "for:"),
        "'bad_request' is not a failure that another attempt can mend",
        "timeout",
    ),
    "wrong source": (
        small(input="input: {q: {from: last_message}}"),
        ("bad_value", "last_message"),
        "'last_message' is not part of a request",
        "last_user_message",
    ),
    "an anchor": (
        small(slo="slo: &a {ttft: 1s}"),
        ("not_yaml", "&a"),
        "an anchor or an alias",
        "write the value out",
    ),
    "a tag": (
        small(slo="slo: !!python/object:os.system {ttft: 1s}"),
        ("not_yaml", "!!python"),
        "the tag",
        "plain data",
    ),
    "no YAML": (small(slo="slo: {ttft: 1s"), ("not_yaml", ": small"), "this is not YAML", "check quotes"),
    "a word of YAML 1.1": (
        small(last='  last: {llm: m, prompt: "{{ x }}", inputs: {x: first.items}, stream: yes}'),
        ("bad_value", "yes"),
        'stream is true or false, not "yes"',
        "write true or false",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_1_each_mistake_is_found_at_its_place_with_a_cure(name: str, base: Path) -> None:
    text, (code, place), message, cure = MISTAKES[name]
    found = problems_of(text, base)
    assert [problem.code for problem in found] == [code], [str(problem) for problem in found]
    assert message in found[0].message
    assert cure in found[0].cure
    line = text.splitlines()[found[0].line - 1]
    if code != "not_yaml":
        assert line[found[0].column - 1 :].startswith(place), line[found[0].column - 1 :]


LAST = '  last: {llm: m, prompt: "{{ x }}", inputs: {x: first.items}, %s}'
CODE = '  first: {code: "a.b:c", inputs: {q: input.q}, %s}'


@pytest.mark.parametrize(
    ("line", "keys", "code", "message"),
    [
        (LAST, "temperature: -1", "bad_value", "temperature is below 0"),
        (LAST, "temperature: hot", "bad_value", 'temperature is a number, not "hot"'),
        (LAST, "max_tokens: 0", "bad_value", "max_tokens is below 1"),
        (LAST, "max_tokens: many", "bad_value", 'max_tokens is a whole number, not "many"'),
        (LAST, "stop: [1]", "bad_value", "stop is a list of texts"),
        (LAST, "fallback: 3", "bad_value", "fallback is a text, not 3"),
        (LAST, "format: xml", "bad_value", "'xml' is not a format"),
        (LAST, "format: text, out: {a: string}", "bad_value", "an answer with a shape is JSON"),
        (LAST, "system: {text: a}", "bad_value", "system is a text"),
        (LAST, "messages: request", "bad_value", "`messages` beside a prompt"),
        (LAST, "timeout: {atempt: 1s}", "unknown_key", '"atempt" is not a key of nodes.last.timeout'),
        (LAST, "timeout: 3", "missing_unit", "3 has no unit"),
        (LAST, "retry: -1", "bad_value", "retry is below 0"),
        (LAST, "retry: {for: [timeout]}", "missing_key", "a retry says how often"),
        (LAST, "on_error: retry", "bad_value", 'on_error cannot be "retry"'),
        (LAST, "overflow: cut", "missing_key", "`overflow` without `foreach`"),
        (LAST, "p: 50%", "missing_key", "`p` without `when`"),
        (LAST, "case: route", "bad_value", "'route' is not a case"),
        (LAST, "after: {first: true}", "bad_value", "after is a list of texts"),
        (CODE, "foreach: a | b, max_items: 2", "bad_value", "'a | b' is not a reference"),
        (CODE, "foreach: input.q, max_items: 2, overflow: drop", "bad_value", "'drop' is not a way"),
        (
            '  first: {code: "a.b", inputs: {q: input.q}, %s}',
            "idempotent: true",
            "bad_value",
            "does not name a function",
        ),
        (
            '  first: {code: "a.b:c", inputs: {q q: input.q}, %s}',
            "retry: 0",
            "bad_name",
            "'q q' cannot name an input",
        ),
        (
            "  first: {llm: m, prompt: 3, inputs: {q: input.q}, %s}",
            "format: json",
            "bad_value",
            "a prompt cannot be 3",
        ),
        (
            "  first: {llm: m, code: a, prompt: x, %s}",
            "format: json",
            "bad_value",
            "exactly one kind of work",
        ),
        (
            "  last: {llm: m, prompt: x, inputs: {x: {gather: first, min: -1}}, %s}",
            "after: []",
            "bad_value",
            "below 0",
        ),
        (
            "  last: {llm: m, prompt: x, inputs: [first], %s}",
            "after: []",
            "bad_value",
            "`inputs` is a mapping",
        ),
    ],
)
def test_1_wrong_values_of_keys(line: str, keys: str, code: str, message: str, base: Path) -> None:
    text = small(**{line.split(":", maxsplit=1)[0].strip(): line % keys})
    number = next(index for index, one in enumerate(text.splitlines(), 1) if one == line % keys)
    found = [
        problem for problem in problems_of(text, base) if problem.code == code and message in problem.message
    ]
    assert found
    assert found[0].line == number
    assert found[0].cure


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"switch": "switch: {s: []}"}, "a switch is a mapping of cases"),
        ({"switch": "switch: {s: {a b: {else: true, p: 100%}}}"}, "'a b' cannot name a case"),
        ({"switch": "switch: {s: {a: {p: 100%}}}"}, "case 'a' needs a guard or `else`"),
        ({"switch": "switch: {s: {a: {else: true}}}"}, "case 'a' has no probability"),
        ({"switch": "switch: {s: {case: {else: true, p: 100%}}}"}, "case is a text"),
        ({"input": "input: {q: {}, a b: {}}"}, "'a b' cannot name an input"),
        ({"input": "input: {q: 3}"}, "an input is a mapping, not 3"),
        ({"slo": "slo: 3"}, "the SLO of a workflow is a mapping, not 3"),
        ({"nodes": "nodes: {}", "first": "", "last": ""}, "a workflow has at least one node"),
    ],
)
def test_1_wrong_values_around_the_nodes(change: dict[str, str], message: str, base: Path) -> None:
    found = [problem for problem in problems_of(small(**change), base) if message in problem.message]
    assert found
    assert found[0].line
    assert found[0].cure


@pytest.mark.parametrize("text", ["", "3", "[a]", "just words"])
def test_1_what_is_no_workflow_at_all(text: str, base: Path) -> None:
    assert problems_of(text, base)


def test_2_all_mistakes_are_reported_in_the_order_of_the_text(base: Path) -> None:
    text = (
        SHOP.replace("ttft: 900ms", "ttft: 900").replace("p: 45%", "p: 44%").replace("retry: 1,", "retyr: 1,")
    )
    text = text.replace('intent.kind == "browse"\'', "intent.kind == \"browse'").replace(
        "orders | null", "order | null"
    )
    found = problems_of(text, base)
    codes = [problem.code for problem in found]
    assert codes == ["missing_unit", "cases_not_100", "guard_invalid", "unknown_key", "unknown_reference"]
    assert [problem.line for problem in found] == sorted(problem.line for problem in found)


def test_3_a_problem_is_drawn_under_its_line(base: Path) -> None:
    text = RAG.replace("attain: 95%", "atain: 95%")
    with pytest.raises(InvalidWorkflow) as caught:
        read_workflow(text, source="rag.yaml", base=base)
    assert explain_problems(caught.value, source="rag.yaml", text=text) == (
        'rag.yaml:2:21  unknown_key: "atain" is not a key of slo\n'
        "    2 | slo: {ttft: 1200ms, atain: 95%}\n"
        "      |                     ^^^^^\n"
        "   cause: the SLO of a workflow knows ttft, tpot, e2e, attain\n"
        '   next:  write "attain"'
    )


def test_3_a_problem_without_a_place_is_still_readable() -> None:
    problem = Problem("slo_unreachable", (), "no profile can meet 1ms", "relax the target")
    assert render_problem(problem, "a.yaml", "x: 1") == (
        "a.yaml  slo_unreachable: no profile can meet 1ms\n   next:  relax the target"
    )


def test_2_problems_found_later_get_their_places_too() -> None:
    late = Problem(
        "unknown_model", ("nodes", "answer", "fallback"), "there is no model 'small'", "name one of: big"
    )
    (found,) = located([late], RAG)
    assert RAG.splitlines()[found.line - 1][found.column - 1 :].startswith("small, stream")
