"""The in-process API: submit a request, get a handle.

Owns which SLO and which deadline hold for a run, and who may call what. What happens then is the kernel's.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tightrope.model.errors import NotFound, Rejected
from tightrope.model.ids import ModelName, RunId, StepId, TenantId
from tightrope.model.messages import RunSubmitted
from tightrope.model.outcome import Outcome
from tightrope.model.slo import Slo, Tenant
from tightrope.model.workflow import InputSpec, ModelCall, Node, Prompt, PromptKind, Workflow
from tightrope.ports import Chunk, Message
from tightrope.runtime.driver import Driver
from tightrope.runtime.handle import RunFailed, RunHandle, RunResult
from tightrope.runtime.payloads import RunInputs, RunPayload, Sampling

__all__ = [
    "Chunk",
    "Client",
    "Message",
    "RunFailed",
    "RunHandle",
    "RunInputs",
    "RunRequest",
    "RunResult",
    "Sampling",
    "plain_workflows",
]

PLAIN_CHAT = "model/"
PLAIN_COMPLETION = "completion/"
"""Plain models are workflows of one node under these prefixes, so they too get an SLO and routing."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """One request: which workflow, or plain model under `model/<name>` or `completion/<name>`, and with what.

    `slo` and `deadline_s` are what the request itself asks for, already bounded by the contract; None leaves
    the contract's own. `is_streamed`: pieces are wanted as they come.
    """

    tenant: TenantId
    workflow: str
    inputs: RunInputs
    slo: Slo | None = None
    deadline_s: float | None = None
    is_streamed: bool = True
    sampling: Sampling = field(default_factory=Sampling)
    request_id: str = ""


class Client:
    """Submits runs for tenants. Tenants and workflows are those that were deployed."""

    def __init__(self, driver: Driver, tenants: Iterable[Tenant], workflows: Iterable[Workflow]) -> None:
        self._driver = driver
        self._tenant_by_id = {tenant.id: tenant for tenant in tenants}
        self._workflow_by_name = {workflow.name: workflow for workflow in workflows}

    def submit(self, request: RunRequest) -> RunHandle:
        """Start a run.

        Raises NotFound for a workflow that does not exist or not for this tenant, InvalidInput when a required
        input is missing, Rejected when it is refused, TightropeBug when the runtime has broken.
        """
        tenant = self._tenant_by_id.get(request.tenant)
        workflow = self._workflow_by_name.get(request.workflow)
        if tenant is None or workflow is None or not may_call(tenant, request.workflow):
            raise NotFound(f"the model {request.workflow.removeprefix(PLAIN_CHAT)!r} does not exist")
        payload = RunPayload(workflow, request.inputs, request.sampling)
        limit = request.sampling.max_tokens
        event = RunSubmitted(
            run=_new_run_id(),
            tenant=tenant.id,
            workflow=workflow.id,
            slo=effective_slo(tenant, workflow, request.slo, request.is_streamed),
            deadline_s=min(request.deadline_s or tenant.limits.deadline_s, tenant.limits.deadline_s),
            is_streamed=request.is_streamed,
            output_tokens=min(limit or tenant.limits.output_tokens, tenant.limits.output_tokens),
            request_id=request.request_id,
        )
        handle = self._driver.submit(event, payload)
        finish = handle.finish
        if finish is not None and finish.outcome is Outcome.REJECTED and finish.refusal is not None:
            raise Rejected(finish.refusal.value, finish.message, finish.retry_after_s)
        return handle

    def names(self, tenant: TenantId) -> tuple[str, ...]:
        """What the tenant may call, in the order of deployment."""
        found = self._tenant_by_id.get(tenant)
        if found is None:
            return ()
        return tuple(name for name in self._workflow_by_name if may_call(found, name))


def may_call(tenant: Tenant, name: str) -> bool:
    """Whether the contract lists the workflow or the plain model."""
    for prefix in (PLAIN_CHAT, PLAIN_COMPLETION):
        if name.startswith(prefix):
            return ModelName(name.removeprefix(prefix)) in tenant.models
    return name in tenant.workflows


def effective_slo(tenant: Tenant, workflow: Workflow, asked: Slo | None, is_streamed: bool) -> Slo:
    """What holds for a run: asked for, else the tenant's for this workflow, else the workflow's, else the tenant's.

    Without streaming there is no first token to see, so only the promise about the end remains.
    """
    own = None if workflow.slo.is_empty else workflow.slo
    found = asked or dict(tenant.slo_by_workflow).get(workflow.name) or own or tenant.slo or Slo()
    return found if is_streamed else Slo(e2e_s=found.e2e_s, attain=found.attain)


def plain_workflows(models: Mapping[ModelName, int]) -> list[Workflow]:
    """One-node workflows for plain models; the value is the most tokens an answer may have."""
    return [
        Workflow(
            name=f"{prefix}{model}",
            nodes=(
                Node(
                    id=StepId("answer"),
                    work=ModelCall(model, Prompt(kind), max_tokens, stream=True),
                ),
            ),
            output=StepId("answer"),
            inputs=(InputSpec(source, source),),
        )
        for model, max_tokens in models.items()
        for prefix, kind, source in (
            (PLAIN_CHAT, PromptKind.MESSAGES, "messages"),
            (PLAIN_COMPLETION, PromptKind.COMPLETION, "prompt"),
        )
    ]


def _new_run_id() -> RunId:
    """Sorts by time of arrival; the rest is chance. Only a name: nothing is decided by it but ties."""
    return RunId(f"run_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}")
