"""
Laws of what is learned
1. A quantile of a sketch is within 2 % of the exact one.
2. Merging two sketches gives what one sketch of both streams gives.
3. A value weighs half as much after an hour.
L9. The mean of what lies beyond g is at least g + 1 and never falls as g grows.
4. Lengths stay between 1 and the cap; without samples they are the prior, with many they are what was seen.
5. Drawn times are never negative, and for a first token never above those for the whole call.
"""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.builders import H100, L40S, MODEL, a_switch, a_workflow, code, numbers
from tightrope.model.ids import StepId
from tightrope.model.outcome import Usage
from tightrope.model.workflow import FanOut, ModelCall, Node, Prompt, Ref, Workflow
from tightrope.policy.learn import ENOUGH, Inflation, Learned
from tightrope.policy.sketch import HALF_LIFE_S, Sketch

ASK, OTHER, CODE = StepId("ask"), StepId("other"), StepId("code")


def a_model_node(name: StepId, text: str = "", max_items: int = 0) -> Node:
    fan_out = FanOut(Ref("input", ("list",)), max_items) if max_items else None
    return Node(name, ModelCall(MODEL, Prompt(text=text), max_tokens=100), fan_out=fan_out)


def a_template(max_items: int = 0) -> Workflow:
    return a_workflow(
        a_model_node(ASK, "x" * 350, max_items),
        a_model_node(OTHER),
        code("code"),
        switches=(a_switch("fork", "ask", yes=0.5, no=0.5),),
    )


def seen(*values: float, at_s: float = 0.0) -> Sketch:
    sketch = Sketch()
    for value in values:
        sketch.add(value, at_s)
    return sketch


positive = st.lists(numbers(0.001, 5000), min_size=1, max_size=50)


@given(positive, numbers(0, 1))
def test_1_quantiles_are_within_two_percent(values: list[float], q: float) -> None:
    exact = sorted(values)[max(1, math.ceil(q * len(values) - 1e-9)) - 1]
    assert seen(*values).quantile(q) == pytest.approx(exact, rel=0.0201)


@given(positive, positive, numbers(0, 10), numbers(0, 10))
def test_2_merging_is_seeing_both(
    first: list[float], second: list[float], early_h: float, late_h: float
) -> None:
    now_s = 100 * HALF_LIFE_S
    one, other, both = Sketch(), Sketch(), Sketch()
    moments = [(value, early_h * HALF_LIFE_S, one) for value in first]
    moments += [(value, late_h * HALF_LIFE_S, other) for value in second]
    for value, at_s, sketch in sorted(moments, key=lambda moment: moment[1]):
        sketch.add(value, at_s)
        both.add(value, at_s)
    one.merge(other)
    assert one.count(now_s) == pytest.approx(both.count(now_s))
    assert one.mean() == pytest.approx(both.mean())
    assert one.mean_beyond(1.0) == pytest.approx(both.mean_beyond(1.0))


def test_2_merging_reaches_over_days() -> None:
    old, new = seen(1.0), seen(5.0, at_s=48 * HALF_LIFE_S)
    new.merge(old)
    old.merge(seen(5.0, at_s=48 * HALF_LIFE_S))
    assert old.mean() == pytest.approx(5.0)
    assert new.mean() == pytest.approx(5.0)
    assert old.count(48 * HALF_LIFE_S) == pytest.approx(1.0)


@given(positive, numbers(0, 30))
def test_3_values_fade(values: list[float], hours: float) -> None:
    sketch = seen(*values)
    assert sketch.count(hours * HALF_LIFE_S) == pytest.approx(len(values) * 0.5**hours)
    sketch.add(7.0, hours * HALF_LIFE_S)
    assert sketch.count(hours * HALF_LIFE_S) == pytest.approx(len(values) * 0.5**hours + 1)


@given(positive, numbers(0, 6000), numbers(0, 6000))
def test_l9_the_longer_it_is_the_longer_it_will_be(values: list[float], one: float, other: float) -> None:
    sketch = seen(*values)
    less, more = sorted((one, other))
    assert sketch.mean_beyond(less) >= less + 1
    assert sketch.mean_beyond(more) >= sketch.mean_beyond(less)


def test_l9_example() -> None:
    assert seen(10, 100, 200).mean_beyond(50) == pytest.approx(150, rel=0.02)
    assert seen(10, 20).mean_beyond(500) == 501


def test_an_empty_sketch_knows_nothing() -> None:
    empty = Sketch()
    found = (empty.count(0.0), empty.mean(), empty.quantile(0.5), empty.draw(Random(1)), empty.mean_beyond(3))
    assert found == (0, 0, 0, 0, 4)


def test_draws_follow_what_was_seen() -> None:
    rng, sketch = Random(1), seen(0.0, 0.0, 0.0, 40.0)
    drawn = [sketch.draw(rng) for _ in range(400)]
    assert drawn.count(0.0) == pytest.approx(300, abs=40)
    assert {round(value) for value in drawn} == {0, 40}


