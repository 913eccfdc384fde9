"""References as text: `input.question`, `notes.items`, `orders | refunds | null`, and gathers around them."""

from __future__ import annotations

import re

from tightrope.model.errors import InvalidInput
from tightrope.model.ids import StepId
from tightrope.model.workflow import Binding, CaseRef, Ref

_REF = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_][A-Za-z0-9_-]*)*")


def parse_ref(text: str) -> Ref:
    """`notes.items` -> Ref. Raises InvalidInput for anything else, alternatives included."""
    text = text.strip()
    if _REF.fullmatch(text) is None or text == "null":
        raise InvalidInput(f"{text!r} is not a reference: write `node`, `node.field`, `input.name` or `each`")
    source, *path = text.split(".")
    return Ref(source, tuple(path))


def parse_binding(text: str) -> Binding:
    """`a.x | b | null` -> Binding. Raises InvalidInput when a part is no reference, or `null` is not last."""
    parts = [part.strip() for part in text.split("|")]
    optional = parts[-1] == "null"
    if optional:
        parts = parts[:-1]
    if not parts:
        raise InvalidInput("`null` alone gives the node nothing: name what it reads, as in `orders | null`")
    if "null" in parts:
        raise InvalidInput(f"in {text!r} `null` does not stand last: nothing after it can ever be used")
    return Binding(tuple(parse_ref(part) for part in parts), optional)


def write_binding(binding: Binding) -> str:
    """The text of a binding, without its gather."""
    return " | ".join([*map(str, binding.refs), *(["null"] if binding.optional else [])])


def parse_case(text: str) -> CaseRef:
    """`route.order` -> CaseRef. Raises InvalidInput for anything else."""
    switch, dot, case = text.strip().partition(".")
    if not dot or not switch or not case or "." in case:
        raise InvalidInput(f"{text!r} is not a case: write `switch.case`, as in `route.order`")
    return CaseRef(StepId(switch), case)
