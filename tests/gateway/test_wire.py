"""OpenAI shapes: what a body may say, what a run gets of it, and how frames and answers are put together."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.world import HELLO, USAGE, USAGE_PIECE, chat, completion_piece, finish, piece
from tightrope.gateway.errors import ApiError
from tightrope.gateway.merge import merged
from tightrope.gateway.wire import DEEPEST, Ask, Frames, Label, answer, inputs, read
from tightrope.model.ids import RunId
from tightrope.runtime.client import Chunk, Message, RunResult

CHAT = Label("chat", "run_1", "workflow/rag", 1_700_000_000)
COMPLETION = Label("completion", "run_1", "small", 1_700_000_000)


def ask(body: object, kind: Any = "chat") -> Ask:
    return read(kind, body if isinstance(body, bytes) else json.dumps(body).encode())


def refused(body: object, kind: Any = "chat", *, as_workflow: bool | None = None) -> ApiError:
    with pytest.raises(ApiError) as found:
        _ = ask(body, kind) if as_workflow is None else inputs(ask(body, kind), as_workflow)
    return found.value


# --- requests --------------------------------------------------------------------------------------------


def test_a_chat_request_is_read_whole() -> None:
    got = ask(
        chat(
            stream=True, stream_options={"include_usage": True}, temperature=0, max_completion_tokens=7, max_tokens=9,
            stop="END", metadata={"customer_id": "c1"}, user="u", service_tier="auto",
        )
    )  # fmt: skip
    assert (got.model, got.is_streamed, got.wants_usage, got.has_tier) == ("workflow/rag", True, True, True)
    given_inputs, sampling = inputs(got, is_workflow=True)
    assert given_inputs.messages == (Message("user", "How are you?"),)
    assert given_inputs.metadata == {"customer_id": "c1"}
    assert (sampling.max_tokens, sampling.temperature, sampling.stop, sampling.extra) == (7, 0, ("END",), {})


def test_nulls_are_as_good_as_absent() -> None:
    nothing = dict.fromkeys(("stream", "stream_options", "stop", "max_tokens", "tools", "n", "priority"))
    assert ask(chat(**nothing)) == ask(chat())
    inputs(ask(chat(**nothing)), is_workflow=True)


def test_fields_a_plain_model_may_know_pass_through_as_they_came() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    got = ask(chat("small", tools=tools, n=2, top_k=40, logit_bias={"5": -1.5}, seed=2**63))
    extra = inputs(got, is_workflow=False)[1].extra
    assert {name: json.loads(text) for name, text in extra.items()} == {
        "tools": tools, "n": 2, "top_k": 40, "logit_bias": {"5": -1.5}, "seed": 2**63,
    }  # fmt: skip


def test_fields_the_gateway_owns_never_reach_an_engine() -> None:
    owned = {
        "cache_salt": "x",
        "nvext": {"agent_hints": {"priority": 9}},
        "service_tier": "default",
        "user": "u",
    }
    owned |= {"safety_identifier": "s", "prompt_cache_key": "k", "metadata": {"a": "b"}}
    assert inputs(ask(chat("small", **owned)), is_workflow=False)[1].extra == {}


def test_messages_of_a_plain_model_keep_every_field() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    body = chat(
        "small",
        messages=[
            {"role": "user", "content": image, "name": "eve"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "42", "tool_call_id": "c1"},
        ],
    )
    user, assistant, tool = inputs(ask(body), is_workflow=False)[0].messages
    assert (json.loads(user.content), user.is_json, user.further) == (image, True, {"name": '"eve"'})
    assert (assistant.content, assistant.is_json) == ("null", True)
    assert json.loads(assistant.further["tool_calls"]) == [call]
    assert tool == Message("tool", "42", further={"tool_call_id": '"c1"'})


def test_a_workflow_reads_text_parts_as_text() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    got = inputs(ask(chat(messages=[{"role": "user", "content": parts}])), is_workflow=True)[0]
    assert got.messages == (Message("user", "one\ntwo"),)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": []}, "tools"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_p": 0.5}, "top_p"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"store": True}, "store"),
        ({"anything": 1}, "anything"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]}, "messages[0]"),
    ],
)
def test_a_workflow_refuses_what_has_no_meaning_there(fields: dict[str, Any], param: str) -> None:
    error = refused(chat(**fields), as_workflow=True)
    assert (error.entry.code, error.param) == ("unsupported_parameter", param)


def test_a_workflow_takes_fields_that_say_what_it_does_anyway() -> None:
    neutral = {"n": 1, "logprobs": False, "top_p": 1.0, "store": False, "response_format": {"type": "text"}}
    inputs(ask(chat(**neutral)), is_workflow=True)


def test_a_message_without_content_is_no_question() -> None:
    assert refused(chat(messages=[{"role": "user"}]), as_workflow=True).param == "messages[0].content"


@pytest.mark.parametrize("value", [0, 5, -1, "high", {}])
def test_a_bare_priority_is_ambiguous(value: object) -> None:
    assert refused(chat("small", priority=value)).entry.code == "ambiguous_priority"


@pytest.mark.parametrize("tier", ["flex", "priority", "fast", ""])
def test_tiers_that_nobody_granted_are_refused(tier: str) -> None:
    error = refused(chat(service_tier=tier))
    assert (error.entry.code, error.param) == ("unsupported_parameter", "service_tier")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": 3}, "model"),
        ({"model": "m" * 257}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": 2**40}, "max_completion_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"metadata": {"a": 1}}, "metadata[...]"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(fields: dict[str, Any], param: str) -> None:
    error = refused(chat(**fields))
    assert (error.entry.code, error.param) == ("invalid_request", param)


def test_a_missing_field_is_named() -> None:
    assert refused({"model": "small"}).param == "messages"


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"null", b"[]", b'"x"', b"{", b"{}", b'{"model": }', b"\xff\xfe", b"\xef\xbb\xbf{}",
        b'{"model":"small","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"small","messages":[{"role":"user","content":"\\ud800\\u0041"}]}',
        b'{"model":"small","messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
        b'{"model":"small","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        b'{"model":"small","messages":[{"role":"user","content":"x"}],"x":Infinity}',
        b'{"model":"small","messages":[{"role":"user","content":"x"}],"x":1e999}',
        b'{"model":"small","messages":[{"role":"user","content":"x"}],"x":' + b"9" * 5000 + b"}",
        b'{"model":"small","model":"big","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"small","messages":[{"role":"user","role":"system","content":"x"}]}',
        b'{"model":"small","messages":[{"role":"user","content":"x"}],"x":{"a":1,"a":1}}',
        b'{"model":"small","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model":"small","messages":[{"role":"user","content":"x"}],"x":' + b'{"a":' * 900 + b"1" + b"}" * 901,
        b'{"model":"small","messages":[{"role":"user","content":"x"}],}',
        b"{'model':'small'}",
        b'{"model":"small" /* comment */}',
    ],
)  # fmt: skip
def test_text_that_is_not_strict_json_is_refused(body: bytes) -> None:
    error = refused(body)
    assert error.entry.status == 400
    error.message.encode()


def test_nesting_is_legal_up_to_the_bound() -> None:
    def nested(depth: int) -> dict[str, Any]:
        value: object = 1
        for _ in range(depth - 1):
            value = [value]
        return chat("small", x=value)

    inputs(ask(nested(DEEPEST)), is_workflow=False)
    assert "nested" in refused(nested(DEEPEST + 1)).message


def test_brackets_in_text_are_not_depth() -> None:
    ask(chat(messages=[{"role": "user", "content": "[" * 1000 + "{" * 1000}]))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
known_names = st.sampled_from(
    [*Ask.__slots__, "model", "messages", "stream", "stop", "tools", "n", "stream_options"]
)


@given(
    st.dictionaries(known_names | st.text(max_size=4), json_values, max_size=6), st.booleans(), st.booleans()
)
def test_any_object_is_read_or_refused_and_nothing_else(
    fields: dict[str, Any], is_workflow: bool, is_chat: bool
) -> None:
    body = json.dumps({**(chat() if is_chat else {"model": "m", "prompt": "x"}), **fields}).encode()
    status = 200
    try:
        inputs(read("chat" if is_chat else "completion", body), is_workflow)
    except ApiError as error:
        status = error.entry.status
        error.message.encode()
    assert status in (200, 400)


def test_a_completion_takes_one_text() -> None:
    assert inputs(ask({"model": "small", "prompt": "Once"}, "completion"), False)[0].prompt == "Once"
    assert inputs(ask({"model": "small", "prompt": ["Once"]}, "completion"), False)[0].prompt == "Once"
    for prompt in (["a", "b"], [], [1, 2], [[1]]):
        error = refused({"model": "small", "prompt": prompt}, "completion")
        assert (error.entry.code, error.param) == ("unsupported_parameter", "prompt")


# --- frames ----------------------------------------------------------------------------------------------


def frames(label: Label = CHAT, *, wants_usage: bool = False, is_workflow: bool = True) -> Frames:
    return Frames(label, wants_usage=wants_usage, is_workflow=is_workflow)


def events(data: bytes) -> list[Any]:
    """The events of a stream as a client reads them; [DONE] stays a word."""
    assert data.endswith(b"\n\n")
    lines = [block.removeprefix(b"data: ") for block in data.removesuffix(b"\n\n").split(b"\n\n")]
    assert not any(b"\n" in line for line in lines)
    return [line.decode() if line == b"[DONE]" else json.loads(line) for line in lines]


def test_engine_pieces_are_spliced_byte_for_byte() -> None:
    made = frames()
    sent = b"".join(made.of(chunk) for chunk in HELLO)
    for chunk in HELLO[:-1]:
        assert b'"choices":' + chunk.choices + b"}\n\n" in sent
    assert [event["choices"] for event in events(sent)] == [json.loads(chunk.choices) for chunk in HELLO[:-1]]


def test_every_chunk_says_what_it_belongs_to() -> None:
    made = frames()
    sent = b"".join(made.of(chunk) for chunk in HELLO) + made.closing(USAGE)
    *chunks, done = events(sent)
    assert done == "[DONE]"
    assert {(c["id"], c["object"], c["created"], c["model"]) for c in chunks} == {
        ("chatcmpl-run_1", "chat.completion.chunk", 1_700_000_000, "workflow/rag")
    }
    assert not any("usage" in chunk for chunk in chunks)


def test_the_first_chunk_says_the_role_even_if_the_engine_does_not() -> None:
    made = frames()
    first, second = events(made.of(piece({"content": "Hi"})))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert second["choices"][0]["delta"] == {"content": "Hi"}
    assert len(events(made.of(piece({"content": "!"})))) == 1


def test_usage_stands_in_the_last_chunk_and_is_null_in_the_others() -> None:
    made = frames(wants_usage=True)
    *chunks, last, done = events(b"".join(made.of(chunk) for chunk in HELLO) + made.closing(USAGE))
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], done) == ([], "[DONE]")
    assert last["usage"] == {
        "prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25, "prompt_tokens_details": {"cached_tokens": 4},
    }  # fmt: skip


def test_an_answer_without_a_reason_to_end_is_given_one() -> None:
    made = frames()
    made.of(piece({"content": "x"}))
    end, done = events(made.closing(USAGE))
    assert (end["choices"][0]["finish_reason"], done) == ("stop", "[DONE]")


def test_an_empty_answer_is_still_an_answer() -> None:
    role, end, done = events(frames().closing(USAGE))
    assert role["choices"][0]["delta"]["role"] == "assistant"
    assert (end["choices"][0]["finish_reason"], done) == ("stop", "[DONE]")


def test_line_feeds_in_the_layout_of_an_engine_do_not_end_an_event() -> None:
    spread = Chunk(
        "a\nb", json.dumps([{"delta": {"role": "assistant", "content": "a\nb"}}], indent=1).encode(), True
    )
    (event,) = events(frames().of(spread))
    assert event["choices"][0]["delta"]["content"] == "a\nb"


def test_a_broken_stream_ends_with_one_error_and_no_done() -> None:
    (event,) = events(frames().failed(ApiError("replica_lost", "replica big-3"), USAGE))
    assert event["error"]["code"] == "replica_lost"
    assert event["error"]["usage"] == {"prompt_tokens": 20, "completion_tokens": 5}


def test_a_workflow_answers_completions_in_their_shape() -> None:
    made = frames(Label("completion", "run_1", "workflow/rag", 1))
    sent = b"".join(made.of(chunk) for chunk in HELLO) + made.closing(USAGE)
    *chunks, done = events(sent)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello"
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert (chunks[-1]["choices"][0]["finish_reason"], done) == ("stop", "[DONE]")


def test_a_plain_model_answers_completions_as_the_engine_does() -> None:
    made = frames(COMPLETION, is_workflow=False)
    chunk = completion_piece("Once", "length")
    (event,) = events(made.of(chunk))
    assert event["choices"] == json.loads(chunk.choices)
    assert events(made.closing(USAGE)) == ["[DONE]"]


# --- whole answers ---------------------------------------------------------------------------------------


def whole(pieces: tuple[Chunk, ...], label: Label = CHAT, *, is_workflow: bool = False) -> Any:
    text = "".join(chunk.text for chunk in pieces)
    return json.loads(answer(label, RunResult(RunId("run_1"), text, "stop", pieces, finish()), is_workflow))


def test_a_whole_chat_answer() -> None:
    for is_workflow in (True, False):
        got = whole(HELLO, is_workflow=is_workflow)
        assert (got["id"], got["object"], got["model"]) == (
            "chatcmpl-run_1",
            "chat.completion",
            "workflow/rag",
        )
        (choice,) = got["choices"]
        assert choice["message"] == {"role": "assistant", "content": "Hello"}
        assert (choice["index"], choice["finish_reason"]) == (0, "stop")
        assert got["usage"]["total_tokens"] == 25


def test_a_whole_completion() -> None:
    for label, pieces, is_workflow in (
        (COMPLETION, (completion_piece("Hel"), completion_piece("lo"), completion_piece("", "stop")), False),
        (COMPLETION, HELLO, True),
    ):
        got = whole(pieces, label, is_workflow=is_workflow)
        assert (got["object"], got["choices"][0]["text"], got["choices"][0]["finish_reason"]) == (
            "text_completion", "Hello", "stop",
        )  # fmt: skip


def test_tool_calls_are_put_together_by_index() -> None:
    pieces = (
        piece({"role": "assistant", "content": None}),
        piece(
            {
                "tool_calls": [
                    {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
                ]
            }
        ),
        piece({"tool_calls": [{"index": 0, "function": {"arguments": '{"x"'}}]}),
        piece(
            {
                "tool_calls": [
                    {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}}
                ]
            }
        ),
        piece({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}),
        piece({}, "tool_calls"),
    )
    (choice,) = merged(pieces)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant", "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }  # fmt: skip


def test_choices_and_log_probabilities_are_kept_apart() -> None:
    def part(index: int, text: str) -> Chunk:
        choice = {"index": index, "delta": {"content": text}, "logprobs": {"content": [{"token": text}]}}
        return Chunk(text, json.dumps([choice]).encode(), True)

    second, first = merged((part(1, "b"), part(0, "a"), part(1, "d"), part(0, "c")))[::-1]
    assert [choice["message"]["content"] for choice in (first, second)] == ["ac", "bd"]
    assert first["logprobs"] == {"content": [{"token": "a"}, {"token": "c"}]}


def test_an_answer_without_pieces_still_has_a_choice() -> None:
    assert merged((USAGE_PIECE,)) == []
    assert whole((USAGE_PIECE,))["choices"][0]["message"] == {"role": "assistant", "content": ""}
