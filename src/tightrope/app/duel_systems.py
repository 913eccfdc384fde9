"""The systems of a duel: Tightrope as `tightrope serve`, and Ray Serve in either of its modes.

Owns their settings and how one knows that they are ready. Starting and ending processes is `programs.py`, starting
Ray Serve `ray_serve.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tightrope.adapters.engine_process import free_ports
from tightrope.app import ray_serve
from tightrope.app.contenders import HOST, READY_WITHIN_S, tightrope_command
from tightrope.app.duel_engines import Endpoint, world_of
from tightrope.app.programs import Programs, answers
from tightrope.bench.cell import accelerators
from tightrope.bench.duel import SYSTEMS, DuelCell, System
from tightrope.bench.duel_load import NODES, asked_by_request
from tightrope.flow.document import write_workflow
from tightrope.model.ids import ModelName
from tightrope.model.json import Json
from tightrope.model.profile import Profile
from tightrope.model.workflow import Workflow
from tightrope.sim.script import RunScript

MOST_RUNS = 1_000_000
LONGEST_S = 36_000.0
"""Nothing is refused or given up by a system: what comes too late is missed anyway."""


# --- the systems -----------------------------------------------------------------------------------------


def start_system(
    programs: Programs, cell: DuelCell, runs: Sequence[RunScript], endpoints: Sequence[Endpoint]
) -> int:
    """The system of the cell before these engines, ready; its port."""
    system = SYSTEMS[cell.system]
    if system.kind == "ray-serve":
        return _start_ray(programs, cell, system, endpoints)
    workflows = {run.workflow.id: run.workflow for run in runs}
    return _start_tightrope(programs, cell, system, tuple(workflows.values()), endpoints)


def _start_tightrope(
    programs: Programs,
    cell: DuelCell,
    system: System,
    workflows: Sequence[Workflow],
    endpoints: Sequence[Endpoint],
) -> int:
    (port,) = free_ports(1)
    folder = programs.folder
    for workflow in workflows:
        text = write_workflow(asked_by_request(workflow))
        (folder / f"{workflow.name}.yaml").write_text(text, encoding="utf-8")
    tree = tightrope_config(cell, system.policy, [workflow.name for workflow in workflows], endpoints, port)
    program = programs.start("tightrope", tightrope_command(folder, tree, _believed(cell)))
    program.until(lambda: answers(f"http://{HOST}:{port}/readyz"), READY_WITHIN_S)
    return port


def tightrope_config(
    cell: DuelCell, policy: str, workflows: Sequence[str], endpoints: Sequence[Endpoint], port: int
) -> dict[str, Json]:
    """`tightrope.yaml` as a tree: engines of somebody else, one tenant, and the promise that each request brings."""
    scenario = cell.scenario
    tpot_s = scenario.promise.tpot_s
    promise: dict[str, Json] = {"ttft": _seconds(LONGEST_S / 10)}
    floor: dict[str, Json] = {"ttft": "1ms"}
    if tpot_s is not None:
        promise["tpot"] = floor["tpot"] = _seconds(tpot_s * cell.time_scale)
    return {
        "server": {
            "listen": f"{HOST}:{port}", "auth": "none", "keepalive": _seconds(LONGEST_S), "drain": "1s",
        },
        "accelerators": {
            card.name: {"cost": f"{card.usd_per_h:g} USD/h", "count": card.count} for card in accelerators(scenario)
        },
        "models": {
            model: {
                "engine": {"kind": "openai", "slots": scenario.hardware.max_sequences},
                "replicas": [
                    {"url": one.url, "place": one.accelerator} for one in endpoints if one.model == model
                ],
            }
            for model in scenario.models
        },
        "tenants": {
            "local": {
                "slo": promise,
                "slo_floor": floor,
                "limits": {"concurrent": MOST_RUNS, "queue": MOST_RUNS, "deadline": _seconds(LONGEST_S)},
                "workflows": list(workflows),
            }
        },
        "workflows": {"files": [f"{name}.yaml" for name in workflows], "allow_python": [NODES]},
        "router": {"policy": policy},
        "seed": cell.seed,
    }  # fmt: skip


def _seconds(value_s: float) -> str:
    return f"{value_s:.3f}s"


def _believed(cell: DuelCell) -> Iterator[Profile]:
    """What Tightrope believes of the cards: what the simulation believes, at this time scale."""
    for (model, _), profile in world_of(cell.scenario).beliefs.items():
        slower = profile.coefficients.scaled(cell.time_scale)
        yield replace(profile, coefficients=slower, digest=model, engine="openai")


# --- Ray Serve -------------------------------------------------------------------------------------------


def _start_ray(programs: Programs, cell: DuelCell, system: System, endpoints: Sequence[Endpoint]) -> int:
    scenario = cell.scenario
    asked = {
        "application": "workflows",
        "small": _model(scenario.small, endpoints),
        "large": _model(scenario.large, endpoints),
        "max_ongoing_requests": scenario.hardware.max_sequences,
    }
    return ray_serve.start(programs, asked, is_haproxy=system.is_haproxy)[1]


def _model(name: ModelName, endpoints: Sequence[Endpoint]) -> Json:
    return {"name": name, "urls": [one.url for one in endpoints if one.model == name]}
