"""The boundary with the world: Engine, Cluster, Store, Clock, and the values that cross it.

Adapters behind these translate calls and errors, and decide nothing: no retries, no time limits, no SLOs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from tightrope.model.fleet import ReplicaSpec
from tightrope.model.ids import ReplicaId
from tightrope.model.key import KeyRecord
from tightrope.model.messages import ReplicaLost, ReplicaReady, ReplicaStopped
from tightrope.model.outcome import Usage
from tightrope.model.profile import Profile


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message. `content` is text, or the request's own JSON text for structured content (`is_json`).

    `further` are the other fields of the message (a tool call and its answer), as JSON text by name.
    """

    role: str
    content: str
    is_json: bool = False
    further: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One model call as an engine sees it.

    Exactly one of `messages` (chat) and `prompt` (raw completion) is set. `schema` is a JSON Schema as text
    that the answer shall follow. `extra` are further body fields of an OpenAI request, as JSON text by name,
    passed through untouched.
    """

    model: str
    max_tokens: int
    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    temperature: float | None = None
    stop: tuple[str, ...] = ()
    schema: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


class Chunk(NamedTuple):
    """One piece of a streamed answer: made for every token, so a plain tuple.

    `text` is new content, "" for role, tool-call or usage pieces. `choices` is the engine's own JSON of the
    `choices` array, ready to be spliced into our frame (b"[]" for the usage piece). `is_content` is True when
    the piece carries anything the user asked for (text, tool call, refusal), False for a bare role.
    """

    text: str
    choices: bytes
    is_content: bool
    finish_reason: str | None = None
    usage: Usage | None = None


Take = Callable[[Sequence[Chunk]], Awaitable[None] | None]
"""Takes the pieces of an answer that have come at once, one at least. Gives what to wait for before more is read, if
their reader is behind."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says of itself; None or "" where it does not say."""

    build: str = ""
    digest: str = ""
    max_sequences: int | None = None
    context_tokens: int | None = None
    step_tokens: int | None = None
    memory_bytes: int | None = None


class Engine(Protocol):
    """Something at one address that answers model calls."""

    async def generate(self, request: EngineRequest, take: Take) -> None:
        """Make one call: the pieces of the answer go to `take` in the moment they come, and when this returns all
        have. The last chunk but none carries usage where the engine reports it.

        Raises EngineFailed with the kind. Cancelling it cancels the request on the engine.
        """
        ...

    async def count_tokens(self, text: str) -> int | None:
        """Tokens of `text` by the engine's own tokenizer; None where it does not offer one."""
        ...

    async def facts(self) -> EngineFacts:
        """What the engine says of itself. Raises EngineFailed when it cannot be reached."""
        ...

    async def close(self) -> None:
        """Give back connections. Requests under way are cancelled."""
        ...


class Cluster(Protocol):
    """Something that starts and stops replicas, and knows where they listen."""

    async def start(self, spec: ReplicaSpec) -> None:
        """Begin to bring a replica up; the end is told by `watch`. Adopts one that already runs under this id."""
        ...

    async def stop(self, replica: ReplicaId) -> None:
        """End a replica; told by `watch` as ReplicaStopped. Unknown ids are told as stopped too."""
        ...

    def watch(self) -> AsyncIterator[ReplicaReady | ReplicaLost | ReplicaStopped]:
        """What happens to replicas, once and in order. One reader at a time."""
        ...

    def url(self, replica: ReplicaId) -> str:
        """Base address of a ready replica, like `http://127.0.0.1:8191/v1`. Raises KeyError if it is not ready."""
        ...

    async def close(self) -> None:
        """End everything this cluster started; nothing is left behind."""
        ...


class Store(Protocol):
    """What survives a restart. Every write is durable before it returns; raises StoreFailed."""

    def save_profile(self, profile: Profile) -> None:
        """Keep a profile under (digest, engine, accelerator), replacing an earlier one of the same three."""
        ...

    def profiles(self) -> Sequence[Profile]:
        """All profiles, the most recently saved of each (model, accelerator) last."""
        ...

    def save_key(self, key: KeyRecord) -> None:
        """Keep a key under its public id, replacing what stands there."""
        ...

    def keys(self) -> Sequence[KeyRecord]:
        """All keys, revoked and expired ones included, by creation."""
        ...

    def close(self) -> None:
        """Give back the file."""
        ...


class Clock(Protocol):
    """Monotonic seconds. The only source of time that decides anything."""

    def now(self) -> float:
        """Seconds since an arbitrary moment; never goes back."""
        ...
