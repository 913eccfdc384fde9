"""
The emulated engine, byte by byte, on a clock that is moved by hand
1. Tokens are written at the moments of the simulated engine, times the scale, in chunks of the size asked for.
2. A client that leaves frees what its call held, running, waiting or held by a hanging engine.
3. Faults do what they say: slow, hang and resume, crash; from this machine only.
4. Bad input is refused in OpenAI's shape and names the field; the connection goes on.
5. Until it has started up, it answers 503.
6. Requests on one connection are answered in order, also when they come all at once or in pieces.
"""

from __future__ import annotations

import asyncio
import heapq
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tightrope.adapters.emulated_http import BODY_LIMIT_BYTES, Connection
from tightrope.adapters.emulated_truth import Setting, read_truth
from tightrope.adapters.engine_emulated import EmulatedEngine
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import AcceleratorName, CallId, ModelName
from tightrope.model.profile import Coefficients, Profile
from tightrope.sim.engine import Request, SimEngine, Truth

PROFILE = Profile(
    ModelName("m"),
    AcceleratorName("card"),
    Coefficients(a=10.0, b=0.5, c=0.01, d=0.1, e=0.0),
    step_tokens=512,
    max_sequences=2,
    kv_tokens=1000,
)


@dataclass(order=True)
class Timer:
    at_s: float
    number: int
    ring: Callable[[], None] = field(compare=False)
    is_cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.is_cancelled = True


class HandClock:
    """Time that passes when it is told to, with timers."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._timers: list[Timer] = []

    def __call__(self) -> float:
        return self.now_s

    def later(self, delay_s: float, ring: Callable[[], None]) -> Timer:
        timer = Timer(self.now_s + delay_s, len(self._timers), ring)
        heapq.heappush(self._timers, timer)
        return timer

    def move(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self._timers and self._timers[0].at_s <= end_s:
            timer = heapq.heappop(self._timers)
            if not timer.is_cancelled:
                self.now_s = max(self.now_s, timer.at_s)
                timer.ring()
        self.now_s = end_s


class Wire(asyncio.Transport):
    """A client's end: what was written to it, and when."""

    def __init__(self, connection: Connection, clock: HandClock, peer: str) -> None:
        super().__init__({"peername": (peer, 1)})
        self.written: list[tuple[float, bytes]] = []
        self.is_closed = False
        self._connection, self._clock = connection, clock
        connection.connection_made(self)

    def write(self, data: object) -> None:
        assert isinstance(data, bytes)
        self.written.append((self._clock.now_s, data))

    def close(self) -> None:
        self.is_closed = True

    def leave(self) -> None:
        self._connection.connection_lost(None)

    def send(self, data: bytes) -> None:
        self._connection.data_received(data)

    @property
    def text(self) -> str:
        return b"".join(data for _, data in self.written).decode()

    def contents(self) -> list[tuple[float, str]]:
        """The text of each event of a stream, and when it came."""
        found = []
        for at_s, data in self.written:
            for line in data.decode().splitlines():
                if line.startswith("data: {"):
                    choices = json.loads(line.removeprefix("data: "))["choices"]
                    found += [(at_s, choices[0]["delta"]["content"])] if choices else []
        return [(at_s, text) for at_s, text in found if text]


@dataclass
class World:
    """An engine with its clock; `crashes` counts what would have ended the process."""

    clock: HandClock
    engine: EmulatedEngine
    crashes: list[None]

    def client(self, peer: str = "127.0.0.1") -> Wire:
        return Wire(self.engine.connection(), self.clock, peer)

    def ask(self, path: str, body: object = None, peer: str = "127.0.0.1") -> Wire:
        wire = self.client(peer)
        wire.send(request("GET" if body is None else "POST", path, body or ""))
        return wire

    def stream(self, prompt_tokens: int, output_tokens: int) -> Wire:
        said = f'<emulate tokens="{output_tokens}"/>'.ljust(4 * prompt_tokens, "x")
        messages = [{"role": "user", "content": said}]
        return self.ask("/v1/chat/completions", {"model": "m", "stream": True, "messages": messages})

    def gauges(self) -> tuple[int, int]:
        """Calls that run and calls that wait."""
        lines = self.ask("/metrics").text.splitlines()
        running, waiting = [line.rpartition(" ")[2] for line in lines if line.startswith("vllm:num_requests")]
        return int(running), int(waiting)


