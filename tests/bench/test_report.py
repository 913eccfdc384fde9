"""
Reports
1. Every policy and rate is a point; differences are paired with the first policy of the plan.
2. Capacities are interpolated between tested rates, and bounds where nothing was tested beyond.
3. A report is the same after it was written and read again.
4. Moved is what lies beyond both intervals, and nothing of an equal report.
5. The page shows every policy, every rate and what was simulated; pictures are drawn when matplotlib is there.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.bench.tiny import tiny
from tightrope.bench.intervals import Interval
from tightrope.bench.metrics import CardShare, Figures, Prediction, Times
from tightrope.bench.plots import draw
from tightrope.bench.report import Report, as_json, from_json, moved, report
from tightrope.bench.report_text import markdown, moved_text
from tightrope.bench.run import Measured, Plan
from tightrope.bench.setting import setting
from tightrope.model.errors import InvalidInput

POLICIES = ("foresight", "power-of-two")
SHARES = (0.4, 0.8, 1.2)
GOODPUTS = {"foresight": (1.0, 0.96, 0.8), "power-of-two": (0.85, 0.7, 0.5)}


def figures(goodput: float) -> Figures:
    return Figures(
        runs=100,
        met=round(100 * goodput),
        goodput=goodput,
        rejected=2,
        failed=1,
        calls=250,
        ttft=Times(2 - goodput, 1.0, 3.0, 4.0),
        e2e=Times(5.0, 4.0, 9.0, None),
        tpot_p95_s=0.05,
        waited_mean_s=0.01,
        shares=(CardShare("h100", 100, 0.4), CardShare("l40s", 150, 0.6)),
        scale_95=1.2,
        scale_99=None,
        accelerator_s_per_good=0.5,
        usd_per_1k_good=0.2,
        usd_per_1k_runs=0.1,
        predictions=(Prediction(True, 100, 0.1, 0.01, 0.05, 0.0, 12.0, -3.0),),
        worst_tenant=goodput - 0.1,
    )


def measured(shift: float = 0.0) -> list[Measured]:
    """Three seeds a hundredth apart, shifted by `shift`."""
    return [
        Measured(
            policy,
            share,
            10 * share,
            tuple(figures(min(1.0, height + shift + seed / 100)) for seed in (-1, 0, 1)),
        )
        for policy in POLICIES
        for share, height in zip(SHARES, GOODPUTS[policy], strict=True)
    ]


def a_report(shift: float = 0.0) -> Report:
    plan = Plan(tiny(), POLICIES, (), (100, 101, 102), 1)
    return report(plan, measured(shift), setting(tiny()), "0123456789ab", is_bisected=False)


def test_1_points_and_paired_differences() -> None:
    found = a_report()
    assert found.policies == list(POLICIES)
    assert found.shares == list(SHARES)
    point = found.point("power-of-two", 0.8)
    assert point is not None
    assert point.runs == 300
    assert point.goodput.value == pytest.approx(0.7)
    assert point.goodput.low < 0.7 < point.goodput.high
    assert point.behind.low == pytest.approx(0.26)
    assert point.behind.high == pytest.approx(0.26)
    assert point.rejected == pytest.approx(0.02)
    assert point.scale_99 is None
    assert [(share.accelerator, share.calls) for share in point.shares] == [("h100", 300), ("l40s", 450)]
    assert point.predictions[0].calls == 300
    assert point.predictions[0].mape == pytest.approx(0.1)


def test_2_capacities_lie_between_the_rates_around_them() -> None:
    by_name = {(one.policy, one.level): one for one in a_report().capacities}
    inside = by_name["foresight", 0.90]
    assert (inside.below, inside.above) == (0.8, 1.2)
    assert inside.share.value == pytest.approx(0.95)
    assert inside.per_s == pytest.approx(9.5)
    assert by_name["foresight", 0.70].above is None
    assert by_name["power-of-two", 0.90].below is None


def test_3_written_and_read_again_it_is_the_same() -> None:
    found = a_report()
    assert from_json(json.loads(json.dumps(as_json(found), allow_nan=False)), "x") == found
    with pytest.raises(InvalidInput, match="is no report"):
        from_json({"schema": "something/1"}, "x.json")


def test_4_an_equal_report_has_not_moved() -> None:
    assert moved(a_report(), a_report()) == []
    assert moved_text([]) == "nothing moved beyond its interval"
    assert moved(a_report(), a_report(0.001)) == []


def test_4_what_lies_beyond_both_intervals_has() -> None:
    found = moved(a_report(), a_report(-0.1))
    named = {(one.policy, one.where, one.figure) for one in found}
    assert ("foresight", "80% load", "goodput") in named
    assert ("power-of-two", "120% load", "mean TTFT") in named
    assert ("foresight", "90% goodput", "capacity") in named
    assert all(one.before.is_apart_from(one.now) for one in found)
    assert "| foresight | 80% load | goodput | 0.960" in moved_text(found)


def test_4_only_what_both_have_is_compared() -> None:
    older = replace(a_report(-0.3), points=a_report(-0.3).points[:1], capacities=())
    assert {(one.policy, one.where) for one in moved(older, a_report())} == {("foresight", "40% load")}


def test_5_the_page_shows_everything() -> None:
    page = markdown(a_report(), ["goodput.svg", "ttft.svg"])
    assert page.startswith("# tiny\n\nFor tests.\n")
    assert "| power-of-two | 85.0 ± 1.0 | 70.0 ± 1.0 | 50.0 ± 1.0 |" in page
    assert "| foresight | > 12.00 | 9.50 (" in page
    assert "> 3." not in page
    assert "| Qwen3-8B on 1 h100 + 1 l40s |" in page
    assert "![Goodput by load](goodput.svg)" in page
    assert "100-102" in page
    assert "**+26.0 ± 0.0**" in page


def test_5_a_ratio_of_bounds_is_a_bound_or_unknown() -> None:
    page = markdown(a_report())
    (row,) = [line for line in page.splitlines() if line.startswith("| power-of-two |") and "x |" in line]
    # 70 %: still reached at the highest rate against a known one; 90 and 95 %: known against never reached; 99 %: too
    assert row.count("> ") == 4


def test_5_pictures_can_be_opened(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = draw(a_report(), tmp_path)
    assert [file.name for file in files] == ["goodput.png", "goodput.svg", "ttft.png", "ttft.svg"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files if file.suffix == ".png")
    assert all(ET.parse(file).getroot().tag.endswith("svg") for file in files if file.suffix == ".svg")


def test_an_interval_of_one_seed_is_its_value() -> None:
    plan = Plan(tiny(), ("foresight",), (), (100,), 1)
    one = Measured("foresight", 0.5, 5.0, (figures(0.9),))
    found = report(plan, [one], (), "0123456789ab", is_bisected=False)
    assert found.points[0].goodput == Interval(0.9, 0.9, 0.9)
    assert found.points[0].behind == Interval(0.0, 0.0, 0.0)
