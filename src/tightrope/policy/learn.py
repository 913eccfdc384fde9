"""Learned: what finished calls of one workflow version have taught.

Owns output lengths, prompt sizes, durations of code, fan-out widths and branch frequencies by step, each with
a prior, so that the very first run has an answer too. How they become a run's remaining time is `slack.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from tightrope.model.ids import ModelName, StepId
from tightrope.model.outcome import Usage
from tightrope.model.profile import Profile
from tightrope.model.workflow import CodeCall, ModelCall, Node, Workflow
from tightrope.policy.sketch import Sketch, Tally

BYTES_PER_TOKEN = 3.5
"""English text through a common tokenizer, until the engine has reported real counts."""
FRAME_TOKENS = 64
"""Tokens that inputs and a chat template are expected to add to a prompt's own text."""
OUTPUT_SHARE = 0.6
"""Share of `max_tokens` that an answer is expected to use, until answers were seen."""
PRIOR_LENGTHS = 4.0
"""How many observed lengths the prior weighs; from ENOUGH on it is not asked any more."""
ENOUGH = 30.0
PRIOR_RUNS = 20.0
"""How many runs the declared branch probabilities weigh."""
PRIOR_CODE_S = 0.005
LONGEST_OF = 64
"""A wider fan-out takes about as long as its 64 longest-looking items; drawing more only costs time."""

Draw = Callable[[Random], tuple[float, float]]
"""Seconds to the first token, and to the end, of one imagined call."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Expected output tokens, and the length to reserve memory for (0.9-quantile, at most the cap)."""

    mean: float
    high: int


