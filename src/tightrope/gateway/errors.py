"""The catalogue of what the gateway answers when it cannot give the answer, and the mapping onto it.

Owns codes, status codes, sentences and the next step. Every error of the runtime and every end of a run that
is no success is mapped here, once. How an error is written on the wire is `wire.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from tightrope.model.errors import InvalidInput, NotFound, Rejected, StoreFailed, TightropeError
from tightrope.model.messages import FinishRun
from tightrope.model.outcome import FailureKind, Outcome, Refusal
from tightrope.runtime.client import PLAIN_CHAT, PLAIN_COMPLETION, RunFailed

LONGEST_RETRY_S = 60.0
_LONGEST_CAUSE = 400


@dataclass(frozen=True, slots=True)
class Entry:
    """One code: its status, whether asking again may help, what is said, and what to do next."""

    code: str
    status: int
    type: str
    is_retryable: bool
    message: str
    next: str


_REQUEST, _SERVER = "invalid_request_error", "server_error"

ENTRIES = (
    Entry("invalid_request", 400, _REQUEST, False, "The request cannot be used", "Correct the request."),
    Entry(
        "bad_header", 400, _REQUEST, False, "A header cannot be used",
        "Send it once, as a plain decimal from 1 to 3600000 (milliseconds).",
    ),
    Entry(
        "ambiguous_priority", 400, _REQUEST, False, "Engines disagree about the sign of `priority`",
        "Remove the field `priority` from the body.",
    ),
    Entry(
        "unsupported_parameter", 400, _REQUEST, False, "A parameter has no meaning here",
        "Remove it, or call a plain model.",
    ),
    Entry(
        "context_too_long", 400, _REQUEST, False, "Prompt and answer do not fit the context of the model",
        "Shorten the prompt, or ask for fewer tokens.",
    ),
    Entry(
        "invalid_api_key", 401, _REQUEST, False, "The API key is missing or not valid",
        "Send a key in force as `Authorization: Bearer KEY`; 'tightrope keys create' makes one.",
    ),
    Entry(
        "role_forbidden", 403, _REQUEST, False, "The role of this key does not allow this",
        "Use a key with another role; 'tightrope keys create --role ROLE' makes one.",
    ),
    Entry(
        "model_not_found", 404, _REQUEST, False, "There is no such model or workflow for this key",
        "GET /v1/models lists what this key may call.",
    ),
    Entry("route_not_found", 404, _REQUEST, False, "There is nothing at this path", "Check the base URL."),
    Entry("method_not_allowed", 405, _REQUEST, False, "This path does not know this method", "See `allow`."),
    Entry("body_too_large", 413, _REQUEST, False, "The body is too large", "Send a smaller one."),
    Entry(
        "unsupported_media_type", 415, _REQUEST, False, "The body is not JSON",
        "Send `content-type: application/json`.",
    ),
    Entry("headers_too_large", 431, _REQUEST, False, "The headers are too large", "Send fewer."),
    Entry("rate_limited", 429, "rate_limit_error", True, "Too many runs at once", "Retry later."),
    Entry("queue_full", 429, "rate_limit_error", True, "The waiting line is full", "Retry later."),
    Entry(
        "internal_error", 500, _SERVER, False, "Something went wrong on our side",
        "Please report it with the id of this request.",
    ),
    Entry(
        "replica_lost", 502, _SERVER, False, "A replica was lost while it worked on this",
        "See 'tightrope explain RUN'; sending the request again may help.",
    ),
    Entry(
        "engine_error", 502, _SERVER, False, "The engine failed",
        "See 'tightrope explain RUN' and the log of the engine.",
    ),
    Entry(
        "bad_output", 502, _SERVER, False, "A model's answer did not have the shape that was asked for",
        "See 'tightrope explain RUN'; simplify the shape, or give the node a fallback.",
    ),
    Entry("node_failed", 502, _SERVER, False, "A node failed", "See 'tightrope explain RUN'."),
    Entry("no_replica", 503, _SERVER, True, "No replica can serve this now", "Retry later."),
    Entry("draining", 503, _SERVER, True, "The server is shutting down", "Retry later, or elsewhere."),
    Entry(
        "deadline_exceeded", 504, _SERVER, False, "The hard deadline of the run passed",
        "Allow more time, or ask for a shorter answer; see 'tightrope explain RUN'.",
    ),
)  # fmt: skip

ENTRY_BY_CODE = {entry.code: entry for entry in ENTRIES}


class ApiError(Exception):
    """An answer that is an error: a code of the catalogue, and what this case adds to its sentence.

    `cause` is one plain line; `param` names the part of the request that is to blame.
    """

    def __init__(
        self, code: str, cause: str = "", *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(code)
        self.entry = ENTRY_BY_CODE[code]
        self.cause = cause
        self.param = param
        self.retry_after_s = min(max(retry_after_s or 1.0, 0.001), LONGEST_RETRY_S)

    @property
    def message(self) -> str:
        """The whole sentence: what, why, and the next step."""
        cause = " ".join(self.cause.split())[:_LONGEST_CAUSE].rstrip(".")
        # A string that cannot be written as UTF-8 must not turn an error into a fault of ours.
        what = (
            f"{self.entry.message}: {cause}".encode(errors="replace").decode()
            if cause
            else self.entry.message
        )
        return f"{what}. {self.entry.next}"


def of_error(error: TightropeError) -> ApiError:
    """The answer for what the runtime raised."""
    match error:
        case RunFailed():
            return of_finish(error.finish)
        case NotFound():
            return ApiError("model_not_found", param="model")
        case Rejected():
            code = error.code if error.code in ENTRY_BY_CODE else "no_replica"
            return ApiError(code, str(error), retry_after_s=error.retry_after_s)
        case InvalidInput():
            return ApiError("invalid_request", str(error))
        case StoreFailed():
            return ApiError("internal_error")
        case _:
            return ApiError("internal_error")


def of_finish(finish: FinishRun) -> ApiError:
    """The answer for a run that did not succeed."""
    match finish.outcome:
        case Outcome.REJECTED:
            code = _CODE_BY_REFUSAL[finish.refusal] if finish.refusal is not None else "no_replica"
            return ApiError(code, finish.message, retry_after_s=finish.retry_after_s)
        case Outcome.EXPIRED:
            return ApiError("deadline_exceeded", _place(finish))
        case Outcome.CANCELLED:
            # The client is still here, so it was the server that gave the run up.
            return ApiError("draining", finish.message, retry_after_s=finish.retry_after_s)
        case Outcome.FAILED:
            return _of_failure(finish)
        case Outcome.SUCCEEDED:
            return ApiError("internal_error")
        case _:
            assert_never(finish.outcome)


_CODE_BY_REFUSAL = {
    Refusal.DRAINING: "draining",
    Refusal.NO_REPLICA: "no_replica",
    Refusal.QUEUE_FULL: "queue_full",
    Refusal.TOO_MANY_RUNS: "rate_limited",
}


def _of_failure(finish: FinishRun) -> ApiError:
    match finish.failure:
        case None:
            return ApiError("internal_error")
        case FailureKind.REPLICA_LOST:
            return ApiError("replica_lost", _with_message(finish))
        case FailureKind.ENGINE_ERROR | FailureKind.STALLED:
            return ApiError("engine_error", _with_message(finish))
        case FailureKind.BAD_REQUEST:
            # A plain model gets the caller's own fields; what a workflow asks of its models is its author's.
            is_callers = finish.workflow.startswith((PLAIN_CHAT, PLAIN_COMPLETION))
            return ApiError("invalid_request" if is_callers else "node_failed", _with_message(finish))
        case FailureKind.CONTEXT_TOO_LONG:
            return ApiError("context_too_long", _with_message(finish), param="messages")
        case FailureKind.TIMEOUT:
            return ApiError("node_failed", _with_message(finish))
        case FailureKind.EXPIRED:
            return ApiError("deadline_exceeded", _place(finish))
        case FailureKind.BAD_OUTPUT:
            return ApiError("bad_output", _place(finish))
        case FailureKind.CODE_ERROR | FailureKind.BAD_INPUT:
            # The message may quote what a user wrote or a model said; `explain` shows it to its owner.
            return ApiError("node_failed", f"{_place(finish)} ({finish.failure})".strip())
        case _:
            assert_never(finish.failure)


def _place(finish: FinishRun) -> str:
    return f"node {finish.step}" if finish.step is not None else ""


def _with_message(finish: FinishRun) -> str:
    return ": ".join(part for part in (_place(finish), finish.message) if part)
