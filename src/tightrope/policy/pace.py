"""Pace: how far the speed of one replica is from its profile, learned from the calls that end there.

Owns the factor. What a call was believed to take is counted by the kernel's ledger (with the factor as it was then),
and the factor makes another profile of the same card, in steps, so that replicas of a card stay comparable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tightrope.model.profile import Profile

GAIN = 0.15
"""Share of a surprise that is believed at once. Lengths of other calls disturb each sample by a few per cent."""
FULL_TOKENS = 32
"""A sample over so many tokens counts fully; shorter ones less, in proportion."""
FORGET_S = 60.0
"""Without samples the factor goes back to the profile: a replica believed slow gets no calls, hence no samples."""
MOST = 4.0
"""Beyond this many times as slow or as fast the profile is of another engine, and no factor helps."""
STEP = math.log(1.1)
"""Steps of the factor as it is used: 10 %, about what a good profile is off anyway."""
STICK = 0.75
"""A step is taken when the factor is this share of a step away from the one in use, so that it does not flicker."""


@dataclass(slots=True)
class Pace:
    """A factor on all times of one replica: 2 means twice as slow as profiled."""

    _log: float = 0.0
    _seen_s: float = 0.0
    _level: int = 0

    def observe(self, believed_tokens: float, real_tokens: float, now_s: float) -> None:
        """A call produced `real_tokens` in a time in which, at the pace believed until now, it would have
        produced `believed_tokens`. Nothing is learned from a call without progress."""
        if believed_tokens <= 0 or real_tokens <= 0:
            return
        gain = GAIN * min(1.0, real_tokens / FULL_TOKENS)
        surprise = math.log(believed_tokens / real_tokens)
        most = math.log(MOST)
        self._log = min(most, max(-most, self._faded(now_s) + gain * surprise))
        self._seen_s = now_s

    def factor(self, now_s: float) -> float:
        """What the times of the profile are multiplied by, between 1 / MOST and MOST."""
        return math.exp(self._faded(now_s))

    def level(self, now_s: float) -> int:
        """The factor in whole steps, as `at_pace` takes it; 0 is the profile as it was measured."""
        exact = self._faded(now_s) / STEP
        if abs(exact - self._level) > STICK:
            self._level = round(exact)
        return self._level

    def _faded(self, now_s: float) -> float:
        return self._log * math.exp(-max(0.0, now_s - self._seen_s) / FORGET_S)


def at_pace(profile: Profile, level: int) -> Profile:
    """The profile of the same card so many steps slower (or faster, below 0)."""
    if level == 0:
        return profile
    return replace(profile, coefficients=profile.coefficients.scaled(math.exp(level * STEP)))
