"""Three nodes of a Ray cluster on this machine, with two unequal kinds of cards. Skipped where Ray is missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ray.machines import Machines, started


@pytest.fixture(scope="session")
def machines() -> Iterator[Machines]:
    """A cluster for all tests; each test leaves it as it was."""
    pytest.importorskip("ray", reason="Ray is not installed: make test-ray")
    with started() as cluster:
        yield cluster
