"""Kinds of calls: those of the last while, parted by the cards on which they can be within their budget at all.

Owns the parting. Calls of one kind are alike to a fleet of unlike cards: where there is no place for one of them there
is none for any (Mélange, 2404.14527, parts by size; here the budget is in it).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, median

from tightrope.model.profile import Profile
from tightrope.policy.bearing import Kind, critical_s
from tightrope.policy.provision import PastCall

_Key = tuple[bool, tuple[bool, ...]]
"""Whether only the first token counts, and on which cards such a call can be in time."""

MOST_KINDS = 4
"""Rarer ones are counted with those that are most like them."""
AMONG = 4
"""Calls are never alone: a card is one for a call if it is in time among so many."""


def kinds_of(past: Iterable[PastCall], cards: Sequence[Profile], part: float) -> tuple[Kind, ...]:
    """The kinds, each with its share, in a fixed order, if each call is given `part` of its run's spare time."""
    calls = list(past)
    alike: dict[_Key, list[PastCall]] = {}
    for call in calls:
        alike.setdefault((call.is_terminal, _where(call, cards, part)), []).append(call)
    while len(alike) > MOST_KINDS:
        fewest = min(sorted(alike), key=lambda key: len(alike[key]))
        few = alike.pop(fewest)
        alike[min(sorted(alike), key=lambda key: _apart(key, fewest))] += few
    return tuple(_as_kind(alike[key], len(alike[key]) / len(calls), part) for key in sorted(alike))


def _apart(one: _Key, other: _Key) -> int:
    """In how many ways two kinds differ; what counts of a call weighs more than where it can be."""
    return len(one[1]) * (one[0] != other[0]) + sum(a != b for a, b in zip(one[1], other[1], strict=True))


def _where(call: PastCall, cards: Sequence[Profile], part: float) -> tuple[bool, ...]:
    budget_s = call.budget_s(part)
    own = Kind(1.0, call.prompt_tokens, call.output_tokens, budget_s, call.tpot_s, call.is_terminal)
    return tuple(critical_s(card, own, AMONG) <= budget_s for card in cards)


def _as_kind(calls: Sequence[PastCall], share: float, part: float) -> Kind:
    return Kind(
        share=share,
        prompt_tokens=fmean(call.prompt_tokens for call in calls),
        output_tokens=fmean(call.output_tokens for call in calls),
        budget_s=median(call.budget_s(part) for call in calls),
        tpot_s=min(call.tpot_s for call in calls),
        is_terminal=calls[0].is_terminal,
    )
