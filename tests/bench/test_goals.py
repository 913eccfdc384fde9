"""
Goals read from reports
1. A capacity beyond what was tested makes a ratio a bound, and only a bound that settles the question settles it.
2. Losses are those at the worst rate, up to saturation and beyond apart.
3. What was not run is left out.
4. Late telemetry is judged at a part of the capacity, between tested rates.
5. Written and read again, goals are the same.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.bench.test_report import figures
from tests.bench.tiny import tiny
from tightrope.bench.goals import as_json, from_json, goals
from tightrope.bench.report import Report, report
from tightrope.bench.report_text import family_markdown
from tightrope.bench.run import Measured, Plan
from tightrope.model.errors import InvalidInput

SHARES = (0.4, 0.8, 1.2)
Heights = tuple[float, float, float]


def a_report(name: str, **heights: Heights) -> Report:
    """Goodputs by policy (with `_` for `-`) at 40, 80 and 120 % load, two equal seeds."""
    policies = tuple(policy.replace("_", "-") for policy in heights)
    measured = [
        Measured(policy, share, 10 * share, (figures(height),) * 2)
        for policy, curve in zip(policies, heights.values(), strict=True)
        for share, height in zip(SHARES, curve, strict=True)
    ]
    plan = Plan(replace(tiny(), name=name), policies, (), (100, 101), 1)
    return report(plan, measured, (), "0123456789ab", is_bisected=False)


def told(*reports: Report) -> dict[str, tuple[str, bool | None]]:
    found = goals({one.scenario: one for one in reports})
    return {f"{goal.name} {goal.what}": (goal.reached.partition(";")[0], goal.is_met) for goal in found}


def test_1_beside_a_ratio_that_is_too_small_stands_what_there_was_to_be_had() -> None:
    report = a_report("mixed", foresight=(1.0, 0.95, 0.5), power_of_two=(0.95, 0.6, 0.2))
    shares = {(one.policy, one.level): one.share.value for one in report.capacities}
    for goal in goals({"mixed": report}):
        limit = f"the stability limit is {1 / shares['power-of-two', 0.9]:.2f}x"
        assert (limit in goal.reached) is (goal.what == "mixed: capacity at 90% over power-of-two")


def test_1_a_ratio_between_tested_rates_is_a_number() -> None:
    found = told(a_report("mixed", foresight=(1.0, 0.95, 0.5), power_of_two=(0.95, 0.6, 0.2)))
    reached, is_met = found["P1 mixed: capacity at 90% over power-of-two"]
    assert (reached, is_met) == ("1.85x", False)
    assert found["P1 mixed: capacity at 70% over power-of-two"][1] is True


@pytest.mark.parametrize(
    ("own", "other", "reached", "is_met"),
    [
        ((1.0, 1.0, 0.95), (0.5, 0.4, 0.3), "> 3.00x", None),
        ((1.0, 1.0, 0.95), (1.0, 1.0, 0.95), "?", None),
        ((1.0, 0.95, 0.5), (0.5, 0.4, 0.3), "> 2.11x", None),
        ((0.5, 0.4, 0.3), (0.95, 0.6, 0.2), "< 0.88x", False),
        ((1.0, 1.0, 0.95), (0.95, 0.6, 0.2), "> 2.63x", None),
    ],
)
def test_1_a_bound_settles_what_it_can(
    own: Heights, other: Heights, reached: str, is_met: bool | None
) -> None:
    found = told(a_report("mixed", foresight=own, power_of_two=other))
    assert found["P1 mixed: capacity at 90% over power-of-two"] == (reached, is_met)


def test_2_the_worst_rate_counts() -> None:
    found = told(a_report("uniform", foresight=(0.99, 0.90, 0.55), power_of_two=(1.0, 0.85, 0.60)))
    assert found["P4 uniform up to saturation: worst loss against power-of-two, points"] == (
        "1.0 ± 0.0 at 40% load",
        True,
    )
    assert found["P4 uniform beyond saturation: worst loss against power-of-two, points"][1] is False


def test_2_wrong_profiles_may_lose_nothing() -> None:
    good = a_report("wrong-all-slighted", foresight=(1.0, 0.9, 0.5), power_of_two=(1.0, 0.8, 0.5))
    bad = a_report("wrong-all-flattered", foresight=(1.0, 0.7, 0.5), power_of_two=(1.0, 0.8, 0.5))
    found = told(good, bad)
    assert found["P5 wrong-all-slighted: worst loss against power-of-two, points"][1] is True
    assert found["P5 wrong-all-flattered: worst loss against power-of-two, points"] == (
        "10.0 ± 0.0 at 80% load",
        False,
    )


def test_3_what_was_not_run_is_left_out() -> None:
    assert told() == {}
    assert told(a_report("mixed", foresight=(1.0, 0.95, 0.5))) == {}


def test_4_late_telemetry_is_judged_between_tested_rates() -> None:
    """80 % of a capacity of 84 % load is 67 % load: two thirds of the way from the first to the second rate."""
    mixed = a_report("mixed", foresight=(1.0, 0.95, 0.5))
    late = a_report("late-500ms", foresight=(0.99, 0.92, 0.4))
    (found,) = told(mixed, late).items()
    assert found[0] == "P6 late-500ms: goodput lost at 80% of capacity (68% load), points"
    assert found[1][1] is False


def test_5_written_and_read_again_they_are_the_same() -> None:
    reports = {"mixed": a_report("mixed", foresight=(1.0, 0.95, 0.5), power_of_two=(0.95, 0.6, 0.2))}
    found = goals(reports)
    assert from_json(as_json(found), "x") == found
    with pytest.raises(InvalidInput, match="holds no goals"):
        from_json({}, "x.json")
    page = family_markdown("goodput", reports, found)
    (line,) = (line for line in page.splitlines() if line.startswith("| P1") and "90% over power" in line)
    assert " | 1.85x; the stability limit is " in line
    assert line.endswith("x | 4x, first step 3x | **no** |")
    assert "(mixed/report.md)" in page