class Learned:
    """Statistics of one workflow, by step. Half of everything is forgotten every hour.

    `observations` counts what was taken in, so that a reader knows when to look again.
    """

    def __init__(self, workflow: Workflow) -> None:
        self.observations = 0
        self._nodes = {node.id: node for node in workflow.nodes}
        self._switches = {switch.id: switch for switch in workflow.switches}
        self._outputs = {node.id: Sketch() for node in workflow.nodes}
        self._cap_shares: dict[ModelName, Sketch] = {model: Sketch() for model in workflow.models()}
        self._prompts = {node.id: Sketch() for node in workflow.nodes}
        self._bytes_per_token = {node.id: _Ewma(BYTES_PER_TOKEN) for node in workflow.nodes}
        self._code_s = {node.id: Sketch() for node in workflow.nodes}
        self._widths = {node.id: Sketch() for node in workflow.nodes}
        self._cases = {
            switch.id: {case.name: Tally() for case in switch.cases} for switch in workflow.switches
        }

    # --- what happened -----------------------------------------------------------------------------------

    def observe_model(
        self, step: StepId, item_bytes: int, usage: Usage, max_tokens: int, now_s: float
    ) -> None:
        """A model call ended well: bytes of its rendered prompt, what the engine counted, and its limit.

        Counts of 0 are taken as "the engine did not say".
        """
        self.observations += 1
        if usage.prompt_tokens > 0:
            self._prompts[step].add(usage.prompt_tokens, now_s)
            if item_bytes > 0:
                self._bytes_per_token[step].observe(item_bytes / usage.prompt_tokens)
        if usage.output_tokens > 0:
            self._outputs[step].add(usage.output_tokens, now_s)
            work = self._nodes[step].work
            if isinstance(work, ModelCall) and max_tokens > 0:
                self._cap_shares[work.model].add(min(1.0, usage.output_tokens / max_tokens), now_s)

    def observe_code(self, step: StepId, seconds: float, now_s: float) -> None:
        """A code call ended well after this long."""
        self.observations += 1
        self._code_s[step].add(seconds, now_s)

    def observe_case(self, switch: StepId, case: str, now_s: float) -> None:
        """A switch was decided."""
        self.observations += 1
        self._cases[switch][case].add(now_s)

    def observe_width(self, step: StepId, width: int, now_s: float) -> None:
        """The list of a fan-out had this many items."""
        self.observations += 1
        self._widths[step].add(width, now_s)

    # --- what to expect ----------------------------------------------------------------------------------

    def prompt_tokens(self, step: StepId, item_bytes: int | None) -> int:
        """Tokens of a prompt of this many bytes, at least 1; `None`: not rendered yet, the usual size."""
        if item_bytes is not None:
            return max(1, math.ceil(item_bytes / self._bytes_per_token[step].value))
        prompts = self._prompts[step]
        seen = prompts.mean()
        return max(1, round(seen)) if seen else self._prior_prompt(step)

    def lengths(self, step: StepId, cap: int, now_s: float) -> Lengths:
        """What an answer limited to `cap` tokens will be: from this step, else from the model's other steps.

        Below ENOUGH answers of the step the rest of the knowledge keeps a weight: the mean is drawn towards
        the share of their limit that all steps of the model use, and the length to reserve stays the cap.
        """
        outputs = self._outputs[step]
        count = outputs.count(now_s)
        mean = outputs.mean()
        if count < ENOUGH:
            mean = _blend(count, mean, cap * self._cap_share(step, now_s))
        high = math.ceil(outputs.quantile(0.9)) if count >= ENOUGH else cap
        return Lengths(mean=min(float(cap), max(1.0, mean)), high=max(1, min(cap, high)))

    def expected_beyond(self, step: StepId, produced: float, cap: int, now_s: float) -> float:
        """Expected length of an answer that already has `produced` tokens; between produced + 1 and the cap,
        and never falling as the answer grows."""
        expected = max(self.lengths(step, cap, now_s).mean, produced + 1.0)
        if self._outputs[step].count(now_s) >= ENOUGH:
            expected = self._outputs[step].mean_beyond(produced)
        return max(produced + 1.0, min(float(cap), expected))

    def code_seconds(self, step: StepId, now_s: float) -> float:
        """How long a code call usually takes (its median); 5 ms before one was seen."""
        seen = self._code_s[step]
        return seen.quantile(0.5) if seen.count(now_s) > 0 else PRIOR_CODE_S

    def case_probabilities(self, switch: StepId, now_s: float) -> Mapping[str, float]:
        """Chance of each case: what was declared, weighing 20 runs, and what was seen. They sum to 1."""
        declared = self._switches[switch]
        counts = {case.name: self._cases[switch][case.name].value(now_s) for case in declared.cases}
        prior = PRIOR_RUNS * math.fsum(case.probability for case in declared.cases)
        total = prior + math.fsum(counts.values())
        return {
            case.name: (PRIOR_RUNS * case.probability + counts[case.name]) / total for case in declared.cases
        }

    def draw_seconds(
        self,
        step: StepId,
        profile: Profile | None,
        is_terminal: bool,
        inflation: float,
        rng: Random,
        now_s: float,
    ) -> float:
        """How long the step might take, alone on the given (best) card but for `inflation`, held in [1, 3].

        The longest item of a fan-out; 0 for a switch, an empty fan-out, or a model nobody has profiled.
        `is_terminal`: only the time to the first token counts.
        """
        first_s, whole_s = self.drawer(step, profile, inflation, now_s)(rng)
        return first_s if is_terminal else whole_s

    def drawer(self, step: StepId, profile: Profile | None, inflation: float, now_s: float) -> Draw:
        """The same for many draws at one moment: each gives the seconds to the first token and those to the end,
        for one and the same imagined call."""
        found = self._nodes.get(step)
        if found is None:
            return _nothing
        one = self._item_drawer(found, profile, inflation, now_s)
        if found.fan_out is None:
            return one
        width = self._width_drawer(found.id, found.fan_out.max_items, now_s)

        def longest(rng: Random) -> tuple[float, float]:
            items = [one(rng) for _ in range(min(width(rng), LONGEST_OF))]
            return (
                max((first_s for first_s, _ in items), default=0.0),
                max((whole_s for _, whole_s in items), default=0.0),
            )

        return longest

    # --- helpers -----------------------------------------------------------------------------------------

    def _width_drawer(self, step: StepId, most: int, now_s: float) -> Callable[[Random], int]:
        widths = self._widths[step]
        if widths.count(now_s) > 0:
            return lambda rng: min(round(widths.draw(rng)), most)
        return lambda rng: rng.randint(1, most)

    def _item_drawer(self, node: Node, profile: Profile | None, inflation: float, now_s: float) -> Draw:
        match node.work:
            case CodeCall():
                seen = self._code_s[node.id]
                if seen.count(now_s) > 0:
                    return lambda rng: (seen.draw(rng),) * 2
                return lambda _: (PRIOR_CODE_S, PRIOR_CODE_S)
            case ModelCall(max_tokens=cap):
                if profile is None:
                    return _nothing
                prompt = self._prompt_drawer(node.id, now_s)
                output = self._output_drawer(node.id, cap, now_s)
                return _timed(profile, prompt, output, min(max(inflation, 1.0), 3.0))

    def _prompt_drawer(self, step: StepId, now_s: float) -> Callable[[Random], float]:
        seen = self._prompts[step]
        if seen.count(now_s) > 0:
            return seen.draw
        usual = self._prior_prompt(step)
        return lambda _: usual

    def _output_drawer(self, step: StepId, cap: int, now_s: float) -> Callable[[Random], float]:
        """A seen length, or one around the prior's mean; the mixture has the mean that `lengths` reports."""
        outputs = self._outputs[step]
        count = outputs.count(now_s)
        share = 1.0 if count >= ENOUGH else count / (count + PRIOR_LENGTHS)
        typical = self._cap_share(step, now_s)
        spread = min(typical, 1.0 - typical)

        def draw(rng: Random) -> float:
            if rng.random() < share:
                return min(float(cap), outputs.draw(rng))
            return max(1.0, cap * (typical + spread * rng.uniform(-1.0, 1.0)))

        return draw

    def _cap_share(self, step: StepId, now_s: float) -> float:
        work = self._nodes[step].work
        if not isinstance(work, ModelCall):
            return OUTPUT_SHARE
        seen = self._cap_shares[work.model]
        return _blend(seen.count(now_s), seen.mean(), OUTPUT_SHARE)

    def _prior_prompt(self, step: StepId) -> int:
        work = self._nodes[step].work
        if not isinstance(work, ModelCall):
            return FRAME_TOKENS
        text_bytes = len(work.prompt.text.encode()) + len(work.prompt.system.encode())
        return FRAME_TOKENS + math.ceil(text_bytes / BYTES_PER_TOKEN)


