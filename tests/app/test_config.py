"""
Laws of the configuration
1. What is wrong is refused with its code, line, column and a cure, and everything wrong is found at once.
2. A problem is drawn under its line.
3. Every value in force is shown with its origin; a variable wins over the file, the file over the default.
4. A secret is never shown: not in settings, not in a repr, not in a problem.
5. What would not be safe to serve is named.
6. Files of any bytes are answered with problems, never with another error.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tightrope.app.config import Placed, Reading, load_config, parse_config, tenant_problems, unsafe_listen
from tightrope.app.config_form import LlamaCpp, Policy, ProvisionPolicy
from tightrope.flow.places import render_problem
from tightrope.model.errors import InvalidConfig, Problem
from tightrope.model.fleet import Accelerator
from tightrope.model.ids import AcceleratorName, TenantId
from tightrope.model.provision import Floor
from tightrope.model.slo import Limits, Slo, Tenant

TEXT = """\
version: 1
server: {listen: 127.0.0.1:8080, auth: required, drain: 120s}
accelerators:
  fast: {cost: 3.90 USD/h, memory: 80GB, count: 2, share: 80%}
  theirs: {cost: 1.10 USD/h}
models:
  small:
    engine: {kind: llamacpp, slots: 4, context: 4096 tok}
    place: {fast: {min: 2}}
  big:
    engine: {kind: openai}
    replicas:
      - {url: "http://10.0.0.5:8000/v1/", place: theirs, serves: m-large, key: "${env:PARTNER_KEY}"}
tenants:
  shop:
    slo: {ttft: 1500ms, attain: 95%}
    limits: {concurrent: 100, queue: 50, output: 1024 tok, deadline: 120s}
    models: [small, big]
    workflows: [rag, {name: shopping, slo: {ttft: 900ms}}]
