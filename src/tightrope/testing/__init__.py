"""Test tools for users of Tightrope: a clock moved by hand, engines by script, values with dull defaults.

An OpenAI-compatible server with the same answers is `tightrope.testing.server`.
"""

from tightrope.testing.answers import Answer, answer_to
from tightrope.testing.builders import a_chain, a_held_call, a_job, a_node, a_profile, a_replica
from tightrope.testing.clock import ManualClock
from tightrope.testing.engine import Script, ScriptedEngine

__all__ = [
    "Answer",
    "ManualClock",
    "Script",
    "ScriptedEngine",
    "a_chain",
    "a_held_call",
    "a_job",
    "a_node",
    "a_profile",
    "a_replica",
    "answer_to",
]
