"""What every Store promises; `test_store_*.py` runs it over each implementation.

1. What was saved is read back equal, in the order promised.
2. A second save of the same thing replaces the first.
3. What was saved is there after the store was closed and opened again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tightrope.model.ids import AcceleratorName, ModelName, TenantId
from tightrope.model.key import KeyRecord
from tightrope.model.profile import Coefficients, FitError, Profile
from tightrope.ports import Store

SPEED = Coefficients(4.0, 0.5, 1e-4, 0.2, 1e-6, h=0.25)


def a_profile(
    model: str = "small", accelerator: str = "l40s", *, digest: str = "d1", engine: str = "llamacpp b1"
) -> Profile:
    return Profile(
        ModelName(model), AcceleratorName(accelerator), SPEED, 512, 4, 8192, digest=digest, engine=engine
    )


def a_key(public_id: str = "aaaaaaaa", created_at: float = 1.0) -> KeyRecord:
    return KeyRecord(public_id, TenantId("shop"), "tenant", bytes(range(32)), created_at)


class StoreContract:
    """Subclasses give the fixture `open_store`: a function that opens the same store at each call."""

    def test_1_a_profile_is_read_back_equal(self, open_store: Callable[[], Store]) -> None:
        store = open_store()
        profile = replace(
            a_profile(), error=FitError(0.1, 0.2, 0.15, 40), load_s=1.5, measured_at="2026-01-01"
        )
        store.save_profile(profile)
        assert list(store.profiles()) == [profile]

    def test_1_profiles_come_in_the_order_of_saving(self, open_store: Callable[[], Store]) -> None:
        store = open_store()
        old, new = a_profile(digest="d1"), a_profile(digest="d2")
        store.save_profile(old)
        store.save_profile(new)
        store.save_profile(old)
        assert list(store.profiles()) == [new, old]

    def test_1_keys_are_read_back_equal_by_creation(self, open_store: Callable[[], Store]) -> None:
        store = open_store()
        late = replace(a_key("zzzzzzzz", 3.5), role="admin", expires_at=10.25, revoked_at=4.0)
        early = a_key("mmmmmmmm", 2.0)
        store.save_key(late)
        store.save_key(early)
        assert list(store.keys()) == [early, late]

    def test_2_a_profile_replaces_the_one_of_the_same_three(self, open_store: Callable[[], Store]) -> None:
        store = open_store()
        store.save_profile(a_profile())
        store.save_profile(better := replace(a_profile(), load_s=9.0))
        store.save_profile(other := a_profile(accelerator="h100"))
        assert list(store.profiles()) == [better, other]

    def test_2_models_without_a_digest_are_told_apart_by_name(self, open_store: Callable[[], Store]) -> None:
        store = open_store()
        store.save_profile(a_profile("small", digest="", engine=""))
        store.save_profile(a_profile("big", digest="", engine=""))
        assert [profile.model for profile in store.profiles()] == ["small", "big"]

    def test_2_a_key_replaces_the_one_of_the_same_id(self, open_store: Callable[[], Store]) -> None:
        store = open_store()
        store.save_key(a_key())
        store.save_key(revoked := replace(a_key(), revoked_at=2.0))
        assert list(store.keys()) == [revoked]

    def test_3_a_store_remembers(self, open_store: Callable[[], Store]) -> None:
        store = open_store()
        store.save_profile(a_profile())
        store.save_key(a_key())
        store.close()
        again = open_store()
        assert (list(again.profiles()), list(again.keys())) == ([a_profile()], [a_key()])

    def test_a_new_store_is_empty(self, open_store: Callable[[], Store]) -> None:
        store = open_store()
        assert (list(store.profiles()), list(store.keys())) == ([], [])
