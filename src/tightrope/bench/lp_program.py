"""The linear program of which every schedule is a point: shares of calls done on machines in bins of time.

Owns its columns and rows. Best-case costs and windows are `windows.py`, solving is `lp_bound.py`. Prefill and
decoding are separate shares, for one share of a whole call is no bound. After Lawler and Labetoulle (1978).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tightrope.bench.windows import Duty, Machines, Place, RunDuties
from tightrope.model.errors import InvalidInput

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Strip:
    """One phase of one call on one kind of machine, between two moments: a share of it for every bin.

    `duty` counts calls, `group` the steps that they are items of. The rest is what the whole phase costs at
    least: `busy_ms` of the call's own time, `work_ms` of machine time beside that of steps, `steps` in which it
    takes part, `decoded` and all `tokens` of those steps, and `held`, tokens in memory times ms of steps.
    """

    run: int
    group: int
    duty: int
    kind: int
    is_decode: bool
    from_ms: float
    until_ms: float
    busy_ms: float
    work_ms: float
    steps: float
    decoded: float
    tokens: float
    held: float


@dataclass(frozen=True, slots=True)
class Program:
    """Maximise the sum of the columns of runs, such that `matrix` x <= `limits` and 0 <= x <= `upper`.

    Columns: one for each of `runs`; then one for each entry of `strip` and `bin`, the share of that strip in that
    bin; then the steps of each of `kinds` of machines in each of `bins` bins from `first_bin` on. Rows named in
    `is_equal` hold with equality; `family` is the number of a row's constraint in the text of `program`.
    """

    bin_ms: float
    runs: int
    kinds: int
    strips: tuple[Strip, ...]
    strip: Ints
    bin: Ints
    first_bin: int
    bins: int
    matrix: csr_array
    limits: Floats
    is_equal: NDArray[np.bool_]
    family: Ints
    upper: Floats


def program(machines: Sequence[Machines], runs: Sequence[RunDuties], bin_ms: float) -> Program:
    """The program over x (runs), p and q (shares of prefill and decoding of a call, by kind and bin), Z (steps).

        max   sum x
        (1)   sum p >= needed x for every step; sum p <= x for each call of a step that needs only some of them
        (2)   sum p = sum q for every call on each kind of machine                 no call moves
        (3)   p and q only within their windows (`windows.py`)
        (4)   own time of a call in a bin <= its window there                      it is not parallel to itself
        (5)   (a+h) Z + work of all p and q <= time of the machines
        (6)   Z >= steps of each p and each q
        (7)   decoded tokens <= R Z;  all tokens <= C Z
        (8)   memory held while decoding <= K

    Costs are least costs per unit, so that every real schedule is a point. Raises InvalidInput for a machine
    whose steps cost nothing.
    """
    for kind in machines:
        if _step_ms(kind) <= 0:
            raise InvalidInput(f"a step of {kind.model} costs nothing on {kind.truth.profile.accelerator}")
    strips = tuple(_strips(machines, runs))
    return _Layout(machines, runs, strips, bin_ms).program()


# --- strips ----------------------------------------------------------------------------------------------


def _strips(machines: Sequence[Machines], runs: Sequence[RunDuties]) -> Iterator[Strip]:
    """Numbers count on over all runs; for runs that are late even alone there are none."""
    duty_number = group_number = -1
    for run_number, run in enumerate(runs):
        for group in run.by_step:
            group_number += 1
            for duty in group.duties:
                duty_number += 1
                for place in duty.places if run.is_possible else ():
                    numbers = (run_number, group_number, duty_number, place.machines)
                    yield _prefill(numbers, duty, place, machines[place.machines])
                    if duty.gaps:
                        yield _decode(numbers, duty, place, machines[place.machines])


def _prefill(numbers: tuple[int, int, int, int], duty: Duty, place: Place, kind: Machines) -> Strip:
    """A step holds one chunk of a prompt at most; the last chunk costs most, its last token most of all."""
    k, n = kind.truth.profile.coefficients, duty.prompt_tokens
    chunk = min(kind.truth.profile.step_tokens, place.new_tokens)
    chunk_ms = k.d * chunk + k.e * chunk * (n - chunk / 2)
    token_ms = k.d + k.e * n
    return Strip(
        *numbers,
        is_decode=False,
        from_ms=duty.start_ms,
        until_ms=duty.prefill_by_ms(place),
        busy_ms=place.prefill_ms,
        work_ms=place.prefill_ms,
        steps=place.prefill_ms / chunk_ms if chunk_ms > 0 else 0.0,
        decoded=0.0,
        tokens=place.prefill_ms / token_ms if token_ms > 0 else 0.0,
        held=0.0,
    )


def _decode(numbers: tuple[int, int, int, int], duty: Duty, place: Place, kind: Machines) -> Strip:
    gaps = float(duty.gaps)
    return Strip(
        *numbers,
        is_decode=True,
        from_ms=duty.start_ms + place.first_ms,
        until_ms=duty.last_by_ms,
        busy_ms=place.decode_ms,
        work_ms=gaps * place.token_ms,
        steps=gaps,
        decoded=gaps,
        tokens=gaps,
        held=gaps * place.new_tokens * _step_ms(kind),
    )


def _run_of(strip: Strip) -> int:
    return strip.run


def _duty_of(strip: Strip) -> int:
    return strip.duty


def _step_ms(kind: Machines) -> float:
    k = kind.truth.profile.coefficients
    return k.a + k.h


# --- columns and rows ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one constraint."""

    family: int
    row: Ints
    column: Ints
    value: Floats
    limits: Floats
    is_equal: bool = False


