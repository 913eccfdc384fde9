"""Laws of API keys

1. A key speaks for its tenant in its role, and nothing but the key itself does.
2. Missing, malformed, unknown, expired and revoked keys get the same answer for the same work.
3. What is stored does not hold the secret.
4. After a rotation both keys hold until the grace ends, and only the new one after it.
"""

from __future__ import annotations

import hmac
import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightrope.gateway import keys
from tightrope.gateway.keys import PATTERN, Keyring, Principal, mint, revoke, rotate, without_keys
from tightrope.model.ids import TenantId
from tightrope.model.key import KeyRecord

SHOP = TenantId("shop")
PEPPER = b"p" * 32
NOW_S = 1_800_000_000.0
TEXT, RECORD = mint(SHOP, "operator", NOW_S, NOW_S + 100, PEPPER)


def ring(*records: KeyRecord, now_s: float = NOW_S, pepper: bytes = PEPPER) -> Keyring:
    return Keyring(records, pepper, lambda: now_s)


def test_1_a_key_speaks_for_its_tenant() -> None:
    assert ring(RECORD).authenticate(f"Bearer {TEXT}") == Principal(SHOP, "operator", RECORD.public_id)


@given(st.integers(0, len(TEXT) - 1), st.characters(min_codepoint=33, max_codepoint=126))
def test_1_a_key_with_another_letter_is_refused(index: int, letter: str) -> None:
    changed = TEXT[:index] + letter + TEXT[index + 1 :]
    assert (ring(RECORD).authenticate(f"Bearer {changed}") is None) == (changed != TEXT)


@given(st.text() | st.from_regex(PATTERN, fullmatch=True).map("Bearer {}".format))
def test_1_guesses_are_refused(header: str) -> None:
    assert ring(RECORD).authenticate(header) is None


def test_1_another_pepper_refuses_every_key() -> None:
    assert ring(RECORD, pepper=b"q" * 32).authenticate(f"Bearer {TEXT}") is None


def test_a_key_has_the_published_form_and_192_random_bits() -> None:
    minted = [mint(SHOP, "tenant", NOW_S, None, PEPPER)[0] for _ in range(200)]
    assert all(re.fullmatch(r"tr_[A-Za-z0-9]{8}_[A-Za-z0-9_-]{32}", text) for text in minted)
    assert len(set(minted)) == 200
    assert len({text[12:] for text in minted}) == 200


@pytest.mark.parametrize("header", [f"bearer {TEXT}", f"BEARER  {TEXT} "], ids=["lower", "upper"])
def test_the_scheme_is_read_as_http_says(header: str) -> None:
    assert ring(RECORD).authenticate(header) is not None


@pytest.mark.parametrize(
    "header",
    [None, "", TEXT, f"Basic {TEXT}", f"Bearer {TEXT}{TEXT}", f"Bearer {TEXT}\n x"],
    ids=["none", "empty", "no-scheme", "other-scheme", "twice", "two-lines"],
)
def test_2_what_is_no_bearer_is_refused(header: str | None) -> None:
    assert ring(RECORD).authenticate(header) is None


REFUSED = {
    "missing": (None, RECORD),
    "malformed": ("Bearer x' OR 1=1 --", RECORD),
    "unknown": (f"Bearer {mint(SHOP, 'tenant', NOW_S, None, PEPPER)[0]}", RECORD),
    "wrong secret": (f"Bearer {TEXT[:-1]}{'A' if TEXT[-1] != 'A' else 'B'}", RECORD),
    "expired": (f"Bearer {TEXT}", replace(RECORD, expires_at=NOW_S)),
    "revoked": (f"Bearer {TEXT}", revoke(RECORD, NOW_S - 1)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_2_every_refusal_costs_one_hash_and_one_comparison(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    header, record = REFUSED[case]
    checked = ring(record)
    work: Counter[str] = Counter()

    class Counted:
        @staticmethod
        def digest(key: bytes, message: bytes, name: str) -> bytes:
            work["hash"] += 1
            return hmac.digest(key, message, name)

        @staticmethod
        def compare_digest(one: bytes, other: bytes) -> bool:
            work["comparison"] += 1
            return hmac.compare_digest(one, other)

    monkeypatch.setattr(keys, "hmac", Counted)
    assert checked.authenticate(header) is None
    assert work == {"hash": 1, "comparison": 1}


def test_3_the_record_does_not_hold_the_secret() -> None:
    secret = TEXT.split("_", 2)[2]  # an underscore may stand in it too
    assert secret not in repr(RECORD)
    assert secret.encode() not in RECORD.hash
    assert len(RECORD.hash) == 32


def test_4_a_rotation_has_a_grace() -> None:
    text, new, old = rotate(RECORD, NOW_S, 50, PEPPER)
    for now_s, old_holds in ((NOW_S, True), (NOW_S + 49, True), (NOW_S + 50, False)):
        both = ring(old, new, now_s=now_s)
        assert (both.authenticate(f"Bearer {TEXT}") is not None) == old_holds
        assert both.authenticate(f"Bearer {text}") == Principal(SHOP, "operator", new.public_id)


def test_4_a_grace_never_lengthens_a_life() -> None:
    _, new, old = rotate(RECORD, NOW_S + 90, 1000, PEPPER)
    assert old.expires_at == RECORD.expires_at
    assert new.expires_at == NOW_S + 190


def test_a_key_without_an_end_is_rotated_into_one_without_an_end() -> None:
    _, endless = mint(SHOP, "tenant", NOW_S, None, PEPPER)
    _, new, old = rotate(endless, NOW_S, 10, PEPPER)
    assert (new.expires_at, old.expires_at) == (None, NOW_S + 10)


def test_a_second_revocation_changes_nothing() -> None:
    revoked = revoke(RECORD, NOW_S)
    assert revoke(revoked, NOW_S + 5) == revoked


def test_a_reload_lets_in_and_shuts_out_at_once() -> None:
    loaded = ring()
    assert loaded.authenticate(f"Bearer {TEXT}") is None
    loaded.reload([RECORD])
    assert loaded.authenticate(f"Bearer {TEXT}") is not None
    loaded.reload([revoke(RECORD, NOW_S)])
    assert loaded.authenticate(f"Bearer {TEXT}") is None


def test_without_keys_everybody_is_local() -> None:
    assert without_keys(None) == without_keys("Bearer x") == Principal(TenantId("local"), "admin")
