"""The client of a duel: a process of its own that sends every request at its moment, whatever came before.

Run as `python -m tightrope.bench.duel_client PLAN HOST PORT OUT PATIENCE_S`. Times count from the planned moment, so
that no delay hides itself. A connection for each request, over plain sockets: it shares the machine with what it
measures. Says `began` on standard output when the clock starts. What the times mean is `duel_figures.py`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

PATH = "/v1/chat/completions"

Ending = Literal["whole", "refused", "broken", "unfinished"]
"""`whole`: the answer came to its end and has its length; `broken`: it did not; `refused`: another status than 200;
`unfinished`: the client stopped waiting."""


@dataclass(slots=True)
class Seen:
    """What the client saw of one request, in seconds after the start of the load; None where it never came."""

    run: str
    planned_s: float
    sent_s: float | None = None
    first_s: float | None = None
    end_s: float | None = None
    text_bytes: int = 0
    ending: Ending = "unfinished"
    message: str = ""


@dataclass(frozen=True, slots=True)
class Planned:
    """A request ready to be sent."""

    run: str
    at_s: float
    answer_bytes: int
    data: bytes


async def play(planned: list[Planned], host: str, port: int, patience_s: float) -> list[Seen]:
    """Send all; after the last one wait `patience_s` for what is still under way, then give it up."""
    began_s = time.monotonic()
    seen = [Seen(one.run, one.at_s) for one in planned]
    tasks: list[asyncio.Task[None]] = []
    for one, found in zip(planned, seen, strict=True):
        await asyncio.sleep(max(0.0, began_s + one.at_s - time.monotonic()))
        tasks.append(asyncio.create_task(_ask(one, found, host, port, began_s)))
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=patience_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    return seen


async def _ask(one: Planned, seen: Seen, host: str, port: int, began_s: float) -> None:
    writer = None
    try:
        reader, writer = await asyncio.open_connection(host, port)
        seen.sent_s = time.monotonic() - began_s
        writer.write(one.data)
        status, is_chunked = await _head(reader)
        pieces = _chunks(reader) if is_chunked else _rest(reader)
        if status != 200:
            seen.ending, seen.message = "refused", f"{status} {(await _whole(pieces))[:200]}"
            return
        is_done = await _read(pieces, seen, began_s)
        seen.end_s = time.monotonic() - began_s
        # An end of the text may be cut where it is blank.
        is_whole = is_done and one.answer_bytes - 4 <= seen.text_bytes <= one.answer_bytes
        seen.ending = "whole" if is_whole else "broken"
        if not is_whole and not seen.message:
            seen.message = f"{seen.text_bytes} of {one.answer_bytes} bytes"
    except (OSError, ValueError, EOFError) as error:
        seen.ending, seen.message = "broken", f"{type(error).__name__}: {error}"[:200]
    finally:
        if writer is not None:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def _read(pieces: AsyncIterator[bytes], seen: Seen, began_s: float) -> bool:
    """Read the events of a stream; whether it ended as it should."""
    left = b""
    async for piece in pieces:
        *lines, left = (left + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                text = _text(json.loads(line[6:]), seen)
                if text and seen.first_s is None:
                    seen.first_s = time.monotonic() - began_s
                seen.text_bytes += len(text.encode())
            elif line.startswith(b"data: [DONE]"):
                return not seen.message
    return False


def _text(event: dict[str, object], seen: Seen) -> str:
    if "error" in event:
        seen.message = json.dumps(event["error"])[:200]
    choices = event.get("choices")
    if not isinstance(choices, list) or not choices:
        return ""
    content = choices[0].get("delta", {}).get("content")
    return content if isinstance(content, str) else ""


async def _head(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """The status, and whether the body comes in chunks."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    return int(head.split(b" ", 2)[1]), b"\r\ntransfer-encoding: chunked" in head


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readline()).split(b";")[0], 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)


async def _rest(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await reader.read(65536):
        yield piece


async def _whole(pieces: AsyncIterator[bytes]) -> str:
    return b"".join([piece async for piece in pieces]).decode(errors="replace")


def planned_request(line: str, host: str, port: int) -> Planned:
    """A line of the plan as the bytes that are sent."""
    asked = json.loads(line)
    body = json.dumps(asked["body"]).encode()
    headers = {
        "host": f"{host}:{port}",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **asked["headers"],
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    data = f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + body
    return Planned(asked["run"], asked["at_s"], asked["answer_bytes"], data)


def main(arguments: list[str]) -> int:
    """Play a plan and write what was seen, one line a run."""
    plan, host, port, out, patience_s = arguments
    with Path(plan).open(encoding="utf-8") as lines:
        planned = [planned_request(line, host, int(port)) for line in lines]
    gc.collect()
    gc.freeze()  # a collection over the plan would delay what is to be sent
    print("began", flush=True)
    seen = asyncio.run(play(planned, host, int(port), float(patience_s)))
    Path(out).write_text("".join(json.dumps(asdict(one)) + "\n" for one in seen), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
