"""Where a llama-server is looked for, how builds are told apart, and what a server is started with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tightrope.adapters import llamacpp
from tightrope.adapters.llamacpp import BUILDS, ServerOptions, command_line, find_server
from tightrope.model.errors import InvalidInput


def a_program(file: Path, script: str = "exit 0") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


def a_cached_build(cache: Path, build: str = BUILDS[0], *, proven: bool = True) -> Path:
    folder = llamacpp.build_folder(cache, build)
    if proven:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / llamacpp.PROOF).touch()
    return a_program(folder / llamacpp.PROGRAM_BY_BUILD[build])


@pytest.fixture(autouse=True)
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "on-path"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_the_configured_server_comes_first(tmp_path: Path, empty_path: Path) -> None:
    configured = a_program(tmp_path / "mine" / "server")
    a_program(empty_path / "llama-server")
    a_cached_build(tmp_path)
    assert find_server(str(configured), tmp_path) == configured


def test_then_the_one_on_the_path(tmp_path: Path, empty_path: Path) -> None:
    on_path = a_program(empty_path / "llama-server")
    a_cached_build(tmp_path)
    assert find_server(None, tmp_path) == on_path


def test_then_the_best_proven_one_in_the_cache(tmp_path: Path) -> None:
    a_cached_build(tmp_path, BUILDS[0], proven=False)
    second = a_cached_build(tmp_path, BUILDS[1])
    assert find_server(None, tmp_path) == second
    first = a_cached_build(tmp_path, BUILDS[0])
    assert find_server(None, tmp_path) == first


def test_without_any_the_cure_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"python -m tightrope\.app\.embedded"):
        find_server(None, tmp_path)


@pytest.mark.parametrize(("make", "reason"), [(False, "does not exist"), (True, "is not executable")])
def test_a_wrong_configured_path_is_never_passed_over(tmp_path: Path, make: bool, reason: str) -> None:
    a_cached_build(tmp_path)
    wrong = tmp_path / "wrong"
    if make:
        wrong.write_text("")
    with pytest.raises(InvalidInput, match=rf"{wrong} {reason}; correct its path"):
        find_server(str(wrong), tmp_path)


def test_a_build_proven_on_another_processor_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_cached_build(tmp_path)
    other = llamacpp.instruction_sets() | {"avx1024"}
    monkeypatch.setattr(llamacpp, "instruction_sets", lambda: other)
    assert llamacpp.cached_server(tmp_path) is None


def test_the_build_is_what_the_server_says(tmp_path: Path) -> None:
    server = a_program(tmp_path / "server", "echo noise >&2; echo 'version: 0.5.0 (build 7)'")
    assert llamacpp.server_build(server) == "0.5.0 (build 7)"


def test_a_server_that_cannot_say_its_build_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="does not say its version"):
        llamacpp.server_build(a_program(tmp_path / "server", "exit 1"))


def test_a_binary_runs_by_itself_and_a_script_in_this_interpreter(tmp_path: Path) -> None:
    options = ServerOptions(model=Path("m.gguf"), alias="small", port=1)
    assert command_line(Path("/x/llama-server"), options)[0] == "/x/llama-server"
    program = command_line(Path("/x/server.py"), options)
    assert program[0] == sys.executable
    assert "/x/server.py" in program[:4]


def test_the_command_line_says_what_the_options_say() -> None:
    options = ServerOptions(
        model=Path("m.gguf"), alias="small", port=81, threads=2, slots=3, context_tokens=512,
        cache_prompt=False, extra=("--seed", "7"),
    )  # fmt: skip
    said = command_line(Path("server"), options)
    wanted = {
        "--model": "m.gguf", "--alias": "small", "--host": "127.0.0.1", "--port": "81", "--threads": "2",
        "--threads-batch": "2", "--parallel": "3", "--ctx-size": "1536", "--cache-ram": "0",
    }  # fmt: skip
    assert {flag: said[said.index(flag) + 1] for flag in wanted} == wanted
    assert {"--metrics", "--slots", "--no-webui", "--no-cache-prompt"} <= set(said)
    assert "--cache-prompt" not in said
    assert said[-2:] == ["--seed", "7"]
