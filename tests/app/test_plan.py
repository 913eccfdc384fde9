"""
`plan` on the command line
1. It shows a fleet for every mix of accelerators, the cheapest one marked, with what came of it in a simulation.
2. The load is what is said, or what a journal shows; sizes of calls are the journal's where there is one.
3. Every promise that somebody has is planned for; `--attain` stands in for the shares.
4. Profiles are those that were measured here, else those of the table of measured cards, which is said.
5. Mistakes are answered with what to write; exit codes are those of all verbs, and 1 where nothing will do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.app.folder import GREET, stand_in
from tests.bench.tiny import tiny
from tightrope.adapters.store_sqlite import SqliteStore
from tightrope.app.cli import main
from tightrope.app.compose import identity_of
from tightrope.app.config import load_config
from tightrope.app.planning import known_profiles
from tightrope.app.workflows import load_workflows
from tightrope.bench import mixes as planning
from tightrope.bench.cell import Cell, cell_scripts, cell_world
from tightrope.bench.mixes import Question, Stream
from tightrope.bench.observed import observed
from tightrope.bench.trial import assumed_flow
from tightrope.kernel.journal import Head, head_line
from tightrope.kernel.state import KernelSettings
from tightrope.model.errors import InvalidInput
from tightrope.model.ids import AcceleratorName, ModelName, TenantId
from tightrope.model.profile import Coefficients, Profile
from tightrope.sim.driver import simulate

CONFIG = """\
version: 1
server: {auth: none}
accelerators: {l40s: {cost: 0.90 USD/h, count: 4}}
models: {small: {engine: {kind: command, command: [vllm, "{port}"]}, place: {l40s: {min: 1}}}}
tenants: {shop: {models: [small], workflows: [greet]}}
workflows: {files: ["*.flow.yaml"]}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration and a workflow; the process stands in it."""
    stand_in(tmp_path, monkeypatch, CONFIG, "greet.flow.yaml")
    return tmp_path


def changed(here: Path, old: str, new: str) -> None:
    file = here / "tightrope.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["plan", *words])


def data_of(result: Result) -> Any:
    (line,) = result.stdout.splitlines()
    whole = json.loads(line)
    assert whole["schema"] == "tightrope.plan/1"
    assert whole["ok"] is (result.exit_code == 0)
    return whole["data"]


def a_journal(here: Path, rate_per_s: float = 4.0, runs: int = 60) -> Path:
    """What the simulator writes of the configured workflow, its prompts ten times as long as would be assumed."""
    config = load_config()
    (workflow,) = load_workflows(config)
    flow = assumed_flow(workflow, {"hello": (2060.0, 10.0)})
    stream = Stream(flow, (TenantId("shop"),), workflow.slo, rate_per_s, 0.95)
    profiles = known_profiles(config).profiles
    asked = Question((stream,), config.accelerators, profiles, KernelSettings())
    scripts = planning._scripts(asked, rate_per_s, runs)
    lines: list[str] = []
    fleet = ((ModelName("small"), AcceleratorName("l40s"), 2),)
    simulate(planning._world(asked, fleet), scripts, journal=lines.append)
    file = here / "seen.journal"
    file.write_text("".join(lines))
    return file


# --- 1, 2 ------------------------------------------------------------------------------------------------


def test_1_a_fleet_for_a_load_that_is_said(here: Path) -> None:
    result = run("--load", "greet=3req/s", "--json")
    assert result.exit_code == 0, result.stderr
    data = data_of(result)
    (load,) = data["load"]
    assert (load["workflow"], load["tenants"], load["per_s"], load["attain"]) == (
        "greet",
        ["shop"],
        3.0,
        0.95,
    )
    (mix,) = data["mixes"]
    assert mix["is_possible"]
    assert mix["is_cheapest"]
    assert mix["fleet"] == [{"model": "small", "accelerator": "l40s", "replicas": 1}]
    assert mix["usd_per_h"] == pytest.approx(0.9)
    (attained,) = mix["attained"]
    assert attained["share"] >= attained["asked"] == 0.95
    for said in ("greet          3  ttft 500ms  95%", "small on 1 l40s", "0.90", "cheapest", "assumed"):
        assert said in result.stderr


def test_2_a_load_that_a_journal_shows(here: Path) -> None:
    file = a_journal(here)
    data = data_of(run("--from", str(file), "--json"))
    assert data["load"][0]["per_s"] == pytest.approx(4.0, rel=0.4)
    (call,) = data["calls"]
    assert not call["is_assumed"]
    assert call["prompt_tokens"] == pytest.approx(2060, rel=0.2)
    assert call["output_tokens"] == pytest.approx(10, rel=0.3)
    assert data["notes"][0].startswith("the journal has 60 runs in ")
    said = data_of(run("--from", str(file), "--load", "greet=1req/s", "--json"))
    assert said["load"][0]["per_s"] == 1.0
    assert said["calls"] == data["calls"]


def test_2_what_a_journal_shows_of_several_sessions() -> None:
    scenario = tiny(duration_s=20.0)
    runs = cell_scripts(scenario, 4.0, 1)
    lines: list[str] = []
    simulate(cell_world(Cell(scenario, "foresight", 4.0, 1), runs), runs, journal=lines.append)
    once, twice = observed(lines), observed([*lines, *lines])
    assert twice.runs == 2 * once.runs == 2 * len(runs)
    assert twice.span_s == pytest.approx(2 * once.span_s)
    assert {key: pytest.approx(per_s) for key, per_s in once.rates.items()} == twice.rates
    assert sum(once.rates.values()) == pytest.approx((once.runs - 1) / once.span_s)
    assert once.busiest_per_s == pytest.approx(once.runs / once.span_s)


# --- 3 ---------------------------------------------------------------------------------------------------


def test_3_every_promise_is_planned_for(here: Path) -> None:
    grants = "{models: [small], workflows: [{name: greet, slo: {ttft: 300ms}}]}"
    changed(here, "tenants: {", f"tenants: {{bank: {grants}, ")
    result = run("--load", "greet=4req/s", "--attain", "90%", "--json")
    data = data_of(result)
    assert [(one["tenants"], one["per_s"], one["promised"]["ttft_s"]) for one in data["load"]] == [
        (["bank"], 2.0, 0.3),
        (["shop"], 2.0, 0.5),
    ]
    assert [one["attain"] for one in data["load"]] == [0.9, 0.9]
    assert "greet (bank)" in result.stderr


def test_3_plain_models_count_too(here: Path) -> None:
    changed(here, "shop: {models", "shop: {slo: {e2e: 60s}, limits: {output: 40 tok}, models")
    data = data_of(run("--load", "model/small=2req/s", "--json"))
    assert data["load"][0]["promised"] == {"ttft_s": None, "tpot_s": None, "e2e_s": 60.0}
    assert data["mixes"][0]["is_possible"]


# --- 4 ---------------------------------------------------------------------------------------------------


def test_4_what_was_measured_comes_first(here: Path) -> None:
    assert known_profiles(load_config()).assumed == {("small", "l40s"): "Qwen3-1.7B"}
    assert (
        "note: small was not measured on l40s: it is taken to be as fast as Qwen3-1.7B"
        in run("--load", "greet=1req/s").stderr
    )
    config = load_config()
    identity = identity_of(config.models[0], config.accelerators[0])
    slow = Coefficients(a=400.0, b=1.0, c=0.0, d=1.0, e=0.0)
    profile = Profile(
        ModelName("small"),
        AcceleratorName("l40s"),
        slow,
        512,
        8,
        9000,
        digest=identity.digest,
        engine=identity.engine,
    )
    config.state.mkdir()
    store = SqliteStore(config.store_file)
    store.save_profile(profile)
    store.close()
    known = known_profiles(load_config())
    assert known.assumed == {}
    assert known.profiles["small", "l40s"].coefficients == slow  # type: ignore[index]
    result = run("--load", "greet=1req/s", "--json")
    assert result.exit_code == 1
    (mix,) = data_of(result)["mixes"]
    assert not mix["is_possible"]
    assert "of the runs of greet are on time on l40s even without others" in mix["why"][0]
    assert "l40s cannot do it:" in result.stderr


def test_4_what_nobody_measured_is_to_be_profiled(here: Path) -> None:
    changed(here, "accelerators: {l40s: {cost: 0.90 USD/h, count: 4}}", "accelerators: {mine: {}, l40s: {}}")
    changed(here, "place: {l40s: {min: 1}}", "place: {mine: {min: 1}}")
    result = run("--load", "greet=1req/s", "--json")
    assert result.exit_code == 0
    notes = data_of(result)["notes"]
    assert "small on mine has no profile and is left out: `tightrope profile small --on mine`" in notes
    assert "no accelerator has a price (`cost`), so the fewest replicas count as the cheapest" in notes
    changed(here, ", l40s: {}", "")
    result = run("--load", "greet=1req/s")
    assert result.exit_code == 3
    assert "small has no profile on any accelerator" in result.stderr
    assert "run `tightrope profile small --on mine`" in result.stderr


# --- 5 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "say the load: --load WORKFLOW=RATE, such as --load greet=2req/s"),
        (("--load", "greet"), 2, "write WORKFLOW=RATE, such as greet=2req/s"),
        (("--load", "greet=2"), 2, "an arrival rate is written like 6 req/s"),
        (("--load", "greet=0req/s"), 2, "no run arrives"),
        (("--load", "gret=2req/s"), 3, "did you mean 'greet'"),
        (("--load", "model/small=2req/s"), 2, "nothing is promised to runs of model/small"),
        (("--load", "greet=2req/s", "--attain", "100%"), 2, "below 100%"),
        (("--load", "greet=2req/s", "--attain", "0.9"), 2, "has no unit"),
        (("--from", "none.journal"), 3, "there is no journal none.journal"),
        (("--from", "empty.journal"), 2, "the journal has no runs"),
        (("--load", "greet=2req/s", "--config", "none.yaml"), 2, "there is no such file"),
    ],
)
def test_5_mistakes_are_answered_with_what_to_write(
    here: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    (here / "empty.journal").write_text(head_line(Head(KernelSettings(), 0.0, 0.0)))
    result = run(*words)
    assert said in result.stderr
    assert result.exit_code == code
    counted = run(*words, "--json")
    assert counted.exit_code == code
    assert not json.loads(counted.stdout)["ok"]


def test_5_a_journal_of_other_workflows(here: Path) -> None:
    file = a_journal(here, runs=2)
    (here / "greet.flow.yaml").write_text(GREET.replace("workflow: greet", "workflow: other"))
    changed(here, "workflows: [greet]", "workflows: [other]")
    result = run("--from", str(file))
    assert result.exit_code == 2
    assert "no workflow of the journal (greet) is one of" in result.stderr


def test_5_a_journal_with_one_run(here: Path) -> None:
    file = a_journal(here, runs=1)
    with pytest.raises(InvalidInput, match="only 1 run, which show"), file.open() as lines:
        observed(lines)
