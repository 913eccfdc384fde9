"""Engines that are killed, hang or talk nonsense, and clients that ask too much or leave."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest

from tests.chaos.served import LIMIT_S, EngineProcess, Served, content_of, until
from tightrope.kernel.journal import replay


@pytest.fixture(autouse=True)
def healthy(served: Served) -> Iterator[None]:
    """Each test finds and leaves two replicas that answer well."""
    served.until_ready(2)
    yield
    served.until_ready(2)
    for engine in served.engines():
        engine.heal()
    until(lambda: is_idle(served))


def is_idle(served: Served) -> bool:
    """Whether every run has ended and no engine works any more."""
    return served.runs_begun() == served.runs_ended() and all(
        not engine.busy() for engine in served.engines()
    )


def is_broken_off(events: list[str]) -> dict[str, object]:
    """The one error with which a stream ended."""
    errors = [json.loads(event)["error"] for event in events if '"error"' in event]
    assert len(errors) == 1, events
    assert "[DONE]" not in events
    error: dict[str, object] = errors[0]
    return error


def busy_engine(served: Served) -> EngineProcess:
    """The engine that has a request, once one has."""
    found: list[EngineProcess] = []

    def look() -> bool:
        found[:] = [engine for engine in served.engines() if engine.busy()]
        return bool(found)

    until(look)
    return found[0]


def test_an_engine_killed_in_the_middle_of_a_stream_ends_it_with_one_error(served: Served) -> None:
    for engine in served.engines():
        engine.fault("stall", after_pieces=3)
    with served.stream() as events:
        seen = [next(events) for _ in range(4)]
        killed = busy_engine(served)
        killed.kill()
        seen += list(events)
    assert len(content_of(seen[:4]).split()) >= 2
    assert is_broken_off(seen)["code"] == "replica_lost"
    for engine in served.engines():
        engine.heal()
    assert served.ask().status_code == 200
    until(lambda: killed not in served.engines())


def test_an_engine_killed_before_its_first_byte_is_not_noticed(served: Served) -> None:
    engines = served.engines()
    expected = content(served.ask("tell me"))
    for engine in engines:
        engine.fault("stall")
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(served.ask("tell me")))
    asking.start()
    killed = busy_engine(served)
    (other,) = [engine for engine in engines if engine != killed]
    other.heal()
    killed.kill()
    asking.join(LIMIT_S)
    assert [content(answer) for answer in answers] == [expected]
    until(lambda: killed not in served.engines())
    assert other in served.engines()


def content(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def test_an_engine_that_answers_with_an_error_ends_in_one_clear_status(served: Served) -> None:
    for engine in served.engines():
        engine.fault("status", status=500, message="out of memory")
    answer = served.ask()
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "engine_error"


@pytest.mark.parametrize("kind", ["malformed", "error", "unfinished", "drop"])
def test_a_stream_that_goes_wrong_after_its_first_content_ends_with_one_error(
    served: Served, kind: str
) -> None:
    for engine in served.engines():
        engine.fault(kind, after_pieces=2)
    with served.stream() as events:
        seen = list(events)
    assert content_of([event for event in seen if '"error"' not in event])
    is_broken_off(seen)


def test_a_client_that_leaves_frees_the_engine(served: Served) -> None:
    for engine in served.engines():
        engine.fault("stall", after_pieces=2)
    with served.stream() as events:
        next(events)
        busy_engine(served)
    until(lambda: is_idle(served))


def test_a_client_that_leaves_before_its_first_byte_frees_the_engine(served: Served) -> None:
    for engine in served.engines():
        engine.fault("stall")
    before = served.runs_begun()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{served.root}/v1/chat/completions",
            json={"model": "small", "messages": [{"role": "user", "content": "x"}]},
            timeout=httpx.Timeout(LIMIT_S, read=0.3),
        )
    until(lambda: served.runs_begun() > before and is_idle(served))


def test_many_clients_that_leave_at_once_leave_nothing_behind(served: Served) -> None:
    for engine in served.engines():
        engine.fault("slow", delay_ms=20.0)
    before = served.runs_ended()
    body = json.dumps({"model": "small", "messages": [{"role": "user", "content": "x"}], "stream": True})
    fields = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    head = f"POST /v1/chat/completions HTTP/1.1\r\n{fields}\r\n"
    host, port = served.root.removeprefix("http://").split(":")

    def leave(number: int) -> None:
        with socket.create_connection((host, int(port)), timeout=LIMIT_S) as client:
            client.sendall((head + body).encode())
            if number % 2:
                client.recv(10)

    leaving = [threading.Thread(target=leave, args=(number,)) for number in range(40)]
    for thread in leaving:
        thread.start()
    for thread in leaving:
        thread.join()
    until(lambda: served.runs_ended() - before == len(leaving) and is_idle(served))
    assert served.ask().status_code == 200


def test_an_unknown_model_is_not_found(served: Served) -> None:
    answer = served.ask(model="nothing")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("word", ["x", "word "])
def test_a_prompt_of_a_megabyte_is_answered_with_a_clear_status(served: Served, word: str) -> None:
    answer = served.ask(word * (2**20 // len(word)))
    if word == "x":  # one word is one token here, and fits
        assert answer.status_code == 200
    else:
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_too_long"


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(served: Served) -> None:
    fields = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {9 * 2**20}\r\n"
    host, port = served.root.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=LIMIT_S) as client:
        client.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{fields}\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_at_the_end_the_whole_journal_replays_to_the_same_commands(served: Served) -> None:
    until(lambda: is_idle(served))
    # Looked at again and again: a turn may be on its way to the disk. A wrong decision stays in the journal.
    until(lambda: replay(served.journal_lines()) is None)
