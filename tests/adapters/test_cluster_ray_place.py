"""What Ray is told of how to reach it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tightrope.adapters.cluster_ray import RayPlace


@pytest.fixture
def token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Ray keeps the token of this user; not there yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    return tmp_path / ".ray" / "auth_token"


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "localhost:6379", "[::1]:6379"])
def test_a_ray_of_this_machine_is_reached_with_the_token_that_it_was_started_with(
    token_file: Path, address: str
) -> None:
    assert "RAY_AUTH_MODE" not in RayPlace(address).environment()
    token_file.write_text("secret")
    assert RayPlace(address).environment()["RAY_AUTH_MODE"] == "token"


def test_a_token_of_this_machine_is_not_told_to_others(token_file: Path) -> None:
    token_file.write_text("secret")
    assert "RAY_AUTH_MODE" not in RayPlace("10.0.0.9:6379").environment()


def test_a_token_that_is_configured_is_the_one_that_is_told(token_file: Path) -> None:
    token_file.write_text("secret")
    configured = RayPlace("127.0.0.1:6379", "another").environment()
    assert (configured["RAY_AUTH_MODE"], configured["RAY_AUTH_TOKEN"]) == ("token", "another")