@given(st.lists(st.integers(1, 400), max_size=60), st.integers(1, 300), numbers(0, 500))
def test_4_lengths_stay_below_the_cap(outputs: list[int], cap: int, produced: float) -> None:
    learned = Learned(a_template())
    for output in outputs:
        learned.observe_model(ASK, 100, Usage(30, output), 400, 0.0)
    found = learned.lengths(ASK, cap, 0.0)
    assert 1 <= found.mean <= cap
    assert 1 <= found.high <= cap
    assert learned.expected_beyond(ASK, produced, cap, 0.0) >= produced + 1
    assert learned.observations == len(outputs)


def test_4_without_samples_an_answer_is_expected_to_use_most_of_its_limit() -> None:
    found = Learned(a_template()).lengths(ASK, 100, 0.0)
    assert (found.mean, found.high) == (60.0, 100)


def test_4_with_enough_samples_only_they_count() -> None:
    learned = Learned(a_template())
    for index in range(int(ENOUGH)):
        learned.observe_model(ASK, 100, Usage(30, 10 + index % 3), 100, 0.0)
    found = learned.lengths(ASK, 100, 0.0)
    assert found.mean == pytest.approx(11)
    assert found.high in (12, 13)


def test_4_other_steps_of_the_model_are_better_than_nothing() -> None:
    learned = Learned(a_template())
    for _ in range(100):
        learned.observe_model(OTHER, 100, Usage(30, 10), 100, 0.0)
    assert learned.lengths(ASK, 200, 0.0).mean == pytest.approx(20, abs=4)


def test_prompts_are_counted_by_the_bytes_a_token_has() -> None:
    learned = Learned(a_template())
    assert learned.prompt_tokens(ASK, 700) == 200
    assert learned.prompt_tokens(ASK, 0) == 1
    for _ in range(50):
        learned.observe_model(ASK, 800, Usage(200, 5), 100, 0.0)
    assert learned.prompt_tokens(ASK, 400) == pytest.approx(100, abs=1)


def test_a_prompt_not_rendered_yet_has_the_usual_size() -> None:
    learned = Learned(a_template())
    assert learned.prompt_tokens(ASK, None) == 100 + 64
    learned.observe_model(ASK, 0, Usage(900, 5), 100, 0.0)
    assert learned.prompt_tokens(ASK, None) == 900


@given(st.integers(0, 2**32), numbers(0, 5), st.booleans())
def test_5_drawn_times_are_sane(seed: int, inflation: float, is_known: bool) -> None:
    learned = Learned(a_template(max_items=6))
    if is_known:
        learned.observe_model(ASK, 300, Usage(100, 40), 100, 0.0)
        learned.observe_width(ASK, 3, 0.0)
    first = learned.draw_seconds(ASK, H100, True, inflation, Random(seed), 0.0)
    whole = learned.draw_seconds(ASK, H100, False, inflation, Random(seed), 0.0)
    assert 0 < first <= whole
    assert whole <= 3 * H100.solo_ms(100 if is_known else 164, 101) / 1000 * 1.03


def test_5_steps_that_ask_no_model() -> None:
    learned, rng = Learned(a_template()), Random(1)
    assert learned.draw_seconds(StepId("fork"), None, False, 1.0, rng, 0.0) == 0
    assert learned.draw_seconds(ASK, None, False, 1.0, rng, 0.0) == 0
    assert learned.draw_seconds(CODE, None, False, 1.0, rng, 0.0) == 0.005
    assert learned.code_seconds(CODE, 0.0) == 0.005
    learned.observe_code(CODE, 2.0, 0.0)
    assert learned.draw_seconds(CODE, None, False, 1.0, rng, 0.0) == pytest.approx(2.0, rel=0.02)
    assert learned.code_seconds(CODE, 0.0) == pytest.approx(2.0, rel=0.02)


def test_5_an_empty_fan_out_takes_no_time() -> None:
    learned = Learned(a_template(max_items=6))
    learned.observe_width(ASK, 0, 0.0)
    assert learned.draw_seconds(ASK, H100, False, 1.0, Random(1), 0.0) == 0


def test_5_the_mean_of_drawn_lengths_is_the_mean_that_is_reported() -> None:
    learned = Learned(a_template())
    for output in (5, 10, 30):
        learned.observe_model(ASK, 300, Usage(100, output), 100, 0.0)
    rng, mean = Random(1), learned.lengths(ASK, 100, 0.0).mean
    drawn = [learned.draw_seconds(ASK, L40S, False, 1.0, rng, 0.0) for _ in range(3000)]
    assert sum(drawn) / len(drawn) == pytest.approx(L40S.solo_ms(100, mean) / 1000, rel=0.05)


def test_inflation_stays_between_one_and_three() -> None:
    inflation = Inflation()
    assert inflation.value == 1
    inflation.observe(1.0, 0.0)
    assert inflation.value == 1
    for _ in range(40):
        inflation.observe(1.0, 0.5)
    assert inflation.value == pytest.approx(2, abs=0.05)
    for _ in range(40):
        inflation.observe(100.0, 1.0)
    assert inflation.value == 3


def test_an_answer_that_goes_on_is_expected_to_be_one_of_the_long_ones() -> None:
    learned = Learned(a_template())
    for index in range(40):
        learned.observe_model(ASK, 300, Usage(100, 10 if index % 2 else 80), 100, 0.0)
    assert learned.expected_beyond(ASK, 0, 100, 0.0) == pytest.approx(45, rel=0.02)
    assert learned.expected_beyond(ASK, 20, 100, 0.0) == pytest.approx(80, rel=0.02)
