"""Windows: what the calls of a run would take at least, and between which moments each could be made at all.

Owns best-case times on true profiles and the deadlines that follow from them. All moments and times are in
milliseconds, as engine formulas are. Which calls there are is `course.py`; what fits together is `lp_bound.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

from tightrope.bench.course import PATIENCE_S, Stage, course
from tightrope.model.ids import ModelName, ReplicaId, RunId, StepId
from tightrope.sim.engine import Truth
from tightrope.sim.script import CallScript, RunScript
from tightrope.sim.world import World

ROUNDING_MS = 1e-6
"""A call that just fits is not lost to rounding."""


@dataclass(frozen=True, slots=True)
class Machines:
    """Replicas that behave alike."""

    model: ModelName
    truth: Truth
    replicas: tuple[ReplicaId, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """What a call costs at least on one replica of `machines` (an index), in ms of that replica.

    `prefill_ms` is the work of the `new_tokens` of its prompt, those that no cache can hold; `first_ms` the time
    until its first token. `token_ms` is the work of one more token, `decode_ms` the time from the first to the last.
    """

    machines: int
    new_tokens: int
    prefill_ms: float
    first_ms: float
    token_ms: float
    decode_ms: float


@dataclass(frozen=True, slots=True)
class Duty:
    """A call that has to be made; moments are those of its engine, in ms on the simulation's clock.

    Not before `start_ms`; its first token by `first_by_ms` and its last by `last_by_ms`, inf where that does not
    matter. `places` are the machines on which it can be on time when nothing else is there.
    """

    step: StepId
    item: int
    prompt_tokens: int
    output_tokens: int
    start_ms: float
    first_by_ms: float
    last_by_ms: float
    places: tuple[Place, ...]

    @property
    def gaps(self) -> int:
        """Tokens after the first that have to come in time."""
        return self.output_tokens - 1 if self.last_by_ms < math.inf else 0

    def prefill_by_ms(self, place: Place) -> float:
        """The latest moment for the last of its prompt there."""
        return min(self.first_by_ms, self.last_by_ms - place.decode_ms)


@dataclass(frozen=True, slots=True)
class StepDuties:
    """`needed` of these calls, all items of one step, must be made for the run to keep its promise."""

    duties: tuple[Duty, ...]
    needed: int


@dataclass(frozen=True, slots=True)
class RunDuties:
    """All that a run needs to keep its promise. `is_possible`: with every machine to itself, it could."""

    run: RunId
    by_step: tuple[StepDuties, ...]
    is_possible: bool


def machines_of(world: World, *, merged: bool = True) -> tuple[Machines, ...]:
    """The replicas of a world, those that behave alike together (not `merged`: each by itself)."""
    alike: dict[tuple[object, ...], Machines] = {}
    for spec in world.replicas:
        truth = world.truths[spec.model, spec.accelerator]
        key = (spec.model, truth) if merged else (spec.id,)
        others = alike[key].replicas if key in alike else ()
        alike[key] = Machines(spec.model, truth, (*others, spec.id))
    return tuple(alike.values())


def duties(
    world: World,
    scripts: Sequence[RunScript],
    machines: Sequence[Machines],
    everyone: Sequence[RunScript] = (),
    patience_s: float = PATIENCE_S,
) -> tuple[RunDuties, ...]:
    """What each run needs, and when, on these machines. A run to which no moment is promised needs nothing.

    `everyone` is all that there is in the world, if that is more. Noise, faults and the time to start replicas are
    left out: engines take exactly the time of their profile.
    """
    costs = _Costs(machines, everyone or scripts)
    caps = {tenant.id: tenant.limits.output_tokens for tenant in world.tenants}
    return tuple(
        _duties(script, course(script, caps.get(script.tenant), patience_s), costs, 1000 * world.network_s)
        for script in scripts
    )


# --- one call, alone -------------------------------------------------------------------------------------


class _Costs:
    """Least costs of calls on machines, given all calls that there may be."""

    def __init__(self, machines: Sequence[Machines], scripts: Iterable[RunScript]) -> None:
        calls = [call for script in scripts for items in script.calls.values() for call in items]
        blocks = Counter(block for call in calls for block in set(call.blocks))
        self._machines = machines
        self._shared = frozenset(block for block, count in blocks.items() if count > 1)
        self._largest = max((call.prompt_tokens + call.output_tokens for call in calls), default=0)

    def places(self, call: CallScript, models: Iterable[ModelName]) -> tuple[Place, ...]:
        """On all machines that serve one of the models and can hold the call."""
        served = set(models)
        most = call.prompt_tokens + call.output_tokens - 1
        return tuple(
            self._place(call, index, kind.truth)
            for index, kind in enumerate(self._machines)
            if kind.model in served and most <= kind.truth.profile.kv_tokens
        )

    def _place(self, call: CallScript, index: int, truth: Truth) -> Place:
        k, n = truth.profile.coefficients, call.prompt_tokens
        new = n - self._hit_tokens(call, truth.block_tokens)
        prefill_ms = _prompt_ms(truth, new, n)
        token_ms = self._token_ms(call, truth)
        return Place(
            machines=index,
            new_tokens=new,
            prefill_ms=prefill_ms,
            first_ms=prefill_ms + math.ceil(new / truth.profile.step_tokens) * (k.a + k.h),
            token_ms=token_ms,
            decode_ms=(call.output_tokens - 1) * (k.a + k.h + token_ms),
        )

    def _hit_tokens(self, call: CallScript, block_tokens: int) -> int:
        """The most of its prompt that can be cached: leading blocks of other calls; one token is always computed."""
        if not block_tokens:
            return 0
        usable = call.blocks[: (call.prompt_tokens - 1) // block_tokens]
        return block_tokens * sum(1 for _ in takewhile(self._shared.__contains__, usable))

    def _token_ms(self, call: CallScript, truth: Truth) -> float:
        """Work of one more token: a place in a step and the context to read.

        A call that was put out for lack of memory has its next token with the last of its prompt, computed
        again; with much of that still in a cache, this can be the cheaper way.
        """
        k, n, profile = truth.profile.coefficients, call.prompt_tokens, truth.profile
        token_ms = k.b + k.c * n
        if profile.max_sequences * self._largest <= profile.kv_tokens:
            return token_ms
        block = truth.block_tokens
        cached = block * min(len(call.blocks), (n - 1) // block) if block else 0
        return min(token_ms, _prompt_ms(truth, n + 1 - cached, n + 1))


def _prompt_ms(truth: Truth, new_tokens: int, prompt_tokens: int) -> float:
    """Work of the last `new_tokens` of a prompt, engine steps themselves aside."""
    k = truth.profile.coefficients
    return k.d * new_tokens + k.e * new_tokens * (prompt_tokens - new_tokens / 2)


# --- one run, alone --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Timed:
    """A stage with its calls' places, the least ms it takes to its first token and to its end."""

    stage: Stage
    places: tuple[tuple[Place, ...], ...]
    first_ms: float
    whole_ms: float


