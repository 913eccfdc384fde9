"""The fleet as policies see it: accelerators, replicas and the calls they hold, as immutable snapshots."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from tightrope.model.ids import AcceleratorName, CallId, ModelName, ReplicaId
from tightrope.model.profile import Profile


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A kind of card: a label, a price, a size, and how many may be used. Nothing ever branches on the name.

    `share` is the part of one processor core that an engine on this card may use (None: all it can get);
    it is how unequal cards are made out of one machine.
    """

    name: AcceleratorName
    usd_per_h: float = 0.0
    memory_bytes: int = 0
    count: int = 1
    share: float | None = None


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """An order for one replica. `url` is set when somebody else runs it, `serves` when its engine knows the
    model under another name."""

    id: ReplicaId
    model: ModelName
    accelerator: AcceleratorName
    url: str | None = None
    serves: str | None = None


def numbered(model: ModelName, card: AcceleratorName, number: int) -> ReplicaId:
    """The name of a replica of our own, counted from 1 within its model and kind of card."""
    return ReplicaId(f"{model}-{card}-{number}")


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """Which replicas shall exist. What is missing is started, what is not listed is drained and stopped."""

    replicas: tuple[ReplicaSpec, ...]


class ReplicaState(StrEnum):
    """Where a replica is in its life."""

    STARTING = "starting"
    READY = "ready"
    EJECTED = "ejected"
    """Alive but failing; gets no calls for a while."""
    DRAINING = "draining"
    LOST = "lost"
    """Gone; ordered again after a pause if the plan still lists it."""


@dataclass(frozen=True, slots=True)
class HeldCall:
    """A call as the ledger knows it, on a replica or placed there provisionally.

    `output_tokens` is the expected length. `first_token_s` is None until the first token came.
    `due_s` is the latest finish of the call; `is_terminal` means that only its first token counts for the SLO.
    `is_hopeless` means that it can no longer be on time. `has_slot` is False for a call placed in thought only.
    `tpot_s` is what its reader was promised per token, infinite without a promise.
    """

    call: CallId
    prompt_tokens: int
    output_tokens: float
    dispatched_s: float
    due_s: float
    is_terminal: bool
    is_hopeless: bool = False
    first_token_s: float | None = None
    has_slot: bool = True
    tpot_s: float = math.inf


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica that may be given calls, and what it holds, oldest dispatch first.

    `margin` is how much too small estimates for it may be, as a ratio (0.1 is 10 %), learned from its calls; None
    where nobody learns it. `memo` and `plain` are no part of it: in the first readers keep, by type, what they have
    worked out from the rest; the second is the same replica without what is placed there in thought, if anything is.
    """

    id: ReplicaId
    model: ModelName
    accelerator: AcceleratorName
    profile: Profile
    usd_per_h: float = 0.0
    held: tuple[HeldCall, ...] = ()
    margin: float | None = None
    memo: dict[type, object] = field(default_factory=dict, init=False, compare=False, repr=False)
    plain: ReplicaView | None = field(default=None, init=False, compare=False, repr=False)

    def thinking_of(self, placed: Iterable[HeldCall]) -> ReplicaView:
        """The same replica with calls placed there in thought; what was worked out from the rest is not lost."""
        made = replace(self, held=(*self.held, *placed))
        object.__setattr__(made, "plain", self)
        return made


@dataclass(frozen=True, slots=True)
class Kind:
    """The ready replicas that share a profile, in one order for each number that the router ranks them by."""

    profile: Profile
    orders: tuple[Sequence[ReplicaView], ...]


@dataclass(frozen=True, slots=True)
class PoolView:
    """The ready replicas of one model, in id order. `turn` counts the calls dispatched to the pool so far.

    `kinds` are the same replicas by kind, kept in order where they are many and the router wants them so;
    otherwise it is empty. `utilisation` is the work offered lately over what the machines can do in that time, 0
    where nobody counts it. To be read while one decision is made, and not to be kept: `replicas` and `kinds` may be
    the kernel's own tables.
    """

    model: ModelName
    replicas: Sequence[ReplicaView]
    turn: int = 0
    kinds: tuple[Kind, ...] = ()
    utilisation: float = 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """A call that waits to be placed.

    `prompt_tokens` n, `output_tokens` its expected length, `output_high` the length to reserve memory for.
    `due_s` is its latest finish LF, `budget_s` the share of the run's remaining time granted to it.
    `is_terminal`: it is the output node under a time-to-first-token SLO, so its critical time ends with the
    first token. `is_hopeless`: it can no longer be on time and waits behind all that can. `hits`: the replicas
    that have a part of its prompt in their cache, each with the tokens that need not be computed there. `tpot_s`:
    what its reader was promised per token, infinite without a promise.
    """

    call: CallId
    model: ModelName
    prompt_tokens: int
    output_tokens: float
    output_high: int
    ready_s: float
    due_s: float
    budget_s: float
    is_terminal: bool
    is_hopeless: bool = False
    hits: tuple[tuple[ReplicaId, float], ...] = ()
    tpot_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a call would take on one replica, in milliseconds.

    `lx` its own work on the empty replica, `lq` what waiting adds, `lr` what already runs there adds: together
    the critical time `crit`. `ttft` and `decode` are the two phases of the full estimate.
    """

    lx: float
    lq: float
    lr: float
    ttft: float
    decode: float

    @property
    def crit(self) -> float:
        """lx + lq + lr: milliseconds until the moment that counts for the SLO."""
        return self.lx + self.lq + self.lr


@dataclass(frozen=True, slots=True)
class Offer:
    """One candidate of a decision: its estimate, its score (lower is better; the policy's own unit) and the verdict."""

    replica: ReplicaId
    accelerator: AcceleratorName
    estimate: Estimate
    score: float
    verdict: str


@dataclass(frozen=True, slots=True)
class Routed:
    """A decision with its reason: the replica, and the best candidates, the chosen one first, the runner-up second."""

    replica: ReplicaId
    reason: str
    offers: tuple[Offer, ...]
    policy: str
