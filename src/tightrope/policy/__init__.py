"""Pure decisions: a snapshot, the time and a source of chance in, a decision with its reason out.

Owns the table of routers. A new one is a function in a file of its own and a line here.
"""

from __future__ import annotations

from collections.abc import Mapping

from tightrope.model.errors import InvalidInput
from tightrope.policy.baselines import BASELINES
from tightrope.policy.fmware import FMWARE
from tightrope.policy.foresight import FORESIGHT
from tightrope.policy.route import Router

DEFAULT_ROUTER = FORESIGHT.name

ROUTERS: Mapping[str, Router] = {found.name: found for found in (FORESIGHT, *FMWARE, *BASELINES)}


def router(name: str) -> Router:
    """The router of this name. Raises InvalidInput, which lists the names, if there is none."""
    found = ROUTERS.get(name)
    if found is None:
        raise InvalidInput(f"there is no router {name!r}; name one of: {', '.join(ROUTERS)}")
    return found
