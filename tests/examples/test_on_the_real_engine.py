"""Both example workflows answer on the embedded engine, end to end, with few tokens.

1. Every branch of both workflows gives an answer; the journal replays to the same decisions.
2. Each model call went to a replica of the model that its node names, and code ran where it should.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tightrope.app.compose import Runtime
from tightrope.app.demo import running, until_ready
from tightrope.app.staging import demo_asks, demo_config
from tightrope.bench.load import Ask, ask_once
from tightrope.kernel.journal import entries, replay
from tightrope.model.ids import TenantId
from tightrope.model.messages import Dispatch, RunCode
from tightrope.model.outcome import Outcome
from tightrope.ports import Message
from tightrope.runtime.client import RunInputs

SHOP = (
    "Where is my order?",
    "Do you have a warm sleeping bag?",
    "My kettle came broken!",
    "Hello, thank you.",
)


def asks() -> list[Ask]:
    """One question to the library, and one of each kind to the shop."""
    told = [
        Ask(
            TenantId("shop"),
            "shopping",
            RunInputs((Message("user", text),), metadata={"customer_id": "C108"}),
        )
        for text in SHOP
    ]
    return [demo_asks()[0][0], *told]


async def answered(runtime: Runtime) -> list[str]:
    await until_ready(runtime, {spec.model: spec for spec in reversed(runtime.plan.replicas)}.values())
    texts = []
    for ask in asks():
        played = await ask_once(runtime.client, ask, lambda _: None)
        assert played.outcome is Outcome.SUCCEEDED, played.message
        texts.append(played.text)
    return texts


@pytest.mark.engine
async def test_both_workflows_answer(tmp_path: Path) -> None:
    config = demo_config(tmp_path)
    async with running(config, None) as runtime:
        texts = await answered(runtime)
    assert all(text.strip() for text in texts)
    lines = config.journal.path.read_text("utf-8").splitlines(keepends=True)
    assert replay(lines) is None
    messages = [entry.message for entry in entries(lines)]
    models = {(message.step, message.model) for message in messages if isinstance(message, Dispatch)}
    assert {("rewrite", "small"), ("intent", "small"), ("answer", "big")} <= models
    assert any(isinstance(message, RunCode) and message.step == "retrieve" for message in messages)