router: {policy: foresight}
"""
ENV = {"PARTNER_KEY": "canary-4711"}
FILE = Path("tightrope.yaml")


def read(text: str, env: dict[str, str] | None = None) -> Reading:
    return parse_config(text, FILE, ENV if env is None else env)


def problems_of(text: str, env: dict[str, str] | None = None) -> tuple[Problem, ...]:
    with pytest.raises(InvalidConfig) as raised:
        read(text, env)
    return raised.value.problems


def problems_if_any(text: str) -> tuple[Problem, ...]:
    try:
        read(text)
    except InvalidConfig as error:
        return error.problems
    return ()


def only(text: str, env: dict[str, str] | None = None) -> Problem:
    (problem,) = problems_of(text, env)
    return problem


def place_of(text: str, part: str, start: int) -> tuple[int, int]:
    """Line and column of the first occurrence of `part` from `start` on, else of the first at all."""
    at = text.find(part, start)
    at = text.index(part) if at < 0 else at
    return text[:at].count("\n") + 1, at - text[:at].rfind("\n")


def test_a_whole_file_becomes_our_vocabulary() -> None:
    config = read(TEXT).config
    assert config.accelerators[0] == Accelerator(AcceleratorName("fast"), 3.9, 80 * 10**9, 2, 0.8)
    shop = Tenant(
        TenantId("shop"),
        Slo(ttft="1500ms", attain="95%"),
        None,
        Limits(100, 50, 1024, 120.0),
        config.tenants[0].models,
        ("rag", "shopping"),
        (("shopping", Slo(ttft="900ms", attain="95%")),),
    )
    assert config.tenants == (shop,)
    small, big = config.models
    assert isinstance(small.engine, LlamaCpp)
    assert (small.engine.slots, small.engine.context_tokens) == (4, 4096)
    assert dict(small.place) == {AcceleratorName("fast"): Placed(2, 2)}
    assert big.replicas[0].url == "http://10.0.0.5:8000/v1"
    assert big.replicas[0].key is not None
    assert big.replicas[0].key.reveal() == "canary-4711"
    assert (config.server.listen.host, config.server.listen.port, config.server.drain_s) == (
        "127.0.0.1",
        8080,
        120.0,
    )


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "conf" / "t.yaml"
    file.parent.mkdir()
    file.write_text(
        "version: 1\nmodels: {m: {engine: {kind: llamacpp}, place: {c: {}}}}\naccelerators: {c: {}}\n"
    )
    config = load_config(file, {})
    assert config.journal.path == file.parent / "tightrope.journal"
    assert config.store_file == file.parent / ".tightrope" / "tightrope.sqlite"
    assert config.secret_file == file.parent / "tightrope.secret"


# --- 1 ---------------------------------------------------------------------------------------------------

MISTAKES = [
    # right, wrong, code, place, cure
    ("attain: 95%}", "atain: 95%}", "unknown_key", "atain", 'write "attain"'),
    ("server:", "sever:", "unknown_key", "sever", 'write "server"'),
    ("slots: 4", "slts: 4", "unknown_key", "slts", 'write "slots"'),
    ("drain: 120s", "drain: 120", "missing_unit", "120}", "write it like 800ms"),
    ("drain: 120s", 'drain: "120"', "missing_unit", '"120"', "write it like 800ms"),
    ("drain: 120s", "drain: 120 lightyears", "bad_unit", "120 light", "write it like 800ms"),
    ("memory: 80GB", "memory: 80", "missing_unit", "80,", "write it like 64MiB"),
    ("cost: 3.90 USD/h", "cost: 3.90", "missing_unit", "3.90", "write it like 3.90 USD/h"),
    ("share: 80%", "share: 0.8", "missing_unit", "0.8", "write it like 95%"),
    ("share: 80%", "share: 0%", "bad_value", "0%}", "write it like 95%"),
    ("attain: 95%", "attain: 195%", "bad_value", "195%", "write at most 100%"),
    ("output: 1024 tok", "output: 1024", "missing_unit", "1024,", "write it like 1024 tok"),
    ("policy: foresight", "policy: foresite", "bad_value", "foresite", 'write "foresight"'),
    ("auth: required", "auth: yes", "bad_value", "yes", "write one of required, none"),
    ("kind: llamacpp", "kind: lamacpp", "bad_value", "lamacpp", 'write "llamacpp"'),
    ("kind: llamacpp, slots", "slots", "missing_key", "engine: {slots", "add kind: llamacpp, openai or command"),
    ("listen: 127.0.0.1:8080", "listen: 8080", "bad_value", "8080", "write host:port, like 127.0.0.1:8080"),
    ("concurrent: 100", "concurrent: true", "bad_value", "true", "write a whole number without a unit"),
    ("concurrent: 100", "concurrent: 0", "bad_value", "0,", "write a larger number"),
    ("models: [small, big]", "models: [smal, big]", "unknown_model", "smal,", 'write "small"'),
    ("models: [small, big]", "models: small", "bad_value", "small\n    workflows", "write a list, like [a, b]"),
    ("place: theirs", "place: thiers", "unknown_accelerator", "thiers", 'write "theirs"'),
    ("{fast: {min: 2}}", "{fats: {min: 2}}", "unknown_accelerator", "fats", 'write "fast"'),
    ("count: 2", "count: 1", "count_exceeded", "1, share", "set its count to 2, or lower a min"),
    ("{fast: {min: 2}}", "{}", "missing_key", "small:", "add place: {ACCELERATOR: {min: 1}}"),
    ("{fast: {min: 2}}", "{fast: {min: 0}}", "missing_key", "small:", "add place: {ACCELERATOR: {min: 1}}"),
    ("{fast: {min: 2}}", "{fast: {min: 2, max: 1}}", "bad_value", "fast:", "write max: 2 or more, or lower min"),
    ("{fast: {min: 2}}", "{fast: {min: 2, max: 4}}", "no_provisioner", "4}}", "add provisioner: {mode: act}"),
    ("{fast: {min: 2}}", "{fast: {min: 1, cards: 3}}", "count_exceeded", "2, share", "set its count to 3"),
    ("{fast: {min: 2}}", "{fast: {min: 1, cards: 0}}", "bad_value", "0}}", "write a larger number"),
    ("  shop:\n", "  shop:\n    floor: 2 req/s\n", "no_provisioner", "2 req/s", "add provisioner: {mode: act}"),
    ("  shop:\n", "  shop:\n    floor: 2\n", "missing_unit", "2\n    slo", "write it like 2 req/s"),
    ("{kind: openai}\n", "{kind: openai}\n    place: {fast: {min: 0}}\n", "bad_value", "big:", "list its servers"),
    ("slo: {ttft: 1500ms, attain: 95%}", "slo: {attain: 95%}", "missing_key", "slo:", "give ttft, tpot or e2e"),
    ("drain: 120s", "drain: 120s, drain: 60s", "duplicate_key", "drain: 60s", "remove one of the two"),
    ("[rag, {name", "[rag, rag, {name", "duplicate_key", "rag, {name", "keep one of the two"),
    ("version: 1", "version: 2", "bad_value", "2", "write one of 1"),
    ("version: 1\n", "", "missing_key", "server", 'add "version"'),
    ("small:\n", '"a b":\n', "bad_value", '"a b"', "write letters, digits, dots"),
    ("slots: 4", "weights: ./gone.gguf", "weights_missing", "./gone", "correct the path, or fetch it"),
    ("slots: 4", "weights: embedded:Q9", "bad_value", "embedded:Q9", "write embedded:Q4_0 or embedded:Q8_0, or a path"),
    ('"http://10.0.0.5:8000/v1/"', '"http://u:p@h/v1"', "bad_value", '"http://u', "write it like http://10.0.0.5"),
    ('"${env:PARTNER_KEY}"', '"${env:NOBODY}"', "secret_missing", '"${env', "set NOBODY"),
    ('"${env:PARTNER_KEY}"', '"${file:./none}"', "secret_missing", '"${file', "write the secret into ./none"),
    ("serves: m-large", 'serves: "${env:X}"', "bad_value", '"${env:X}"', "write the value, or set the variable"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong", "code", "at", "cure"), MISTAKES)
def test_1_a_mistake_is_named_with_its_place_and_cure(
    right: str, wrong: str, code: str, at: str, cure: str
) -> None:
    start = TEXT.rfind("\n", 0, TEXT.index(right)) + 1 if wrong else 0
    is_named(TEXT, right, wrong, code, at, cure, start)


def is_named(base: str, right: str, wrong: str, code: str, at: str, cure: str, start: int) -> None:
    """With `wrong` in place of `right` there is such a problem at the first `at` from `start` on, with this cure."""
    assert right in base
    text = base.replace(right, wrong, 1)
    problem = next(one for one in problems_of(text) if one.code == code)
    assert (problem.line, problem.column) == place_of(text, at, start)
    assert problem.cure.startswith(cure)


ELASTIC = TEXT.replace("place: {fast: {min: 2}}", "place: {fast: {min: 1, max: 2}}") + (
    "provisioner: {mode: act, every: 2s, headroom: 20%, max_cost: 12 USD/h, target: 3}\n"
)
ELASTIC_MISTAKES = [
    ("mode: act", "mode: yes", "bad_value", "yes,", "write one of none, advise, act"),
    ("mode: act", "mode: act, policy: least-costs", "bad_value", "least-costs", 'write "least-cost"'),
    ("every: 2s", "every: 2", "missing_unit", "2,", "write it like 800ms"),
    ("headroom: 20%", "headroom: 100%", "bad_value", "100%", "write less than 100%"),
    ("headroom: 20%", "headroom: 0.2", "missing_unit", "0.2", "write it like 10%"),
    ("max_cost: 12 USD/h", "max_cost: 12", "missing_unit", "12,", "write it like 3.90 USD/h"),
    ("max_cost: 12 USD/h", "max_cost: 2 USD/h", "budget_exceeded", "2 USD/h", "write 3.9 USD/h or more"),
    ("target: 3", "target: 0", "bad_value", "0}", "write a larger number"),
    ("mode: act", "mode: none", "no_provisioner", "2}}", "add provisioner: {mode: act}, or write max: 1"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong", "code", "at", "cure"), ELASTIC_MISTAKES)
def test_1_a_mistake_about_the_provisioner_is_named_with_its_place_and_cure(
    right: str, wrong: str, code: str, at: str, cure: str
) -> None:
    is_moved = code == "no_provisioner"  # what is wrong stands where the cure is to be
    is_named(ELASTIC, right, wrong, code, at, cure, 0 if is_moved else ELASTIC.index(right))


def test_1_a_model_that_only_advice_would_start_is_refused() -> None:
    text = ELASTIC.replace("min: 1, max: 2", "min: 0, max: 2").replace("mode: act", "mode: advise")
    problem = only(text)
    assert (problem.code, problem.path) == ("no_provisioner", ("models", "small", "place"))
    assert problem.cure == "give it a min, or write mode: act"


def test_1_a_model_with_servers_of_somebody_else_is_not_provisioned() -> None:
    text = ELASTIC.replace(
        "place: {fast: {min: 1, max: 2}}",
        'place: {fast: {min: 1, max: 2}}\n    replicas: [{url: "http://h/v1", place: theirs}]',
    )
    problem = only(text)
    assert (problem.code, problem.path) == ("bad_value", ("models", "small", "place", "fast", "max"))


def test_what_the_provisioner_may_do_is_read() -> None:
    config = read(
        ELASTIC.replace("    models: [small, big]", "    floor: 2 req/s\n    models: [small, big]")
    ).config
    assert dict(config.models[0].place) == {AcceleratorName("fast"): Placed(1, 2)}
    asked = config.provisioner
    assert (asked.mode, asked.policy, asked.every_s, asked.headroom) == ("act", "least-cost", 2.0, 0.2)
    assert (asked.idle_after_s, asked.cooldown_s, asked.max_cost, asked.target) == (120.0, 60.0, 12.0, 3.0)
    assert config.floors == (Floor(TenantId("shop"), 2.0),)


def test_the_policies_of_the_provisioner_are_those_of_the_table() -> None:
    from typing import get_args

    from tightrope.policy.provisioners import PROVISIONERS

    assert sorted(get_args(ProvisionPolicy)) == sorted(PROVISIONERS)


def test_1_everything_wrong_is_found_at_once_in_the_order_of_the_text() -> None:
    text = (
        TEXT.replace("drain: 120s", "drain: 120")
        .replace("share: 80%", "sahre: 80%")
        .replace("foresight", "none")
    )
    found = problems_of(text)
    assert [problem.code for problem in found] == ["missing_unit", "unknown_key", "bad_value"]
    assert [problem.line for problem in found] == sorted(problem.line for problem in found)


def test_1_rules_between_sections_are_checked_together() -> None:
    text = TEXT.replace("place: theirs", "place: mine").replace(
        "models: [small, big]", "models: [small, huge]"
    )
    assert [problem.code for problem in problems_of(text)] == ["unknown_accelerator", "unknown_model"]


def test_1_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig) as raised:
        load_config(tmp_path / "tightrope.yaml", {})
    assert raised.value.problems[0].code == "config_missing"
    assert "tightrope init" in raised.value.problems[0].cure


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "- a\n- b\n", "just words", "a: [1\nb: }", "a: &x [*x]", "version: !!int 1"]
)
def test_1_what_is_no_configuration_is_refused(text: str) -> None:
    found = problems_of(text)
    assert found
    assert all(problem.message and problem.cure for problem in found)


def test_1_grants_of_workflows_are_compared_with_those_that_exist() -> None:
    (problem,) = tenant_problems(read(TEXT).config, ["rag", "shoping"])
    assert (problem.code, problem.path) == ("unknown_workflow", ("tenants", "shop", "workflows", "1"))
    assert problem.cure == 'write "shoping"'


def test_1_a_tenant_that_may_call_nothing_is_refused() -> None:
    text = TEXT.replace(
        "    models: [small, big]\n    workflows: [rag, {name: shopping, slo: {ttft: 900ms}}]\n", ""
    )
    assert only(text).code == "missing_key"


def test_the_policies_are_those_of_the_router() -> None:
    from typing import get_args

    from tightrope.policy import ROUTERS

    assert sorted(get_args(Policy)) == sorted(ROUTERS)


# --- 2 ---------------------------------------------------------------------------------------------------


def test_2_a_problem_is_drawn_under_its_line() -> None:
    text = TEXT.replace("attain: 95%}", "atain: 95%}", 1)
    drawn = render_problem(only(text), "tightrope.yaml", text)
    assert drawn.splitlines() == [
        'tightrope.yaml:16:25  unknown_key: "atain" is not a key of tenants.shop.slo',
        "   16 |     slo: {ttft: 1500ms, atain: 95%}",
        "      |                         ^^^^^",
        "   cause: tenants.shop.slo knows ttft, tpot, e2e, attain",
        '   next:  write "attain"',
    ]


# --- 3 ---------------------------------------------------------------------------------------------------


def shown(reading: Reading, key: str) -> tuple[str, str]:
    return next((one.value, one.origin) for one in reading.settings if one.key == key)


def test_3_values_are_shown_with_their_origin() -> None:
    reading = read(TEXT, {**ENV, "TIGHTROPE_SERVER__DRAIN": "45s"})
    assert shown(reading, "server.listen") == ("127.0.0.1:8080", "tightrope.yaml:2:18")
    assert shown(reading, "server.drain") == ("45s", "TIGHTROPE_SERVER__DRAIN (file says 120s)")
    assert shown(reading, "server.keepalive") == ("15s", "default")
    assert shown(reading, "models.big.replicas[0].key") == ("(set)", "PARTNER_KEY")
    assert shown(reading, "models.small.place.fast.min") == ("2", "tightrope.yaml:9:25")
    assert shown(reading, "tenants.shop.workflows[0]") == ("rag", "tightrope.yaml:19:17")
    assert shown(reading, "tenants.shop.workflows[1].slo.ttft") == ("900ms", "tightrope.yaml:19:51")
    assert shown(reading, "accelerators.theirs.share") == ("-", "default")


@pytest.mark.parametrize(
    ("variable", "value", "key", "expected"),
    [
        ("TIGHTROPE_SEED", "7", "seed", "7"),
        ("TIGHTROPE_SERVER__TIMING_HEADER", "false", "server.timing_header", "false"),
        ("TIGHTROPE_MODELS__SMALL__ENGINE__SLOTS", "9", "models.small.engine.slots", "9"),
        ("TIGHTROPE_ACCELERATORS__FAST__COUNT", "5", "accelerators.fast.count", "5"),
        ("TIGHTROPE_WORKFLOWS__FILES", "[a.yaml, b.yaml]", "workflows.files[1]", "b.yaml"),
        ("TIGHTROPE_TENANTS__SHOP__LIMITS__QUEUE", "3", "tenants.shop.limits.queue", "3"),
        (
            "TIGHTROPE_MODELS__BIG__REPLICAS__0__URL",
            "http://h/v1",
            "models.big.replicas[0].url",
            "http://h/v1",
        ),
        ("TIGHTROPE_MODELS__BIG__REPLICAS__0__KEY", "0123", "models.big.replicas[0].key", "(set)"),
    ],
)
def test_3_a_variable_wins_over_the_file(variable: str, value: str, key: str, expected: str) -> None:
    found, origin = shown(read(TEXT, {**ENV, variable: value}), key)
    assert found == expected
    assert origin.startswith(variable)


def test_3_a_secret_from_a_variable_is_text_whatever_it_looks_like() -> None:
    config = read(TEXT, {**ENV, "TIGHTROPE_MODELS__BIG__REPLICAS__0__KEY": "0123"}).config
    assert config.models[1].replicas[0].key is not None
    assert config.models[1].replicas[0].key.reveal() == "0123"


def test_3_a_variable_that_names_no_key_is_refused() -> None:
    problem = only(TEXT, {**ENV, "TIGHTROPE_SERVER__DRIAN": "45s"})
    assert (problem.code, problem.line, problem.cure) == ("unknown_key", 0, 'write "drain"')
    assert "TIGHTROPE_SERVER__DRIAN" in problem.message


def test_3_a_bad_value_blames_the_variable_not_the_file() -> None:
    problem = only(TEXT, {**ENV, "TIGHTROPE_SERVER__DRAIN": "45"})
    assert (problem.code, problem.line) == ("missing_unit", 0)
    assert "set by the variable TIGHTROPE_SERVER__DRAIN" in problem.message


def test_3_variables_that_platforms_set_are_left_alone() -> None:
    set_by_kubernetes = {"TIGHTROPE_PORT": "tcp://10.0.0.1:80", "TIGHTROPE_SERVICE_HOST": "x"}
    assert read(TEXT, {**ENV, **set_by_kubernetes}).config == read(TEXT).config


# --- 4 ---------------------------------------------------------------------------------------------------


def test_4_a_secret_shows_nowhere() -> None:
    reading = read(TEXT)
    assert "canary-4711" not in repr(reading)
    assert "canary-4711" not in str(reading.config)
    assert not any("canary-4711" in f"{one.value} {one.origin}" for one in reading.settings)


def test_4_a_secret_in_a_file_is_read_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("canary-4712\n")
    text = TEXT.replace("${env:PARTNER_KEY}", "${file:./key}")
    reading = parse_config(text, tmp_path / "t.yaml", {})
    key = reading.config.models[1].replicas[0].key
    assert key is not None
    assert key.reveal() == "canary-4712"
    assert shown(reading, "models.big.replicas[0].key") == ("(set)", "./key")
    assert "canary-4712" not in repr(reading)


@pytest.mark.parametrize("key", ["canary-4713", "[canary-4713]", "{a: canary-4713}"])
def test_4_a_secret_does_not_show_in_problems(key: str) -> None:
    text = TEXT.replace('"${env:PARTNER_KEY}"', key).replace("drain: 120s", "drain: 120")
    assert not any("canary-4713" in str(problem) + problem.cause for problem in problems_of(text))


# --- 5 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen", "auth", "is_unsafe"),
    [
        ("127.0.0.1:8080", "none", False),
        ("127.9.9.9:8080", "none", False),
        ('"[::1]:8080"', "none", False),
        ("localhost:8080", "none", False),
        ("0.0.0.0:8080", "required", False),
        ("0.0.0.0:8080", "none", True),
        ('"[::]:8080"', "none", True),
        ("192.168.1.5:80", "none", True),
        ("localhost.example.com:80", "none", True),
    ],
)
def test_5_an_open_door_is_named(listen: str, auth: str, is_unsafe: bool) -> None:
    text = TEXT.replace("127.0.0.1:8080", listen).replace("auth: required", f"auth: {auth}")
    codes = [problem.code for problem in unsafe_listen(read(text).config)]
    assert codes == (["unsafe_listen"] if is_unsafe else [])


@pytest.mark.parametrize(
    ("mode", "is_unsafe"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)]
)
def test_5_a_pepper_that_others_can_read_is_named(tmp_path: Path, mode: int, is_unsafe: bool) -> None:
    config = parse_config(TEXT, tmp_path / "t.yaml", ENV).config
    config.secret_file.write_text("x")
    config.secret_file.chmod(mode)
    assert [problem.code for problem in unsafe_listen(config)] == (["unsafe_secret"] if is_unsafe else [])


RAY = """
version: 1
accelerators: {fast: {count: 4, gpu: L40S}, plain: {count: 2}, shared: {share: 50%}}
cluster: {ray: {address: "10.0.0.9:6379", token: canary-4712}}
models:
  small:
    engine: {kind: command, command: [serve, --host, "{host}", --port, "{port}", --key, "{key}"]}
    place: {fast: {cards: 2}, plain: {}, shared: {cluster: local}}
