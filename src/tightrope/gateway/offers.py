"""What a tenant may call, and what its contract grants there.

Owns the names that clients write and rule by which one SLO holds. Which tenants exist and what is deployed is
the application's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tightrope.model.ids import TenantId
from tightrope.model.slo import Slo, Tenant
from tightrope.model.units import format_ratio, format_seconds

WORKFLOW = "workflow/"
"""Stands before the name of a workflow where a client names a model."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One thing a tenant may call.

    `name` is what clients write: `workflow/rag`, or a plain model as `small`. `slo` holds unless a request
    tightens it, at most to `floor` (None: not at all). `deadline_s` is the hard limit of a run, `created_s` a
    Unix time.
    """

    name: str
    is_workflow: bool
    slo: Slo
    floor: Slo | None
    deadline_s: float
    created_s: int


Catalogue = Callable[[TenantId], Mapping[str, Offer]]
"""The offers to a tenant by name; empty for a tenant without a contract."""


def offers(
    tenant: Tenant, slo_by_workflow: Mapping[str, Slo], created_s: int, floor: Slo | None = None
) -> dict[str, Offer]:
    """The offers to one tenant: the models and the deployed workflows that its contract names.

    The SLO of a workflow is the contract's for it, else its own, else the tenant's, else none.
    """
    by_contract = dict(tenant.slo_by_workflow)
    general = tenant.slo or Slo()
    deadline_s = tenant.limits.deadline_s
    found = [Offer(model, False, general, floor, deadline_s, created_s) for model in tenant.models]
    for name in tenant.workflows:
        if name in slo_by_workflow:
            own = slo_by_workflow[name]
            slo = by_contract.get(name) or (general if own.is_empty else own)
            found.append(Offer(WORKFLOW + name, True, slo, floor, deadline_s, created_s))
    return {offer.name: offer for offer in found}


def describe(slo: Slo) -> str:
    """The value of `x-tightrope-slo`: `ttft=900ms, attain=95%`, or `none`."""
    if slo.is_empty:
        return "none"
    targets = (("ttft", slo.ttft_s), ("tpot", slo.tpot_s), ("e2e", slo.e2e_s))
    parts = [f"{name}={format_seconds(target_s)}" for name, target_s in targets if target_s is not None]
    return ", ".join([*parts, f"attain={format_ratio(slo.attain)}"])
