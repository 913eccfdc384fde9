"""Things policies look at: dull ones to change in one place, and Hypothesis strategies for any of them."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from hypothesis import strategies as st

from tightrope.model.fleet import HeldCall, Job, PoolView, ReplicaView
from tightrope.model.ids import AcceleratorName, CallId, ModelName, ReplicaId, StepId
from tightrope.model.profile import Coefficients, Profile
from tightrope.model.workflow import Binding, Case, CaseRef, CodeCall, FanOut, Node, Ref, Switch, Workflow

MODEL = ModelName("m")
NOW_S = 100.0

# Llama-3.1-8B, fitted on the published step times that the golden values of the latency model refer to.
H100 = Profile(
    MODEL,
    AcceleratorName("h100"),
    Coefficients(a=6.366, b=0.010993, c=4.1558e-5, d=0.015197, e=9.7802e-7, h=4.0),
    step_tokens=2048,
    max_sequences=128,
    kv_tokens=400_000,
)
L40S = Profile(
    MODEL,
    AcceleratorName("l40s"),
    Coefficients(a=22.447, b=0.033405, c=1.92881e-4, d=0.048263, e=3.6192e-6, h=4.0),
    step_tokens=2048,
    max_sequences=128,
    kv_tokens=200_000,
)


def a_job(**changes: Any) -> Job:
    """A call of middling size that is due in ten seconds."""
    plain = Job(
        call=CallId("job"),
        model=MODEL,
        prompt_tokens=500,
        output_tokens=100.0,
        output_high=200,
        ready_s=NOW_S,
        due_s=NOW_S + 10,
        budget_s=10.0,
        is_terminal=False,
    )
    return replace(plain, **changes)


def a_held(name: str = "held", **changes: Any) -> HeldCall:
    """A call of middling size, dispatched now and due in ten seconds."""
    plain = HeldCall(
        call=CallId(name),
        prompt_tokens=500,
        output_tokens=100.0,
        dispatched_s=NOW_S,
        due_s=NOW_S + 10,
        is_terminal=False,
    )
    return replace(plain, **changes)


def a_view(name: str = "r1", profile: Profile = H100, held: tuple[HeldCall, ...] = ()) -> ReplicaView:
    """An idle replica."""
    return ReplicaView(ReplicaId(name), profile.model, profile.accelerator, profile, held=held)


def a_pool(*views: ReplicaView, turn: int = 0) -> PoolView:
    """A pool of these replicas."""
    return PoolView(MODEL, views, turn)


def code(name: str, *reads: str, case: tuple[str, str] | None = None, max_items: int = 0) -> Node:
    """A code node that reads others; `a|b` reads the first that was not skipped, `?` at the end may be null."""
    inputs = []
    for number, text in enumerate(reads):
        names = text.removesuffix("?").split("|")
        refs = tuple(Ref(source) for source in names)
        inputs.append((f"in{number}", Binding(refs, optional=text.endswith("?"))))
    return Node(
        id=StepId(name),
        work=CodeCall("module:function"),
        inputs=tuple(inputs),
        case=CaseRef(StepId(case[0]), case[1]) if case else None,
        fan_out=FanOut(Ref("input", ("list",)), max_items) if max_items else None,
    )


def a_switch(name: str, reads: str, case: tuple[str, str] | None = None, **cases: float) -> Switch:
    """A switch over named cases with their probabilities."""
    return Switch(
        id=StepId(name),
        cases=tuple(Case(case_name, None, p) for case_name, p in cases.items()),
        reads=(StepId(reads),),
        case=CaseRef(StepId(case[0]), case[1]) if case else None,
    )


def a_workflow(*nodes: Node, switches: tuple[Switch, ...] = ()) -> Workflow:
    """A workflow whose output is the last node."""
    return Workflow(name="w", nodes=nodes, output=nodes[-1].id, switches=switches)


# --- strategies ----------------------------------------------------------------------------------------


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    """Finite floats; 0 or at least a millionth of the range, since what is smaller drowns in rounding."""
    spread = high - low
    return st.one_of(
        st.sampled_from([low, high]),
        st.floats(low, high).map(lambda value: low if value - low < spread * 1e-6 else value),
    )


@st.composite
def profiles(draw: st.DrawFn, name: str = "card", memory: bool = False) -> Profile:
    """Any card; with `memory` so much that it is never short."""
    coefficients = Coefficients(
        a=draw(numbers(0.5, 50)),
        b=draw(numbers(0, 1)),
        c=draw(numbers(0, 1e-3)),
        d=draw(numbers(0.001, 2)),
        e=draw(numbers(0, 1e-5)),
        h=draw(numbers(0, 5)),
    )
    return Profile(
        MODEL,
        AcceleratorName(name),
        coefficients,
        step_tokens=draw(st.sampled_from([32, 128, 512, 2048])),
        max_sequences=draw(st.integers(1, 8)),
        kv_tokens=10**9 if memory else draw(st.integers(500, 20_000)),
        default_prompt=draw(st.integers(1, 2000)),
        default_output=draw(st.integers(1, 300)),
    )


@st.composite
def helds(draw: st.DrawFn, name: str = "held") -> HeldCall:
    """A call on a replica, in any phase."""
    dispatched_s = NOW_S - draw(numbers(0, 20))
    has_slot = draw(st.booleans())
    is_decoding = has_slot and draw(st.booleans())
    return HeldCall(
        call=CallId(name),
        prompt_tokens=draw(st.integers(1, 3000)),
        output_tokens=draw(numbers(1, 400)),
        dispatched_s=dispatched_s,
        due_s=draw(st.one_of(numbers(NOW_S - 5, NOW_S + 30), st.just(float("inf")))),
        is_terminal=draw(st.booleans()),
        is_hopeless=draw(st.booleans()),
        first_token_s=draw(numbers(dispatched_s, NOW_S)) if is_decoding else None,
        has_slot=has_slot,
    )


@st.composite
def views(draw: st.DrawFn, name: str = "r1", most: int = 6) -> ReplicaView:
    """A replica with up to `most` calls, oldest first."""
    count = draw(st.integers(0, most))
    held = [draw(helds(f"{name}/{index}")) for index in range(count)]
    held.sort(key=lambda call: call.dispatched_s)
    return a_view(name, draw(profiles()), tuple(held))


def pools(fewest: int = 1, has_memory: bool = False, may_place: bool = True) -> st.SearchStrategy[PoolView]:
    """Up to five replicas in id order, of two or three cards, idle, busy or full.

    Drawn from a seed: one number in place of some hundred keeps the laws of routers fast.
    """
    return st.integers(0, 2**32).map(lambda seed: _a_random_pool(Random(seed), fewest, has_memory, may_place))


def _a_random_pool(rng: Random, fewest: int, has_memory: bool, may_place: bool) -> PoolView:
    cards = [a_random_card(rng, f"card{index}", has_memory) for index in range(rng.randint(1, 3))]
    found = []
    for index in range(rng.randint(fewest, 5)):
        ages = sorted((rng.uniform(0, 20) for _ in range(rng.choice([0, 1, 2, 4, 6]))), reverse=True)
        held = tuple(
            a_random_held(rng, f"r{index}/{number}", age, may_place) for number, age in enumerate(ages)
        )
        found.append(a_view(f"r{index}", rng.choice(cards), held))
    return PoolView(MODEL, tuple(found), rng.randint(0, 100))


def a_random_card(rng: Random, name: str, has_memory: bool) -> Profile:
    """A card from a seed; with `has_memory` so much that it is never short."""
    slow = rng.choice([0.1, 1.0, 5.0])
    coefficients = Coefficients(
        a=slow * rng.uniform(1, 10),
        b=slow * rng.choice([0.0, rng.uniform(0, 0.2)]),
        c=slow * rng.choice([0.0, rng.uniform(0, 1e-3)]),
        d=slow * rng.uniform(0.01, 0.5),
        e=slow * rng.choice([0.0, rng.uniform(0, 1e-5)]),
        h=rng.choice([0.0, 4.0]),
    )
    return Profile(
        MODEL,
        AcceleratorName(name),
        coefficients,
        step_tokens=rng.choice([32, 128, 512, 2048]),
        max_sequences=rng.choice([1, 2, 4, 8]),
        kv_tokens=10**9 if has_memory else rng.choice([1000, 4000, 20_000]),
        default_prompt=rng.randint(1, 2000),
        default_output=rng.randint(1, 300),
    )


def a_random_held(rng: Random, name: str, age_s: float, may_place: bool) -> HeldCall:
    """A call from a seed, in any phase; in thought only if `may_place`."""
    has_slot = not may_place or rng.random() < 0.7
    is_decoding = has_slot and rng.random() < 0.5
    return a_held(
        name,
        prompt_tokens=rng.randint(1, 3000),
        output_tokens=rng.uniform(1, 400),
        dispatched_s=NOW_S - age_s,
        due_s=rng.choice([rng.uniform(NOW_S - 5, NOW_S + 30), float("inf")]),
        is_terminal=rng.random() < 0.5,
        is_hopeless=rng.random() < 0.2,
        first_token_s=NOW_S - age_s * rng.random() if is_decoding else None,
        has_slot=has_slot,
    )


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Any call."""
    output = draw(numbers(1, 400))
    return Job(
        call=CallId("job"),
        model=MODEL,
        prompt_tokens=draw(st.integers(1, 3000)),
        output_tokens=output,
        output_high=int(output) + draw(st.integers(0, 200)),
        ready_s=NOW_S,
        due_s=draw(st.one_of(numbers(NOW_S - 5, NOW_S + 30), st.just(float("inf")))),
        budget_s=draw(numbers(0, 30)),
        is_terminal=draw(st.booleans()),
        is_hopeless=draw(st.booleans()),
    )
