"""`bench elastic`: the demo's workflows on this machine's own engines, with a fleet that begins and ends at zero.

Owns the course: quiet, a burst, quiet again until nobody is there, and one run that wakes the fleet. The parts of the
demo are `demo.py`, the figures `bench/elastic.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tightrope.app.cli.frame import ANSWER_IS_NO, DONE, Answer, Common
from tightrope.app.compose import Runtime
from tightrope.app.demo import bearable, running, until_ready
from tightrope.app.embedded import cache_dir, ensure_engine
from tightrope.app.staging import demo_config
from tightrope.app.tables import grid
from tightrope.bench.elastic import Elastic, Part, elastic
from tightrope.bench.elastic_plot import draw_elastic
from tightrope.bench.load import Arrival, Ask, play, poisson
from tightrope.bench.plots import NO_PICTURES, can_draw
from tightrope.kernel.journal import entries
from tightrope.model.codec import encode
from tightrope.model.errors import EngineFailed
from tightrope.model.json import Json
from tightrope.model.messages import Command, Event, NoteScaling, ReplicaStopped
from tightrope.model.outcome import FailureKind
from tightrope.reports.scaling import sentence

POLICY = "foresight"
FOLDER = Path("bench-results") / "elastic"

QUIET, BURST, CALM, WAKE = "quiet", "burst", "back to zero", "one run"
QUIET_S = 8.0
BURST_S = 75.0
AT_ZERO_S = 5.0
"""The fleet stays at zero for so long before it is woken."""
ZERO_WITHIN_S = 180.0

CARDS = {"TIGHTROPE_ACCELERATORS__FAST__COUNT": "3"}
"""One card more than the demo has, so that there is something to choose."""
_PLACE = "{fast: {min: 0, max: 2}, slow: {min: 0, max: 2}}"
ELASTIC = {
    **CARDS,
    "TIGHTROPE_MODELS__SMALL__PLACE": _PLACE,
    "TIGHTROPE_MODELS__BIG__PLACE": _PLACE,
    "TIGHTROPE_PROVISIONER": "{mode: act, every: 1s, idle_after: 15s, cooldown: 5s}",
}
"""What the demo's configuration becomes: nobody is there by itself, and what is not needed goes soon."""


@dataclass(frozen=True, slots=True)
class Session:
    """What was played: when it began on the journal's clock, and its parts."""

    began_s: float
    rate_per_s: float
    parts: tuple[Part, ...]
    journal: Path


def bench_elastic(common: Common, *, share: float, seed: int, out: Path | None) -> Answer:
    """Play the session, write what came of it and its picture. Exit status 1 when anything was lost or aborted."""
    ensure_engine(cache_dir(), common.say)
    session = asyncio.run(_session(common, share, seed))
    with session.journal.open(encoding="utf-8") as lines:
        found = elastic(entries(lines), session.began_s, session.parts)
    file = out or FOLDER / "elastic.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    data = _as_json(found, session)
    file.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    written = [file, *(draw_elastic(found, file.with_suffix("")) if can_draw() else ())]
    text = [_table(found, session)]
    if not can_draw():
        text.append(NO_PICTURES)
    text.append(f"written: {', '.join(map(str, written))}\nthe journal: {session.journal}")
    return Answer(data, "\n\n".join(text), code=DONE if found.is_sound else ANSWER_IS_NO)


async def _session(common: Common, share: float, seed: int) -> Session:
    """Measure the engines if nobody did, then play the session on a fleet of its own."""
    folder = cache_dir() / "elastic"
    async with running(demo_config(folder, "measure.journal"), POLICY) as runtime:
        common.say("measuring what these cards can bear")
        await until_ready(runtime, runtime.plan.replicas)
        rate, asks = await bearable(runtime, share, common.say)
    common.say(f"{BURST_S:g} s at {rate:.2f} runs/s, {share:.0%} of what all cards can bear")
    news = _News(common)
    config = demo_config(folder, "elastic.journal", ELASTIC)
    async with running(config, POLICY, (news.observe,)) as runtime:
        clock = runtime.driver.clock
        began_s = clock.now()
        moments = [0.0]
        await asyncio.sleep(QUIET_S)
        moments.append(clock.now() - began_s)
        common.say("a burst")
        burst = asyncio.create_task(
            play(runtime.client, poisson(asks, max(2, round(BURST_S * rate)), rate, seed))
        )
        await asyncio.sleep(BURST_S)
        moments.append(clock.now() - began_s)
        await burst
        common.say("all answered; waiting until nobody is there")
        await _until_zero(runtime, news)
        await asyncio.sleep(AT_ZERO_S)
        moments.append(clock.now() - began_s)
        common.say("one run")
        await play(runtime.client, [Arrival(0.0, _first(asks))])
        moments.append(clock.now() - began_s + 1.0)
    parts = tuple(
        Part(name, from_s, to_s)
        for name, from_s, to_s in zip((QUIET, BURST, CALM, WAKE), moments[:-1], moments[1:], strict=True)
    )
    return Session(began_s, rate, parts, config.journal.path)


