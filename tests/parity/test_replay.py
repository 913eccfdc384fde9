"""What a kernel decided once it decides again: from a session of now, and from a journal that was kept."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.parity.session import play
from tightrope.kernel.journal import Head, entries, replay
from tightrope.kernel.state import KernelSettings
from tightrope.model.messages import CallFailed, Dispatch, FinishRun, SettleStep
from tightrope.model.outcome import Outcome
from tightrope.policy import ROUTERS
from tightrope.policy.foresight import EXTENDED
from tightrope.runtime.journal_file import JournalFile

KEPT = sorted(Path(__file__).parent.glob("*.jsonl"))


@pytest.mark.parametrize("router", [*sorted(ROUTERS), *(found.name for found in EXTENDED)])
async def test_a_live_session_with_failures_replays_to_the_same_commands(tmp_path: Path, router: str) -> None:
    journal = JournalFile(tmp_path / "j.jsonl", Head(KernelSettings(router=router, seed=7), 0.0, 0.0))
    await play(journal, router)
    lines = journal.path.read_text(encoding="utf-8").splitlines(keepends=True)
    assert replay(lines) is None
    messages = [entry.message for entry in entries(lines)]
    seen = Counter(type(message) for message in messages)
    assert seen[CallFailed] > 5
    assert seen[SettleStep] > 0
    outcomes = {message.outcome for message in messages if isinstance(message, FinishRun)}
    assert outcomes >= {Outcome.SUCCEEDED, Outcome.FAILED, Outcome.CANCELLED, Outcome.REJECTED}


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.stem)
def test_a_kept_journal_replays_to_the_same_commands(file: Path) -> None:
    assert replay(file.read_text(encoding="utf-8").splitlines(keepends=True)) is None


def test_there_is_a_kept_journal() -> None:
    assert KEPT


def test_a_decision_that_changed_is_found() -> None:
    lines = KEPT[0].read_text(encoding="utf-8").splitlines(keepends=True)
    number = next(number for number, line in enumerate(lines) if '"Dispatch"' in line)
    record = json.loads(lines[number])
    record["command"]["max_tokens"] += 1
    lines[number] = json.dumps(record) + "\n"
    difference = replay(lines)
    assert difference is not None
    assert isinstance(difference.recorded, Dispatch)
    assert isinstance(difference.replayed, Dispatch)
    assert difference.recorded.max_tokens == difference.replayed.max_tokens + 1


def test_a_decision_that_is_missing_is_found() -> None:
    lines = KEPT[0].read_text(encoding="utf-8").splitlines(keepends=True)
    number = next(number for number, line in enumerate(lines) if '"Dispatch"' in line)
    difference = replay(lines[:number] + lines[number + 1 :])
    assert difference is not None
