"""Runtimes for the tests of this folder. When a test is over no process of it may be left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.served import Served, marked, new_mark, until, write_config


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts `tightrope serve` in the test's folder, on the configuration that stands there."""
    with _started(tmp_path) as begin:
        yield begin


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One runtime with two replicas for all tests of a module that leave it as it was."""
    folder = tmp_path_factory.mktemp("served")
    with _started(folder) as begin:
        write_config(folder, replicas=2)
        yield begin().until_ready(2)


class _started:  # noqa: N801 (a context manager, read like a function)
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = new_mark()
        self.begun: list[Served] = []

    def __enter__(self) -> Callable[..., Served]:
        return self.begin

    def begin(self, file_blocks: int | None = None) -> Served:
        self.begun.append(Served(self.folder, self.mark, file_blocks))
        return self.begun[-1]

    def __exit__(self, *_: object) -> None:
        try:
            for served in self.begun:
                served.end()
            until(lambda: not marked(self.mark))
        finally:
            for pid in marked(self.mark):
                os.kill(pid, signal.SIGKILL)
