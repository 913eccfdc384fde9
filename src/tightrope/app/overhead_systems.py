"""The systems of `bench overhead`: two emulated engines, and what is put before them, each in processes of its own.

Owns their settings and their environments. Why a peer is set as it is, stands in `baselines/NAME/README.md`. Starting
and ending processes is `programs.py`; no peer is ever imported.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tightrope.adapters.emulated_truth import Setting
from tightrope.adapters.engine_process import free_ports
from tightrope.app import contenders, ray_serve
from tightrope.app.contenders import (
    HOST,
    READY_WITHIN_S,
    ensure_environment,
    peer_folder,
    tightrope_command,
)
from tightrope.app.embedded import Say
from tightrope.app.programs import Programs
from tightrope.bench.overhead import DIRECT, YARDSTICK
from tightrope.bench.overhead_load import MODEL
from tightrope.model.errors import TightropeError
from tightrope.model.ids import AcceleratorName, ModelName
from tightrope.model.json import Json
from tightrope.model.profile import Coefficients, Profile
from tightrope.sim.engine import Truth

TIGHTROPE = "tightrope"
ENGINES = 2
AT_ONCE = 512
"""Calls that one engine takes; more than any load here has."""
CARD = "even"


@dataclass(frozen=True, slots=True)
class Launch:
    """How a system is started in `folder`, listening on `port`, before the engines at `roots`."""

    folder: Path
    port: int
    roots: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Peer:
    """A system of others. `folder` under `baselines/` has its requirements; `command` makes its start line, to which
    the programs of its environment are given. `variables` are `NAME=value`."""

    version: str
    folder: str
    command: Callable[[Path, Launch], Sequence[str]]
    variables: Sequence[str] = ()
    ready_within_s: float = READY_WITHIN_S
    ends_with_input: bool = False


# --- the peers -------------------------------------------------------------------------------------------


def _vllm_router(programs: Path, launch: Launch) -> Sequence[str]:
    (metrics,) = free_ports(1)
    return [
        str(programs / "vllm-router"), "--host", HOST, "--port", str(launch.port),
        "--worker-urls", *launch.roots, "--policy", "round_robin",
        "--prometheus-port", str(metrics), "--log-level", "warning",
    ]  # fmt: skip


def _sglang_router(programs: Path, launch: Launch) -> Sequence[str]:
    (metrics,) = free_ports(1)
    return [
        str(programs / "sglang-router"), "launch", "--host", HOST, "--port", str(launch.port),
        "--worker-urls", *launch.roots, "--policy", "round_robin",
        "--prometheus-port", str(metrics), "--log-level", "warn",
    ]  # fmt: skip


def _litellm(programs: Path, launch: Launch) -> Sequence[str]:
    config = launch.folder / "litellm.yaml"
    tree = {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"openai/{MODEL}", "api_base": f"{root}/v1", "api_key": "none",
                },
            }
            for root in launch.roots
        ],
        "router_settings": {"routing_strategy": "simple-shuffle"},
        "litellm_settings": {"request_timeout": 600, "set_verbose": False, "json_logs": False},
    }  # fmt: skip
    config.write_text(json.dumps(tree), encoding="utf-8")
    return [
        str(programs / "litellm"),
        "--host",
        HOST,
        "--port",
        str(launch.port),
        "--config",
        str(config),
    ]


PEERS: Mapping[str, Peer] = {
    YARDSTICK: Peer("0.1.17", "vllm_router", _vllm_router),
    "sglang-router": Peer("0.3.2", "sglang_router", _sglang_router),
    "litellm": Peer(
        "1.90.0",
        "litellm",
        _litellm,
        ("LITELLM_MODE=PRODUCTION", "LITELLM_LOG=ERROR", "LITELLM_LOCAL_MODEL_COST_MAP=True"),
        ready_within_s=300.0,
    ),
}
IS_HAPROXY = {"ray-serve": False, "ray-serve-haproxy": True}
"""Ray Serve in both of its modes."""
SYSTEMS = (DIRECT, TIGHTROPE, *PEERS, *IS_HAPROXY)


def version(name: str) -> str:
    """Of a peer; "" for what is no peer."""
    return ray_serve.VERSION if name in IS_HAPROXY else PEERS[name].version if name in PEERS else ""


def ensure_peer(name: str, say: Say) -> Path:
    """The folder with the programs of a peer, installed when they are missing.

    Raises NotFound outside of a checkout, InstallationFailed.
    """
    if name in IS_HAPROXY:
        return ray_serve.ensure_ray(say).parent
    peer = PEERS[name]
    return ensure_environment(f"{name}-{peer.version}", peer_folder(peer.folder) / "requirements.txt", say)


def main() -> int:
    """Install every peer that is missing; 1 when one cannot be had."""
    has_all = True
    for name in (*PEERS, *IS_HAPROXY):
        try:
            print(f"{name}  {ensure_peer(name, lambda text: print(text, file=sys.stderr))}")
        except TightropeError as error:
            has_all = False
            print(f"{name} cannot be installed: {error}", file=sys.stderr)
    return 0 if has_all else 1


# --- starting --------------------------------------------------------------------------------------------


def start_engines(programs: Programs, gap_ms: float) -> list[int]:
    """Emulated engines whose every step takes `gap_ms`, ready; their ports."""
    return contenders.start_engines(programs, [Setting(MODEL, Truth(profile(gap_ms)))] * ENGINES)


def profile(gap_ms: float) -> Profile:
    """An engine for which all steps are alike."""
    even = Coefficients(gap_ms, 0.0, 0.0, 0.0, 0.0)
    return Profile(ModelName(MODEL), AcceleratorName(CARD), even, 65_536, AT_ONCE, 10_000_000)


@dataclass(frozen=True, slots=True)
class Started:
    """A system that answers calls at `ports`. `session` is that of its processes; None: it has none."""

    ports: tuple[int, ...]
    session: int | None = None


def start_system(programs: Programs, name: str, engines: Sequence[int], gap_ms: float) -> Started:
    """A system before these engines. Raises ProgramFailed, InstallationFailed, NotFound."""
    if name == DIRECT:
        return Started(tuple(engines))
    if name in IS_HAPROXY:
        urls: list[Json] = [f"http://{HOST}:{one}/v1" for one in engines]
        asked: dict[str, Json] = {"application": "relay", "urls": urls, "max_ongoing_requests": AT_ONCE}
        program, port = ray_serve.start(programs, asked, is_haproxy=IS_HAPROXY[name])
        program.until(lambda: answers_calls(port), READY_WITHIN_S)
        return Started((port,), program.process.pid)
    (port,) = free_ports(1)
    launch = Launch(programs.folder, port, tuple(f"http://{HOST}:{one}" for one in engines))
    if name == TIGHTROPE:
        program = programs.start(name, _tightrope(launch, gap_ms))
        program.until(lambda: answers_calls(port), READY_WITHIN_S)
    else:
        peer = PEERS[name]
        command = peer.command(ensure_peer(name, lambda _: None), launch)
        program = programs.start(
            name, command, variables=peer.variables, ends_with_input=peer.ends_with_input
        )
        program.until(lambda: answers_calls(port), peer.ready_within_s)
    return Started((port,), program.process.pid)


def _tightrope(launch: Launch, gap_ms: float) -> Sequence[str]:
    """`tightrope serve` as it is by default, before engines of somebody else whose speed it knows."""
    config: dict[str, Json] = {
        "server": {"listen": f"{HOST}:{launch.port}", "auth": "none", "drain": "1s"},
        "accelerators": {CARD: {"count": len(launch.roots)}},
        "models": {
            MODEL: {
                "engine": {"kind": "openai", "slots": AT_ONCE},
                "replicas": [{"url": f"{root}/v1", "place": CARD} for root in launch.roots],
            }
        },
        "tenants": {"local": {"models": [MODEL]}},
    }
    believed = replace(profile(gap_ms), digest=MODEL, engine="openai")
    return tightrope_command(launch.folder, config, [believed])


def answers_calls(port: int) -> bool:
    """Whether a call for one token is answered there."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "?"}], "max_tokens": 1}
    asked = urllib.request.Request(
        f"http://{HOST}:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(asked, timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def set_speed(engines: Sequence[int], factor: float) -> None:
    """Let every step of the engines take `factor` times as long as they began with."""
    for port in engines:
        body = json.dumps({"factor": factor}).encode()
        asked = urllib.request.Request(f"http://{HOST}:{port}/emulated/slow", body, method="POST")
        with urllib.request.urlopen(asked, timeout=10):
            pass


if __name__ == "__main__":
    raise SystemExit(main())
