"""Promises and who they are made to: Slo, Limits, Tenant."""

from __future__ import annotations

from dataclasses import dataclass, field

from tightrope.model.ids import ModelName, TenantId
from tightrope.model.units import ratio, seconds


@dataclass(frozen=True, slots=True, init=False)
class Slo:
    """What a run promises. All times in seconds; None means "not promised".

    `ttft_s` runs from the arrival of the request to the first content of the output node, `tpot_s` is the
    mean gap between output tokens, `e2e_s` runs to the end. `attain` is the share of arrived runs that shall
    meet it. Written by people as `Slo(ttft="1500ms", attain="95%")`; the `_s` forms take numbers.
    """

    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float | None
    attain: float

    def __init__(
        self,
        *,
        ttft: str | None = None,
        tpot: str | None = None,
        e2e: str | None = None,
        attain: str | float = 0.95,
        ttft_s: float | None = None,
        tpot_s: float | None = None,
        e2e_s: float | None = None,
    ) -> None:
        object.__setattr__(self, "ttft_s", seconds(ttft) if ttft is not None else ttft_s)
        object.__setattr__(self, "tpot_s", seconds(tpot) if tpot is not None else tpot_s)
        object.__setattr__(self, "e2e_s", seconds(e2e) if e2e is not None else e2e_s)
        object.__setattr__(self, "attain", ratio(attain) if isinstance(attain, str) else attain)

    @property
    def is_empty(self) -> bool:
        """True when nothing is promised: best effort."""
        return self.ttft_s is None and self.tpot_s is None and self.e2e_s is None

    @property
    def target_s(self) -> float | None:
        """Seconds from arrival to the earliest promised moment: first content, else the end; None without one."""
        promised = [target for target in (self.ttft_s, self.e2e_s) if target is not None]
        return min(promised) if promised else None


@dataclass(frozen=True, slots=True)
class Limits:
    """What one tenant may hold at once. `deadline_s` is the hard limit of a run, counted from its arrival."""

    concurrent: int = 1000
    queue: int = 1000
    output_tokens: int = 4096
    deadline_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Tenant:
    """A contract: an SLO for what declares none, limits, and what it may call.

    `models` and `workflows` name what the tenant may use; `slo_by_workflow` overrides a workflow's own SLO.
    `slo_floor` is the tightest promise that a request may ask for; None lets it ask for nothing tighter.
    """

    id: TenantId
    slo: Slo | None = None
    slo_floor: Slo | None = None
    limits: Limits = field(default_factory=Limits)
    models: tuple[ModelName, ...] = ()
    workflows: tuple[str, ...] = ()
    slo_by_workflow: tuple[tuple[str, Slo], ...] = ()
