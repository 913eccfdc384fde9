"""What a replica does at one moment, worked out call by call: slow, plain, and what the sums must agree with."""

from __future__ import annotations

from dataclasses import dataclass

from tightrope.model.fleet import HeldCall, ReplicaView
from tightrope.model.profile import Profile
from tightrope.policy.gauge import step_room


@dataclass(frozen=True)
class Walked:
    """Who does what, with what is left of each; `live` are the calls that can still be on time."""

    decoding: list[HeldCall]
    output_left: list[float]
    prefilling: list[HeldCall]
    prompt_left: list[float]
    queued: list[HeldCall]
    context_tokens: float
    step_ms: float
    prefill_ms: float
    reserved: float
    promised: float
    live: list[HeldCall]


def walk(view: ReplicaView, now_s: float, tolerance_s: float) -> Walked:
    """The replica at `now_s`."""
    k, limit = view.profile.coefficients, view.profile.max_sequences
    held = [call for call in view.held if call.has_slot]
    decoding = [call for call in held if call.first_token_s is not None]
    waiting = [call for call in held if call.first_token_s is None]
    first = max(0, limit - len(decoding))
    prefilling, queued = waiting[:first], waiting[first:]
    prompts = sum(call.prompt_tokens for call in decoding)
    full_ms = k.a + k.h + k.b * len(decoding) + k.c * prompts
    made = [_made(call, full_ms / 1000, now_s) for call in decoding]
    output_left = [max(1.0, call.output_tokens - done) for call, done in zip(decoding, made, strict=True)]
    context = prompts + sum(made)
    step_ms = k.a + k.h + k.b * len(decoding) + k.c * context
    works_ms = (
        call.prompt_tokens * (k.d + k.e * call.prompt_tokens / 2) / max(1.0, call.output_tokens)
        for call in decoding
    )
    prefill_ms = min(sum(works_ms), k.d * view.profile.step_tokens)
    prompt_left = _prompts(view.profile, prefilling, len(decoding), step_ms, now_s)
    ahead = sum(call.prompt_tokens + call.output_tokens for call in waiting)
    placed = [call for call in view.held if not call.has_slot]
    pending = list(zip([*prefilling, *queued, *placed], [*prompt_left, *([None] * 99)], strict=False))
    gap_s = (step_ms + prefill_ms + k.b * len(prefilling)) / 1000
    spare = [
        (call, call.due_s - left * gap_s - now_s)
        for call, left in zip(decoding, output_left, strict=True)
        if not call.is_terminal
    ]
    spare += _pending(view.profile, pending, len(decoding), step_ms, gap_s, now_s)
    return Walked(
        decoding,
        output_left,
        prefilling,
        prompt_left,
        queued,
        context,
        step_ms,
        prefill_ms,
        context + sum(output_left) + ahead,
        prompts + sum(call.output_tokens for call in decoding) + ahead,
        [call for call, spare_s in spare if spare_s >= -tolerance_s and not call.is_hopeless],
    )


def _made(call: HeldCall, step_s: float, now_s: float) -> float:
    """Tokens so far: one with the first, one for every step since, all but one at most."""
    assert call.first_token_s is not None
    return min(1 + (now_s - call.first_token_s) / step_s, max(1.0, call.output_tokens - 1))


def _prompts(
    profile: Profile, prefilling: list[HeldCall], decoding: int, step_ms: float, now_s: float
) -> list[float]:
    k, room, free_s, found = profile.coefficients, step_room(profile, decoding), 0.0, []
    for call in prefilling:
        n = call.prompt_tokens
        start_s = max(free_s, call.dispatched_s)
        free_s = start_s + (-(-n // room) * step_ms + n * (k.d + k.e * n / 2)) / 1000
        found.append(max(min(1.0, n), n * min(1.0, (free_s - now_s) / (free_s - start_s))))
    return found


def _pending(
    profile: Profile,
    pending: list[tuple[HeldCall, float | None]],
    decoding: int,
    step_ms: float,
    gap_s: float,
    now_s: float,
) -> list[tuple[HeldCall, float]]:
    k, waited_s, found = profile.coefficients, step_ms / 2000, []
    for call, left in pending:
        n = call.prompt_tokens if left is None else left
        waited_s += n * step_ms / step_room(profile, decoding) / 1000
        waited_s += n * (k.d + k.e * (call.prompt_tokens - n / 2)) / 1000
        rest_s = 0.0 if call.is_terminal else (call.output_tokens - 1) * gap_s
        found.append((call, call.due_s - waited_s - rest_s - now_s))
    return found
