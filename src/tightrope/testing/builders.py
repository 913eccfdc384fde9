"""Values of the vocabulary with dull defaults, so that a test shows only what matters to it."""

from __future__ import annotations

from tightrope.model.fleet import HeldCall, Job, ReplicaView
from tightrope.model.ids import AcceleratorName, CallId, ModelName, ReplicaId, StepId
from tightrope.model.profile import Coefficients, Profile
from tightrope.model.slo import Slo
from tightrope.model.workflow import (
    Binding,
    CodeCall,
    InputSpec,
    ModelCall,
    Node,
    Prompt,
    Ref,
    Workflow,
)


def a_profile(
    model: str = "small",
    accelerator: str = "slow",
    *,
    speed: float = 1.0,
    step_tokens: int = 512,
    max_sequences: int = 4,
    kv_tokens: int = 8192,
    load_s: float = 1.0,
) -> Profile:
    """10 ms a step, 1 ms a sequence, 2 ms a prompt token; all divided by `speed`."""
    coefficients = Coefficients(a=10.0, b=1.0, c=0.001, d=2.0, e=0.0001).scaled(1 / speed)
    return Profile(
        model=ModelName(model),
        accelerator=AcceleratorName(accelerator),
        coefficients=coefficients,
        step_tokens=step_tokens,
        max_sequences=max_sequences,
        kv_tokens=kv_tokens,
        load_s=load_s,
        digest="digest",
        engine="scripted",
    )


def a_replica(
    id: str = "small-0",  # noqa: A002 (the field is named so)
    model: str = "small",
    accelerator: str = "slow",
    *,
    speed: float = 1.0,
    usd_per_h: float = 1.0,
    held: tuple[HeldCall, ...] = (),
    profile: Profile | None = None,
) -> ReplicaView:
    """An empty, ready replica with `a_profile` of that speed."""
    return ReplicaView(
        id=ReplicaId(id),
        model=ModelName(model),
        accelerator=AcceleratorName(accelerator),
        profile=profile or a_profile(model, accelerator, speed=speed),
        usd_per_h=usd_per_h,
        held=held,
    )


def a_job(
    call: str = "run/answer/0.1",
    model: str = "small",
    *,
    prompt_tokens: int = 100,
    output_tokens: float = 20.0,
    output_high: int = 64,
    ready_s: float = 0.0,
    due_s: float = 10.0,
    budget_s: float = 10.0,
    is_terminal: bool = False,
    is_hopeless: bool = False,
) -> Job:
    """A call of 100 + 20 tokens that became ready at 0 and is due at 10 s."""
    return Job(
        call=CallId(call),
        model=ModelName(model),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        output_high=output_high,
        ready_s=ready_s,
        due_s=due_s,
        budget_s=budget_s,
        is_terminal=is_terminal,
        is_hopeless=is_hopeless,
    )


def a_held_call(
    call: str = "run/answer/0.1",
    *,
    prompt_tokens: int = 100,
    output_tokens: float = 20.0,
    dispatched_s: float = 0.0,
    due_s: float = 10.0,
    is_terminal: bool = False,
    is_hopeless: bool = False,
    first_token_s: float | None = None,
    has_slot: bool = True,
) -> HeldCall:
    """The call of `a_job`, dispatched at 0, without its first token yet."""
    return HeldCall(
        call=CallId(call),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        dispatched_s=dispatched_s,
        due_s=due_s,
        is_terminal=is_terminal,
        is_hopeless=is_hopeless,
        first_token_s=first_token_s,
        has_slot=has_slot,
    )


def a_node(
    id: str = "answer",  # noqa: A002 (the field is named so)
    *,
    reads: tuple[str, ...] = ("input.question",),
    model: str = "small",
    max_tokens: int = 32,
    stream: bool = False,
    function: str | None = None,
) -> Node:
    """A model node that reads these references, each under its last name; `function` makes it a code node."""
    inputs = {ref.rpartition(".")[2]: Binding((_ref(ref),)) for ref in reads}
    text = " ".join(f"{{{{ {name} }}}}" for name in inputs)
    work = (
        CodeCall(function)
        if function is not None
        else ModelCall(ModelName(model), Prompt(text=text), max_tokens=max_tokens, stream=stream)
    )
    return Node(id=StepId(id), work=work, inputs=tuple(inputs.items()))


def a_chain(
    *ids: str, name: str = "chain", model: str = "small", slo: Slo | None = None, max_tokens: int = 32
) -> Workflow:
    """Model nodes in a row (`draft`, `answer` if none are named), the last one streamed; due in 10 s."""
    ids = ids or ("draft", "answer")
    nodes = []
    for index, node_id in enumerate(ids):
        source = ids[index - 1] if index else "input.question"
        nodes.append(
            a_node(node_id, reads=(source,), model=model, max_tokens=max_tokens, stream=index == len(ids) - 1)
        )
    return Workflow(
        name=name,
        nodes=tuple(nodes),
        output=StepId(ids[-1]),
        slo=slo or Slo(ttft_s=10.0),
        inputs=(InputSpec("question", "last_user_message"),),
    )


def _ref(text: str) -> Ref:
    source, *path = text.split(".")
    return Ref(source, tuple(path))
