"""Cells run in parallel processes, each kept as soon as it has ended; capacities found by bisection.

Owns the course: which cells are missing, who runs them, what happens on Ctrl-C. What a cell is, is `cell.py`;
where its result stays is `store.py`; what all of them say is `report.py`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Generic

from tightrope.bench.cell import Cell, limit_per_s, play
from tightrope.bench.intervals import mean
from tightrope.bench.metrics import Figures
from tightrope.bench.scenario import Rate, Scenario
from tightrope.bench.search import LEVELS, next_shares
from tightrope.bench.store import Result, Store, T, digest
from tightrope.model.errors import TightropeError

Tell = Callable[[int, int, str], None]
"""How far it is: cells done, cells in all, the one that ended last."""


class JobFailed(TightropeError):
    """Processes died again and again; the message says how."""


MOST_DEATHS = 3
"""So many times processes may die before it is the benchmark's fault and not the machine's."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run of a scenario: its own policies, rates and seeds, or others; in how many processes."""

    scenario: Scenario
    policies: tuple[str, ...]
    rates: tuple[Rate, ...]
    seeds: tuple[int, ...]
    workers: int

    @property
    def limit_per_s(self) -> float:
        """The stability limit: what a rate given as a share is a share of."""
        return limit_per_s(self.scenario)


@dataclass(frozen=True, slots=True)
class Measured:
    """All seeds of one policy at one rate, in the order of the seeds."""

    policy: str
    share: float
    per_s: float
    figures: tuple[Figures, ...]

    @property
    def goodputs(self) -> list[float]:
        """One goodput a seed."""
        return [figures.goodput for figures in self.figures]


def plan_of(scenario: Scenario, workers: int | None = None) -> Plan:
    """The plan that a scenario states itself."""
    count = workers or os.cpu_count() or 1
    return Plan(scenario, scenario.policies, scenario.rates, scenario.seeds, count)


def run(plan: Plan, store: Store[Result], tell: Tell) -> list[Measured]:
    """Every policy at every rate under every seed; what the store has already is not run again."""
    limit = plan.limit_per_s
    rates = [per_s_of(rate, limit) for rate in plan.rates]
    wanted = [(policy, per_s) for per_s in rates for policy in plan.policies]
    return _measured(plan, limit, wanted, store, tell)


def capacity(
    plan: Plan, store: Store[Result], tell: Tell, levels: Sequence[float] = LEVELS
) -> list[Measured]:
    """The same, and at the rates that bisection asks for, until every level lies between two close rates."""
    limit = plan.limit_per_s
    points: dict[tuple[str, float], Measured] = {}
    shares = [round(per_s_of(rate, limit) / limit, 4) for rate in plan.rates]
    wanted = [(policy, share) for share in shares for policy in plan.policies]
    while wanted:
        found = _measured(plan, limit, [(policy, share * limit) for policy, share in wanted], store, tell)
        points |= dict(zip(wanted, found, strict=True))
        wanted = [
            (policy, share)
            for policy in plan.policies
            for share in next_shares(_curve(policy, points), levels)
            if (policy, share) not in points
        ]
    return sorted(points.values(), key=lambda point: (plan.policies.index(point.policy), point.share))


def per_s_of(rate: Rate, limit_per_s: float) -> float:
    """The rate in runs per second."""
    return rate.per_s if rate.per_s is not None else (rate.share or 0.0) * limit_per_s


def _curve(policy: str, points: dict[tuple[str, float], Measured]) -> dict[float, float]:
    return {share: mean(point.goodputs) for (name, share), point in points.items() if name == policy}


def _measured(
    plan: Plan, limit_per_s: float, wanted: Sequence[tuple[str, float]], store: Store[Result], tell: Tell
) -> list[Measured]:
    cells = [
        [Cell(plan.scenario, policy, round(per_s, 6), seed) for seed in plan.seeds]
        for policy, per_s in wanted
    ]
    results = run_cells([cell for row in cells for cell in row], store, plan.workers, tell)
    return [
        Measured(policy, per_s / limit_per_s, per_s, tuple(results[digest(cell)].figures for cell in row))
        for (policy, per_s), row in zip(wanted, cells, strict=True)
    ]


# --- cells -----------------------------------------------------------------------------------------------


def run_cells(cells: Sequence[Cell], store: Store[Result], workers: int, tell: Tell) -> dict[str, Result]:
    """The result of every cell under its digest."""
    jobs = {
        name: Job(partial(_result, name, cell), _label(cell)) for cell in cells for name in [digest(cell)]
    }
    return run_jobs(jobs, store, workers, tell)


def _result(name: str, cell: Cell) -> Result:
    played = play(cell)
    return Result(name, cell.policy, cell.rate_per_s, cell.seed, played.figures, round(played.took_s, 3))


def _label(cell: Cell) -> str:
    return f"{cell.policy} {cell.rate_per_s:.2f} req/s seed {cell.seed}"


# --- jobs in processes -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Job(Generic[T]):
    """Something to do in any process, in words for people beside."""

    work: Callable[[], T]
    label: str


def run_jobs(jobs: Mapping[str, Job[T]], store: Store[T], workers: int, tell: Tell) -> dict[str, T]:
    """The result of every job under its digest; what the store has already is not done again.

    Interrupted, it keeps what has ended and stops at once. When a process dies, what is missing is begun again, a
    few times; raises JobFailed when processes keep dying.
    """
    found = {name: result for name in jobs if (result := store.get(name)) is not None}
    tell(len(found), len(jobs), "")
    deaths = 0
    while len(found) < len(jobs):
        missing = [job for name, job in jobs.items() if name not in found]
        try:
            with closing(_results(missing, min(workers, len(missing)))) as results:
                for result in results:
                    store.keep(result)
                    found[result.digest] = result
                    tell(len(found), len(jobs), jobs[result.digest].label)
        except _ProcessDied as died:
            deaths += 1
            if deaths > MOST_DEATHS:
                raise JobFailed(f"{died}; what had ended is kept") from None
    return found


def _results(jobs: Sequence[Job[T]], workers: int) -> Generator[T, None, None]:
    if workers <= 1:
        yield from (job.work() for job in jobs)
        return
    with _processes(workers) as (pool, children):
        futures = [pool.submit(job.work) for job in jobs]
        children |= set(multiprocessing.active_children())
        for future in as_completed(futures):
            yield future.result()


class _ProcessDied(Exception):
    """A process of the pool ended by itself, or was ended by somebody else."""


Children = set[BaseProcess]


@contextmanager
def _processes(workers: int) -> Iterator[tuple[ProcessPoolExecutor, Children]]:
    """Fresh processes (a fork would copy the threads of a progress bar); none is left behind on an exception.

    Whoever uses the pool notes its children in the set.
    """
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _leave_interrupts_to_the_parent)
    children: Children = set()
    try:
        yield pool, children
    except BrokenProcessPool:
        pool.shutdown(cancel_futures=True)
        codes = {child.exitcode for child in children} - {None, 0, -signal.SIGTERM}
        ended = ", ".join(map(str, codes)) or "unknown"
        raise _ProcessDied(f"a process of the benchmark died (exit code {ended})") from None
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(
            cancel_futures=True
        )  # waits for them: a pool left half closed speaks up at the very end


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
