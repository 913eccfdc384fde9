"""The benchmark's workflows and recorded loads: what they are made of, and that they say what their pages say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest

from tests.sim.worlds import BIG, FAST, SMALL, TENANT, TRACES, a_profile, a_world
from tightrope.bench.traces import ARRIVALS, Traces, moments
from tightrope.bench.workflows import BLOCK_TOKENS, FLOWS, RECORDINGS, Models, burst, sessions, tau2
from tightrope.model.errors import InvalidInput
from tightrope.model.slo import Tenant
from tightrope.model.workflow import ModelCall, Node, problems
from tightrope.sim.arrivals import Poisson
from tightrope.sim.driver import simulate
from tightrope.sim.engine import Truth
from tightrope.sim.workload import (
    CallScript,
    Flow,
    Plan,
    Recording,
    RunScript,
    Share,
    recorded_scripts,
    scripts,
)

MODELS = Models(SMALL, BIG)


@pytest.mark.parametrize("name", FLOWS)
def test_every_workflow_can_run(name: str) -> None:
    flow = FLOWS[name](MODELS, TRACES)
    assert flow.workflow.name == name
    assert problems(flow.workflow) == []
    assert set(flow.lengths) == {node.id for node in flow.workflow.nodes}
    output = flow.workflow.step_by_id[flow.workflow.output]
    assert isinstance(output, Node)
    assert isinstance(output.work, ModelCall)
    assert (output.work.model, output.work.stream, output.work.max_tokens) == (BIG, True, 600)


def test_shop_makes_two_to_five_model_calls() -> None:
    flow = FLOWS["shop"](MODELS, TRACES)
    runs = scripts(Plan((Share(flow, TENANT),), Poisson(0.2), count=40), 1)
    calls_by_case: dict[str, set[int]] = {}
    for script, record in zip(runs, simulate(a_world(flow.workflow), runs), strict=True):
        calls_by_case.setdefault("".join(script.cases.values()), set()).add(len(record.calls))
    assert calls_by_case == {"small_talk": {2}, "order": {2}, "products": {4}, "complaint": {5}}


def test_cases_are_taken_as_often_as_declared() -> None:
    flow = FLOWS["shop"](MODELS, TRACES)
    taken = Counter(case for script in scripts(_many(flow), 2) for case in script.cases.values())
    declared = {case.name: case.probability for case in flow.workflow.switches[0].cases}
    assert {case: count / 2000 for case, count in taken.items()} == pytest.approx(declared, abs=0.03)


def test_a_burst_is_so_many_requests() -> None:
    assert len(scripts(burst(FLOWS["rag"](MODELS, TRACES), TENANT, 30, 2.0), 1)) == 30


@pytest.mark.parametrize("name", ARRIVALS)
def test_moments_of_traces_ascend_from_zero(name: str) -> None:
    found = moments(TRACES, name)
    assert found[0] == 0.0
    assert list(found) == sorted(found)


def test_the_traces_are_those_of_their_page() -> None:
    page = (TRACES.folder / "README.md").read_text(encoding="utf-8")
    rows = {
        "azure-2023-conv.csv.gz": len(TRACES.azure_conversation),
        "sharegpt-lengths.csv.gz": len(TRACES.sharegpt_pairs),
        "mooncake-conversation.csv.gz": len(TRACES.mooncake_conversation),
        "tau2-retail.csv": len(TRACES.tau2_retail),
        "arena-27-tenants.csv": len(TRACES.arena_tenants),
    }
    for name, count in rows.items():
        assert f"| `{name}` | {count:,} |" in page
    assert fmean(prompt for prompt, _ in TRACES.azure_pairs) == pytest.approx(1155, abs=1)
    assert len({seen.owner for seen in TRACES.tau2_retail}) == 10
    assert len({seen.owner for seen in TRACES.arena_tenants}) == 27


def test_a_folder_without_traces_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"arena-27-tenants\.csv is missing"):
        Traces(tmp_path).arena_tenants  # noqa: B018


@pytest.mark.parametrize("name", RECORDINGS)
def test_recorded_loads_keep_their_order_and_take_the_rate(name: str) -> None:
    recording = RECORDINGS[name](MODELS, TRACES, 3.0)
    assert problems(recording.workflow) == []
    assert all(earlier.at_s <= later.at_s for earlier, later in pairwise(recording.requests))
    limited = replace(recording, count=len(recording.requests))
    first, other = recorded_scripts(limited, 1), recorded_scripts(limited, 2)
    assert len(first) / first[-1].at_s == pytest.approx(3.0, rel=0.05)
    assert _calls(first) != _calls(other)
    assert Counter(_calls(first)) == Counter(_calls(other))
    assert first == recorded_scripts(limited, 1)


@pytest.mark.parametrize("make", [sessions, tau2])
def test_prefixes_are_found_again(make: Callable[[Models, Traces, float], Recording]) -> None:
    recording = make(MODELS, TRACES, 1.0)
    found = _cached_share(recording, BLOCK_TOKENS)
    assert found > (0.5 if make is tau2 else 0.03)
    assert _cached_share(recording, 0) == 0.0


def _cached_share(recording: Recording, block_tokens: int) -> float:
    """Share of prompt tokens that the engine has in its cache, over the first requests."""
    runs = recorded_scripts(replace(recording, count=60), 3)
    roomy = Truth(a_profile(BIG, FAST, kv_tokens=1_000_000), block_tokens=block_tokens)
    tenants = tuple(Tenant(name) for name in sorted({script.tenant for script in runs}))
    world = a_world(recording.workflow, replicas="b0:big@fast", truths={(BIG, FAST): roomy}, tenants=tenants)
    calls = [call for record in simulate(world, runs) for call in record.calls]
    return sum(call.cached_tokens for call in calls) / sum(call.prompt_tokens for call in calls)


def _calls(runs: Sequence[RunScript]) -> list[CallScript]:
    return [script.calls[script.workflow.output][0] for script in runs]


def _many(flow: Flow) -> Plan:
    return Plan((Share(flow, TENANT),), Poisson(5.0), count=2000)
