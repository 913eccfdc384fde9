"""The same seed gives the same journal, byte by byte, in this process and in any other."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from tests.sim.worlds import BIG, SMALL, TENANT, TRACES, Played, a_world, play
from tightrope.bench.workflows import FLOWS, Models
from tightrope.kernel.journal import replay
from tightrope.kernel.state import KernelSettings
from tightrope.model.ids import ReplicaId
from tightrope.model.outcome import Outcome
from tightrope.sim.arrivals import Mmpp
from tightrope.sim.promise import Promise, promised
from tightrope.sim.workload import Plan, Share, scripts
from tightrope.sim.world import Fault

ROOT = Path(__file__).parents[2]


def a_session(seed: int = 1) -> Played:
    """Twenty runs of two workflows in bursts, on noisy engines of which one slows down and one dies."""
    flows = [FLOWS[name](Models(SMALL, BIG), TRACES) for name in ("rag", "compare")]
    replicas = "s0:small@fast s1:small@slow b0:big@fast b1:big@slow"
    world = a_world(*(flow.workflow for flow in flows), replicas=replicas, seed=seed)
    world = replace(
        world,
        settings=KernelSettings(seed=seed),
        truths={kind: replace(truth, noise=0.05) for kind, truth in world.truths.items()},
        network_s=0.001,
        faults=(Fault(2.0, ReplicaId("b1"), "slow", 3.0), Fault(5.0, ReplicaId("b0"), "die")),
    )
    plan = Plan(tuple(Share(flow, TENANT) for flow in flows), Mmpp(3.0, calm_s=5.0, burst_s=2.0), count=20)
    cards = {
        model: [truth.profile for kind, truth in world.truths.items() if kind[0] == model]
        for model in (SMALL, BIG)
    }
    return play(world, promised(scripts(plan, seed), Promise(), cards))


def test_two_sessions_are_the_same_and_replay() -> None:
    first, again = a_session(), a_session()
    assert first == again
    assert replay(first.lines) is None
    assert {record.outcome for record in first.records} == {Outcome.SUCCEEDED, Outcome.FAILED}


def test_other_seeds_give_other_sessions() -> None:
    assert a_session(1).lines != a_session(2).lines


def test_a_fresh_process_writes_the_same_journal() -> None:
    own = hashlib.sha256("".join(a_session().lines).encode()).hexdigest()
    environment = {**os.environ, "PYTHONHASHSEED": "4242", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    command = [sys.executable, "-m", "tests.sim.test_determinism"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
    assert told.stdout.strip() == own


if __name__ == "__main__":
    sys.stdout.write(hashlib.sha256("".join(a_session().lines).encode()).hexdigest() + "\n")
