"""The credibility gate: the simulated engine replays a recorded run of a real vLLM and must come out like it.

One number is calibrated, the overhead of the host per step, on the first 100 requests; the other 200 judge. The
coefficients are fitted from kernel tables that know nothing of this run (`hardware.py`). A figure of a simulation
whose gate is closed is not to be published.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tightrope.bench.hardware import DATA, HardwareTable
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import CallId
from tightrope.model.profile import Profile
from tightrope.sim.engine import FirstOut, Request, SimEngine, Truth

# What the recording was made with (its source is in scenarios/data/README.md).
MODEL, ACCELERATOR = "Llama-3.1-8B", "rtx_pro_6000"
STEP_TOKENS, MAX_SEQUENCES = 2048, 128

CALIBRATED = 100
"""So many requests, the first ones, calibrate; all others judge."""
TOLERANCE = 0.05
"""Each judged figure must be within this part of the real one."""
MOST_HOST_MS = 50.0
"""An overhead beyond this would mean that the coefficients are wrong."""
_HALVINGS = 14


@dataclass(frozen=True, slots=True)
class Seen:
    """One recorded request: when it came, its tokens, when its first and last token came, in seconds."""

    arrived_s: float
    prompt_tokens: int
    output_tokens: int
    first_s: float
    last_s: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Mean time to the first token, mean time per output token after it, 95th percentile of the whole time."""

    ttft_s: float
    tpot_s: float
    latency_p95_s: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same requests, real and simulated; `error` is simulated / real - 1."""

    requests: int
    real: Figures
    simulated: Figures
    error: Figures


@dataclass(frozen=True, slots=True)
class Credibility:
    """What the gate found. `host_ms` is the calibrated overhead; `is_credible`: every judged error is within
    `tolerance`. `calibration` is shown so that a reader sees what the calibration could not explain."""

    model: str
    accelerator: str
    host_ms: float
    tolerance: float
    calibration: Comparison
    judged: Comparison
    is_credible: bool


def credibility(folder: Path = DATA) -> Credibility:
    """Calibrate the overhead on the first requests of the recording in `folder`, and judge by the others.

    The overhead is the one that gives the first requests their mean time per output token, which is the mean of
    hundreds of steps. Their time to the first token says less: none of them waits for a seat, so it is two or three
    steps with prompts in them, whose fitted cost is uncertain by more than the overhead is long.
    """
    recording, table = recorded(folder), HardwareTable(folder)
    first, others = range(CALIBRATED), range(CALIBRATED, len(recording))

    def excess_s(host_ms: float) -> float:
        return _figures(replay(recording, _profile(table, host_ms)), first).tpot_s - wanted_s

    wanted_s = _figures(recording, first).tpot_s
    host_ms = _bisect(excess_s)
    simulated = replay(recording, _profile(table, host_ms))
    calibration, judged = (_compare(recording, simulated, part) for part in (first, others))
    errors = (judged.error.ttft_s, judged.error.tpot_s, judged.error.latency_p95_s)
    is_credible = max(map(abs, errors)) <= TOLERANCE
    return Credibility(MODEL, ACCELERATOR, host_ms, TOLERANCE, calibration, judged, is_credible)


def credibility_table(found: Credibility) -> str:
    """The gate as text: both parts of the recording, real beside simulated."""
    verdict = "credible" if found.is_credible else "NOT credible"
    lines = [
        f"vLLM serving {found.model} on {found.accelerator}, recorded and simulated",
        f"host overhead {found.host_ms:.2f} ms a step, calibrated on the first {found.calibration.requests} requests",
        "",
        f"{'requests':<22}{'figure':<14}{'real':>12}{'simulated':>12}{'error':>9}",
        *_rows(f"{found.judged.requests} that judge", found.judged),
        *_rows(f"{found.calibration.requests} that calibrate", found.calibration),
        "",
        f"{verdict}: each figure that judges is to be within {found.tolerance:.0%}",
    ]
    return "\n".join(lines)


def recorded(folder: Path = DATA) -> tuple[Seen, ...]:
    """The recorded run, in order of arrival. Raises InvalidInput when it is not there."""
    path = folder / "vllm-run.csv"
    if not path.is_file():
        raise InvalidInput(f"{path} is missing: the gate runs from a checkout that has scenarios/data")
    return tuple(
        Seen(
            float(row["arrived_s"]),
            int(row["prompt_tokens"]),
            int(row["output_tokens"]),
            float(row["first_s"]),
            float(row["last_s"]),
        )
        for row in csv.DictReader(path.read_text().splitlines())
    )


def replay(recording: Sequence[Seen], profile: Profile, *, is_ahead: bool = True) -> tuple[Seen, ...]:
    """The same requests through the simulated engine, without noise; `is_ahead` as vLLM 0.19 is by default."""
    engine = SimEngine(Truth(profile, is_ahead=is_ahead), Random(0))
    happenings = []
    for index, seen in enumerate(recording):
        happenings += engine.advance(seen.arrived_s)
        request = Request(CallId(str(index)), seen.prompt_tokens, seen.output_tokens)
        engine.submit(request, seen.arrived_s)
    while (next_s := engine.next_s()) < math.inf:
        happenings += engine.advance(next_s)
    first_s = {out.call: out.at_s for out in happenings if isinstance(out, FirstOut)}
    last_s = {out.call: out.at_s for out in happenings if not isinstance(out, FirstOut)}
    return tuple(
        Seen(seen.arrived_s, seen.prompt_tokens, seen.output_tokens, first_s[call], last_s[call])
        for seen, call in ((seen, CallId(str(index))) for index, seen in enumerate(recording))
    )


def _profile(table: HardwareTable, host_ms: float) -> Profile:
    return table.profile(
        MODEL, ACCELERATOR, host_ms=host_ms, step_tokens=STEP_TOKENS, max_sequences=MAX_SEQUENCES
    )


def _bisect(excess: Callable[[float], float]) -> float:
    """Where a rising function crosses zero between 0 and MOST_HOST_MS; the nearer end if it does not."""
    low, high = 0.0, MOST_HOST_MS
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if excess(middle) > 0 else (middle, high)
    return (low + high) / 2


def _compare(real: Sequence[Seen], simulated: Sequence[Seen], part: range) -> Comparison:
    a, b = _figures(real, part), _figures(simulated, part)
    error = Figures(b.ttft_s / a.ttft_s - 1, b.tpot_s / a.tpot_s - 1, b.latency_p95_s / a.latency_p95_s - 1)
    return Comparison(len(part), a, b, error)


def _figures(requests: Sequence[Seen], part: range) -> Figures:
    chosen = [requests[index] for index in part]
    gaps_s = [
        (seen.last_s - seen.first_s) / (seen.output_tokens - 1) for seen in chosen if seen.output_tokens > 1
    ]
    latencies_s = sorted(seen.last_s - seen.arrived_s for seen in chosen)
    return Figures(
        ttft_s=math.fsum(seen.first_s - seen.arrived_s for seen in chosen) / len(chosen),
        tpot_s=math.fsum(gaps_s) / len(gaps_s),
        latency_p95_s=latencies_s[math.ceil(0.95 * len(latencies_s)) - 1],
    )


def _rows(name: str, compared: Comparison) -> list[str]:
    real, simulated, error = compared.real, compared.simulated, compared.error
    figures = (
        ("mean TTFT", real.ttft_s, simulated.ttft_s, error.ttft_s),
        ("mean TPOT", real.tpot_s, simulated.tpot_s, error.tpot_s),
        ("p95 latency", real.latency_p95_s, simulated.latency_p95_s, error.latency_p95_s),
    )
    return [
        f"{name if row == 0 else '':<22}{figure:<14}{1000 * a:>9.1f} ms{1000 * b:>9.1f} ms{off:>+9.1%}"
        for row, (figure, a, b, off) in enumerate(figures)
    ]
