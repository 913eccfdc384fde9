"""The table of provisioners. A new one is a function in a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from tightrope.model.errors import InvalidInput
from tightrope.policy.least_cost import LEAST_COST
from tightrope.policy.provision import Provisioner
from tightrope.policy.scaling_rules import RULES

DEFAULT_PROVISIONER = LEAST_COST.name

_PROVISIONERS = {found.name: found for found in (LEAST_COST, *RULES)}

PROVISIONERS: Mapping[str, Provisioner] = _PROVISIONERS


def provisioner(name: str) -> Provisioner:
    """The provisioner of this name. Raises InvalidInput, which lists the names, if there is none."""
    found = PROVISIONERS.get(name)
    if found is None:
        raise InvalidInput(f"there is no provisioner {name!r}; name one of: {', '.join(PROVISIONERS)}")
    return found


def register(found: Provisioner) -> None:
    """Let this process know a provisioner that is not ours, for an experiment, by its name.

    Raises InvalidInput if the name is taken.
    """
    if found.name in PROVISIONERS:
        raise InvalidInput(f"there is a provisioner {found.name!r} already; give yours another name")
    _PROVISIONERS[found.name] = found