def world(setting: Setting = Setting("m", Truth(PROFILE))) -> World:  # noqa: B008 (it is frozen)
    clock, crashes = HandClock(), list[None]()
    engine = EmulatedEngine(setting, clock=clock, later=clock.later, crash=lambda: crashes.append(None))
    return World(clock, engine, crashes)


def request(method: str, path: str, body: object, version: str = "1.1") -> bytes:
    data = body if isinstance(body, str) else json.dumps(body)
    return f"{method} {path} HTTP/{version}\r\nhost: m\r\ncontent-length: {len(data)}\r\n\r\n{data}".encode()


def body_of(wire: Wire) -> dict[str, object]:
    body: dict[str, object] = json.loads(wire.text.rpartition("\r\n\r\n")[2])
    return body


# --- 1 ---------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(10, 200), st.integers(1, 40)), min_size=1, max_size=6),
    st.integers(1, 4),
    st.sampled_from([1.0, 2.5]),
)
def test_1_tokens_are_written_when_they_are_simulated(
    asked: list[tuple[float, int, int]], stride: int, scale: float
) -> None:
    asked = sorted(asked)
    setting = Setting("m", Truth(PROFILE), time_scale=scale, tokens_per_chunk=stride)
    tried = world(setting)
    began_s = tried.clock.now_s
    engine = SimEngine(setting.scaled, Random(1), now_s=0.0)
    assert setting.scaled.profile.coefficients == PROFILE.coefficients.scaled(scale)
    wires, first_last_s = [], dict[tuple[str, str], float]()

    def note(until_s: float) -> None:
        for out in engine.advance(until_s):
            first_last_s[out.call, type(out).__name__] = out.at_s

    for number, (at_s, prompt, output) in enumerate(asked):
        tried.clock.move(began_s + at_s - tried.clock.now_s)
        own_s = tried.clock.now_s - began_s
        note(own_s)
        engine.submit(Request(CallId(str(number)), prompt, output), own_s)
        wires.append(tried.stream(prompt, output))
    tried.clock.move(1000.0)
    note(1000.0)
    for number, (wire, (_, _, output)) in enumerate(zip(wires, asked, strict=True)):
        contents = wire.contents()
        assert contents[0][0] - began_s == pytest.approx(first_last_s[str(number), "FirstOut"])
        assert contents[-1][0] - began_s == pytest.approx(first_last_s[str(number), "LastOut"])
        assert len("".join(text for _, text in contents)) == 4 * output
        assert [len(text) // 4 for _, text in contents[1:-1]] == [stride] * (len(contents) - 2)
        assert wire.text.endswith("data: [DONE]\n\n\r\n0\r\n\r\n")


def test_1_an_answer_without_stream_comes_whole_at_its_end() -> None:
    tried = world()
    wire = tried.ask("/v1/completions", {"model": "m", "prompt": "<emulate tokens='3' text='one two'/>"})
    assert wire.written == []
    tried.clock.move(60)
    answer = body_of(wire)
    assert answer["choices"] == [{"index": 0, "text": "one two", "logprobs": None, "finish_reason": "stop"}]
    usage = answer["usage"]
    assert isinstance(usage, dict)
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (9, 3, 12)
    # A step with 9 prompt tokens, then two that decode over 10 and 11.
    expected_ms = (10 + 0.9) + (10 + 0.5 + 0.10) + (10 + 0.5 + 0.11)
    assert wire.written[0][0] == pytest.approx(100 + expected_ms / 1000)


def test_1_a_prefix_that_is_in_memory_is_not_computed_again() -> None:
    tried = world(Setting("m", Truth(PROFILE, block_tokens=16)))
    cached = []
    for _ in range(2):
        wire = tried.ask("/v1/completions", {"model": "m", "prompt": "sea " * 100, "max_tokens": 1})
        tried.clock.move(60)
        usage = body_of(wire)["usage"]
        assert isinstance(usage, dict)
        cached.append(usage["prompt_tokens_details"]["cached_tokens"])
    assert cached == [0, 96]


# --- 2 ---------------------------------------------------------------------------------------------------


def test_2_who_leaves_frees_what_was_held() -> None:
    tried = world()
    wires = [tried.stream(100, 50) for _ in range(3)]
    tried.clock.move(0.1)
    assert tried.gauges() == (2, 1)
    wires[0].leave()
    tried.clock.move(0.1)
    assert tried.gauges() == (2, 0)
    for wire in wires[1:]:
        wire.leave()
    tried.clock.move(0.1)
    assert tried.gauges() == (0, 0)


def test_2_who_leaves_a_hanging_engine_is_forgotten() -> None:
    tried = world()
    running = tried.stream(100, 50)
    tried.clock.move(0.1)
    tried.ask("/emulated/hang", "")
    held = tried.stream(100, 50)
    assert tried.gauges() == (1, 1)
    held.leave()
    running.leave()
    tried.ask("/emulated/resume", "")
    tried.clock.move(0.1)
    assert tried.gauges() == (0, 0)


# --- 3 ---------------------------------------------------------------------------------------------------


def test_3_slow_makes_steps_longer_until_it_resumes() -> None:
    tried = world(Setting("m", Truth(PROFILE), tokens_per_chunk=1))
    wire = tried.stream(100, 90)
    tried.clock.move(0.2)
    assert json.loads(tried.ask("/emulated/slow", {"factor": 3}).text.rpartition("\r\n")[2]) == {
        "factor": 3.0
    }
    tried.clock.move(1.0)
    tried.ask("/emulated/resume", "")
    tried.clock.move(60)
    gaps_s = [
        later - sooner for (sooner, _), (later, _) in zip(wire.contents(), wire.contents()[1:], strict=False)
    ]
    k = PROFILE.coefficients
    plain_s = [k.step_ms(1, 100 + token) / 1000 for token in range(1, 90)]
    factors = [gap_s / step_s for gap_s, step_s in zip(gaps_s, plain_s, strict=True)]
    assert [factor for factor, _ in groupby(round(factor, 6) for factor in factors)] == [1.0, 3.0, 1.0]


def test_3_a_hanging_engine_is_silent_and_goes_on_where_it_was() -> None:
    tried = world()
    wire = tried.stream(100, 50)
    tried.clock.move(0.3)
    before = wire.contents()
    tried.ask("/emulated/hang", "")
    late = tried.stream(100, 5)
    tried.clock.move(1000)
    assert wire.contents() == before
    assert late.written == []
    assert "200 OK" in tried.ask("/health").text
    tried.ask("/emulated/resume", "")
    tried.clock.move(60)
    assert len(wire.contents()) == 50
    assert len(late.contents()) == 5
    assert all(at_s > 1100 for at_s, _ in late.contents())


def test_3_a_crash_ends_the_process_and_nothing_is_answered() -> None:
    tried = world()
    assert tried.ask("/emulated/crash", "").written == []
    assert tried.crashes == [None]


@pytest.mark.parametrize("fault", ["slow", "hang", "resume", "crash"])
def test_3_faults_come_from_this_machine_only(fault: str) -> None:
    tried = world()
    assert "403 Forbidden" in tried.ask(f"/emulated/{fault}", {"factor": 2}, peer="10.0.0.7").text
    assert tried.crashes == []
    assert "200 OK" in tried.ask("/v1/models", peer="10.0.0.7").text


# --- 4 ---------------------------------------------------------------------------------------------------

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (CHAT, {"messages": HELLO}, 400, "model"),
        (CHAT, {"model": "other", "messages": HELLO}, 404, "model"),
        (CHAT, {"model": "m"}, 400, "messages"),
        (CHAT, {"model": "m", "messages": []}, 400, "messages"),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": 7}]}, 400, "messages[0].content"),
        (CHAT, {"model": "m", "messages": [{"content": "x"}]}, 400, "messages[0].role"),
        (CHAT, {"model": "m", "messages": HELLO, "max_tokens": 0}, 400, "max_tokens"),
        (CHAT, {"model": "m", "messages": HELLO, "max_tokens": 5000}, 400, "max_tokens"),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": "x" * 5000}]}, 400, "messages"),
        (CHAT, {"model": "m", "messages": HELLO, "n": 2}, 400, "n"),
        (CHAT, {"model": "m", "messages": HELLO, "logprobs": True}, 400, "logprobs"),
        (CHAT, {"model": "m", "messages": HELLO, "tool_choice": "required"}, 400, "tool_choice"),
        (CHAT, {"model": "m", "messages": HELLO, "response_format": {"type": "yaml"}}, 400, "response_format"),
        (
            CHAT,
            {
                "model": "m",
                "messages": HELLO,
                "response_format": {"type": "json_schema", "json_schema": {"schema": {"pattern": "x"}}},
            },
            400,
            "response_format",
        ),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": "<emulate/ >"}]}, 400, "messages"),
        (CHAT, "{no json", 400, None),
        (COMPLETION, {"model": "m"}, 400, "prompt"),
        (COMPLETION, {"model": "m", "prompt": ["one", "two"]}, 400, "prompt"),
        (COMPLETION, {"model": "m", "prompt": "x", "echo": True}, 400, "echo"),
        (COMPLETION, {"model": "m", "prompt": "x", "stream": "yes"}, 400, "stream"),
        ("/tokenize", {}, 400, "prompt"),
        ("/emulated/slow", {"factor": 0}, 400, "factor"),
        ("/emulated/slow", {}, 400, "factor"),
        ("/v1/embeddings", {}, 404, None),
        ("/health", {}, 405, None),
    ],
    ids=str,
)  # fmt: skip
def test_4_bad_input_names_its_field(path: str, body: object, status: int, param: str | None) -> None:
    tried = world()
    wire = tried.client()
    for _ in range(2):
        wire.send(request("POST", path, body))
    error = body_of(wire)["error"]
    assert isinstance(error, dict)
    assert wire.text.count(f"HTTP/1.1 {status} ") == 2
    assert error["param"] == param
    assert error["message"]
    assert not wire.is_closed
    assert tried.gauges() == (0, 0)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"no http at all\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", 400),
        (request("POST", CHAT, "x" * (BODY_LIMIT_BYTES + 1)), 413),
    ],
    ids=["no-http", "upgrade", "too-large"],
)
def test_4_what_is_no_request_ends_the_connection(sent: bytes, status: int) -> None:
    wire = world().client()
    wire.send(sent)
    assert wire.text.startswith(f"HTTP/1.1 {status} ")
    assert wire.is_closed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"profile": {"kv_tokens": 1}}, "kv_tokens is 1"),
        ({"profile": {"coefficients": {"a": -1.0}}}, "coefficient a is -1.0"),
        ({"profile": {"coefficients": {"a": 0.0, "b": 0.0}}}, "a and h are both 0, and so is b or d"),
        ({"profile": {"max_sequences": 0}}, "max_sequences is 0"),
        ({"profile": {"step_tokens": "many"}}, "step_tokens"),
        ({"noise": -0.1}, "cannot be negative"),
    ],
    ids=str,
)
def test_4_a_truth_that_cannot_be_is_refused(change: dict[str, object], says: str, tmp_path: Path) -> None:
    def merged(old: dict[str, object], new: dict[str, object]) -> dict[str, object]:
        return old | {
            key: merged(old[key], value) if isinstance(value, dict) else value  # type: ignore[arg-type]
            for key, value in new.items()
        }

    truth = msgspec.to_builtins(Truth(PROFILE))
    file = tmp_path / "truth.json"
    file.write_bytes(msgspec.json.encode(truth))
    assert read_truth(str(file)) == read_truth(json.dumps(truth)) == Truth(PROFILE)
    with pytest.raises(InvalidInput, match=says):
        read_truth(json.dumps(merged(truth, change)))


