"""Utilisation of a pool: the work that was offered to it lately, over what its machines could do in that time.

Owns what a call costs at full batches and the sum over the last seconds. Above 1 the pool cannot keep up, whoever
goes where. Which calls are offered is counted by the kernel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from tightrope.model.profile import Profile

WINDOW_S = 10.0
"""How long a call counts. Shorter than a burst, longer than the chance of a few arrivals."""
GATE_FROM, GATE_TO = 1.05, 1.3
"""Between these utilisations harm loses its weight: where many will be late anyway, sparing one costs another."""


def gate(utilisation: float) -> float:
    """The share of its weight that harm keeps, 1 up to GATE_FROM and 0 from GATE_TO on."""
    return min(1.0, max(0.0, (GATE_TO - utilisation) / (GATE_TO - GATE_FROM)))


def work_ms(profile: Profile, prompt_tokens: float, output_tokens: float) -> float:
    """Machine milliseconds of one call when the batch is full."""
    k = profile.coefficients
    n, o = prompt_tokens, max(1.0, output_tokens)
    batch = max(1.0, min(profile.max_sequences, profile.kv_tokens / (n + o)))
    prefill = k.d * n + k.e * n * n / 2 + (k.a + k.h) * n / profile.step_tokens
    return prefill + (o - 1) * ((k.a + k.h) / batch + k.b + k.c * (n + o / 2))


def pool_work_ms(machines: Mapping[Profile, int], prompt_tokens: float, output_tokens: float) -> float:
    """The same of a whole pool, with so many machines of each kind, if all of them did nothing but such calls.

    0 without machines.
    """
    each_ms = [(work_ms(profile, prompt_tokens, output_tokens), count) for profile, count in machines.items()]
    return 1 / sum(count / one_ms for one_ms, count in each_ms) if each_ms else 0.0


@dataclass(slots=True)
class Offered:
    """What was offered to one pool in the last WINDOW_S seconds."""

    _calls: deque[tuple[float, float]] = field(default_factory=deque)
    _sum_ms: float = 0.0

    def note(self, pool_ms: float, now_s: float) -> None:
        """A call came that keeps the whole pool busy for so long."""
        self._calls.append((now_s, pool_ms))
        self._sum_ms += pool_ms

    def utilisation(self, now_s: float) -> float:
        """Work over capacity; 0 when nothing was offered."""
        while self._calls and self._calls[0][0] <= now_s - WINDOW_S:
            self._sum_ms -= self._calls.popleft()[1]
        if not self._calls:
            self._sum_ms = 0.0  # what rounding has left
        return self._sum_ms / (1000 * WINDOW_S)