def _first(asks: Sequence[Sequence[Ask]]) -> Ask:
    return asks[0][0]


class _News:
    """Says what happens to the fleet, and remembers that something ended."""

    def __init__(self, common: Common) -> None:
        self._common = common
        self.has_ended = asyncio.Event()

    def observe(self, message: Event | Command, _: float) -> None:
        if isinstance(message, NoteScaling):
            self._common.say(f"  {sentence(message)}")
        if isinstance(message, ReplicaStopped):
            self.has_ended.set()


async def _until_zero(runtime: Runtime, news: _News) -> None:
    """Return when no replica is left. Raises EngineFailed when that takes too long."""
    try:
        async with asyncio.timeout(ZERO_WITHIN_S):
            while runtime.driver.kernel.state.replicas:
                news.has_ended.clear()
                await news.has_ended.wait()
    except TimeoutError:
        left = ", ".join(runtime.driver.kernel.state.replicas)
        message = f"after {ZERO_WITHIN_S:g} s without a run there are still replicas: {left}"
        raise EngineFailed(FailureKind.REPLICA_LOST, message) from None


# --- what is said ----------------------------------------------------------------------------------------


def _wake_ms(found: Elastic) -> float | None:
    """Milliseconds from the arrival of the run that woke the fleet to its first token."""
    woken = found.runs_of(WAKE)
    return None if not woken or woken[0].ttft_s is None else round(1000 * woken[0].ttft_s, 1)


def _woken_ms(found: Elastic) -> float | None:
    """Milliseconds from its arrival until its models each had a replica that came up for it."""
    woken = found.runs_of(WAKE)
    first_s: dict[str, float] = {}
    for start in found.starts:
        if woken and start.at_s >= woken[0].at_s:
            first_s.setdefault(start.model, start.at_s)
    return round(1000 * (max(first_s.values()) - woken[0].at_s), 1) if first_s else None


def _most(found: Elastic) -> int:
    now: dict[tuple[str, str], int] = {}
    most = 0
    for count in found.counts:
        now[count.model, count.accelerator] = count.ready
        most = max(most, sum(now.values()))
    return most


def _as_json(found: Elastic, session: Session) -> Json:
    encoded = cast(dict[str, Json], encode(found))
    figures: dict[str, Json] = {
        "rate_per_s": round(session.rate_per_s, 4),
        "is_sound": found.is_sound,
        "wake_ready_ms": _woken_ms(found),
        "wake_ttft_ms": _wake_ms(found),
        "most_replicas": _most(found),
    }
    return {**figures, **{key: value for key, value in encoded.items() if key != "type"}}


def _table(found: Elastic, session: Session) -> str:
    rows = []
    for part in found.parts:
        mine = found.runs_of(part.name)
        judged = [run for run in mine if run.verdict != "none"]
        kept = f"{sum(run.verdict == 'met' for run in judged)}/{len(judged)}" if judged else "-"
        rows.append(
            (
                part.name,
                f"{part.from_s:.0f}-{part.to_s:.0f} s",
                str(len(mine)),
                kept,
                str(sum(part.from_s <= start.at_s < part.to_s for start in found.starts)),
            )
        )
    table = grid(("part", "when", "runs", "kept", "came up"), rows, right=(2, 3, 4))
    ready, first = _in_ms(_woken_ms(found)), _in_ms(_wake_ms(found))
    outcomes = ", ".join(f"{count} {name}" for name, count in found.outcomes)
    starts = [start.took_s for start in found.starts]
    took = f"{min(starts, default=0.0):.1f} to {max(starts, default=0.0):.1f} s"
    facts = {
        "runs": f"{len(found.runs)}, at {session.rate_per_s:.2f} runs/s in the burst: {outcomes}",
        "promises kept": f"{found.met} of {found.promised}",
        "lost runs, aborted calls": f"{found.lost_runs}, {found.aborted_calls}",
        "most replicas at once": str(_most(found)),
        "a start took": took,
        "the run that woke the fleet": f"replicas after {ready}, first token after {first}",
        "cost": f"{1000 * found.usd:.3f} mUSD; {1000 * found.usd_at_most:.3f} for the largest fleet all the time",
    }
    return table + "\n\n" + "\n".join(f"{name}: {words}" for name, words in facts.items())


def _in_ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"
