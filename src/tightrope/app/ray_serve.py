"""Ray Serve as a peer: its environment, its two modes, and one of its applications started and ready.

The applications are programs of their own under `baselines/ray_serve`, which this package never imports; why they are
set as they are stands there.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tightrope.adapters.engine_process import free_ports
from tightrope.app.contenders import ensure_environment, peer_folder
from tightrope.app.embedded import Say
from tightrope.app.programs import Program, Programs
from tightrope.model.json import Json

VERSION = "2.60.0"
FOLDER = "ray_serve"
"""Under `baselines/`."""
READY_WITHIN_S = 300.0

_VARIABLES = ("RAY_USAGE_STATS_ENABLED=0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV=0")


def ensure_ray(say: Say) -> Path:
    """The Python of an environment that has Ray, made when it is missing. Raises InstallationFailed, and NotFound
    outside of a checkout."""
    wanted = peer_folder(FOLDER) / "requirements.txt"
    return ensure_environment(f"ray-serve-{VERSION}", wanted, say, "about 470 MB, ") / "python"


def start(programs: Programs, asked: Mapping[str, Json], *, is_haproxy: bool) -> tuple[Program, int]:
    """An application that takes requests, and its port. `asked` is what `start.py` there is asked, without ports and
    folders. Raises ProgramFailed."""
    port, metrics, stats = free_ports(3)
    # The system's own folder for what is temporary: names of sockets must be short.
    temp = Path(tempfile.mkdtemp(prefix="peer-"))
    programs.stack.callback(shutil.rmtree, temp, ignore_errors=True)
    variables = [*_VARIABLES, *(_haproxy(temp, metrics, stats) if is_haproxy else ())]
    command = [
        str(ensure_ray(lambda _: None)),
        str(peer_folder(FOLDER) / "start.py"),
        json.dumps({**asked, "port": port, "temp": str(temp)}),
    ]
    program = programs.start("ray-serve", command, variables=variables, ends_with_input=True)
    program.until(lambda: program.has_said("ready"), READY_WITHIN_S)
    return program, port


def _haproxy(temp: Path, metrics_port: int, stats_port: int) -> Iterator[str]:
    """The mode that Ray's documents call high throughput; its files go where ours are."""
    yield "RAY_SERVE_ENABLE_HA_PROXY=1"
    yield "RAY_SERVE_THROUGHPUT_OPTIMIZED=1"
    yield f"RAY_SERVE_HAPROXY_METRICS_PORT={metrics_port}"
    yield f"RAY_SERVE_HAPROXY_STATS_PORT={stats_port}"
    yield f"RAY_SERVE_HAPROXY_CONFIG_FILE_LOC={temp}/haproxy/haproxy.cfg"
    yield f"RAY_SERVE_HAPROXY_SOCKET_PATH={temp}/haproxy/admin.sock"
    yield f"RAY_SERVE_HAPROXY_SERVER_STATE_BASE={temp}/haproxy"
    yield f"RAY_SERVE_HAPROXY_SERVER_STATE_FILE={temp}/haproxy/server-state"
