"""llama.cpp's server as a program: where it lies, which build it is, and how it is started.

Owns the order in which a server is looked for and the argument list it understands. Does not install
anything (`tightrope.app.embedded` does) and does not watch the process (the local cluster does).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tightrope.model.errors import InvalidInput

# The builds that `tightrope.app.embedded` can put into the cache, best first.
BUILDS = ("xllamacpp-2026.10.11549", "llama-cpp-python-0.3.36")

# The program inside a build's folder: a script runs in this interpreter, a binary by itself.
XLLAMACPP_SERVER = Path(__file__).with_name("xllamacpp_server.py")
PROGRAM_BY_BUILD = {BUILDS[0]: XLLAMACPP_SERVER.name, BUILDS[1]: "llama-server"}

# On a processor a step of 2048 prompt tokens, the server's default, stops every stream for seconds, and prompts
# that wait together all end at its end. Small steps let them end in turn, for a tenth more prefill work.
STEP_TOKENS = 64

# Written into a build's folder once the server there has answered a prompt on this kind of processor.
PROOF = "proven"

_CURE = "run `python -m tightrope.app.embedded`"
_INSTRUCTION_SETS = ("amx", "asimd", "avx", "bf16", "bmi", "f16c", "fma", "i8mm", "sse", "ssse", "sve")


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How one server runs. `context_tokens` is what each of the `slots` has for prompt and answer together,
    `step_tokens` the most prompt tokens of one engine step.

    `cache_prompt` keeps the last prompt's state in each slot; without it every prompt is computed anew,
    which is what a measurement wants. `extra` is appended as it is, so it wins over everything else.
    """

    model: Path
    alias: str
    port: int
    host: str = "127.0.0.1"
    threads: int = 1
    slots: int = 4
    context_tokens: int = 2048
    step_tokens: int = STEP_TOKENS
    cache_prompt: bool = True
    extra: tuple[str, ...] = ()


def find_server(configured: str | None, cache_dir: Path) -> Path:
    """The server to run: the configured one, else `llama-server` on the PATH, else the one in the cache.

    Raises InvalidInput that names the cure when the configured one cannot be run or none exists.
    """
    if configured is not None:
        return _configured(configured)
    on_path = shutil.which("llama-server")
    if on_path is not None:
        return Path(on_path)
    cached = cached_server(cache_dir)
    if cached is None:
        raise InvalidInput(
            f"no llama-server is configured, on the PATH, or (for this processor) in {cache_dir}; "
            f"{_CURE} to install one, or name one in the configuration"
        )
    return cached


def cached_server(cache_dir: Path) -> Path | None:
    """The best server in the cache that has proved to run on this kind of processor, if there is one."""
    for build in BUILDS:
        folder = build_folder(cache_dir, build)
        program = folder / PROGRAM_BY_BUILD[build]
        if (folder / PROOF).is_file() and program.is_file():
            return program
    return None


def build_folder(cache_dir: Path, build: str) -> Path:
    """Where a build for this processor belongs.

    A processor with other instruction sets, or another edition of the script that starts the server, has
    another folder: what was proved with the one says nothing about the other.
    """
    known = " ".join((platform.machine(), *sorted(instruction_sets())))
    digest = hashlib.sha256(known.encode() + XLLAMACPP_SERVER.read_bytes()).hexdigest()[:12]
    return cache_dir / "engines" / f"{build}-{digest}"


def instruction_sets() -> frozenset[str]:
    """The processor's vector and matrix extensions as Linux names them ("avx2", "asimd"); empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    named = next((line for line in lines if line.partition(":")[0].strip() in {"flags", "Features"}), "")
    return frozenset(flag for flag in named.partition(":")[2].split() if flag.startswith(_INSTRUCTION_SETS))


def server_build(server: Path) -> str:
    """What the server says it is, as one line: profiles of one build do not hold for another.

    Raises InvalidInput when it does not start.
    """
    try:
        said = subprocess.run(
            [*_program(server), "--version"], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InvalidInput(
            f"{server} does not say its version ({error}); name another server, or {_CURE}"
        ) from error
    lines = (said.stdout + said.stderr).splitlines()
    version = next((line for line in lines if line.startswith("version:")), "version: unknown")
    return version.removeprefix("version:").strip()


def command_line(server: Path, options: ServerOptions) -> list[str]:
    """The argument list that starts `server` with `options`; the first items are the program itself."""
    threads = str(options.threads)
    return [
        *_program(server),
        "--model", str(options.model),
        "--alias", options.alias,
        "--host", options.host,
        "--port", str(options.port),
        "--threads", threads,
        "--threads-batch", threads,
        "--parallel", str(options.slots),
        "--ctx-size", str(options.slots * options.context_tokens),
        "--batch-size", str(options.step_tokens),
        "--ubatch-size", str(options.step_tokens),
        # Prompts of finished requests are not kept outside the slots: each server may otherwise take 8 GiB.
        "--cache-ram", "0",
        "--cache-prompt" if options.cache_prompt else "--no-cache-prompt",
        "--metrics",
        "--slots",
        "--no-webui",
        "--verbosity", "2",
        *options.extra,
    ]  # fmt: skip


def _configured(server: str) -> Path:
    path = Path(server).expanduser()
    found = shutil.which(path) or (str(path) if path.suffix == ".py" and path.is_file() else None)
    if found is None:
        reason = "is not executable" if path.is_file() else "does not exist"
        raise InvalidInput(
            f"the configured llama-server {server} {reason}; correct its path, or leave it out and {_CURE}"
        )
    return Path(os.path.abspath(found))  # noqa: PTH100 (resolve() would follow a version manager's links)


def _program(server: Path) -> list[str]:
    # The site packages stay out of a script: its engine lies beside it, and it starts a little sooner.
    return [sys.executable, "-S", "-s", str(server)] if server.suffix == ".py" else [str(server)]
