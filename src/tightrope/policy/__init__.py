"""Pure decisions: a snapshot, the time and a source of chance in, a decision with its reason out.

Owns the tables of routers. A new one is a function in a file of its own and a line here.
"""

from __future__ import annotations

from collections.abc import Mapping

from tightrope.model.errors import InvalidInput
from tightrope.policy.baselines import BASELINES
from tightrope.policy.fmware import FMWARE, FMWARE_VARIANTS
from tightrope.policy.foresight import FORESIGHT, FORESIGHT_VARIANTS
from tightrope.policy.hexgen_flow import HEXGEN_FLOW, HEXGEN_FLOW_VARIANTS
from tightrope.policy.just_enough import JUST_ENOUGH, JUST_ENOUGH_VARIANTS
from tightrope.policy.prefix_aware import PREFIX_AWARE
from tightrope.policy.route import Router
from tightrope.policy.slo_headroom import SLO_HEADROOM

DEFAULT_ROUTER = FORESIGHT.name

_ROUTERS = {
    found.name: found
    for found in (FORESIGHT, *FMWARE, *BASELINES, PREFIX_AWARE, HEXGEN_FLOW, *SLO_HEADROOM, JUST_ENOUGH)
}

ROUTERS: Mapping[str, Router] = _ROUTERS

VARIANTS: Mapping[str, Router] = {
    found.name: found
    for found in (*FORESIGHT_VARIANTS, *FMWARE_VARIANTS, *HEXGEN_FLOW_VARIANTS, *JUST_ENOUGH_VARIANTS)
}
"""Routers with other settings than their authors' or our own reading of them, named `router/settings`. A
benchmark that shall be fair runs all of them; a configuration names none."""


def router(name: str) -> Router:
    """The router or the variant of this name. Raises InvalidInput, which lists the names, if there is none."""
    found = ROUTERS.get(name) or VARIANTS.get(name)
    if found is not None:
        return found
    family, slash, _ = name.partition("/")
    names = [other for other in VARIANTS if slash and other.startswith(f"{family}/")] or list(ROUTERS)
    raise InvalidInput(f"there is no router {name!r}; name one of: {', '.join(names)}")


def register(found: Router) -> None:
    """Let this process know a router that is not ours, for an experiment, by its name.

    Raises InvalidInput if the name is taken. What runs for longer has its line in the table.
    """
    if found.name in ROUTERS or found.name in VARIANTS:
        raise InvalidInput(f"there is a router {found.name!r} already; give yours another name")
    _ROUTERS[found.name] = found
