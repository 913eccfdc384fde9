"""One Hypothesis profile for all laws: the same examples in every run, and no limit on time."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "laws", max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("laws")
