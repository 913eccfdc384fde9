"""The demo as a program, on the real engine.

1. It ends with exit 0, a streamed answer, a table, and the same as data with --json.
2. Ctrl-C ends it with exit 130 and leaves no engine behind.
3. A second one beside it is told that the folder is in use, and takes nothing from the first.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.engine

LIMIT_S = 360.0
"""How long a demo may take on a busy machine, many times what it takes on an idle one."""
GONE_WITHIN_S = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder of its own for the demo; no process that works in it may be left."""
    yield tmp_path / "demo"
    left = [process for process in psutil.process_iter() if str(tmp_path) in _command(process)]
    assert psutil.wait_procs(left, GONE_WITHIN_S)[1] == []


def _command(process: psutil.Process) -> str:
    try:
        return " ".join([*process.cmdline(), *process.environ().values()])
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tightrope.app.cli", "demo", "--keep", str(folder), *options]
    environment = {**os.environ, "TIGHTROPE_TEST_FOLDER": str(folder)}
    # A shell lets what it runs in the background ignore Ctrl-C, and that would be inherited; a handler is not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
    finally:
        signal.signal(signal.SIGINT, before)


def test_1_it_answers_and_gives_the_same_as_data(folder: Path) -> None:
    demo = start(folder, "--runs", "2", "--json")
    out, err = demo.communicate(timeout=LIMIT_S)
    assert demo.returncode == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["schema"] == "tightrope.demo/1"
    assert found["ok"] is True
    assert found["data"]["first"]["answer"]
    summary = found["data"]["summary"]
    assert summary["total"]["runs"] == summary["total"]["succeeded"] == 2
    assert {line["workflow"] for line in summary["lines"]} == {"rag", "shopping"}
    assert re.search(r"shop +shopping +1 ", err)


def test_2_ctrl_c_ends_it_and_leaves_nothing(folder: Path) -> None:
    demo = start(folder)
    assert demo.stderr is not None
    for line in demo.stderr:
        if "asks rag" in line:
            break
    demo.send_signal(signal.SIGINT)
    _, err = demo.communicate(timeout=LIMIT_S)
    assert demo.returncode == 130, err
    assert "Traceback" not in err


def test_3_a_folder_in_use_is_refused(folder: Path) -> None:
    first = start(folder)
    assert first.stderr is not None
    assert "starting" in first.stderr.readline()
    assert any("asks rag" in line for line in first.stderr)
    journal = (folder / "demo.journal").stat()
    second = start(folder)
    _, said = second.communicate(timeout=LIMIT_S)
    assert second.returncode == 2
    assert str(folder) in said
    assert (folder / "demo.journal").stat().st_ino == journal.st_ino
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=LIMIT_S)
