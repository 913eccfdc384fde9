"""
The stagings of the demo
1. Each is a valid configuration with its workflows, and its requests have what the workflows want.
2. On an emulated fleet every kind of request is answered, by the calls of its own branch.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.contract.engine_contract import LIMIT_S
from tightrope.app.demo import running, until_ready
from tightrope.app.staging import FLEETS, REAL, Staging, emulated
from tightrope.app.workflows import load_workflows
from tightrope.bench.load import Arrival, play
from tightrope.kernel.journal import entries
from tightrope.model.errors import NotFound
from tightrope.model.messages import Dispatch
from tightrope.model.outcome import Outcome

CALLS_BY_KIND = {"browse": 4, "order": 2, "complaint": 5, "chat": 2}
"""Model calls of a run of the emulated shop."""


@pytest.mark.parametrize("staging", [REAL, *map(emulated, FLEETS)], ids=lambda staging: staging.name)
def test_1_a_staging_can_be_played(staging: Staging, tmp_path: Path) -> None:
    config = staging.config(tmp_path)
    workflows = {workflow.name: workflow for workflow in load_workflows(config)}
    assert config.state == tmp_path
    assert set(staging.demand) == {model.name for model in config.models}
    assert all(not workflow.slo.is_empty for workflow in workflows.values())
    for ask in (ask for group in staging.asks() for ask in group):
        tenant = next(tenant for tenant in config.tenants if tenant.id == ask.tenant)
        assert ask.workflow in tenant.workflows
        known = {f"metadata.{key}" for key in ask.inputs.metadata} | {"last_user_message"}
        wanted = {spec.source for spec in workflows[ask.workflow].inputs if spec.default is None}
        assert wanted <= known


def test_1_a_fleet_that_is_not_there_is_refused() -> None:
    with pytest.raises(NotFound, match="there are mixed, paper-two-node"):
        emulated("mild")


async def test_2_every_kind_of_request_takes_its_own_branch(tmp_path: Path) -> None:
    staging = emulated("paper-two-node")
    hurried = {f"TIGHTROPE_MODELS__{model}__ENGINE__TIME_SCALE": "0.01" for model in ("SMALL", "BIG")}
    config = staging.config(tmp_path, others=hurried)
    readers, customers = staging.asks()
    by_kind = {str(ask.inputs.metadata["kind"]): ask for ask in customers}
    assert set(by_kind) == set(CALLS_BY_KIND)
    async with asyncio.timeout(LIMIT_S), running(config, None) as runtime:
        await until_ready(runtime, runtime.plan.replicas, LIMIT_S)
        asks = [readers[0], *by_kind.values()]
        played = await play(runtime.client, [Arrival(0.0, ask) for ask in asks])
    assert [one.outcome for one in played] == [Outcome.SUCCEEDED] * len(asks)
    assert all(one.text for one in played)
    with config.journal.path.open(encoding="utf-8") as lines:
        calls = Counter(
            str(entry.message.call).partition("/")[0]
            for entry in entries(lines)
            if isinstance(entry.message, Dispatch)
        )
    assert sorted(calls.values()) == sorted([2, *(CALLS_BY_KIND[kind] for kind in by_kind)])
