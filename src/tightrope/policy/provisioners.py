"""The table of provisioners. A new one is a function in a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from tightrope.model.errors import InvalidInput
from tightrope.policy.least_cost import LEAST_COST
from tightrope.policy.provision import Provisioner
from tightrope.policy.scaling_rules import RULES

PROVISIONERS: Mapping[str, Provisioner] = {found.name: found for found in (LEAST_COST, *RULES)}


def provisioner(name: str) -> Provisioner:
    """The provisioner of this name. Raises InvalidInput, which lists the names, if there is none."""
    found = PROVISIONERS.get(name)
    if found is None:
        raise InvalidInput(f"there is no provisioner {name!r}; name one of: {', '.join(PROVISIONERS)}")
    return found
