"""Functions for the code nodes of these tests. Named `tests.runtime.nodes:NAME`."""

from __future__ import annotations

import asyncio
import sys
import threading

HERE = "tests.runtime.nodes"
threads: list[str] = []
gate = threading.Event()
calls: list[str] = []


async def shout(question: str) -> str:
    """Async: on the loop."""
    threads.append(threading.current_thread().name)
    return question.upper()


def count(question: str) -> dict[str, int]:
    """Sync: on a thread of its own."""
    threads.append(threading.current_thread().name)
    return {"letters": len(question)}


def waits_for_the_gate(question: str) -> str:
    """Sync, and as slow as the test wants."""
    assert gate.wait(60)
    return question


async def never_ends(question: str) -> str:
    """Async, until it is cancelled."""
    await asyncio.Event().wait()
    return question


def split(question: str) -> list[str]:
    """A list to fan out over."""
    return question.split()


def raises(question: str) -> str:
    """What user code does."""
    calls.append(question)
    raise ValueError(f"no such thing as {question}")


def next_of_nothing(question: str) -> str:
    """`next` of an empty iterator: StopIteration, which a future cannot carry."""
    return next(word for word in question.split() if word == "missing")


def leaves(question: str) -> str:
    """Asks the interpreter to end."""
    sys.exit(3)


async def async_leaves(question: str) -> str:
    """The same on the loop."""
    sys.exit(3)


async def awaits_what_was_cancelled(question: str) -> str:
    """A library's own task was cancelled, which is not a cancellation of this call."""
    task = asyncio.ensure_future(asyncio.Event().wait())
    task.cancel()
    await task
    return question


def not_json(question: str) -> object:
    """A value that cannot be carried on."""
    return {question}


def not_a_number(question: str) -> float:
    """Neither can this one."""
    return float("nan")


def half_a_character(question: str) -> str:
    """What `os.fsdecode` makes of a file name in another encoding."""
    return "\udce4"


def as_list(**given: object) -> list[tuple[str, object]]:
    """Its arguments by name, as pairs."""
    return sorted(given.items())