def _duties(script: RunScript, stages: Sequence[Stage], costs: _Costs, network_ms: float) -> RunDuties:
    if script.slo.target_s is None:
        return RunDuties(script.run, (), is_possible=True)
    timed = [_timed(stage, costs, network_ms) for stage in stages]
    ready_ms = _ready_ms(timed, 1000 * script.at_s)
    by_ms = _by_ms(timed, script)
    by_step = [
        _answer(one, ready, script, network_ms)
        if place == len(timed) - 1
        else _inner(one, ready, by, network_ms)
        for place, (one, ready, by) in enumerate(zip(timed, ready_ms, by_ms, strict=True))
    ]
    is_possible = ready_ms[-1] <= by_ms[-1] + ROUNDING_MS and all(
        sum(bool(duty.places) for duty in own.duties) >= own.needed for own in by_step
    )
    return RunDuties(script.run, tuple(own for own in by_step if own.needed), is_possible)


def _timed(stage: Stage, costs: _Costs, network_ms: float) -> _Timed:
    if not stage.models:
        lasts_ms = _kth([1000 * item.seconds for item in stage.items], stage.needed)
        return _Timed(stage, (), lasts_ms, lasts_ms)
    places = tuple(costs.places(item, stage.models) for item in stage.items)
    first = [min((p.first_ms for p in one), default=math.inf) for one in places]
    whole = [min((p.first_ms + p.decode_ms for p in one), default=math.inf) for one in places]
    there_and_back_ms = 2 * network_ms if stage.needed else 0.0
    return _Timed(
        stage,
        places,
        _kth(first, stage.needed) + there_and_back_ms,
        _kth(whole, stage.needed) + there_and_back_ms,
    )


