"""
Laws of the prefix index
X1. With room for everything, a run is the longest one of blocks used within the time they are known for.
X2. No more blocks of a replica are remembered than fit, and nothing is remembered that was not sent.
X3. Of the prompt sent last, as many leading blocks are known as fit.
X4. A prompt never has a longer run than one that continues it, and no run is longer than the prompt.
X5. What is sent to one replica, or forgotten of it, changes nothing about another.
X6. When every replica is forgotten nothing is left.
X7. A hit is never negative, leaves a token to compute, and never falls when the run grows.
"""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from tightrope.model.ids import ReplicaId
from tightrope.policy.prefix import PrefixIndex, hit_tokens, most_blocks

KNOWN_FOR_S = 10.0
A, B, C = (ReplicaId(name) for name in "abc")

replicas = st.sampled_from([A, B, C])
prompts = st.lists(st.integers(0, 1), max_size=6).map(lambda bits: chain("".join(map(str, bits))))


def chain(text: str) -> tuple[int, ...]:
    """Blocks of a prompt of one letter each: every one stands for itself and all before it."""
    return tuple(int(f"1{text[:end]}", 3) for end in range(1, len(text) + 1))


class Sent(NamedTuple):
    """A prompt on its way, so many seconds after the one before."""

    replica: ReplicaId
    blocks: tuple[int, ...]
    after_s: float


sent = st.lists(st.builds(Sent, replicas, prompts, st.sampled_from([0.0, 1.0, 4.0, 11.0])), max_size=30)


def told(history: list[Sent], most: int = 10**6) -> tuple[PrefixIndex, float]:
    """An index after all that, and the time it is then."""
    index, now_s = PrefixIndex(KNOWN_FOR_S), 0.0
    for replica, blocks, after_s in history:
        now_s += after_s
        index.learn(replica, blocks, most, now_s)
    return index, now_s


@given(sent, prompts, st.sampled_from([0.0, 5.0, 12.0]))
def test_x1_a_run_is_the_longest_of_fresh_blocks(
    history: list[Sent], prompt: tuple[int, ...], later_s: float
) -> None:
    index, now_s = told(history)
    used_s: dict[tuple[ReplicaId, int], float] = {}
    at_s = 0.0
    for replica, blocks, after_s in history:
        at_s += after_s
        used_s |= {(replica, block): at_s for block in blocks}
    now_s += later_s
    expected = {}
    for replica in (A, B, C):
        fresh = [now_s - used_s.get((replica, block), -99.0) <= KNOWN_FOR_S for block in prompt]
        run = fresh.index(False) if False in fresh else len(fresh)
        if run:
            expected[replica] = run
    assert index.runs(prompt, now_s) == expected


@given(sent, st.integers(0, 5))
def test_x2_memory_is_bounded(history: list[Sent], most: int) -> None:
    index, now_s = told(history, most)
    for replica in (A, B, C):
        assert index.size(replica) <= most
    blocks = {block for one in history for block in one.blocks}
    assert len(index) <= min(len(blocks), 3 * most)
    assert index.runs(chain("2"), now_s) == {}


@given(sent, replicas, prompts, st.integers(0, 5))
def test_x3_the_beginning_of_the_last_prompt_is_known(
    history: list[Sent], replica: ReplicaId, prompt: tuple[int, ...], most: int
) -> None:
    index, now_s = told([*history, Sent(replica, prompt, 1.0)], most)
    assert index.runs(prompt, now_s).get(replica, 0) == min(len(prompt), most)


@given(sent, prompts, st.integers(0, 5))
def test_x4_longer_prompts_have_longer_runs(history: list[Sent], prompt: tuple[int, ...], cut: int) -> None:
    index, now_s = told(history, 5)
    short, long = index.runs(prompt[:cut], now_s), index.runs(prompt, now_s)
    assert short == {replica: min(run, cut) for replica, run in long.items() if cut}
    assert all(0 < run <= len(prompt) for run in long.values())


@given(sent, prompts, st.integers(0, 5))
def test_x5_replicas_do_not_touch_each_other(history: list[Sent], prompt: tuple[int, ...], most: int) -> None:
    index, now_s = told(history, most)
    kept = [one if one.replica == A else one._replace(blocks=()) for one in history]
    alone, _ = told(kept, most)
    index.forget(B)
    assert index.runs(prompt, now_s).get(A) == alone.runs(prompt, now_s).get(A)
    assert B not in index.runs(prompt, now_s)


@given(sent)
def test_x6_nothing_is_left_of_what_is_forgotten(history: list[Sent]) -> None:
    index, _ = told(history, 4)
    for replica in (A, B, C):
        index.forget(replica)
        index.forget(replica)
    assert len(index) == index.size(A) == 0


@given(st.integers(0, 50), st.integers(1, 512), st.integers(1, 9000))
def test_x7_a_hit_leaves_something_to_compute(run: int, block_tokens: int, prompt_tokens: int) -> None:
    hit = hit_tokens(run, block_tokens, prompt_tokens)
    assert 0 <= hit <= prompt_tokens - 1
    assert hit <= hit_tokens(run + 1, block_tokens, prompt_tokens)


def test_the_end_of_a_prompt_is_forgotten_before_its_beginning() -> None:
    index = PrefixIndex()
    index.learn(A, chain("0000"), 5, 0.0)
    index.learn(A, chain("11"), 5, 1.0)
    assert index.runs(chain("0000"), 1.0) == {A: 3}
    assert index.runs(chain("11"), 1.0) == {A: 2}


def test_what_is_used_again_stays() -> None:
    index = PrefixIndex(KNOWN_FOR_S)
    index.learn(A, chain("00"), 9, 0.0)
    index.learn(A, chain("0"), 9, 8.0)
    assert index.runs(chain("00"), 12.0) == {A: 1}


def test_a_tenth_of_a_hit_is_not_counted_on() -> None:
    assert hit_tokens(3, 100, 1000) == 270
    assert hit_tokens(3, 100, 200) == 199


def test_a_tenth_of_the_memory_is_for_calls_that_run() -> None:
    assert most_blocks(10_000, 512) == 17
    assert most_blocks(10_000, 0) == 0
