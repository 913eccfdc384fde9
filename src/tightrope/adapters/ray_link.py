"""The line between the runtime and the process that speaks to Ray.

Owns that process: it is started when it is first needed, and again when it ended because Ray went away. Knows
nothing of replicas.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

log = logging.getLogger("tightrope")

Json = Any
"""What comes from a line of JSON of our own process; taken apart at once by who asked."""

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
_END_LIMIT_S = 3.0
_LINE_LIMIT_BYTES = 2**20


class RayTrouble(Exception):
    """Something with Ray did not work."""


class Gone(RayTrouble):
    """The actor that was asked for is not there any more."""


class Failed(RayTrouble):
    """Ray answered with an error."""


class Severed(RayTrouble):
    """The process that speaks to Ray ended before it answered."""


class RayLink:
    """Asks, and waits for a connection with it. `on_connected` is called each time there is a new one.

    `environment` are the variables Ray reads, `settings` what `ray_hands.py` is told; its output goes to `log_file`.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        settings: Mapping[str, Json],
        log_file: Path,
        on_connected: Callable[[], None] = lambda: None,
    ) -> None:
        self.trouble: str | None = "Ray was not spoken to yet"
        """Why there is no connection; None while there is one."""
        self._environment = environment
        self._settings = settings
        self._log_file = log_file
        self._on_connected = on_connected
        self._hands: asyncio.subprocess.Process | None = None
        self._is_connected = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        self._answer_by_number: dict[int, asyncio.Future[Json]] = {}

    @property
    def was_used(self) -> bool:
        """Whether anything was ever asked."""
        return self._keeping is not None

    async def ask(self, what: str, **details: Json) -> Json:
        """What the hands answer, once there is a connection. Raises Gone, Failed and Severed."""
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep())
        await self._is_connected.wait()
        number = next(self._numbers)
        answer: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._answer_by_number[number] = answer
        try:
            self._tell({"id": number, "ask": what, "with": details})
            return await answer
        finally:
            self._answer_by_number.pop(number, None)

    async def call(self, actor: str, method: str, *args: Json) -> Json:
        """What a method of an actor answers. Raises Gone, Failed and Severed."""
        return await self.ask("call", name=actor, method=method, args=list(args))

    async def close(self) -> None:
        """End the process, and with it a Ray that it started."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)

    # --- the process -------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Have the process run for ever, with growing pauses while Ray cannot be had."""
        pause_s = _FIRST_PAUSE_S
        while True:
            if await self._lived():
                pause_s = _FIRST_PAUSE_S
            log.warning("no connection with Ray: %s; next try in %g s", self.trouble, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)

    async def _lived(self) -> bool:
        """One process from its start to its end; whether it had a connection."""
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with self._log_file.open("ab") as errors:
            self._hands = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tightrope.adapters.ray_hands",
                "prepare",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                limit=_LINE_LIMIT_BYTES,
            )
        try:
            self._tell(dict(self._environment))
            self._tell(dict(self._settings))
            return await self._listen(self._hands)
        finally:
            self._sever()
            await _end(self._hands)

    async def _listen(self, hands: asyncio.subprocess.Process) -> bool:
        assert hands.stdout is not None
        address, cure = self._settings["address"], f"; {self._log_file} may say why"
        where = "on this machine" if address == "local" else f"at {address}"
        self.trouble = f"Ray {where} has not answered yet{cure}"
        async for line in hands.stdout:
            told = msgspec.json.decode(line)
            if "id" in told:
                self._take(told)
            elif "failed" in told:
                self.trouble = f"Ray {where} cannot be reached: {told['failed']}{cure}"
            else:
                self.trouble = None
                self._is_connected.set()
                self._on_connected()
        return self._is_connected.is_set()

    def _take(self, told: Mapping[str, Json]) -> None:
        answer = self._answer_by_number.get(told["id"])
        if answer is None or answer.done():
            return
        if "done" in told:
            answer.set_result(told["done"])
        elif "gone" in told:
            answer.set_exception(Gone(told["gone"]))
        else:
            answer.set_exception(Failed(told["failed"]))

    def _sever(self) -> None:
        if self._is_connected.is_set():
            self._is_connected.clear()
            self.trouble = f"the connection with Ray broke; {self._log_file} may say why"
        for answer in self._answer_by_number.values():
            if not answer.done():
                answer.set_exception(Severed(self.trouble))

    def _tell(self, line: Mapping[str, Json]) -> None:
        assert self._hands is not None
        assert self._hands.stdin is not None
        self._hands.stdin.write(msgspec.json.encode(line) + b"\n")


async def _end(hands: asyncio.subprocess.Process) -> None:
    """Close its input, which ends it; kill it if that does not help."""
    assert hands.stdin is not None
    hands.stdin.close()
    with suppress(TimeoutError):
        async with asyncio.timeout(_END_LIMIT_S):
            await hands.wait()
    if hands.returncode is None:
        hands.kill()
        await hands.wait()
