"""Writes the kept journal anew: `python -m tests.parity.record`, from the root of the repository.

To be done only where decisions are meant to change, and named in the change log: old journals no longer replay.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.parity.session import play
from tightrope.kernel.journal import Head
from tightrope.kernel.state import KernelSettings
from tightrope.runtime.journal_file import JournalFile

KEPT = Path(__file__).with_name("session.jsonl")


def main() -> None:
    """Play the session and keep its journal."""
    KEPT.unlink(missing_ok=True)
    head = Head(KernelSettings(router="foresight", seed=7), 0.0, 0.0)
    asyncio.run(play(JournalFile(KEPT, head), rounds=2))


if __name__ == "__main__":
    main()