def test_4_a_truth_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        read_truth("nowhere.json")


# --- 5 and 6 ---------------------------------------------------------------------------------------------


def test_5_it_answers_once_it_has_started_up() -> None:
    tried = world(Setting("m", Truth(PROFILE), start_s=10, time_scale=2))
    tried.clock.move(19.9)
    for path in ("/health", "/v1/models"):
        assert "503 Service Unavailable" in tried.ask(path).text
    tried.clock.move(0.1)
    assert "200 OK" in tried.ask("/health").text


def test_6_requests_on_one_connection_are_answered_in_order() -> None:
    asked = [
        request("POST", COMPLETION, {"model": "m", "prompt": f"<emulate tokens='{tokens}' text='{tokens}'/>"})
        for tokens in (30, 2)
    ]
    for cut in (1, 7, 10_000):
        tried, whole = (
            world(),
            b"".join([*asked, request("GET", "/health", ""), request("GET", "/props", "")]),
        )
        wire = tried.client()
        for at in range(0, len(whole), cut):
            wire.send(whole[at : at + cut])
        assert wire.written == []
        tried.clock.move(60)
        assert [part[:6] for part in wire.text.split("HTTP/1.1 ")[1:]] == ["200 OK"] * 4
        assert wire.text.index('"30"') < wire.text.index('"2"') < wire.text.index('"ok"')
        assert not wire.is_closed


def test_6_a_client_that_wants_no_further_answer_is_let_go() -> None:
    wire = world().client()
    wire.send(b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n")
    assert wire.is_closed
    assert "connection: close" in wire.text