def _kth(values: Sequence[float], count: int) -> float:
    """When so many of them are over."""
    return sorted(values)[count - 1] if count else 0.0


def _ready_ms(timed: Sequence[_Timed], arrival_ms: float) -> list[float]:
    """The earliest moment at which each stage can start."""
    ready: list[float] = []
    for one in timed:
        sources = one.stage.waits_for
        ready.append(max((ready[place] + timed[place].whole_ms for place in sources), default=arrival_ms))
    return ready


def _by_ms(timed: Sequence[_Timed], script: RunScript) -> list[float]:
    """The latest moment at which each stage must have ended; for the last one, at which it must have started."""
    slo = script.slo
    answer = timed[-1]
    lasts_ms = answer.first_ms if script.is_read_along else answer.whole_ms
    until = [
        1000 * (script.at_s + target_s) - own_ms
        for target_s, own_ms in ((slo.ttft_s, lasts_ms), (slo.e2e_s, answer.whole_ms))
        if target_s is not None
    ]
    by = [math.inf] * len(timed)
    by[-1] = min(until)
    for place in range(len(timed) - 1, -1, -1):
        must_start_ms = by[place] - (timed[place].whole_ms if place < len(timed) - 1 else 0.0)
        for source in timed[place].stage.waits_for:
            by[source] = min(by[source], must_start_ms)
    return by


def _inner(one: _Timed, ready_ms: float, by_ms: float, network_ms: float) -> StepDuties:
    """Calls of a step that others wait for: they must end."""
    duty = partial(_duty, one, ready_ms + network_ms, math.inf, by_ms - network_ms)
    return StepDuties(
        tuple(duty(item) for item in range(len(one.places))), one.stage.needed if one.places else 0
    )


def _answer(one: _Timed, ready_ms: float, script: RunScript, network_ms: float) -> StepDuties:
    """The call that answers, if a model does: its first token in time, and no stutter after it."""
    if not one.places:
        return StepDuties((), 0)
    slo, gaps = script.slo, one.stage.items[0].output_tokens - 1
    ttft_by_ms = math.inf if slo.ttft_s is None else 1000 * (script.at_s + slo.ttft_s) - network_ms
    last_by_ms = math.inf if slo.e2e_s is None else 1000 * (script.at_s + slo.e2e_s) - network_ms
    gaps_ms = math.inf
    if not script.is_read_along:
        last_by_ms, ttft_by_ms = min(last_by_ms, ttft_by_ms), math.inf
    elif slo.tpot_s is not None:
        gaps_ms = 1000 * slo.tpot_s * gaps
        last_by_ms = min(last_by_ms, ttft_by_ms + gaps_ms)
    return StepDuties((_duty(one, ready_ms + network_ms, ttft_by_ms, last_by_ms, 0, gaps_ms),), 1)


def _duty(
    one: _Timed, start_ms: float, first_by_ms: float, last_by_ms: float, item: int, gaps_ms: float = math.inf
) -> Duty:
    call = one.stage.items[item]
    places = tuple(
        place
        for place in one.places[item]
        if start_ms + place.first_ms <= min(first_by_ms, last_by_ms - place.decode_ms) + ROUNDING_MS
        and place.decode_ms <= gaps_ms + ROUNDING_MS
    )
    return Duty(
        one.stage.step,
        item,
        call.prompt_tokens,
        call.output_tokens,
        start_ms,
        first_by_ms,
        last_by_ms,
        places,
    )
