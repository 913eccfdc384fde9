"""A folder with a configuration and one workflow, in which a command is tried."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

GREET = """\
workflow: greet
slo: {ttft: 500ms, attain: 95%}
input: {name: {from: last_user_message}}
nodes:
  hello: {llm: small, prompt: "Say hello to {{ name }}.", inputs: {name: input.name}, max_tokens: 20, stream: true}
output: hello
"""


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, config: str, workflow: str) -> None:
    """Write both, the workflow at this place, and let the process stand there with no setting in its environment."""
    for name in [name for name in os.environ if name.startswith("TIGHTROPE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(folder)
    (folder / "tightrope.yaml").write_text(config)
    (folder / workflow).parent.mkdir(exist_ok=True)
    (folder / workflow).write_text(GREET)
