"""An oracle for the fleet: least-cost, told every arrival of the day beforehand.

Owns what it is told. It knows when runs come and how many calls of each model they make, not how long their answers
are; what it does not know it learns as everybody does. It is no bound: a better planner may pass it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tightrope.bench.demand import steps_taken
from tightrope.model.ids import ModelName
from tightrope.model.workflow import ModelCall, Node
from tightrope.policy.forecast import Arrivals, Forecast
from tightrope.policy.least_cost import decide
from tightrope.policy.provision import Proposal, Provisioner, Situation
from tightrope.sim.workload import RunScript

NAME = "oracle"
SPELL_S = 15.0
"""The rate of a moment is that of so many seconds from it on."""


@dataclass(slots=True)
class Foreseen(Arrivals):
    """Arrivals that are all known, ascending moments."""

    known_s: Sequence[float] = field(default_factory=tuple)

    def forecast(self, now_s: float, ahead_s: float) -> Forecast:
        """The highest rate from now until then; nothing about it is uncertain."""
        return Forecast(max(self._rates(now_s, ahead_s)), 0.0)

    def exceeded_by(self, quantile: float) -> float:  # noqa: ARG002
        """Never."""
        return 1.0

    def envelope(self, now_s: float) -> list[tuple[float, float]]:  # noqa: ARG002
        """No surprises."""
        return []

    def _rates(self, now_s: float, ahead_s: float) -> list[float]:
        starts = [now_s + part * ahead_s / 4 for part in range(5)]
        return [(self._before(start + SPELL_S) - self._before(start)) / SPELL_S for start in starts]

    def _before(self, at_s: float) -> int:
        return bisect_left(self.known_s, at_s)


def oracle(runs: Sequence[RunScript]) -> Provisioner:
    """The provisioner for these runs and no others."""
    known = foreseen(runs)

    def choose(situation: Situation) -> Proposal:
        models = tuple(replace(one, arrivals=known.get(one.model, Foreseen())) for one in situation.models)
        return decide(replace(situation, models=models))

    return Provisioner(NAME, choose)


def foreseen(runs: Sequence[RunScript]) -> Mapping[ModelName, Foreseen]:
    """When each model will be asked: as if all calls of a run came with it."""
    moments: dict[ModelName, list[float]] = {}
    for run in runs:
        for step in steps_taken(run):
            node = run.workflow.step_by_id[step]
            if isinstance(node, Node) and isinstance(node.work, ModelCall):
                moments.setdefault(node.work.model, []).extend([run.at_s] * len(run.calls[step]))
    return {model: Foreseen(known_s=sorted(found)) for model, found in moments.items()}
