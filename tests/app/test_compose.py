"""What a configuration becomes: the fleet at first, what the provisioner may do, and which pairs are to be measured."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.runtime.world import within
from tightrope.app.compose import compose, pairs_of, plan_of, provisioning_of
from tightrope.app.config import Config, parse_config
from tightrope.app.serve import is_ready
from tightrope.model.ids import AcceleratorName, ModelName, TenantId
from tightrope.model.messages import DrainRequested
from tightrope.model.provision import Bounds, Floor, Provisioning, ProvisionMode
from tightrope.testing import a_profile

TEXT = """
version: 1
server: {listen: "127.0.0.1:0", auth: none}
accelerators:
  fast: {cost: 3 USD/h, count: 2}
  slow: {cost: 1 USD/h, count: 4}
  theirs: {}
cluster: {local: {state: ./state}}
models:
  small:
    engine: {kind: command, command: [no-such-program, "{port}"]}
    place: {fast: {min: 0, max: 2, cards: 2}, slow: {min: 1, max: 3}}
  big:
    engine: {kind: command, command: [no-such-program, "{port}"]}
    place: {fast: {min: 0, max: 1}, slow: {min: 0}}
  far:
    engine: {kind: openai}
    replicas: [{url: "http://127.0.0.1:9/v1", place: theirs}]
tenants:
  shop: {floor: 2 req/s, models: [small]}
provisioner: {mode: act, every: 2s, attain: 90%, headroom: 0%, risk: 10%, idle_after: 30s, cooldown: 15s}
"""
SMALL, BIG = ModelName("small"), ModelName("big")
FAST, SLOW = AcceleratorName("fast"), AcceleratorName("slow")


def config_of(folder: Path, text: str = TEXT) -> Config:
    return parse_config(text, folder / "tightrope.yaml", {}).config


def test_what_is_always_there_is_planned_from_the_start(tmp_path: Path) -> None:
    assert [spec.id for spec in plan_of(config_of(tmp_path)).replicas] == ["small-slow-1", "far-theirs-x1"]


def test_every_pair_that_may_exist_is_known(tmp_path: Path) -> None:
    pairs = [(model.name, card.name) for model, card in pairs_of(config_of(tmp_path))]
    assert pairs == [("small", "fast"), ("small", "slow"), ("big", "fast"), ("far", "theirs")]


def test_the_contract_of_the_provisioner_is_what_the_file_says(tmp_path: Path) -> None:
    profiles = [a_profile("small", "fast", load_s=4.0), a_profile("small", "slow", load_s=0.0)]
    assert provisioning_of(config_of(tmp_path), profiles) == Provisioning(
        policy="least-cost",
        bounds=(
            Bounds(SMALL, FAST, 0, 2, cards=2, load_s=4.0),
            Bounds(SMALL, SLOW, 1, 3, cards=1, load_s=30.0),
            Bounds(BIG, FAST, 0, 1, cards=1, load_s=30.0),
            Bounds(BIG, SLOW, 0, 0, cards=1, load_s=30.0),
        ),
        floors=(Floor(TenantId("shop"), 2.0),),
        mode=ProvisionMode.ACT,
        every_s=2.0,
        attain=0.9,
        headroom=0.0,
        risk=0.1,
        idle_after_s=30.0,
        cooldown_s=15.0,
        max_usd_per_h=math.inf,
        target=None,
    )


def test_a_fleet_that_stays_as_it_is_has_no_provisioner(tmp_path: Path) -> None:
    text = TEXT.partition("tenants:")[0].replace("min: 0, max: 2, cards: 2", "min: 1")
    text = text.replace("min: 1, max: 3", "min: 1").replace("min: 0, max: 1", "min: 1")
    assert provisioning_of(config_of(tmp_path, text)) is None


@pytest.mark.parametrize(
    ("mode", "places", "is_served"),
    [
        ("act", "{fast: {min: 0, max: 1}}", True),  # it is started when somebody asks
        ("act", "{fast: {min: 1, max: 2}}", False),  # it should be there, and is not
        ("advise", "{fast: {min: 1, max: 2}}", False),
    ],
)
async def test_a_server_is_ready_for_models_that_are_started_when_they_are_asked(
    tmp_path: Path, mode: str, places: str, is_served: bool
) -> None:
    head = TEXT.partition("models:")[0]
    models = f"models: {{big: {{engine: {{kind: command, command: [x, '{{port}}']}}, place: {places}}}}}\n"
    runtime = compose(config_of(tmp_path, f"{head}{models}provisioner: {{mode: {mode}}}\n"), [])
    try:
        assert is_ready(runtime) is is_served
        runtime.driver.post(DrainRequested())
        assert not is_ready(runtime)
    finally:
        await within(runtime.close())
