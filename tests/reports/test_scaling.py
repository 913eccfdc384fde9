"""What the provisioner did, in words: every reason has some, and the numbers stand beside them."""

from __future__ import annotations

import pytest

from tightrope.model.ids import AcceleratorName, ModelName
from tightrope.model.messages import NoteScaling
from tightrope.model.provision import ScaleAction
from tightrope.policy.provision import ScaleReason
from tightrope.reports.scaling import AGAINST, BECAUSE, sentence

TINY, FAST = ModelName("tiny"), AcceleratorName("fast")
UP = NoteScaling(
    ScaleAction.UP, TINY, FAST, 0, 1, "from-zero", (("demand", 1.97), ("bears", 0.0), ("risk", 0.0), ("waiting", 2.0))
)  # fmt: skip


def test_every_reason_has_its_words() -> None:
    assert {*BECAUSE, *AGAINST} == set(ScaleReason)


@pytest.mark.parametrize(
    ("note", "words"),
    [
        (
            UP,
            ("tiny on fast goes from 0 to 1 replica: calls wait and it has no replica (1.97 calls/s asked for, bears 0"
             " calls/s, 2 waiting)"),
        ),
        (
            NoteScaling(ScaleAction.HOLD, TINY, FAST, 2, 3, "no-card", (("share", 0.8), ("risk", 0.12))),
            ("tiny on fast stays at 2, 3 wanted: there is no free card (80% of it can be borne at all,"
             " 12% predicted late)"),
        ),
        (
            NoteScaling(ScaleAction.DOWN, TINY, FAST, 3, 2, "cheaper", (("saves", 1.25),), is_advice=True),
            "advice only: tiny on fast goes from 3 to 2 replicas: these cards do the same for less (saves 1.25 USD/h)",
        ),
        (
            NoteScaling(ScaleAction.HOLD, TINY, FAST, 1, 1, "blind"),
            "tiny on fast stays at 1: its replicas hold calls and say nothing",
        ),
        (
            NoteScaling(ScaleAction.UP, TINY, FAST, 1, 2, "my-own", (("x", 1.5),)),
            "tiny on fast goes from 1 to 2 replicas: my-own (x 1.5)",
        ),
    ],
)  # fmt: skip
def test_a_change_is_one_sentence_with_its_reason_and_its_numbers(note: NoteScaling, words: str) -> None:
    assert sentence(note) == words
