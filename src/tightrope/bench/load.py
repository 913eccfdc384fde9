"""Load: open-loop arrivals of workflow requests, played against a client and timed where the caller stands.

Owns when requests arrive and what is measured about each; a request is sent at its moment however slow the
answers before it are, so that no delay hides itself (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from tightrope.model.errors import Rejected
from tightrope.model.ids import TenantId
from tightrope.model.outcome import Outcome, Verdict
from tightrope.model.slo import Slo
from tightrope.runtime.client import RunFailed, RunHandle, RunInputs, RunRequest


@dataclass(frozen=True, slots=True)
class Ask:
    """One request that may arrive: who asks which workflow what. `slo` None leaves what the contract promises."""

    tenant: TenantId
    workflow: str
    inputs: RunInputs
    slo: Slo | None = None


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and its moment, in seconds after the start of the load."""

    at_s: float
    ask: Ask


@dataclass(slots=True)
class Played:
    """What the caller saw of one request. Times in seconds from its scheduled arrival, None where it never came."""

    ask: Ask
    at_s: float
    ttft_s: float | None = None
    duration_s: float | None = None
    text: str = ""
    outcome: Outcome | None = None
    verdict: Verdict = Verdict.NONE
    message: str = ""
    _pieces: list[str] = field(default_factory=list)


class Runs(Protocol):
    """The part of the runtime's client that a load needs."""

    def submit(self, request: RunRequest) -> RunHandle:
        """Start a run."""
        ...


def poisson(asks: Sequence[Sequence[Ask]], count: int, rate_per_s: float, seed: int) -> list[Arrival]:
    """`count` arrivals with exponential gaps, from all groups of `asks` equally often, in random order.

    The gaps are stretched so that the last arrival comes at count / rate: every seed then has the same mix and
    the same mean rate, and seeds differ in order and in bursts alone.
    """
    rng = Random(seed)
    queues = [rng.sample(list(group), len(group)) for group in asks]
    arrivals: list[Arrival] = []
    at_s = 0.0
    order = [index % len(queues) for index in range(count)]
    rng.shuffle(order)
    taken = [0] * len(queues)
    for group in order:
        at_s += rng.expovariate(1.0)
        ask = queues[group][taken[group] % len(queues[group])]
        taken[group] += 1
        arrivals.append(Arrival(at_s, ask))
    stretch = count / rate_per_s / at_s
    return [Arrival(arrival.at_s * stretch, arrival.ask) for arrival in arrivals]


async def play(
    client: Runs,
    arrivals: Sequence[Arrival],
    on_done: Callable[[Played], None] = lambda _: None,
) -> list[Played]:
    """Send every request at its moment and wait for all to end; the result is in order of arrival."""
    start_s = time.monotonic()
    played = [Played(arrival.ask, arrival.at_s) for arrival in arrivals]
    async with asyncio.TaskGroup() as requests:
        for one in played:
            await asyncio.sleep(max(0.0, start_s + one.at_s - time.monotonic()))
            requests.create_task(_ask(client, one, start_s + one.at_s, on_done))
    return played


async def ask_once(client: Runs, ask: Ask, on_text: Callable[[str], None]) -> Played:
    """One request now; `on_text` gets every piece of the answer as it comes."""
    played = Played(ask, 0.0)
    await _ask(client, played, time.monotonic(), lambda _: None, on_text)
    return played


async def _ask(
    client: Runs,
    played: Played,
    arrived_s: float,
    on_done: Callable[[Played], None],
    on_text: Callable[[str], None] = lambda _: None,
) -> None:
    try:
        ask = played.ask
        handle = client.submit(RunRequest(ask.tenant, ask.workflow, ask.inputs, ask.slo))
        try:
            async for piece in handle.pieces():
                if piece.is_content and played.ttft_s is None:
                    played.ttft_s = time.monotonic() - arrived_s
                if piece.text:
                    on_text(piece.text)
                    played._pieces.append(piece.text)
        finally:
            handle.cancel("the load has ended")
        finish = handle.finish
        played.outcome = finish.outcome if finish is not None else None
        played.verdict = finish.verdict if finish is not None else Verdict.NONE
    except RunFailed as failed:
        played.outcome, played.verdict, played.message = (
            failed.finish.outcome,
            failed.finish.verdict,
            str(failed),
        )
    except Rejected as refused:
        played.outcome, played.verdict, played.message = Outcome.REJECTED, Verdict.MISSED, str(refused)
    played.duration_s = time.monotonic() - arrived_s
    played.text = "".join(played._pieces)
    on_done(played)
