"""How a machine's mechanism for processor shares is found, and what a share becomes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightrope.adapters.processor_share import (
    SMALLEST_SHARE,
    DutyCycle,
    ProcessorShares,
    QuotaV2,
    find_mechanism,
    quota,
)

V1 = "32 31 0:29 / /cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "41 31 0:38 / /unified rw - cgroup2 cgroup2 rw\n"
OWN = "1:cpu,cpuacct:/session\n0::/user/session\n"


@given(st.floats(SMALLEST_SHARE, 1))
def test_a_quota_is_the_share_of_its_period_and_one_the_system_takes(share: float) -> None:
    period_us, quota_us = quota(share)
    assert quota_us >= 1000
    assert quota_us / period_us == pytest.approx(share, abs=1e-4)


def test_no_share_is_no_quota() -> None:
    assert quota(None)[1] == -1


@pytest.mark.parametrize("mounts", ["", V1, V2, V1 + V2, "31 23 0:28 / /x rw - tmpfs tmpfs rw\n"])
def test_groups_that_cannot_be_used_leave_the_duty_cycle(tmp_path: Path, mounts: str) -> None:
    # In a plain folder no group files appear, which is how a controller that is not enabled looks.
    for folder in ("cpu/session", "unified/user/session"):
        (tmp_path / folder).mkdir(parents=True)
    assert find_mechanism(mounts, OWN, root=tmp_path) == DutyCycle()
    assert [file for file in tmp_path.rglob("*") if "trial" in file.name] == []


def test_engines_share_cores_evenly_and_keep_theirs(tmp_path: Path) -> None:
    shares = ProcessorShares(DutyCycle(), tmp_path, "x", cores=[0, 1])
    assert [shares.place(key, share).cores for key, share in (("a", 0.7), ("b", 0.3), ("c", 0.3))] == [
        (0,),
        (1,),
        (1,),
    ]
    assert shares.place("d", 0.9).cores == (1,)
    assert shares.place("a", 0.1).cores == (0,)
    assert shares.place("e", None).cores == ()
    assert [shares.core_of(key) for key in ("a", "b", "e")] == [0, 1, None]


async def test_a_released_share_makes_room(tmp_path: Path) -> None:
    shares = ProcessorShares(DutyCycle(), tmp_path, "x", cores=[0, 1])
    shares.place("a", 0.7)
    shares.place("b", 0.5)
    await shares.release("a")
    assert shares.place("c", 0.5).cores == (0,)
    for key in "bc":
        await shares.release(key)
    assert files_in(tmp_path) == []


def test_a_group_of_version_2_gets_quota_and_period(tmp_path: Path) -> None:
    shares = ProcessorShares(QuotaV2(tmp_path), tmp_path, "x", cores=[0])
    placement = shares.place("a", 0.25)
    assert placement.join_file == tmp_path / "tightrope-x-a" / "cgroup.procs"
    assert (tmp_path / "tightrope-x-a" / "cpu.max").read_text() == "2500 10000"


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(ValueError, match="lies between"):
        ProcessorShares(DutyCycle(), tmp_path, "x").place("a", share)


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())
