"""The command line: one file per verb, imported when `tightrope` starts; their work is imported when they run."""

from __future__ import annotations

from tightrope.app.cli.bench import bench
from tightrope.app.cli.check import check
from tightrope.app.cli.demo import demo
from tightrope.app.cli.explain import explain
from tightrope.app.cli.frame import program
from tightrope.app.cli.init import init
from tightrope.app.cli.keys import keys
from tightrope.app.cli.plan import plan
from tightrope.app.cli.profile import profile
from tightrope.app.cli.serve import serve
from tightrope.app.cli.simulate import simulate
from tightrope.app.cli.top import top

main = program([demo, init, check, serve, profile, plan, explain, top, keys, simulate, bench])

__all__ = ["main"]
