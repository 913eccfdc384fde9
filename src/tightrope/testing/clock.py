"""A clock that moves only when it is told to."""

from __future__ import annotations


class ManualClock:
    """The Clock port for tests: `now()` is what it was set to, in seconds, and never goes back."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s

    def now(self) -> float:
        """Seconds since an arbitrary moment."""
        return self._now_s

    def advance(self, by_s: float) -> float:
        """Move forward by `by_s` seconds, 0 or more; the new time. Raises ValueError for a negative step."""
        if by_s < 0:
            raise ValueError(f"a clock never goes back, so it cannot advance by {by_s} s")
        self._now_s += by_s
        return self._now_s
