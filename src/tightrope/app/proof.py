"""Proof that an engine runs on this machine: it is started and must answer a prompt.

A processor's flags tell too little: a binary made elsewhere may die at its first matrix product. Owns one
short life of one server; whether and where the server is kept is decided in `embedded.py`.
"""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

from tightrope.adapters import llamacpp
from tightrope.adapters.engine_process import free_port
from tightrope.app.pinned import InstallationFailed

# Long enough to be computed as a batch, whose kernels differ from those that make single tokens.
_PROMPT = "The tightrope walker takes one more step. " * 8


def require_answer(server: Path, weights: Path, patience_s: float = 120.0) -> None:
    """Return once `server` has answered with `weights`; it is ended in any case.

    Raises InstallationFailed, with the end of its log, when it ends first or `patience_s` has passed.
    """
    port = free_port()
    options = llamacpp.ServerOptions(model=weights, alias="proof", port=port, slots=1, context_tokens=512)
    log = server.with_name("proof.log")
    with log.open("wb") as output:
        command = llamacpp.command_line(server, options)
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        await_answer(process, f"http://127.0.0.1:{port}/completion", patience_s)
    except InstallationFailed as reason:
        said = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise InstallationFailed(" | ".join([str(reason), *said])) from reason
    finally:
        process.kill()
        process.wait()


def await_answer(process: subprocess.Popen[bytes], url: str, patience_s: float) -> None:
    """Return once `process` has answered a prompt at `url`, its `/completion`. Raises InstallationFailed."""
    give_up_s = time.monotonic() + patience_s
    while time.monotonic() < give_up_s:
        if process.poll() is not None:
            raise InstallationFailed(_end_sentence(process.returncode))
        try:
            content = _ask(url, patience_s)
        except (OSError, ValueError, http.client.HTTPException):  # not listening, still loading, or cut off
            time.sleep(0.05)
            continue
        if content:
            return
        raise InstallationFailed("it answers with nothing")
    raise InstallationFailed(f"it did not answer within {patience_s:g} s")


def _ask(url: str, patience_s: float) -> str:
    body = json.dumps({"prompt": _PROMPT, "n_predict": 4, "ignore_eos": True}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=patience_s) as answer:
        return str(json.load(answer)["content"])


def _end_sentence(status: int) -> str:
    if status == -signal.SIGILL:
        return "it needs instructions that this processor does not have"
    return f"it ended with status {status} before it answered"
