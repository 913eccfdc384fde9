"""Scripts: what will really happen in a run, fixed before the simulation starts.

Owns these values. They are drawn by `workload.py` and played by `driver.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tightrope.model.ids import RunId, StepId, TenantId
from tightrope.model.slo import Slo
from tightrope.model.workflow import ModelCall, Node, Workflow


@dataclass(frozen=True, slots=True)
class CallScript:
    """The truth of one item of one step.

    A model call reads `prompt_tokens` (`prompt_bytes` as text) and produces `output_tokens` if nobody cuts it.
    `blocks` are the hashes of its leading prompt blocks. Code takes `seconds`.
    """

    prompt_tokens: int = 0
    output_tokens: int = 1
    seconds: float = 0.0
    blocks: tuple[int, ...] = ()
    prompt_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RunScript:
    """The truth of one run: when it arrives, what it is promised, every item of every node (taken or not), and
    the case that each switch will take."""

    run: RunId
    at_s: float
    tenant: TenantId
    workflow: Workflow
    slo: Slo
    calls: Mapping[StepId, tuple[CallScript, ...]]
    cases: Mapping[StepId, str]

    @property
    def is_streamed(self) -> bool:
        """Whether the client asks for the answer as it is made."""
        output = _output_call(self.workflow)
        return output is not None and output.stream

    @property
    def is_read_along(self) -> bool:
        """Whether the first token reaches the client at once: an answer with a shape is checked as a whole first."""
        output = _output_call(self.workflow)
        return output is not None and output.stream and output.shape is None


def _output_call(workflow: Workflow) -> ModelCall | None:
    output = workflow.step_by_id[workflow.output]
    return output.work if isinstance(output, Node) and isinstance(output.work, ModelCall) else None