class Inflation:
    """How much longer the calls of a pool take than alone: EWMA of measured / solo, held in [1, 3]."""

    def __init__(self) -> None:
        self._ratio = _Ewma(1.0)

    def observe(self, measured_s: float, solo_s: float) -> None:
        """A call took this long, and would have taken that long alone (ignored unless positive)."""
        if solo_s > 0:
            self._ratio.observe(measured_s / solo_s)

    @property
    def value(self) -> float:
        """1 before anything was seen."""
        return min(max(self._ratio.value, 1.0), 3.0)


class _Ewma:
    """A moving mean that starts from a prior worth one observation and settles at a tenth per observation."""

    def __init__(self, prior: float) -> None:
        self.value = prior
        self._seen = 1

    def observe(self, value: float) -> None:
        self._seen += 1
        self.value += max(0.1, 1 / self._seen) * (value - self.value)


def _nothing(_: Random) -> tuple[float, float]:
    return 0.0, 0.0


def _timed(
    profile: Profile, prompt: Callable[[Random], float], output: Callable[[Random], float], factor: float
) -> Draw:
    """How long calls of such lengths take alone, times the factor."""

    def draw(rng: Random) -> tuple[float, float]:
        prompt_tokens, output_tokens = prompt(rng), output(rng)
        first_ms = profile.solo_ttft_ms(prompt_tokens)
        rest_ms = profile.solo_decode_ms(prompt_tokens, output_tokens)
        return factor * first_ms / 1000, factor * (first_ms + rest_ms) / 1000

    return draw


def _blend(count: float, mean: float, prior: float) -> float:
    return (count * mean + PRIOR_LENGTHS * prior) / (count + PRIOR_LENGTHS)
