"""What a duel starts: the configuration of Tightrope is a good one, and no program stays behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.bench.tiny import own_profiles
from tightrope.adapters.engine_process import free_ports
from tightrope.app.cli import main
from tightrope.app.config import parse_config
from tightrope.app.contenders import peer_folder
from tightrope.app.duel_bench import Duel, _planned
from tightrope.app.duel_engines import PROFILES_FILE, Endpoint, measured_engines
from tightrope.app.duel_systems import tightrope_config
from tightrope.app.programs import (
    ProgramFailed,
    Programs,
    answers,
    end_marked,
    text_at,
    told_like_ctrl_c,
    used_seconds,
)
from tightrope.app.ray_serve import FOLDER
from tightrope.app.scenario_bench import Options
from tightrope.bench.duel import DuelCell
from tightrope.bench.library import load_scenario
from tightrope.model.codec import encode
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import AcceleratorName, ModelName

CELL = DuelCell(load_scenario("mixed"), "foresight", 3.0, 100, 4.0, 8)
SLEEPS = [sys.executable, "-S", "-c", "import sys; print('ready', flush=True); sys.stdin.read(); sys.exit(0)"]


def test_the_configuration_of_tightrope_has_no_mistake(tmp_path: Path) -> None:
    places = {"Qwen3-8B": ("h100", "l40s", "l40s"), "Qwen3-1.7B": ("l40s", "b60")}
    endpoints = [
        Endpoint(ModelName(model), AcceleratorName(card), f"http://127.0.0.1:{9000 + at}")
        for model, cards in places.items()
        for at, card in enumerate(cards)
    ]
    tree = tightrope_config(CELL, "foresight", ["rag", "shop"], endpoints, 8080)
    config = parse_config(json.dumps({"version": 1, **tree}), tmp_path / "tightrope.yaml", {}).config
    assert config.server.auth == "none"
    assert {model.name: len(model.replicas) for model in config.models} == {"Qwen3-8B": 3, "Qwen3-1.7B": 2}
    (tenant,) = config.tenants
    assert tenant.slo is not None
    assert tenant.slo.tpot_s == 0.4


def test_a_duel_is_what_was_asked(tmp_path: Path) -> None:
    options = Options(which="mixed", policies=("ray-serve",), rates=("20%",), duration="20s", out=tmp_path)
    duel = _planned(options, print)
    assert isinstance(duel, Duel)
    assert (duel.systems, duel.seeds, duel.time_scale) == (("ray-serve",), (100,), 4.0)
    assert (duel.scenario.duration_s, duel.scenario.warm_up_s) == (20.0, 4.0)
    assert _planned(replace(options, time_scale=2.0), print).time_scale == 2.0
    with pytest.raises(InvalidInput, match="no system"):
        _planned(replace(options, policies=("nobody",)), print)


def test_the_peer_lies_where_it_is_looked_for() -> None:
    assert (peer_folder(FOLDER) / "start.py").is_file()


@pytest.mark.parametrize("words", [["duel"], ["mixed", "paper-two-node"]])
def test_a_second_name_belongs_to_a_duel_alone(words: list[str]) -> None:
    result = CliRunner().invoke(main, ["bench", *words])
    assert result.exit_code == 2
    assert "name" in result.stderr or "scenario" in result.stderr


def test_a_program_ends_with_its_round(tmp_path: Path) -> None:
    with ExitStack() as stack:
        programs = Programs(stack, tmp_path, str(tmp_path))
        program = programs.start("sleeper", SLEEPS, ends_with_input=True)
        program.until(lambda: program.has_said("ready"), 30.0)
        assert program.process.pid in used_seconds(str(tmp_path))
    assert program.process.returncode == 0
    assert used_seconds(str(tmp_path)) == {}


def test_a_program_that_ends_by_itself_is_told_with_its_words(tmp_path: Path) -> None:
    with ExitStack() as stack:
        programs = Programs(stack, tmp_path, str(tmp_path))
        program = programs.start(
            "liar", [sys.executable, "-S", "-c", "print('I cannot'); raise SystemExit(3)"]
        )
        with pytest.raises(ProgramFailed, match=r"liar has ended by itself(.|\n)*I cannot"):
            program.until(lambda: False, 30.0)


def test_what_a_killed_duel_left_is_found_by_its_mark(tmp_path: Path) -> None:
    with ExitStack() as stack:
        started = Programs(stack, tmp_path, str(tmp_path)).start("left", SLEEPS, ends_with_input=True)
        started.until(lambda: started.has_said("ready"), 30.0)
        assert end_marked(str(tmp_path / "other")) == 0
        assert end_marked(str(tmp_path)) == 1
        assert started.process.wait(30.0) == -signal.SIGKILL


def test_sigterm_is_like_ctrl_c() -> None:
    code = (
        "import os, signal\n"
        "from tightrope.app.programs import told_like_ctrl_c\n"
        "try:\n"
        "    with told_like_ctrl_c():\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        signal.pause()\n"
        "except KeyboardInterrupt:\n"
        "    raise SystemExit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 7
    earlier = signal.getsignal(signal.SIGTERM)
    with told_like_ctrl_c():
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == earlier


def test_who_does_not_answer_is_named() -> None:
    (port,) = free_ports(1)
    assert not answers(f"http://127.0.0.1:{port}/health")
    with pytest.raises(ProgramFailed, match="does not answer"):
        text_at(f"http://127.0.0.1:{port}/metrics")


# --- real engines ----------------------------------------------------------------------------------------


def test_real_engines_are_as_fast_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="leave out --time-scale"):
        _planned(Options(which="real", time_scale=2.0, out=tmp_path), print)


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tightrope.app.duel_engines.ensure_engine", lambda *_: None)
    profiles = own_profiles()
    tree = {"schema": "tightrope.duel-profiles/1", "profiles": [encode(one) for one in profiles]}
    (tmp_path / PROFILES_FILE).write_text(json.dumps(tree), encoding="utf-8")
    assert measured_engines(tmp_path, print) == profiles
    duel = _planned(Options(which="real", out=tmp_path, duration="40s", rates=("50%",)), print)
    assert (duel.time_scale, duel.scenario.duration_s, duel.scenario.measured) == (1.0, 40.0, profiles)
    whole = (tmp_path / PROFILES_FILE).read_text("utf-8")
    for broken in ("{}", "[]", whole[:-40], whole.replace("kv_tokens", "kv")):
        (tmp_path / PROFILES_FILE).write_text(broken, encoding="utf-8")
        with pytest.raises(InvalidInput, match="delete it, and they are measured anew"):
            measured_engines(tmp_path, print)
