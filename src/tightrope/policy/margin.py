"""The safety margin of a replica: how much too small estimates for it may be, learned from the calls that went there.

Owns the rule. What was predicted and what was measured is kept by the kernel; what the margin is added to is the
router's.
"""

from __future__ import annotations

from dataclasses import dataclass

START = 0.1
"""Before anything is known."""
GAIN = 0.02
"""What one call can change: a miss adds most of it, nine hits take the same back."""
MISSES = 0.1
"""Share of calls that may take longer than estimate and margin together."""


@dataclass(slots=True)
class Margin:
    """A ratio, 0 or more: 0.1 adds 10 % to an estimate."""

    ratio: float = START

    def observe(self, predicted_ms: float, real_ms: float) -> None:
        """A call was taken to need `predicted_ms` until the moment that counted for it, and needed `real_ms`."""
        is_miss = real_ms > predicted_ms * (1 + self.ratio)
        self.ratio = max(0.0, self.ratio + GAIN * (is_miss - MISSES))