class _Layout:
    """The columns, and each constraint over them."""

    def __init__(
        self,
        machines: Sequence[Machines],
        runs: Sequence[RunDuties],
        strips: Sequence[Strip],
        bin_ms: float,
    ) -> None:
        self._machines, self._runs, self._strips, self._bin_ms = machines, runs, strips, bin_ms
        self._groups = [(number, group) for number, run in enumerate(runs) for group in run.by_step]
        first = self._of(lambda one: math.floor(one.from_ms / bin_ms)).astype(np.int64)
        end = self._of(lambda one: math.ceil(one.until_ms / bin_ms)).astype(np.int64)
        counts = np.maximum(1, end - first)
        self._strip = np.repeat(np.arange(len(strips)), counts)
        starts = np.cumsum(counts) - counts
        self._bin = first[self._strip] + np.arange(len(self._strip)) - starts[self._strip]
        self._first_bin = int(first.min(initial=0))
        self._bins = int((first + counts).max(initial=0)) - self._first_bin
        self._column = len(runs) + np.arange(len(self._strip))
        self._steps_column = len(runs) + len(self._strip)
        self._width = self._steps_column + len(machines) * self._bins
        kind = self._of(lambda one: one.kind).astype(np.int64)[self._strip]
        self._kind_bin = kind * self._bins + self._bin - self._first_bin

    def program(self) -> Program:
        parts = [
            self._needs_all(),
            self._needs_some(),
            self._stays(),
            self._is_serial(),
            *self._fits_machines(),
            self._takes_steps(),
        ]
        first_rows = np.cumsum([0, *(len(part.limits) for part in parts)])
        return Program(
            bin_ms=self._bin_ms,
            runs=len(self._runs),
            kinds=len(self._machines),
            strips=tuple(self._strips),
            strip=self._strip,
            bin=self._bin,
            first_bin=self._first_bin,
            bins=self._bins,
            matrix=csr_array(
                (
                    np.concatenate([part.value for part in parts]),
                    (
                        np.concatenate(
                            [part.row + first for part, first in zip(parts, first_rows[:-1], strict=True)]
                        ),
                        np.concatenate([part.column for part in parts]),
                    ),
                ),
                shape=(int(first_rows[-1]), self._width),
            ),
            limits=np.concatenate([part.limits for part in parts]),
            is_equal=np.concatenate([np.full(len(part.limits), part.is_equal) for part in parts]),
            family=np.concatenate([np.full(len(part.limits), part.family) for part in parts]),
            upper=self._upper(),
        )

    def _of(self, value: Callable[[Strip], float]) -> Floats:
        """A number of every strip."""
        return np.array([value(one) for one in self._strips], dtype=np.float64)

    def _each(self, value: Callable[[Strip], float]) -> Floats:
        """The same for every column of a share."""
        values: Floats = self._of(value)[self._strip]
        return values

    def _overlap_ms(self, from_ms: Floats, until_ms: Floats, bins: Ints) -> Floats:
        """Time that a window has in common with a bin."""
        common: Floats = np.minimum(until_ms, (bins + 1) * self._bin_ms) - np.maximum(
            from_ms, bins * self._bin_ms
        )
        return common.clip(min=0.0)

    def _upper(self) -> Floats:
        """(3): no share is larger than its own window in the bin allows. Steps: as many as fit."""
        times_ms = self._overlap_ms(
            self._each(lambda one: one.from_ms), self._each(lambda one: one.until_ms), self._bin
        )
        busy_ms = self._each(lambda one: one.busy_ms)
        shares = np.divide(times_ms, busy_ms, out=np.ones_like(times_ms), where=busy_ms > 0)
        steps = [
            np.full(self._bins, len(kind.replicas) * self._bin_ms / _step_ms(kind)) for kind in self._machines
        ]
        runs = np.array([float(run.is_possible) for run in self._runs])
        return np.concatenate([runs, np.minimum(1.0, shares), *steps])

    def _needs_all(self) -> _Rows:
        """(1), steps. The row for decoding follows from (2)."""
        runs = np.array([number for number, _ in self._groups], dtype=np.int64)
        needed = np.array([group.needed for _, group in self._groups], dtype=np.float64)
        own, group = self._prefill(lambda one: one.group)
        return _Rows(
            1,
            np.concatenate([np.arange(len(runs)), group]),
            np.concatenate([runs, own]),
            np.concatenate([needed, np.full(len(own), -1.0)]),
            np.zeros(len(runs)),
        )

    def _needs_some(self) -> _Rows:
        """(1), calls of which their step needs only some."""
        is_partial = [group.needed < len(group.duties) for _, group in self._groups]
        own, partial = self._prefill(lambda one: is_partial[one.group])
        own = own[partial > 0]
        strips = self._strip[own - len(self._runs)]
        run, duty = (self._of(value).astype(np.int64)[strips] for value in (_run_of, _duty_of))
        duties, first, row = np.unique(duty, return_index=True, return_inverse=True)
        return _Rows(
            1,
            np.concatenate([row, np.arange(len(duties))]),
            np.concatenate([own, run[first]]),
            np.concatenate([np.ones(len(own)), np.full(len(duties), -1.0)]),
            np.zeros(len(duties)),
        )

    def _prefill(self, value: Callable[[Strip], int]) -> tuple[Ints, Ints]:
        """The columns of prefill, and a number of each one's strip."""
        is_prefill = self._each(lambda one: not one.is_decode) > 0
        return self._column[is_prefill], self._each(value).astype(np.int64)[is_prefill]

    def _stays(self) -> _Rows:
        """(2). The strip of a call's decoding follows that of its prefill there."""
        decodes = np.flatnonzero(self._of(lambda one: one.is_decode))
        row_of = np.full(len(self._strips), -1)
        row_of[decodes] = row_of[decodes - 1] = np.arange(len(decodes))
        row = row_of[self._strip]
        value = np.where(self._each(lambda one: one.is_decode) > 0, -1.0, 1.0)
        own = row >= 0
        return _Rows(2, row[own], self._column[own], value[own], np.zeros(len(decodes)), is_equal=True)

    def _is_serial(self) -> _Rows:
        """(4), where columns of a call meet; one by itself is bounded by its own window already."""
        duty = self._each(_duty_of).astype(np.int64)
        keys = duty * (self._bins + 1) + self._bin - self._first_bin
        met, row, counts = np.unique(keys, return_inverse=True, return_counts=True)
        number = np.cumsum(counts > 1) - 1
        own = counts[row] > 1
        from_ms, until_ms = self._window_ms()
        duties, bins = np.divmod(met[counts > 1], self._bins + 1)
        times_ms = self._overlap_ms(from_ms[duties], until_ms[duties], bins + self._first_bin)
        busy = self._each(lambda one: one.busy_ms) / self._bin_ms
        return _Rows(4, number[row[own]], self._column[own], busy[own], times_ms / self._bin_ms)

    def _window_ms(self) -> tuple[Floats, Floats]:
        """From when to when each call can be under way at all."""
        duty = self._of(_duty_of).astype(np.int64)
        count = int(duty.max(initial=-1)) + 1
        from_ms, until_ms = np.full(count, np.inf), np.full(count, -np.inf)
        np.minimum.at(from_ms, duty, self._of(lambda one: one.from_ms))
        np.maximum.at(until_ms, duty, self._of(lambda one: one.until_ms))
        return from_ms, until_ms

    def _fits_machines(self) -> Iterator[_Rows]:
        """(5), (7), (8), for each kind of machine and bin."""
        profiles = [kind.truth.profile for kind in self._machines]
        time_ms = self._per_kind([len(kind.replicas) * self._bin_ms for kind in self._machines])
        step_ms = self._per_kind([_step_ms(kind) for kind in self._machines])
        seats = self._per_kind([profile.max_sequences for profile in profiles])
        room = self._per_kind([max(profile.step_tokens, profile.max_sequences) for profile in profiles])
        memory = self._per_kind([profile.kv_tokens for profile in profiles])
        full, none = np.ones(len(time_ms)), np.zeros(len(time_ms))
        yield self._of_machines(5, lambda one: one.work_ms, time_ms, step_ms / time_ms, full)
        yield self._of_machines(7, lambda one: one.decoded, seats, -full, none)
        yield self._of_machines(7, lambda one: one.tokens, room, -full, none)
        yield self._of_machines(8, lambda one: one.held, memory * time_ms, none, full)

    def _per_kind(self, values: Sequence[float]) -> Floats:
        return np.repeat(np.array(values, dtype=np.float64), self._bins)

    def _of_machines(
        self, family: int, value: Callable[[Strip], float], unit: Floats, per_step: Floats, limits: Floats
    ) -> _Rows:
        """What all shares on a kind of machine ask for in a bin, in units of what there is, and its steps."""
        asked = self._each(value) / unit[self._kind_bin] if len(self._strip) else np.zeros(0)
        own = asked > 0
        steps = np.arange(len(limits))
        return _Rows(
            family,
            np.concatenate([self._kind_bin[own], steps]),
            np.concatenate([self._column[own], self._steps_column + steps]),
            np.concatenate([asked[own], per_step]),
            limits,
        )

    def _takes_steps(self) -> _Rows:
        """(6), for each share by itself."""
        steps = self._each(lambda one: one.steps)
        own = steps > 0
        row = np.arange(int(own.sum()))
        return _Rows(
            6,
            np.concatenate([row, row]),
            np.concatenate([self._column[own], self._steps_column + self._kind_bin[own]]),
            np.concatenate([steps[own], np.full(len(row), -1.0)]),
            np.zeros(len(row)),
        )
