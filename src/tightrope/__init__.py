"""Tightrope serves foundation-model workflows on time.

A name is imported when it is asked for first: the command line, engines and workers need few of them.
"""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
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

_NAMES_BY_PLACE = {
    "bench.trial": "Simulation simulate",
    "flow.builder": "Workflow",
    "model.errors": "EngineFailed InvalidInput InvalidWorkflow NotFound Rejected TightropeError",
    "model.fleet": "Accelerator",
    "model.outcome": "Outcome Verdict",
    "model.profile": "Profile",
    "model.slo": "Limits Slo Tenant",
    "ports": "Clock Cluster Engine Store",
    "runtime.client": "Client RunFailed RunInputs RunRequest",
}


def __getattr__(name: str) -> _typing.Any:
    for place, names in _NAMES_BY_PLACE.items():
        if name in names.split():
            found = getattr(_importlib.import_module(f"tightrope.{place}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module 'tightrope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
