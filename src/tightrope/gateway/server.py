"""uvicorn's protocol for HTTP, and one thing more: the client's end of the line, without a task.

ASGI sends by awaiting and tells by awaiting that a client has left. So each piece of a stream wakes a task whose only
work is to send it, and each request keeps one that only listens. The further way is an extension in the scope; an
application that does not find it there does as ASGI says.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

EXTENSION = "tightrope.line"
"""The name of the extension. In it is a `Line` under "line"."""


class Line:
    """The client of one request. `gone` is done when it has left."""

    def __init__(self, cycle: RequestResponseCycle, gone: asyncio.Future[None]) -> None:
        self.gone = gone
        self._cycle = cycle

    def send_now(self, body: bytes) -> bool:
        """Send a part of a body of unknown length. False, and nothing is sent, while the head is not out, when the
        client is behind or has left, and after the end: then there is the way that waits."""
        cycle = self._cycle
        # An answer is chunked from its head on, if it is at all.
        if (
            not cycle.chunked_encoding
            or cycle.response_complete
            or cycle.disconnected
            or cycle.flow.write_paused
        ):
            return False
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    def listen(self) -> None:
        """Notice when the client leaves, though another request of it waits already."""
        self._cycle.flow.resume_reading()

    @property
    def is_over(self) -> bool:
        """Whether everything was sent."""
        return self._cycle.response_complete


def _is_as_known(cycle: RequestResponseCycle) -> bool:
    """Whether this uvicorn has what a line is made of, which no document promises."""
    names = ("chunked_encoding", "response_complete", "disconnected", "transport", "flow")
    return all(hasattr(cycle, name) for name in names) and hasattr(cycle.flow, "write_paused")


class Protocol(HttpToolsProtocol):
    """One connection. Give this class to uvicorn as `http`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._lines: list[Line] = []

    def on_headers_complete(self) -> None:
        """A request begins. Its task exists when this returns, and has not run."""
        super().on_headers_complete()
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and cycle.scope is self.scope and _is_as_known(cycle):
            line = Line(cycle, self.loop.create_future())
            self._lines = [*(one for one in self._lines if not one.is_over), line]
            self.scope["extensions"] = {EXTENSION: {"line": line}}

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left, whatever it has asked for."""
        super().connection_lost(exc)
        for line in self._lines:
            if not line.gone.done():
                line.gone.set_result(None)
