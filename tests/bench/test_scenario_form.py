"""
The written form of scenarios
1. A small file is enough, the rest has defaults; a full one says everything.
2. What is wrong is refused under its line, with what to write instead; nothing wrong hides anything else.
"""

from __future__ import annotations

import pytest

from tightrope.bench.scenario import Bursts, Diurnal, Mishap, Poisson, Rate, Scenario, Trace
from tightrope.bench.scenario_form import Known, parse_seeds, read_scenario
from tightrope.model.errors import BadUnit, InvalidConfig, Problem

KNOWN = Known(
    models=("qwen3-8b", "qwen3-1.7b"),
    accelerators=("h100", "l40s"),
    workflows=("rag", "shop"),
    recordings=("tau2",),
    traces=("azure-conv",),
    policies=("foresight", "power-of-two", "power-of-two/fresh"),
)
SMALL = """\
scenario: small
about: For this test.
fleet:
  qwen3-8b: {h100: 1, l40s: 2}
roles: {large: qwen3-8b}
tenants: {library: {rag: 100%}}
"""
FULL = """\
scenario: full
about: For this test.
fleet:
  qwen3-8b: {h100: 1, l40s: 2}
  qwen3-1.7b: {l40s: 1}
roles: {large: qwen3-8b, small: qwen3-1.7b}
tenants: {library: {rag: 30%, shop: 20%}, shop: {shop: 50%}}
hardware: {host_overhead: 5ms, step: 1024 tok, sequences: 64, noise: 3%, prefix_block: 16 tok, start: 20s,
           network: 1ms, ahead: true, prices: {h100: 2.80 USD/h}}
lengths: fixed
arrivals: {mmpp: {factor: 5, calm: 20s, burst: 4s}}
slo: {scale: 3, buffer: 250ms, tpot: 80ms, per: workflow}
policies: [foresight]
rates: [50%, 6 req/s]
seeds: [100-101, 110]
duration: 2m
warm_up: 10s
beliefs: {h100: 0.5}
telemetry_delay: 100ms
faults:
  - {at: 60s, replica: qwen3-8b/l40s/1, slow: 3}
  - {at: 70s, replica: qwen3-1.7b/l40s/0, die: true}
"""


def read(text: str) -> Scenario:
    return read_scenario(text, "test.yaml", KNOWN)


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(InvalidConfig) as caught:
        read(text)
    return caught.value.problems


def test_1_the_rest_has_defaults() -> None:
    scenario = read(SMALL)
    assert (scenario.duration_s, scenario.warm_up_s, scenario.lengths) == (150.0, 30.0, "varied")
    assert scenario.arrivals == Poisson()
    assert (scenario.promise.scale, scenario.promise.buffer_s, scenario.promise.tpot_s) == (2.0, 0.5, 0.1)
    assert scenario.policies == ("foresight", "power-of-two")
    assert scenario.rates[0] == Rate(share=0.2)
    assert scenario.rates[-1] == Rate(share=1.3)
    assert scenario.seeds == tuple(range(100, 110))


def test_1_everything_can_be_said() -> None:
    scenario = read(FULL)
    assert [placement.count for placement in scenario.fleet] == [1, 2, 1]
    assert scenario.models == ("qwen3-8b", "qwen3-1.7b")
    assert (scenario.small, scenario.large) == ("qwen3-1.7b", "qwen3-8b")
    assert [(stream.workflow, stream.share) for stream in scenario.streams] == [
        ("rag", 0.3),
        ("shop", 0.2),
        ("shop", 0.5),
    ]
    assert (scenario.hardware.step_tokens, scenario.hardware.is_ahead) == (1024, True)
    assert scenario.hardware.usd_per_h == (("h100", 2.8),)
    assert scenario.arrivals == Bursts(5.0, 20.0, 4.0)
    assert scenario.promise.per == "workflow"
    assert scenario.rates == (Rate(share=0.5), Rate(per_s=6.0))
    assert scenario.seeds == (100, 101, 110)
    assert scenario.mishaps[1] == Mishap(70.0, scenario.models[1], scenario.fleet[2].accelerator, 0, "die")
    assert [str(rate) for rate in scenario.rates] == ["50%", "6 req/s"]


@pytest.mark.parametrize(
    ("arrivals", "expected"),
    [
        ("poisson", Poisson()),
        ("{diurnal: {swing: 60%, period: 120s}}", Diurnal(0.6, 120.0)),
        ("{trace: azure-conv}", Trace("azure-conv")),
    ],
)
def test_1_arrivals_of_every_kind(arrivals: str, expected: object) -> None:
    assert read(SMALL + f"arrivals: {arrivals}\n").arrivals == expected


def test_1_a_recording_takes_the_place_of_tenants() -> None:
    scenario = read(SMALL.replace("tenants: {library: {rag: 100%}}", "recording: tau2"))
    assert (scenario.recording, scenario.streams) == ("tau2", ())
    assert (scenario.small, scenario.large) == ("qwen3-8b", "qwen3-8b")


