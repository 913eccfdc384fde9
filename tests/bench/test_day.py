"""
Laws of elastic days
1. The same day is the same to the byte, whatever was played before.
2. What a day costs is the price of every replica from its order to its end, within the counted time, and never more
   per hour than the budget.
3. Every run that arrives in the counted time is counted once; no call of a run is broken off by the provisioner.
4. Changes of direction are those of one model, up against down; other cards in place of some are none.
5. The oracle knows when runs come, and nothing of their length.
6. Of a ladder the leanest setting that keeps enough is taken, and no other is played; if none does, the one that keeps
   the most.
7. What was played once is not played again.
8. A day has recovered when the last bad spell is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.tiny import tiny
from tightrope.bench.cell import accelerators, cell_scripts
from tightrope.bench.day import Ask, Day, DayFigures, play_day, turns
from tightrope.bench.disturbed import AT_S, LASTS_S, SPELL_S, recovered_s
from tightrope.bench.foreseen import foreseen
from tightrope.bench.provision import OWN, Setting, climbed, compare, comparison_markdown, ladders
from tightrope.bench.scenario import Elastic, Rate, Scenario
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import AcceleratorName, ModelName, RunId, TenantId
from tightrope.model.messages import NoteScaling
from tightrope.model.outcome import Outcome
from tightrope.model.provision import Provisioning, ScaleAction
from tightrope.model.slo import Slo
from tightrope.sim.world import RunRecord

START_S = 2.0
PER_S = 4.0


def small_day(**changes: object) -> Scenario:
    start_s = tuple((AcceleratorName(card), START_S) for card in ("h100", "l40s"))
    day = tiny(elastic=Elastic(start_s), duration_s=30.0, warm_up_s=2.0, rates=(Rate(per_s=PER_S),))
    return replace(day, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def day() -> Day:
    return play_day(Ask(small_day(), PER_S, 3))


def test_1_the_same_day_again(day: Day) -> None:
    again = play_day(day.ask)
    assert (again.figures, again.records, again.rented) == (day.figures, day.records, day.rented)
    assert again.scalings == day.scalings


def test_2_the_bill(day: Day) -> None:
    prices = {card.name: card.usd_per_h for card in accelerators(day.ask.scenario)}
    seconds = [
        (one.spec.accelerator, max(0.0, min(one.to_s, 30.0) - max(one.from_s, 2.0))) for one in day.rented
    ]
    assert day.rented
    assert day.figures.usd == pytest.approx(sum(prices[card] * held / 3600 for card, held in seconds))
    assert day.figures.usd_per_h == pytest.approx(day.figures.usd * 3600 / 28)


def test_2_the_budget_is_never_passed() -> None:
    elastic = small_day().elastic
    assert elastic is not None
    lean = small_day(elastic=replace(elastic, max_usd_per_h=1.0))
    poor, rich = (play_day(Ask(scenario, PER_S, 3)).figures for scenario in (lean, small_day()))
    assert poor.most_usd_per_h <= 1.0
    assert rich.most_usd_per_h > 1.0


def test_3_every_run_is_counted_and_none_broken_off(day: Day) -> None:
    arrived = [run.at_s for run in cell_scripts(day.ask.scenario, PER_S, 3)]
    assert day.figures.runs == sum(2.0 <= at_s < 30.0 for at_s in arrived)
    assert day.figures.aborted == 0
    assert 0 < day.figures.attained <= 1


def note(action: ScaleAction, reason: str = "forecast") -> NoteScaling:
    had, wants = (1, 2) if action is ScaleAction.UP else (2, 1)
    return NoteScaling(action, ModelName("m"), AcceleratorName("a"), had, wants, reason)


def test_4_turns() -> None:
    up, down = note(ScaleAction.UP), note(ScaleAction.DOWN)
    assert turns([]) == turns([(0.0, up)]) == turns([(0.0, up), (5.0, up)]) == 0
    assert turns([(0.0, up), (5.0, down), (9.0, up)]) == 2
    assert turns([(0.0, up), (5.0, down), (700.0, up), (1400.0, down)]) == 1
    exchange = [(6.0, note(ScaleAction.UP, "cheaper")), (8.0, note(ScaleAction.DOWN, "cheaper"))]
    assert turns([(0.0, up), *exchange, (9.0, up)]) == 0


def test_5_the_oracle_knows_every_arrival_and_no_length() -> None:
    runs = cell_scripts(small_day(), PER_S, 3)
    (known,) = foreseen(runs).values()
    assert list(known.known_s) == sorted(run.at_s for run in runs)  # one call a run
    assert known.forecast(0.0, 0.0).per_s == sum(run.at_s < 15.0 for run in runs) / 15.0
    longer = [
        replace(
            run,
            calls={
                step: tuple(replace(call, output_tokens=500) for call in calls)
                for step, calls in run.calls.items()
            },
        )
        for run in runs
    ]
    assert foreseen(longer) == foreseen(runs)


def figures(attained: float, usd_per_h: float) -> DayFigures:
    return DayFigures(100, attained, usd_per_h, usd_per_h, 0, 0, 0, 0, usd_per_h)


@pytest.mark.parametrize(
    ("kept", "best", "played"),
    [
        ((0.98, 0.995, 0.999), "b", "ab"),
        ((0.99, 0.5, 0.5), "a", "a"),
        ((0.5, 0.7, 0.6), "b", "abc"),
    ],
)
def test_6_the_leanest_that_keeps_enough(kept: tuple[float, ...], best: str, played: str) -> None:
    settings = [Setting(name, Provisioning()) for name in "abc"]
    shares = dict(zip("abc", kept, strict=True))

    def play(asked: Mapping[str, Setting], seeds: Sequence[int]) -> dict[tuple[str, str, int], DayFigures]:
        return {
            (name, one.name, seed): figures(shares[one.name], 1.0)
            for name, one in asked.items()
            for seed in seeds
        }

    found, tuned = climbed({OWN: settings}, play, 0.99)
    assert found[OWN].name == best
    assert {name for _, name, _ in tuned} == set(played)


def test_6_every_contender_has_a_ladder() -> None:
    known = ladders(small_day(), PER_S)
    assert set(known) == {OWN, "ray-serve", "queue-length", "forecast-throughput", "static", "oracle"}
    for name, settings in known.items():
        assert all(setting.settings.policy == name for setting in settings)
        assert len({setting.name for setting in settings}) == len(settings) > 0
    sizes = [sum(count for _, _, count in setting.fixed) for setting in known["static"]]
    assert 0 < sizes[0] <= sizes[-1]


def test_7_nothing_is_played_twice(tmp_path: Path) -> None:
    said: list[str] = []

    def tell(done: int, of: int, _what: str) -> None:
        said.append(f"{done}/{of}")

    names = (OWN, "ray-serve")
    first = compare(small_day(), names, (100,), tmp_path, 1, tell)
    lines = (tmp_path / "days.jsonl").read_bytes()
    assert compare(small_day(), names, (100,), tmp_path, 1, tell) == first
    assert (tmp_path / "days.jsonl").read_bytes() == lines
    page = comparison_markdown(first)
    assert all(f"| {name} " in page for name in names)
    with pytest.raises(InvalidInput, match="there is no contender 'luck'"):
        compare(small_day(), ("luck",), (100,), tmp_path, 1, tell)
    with pytest.raises(InvalidInput, match="needs `elastic`"):
        compare(tiny(), names, (100,), tmp_path, 1, tell)


def record(at_s: float, is_met: bool) -> RunRecord:
    name = RunId(f"r{at_s}")
    return RunRecord(name, "w", TenantId("t"), at_s, Slo(), Outcome.SUCCEEDED, 1.0, None, 1.0, is_met, ())


def test_8_recovery() -> None:
    moments = [AT_S + SPELL_S * (spell + 0.5) for spell in range(int((LASTS_S - AT_S) / SPELL_S))]
    assert recovered_s([record(at_s, True) for at_s in moments]) == 0
    assert recovered_s([record(at_s, at_s != moments[2]) for at_s in moments]) == 3 * SPELL_S
    assert recovered_s([record(at_s, at_s != moments[-1]) for at_s in moments]) is None
