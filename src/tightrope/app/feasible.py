"""Whether a promise can be kept at all: the predicted time of an undisturbed run against its SLO.

Uses the very estimates that the kernel plans with. A workflow with a model that nobody has profiled is not
judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from tightrope.app.config import Config
from tightrope.model.errors import Problem
from tightrope.model.ids import StepId
from tightrope.model.profile import Profile
from tightrope.model.slo import Slo
from tightrope.model.units import format_seconds
from tightrope.model.workflow import ModelCall, Node, Switch, Workflow
from tightrope.policy.learn import Learned
from tightrope.policy.slack import sample
from tightrope.sim.promise import Promise

COMMON_PROMPT = 256
"""Tokens of a prompt of a common size."""
REACH = Promise()
"""What the simulated workloads promise, too."""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A promise that half of the runs would miss on an idle fleet. `tenant` is "" for the workflow's own."""

    workflow: str
    tenant: str
    problem: Problem


def unreachable(
    config: Config, workflows: Sequence[Workflow], profiles: Sequence[Profile]
) -> list[Unreachable]:
    """The promises of workflows and tenants that no profile can meet."""
    return [
        Unreachable(workflow.name, tenant, problem)
        for workflow in workflows
        for tenant, path, slo in _promises(config, workflow)
        for problem in slo_problems(workflow, slo, path, profiles)
    ]


def slo_problems(
    workflow: Workflow, slo: Slo, path: tuple[str, ...], profiles: Sequence[Profile]
) -> Iterator[Problem]:
    """`slo_unreachable` for each time of the SLO that the median undisturbed run exceeds."""
    for name, target_s, is_ttft in (("ttft", slo.ttft_s, True), ("e2e", slo.e2e_s, False)):
        needed_s = None if target_s is None else median_run_s(workflow, is_ttft, profiles)
        if target_s is not None and needed_s is not None and needed_s > target_s:
            yield Problem(
                "slo_unreachable",
                (*path, name),
                f"{name} {format_seconds(target_s)} cannot be kept: half of the runs of {workflow.name} would"
                f" need more than {needed_s * 1000:.0f} ms even alone on the fastest accelerators",
                f"promise {_rounded_up(needed_s)} or more, or serve {_models(workflow)} on something faster",
            )


def median_run_s(workflow: Workflow, is_ttft: bool, profiles: Sequence[Profile]) -> float | None:
    """Seconds that half of the runs need on an idle fleet, before anything was learned; None without profiles."""
    best_by_model = _best(workflow, profiles)
    if any(model not in best_by_model for model in workflow.models()):
        return None
    learned = Learned(workflow)

    def draw(step: StepId, rng: Random) -> float:
        profile = _profile_of(workflow.step_by_id[step], best_by_model)
        return learned.draw_seconds(step, profile, is_ttft and step == workflow.output, 1.0, rng, 0.0)

    outlook = sample(
        workflow, is_ttft, draw, lambda switch: learned.case_probabilities(switch, 0.0), Random(1)
    )
    return outlook.path_s(0.5)


def slo_within_reach(workflow: Workflow, profiles: Sequence[Profile]) -> Slo:
    """The workflow's own SLO, each time of it not below what this fleet can promise: REACH of what an undisturbed run
    needs (the median), and for a token as many times what it takes on the slowest accelerator."""
    slo, output = workflow.slo, workflow.step_by_id[workflow.output]
    reach_s = {
        is_ttft: REACH.ttft_s(median_run_s(workflow, is_ttft, profiles) or 0.0) for is_ttft in (True, False)
    }
    model = output.work.model if isinstance(output, Node) and isinstance(output.work, ModelCall) else None
    gaps_s = [one.solo_decode_ms(COMMON_PROMPT, 2) / 1000 for one in profiles if one.model == model]
    return replace(
        slo,
        ttft_s=None if slo.ttft_s is None else max(slo.ttft_s, reach_s[True]),
        e2e_s=None if slo.e2e_s is None else max(slo.e2e_s, reach_s[False]),
        tpot_s=None if slo.tpot_s is None else max(slo.tpot_s, REACH.scale * max(gaps_s, default=0.0)),
    )


def _profile_of(step: Node | Switch, best_by_model: Mapping[str, Profile]) -> Profile | None:
    match step:
        case Node(work=ModelCall(model=model)):
            return best_by_model[model]
        case _:
            return None


def _promises(config: Config, workflow: Workflow) -> Iterable[tuple[str, tuple[str, ...], Slo]]:
    """(tenant, path, SLO) of every promise about runs of the workflow; the path is in the workflow for its own."""
    if not workflow.slo.is_empty:
        yield "", ("slo",), workflow.slo
    for tenant in config.tenants:
        if workflow.name not in tenant.workflows:
            continue
        own = dict(tenant.slo_by_workflow).get(workflow.name)
        if own is not None:
            at = str(tenant.workflows.index(workflow.name))
            yield tenant.id, ("tenants", tenant.id, "workflows", at, "slo"), own
        elif workflow.slo.is_empty and tenant.slo is not None:
            yield tenant.id, ("tenants", tenant.id, "slo"), tenant.slo


def _best(workflow: Workflow, profiles: Sequence[Profile]) -> dict[str, Profile]:
    """The fastest profile of each model, for a call of a common size."""
    best: dict[str, Profile] = {}
    for profile in profiles:
        kept = best.get(profile.model)
        if profile.model in workflow.models() and (kept is None or _speed(profile) < _speed(kept)):
            best[profile.model] = profile
    return best


def _speed(profile: Profile) -> tuple[float, str]:
    return profile.solo_ms(COMMON_PROMPT, 32), profile.accelerator


def _rounded_up(seconds: float) -> str:
    return format_seconds((int(seconds * 20) + 1) / 20)


def _models(workflow: Workflow) -> str:
    return " and ".join(workflow.models())
