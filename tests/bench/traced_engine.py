"""A simulated engine that keeps every step it takes, and the point of the linear program that such steps are."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import numpy as np

from tightrope.bench.lp_program import Floats, Program
from tightrope.bench.windows import Duty, Machines, RunDuties
from tightrope.model.ids import CallId, ReplicaId
from tightrope.sim.batch import Sequence as Held
from tightrope.sim.engine import FirstOut, LastOut, SimEngine, Truth


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `begin` to `end` of what a call had to compute then, `target` in all; in the program's words."""

    call: CallId
    begin: int
    end: int
    target: int
    is_first: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an engine: who decoded, and which prompts were computed."""

    begin_ms: float
    end_ms: float
    decoding: tuple[CallId, ...]
    chunks: tuple[Chunk, ...]


@dataclass(slots=True)
class Trace:
    """The steps of every engine, in the order in which the engines were made."""

    steps: list[list[Step]] = field(default_factory=list)

    def engine(self, truth: Truth, rng: Random, *, now_s: float = 0.0) -> SimEngine:
        """A new engine whose steps are kept."""
        self.steps.append([])
        return _TracedEngine(truth, rng, now_s, self.steps[-1])


class _TracedEngine(SimEngine):
    def __init__(self, truth: Truth, rng: Random, now_s: float, kept: list[Step]) -> None:
        super().__init__(truth, rng, now_s=now_s)
        self._kept = kept

    def _finish(self) -> list[FirstOut | LastOut]:
        decoding = tuple(held.call for held in self._batch.running.values() if held.end)
        chunks = tuple(_chunk(held, tokens) for held, tokens in self._batch._chunks)
        edges = [1000 * (self._begin_s + self._lasts_s(steps)) for steps in range(self._planned + 1)]
        self._kept += [Step(begin, end, decoding, chunks) for begin, end in pairwise(edges)]
        return super()._finish()


def _chunk(held: Held, tokens: int) -> Chunk:
    return Chunk(held.call, held.done, held.done + tokens, held.target, held.generated == 0)


@dataclass(frozen=True, slots=True)
class Schedule:
    """What really happened: every step of every replica, and the call that did each duty of the runs that were
    good, by the duty's number in the program."""

    steps_by_replica: Mapping[ReplicaId, Sequence[Step]]
    duty_by_call: Mapping[CallId, int]
    good: Sequence[bool]


def point(
    made: Program, machines: Sequence[Machines], runs: Sequence[RunDuties], schedule: Schedule
) -> tuple[Floats, float]:
    """The values of all columns for a schedule, and the shares of calls that fell outside every window."""
    x = np.zeros(len(made.upper))
    x[: made.runs] = schedule.good
    column = {(s, b): made.runs + j for j, (s, b) in enumerate(zip(made.strip, made.bin, strict=True))}
    strip = {(one.duty, one.kind, one.is_decode): number for number, one in enumerate(made.strips)}
    lost = 0.0
    for kind, group in enumerate(machines):
        for replica in group.replicas:
            steps = schedule.steps_by_replica[replica]
            reader = _Reader(kind, group, _flat(runs), schedule.duty_by_call)
            for step, shares in zip(steps, reader.shares(steps), strict=True):
                for number, part in _parts(step, made.bin_ms):
                    if 0 <= number - made.first_bin < made.bins:
                        place = kind * made.bins + number - made.first_bin
                        x[made.runs + len(made.strip) + place] += part
                    for duty, is_decode, share in shares:
                        at = column.get((strip.get((duty, kind, is_decode), -1), number), -1)
                        lost += 0.0 if at >= 0 else share * part
                        x[at] += share * part if at >= 0 else 0.0
    return x, lost


def _flat(runs: Sequence[RunDuties]) -> list[Duty]:
    return [duty for run in runs for group in run.by_step for duty in group.duties]


def _parts(step: Step, bin_ms: float) -> Iterator[tuple[int, float]]:
    """The bins that a step lies in, and how much of it."""
    first, last = math.floor(step.begin_ms / bin_ms), math.ceil(step.end_ms / bin_ms)
    for number in range(first, max(first + 1, last)):
        common = min(step.end_ms, (number + 1) * bin_ms) - max(step.begin_ms, number * bin_ms)
        if common > 0:
            yield number, common / (step.end_ms - step.begin_ms)


Shared = tuple[int, bool, float]
"""A duty, whether it decodes, and the share of that phase done."""


class _Reader:
    """Reads the steps of one replica as shares of duties."""

    def __init__(
        self, number: int, kind: Machines, duties: Sequence[Duty], duty_by_call: Mapping[CallId, int]
    ) -> None:
        self._number = number
        self._kind, self._duties, self._duty_by_call = kind, duties, duty_by_call
        self._computed: dict[CallId, int] = defaultdict(int)
        self._again: dict[CallId, list[tuple[int, Chunk]]] = {}

    def shares(self, steps: Sequence[Step]) -> list[list[Shared]]:
        """For every step: which duties it did a share of."""
        found: list[list[Shared]] = [[] for _ in steps]
        for number, step in enumerate(steps):
            for call in step.decoding:
                if (duty := self._duty_by_call.get(call)) is not None and self._duties[duty].gaps:
                    found[number].append((duty, True, 1 / self._duties[duty].gaps))
            for chunk in step.chunks:
                if (duty := self._duty_by_call.get(chunk.call)) is not None:
                    if chunk.is_first:
                        found[number].append((duty, False, self._prefilled(chunk, self._duties[duty])))
                    elif self._duties[duty].gaps:
                        self._recomputed(number, chunk, duty, found)
        return found

    def _prefilled(self, chunk: Chunk, duty: Duty) -> float:
        """Only what is computed for the first time, and only what no cache could have held."""
        new = next(
            (one.new_tokens for one in duty.places if one.machines == self._number), duty.prompt_tokens
        )
        start = max(chunk.begin, self._computed[chunk.call], duty.prompt_tokens - new)
        self._computed[chunk.call] = max(self._computed[chunk.call], chunk.end)
        whole = self._work(duty.prompt_tokens - new, duty.prompt_tokens)
        return self._work(start, chunk.end) / whole if chunk.end > start else 0.0

    def _recomputed(self, number: int, chunk: Chunk, duty: int, found: list[list[Shared]]) -> None:
        """A whole prompt computed again brings one token: its chunks share it by their work."""
        own = self._again.get(chunk.call, [])
        if own and own[-1][1].end != chunk.begin:
            own = []
        own = self._again[chunk.call] = [*own, (number, chunk)]
        if chunk.end == chunk.target:
            whole = sum(self._work(part.begin, part.end) for _, part in own)
            for at, part in own:
                share = self._work(part.begin, part.end) / whole / self._duties[duty].gaps
                found[at].append((duty, True, share))
            del self._again[chunk.call]

    def _work(self, begin: int, end: int) -> float:
        k = self._kind.truth.profile.coefficients
        return k.d * (end - begin) + k.e * (end - begin) * (begin + end) / 2
