"""Figures of `bench overhead`, and its client against a server that answers byte by byte as it is told.

1. Added times are percentile by percentile those of the system less those without any; direct has none.
2. Processor time per chunk is of all rounds together, and vllm-router's own is the unit.
3. A system that was not measured is named with its reason, a call that failed with its own.
4. The client counts pieces with text alone, however they are cut, and keeps connections.
5. Every second round goes backwards.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

import pytest

from tightrope.bench.overhead import (
    Counted,
    Round,
    overhead,
    overhead_data,
    overhead_from_data,
    overhead_text,
)
from tightrope.bench.overhead_load import Asker, AskFailed, Seen, Setting, Tally, request


def a_round(
    system: str, first_ms: float, used_s: float = 0.0, failures: dict[str, int] | None = None
) -> Round:
    seen = Seen([1.0], [2.0], [first_ms], [first_ms], 1000, 2.0, 0.1, failures or {})
    counted = Counted(seen, used_s, 0.5, 0.0)
    return Round(system, counted, counted, counted, (0,))


VERSIONS = {"direct": "", "tightrope": "", "vllm-router": "1"}


def test_1_added_times_are_those_beyond_direct() -> None:
    found = overhead(Setting(), [a_round("direct", 7.0), a_round("tightrope", 9.5)], VERSIONS, {})
    direct, ours = found.figures
    assert direct.added_mixed_first is None
    assert ours.added_mixed_first is not None
    assert ours.added_mixed_first.p50_ms == pytest.approx(2.5)
    assert ours.of_direct == pytest.approx(1.0)


def test_2_processor_time_is_per_chunk_and_vllm_router_is_the_unit() -> None:
    rounds = [
        a_round("tightrope", 9.0, 0.1), a_round("tightrope", 9.0, 0.3),
        a_round("vllm-router", 9.0, 0.05), a_round("vllm-router", 9.0, 0.05),
    ]  # fmt: skip
    ours, theirs = overhead(Setting(), rounds, VERSIONS, {}).figures
    assert ours.us_per_chunk == pytest.approx(200)
    assert ours.to_yardstick == pytest.approx(4)
    assert theirs.to_yardstick == pytest.approx(1)


def test_3_nobody_is_left_out_silently() -> None:
    found = overhead(
        Setting(), [a_round("direct", 7.0, failures={"status 500": 3})], VERSIONS, {"vllm-router": "no index"}
    )
    text = overhead_text(found)
    assert "vllm-router was not measured: no index" in text
    assert "direct: 9 calls failed: status 500" in text
    data = overhead_data(found)
    assert overhead_from_data(data) == found
    assert isinstance(data, dict)
    assert data["absent"] == {"vllm-router": "no index"}
    assert json.loads(json.dumps(data)) == data


async def test_4_the_client_counts_pieces_with_text_however_they_are_cut() -> None:
    events = (
        b'data: {"delta":{"content":""}}\n\n'
        + 3 * b'data: {"delta":{"content": "x"}}\n\n'
        + b"data: [DONE]\n\n"
    )
    served: list[int] = []
    has_left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(0)
        with suppress(asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await reader.readuntil(b'"stream": true}')
                served[-1] += 1
                if served[-1] == 3:
                    writer.write(b"HTTP/1.1 503 Busy\r\ncontent-length: 2\r\n\r\nno")
                    continue
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                for begin in range(0, len(events), 7):
                    part = events[begin : begin + 7]
                    writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                writer.write(b"0\r\n\r\n")
        writer.close()
        has_left.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        tally = Tally()
        asker = Asker(port, tally)
        for _ in range(2):
            first_s, end_s = await asker.ask(request(port, 3, is_streamed=True))
            assert first_s <= end_s
        with pytest.raises(AskFailed, match="status 503"):
            await asker.ask(request(port, 3, is_streamed=True))
        asker.close()
        await has_left.wait()
    assert (served, tally.pieces) == ([3], 6)


def test_5_every_second_round_goes_backwards() -> None:
    assert Setting().order(["a", "b"], 0) == ["a", "b"]
    assert Setting().order(["a", "b"], 1) == ["b", "a"]
