"""How things end: closed, low-cardinality enums that are good for a metric label."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How a run ended. Every accepted run has exactly one."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    EXPIRED = "expired"


class Verdict(StrEnum):
    """Whether a run met its SLO; kept apart from the outcome, because a late answer is still an answer."""

    MET = "met"
    MISSED = "missed"
    NONE = "none"


class FailureKind(StrEnum):
    """Why one attempt of a call failed."""

    TIMEOUT = "timeout"
    """The attempt's own time limit passed."""
    STALLED = "stalled"
    """The replica accepted the call and fell silent for longer than it can explain."""
    REPLICA_LOST = "replica_lost"
    """The replica is gone: process exit, connection refused or reset."""
    ENGINE_ERROR = "engine_error"
    """The engine answered with a server error, or with something that is no answer."""
    BAD_REQUEST = "bad_request"
    """The engine refused the request itself; trying again cannot help."""
    CONTEXT_TOO_LONG = "context_too_long"
    """Prompt and output do not fit the model's context; trying again cannot help."""
    BAD_OUTPUT = "bad_output"
    """The answer does not have the shape that the node asks for, even after repair."""
    CODE_ERROR = "code_error"
    """A code node raised, or what it returned cannot be carried on."""
    BAD_INPUT = "bad_input"
    """An input could not be built: a missing field, a list that is too long, a guard without a value."""
    EXPIRED = "expired"
    """The hard deadline of the run passed."""


class Refusal(StrEnum):
    """Why a run was refused at entry."""

    DRAINING = "draining"
    NO_REPLICA = "no_replica"
    QUEUE_FULL = "queue_full"
    TOO_MANY_RUNS = "rate_limited"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, or the sum over a run. `cached_tokens` are prompt tokens the engine did not compute."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
        )
