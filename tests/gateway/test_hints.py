"""Laws of hint headers

1. A header can only tighten: the SLO of a run lies between the floor and the contract.
2. Nothing is guessed: what is not one plain decimal in range is refused with the header's name.
3. If several names carry one meaning, ours wins, and all are checked.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightrope.gateway.errors import ApiError
from tightrope.gateway.hints import Hints, granted, hints
from tightrope.model.slo import Slo

times = st.none() | st.floats(0.001, 3600)


def read(**by_name: str) -> Hints:
    return hints([(name.replace("_", "-").encode(), value.encode()) for name, value in by_name.items()])


@given(times, times, times)
def test_1_the_grant_lies_between_floor_and_contract(
    asked_s: float | None, floor_s: float | None, contract_s: float | None
) -> None:
    floor, contract = Slo(ttft_s=floor_s), Slo(ttft_s=contract_s)
    got_s = granted(Hints(ttft_s=asked_s), contract, floor).ttft_s
    if asked_s is None or floor_s is None:
        assert got_s == contract_s
    else:
        assert got_s is not None
        assert contract_s is None or got_s <= contract_s
        assert got_s >= floor_s or got_s == contract_s
        assert got_s in (asked_s, floor_s, contract_s)


@given(times, times, times)
def test_1_without_a_floor_the_contract_stands(
    a_s: float | None, b_s: float | None, c_s: float | None
) -> None:
    contract = Slo(ttft_s=1.0, attain=0.9)
    assert granted(Hints(a_s, b_s, c_s), contract, None) == contract


def test_1_each_target_is_bounded_by_its_own() -> None:
    contract, floor = Slo(ttft_s=1.0, e2e_s=10.0), Slo(ttft_s=0.4, tpot_s=0.05, e2e_s=2.0)
    asked = Hints(ttft_s=0.1, tpot_s=0.1, e2e_s=99.0)
    assert granted(asked, contract, floor) == Slo(ttft_s=0.4, tpot_s=0.1, e2e_s=10.0)


@pytest.mark.parametrize(
    "value",
    ["", " ", "0", "0.9", "-1", "+1", "1e3", "1E3", "NaN", "inf", "1e309", "3600001", "99999999999999999999", "1_000",
     "0x10", "1,5", "1.", ".5", "1 2", "900ms", "\u0661", "1\u00a0"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["x-tightrope-slo-ttft-ms", "x-slo-tpot-ms", "x-tightrope-deadline-ms"])
def test_2_values_that_are_no_plain_decimal_are_refused(name: str, value: str) -> None:
    with pytest.raises(ApiError) as refused:
        hints([(name.encode(), value.encode())])
    assert (refused.value.entry.code, refused.value.param) == ("bad_header", name)


def test_2_a_repeated_header_is_refused_even_if_equal() -> None:
    with pytest.raises(ApiError, match="bad_header"):
        hints([(b"x-slo-ttft-ms", b"900"), (b"x-slo-ttft-ms", b"900")])


def test_2_the_whole_range_is_read() -> None:
    assert read(x_tightrope_slo_ttft_ms="1").ttft_s == 0.001
    assert read(x_tightrope_slo_ttft_ms="3600000").ttft_s == 3600
    assert read(x_tightrope_slo_e2e_ms="1500.5").e2e_s == 1.5005


def test_limits_of_client_libraries_are_seconds_and_may_be_long() -> None:
    assert read(x_stainless_read_timeout="600").silence_s == 600
    assert read(x_litellm_timeout="6000.5").deadline_s == 6000.5
    with pytest.raises(ApiError, match="bad_header"):
        read(x_stainless_read_timeout="0")


def test_3_ours_wins_then_the_order_of_the_table() -> None:
    assert read(x_slo_ttft_ms="300", x_llm_d_slo_ttft_ms="200", x_tightrope_slo_ttft_ms="100").ttft_s == 0.1
    assert read(x_slo_ttft_ms="300", x_llm_d_slo_ttft_ms="200").ttft_s == 0.2
    ours = read(x_tightrope_deadline_ms="5000", x_stainless_read_timeout="1", x_litellm_timeout="2")
    assert (ours.deadline_s, ours.silence_s) == (5.0, None)


def test_3_all_names_are_checked() -> None:
    with pytest.raises(ApiError) as refused:
        read(x_tightrope_slo_ttft_ms="100", x_slo_ttft_ms="soon")
    assert refused.value.param == "x-slo-ttft-ms"


def test_other_headers_mean_nothing() -> None:
    assert read(x_something="soon", priority="9") == Hints()
