"""The duel on real engines: one small model on two unequal parts of a processor, and the load that these can bear.

Owns the scenario that follows from what was measured of the engines. Measuring and starting them is the application's.
"""

from __future__ import annotations

from collections.abc import Sequence

from tightrope.bench.scenario import Hardware, Placement, Scenario, Stream
from tightrope.model.ids import AcceleratorName, ModelName, TenantId
from tightrope.model.profile import Profile
from tightrope.sim.promise import Promise

NAME = "real"
MODEL = ModelName("own")
SHARES = {AcceleratorName("fast"): 0.8, AcceleratorName("slow"): 0.3}
"""Parts of a processor core: two unequal cards, that leave most of a second core to the systems that are compared."""
SLOTS, CONTEXT_TOKENS = 4, 2048
"""Calls that an engine serves at once, and what each of them may have."""
SHRINK = 1 / 32
"""A processor reads and writes a hundredth of what a card does: prompts and answers are so much shorter."""
LOADS = (0.2, 0.4, 0.6)
SEEDS = (100, 101, 102)
LASTS_S, WARM_UP_S = 150.0, 20.0


def real_scenario(measured: Sequence[Profile]) -> Scenario:
    """Both workflows, half and half, on the engines that were measured; every part of a run on the same model.

    A run's promise is twice the time that it takes alone and half a second, for its first token: between tokens an
    engine with a part of a core takes longer than readers would like, whoever chooses it.
    """
    one = measured[0]
    return Scenario(
        name=NAME,
        about="RAG and shopping assistant on llama.cpp with 80% and with 30% of a processor core",
        fleet=tuple(Placement(MODEL, profile.accelerator, 1) for profile in measured),
        small=MODEL,
        large=MODEL,
        streams=(Stream(TenantId("library"), "rag", 0.5), Stream(TenantId("shop"), "shop", 0.5)),
        hardware=Hardware(
            host_overhead_s=0.0, step_tokens=one.step_tokens, max_sequences=one.max_sequences, start_s=2.0
        ),
        promise=Promise(scale=2.0, buffer_s=0.5, tpot_s=None),
        duration_s=LASTS_S,
        warm_up_s=WARM_UP_S,
        shrink=SHRINK,
        measured=tuple(measured),
    )
