"""Every Python block of the documents runs as it stands, every YAML block can be used, every command exists.

The blocks of one page are one program, in a folder with the files that the page names. Where it calls a server,
the page's own `tightrope.yaml` is served, with an engine of `tightrope.testing` in the place of the real one.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import click
import pytest

from tests.architecture.sources import ROOT
from tests.docs.pages import PAGES, Block, blocks, shown
from tightrope.app.cli import main
from tightrope.app.config import parse_config
from tightrope.bench.library import known
from tightrope.bench.scenario_form import read_scenario
from tightrope.flow.document import read_workflow

WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
TIGHTROPE = [sys.executable, "-m", "tightrope.app.cli"]
ENGINE = f"{{kind: command, command: [{sys.executable}, -m, tightrope.testing.server, --port, '{{port}}']}}"


def test_there_are_programs_in_the_documents() -> None:
    assert ROOT / "README.md" in WITH_PYTHON


@pytest.mark.parametrize("page", WITH_PYTHON, ids=shown)
def test_the_program_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    assert _run(page, tmp_path) != ""


def test_the_two_forms_of_the_manual_are_one_workflow(tmp_path: Path) -> None:
    page = ROOT / "docs" / "workflows.md"
    written = [block for block in blocks(page, "yaml") if block.text.startswith("workflow:")]
    assert len(written) == 1
    assert _run(page, tmp_path).split() == [read_workflow(written[0].text, source="", base=tmp_path).id]


YAML = [(page, block) for page in PAGES for block in blocks(page, "yaml")]


@pytest.mark.parametrize(("page", "block"), YAML, ids=[f"{shown(page)}:{one.line}" for page, one in YAML])
def test_every_yaml_block_can_be_used(page: Path, block: Block, tmp_path: Path) -> None:
    if block.text.startswith("workflow:"):
        assert read_workflow(block.text, source=shown(page), base=tmp_path).name
    elif block.text.startswith("scenario:"):
        assert read_scenario(block.text, shown(page), known()).name
    else:
        assert parse_config(block.text, tmp_path / "tightrope.yaml", {}).config.models


COMMANDS = sorted(
    {
        (shown(page), line)
        for page in PAGES
        for line in (
            *(line for block in blocks(page, "sh") for line in block.text.splitlines()),
            *re.findall(r"`((?:tightrope|make) [a-z][^`]*)`", page.read_text(encoding="utf-8")),
        )
        if line.startswith(("tightrope ", "make "))
    }
)


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[": ".join(one) for one in COMMANDS])
def test_every_command_exists(page: str, line: str) -> None:
    program, verb, *words = shlex.split(line)
    if program == "make":
        assert re.search(rf"^{verb}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return
    command: click.Command = main.commands[verb]
    if isinstance(command, click.Group) and words:
        command = command.commands[words.pop(0)]
    known = {name for param in command.params for name in param.opts}
    assert [word for word in words if word.startswith("--") and word not in known] == []


# --- running -----------------------------------------------------------------------------------------------


def _run(page: Path, folder: Path) -> str:
    """What the program of a page prints."""
    program = [""] * len(page.read_text(encoding="utf-8").splitlines())
    for block in (*blocks(page, "python"), *blocks(page, "yaml")):
        if block.file:
            file = folder / block.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            lines = block.text.splitlines()
            program[block.line - 1 : block.line - 1 + len(lines)] = lines
    source = "\n".join(program)
    script = folder / page.with_suffix(".py").name
    script.write_text(source, encoding="utf-8")
    with _served(folder) if "OpenAI()" in source else nullcontext(_environment()) as environment:
        ran = subprocess.run(
            [sys.executable, str(script)],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@contextmanager
def _served(folder: Path) -> Iterator[Mapping[str, str]]:
    """The environment of a client, while the folder's configuration is served on a port of its own."""
    environment = _environment()
    environment |= {"TIGHTROPE_SERVER__LISTEN": "127.0.0.1:0", "TIGHTROPE_MODELS__SMALL__ENGINE": ENGINE}
    make_key = [*TIGHTROPE, "keys", "create", "--tenant", "me"]
    key = subprocess.run(
        make_key, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    with subprocess.Popen(
        [*TIGHTROPE, "serve"], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            yield environment | {"OPENAI_BASE_URL": _address(server), "OPENAI_API_KEY": key}
        finally:
            server.send_signal(signal.SIGTERM)
            _, said = server.communicate()
    assert server.returncode == 0, said


def _address(server: subprocess.Popen[str]) -> str:
    """Where it listens, as soon as it does."""
    assert server.stderr is not None
    said = ""
    for line in server.stderr:
        said += line
        found = re.match(r"listening on (\S+?);", line)
        if found is not None:
            return found[1]
    raise AssertionError(f"the server did not begin to listen:\n{said}")


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src")}
