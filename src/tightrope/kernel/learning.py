"""What finished calls teach: lengths, durations, branches, and the outlook that is drawn from them.

Owns when a template learns; what is learned and how is `policy/learn.py` and `policy/slack.py`.
"""

from __future__ import annotations

from random import Random

from tightrope.kernel.state import Call, Run, State, Template
from tightrope.model.ids import StepId
from tightrope.model.messages import Command, Wake, WakeAt, WakeKind
from tightrope.model.outcome import Usage
from tightrope.model.profile import Profile
from tightrope.model.workflow import ModelCall, Node
from tightrope.policy.estimate import typical_s
from tightrope.policy.slack import sample_both

LEARN_EVERY_S = 5.0
"""An outlook is drawn anew at most this often: it costs milliseconds, and one more run changes little."""
LEARN_AFTER = 0.25
"""New observations, as a share of those that the last outlook was drawn from, that make a new one worth its price."""
LEARN_AFTER_AT_LEAST = 8
LEARN_AFTER_AT_MOST_S = 60.0
"""However much was known before, what has been seen since is looked at after so long."""


def note_model(state: State, run: Run, call: Call, usage: Usage, now_s: float) -> list[Command]:
    """Learn from a finished model call; ask to be woken when enough was learned for a new outlook."""
    template = run.template
    template.learned.observe_model(call.step, call.piece.item.prompt_bytes, usage, call.max_tokens, now_s)
    _note_inflation(state, call, usage, now_s)
    new = template.learned.observations - template.learned_at
    is_enough = new >= max(LEARN_AFTER_AT_LEAST, LEARN_AFTER * template.learned_at)
    if template.wake_is_set or not (is_enough or now_s - template.learned_s >= LEARN_AFTER_AT_MOST_S):
        return []
    template.wake_is_set = True
    wake = Wake(WakeKind.LEARN, template.workflow.id)
    return [WakeAt(max(now_s, template.learned_s + LEARN_EVERY_S), wake)]


def _note_inflation(state: State, call: Call, usage: Usage, now_s: float) -> None:
    """How much longer the call took, from ready to end, than it would have alone on the pool's best card."""
    if call.model is None:
        return
    profiles = state.pool_profiles(call.model)
    alone_s = typical_s(usage.prompt_tokens, max(1, usage.output_tokens), False, profiles)
    state.pool(call.model).inflation.observe(now_s - call.ready_s, alone_s)


def note_code(run: Run, call: Call, now_s: float) -> None:
    """Learn how long a code node takes."""
    run.template.learned.observe_code(call.step, now_s - call.ready_s, now_s)


def note_case(run: Run, step: StepId, case: str, now_s: float) -> None:
    """Learn which branch is taken."""
    run.template.learned.observe_case(step, case, now_s)


def note_width(run: Run, step: StepId, width: int, now_s: float) -> None:
    """Learn how wide a fan-out is."""
    run.template.learned.observe_width(step, width, now_s)


def learn(state: State, template: Template, now_s: float) -> None:
    """Draw the template's outlooks anew, always with the same random numbers, so that only knowledge changes them."""
    workflow, learned = template.workflow, template.learned
    best = {node.id: _best_profile(state, node) for node in workflow.nodes}
    draw_by_step = {
        step: learned.drawer(step, best.get(step), _inflation(state, template, step), now_s)
        for step in workflow.graph.order
    }
    template.outlook_ttft, template.outlook_e2e = sample_both(
        workflow,
        lambda step, rng: draw_by_step[step](rng),
        lambda switch: learned.case_probabilities(switch, now_s),
        Random(f"{state.settings.seed}/{workflow.id}"),
    )
    template.learned_s = now_s
    template.learned_at = learned.observations
    template.wake_is_set = False


def _inflation(state: State, template: Template, step: StepId) -> float:
    found = template.workflow.step_by_id[step]
    if isinstance(found, Node) and isinstance(found.work, ModelCall):
        return state.pool(found.work.model).inflation.value
    return 1.0


def _best_profile(state: State, node: Node) -> Profile | None:
    """The card on which a call of middling size would end first."""
    if not isinstance(node.work, ModelCall):
        return None
    profiles = state.pool_profiles(node.work.model)
    return min(profiles, key=lambda profile: (profile.solo_ms(512, 64), profile.accelerator), default=None)
