"""Writes the cards that can be emulated: the profiles of `tightrope.bench.hardware`, as data of the package.

Run it from a checkout with `python docs/make_cards.py` after `scenarios/data` or the fit has changed.
"""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec

from tightrope.adapters.emulated_truth import TABLE, Table
from tightrope.bench.hardware import HARDWARE
from tightrope.model.errors import InvalidInput
from tightrope.model.profile import Coefficients, Profile

SOURCE = (
    "Step times fitted by docs/make_cards.py from scenarios/data/step-times.csv.gz, which was computed from the "
    "measured kernel tables of aiconfigurator 0.12.0 (https://github.com/ai-dynamo/aiconfigurator): tensor parallel 1, "
    "bf16. "
    "4 ms of host overhead a step; memory by data sheet, 90 % of it used."
)
LICENCE = "Apache-2.0, as the source"
DIGITS = 6


def table() -> Table:
    """Every model on every card whose memory it fits."""
    return Table(SOURCE, LICENCE, tuple(_profiles()))


def _profiles() -> list[Profile]:
    found = []
    for model in HARDWARE.models:
        for card in HARDWARE.accelerators:
            try:
                found.append(_rounded(HARDWARE.profile(model, card)))
            except InvalidInput:
                continue  # the weights leave no memory for context
    return found


def _rounded(profile: Profile) -> Profile:
    k = profile.coefficients
    values = (float(f"{value:.{DIGITS}g}") for value in (k.a, k.b, k.c, k.d, k.e, k.h))
    return replace(profile, coefficients=Coefficients(*values), error=None)


def main() -> None:
    """Write the file."""
    rows = ",\n".join("  " + json.dumps(_short(one)) for one in table().profiles)
    head = json.dumps({"source": SOURCE, "licence": LICENCE}, indent=1)[:-2]
    TABLE.write_text(f'{head},\n "profiles": [\n{rows}\n ]\n}}\n', "utf-8")


def _short(profile: Profile) -> dict[str, object]:
    """What the table says of a profile; the rest is as it is by default."""
    said = ("model", "accelerator", "coefficients", "step_tokens", "max_sequences", "kv_tokens")
    whole = msgspec.to_builtins(profile)
    return {name: whole[name] for name in said}


if __name__ == "__main__":
    main()