tenants: {local: {models: [small]}}
"""


@pytest.mark.parametrize(
    ("ray", "is_unsafe"),
    [
        ('{address: "10.0.0.9:6379"}', True),
        ('{address: "cards-head:6379"}', True),
        ('{address: "10.0.0.9:6379", token: x}', False),
        ('{address: "10.0.0.9:6379", insecure: true}', False),
        ('{address: "127.0.0.1:6379"}', False),
        ('{address: "localhost:6379"}', False),
        ("{address: local}", False),
    ],
)
def test_5_a_ray_that_anybody_can_use_is_named(ray: str, is_unsafe: bool) -> None:
    text = RAY.replace('{address: "10.0.0.9:6379", token: canary-4712}', ray)
    codes = [problem.code for problem in unsafe_listen(read(text).config)]
    assert codes == (["unsafe_ray"] if is_unsafe else [])


def test_ray_starts_what_is_not_said_to_be_local() -> None:
    config = read(RAY).config
    assert config.ray is not None
    assert config.ray.token is not None
    assert config.ray.token.reveal() == "canary-4712"
    placed = config.models[0].place
    assert [placed[AcceleratorName(card)].is_on_ray for card in ("fast", "plain", "shared")] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("right", "wrong", "cure"),
    [
        ("shared: {cluster: local}", "shared: {}", "remove the share, or write cluster: local here"),
        ('cluster: {ray: {address: "10.0.0.9:6379", token: canary-4712}}', "seed: 2", None),
        ("plain: {}", "plain: {cluster: rae}", None),
        ("10.0.0.9:6379", "ray://10.0.0.9:10001", "this machine must be one of its nodes"),
        ("10.0.0.9:6379", "auto", "write host:port of its head"),
    ],
)
def test_what_ray_cannot_do_is_named(right: str, wrong: str, cure: str | None) -> None:
    problems = problems_if_any(RAY.replace(right, wrong))
    if cure is None:
        assert bool(problems) == ("rae" in wrong)
    else:
        assert cure in only(RAY.replace(right, wrong)).cure


def test_ray_that_is_not_there_starts_nothing() -> None:
    text = RAY.replace('cluster: {ray: {address: "10.0.0.9:6379", token: canary-4712}}', "").replace(
        "plain: {}", "plain: {cluster: ray}"
    )
    assert "add cluster.ray, or write local" in only(text).cure


def test_the_configuration_for_kubernetes_is_valid() -> None:
    manifest = (Path(__file__).parents[2] / "docs" / "kuberay.yaml").read_text(encoding="utf-8")
    (text,) = [part for part in manifest.split("---\n") if "tightrope.yaml: |" in part]
    config = read(dedent(text.partition("tightrope.yaml: |\n")[2]), {"RAY_AUTH_TOKEN": "x"}).config
    assert unsafe_listen(config) == ()
    assert config.gpus == {"l40s": "L40S", "h100": "H100"}


# --- 6 ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_6_any_text_is_answered(text: str) -> None:
    assert all(problem.message and problem.cure for problem in problems_if_any(text))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(TEXT.split()),
    st.sampled_from(
        ["", "{}", "[]", "null", "1", "true", "x", "[{}]", "{a: 1}", '"', "-1", "1e9", "${env:X}"]
    ),
)
def test_6_any_damaged_value_is_answered(right: str, wrong: str) -> None:
    text = TEXT.replace(right, wrong, 1)
    assert all(problem.message and problem.cure for problem in problems_if_any(text))
