"""Names of things. Each is a string with a type of its own, so that one cannot be passed for another."""

from __future__ import annotations

from typing import NewType

TenantId = NewType("TenantId", str)
WorkflowId = NewType("WorkflowId", str)
"""`name@version`, the version being the digest of the workflow's content."""
RunId = NewType("RunId", str)
StepId = NewType("StepId", str)
"""A node or a switch of a workflow; the two share one namespace."""
CallId = NewType("CallId", str)
"""One attempt of one item of one node: `run/step/item.attempt`."""
ModelName = NewType("ModelName", str)
AcceleratorName = NewType("AcceleratorName", str)
ReplicaId = NewType("ReplicaId", str)
