"""The desk of an emulated engine: what a call is answered, and its pieces as they go out.

Owns the way from a request to its answer, the tokens that were sent, and the counters. When they may go out is said by
`emulated_calls.py` or `emulated_paced.py`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from tightrope.adapters.emulated_answers import Answer, answer_to
from tightrope.adapters.emulated_http import Reply
from tightrope.adapters.emulated_wire import Asked, Frames, Refused
from tightrope.model.errors import InvalidInput


@dataclass(slots=True)
class Call:
    """One that was taken: its number, what is asked and answered, and how many tokens of that were sent."""

    number: int
    asked: Asked
    answer: Answer
    frames: Frames
    reply: Reply
    sent: int = 0


class Desk:
    """Takes calls and hands out their answers. `context_tokens` is what prompt and answer may have together, and a
    piece after the first has `tokens_per_chunk` tokens.
    """

    def __init__(self, *, context_tokens: int, tokens_per_chunk: int = 1, seed: int = 1) -> None:
        self.tokens_per_chunk = tokens_per_chunk
        self.seed = seed
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.answered = 0
        self._context_tokens = context_tokens
        self._number = 0

    def take(self, asked: Asked, reply: Reply) -> Call:
        """The call, numbered in the order of coming. Raises Refused when it cannot be answered."""
        answer = self._answer(asked)
        call = Call(self._number, asked, answer, Frames(self._number, asked, int(time.time())), reply)
        self._number += 1
        return call

    def tell(self, call: Call, tokens: int) -> None:
        """So many tokens of it are out."""
        if call.asked.is_streamed and tokens > call.sent:
            call.reply.write(self._pieces(call, tokens))

    def finish(self, call: Call, cached_tokens: int = 0) -> None:
        """All of it is out."""
        answer, frames = call.answer, call.frames
        reason = "length" if answer.is_cut else "stop"
        self.prompt_tokens += call.asked.prompt_tokens
        self.output_tokens += answer.tokens
        self.answered += 1
        if call.asked.is_streamed:
            rest = self._pieces(call, answer.tokens) + frames.finish(reason)
            call.reply.end(rest + frames.last(answer.tokens, cached_tokens))
        else:
            call.reply.send(200, frames.whole(answer.text, reason, answer.tokens, cached_tokens))

    def _answer(self, asked: Asked) -> Answer:
        prompt, context = asked.prompt_tokens, self._context_tokens
        limit = asked.limit_tokens or max(1, context - prompt)
        if prompt + limit > context:
            raise Refused(
                400,
                f"the maximum context length is {context} tokens, and the request asks for {prompt + limit}: "
                f"{prompt} in the prompt and {limit} in the answer; shorten one of them",
                "max_tokens" if prompt < context else "messages" if asked.is_chat else "prompt",
                "context_length_exceeded",
            )
        try:
            return answer_to(
                asked.last_message, limit, self.seed, schema=asked.schema, is_endless=asked.is_endless
            )
        except InvalidInput as error:
            field = "messages" if asked.is_chat else "prompt"
            param = "response_format" if str(error).startswith("schema") else field
            raise Refused(400, f"{param}: {error}", param) from error

    def _pieces(self, call: Call, tokens: int) -> bytes:
        """The pieces that are out and were not sent: the first token alone, then `tokens_per_chunk` in each."""
        pieces = []
        while call.sent < tokens:
            begin = call.sent
            call.sent = min(tokens, begin + self.tokens_per_chunk) if begin else 1
            text = call.answer.piece(begin, call.sent)
            pieces.append(call.frames.piece(text) if begin else call.frames.first(text))
        return b"".join(pieces)
