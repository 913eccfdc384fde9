"""What the kernel keeps for some variants only: who is given up for others, margins, the utilisation of pools."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from tests.kernel.script import Script, dispatched, of
from tightrope.kernel.state import KernelSettings
from tightrope.model.fleet import Job, PoolView, Routed
from tightrope.model.ids import ReplicaId, RunId
from tightrope.model.messages import Dispatch, Item, RunCancelled
from tightrope.model.slo import Slo
from tightrope.policy.margin import GAIN, MISSES, START
from tightrope.policy.utilisation import work_ms
from tightrope.testing import a_chain, a_profile

ONE = a_chain("answer", max_tokens=100)
CARD = a_profile(max_sequences=1)


def one_card(variant: str, slots: int = 1) -> Script:
    """A card that computes a prompt token in 2 ms, and little else."""
    settings = KernelSettings(router=f"foresight/{variant}")
    profile = replace(CARD, max_sequences=slots, step_tokens=4096)
    return Script(ONE, replicas="a", slots=slots, profiles=[profile], settings=settings)


def submit(script: Script, run: str, prompt: int, due_s: float, is_streamed: bool = True) -> list[Dispatch]:
    """A run with a prompt of so many tokens."""
    script.items["answer"] = (Item(4 * prompt, prompt),)
    slo = Slo(ttft_s=due_s) if is_streamed else Slo(e2e_s=due_s)
    return of(Dispatch, script.submit(run, slo=slo, is_streamed=is_streamed))


# --- fewest late ---------------------------------------------------------------------------------------


def waiting(script: Script) -> list[str]:
    """The runs whose calls wait, in the order of the line, in capitals those that are behind the live ones."""
    pool = script.kernel.state.pool(CARD.model)
    calls = [script.kernel.state.calls[call] for _, call in pool.line]
    return [call.run.upper() if call.job and call.job.is_hopeless else call.run for call in calls]


def test_the_longest_is_given_up_when_one_would_be_late_and_is_live_again_when_there_is_time() -> None:
    script = one_card("moore-hodgson")
    submit(script, "now", 10, 10.0)
    submit(script, "long", 1500, 3.4)
    assert waiting(script) == ["long"]
    submit(script, "short", 300, 3.5)
    assert waiting(script) == ["short", "LONG"]
    script.tell(RunCancelled(RunId("short"), "the client left"))
    submit(script, "tiny", 10, 60.0)
    assert waiting(script) == ["long", "tiny"]


def test_by_latest_finish_alone_nobody_is_given_up() -> None:
    script = Script(ONE, replicas="a", slots=1, profiles=[replace(CARD, step_tokens=4096)])
    submit(script, "now", 10, 10.0)
    submit(script, "long", 1500, 3.4)
    submit(script, "short", 300, 3.5)
    assert waiting(script) == ["long", "short"]


def test_one_that_was_given_up_and_has_no_hope_any_more_stays_behind() -> None:
    script = one_card("moore-hodgson")
    now = submit(script, "now", 10, 10.0)[0]
    submit(script, "long", 1500, 3.4)
    submit(script, "short", 300, 6.0)
    submit(script, "other", 1600, 6.0)
    assert waiting(script) == ["long", "short", "OTHER"]
    script.after(5.0)
    assert dispatched(script.done(now)).run == "short"
    assert waiting(script) == ["LONG", "OTHER"]
    assert script.kernel.state.pool(CARD.model).demoted == []


# --- margins -------------------------------------------------------------------------------------------


def margin(script: Script) -> float | None:
    """The margin that policies see."""
    view = script.kernel.state.pool(CARD.model).roster.of(ReplicaId("a"))
    return view.margin if view else None


def test_a_call_that_takes_longer_than_predicted_widens_the_margin() -> None:
    script = one_card("margin", slots=2)
    assert margin(script) == START
    call = submit(script, "late", 100, 10.0)[0]
    script.after(2 * call.routed.offers[0].estimate.crit / 1000)
    script.first_token(call)
    assert margin(script) == pytest.approx(START + GAIN * (1 - MISSES))
    script.done(call)
    assert margin(script) == pytest.approx(START + GAIN * (1 - MISSES))


def test_of_a_call_that_counts_to_its_end_the_end_is_compared() -> None:
    script = one_card("margin", slots=2)
    call = submit(script, "whole", 100, 60.0, is_streamed=False)[0]
    script.after(call.routed.offers[0].estimate.crit / 2000)
    script.first_token(call)
    assert margin(script) == START
    script.done(call)
    assert margin(script) == pytest.approx(START - GAIN * MISSES)


def test_a_call_that_failed_teaches_no_margin_and_other_routers_keep_none() -> None:
    script = one_card("margin")
    script.failed(submit(script, "r", 100, 60.0)[0])
    assert margin(script) == START
    assert margin(one_card("moore-hodgson")) is None


# --- utilisation ---------------------------------------------------------------------------------------


def test_a_pool_is_seen_with_the_work_of_the_last_seconds() -> None:
    script = one_card("utilisation-gate")
    state, seen = script.kernel.state, list[float]()
    router = state.router

    def choose(job: Job, pool: PoolView, now_s: float, rng: Random) -> Routed | None:
        seen.append(pool.utilisation)
        return router.choose(job, pool, now_s, rng)

    state.router = replace(router, choose=choose)
    outputs = []
    for run in ("r1", "r2"):
        script.done(call := submit(script, run, 1000, 60.0)[0])
        outputs.append(call.output_tokens)
    each = [work_ms(state.profile(CARD.model, CARD.accelerator), 1000, output) / 10_000 for output in outputs]
    assert seen == pytest.approx([each[0], sum(each)])
    script.after(10.0)
    submit(script, "r3", 1000, 60.0)
    assert seen[2] < sum(each)
