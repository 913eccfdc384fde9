"""An engine as naive as can be: one step at a time, everything counted anew. What the real one is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tightrope.model.ids import CallId
from tightrope.model.profile import Profile
from tightrope.sim.engine import Request


@dataclass(frozen=True, slots=True)
class Submit:
    """The request arrives."""

    at_s: float
    request: Request


@dataclass(frozen=True, slots=True)
class Cancel:
    """The call is given up."""

    at_s: float
    call: CallId


@dataclass(frozen=True, slots=True)
class Slow:
    """Steps take `factor` times as long from here."""

    at_s: float
    factor: float


Act = Submit | Cancel | Slow


@dataclass(slots=True, eq=False)
class _Held:
    request: Request
    done: int = 0
    generated: int = 0
    is_decoding: bool = False
    chunk: int = 0

    @property
    def target(self) -> int:
        return self.request.prompt_tokens + self.generated


def play_plainly(
    profile: Profile, acts: Sequence[Act], *, is_ahead: bool = False
) -> tuple[dict[CallId, float], dict[CallId, float]]:
    """When each call's first and last token come. Acts are in order of time; no noise, no prefix cache."""
    plain = _Plain(profile, is_ahead)
    rest = list(acts)
    while rest or plain.has_work:
        if not plain.has_work:
            plain.now_s = rest[0].at_s
        while rest and rest[0].at_s <= plain.now_s:
            plain.take(rest.pop(0))
        if plain.has_work:
            end_s = plain.now_s + plain.compose_s()
            while rest and rest[0].at_s < end_s:
                plain.take(rest.pop(0))
            plain.finish(end_s)
    return plain.first_s, plain.last_s


class _Plain:
    def __init__(self, profile: Profile, is_ahead: bool) -> None:
        self.profile, self.is_ahead = profile, is_ahead
        self.now_s, self.factor = 0.0, 1.0
        self.arrived: list[_Held] = []
        self.waiting: list[_Held] = []
        self.running: list[_Held] = []
        self.ended: list[_Held] = []
        self.first_s: dict[CallId, float] = {}
        self.last_s: dict[CallId, float] = {}

    @property
    def has_work(self) -> bool:
        return bool(self.arrived or self.waiting or self.running)

    def take(self, act: Act) -> None:
        match act:
            case Submit(request=request):
                self.arrived.append(_Held(request))
            case Cancel(call=call):
                for held in (self.arrived, self.waiting, self.running):
                    held[:] = [one for one in held if one.request.call != call]
            case Slow(factor=factor):
                self.factor = factor

    def held_tokens(self) -> int:
        return sum(one.target for one in self.running) + sum(one.target - 1 for one in self.ended)

    def learn(self) -> None:
        self.waiting += self.arrived
        self.arrived, self.ended = [], []

    def compose_s(self) -> float:
        if self.is_ahead:
            self.fill()
            self.learn()
            if not self.running:
                self.fill()
        else:
            self.learn()
            self.fill()
        decoding = [one for one in self.running if one.is_decoding]
        parts = [(one.chunk, one.done) for one in self.running if one.chunk]
        step_ms = self.profile.coefficients.step_ms(
            len(decoding),
            sum(one.target for one in decoding),
            sum(chunk for chunk, _ in parts),
            sum(chunk * (done + chunk / 2) for chunk, done in parts),
        )
        return self.factor * step_ms / 1000

    def fill(self) -> None:
        limit = self.profile.kv_tokens
        can_start = True
        while self.held_tokens() > limit:
            put_out = self.running.pop()
            put_out.is_decoding, put_out.done = False, 0
            self.waiting.insert(0, put_out)
            can_start = False
        room = max(1, self.profile.step_tokens - sum(one.is_decoding for one in self.running))
        for one in self.running:
            one.chunk = 0 if one.is_decoding else min(room, one.target - one.done)
            room -= one.chunk
        while can_start and room and self.waiting:
            seats = self.profile.max_sequences - len(self.running) - len(self.ended)
            if seats < 1 or self.held_tokens() + self.waiting[0].target > limit:
                return
            one = self.waiting.pop(0)
            one.chunk = min(room, one.target)
            room -= one.chunk
            self.running.append(one)

    def finish(self, at_s: float) -> None:
        self.now_s = at_s
        for one in list(self.running):
            one.done += one.chunk
            if not one.is_decoding and one.done < one.target:
                continue
            one.is_decoding = True
            one.chunk = 0
            one.generated += 1
            if one.generated == 1:
                self.first_s[one.request.call] = at_s
            if one.generated == one.request.output_tokens:
                self.last_s[one.request.call] = at_s
                self.running.remove(one)
                if self.is_ahead:
                    self.ended.append(one)
