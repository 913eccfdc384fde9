"""Emulated engines of a configuration: how they are started, what is believed of them, and their fleet as a program."""

from __future__ import annotations

import asyncio
import json
import runpy
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from tests.contract.engine_contract import LIMIT_S
from tightrope.adapters.emulated_truth import read_table
from tightrope.adapters.engine_emulated import option_parser, setting_of
from tightrope.adapters.store_sqlite import SqliteStore
from tightrope.app.compose import (
    emulated_profile,
    engine_command,
    identity_of,
    known_profiles,
    local_cluster,
    pairs_of,
    plan_of,
    stored_profiles,
)
from tightrope.app.config import Config, parse_config
from tightrope.app.planning import known_profiles as planned_profiles
from tightrope.model.errors import InvalidConfig, InvalidInput
from tightrope.model.ids import AcceleratorName, ModelName
from tightrope.model.messages import ReplicaLost, ReplicaReady

ROOT = Path(__file__).parents[2]
TEXT = """
version: 1
server: {listen: "127.0.0.1:0", auth: none}
accelerators: {h100: {}, l40s: {count: 2}}
cluster: {local: {state: ./state}}
models:
  big:
    engine: {kind: emulated, profile: Qwen3-8B, time_scale: 2, tokens_per_chunk: 4, start: 10ms}
    place: {h100: {min: 1}, l40s: {min: 1}}
"""


def config_of(folder: Path, text: str = TEXT) -> Config:
    return parse_config(text, folder / "tightrope.yaml", {}).config


def test_the_table_of_the_package_is_what_the_measured_step_times_give() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_cards.py"))["table"]()
    assert made == read_table()


def test_a_start_line_says_all_of_the_setting(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    command = engine_command(config, plan_of(config).replicas[1], 8123)
    options = option_parser().parse_args(command[3:])
    assert command[1:3] == ["-m", "tightrope.adapters.engine_emulated"]
    setting = setting_of(options)
    assert (options.port, setting.name, setting.time_scale, setting.tokens_per_chunk) == (8123, "big", 2.0, 4)
    assert (setting.start_s, setting.seed) == (0.01, 1)
    assert setting.truth.profile == read_table().profile("Qwen3-8B", "l40s")
    assert 0 < setting.truth.noise < 0.1


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--time-scale", "0", "--time-scale must be above 0"),
        ("--tokens-per-chunk", "0", "--tokens-per-chunk must be at least 1"),
        ("--start-up", "-1", "--start-up must be at least 0 seconds"),
        ("--noise", "2", "--noise must be from 0"),
        ("--context", "1", "--context must be at least 2"),
        ("--port", "70000", "--port must be from 0 to 65535"),
        ("--truth", "{}", "--truth: this is no truth"),
        ("--truth", "nowhere.json", "--truth: nowhere.json: No such file"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(tmp_path: Path, option: str, value: str, says: str) -> None:
    config = config_of(tmp_path)
    command = engine_command(config, plan_of(config).replicas[0], 8123)
    options = option_parser().parse_args([*command[3:], option, value])
    with pytest.raises(InvalidInput) as caught:
        setting_of(options)
    assert str(caught.value).startswith(says)


def test_what_was_never_measured_is_believed_as_it_is_told(tmp_path: Path) -> None:
    config, store = config_of(tmp_path), SqliteStore(tmp_path / "store")
    profiles = known_profiles(config, store)
    assert [(one.model, one.accelerator) for one in profiles] == [("big", "h100"), ("big", "l40s")]
    for one in profiles:
        known = read_table().profile("Qwen3-8B", one.accelerator)
        assert one.coefficients == known.coefficients.scaled(2)
        assert (one.kv_tokens, one.load_s) == (known.kv_tokens, 0.02)
    assert planned_profiles(config).profiles[ModelName("big"), AcceleratorName("h100")] == profiles[0]
    store.close()


def test_what_was_measured_wins_until_the_engine_is_another(tmp_path: Path) -> None:
    config, store = config_of(tmp_path), SqliteStore(tmp_path / "store")
    (model, card), _ = pairs_of(config)
    told = emulated_profile(model, card)
    assert told is not None
    measured = replace(told, coefficients=replace(told.coefficients, a=99.0))
    store.save_profile(measured)
    assert measured in known_profiles(config, store)
    assert told not in known_profiles(config, store)
    other = config_of(tmp_path, TEXT.replace("time_scale: 2", "time_scale: 3"))
    assert stored_profiles(other, store) == []
    assert identity_of(*pairs_of(other)[0]) != identity_of(model, card)
    store.close()


@pytest.mark.parametrize(
    ("right", "wrong", "path", "says"),
    [
        ("Qwen3-8B", "Qwen-8B", "profile", "the speed of Qwen-8B is not known"),
        ("l40s", "l40", "l40", "the speed of Qwen3-8B on l40 is not known"),
        ("profile: Qwen3-8B", "profile: Qwen3-8B, table: nowhere.json", "table", "No such file"),
        ("time_scale: 2", "time_scale: -2", "time_scale", "greater than 0"),
        ("start: 10ms", "start: 10", "start", "unit"),
        ("tokens_per_chunk: 4", "tokens_per_chunk: 0", "tokens_per_chunk", "greater than or equal to 1"),
    ],
)
def test_a_mistake_is_named_where_it_stands(
    tmp_path: Path, right: str, wrong: str, path: str, says: str
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        config_of(tmp_path, TEXT.replace(right, wrong))
    problem = caught.value.problems[0]
    assert problem.path[-1] == path
    assert says in problem.message
    assert problem.line
    assert problem.cure


def test_a_table_of_ones_own_is_used(tmp_path: Path) -> None:
    row = {
        "model": "mine", "accelerator": "h100", "step_tokens": 512, "max_sequences": 8, "kv_tokens": 9000,
        "coefficients": {"a": 5, "b": 0.1, "c": 0.001, "d": 0.1, "e": 0},
    }  # fmt: skip
    file = tmp_path / "cards.json"
    text = TEXT.replace("Qwen3-8B", "mine, table: ./cards.json").replace(", l40s: {min: 1}}", "}")
    file.write_text(json.dumps({"source": "me", "licence": "none", "profiles": [row]}))
    assert known_profiles(config_of(tmp_path, text), SqliteStore(tmp_path / "store"))[0].kv_tokens == 9000
    file.write_text(json.dumps({"source": "me", "licence": "none", "profiles": [row | {"kv_tokens": 0}]}))
    with pytest.raises(InvalidConfig) as caught:
        config_of(tmp_path, text)
    assert "mine on h100: kv_tokens is 0" in str(caught.value.problems[0])


async def test_a_replica_is_a_process_that_crashes_on_command(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    spec = plan_of(config).replicas[0]
    cluster = local_cluster(config, die_with_parent=True)
    told = aiter(cluster.watch())
    try:
        async with asyncio.timeout(LIMIT_S):
            await cluster.start(spec)
            assert await anext(told) == ReplicaReady(spec.id, 128)
            root = cluster.url(spec.id).removesuffix("/v1")
            async with aiohttp.ClientSession() as session:
                with pytest.raises(aiohttp.ClientError):
                    await session.post(f"{root}/emulated/crash")
            lost = await anext(told)
        assert isinstance(lost, ReplicaLost)
        assert "ended with status 70" in lost.why
    finally:
        await cluster.close()