def test_1_policies_may_be_named_by_a_pattern() -> None:
    assert read(SMALL + "policies: [foresight, 'power*']\n").policies == KNOWN.policies


def test_1_a_promise_may_leave_the_gaps_out() -> None:
    assert read(SMALL + "slo: {tpot: null}\n").promise.tpot_s is None


@pytest.mark.parametrize(
    ("line", "code", "cure"),
    [
        ("polices: [foresight]", "unknown_key", 'write "policies"'),
        ("policies: [foresigt]", "unknown_name", 'write "foresight"'),
        (
            "policies: [nothing-like-it]",
            "unknown_name",
            "name one of: foresight, power-of-two, power-of-two/fresh",
        ),
        ("duration: 240", "missing_unit", "a duration is written like 800ms"),
        ("rates: [20]", "missing_unit", "an arrival rate is written like 6 req/s"),
        ("rates: [20 ms]", "bad_unit", "use one of req/s"),
        ("rates: [0%]", "bad_value", "write a share like 50%"),
        ("seeds: 3-9", "bad_value", "begin at 100"),
        ("seeds: [x]", "bad_value", "write a range like 100-109"),
        ("lengths: random", "bad_value", "write one of: varied, fixed"),
        ("arrivals: weekly", "bad_value", "write poisson"),
        ("arrivals: {trace: azure}", "unknown_name", 'write "azure-conv"'),
        ("arrivals: {mmpp: {facter: 2}}", "unknown_key", 'write "factor"'),
        ("arrivals: {diurnal: {swing: 120%}}", "bad_value", "at most 100%"),
        ("warm_up: 5m", "bad_value", "shorter than the duration"),
        ("hardware: {noise: 0.03}", "missing_unit", "a percentage is written like 95%"),
        ("hardware: {prices: {h10: 1 USD/h}}", "unknown_name", 'write "h100"'),
        ("beliefs: {h100: 0}", "bad_value", "twice as fast"),
        ("faults: [{at: 1s, replica: qwen3-8b/h100/1, die: true}]", "bad_value", "count from 0"),
        ("faults: [{at: 1s, replica: h100, die: true}]", "bad_value", "MODEL/CARD/NUMBER"),
        ("faults: [{at: 1s, replica: qwen3-8b/h100/0}]", "bad_value", "write `slow: 3` or `die: true`"),
    ],
)
def test_2_each_mistake_has_its_line_and_its_cure(line: str, code: str, cure: str) -> None:
    (problem,) = problems(f"{SMALL}{line}\n")
    assert (problem.code, problem.line) == (code, SMALL.count("\n") + 1)
    assert cure in problem.cure


@pytest.mark.parametrize(
    ("before", "after", "code", "line", "cure"),
    [
        ("rag: 100%", "rga: 100%", "unknown_key", 6, 'write "rag"'),
        ("rag: 100%", "rag: 90%", "bad_value", 6, "make it 100%"),
        ("tenants: {library: {rag: 100%}}", "recording: tau3", "unknown_name", 6, 'write "tau2"'),
        ("tenants: {library: {rag: 100%}}\n", "", "missing_key", 0, "or `recording: NAME`"),
        ("rag: 100%}}", "rag: 100%}}\nrecording: tau2", "bad_value", 6, "remove `tenants`"),
        ("h100: 1", "h10: 1", "unknown_key", 4, 'write "h100"'),
        ("h100: 1", "h100: 0", "bad_value", 4, "write 1 or more"),
        ("qwen3-8b: {", "qwen-8b: {", "unknown_name", 4, 'write "qwen3-8b"'),
        ("large: qwen3-8b", "large: qwen3-1.7b", "unknown_name", 5, "qwen3-8b"),
        ("scenario: small\n", "", "missing_key", 0, "give it the name of its file"),
        ("about: For this test.\n", "", "missing_key", 0, "say in a sentence"),
    ],
)
def test_2_the_parts_that_must_be_there(before: str, after: str, code: str, line: int, cure: str) -> None:
    found = problems(SMALL.replace(before, after))
    assert code in [problem.code for problem in found if problem.line == line or not line]
    assert any(cure in problem.cure for problem in found)


def test_2_everything_is_found_at_once() -> None:
    text = SMALL + "duration: 240\nseeds: 1\nnoise: 3%\n"
    assert [(problem.code, problem.line) for problem in problems(text)] == [
        ("missing_unit", 7),
        ("bad_value", 8),
        ("unknown_key", 9),
    ]


def test_2_a_file_that_is_no_yaml_is_said_to_be_none() -> None:
    assert [problem.code for problem in problems("fleet: [")] == ["not_yaml"]


def test_seeds_are_a_number_a_range_or_a_list() -> None:
    assert parse_seeds(7) == (7,)
    assert parse_seeds("3-5") == (3, 4, 5)
    assert parse_seeds(["3-4", 9]) == (3, 4, 9)
    with pytest.raises(BadUnit):
        parse_seeds("five")
