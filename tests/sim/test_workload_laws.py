"""
Laws of arrivals, scripts and promises
1. Moments ascend, and end at the count or the duration, whichever comes first.
2. Every process has its mean rate; a burst is more uneven than Poisson, a day has its high and its low half.
3. A trace at its own rate has its own gaps, in a circle entered anywhere.
4. Equal seeds give equal scripts.
5. Run number k is the same whatever the arrivals are; other lengths change neither cases nor who asks.
6. In deterministic mode all calls of a node are alike, and as long as the mean of the others.
7. Every node has an item, taken or not; a fan-out has between its fewest and most.
8. Without contention a run takes what the simulation of it alone takes.
9. Promises per workflow are alike within a workflow, and the mean of the promises per run.
10. A promise grows with its scale and its stretch.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import accumulate, pairwise
from random import Random
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.worlds import BIG, FAST, SMALL, TENANT, TRACES, a_profile, a_world
from tightrope.bench.workflows import FLOWS, Models
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import TenantId
from tightrope.model.slo import Slo
from tightrope.sim.arrivals import Arrivals, Diurnal, Mmpp, Poisson, Trace, times
from tightrope.sim.driver import simulate
from tightrope.sim.promise import Promise, alone_s, promised, slo_of
from tightrope.sim.workload import Flow, Plan, Share, deterministic, scripts


def _sums(gaps: list[float]) -> tuple[float, ...]:
    return tuple(accumulate(gaps, initial=0.0))


MODELS = Models(SMALL, BIG)
CARDS = {SMALL: [a_profile(SMALL, FAST)], BIG: [a_profile(BIG, FAST)]}
RATES = st.floats(0.1, 50)
PROCESSES = st.one_of(
    st.builds(Poisson, RATES),
    st.builds(Mmpp, RATES, st.floats(1, 10), st.floats(0.5, 60), st.floats(0.5, 60)),
    st.builds(Diurnal, RATES, st.floats(0, 1), st.floats(1, 600), st.floats(0, 1)),
    st.builds(lambda gaps, rate: Trace(_sums(gaps), rate), st.lists(st.floats(0.01, 9), min_size=2), RATES),
)
SEEDS = st.integers(0, 2**32)


# --- arrivals ----------------------------------------------------------------------------------------------


@given(PROCESSES, SEEDS, st.integers(0, 60), st.floats(0, 30))
def test_1_moments_ascend_and_end(process: Arrivals, seed: int, count: int, duration_s: float) -> None:
    both = times(process, Random(seed), count=count, duration_s=duration_s)
    assert both == sorted(both)
    assert len(both) <= count
    assert all(0 <= at_s < duration_s for at_s in both)
    counted = times(process, Random(seed), count=count)
    assert len(counted) == count
    assert counted[: len(both)] == both
    assert len(both) == count or counted[len(both)] >= duration_s


def test_1_arrivals_without_an_end_are_refused() -> None:
    with pytest.raises(InvalidInput, match="never end"):
        times(Poisson(1.0), Random(1))


@pytest.mark.parametrize(
    "process",
    [
        Poisson(4.0),
        Mmpp(4.0, factor=6.0, calm_s=20.0, burst_s=5.0),
        Diurnal(4.0, swing=0.9, period_s=100.0),
        Trace(_sums([0.1, 3.0, 0.5, 0.5, 7.0]), 4.0),
    ],
    ids=lambda process: type(process).__name__,
)
def test_2_every_process_has_its_mean_rate(process: Arrivals) -> None:
    assert len(times(process, Random(5), duration_s=10_000.0)) == pytest.approx(40_000, rel=0.05)


def test_2_a_burst_is_more_uneven_than_poisson() -> None:
    burst = Mmpp(4.0, factor=6.0, calm_s=20.0, burst_s=5.0)
    assert _dispersion(times(Poisson(4.0), Random(1), duration_s=4000.0)) == pytest.approx(1.0, abs=0.3)
    assert _dispersion(times(burst, Random(1), duration_s=4000.0)) > 3.0


def test_2_a_day_has_a_high_and_a_low_half() -> None:
    moments = times(Diurnal(4.0, swing=0.9, period_s=100.0), Random(1), duration_s=10_000.0)
    high = sum(at_s % 100.0 < 50.0 for at_s in moments)
    # The mean of the sine over its upper half is 2 / pi.
    assert high / len(moments) == pytest.approx(0.5 * (1 + 0.9 * 2 / 3.14159), rel=0.03)


@given(st.lists(st.floats(0.01, 9), min_size=3, max_size=20), SEEDS)
def test_3_a_trace_at_its_own_rate_has_its_own_gaps(gaps: list[float], seed: int) -> None:
    seen_s = _sums(gaps)
    mean_s = seen_s[-1] / (len(seen_s) - 1)
    moments = times(Trace(seen_s, 1 / mean_s), Random(seed), count=3 * len(seen_s))
    circle = [later - earlier for earlier, later in pairwise(seen_s)] + [mean_s]
    found = [later - earlier for earlier, later in pairwise(moments)]
    places = [
        start
        for start in range(len(circle))
        if found == pytest.approx([circle[(start + k) % len(circle)] for k in range(len(found))], abs=1e-6)
    ]
    assert moments[0] == 0.0
    assert places


# --- scripts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOWS)
def test_4_equal_seeds_give_equal_scripts(name: str) -> None:
    plan = _plan(name)
    assert scripts(plan, 3) == scripts(plan, 3)
    assert scripts(plan, 3) != scripts(plan, 4)


def test_5_other_arrivals_change_no_run() -> None:
    plan = _plan("rag", "shop")
    slow = scripts(plan, 3)
    fast = scripts(replace(plan, arrivals=Mmpp(50.0), count=2 * len(slow)), 3)
    assert [script.at_s for script in slow] != [script.at_s for script in fast[: len(slow)]]
    assert slow == [replace(script, at_s=old.at_s) for old, script in zip(slow, fast, strict=False)]


def test_5_other_lengths_change_no_case_and_no_asker() -> None:
    shares = (Share(_flow("rag"), TenantId("a"), 1.0), Share(_flow("shop"), TenantId("b"), 3.0))
    varied = Plan(shares, Poisson(5.0), count=300)
    fixed = replace(varied, shares=tuple(replace(one, flow=deterministic(one.flow)) for one in shares))
    for before, after in zip(scripts(varied, 8), scripts(fixed, 8), strict=True):
        assert (before.at_s, before.tenant, before.cases) == (after.at_s, after.tenant, after.cases)
    asked = Counter(script.tenant for script in scripts(varied, 8))
    assert asked[TenantId("b")] / 300 == pytest.approx(0.75, abs=0.06)


@pytest.mark.parametrize("name", FLOWS)
def test_6_deterministic_calls_are_alike_and_as_long_as_the_mean(name: str) -> None:
    varied, fixed = _lengths(_flow(name)), _lengths(deterministic(_flow(name)))
    for key, calls in fixed.items():
        assert len(set(calls)) == 1
        prompt, output, seconds = calls[0]
        assert prompt == pytest.approx(fmean(call[0] for call in varied[key]), rel=0.15)
        assert output == pytest.approx(fmean(call[1] for call in varied[key]), rel=0.15)
        assert seconds == pytest.approx(fmean(call[2] for call in varied[key]), rel=0.15)


@pytest.mark.parametrize("name", FLOWS)
def test_7_every_node_has_its_items(name: str) -> None:
    flow = _flow(name)
    for script in scripts(_plan(name), 1):
        assert set(script.calls) == {node.id for node in flow.workflow.nodes}
        assert set(script.cases) == {switch.id for switch in flow.workflow.switches}
        for step, items in script.calls.items():
            fewest, most = flow.widths.get(step, (1, 1))
            assert fewest <= len(items) <= most


# --- promises ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOWS)
def test_8_a_run_alone_takes_what_its_simulation_takes(name: str) -> None:
    flow = _flow(name)
    copies = " ".join(f"s{n}:small@fast b{n}:big@fast" for n in range(8))  # a card for each item of a fan-out
    runs = [replace(script, at_s=60.0 * n) for n, script in enumerate(scripts(_plan(name), 2)[:12])]
    for script, record in zip(runs, simulate(a_world(flow.workflow, replicas=copies), runs), strict=True):
        assert record.ttft_s == pytest.approx(alone_s(script, CARDS), rel=1e-6)


def test_9_promises_per_workflow_are_the_mean_of_those_per_run() -> None:
    drawn = scripts(_plan("rag", "shop"), 4)
    per_run = promised(drawn, Promise(), CARDS)
    per_workflow = promised(drawn, Promise(per="workflow"), CARDS)
    for name in ("rag", "shop"):
        own = [script.slo.ttft_s or 0.0 for script in per_run if script.workflow.name == name]
        common = {script.slo.ttft_s for script in per_workflow if script.workflow.name == name}
        assert len(set(own)) > 1
        assert list(common) == [pytest.approx(fmean(own))]
    assert [replace(script, slo=Slo()) for script in per_run] == [replace(s, slo=Slo()) for s in drawn]


@settings(max_examples=50)
@given(st.floats(0, 10), st.floats(0.1, 5), st.floats(0.1, 5))
def test_10_a_promise_grows_with_scale_and_stretch(alone: float, scale: float, stretch: float) -> None:
    plain = slo_of(Promise(scale=scale), alone)
    assert plain == Slo(ttft_s=scale * alone + 0.5, tpot_s=0.1)
    stretched = slo_of(Promise(scale=scale, stretch=stretch), alone)
    assert stretched.ttft_s == pytest.approx(stretch * (scale * alone + 0.5))
    assert stretched.tpot_s == plain.tpot_s


# --- helpers -----------------------------------------------------------------------------------------------


def _dispersion(moments: list[float]) -> float:
    """Variance over mean of the counts in stretches of five seconds; 1 for a Poisson process."""
    count_by_place = Counter(int(at_s // 5) for at_s in moments)
    counts = [count_by_place[place] for place in range(int(moments[-1] // 5))]
    mean = fmean(counts)
    return fmean((count - mean) ** 2 for count in counts) / mean


def _flow(name: str) -> Flow:
    return FLOWS[name](MODELS, TRACES)


def _plan(*names: str) -> Plan:
    return Plan(tuple(Share(_flow(name), TENANT) for name in names), Poisson(5.0), count=60)


def _lengths(flow: Flow) -> dict[tuple[str, str], list[tuple[int, int, float]]]:
    """Lengths of every call, by node; of the output node by case too."""
    found: dict[tuple[str, str], list[tuple[int, int, float]]] = defaultdict(list)
    for script in scripts(Plan((Share(flow, TENANT),), Poisson(5.0), count=1500), 6):
        for step, items in script.calls.items():
            case = "".join(script.cases.values()) if step == flow.workflow.output else ""
            found[step, case] += [(item.prompt_tokens, item.output_tokens, item.seconds) for item in items]
    return found
