"""Tightrope serves foundation-model workflows on time."""

from tightrope.bench.trial import Simulation, simulate
from tightrope.flow.builder import Workflow
from tightrope.model.errors import (
    EngineFailed,
    InvalidInput,
    InvalidWorkflow,
    NotFound,
    Rejected,
    TightropeError,
)
from tightrope.model.fleet import Accelerator
from tightrope.model.outcome import Outcome, Verdict
from tightrope.model.profile import Profile
from tightrope.model.slo import Limits, Slo, Tenant
from tightrope.ports import Clock, Cluster, Engine, Store
from tightrope.runtime.client import Client, RunFailed, RunInputs, RunRequest

__all__ = [
    "Accelerator",
    "Client",
    "Clock",
    "Cluster",
    "Engine",
    "EngineFailed",
    "InvalidInput",
    "InvalidWorkflow",
    "Limits",
    "NotFound",
    "Outcome",
    "Profile",
    "Rejected",
    "RunFailed",
    "RunInputs",
    "RunRequest",
    "Simulation",
    "Slo",
    "Store",
    "Tenant",
    "TightropeError",
    "Verdict",
    "Workflow",
    "simulate",
]
