"""The error tree. Each error belongs to exactly one party, and the gateway maps it once.

TightropeError
├── InvalidInput         the caller's fault: a file, a workflow, a request        -> 400
│   ├── BadUnit          a quantity without its unit, or with a wrong one
│   ├── InvalidWorkflow  a graph that cannot run: carries every problem found
│   └── InvalidConfig    a configuration file that cannot be used
├── NotFound             the named thing does not exist for this caller           -> 404
├── Rejected             we chose not to: full, draining, no replica              -> 429, 503
├── EngineFailed         the engine or its replica failed; carries a FailureKind  -> 502
├── ProfilingFailed      the engine could not be measured; an earlier profile stands   -> 502
├── StoreFailed          the disk refused; nothing already written is lost        -> 500
└── TightropeBug         an invariant broke; please report                        -> 500
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tightrope.model.outcome import FailureKind


class TightropeError(Exception):
    """The root of everything Tightrope raises on purpose."""


class InvalidInput(TightropeError):
    """What was given cannot be used; the message names the place and the cure."""


class BadUnit(InvalidInput):
    """A quantity without a unit, or with one that does not belong to it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: a stable code, the place as a path of keys, the sentence and the cure.

    `line` and `column` count from 1 and are 0 while the place in the text is not known. `cause`, where it
    says more than the sentence, is the rule behind it.
    """

    code: str
    path: tuple[str, ...]
    message: str
    cure: str
    line: int = 0
    column: int = 0
    cause: str = ""

    def __str__(self) -> str:
        place = f"line {self.line}, column {self.column}: " if self.line else ""
        return f"{place}{self.code} at {'.'.join(self.path) or 'the top'}: {self.message}; {self.cure}"


class InvalidWorkflow(InvalidInput):
    """A workflow that cannot run. `problems` holds everything that was found, not only the first."""

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        super().__init__(
            f"workflow {name!r} cannot run:\n" + "\n".join(f"  {problem}" for problem in problems)
        )
        self.name = name
        self.problems = tuple(problems)


class InvalidConfig(InvalidInput):
    """A configuration that cannot be used. `problems` holds everything that was found."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        super().__init__(f"{source} cannot be used:\n" + "\n".join(f"  {problem}" for problem in problems))
        self.source = source
        self.problems = tuple(problems)


class NotFound(TightropeError):
    """The named thing does not exist, or not for this caller."""


class Rejected(TightropeError):
    """Refused before any work. `code` is from the closed list of outcome.Refusal."""

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


class EngineFailed(TightropeError):
    """A call failed on its replica; `kind` says how, in the kernel's words."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class ProfilingFailed(TightropeError):
    """The engine died, stalled or answered nonsense while it was measured; the message names the grid point."""


class StoreFailed(TightropeError):
    """The store could not write or read; the message names the file and the cure."""


class TightropeBug(TightropeError):
    """An invariant of the kernel broke. Never expected; please report it with the journal."""
