"""
Laws of the command line
1. Exit codes: 0 done, 2 wrong usage or an invalid file, 3 unknown, 4 unreachable, 5 refused, 70 a bug, 130 interrupted.
2. With --json standard output holds exactly one object, whatever happens; text for people goes to standard error.
3. `init` writes what `check` accepts, never overwrites unasked, and keeps the pepper to its owner.
4. `check` finds what is wrong with workflows and grants, each under its line.
5. A key is printed once; nothing else ever shows it.
6. `explain` reads a journal and names runs by id, prefix, `last`, `last-late`.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.app.folder import GREET, stand_in
from tests.reports.journals import RUN, Journal, late_run
from tightrope.adapters.store_sqlite import SqliteStore
from tightrope.app.cli import main
from tightrope.app.config import load_config
from tightrope.app.pepper import read_pepper
from tightrope.gateway.keys import Keyring
from tightrope.kernel.journal import Head, head_line
from tightrope.kernel.state import KernelSettings
from tightrope.model.codec import encode
from tightrope.model.ids import AcceleratorName, ModelName, RunId
from tightrope.model.outcome import Verdict
from tightrope.model.profile import Coefficients, Profile

CONFIG = """\
version: 1
accelerators: {cpu: {count: 2}}
models: {small: {engine: {kind: llamacpp}, place: {cpu: {min: 1}}}}
tenants: {shop: {slo: {ttft: 900ms}, models: [small], workflows: [greet]}}
workflows: {files: ["flows/*.yaml"]}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration and a workflow; the process stands in it."""
    stand_in(tmp_path, monkeypatch, CONFIG, "flows/greet.yaml")
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def data_of(result: Result, verb: str) -> Any:
    """The one object on standard output, after a look at its frame."""
    (line,) = result.stdout.splitlines()
    whole = json.loads(line)
    assert whole["schema"] == f"tightrope.{verb}/1"
    assert whole["ok"] == (result.exit_code == 0)
    assert sorted(whole) == ["data", "errors", "ok", "schema"]
    return whole["data"]


def errors_of(result: Result) -> Any:
    return json.loads(result.stdout)["errors"]


# --- 1, 2 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["check"], 0),
        (["--help"], 0),
        (["explain", "--help"], 0),
        (["--version"], 0),
        (["chek"], 2),
        (["check", "--nothing"], 2),
        (["check", "--config", "missing.yaml"], 2),
        (["keys", "create"], 2),
        (["keys", "create", "--tenant", "shop", "--expires", "90"], 2),
        (["keys", "create", "--tenant", "nobody"], 3),
        (["keys", "revoke", "abcdefgh"], 3),
        (["explain"], 3),
        (["check", "--as-yaml", "missing.yaml"], 3),
        (["init", "--model", "http://127.0.0.1:9/v1", "--config", "new.yaml"], 4),
        (["init"], 5),
    ],
)
def test_1_and_2_every_end_has_its_code_and_one_object(here: Path, words: Sequence[str], code: int) -> None:
    plain = run(*words)
    assert plain.exit_code == code
    if words[0].startswith("--") or "--help" in words:
        return
    counted = run(*words, "--json")
    assert counted.exit_code == code
    (line,) = counted.stdout.splitlines()
    whole = json.loads(line)
    assert whole["ok"] is (code == 0)
    assert bool(whole["errors"]) is (code != 0)
    assert all(error["code"] and error["message"] for error in whole["errors"])


def test_1_a_bug_leaves_a_report_and_no_traceback(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(here))
    monkeypatch.setattr("tempfile.tempdir", None)

    def broken(*_: object) -> None:
        raise ZeroDivisionError("of our own making")

    monkeypatch.setattr("tightrope.app.config.read_config", broken)
    result = run("check", "--json")
    (report,) = here.glob("tightrope-report-*.txt")
    assert result.exit_code == 70
    assert errors_of(result)[0]["code"] == "internal_error"
    assert "Traceback" not in result.output
    assert str(report) in result.stderr
    assert "of our own making" in report.read_text()
    assert stat.S_IMODE(report.stat().st_mode) == 0o600


def test_1_an_interrupt_ends_with_130(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tightrope.app.config.read_config", interrupted)
    assert run("check").exit_code == 130


def test_2_common_options_count_before_the_verb_too(here: Path) -> None:
    (here / "tightrope.yaml").rename(here / "other.yaml")
    result = run("--json", "--config", "other.yaml", "check")
    assert result.exit_code == 0
    assert data_of(result, "check")["config"] == str(here / "other.yaml")


def test_2_text_for_people_goes_to_standard_error(here: Path) -> None:
    plain = run("check")
    assert plain.stdout == ""
    assert "no problems found" in plain.stderr
    assert run("check", "--json", "--quiet").stderr == ""


def test_the_program_runs_as_a_process_of_its_own(here: Path) -> None:
    words = [sys.executable, "-m", "tightrope.app.cli", "check", "--json"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TIGHTROPE_SERVER__DRAIN": "5"}
    ended = subprocess.run(words, cwd=here, env=env, capture_output=True, text=True, timeout=180, check=False)
    assert ended.returncode == 2
    assert json.loads(ended.stdout)["errors"][0]["code"] == "missing_unit"
    assert "TIGHTROPE_SERVER__DRAIN" in ended.stderr


def test_help_does_not_load_what_only_the_verbs_need() -> None:
    """Pages of help appear at once: no server, no engine client, no validation of configurations."""
    program = (
        "import sys\n"
        "from tightrope.app.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = ('aiohttp', 'pydantic', 'uvicorn', 'starlette', 'msgspec')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=180, check=True
    )
    assert ended.stderr.strip() == "[]"
    verbs = ("demo", "init", "check", "serve", "profile", "plan", "explain", "top", "keys")
    assert all(f"  {verb} " in ended.stdout for verb in verbs)


# --- 3 ---------------------------------------------------------------------------------------------------


def test_3_what_init_writes_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("init").exit_code == 0
    assert run("check").exit_code == 0
    first = (tmp_path / "tightrope.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=./tightrope.schema.json"
    assert json.loads((tmp_path / "tightrope.schema.json").read_text())["title"] == "tightrope.yaml"
    assert stat.S_IMODE((tmp_path / "tightrope.secret").stat().st_mode) == 0o600


def test_3_init_overwrites_only_when_forced_and_never_the_pepper(here: Path) -> None:
    assert run("init").exit_code == 5
    assert (here / "tightrope.yaml").read_text() == CONFIG
    assert run("init", "--force").exit_code == 0
    assert (here / "tightrope.yaml").read_text() != CONFIG
    pepper = (here / "tightrope.secret").read_bytes()
    assert run("init", "--force").exit_code == 0
    assert (here / "tightrope.secret").read_bytes() == pepper


@pytest.fixture
def endpoint() -> Iterator[str]:
    """The base address of a server that lists two models and offers nothing else."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            models = {"data": [{"id": "Qwen/Qwen3-1.7B"}, {"id": 'odd: "name"'}]}
            body = json.dumps(models).encode() if self.path == "/v1/models" else b"{}"
            self.send_response(200 if self.path == "/v1/models" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def test_3_init_writes_down_what_an_endpoint_serves(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARTNER_KEY", "canary")
    assert run("init", "--model", endpoint, "--key-env", "PARTNER_KEY").exit_code == 0
    config = load_config(tmp_path / "tightrope.yaml")
    served = [(model.name, model.replicas[0].serves, model.replicas[0].url) for model in config.models]
    assert served == [("Qwen3-1.7B", "Qwen/Qwen3-1.7B", endpoint), ("odd-name", 'odd: "name"', endpoint)]
    assert config.models[0].replicas[0].key is not None
    assert config.models[0].replicas[0].key.reveal() == "canary"
    assert "canary" not in (tmp_path / "tightrope.yaml").read_text()


# --- 4 ---------------------------------------------------------------------------------------------------


def test_4_a_mistake_in_the_configuration_is_drawn(here: Path) -> None:
    (here / "tightrope.yaml").write_text(CONFIG.replace("ttft: 900ms", "tftt: 900ms"))
    result = run("check")
    assert result.exit_code == 2
    assert result.stderr.startswith(
        'tightrope.yaml:4:24  unknown_key: "tftt" is not a key of tenants.shop.slo\n'
    )
    assert "      |                        ^^^^\n" in result.stderr
    assert result.stderr.endswith("1 error, nothing started\n")


def test_4_a_mistake_in_a_workflow_is_drawn_in_its_file(here: Path) -> None:
    file = here / "flows" / "greet.yaml"
    file.write_text(GREET.replace("llm: small", "llm: smal"))
    result = run("check", "--json")
    (error,) = errors_of(result)
    assert (error["code"], error["line"], error["next"]) == ("unknown_model", 5, 'write "small"')
    assert f"{file}:5:" in result.stderr


def test_4_a_grant_of_no_workflow_is_found(here: Path) -> None:
    (here / "tightrope.yaml").write_text(CONFIG.replace("[greet]", "[great]"))
    result = run("check", "--json")
    (error,) = errors_of(result)
    assert (error["code"], error["line"], error["next"]) == ("unknown_workflow", 4, 'write "greet"')


def test_4_a_pattern_that_fits_nothing_is_found(here: Path) -> None:
    (here / "tightrope.yaml").write_text(CONFIG.replace("flows/*.yaml", "flow/*.yaml"))
    assert [error["code"] for error in errors_of(run("check", "--json"))] == ["workflow_missing"]


def test_4_two_workflows_of_one_name_are_found(here: Path) -> None:
    (here / "flows" / "again.yaml").write_text(GREET)
    assert [error["code"] for error in errors_of(run("check", "--json"))] == ["duplicate_key"]


def test_4_python_workflows_are_read_and_written_as_yaml(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "greetings_for_cli.py").write_text(
        "from tightrope.flow.builder import Workflow\n"
        "wf = Workflow('greet')\n"
        "name = wf.input('name', source='last_user_message')\n"
        "wf.output(wf.llm('hello', model='small', prompt='Hello {{ name }}', inputs={'name': name}, max_tokens=9))\n"
    )
    (here / "tightrope.yaml").write_text(CONFIG.replace("flows/*.yaml", "greetings_for_cli:wf"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert data_of(run("check", "--json"), "check")["workflows"][0]["source"] == "greetings_for_cli:wf"
    written = run("check", "--as-yaml", "greetings_for_cli:wf")
    (here / "flows" / "greet.yaml").write_text(written.stdout)
    (here / "tightrope.yaml").write_text(CONFIG)
    assert run("check").exit_code == 0


def test_4_a_promise_that_no_profile_can_keep_is_found(here: Path) -> None:
    slow = Coefficients(a=400.0, b=0.0, c=0.0, d=5.0, e=0.0)
    config = load_config(here / "tightrope.yaml")
    config.state.mkdir()
    store = SqliteStore(config.store_file)
    store.save_profile(Profile(ModelName("small"), AcceleratorName("cpu"), slow, 2048, 4, 8192))
    store.close()
    result = run("check", "--json")
    (error,) = errors_of(result)
    assert (error["code"], error["path"], error["line"]) == ("slo_unreachable", "slo.ttft", 2)
    assert "500ms" in error["message"]
    (here / "flows" / "greet.yaml").write_text(GREET.replace("ttft: 500ms", "ttft: 60s"))
    assert run("check").exit_code == 0


def test_4_effective_values_are_listed_with_their_origin(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIGHTROPE_SERVER__DRAIN", "45s")
    settings = {
        one["key"]: one for one in data_of(run("check", "--effective", "--json"), "check")["settings"]
    }
    assert settings["server.drain"]["origin"] == "TIGHTROPE_SERVER__DRAIN"
    assert settings["tenants.shop.slo.ttft"] == {
        "key": "tenants.shop.slo.ttft",
        "value": "900ms",
        "origin": "tightrope.yaml:4:30",
    }


# --- 5 ---------------------------------------------------------------------------------------------------


def is_let_in(here: Path, key: str) -> bool:
    config = load_config(here / "tightrope.yaml")
    store = SqliteStore(config.store_file)
    try:
        ring = Keyring(store.keys(), read_pepper(config.secret_file))
    finally:
        store.close()
    return ring.authenticate(f"Bearer {key}") is not None


def test_5_a_key_lets_its_tenant_in_until_it_is_revoked(here: Path) -> None:
    made = run("keys", "create", "--tenant", "shop", "--expires", "90d")
    key = made.stdout.strip()
    assert is_let_in(here, key)
    assert key not in made.stderr
    key_id = key.split("_")[1]
    assert run("keys", "revoke", key_id).exit_code == 0
    assert not is_let_in(here, key)


def test_5_a_rotated_key_lives_on_through_its_grace(here: Path) -> None:
    old = run("keys", "create", "--tenant", "shop").stdout.strip()
    made = data_of(run("keys", "rotate", old.split("_")[1], "--grace", "1h", "--json"), "keys")
    assert is_let_in(here, old)
    assert is_let_in(here, made["key"])
    assert made["replaces"]["expires_at"] is not None
    assert run("keys", "revoke", made["id"]).exit_code == 0
    assert run("keys", "rotate", made["id"]).exit_code == 5


def test_5_lists_never_hold_a_secret(here: Path) -> None:
    key = run("keys", "create", "--tenant", "shop").stdout.strip()
    secret = key.split("_", 2)[2]
    for result in (run("keys", "list"), run("keys", "list", "--json")):
        assert result.exit_code == 0
        assert secret not in result.output
        assert key.split("_")[1] in result.output


# --- 6 ---------------------------------------------------------------------------------------------------


@pytest.fixture
def journal(here: Path) -> Path:
    """A journal of a late run and, after it, one that was on time."""
    early = Journal(run=RunId("run_2"), origin_s=1010.0)
    early.at(0).submitted(request="req-2").at(5).ready("intent").at(90).finish(Verdict.MET, ttft_ms=80.0)
    file = here / "tightrope.journal"
    lines = [head_line(Head(KernelSettings(), 1_700_000_000.0, 1000.0))]
    for entry in (*late_run().entries, *early.entries):
        kind = "command" if entry.is_command else "event"
        lines.append(json.dumps({"t": entry.at_s, kind: encode(entry.message)}) + "\n")
    file.write_text("".join(lines))
    return file


@pytest.mark.parametrize(
    ("query", "expected"),
    [("last", "run_2"), ("last-late", RUN), (RUN, RUN), ("req-1", RUN), ("req-2", "run_2")],
)
def test_6_runs_are_named_in_several_ways(journal: Path, query: str, expected: str) -> None:
    assert data_of(run("explain", query, "--json"), "explain")["run"] == expected


def test_6_an_ambiguous_prefix_is_refused_with_the_choices(journal: Path) -> None:
    result = run("explain", "run_")
    assert result.exit_code == 2
    assert "run_1, run_2" in result.stderr


def test_6_an_explanation_holds_the_cause(journal: Path) -> None:
    data = data_of(run("explain", "last-late", "--json"), "explain")
    assert data["critical"] == "answer"
    assert data["cause"].startswith("Late by 400 ms on ttft: big-slow was predicted to begin after 100 ms")
    assert "verdict  Late by 400 ms" in run("explain", "last-late").stderr


def test_6_the_worst_runs_are_ranked(journal: Path) -> None:
    data = data_of(run("explain", "--worst", "5", "--json"), "explain")
    assert [one["run"] for one in data["runs"]] == [RUN]
    assert data["runs"][0]["late_ms"] == 400.0


def test_6_a_damaged_journal_is_an_invalid_file(journal: Path) -> None:
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:2], "{broken\n", *lines[3:]]))
    result = run("explain", "last")
    assert result.exit_code == 2
    assert "line 3" in result.stderr
