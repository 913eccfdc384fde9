"""The report of a duel as a Markdown page, as JSON, and in a few lines for a terminal.

Owns words and columns; computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from tightrope.bench.duel import BUSIEST, BUSIEST_OWN, SYSTEMS, Round
from tightrope.bench.duel_report import LEVELS, SCHEMA, Against, DuelReport, Ratio
from tightrope.bench.parity import ATTAINMENT_POINTS, P50_OFF, P95_OFF
from tightrope.bench.report import Capacity, Point, Report
from tightrope.bench.report_text import table
from tightrope.model.codec import decode, encode
from tightrope.model.errors import InvalidInput
from tightrope.model.json import Json

_KINDS = {"tightrope": "Tightrope, policy {policy}", "ray-serve": "Ray Serve 2.60, {mode}"}


def duel_json(found: DuelReport) -> Json:
    """Everything, under the schema's name."""
    tree = cast(dict[str, Json], encode(found))
    against: list[Json] = [
        {**cast(dict[str, Json], encode(one)), "agrees": one.agrees} for one in found.against
    ]
    return {
        "schema": SCHEMA,
        **{key: value for key, value in tree.items() if key != "type"},
        "against": against,
    }


def duel_from_json(data: Json, source: str) -> DuelReport:
    """What `duel_json` gave. Raises InvalidInput when it is something else."""
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise InvalidInput(f"{source} holds no duel ({SCHEMA})")
    against = [
        {key: value for key, value in one.items() if key != "agrees"}
        for one in cast(list[dict[str, Json]], data["against"])
    ]
    rest = {key: value for key, value in data.items() if key != "schema"}
    return decode(DuelReport, cast(Json, {**rest, "against": against}))


def duel_summary(found: DuelReport) -> str:
    """Goodput by load, capacities and ratios, as a table each."""
    parts = [_goodput(found.live), _capacities(found)]
    if found.ratios:
        parts.append(_ratios(found.ratios))
    close = sum(one.agrees for one in found.against)
    parts.append(f"the simulator agrees at {close} of {len(found.against)} points; {_busy(found.rounds)}")
    return "\n\n".join(parts)


def duel_markdown(found: DuelReport, pictures: Sequence[str] = ()) -> str:
    """The page; `pictures` are the files beside it that it shows."""
    live = found.live
    seeds = ", ".join(map(str, live.seeds))
    own = (
        (
            "stability limit",
            f"{live.limit_per_s:.2f} runs/s; loads are shares of it, and it knows no deadlines",
        ),
        ("seeds", f"{seeds}, the same arrivals, lengths and branches for every system"),
        ("machine", found.machine),
        ("code", f"`{live.code}`"),
    )
    parts = [
        f"# Duel: {live.scenario}",
        _WHAT,
        table(("setting", "value"), [*live.setting, *own], text_columns=2),
    ]
    parts += [_systems(live), *(f"![{name.partition('.')[0]} by load]({name})" for name in pictures)]
    parts += ["## Goodput", "Runs that kept their promise, of those that arrived, in %.", _goodput(live)]
    parts += ["## Capacity", _CAPACITY, _capacities(found)]
    if found.ratios:
        parts += ["Capacity over that of Ray Serve's better mode at that level.", _ratios(found.ratios)]
    parts += ["## Times", "Seconds of the scenario; TTFT is that of the answer.", _times(found)]
    parts += ["## Where calls went", "Share of all calls, by card, in %.", _shares(live)]
    parts += ["## Against the simulation", _AGAINST, _against(found.against)]
    parts += ["## Rounds", _ROUNDS, _rounds(found.rounds)]
    return "\n\n".join(parts) + "\n"


_WHAT = (
    "Live systems, each in turn before the same engines under the same requests at the same moments. Times "
    "are those of the wall over the time scale of the round."
)
_CAPACITY = (
    "Highest load with at least this goodput, in runs/s, interpolated between the tested loads in brackets; `<`: not "
    "reached at the lowest one tested, `>`: still reached at the highest one."
)
_AGAINST = (
    "The same runs under the same policy in the simulator (power-of-two for Ray Serve): simulated less live for "
    "goodput, in points, and simulated over live less 1 for TTFT. They agree within "
    f"{100 * ATTAINMENT_POINTS:.0f} points, {P50_OFF:.0%} at the median and {P95_OFF:.0%} at the 95th percentile. "
    "Lots: a policy that draws lots is simulated several times and the mean compared; so many of these plays agree "
    "with that mean themselves."
)
_ROUNDS = (
    f"Busy: share of all processor cores in use, by anybody, while runs arrived; above {BUSIEST:.0%} "
    f"({BUSIEST_OWN:.0%} with real engines, whose work it is) a round does not count. With emulated ones it is then "
    "repeated with a larger time scale. Own: the part of it that the programs of the duel used. Late: how much later "
    "than planned the client sent, 99th percentile, on the wall. Work: tokens that engines read and said over those "
    "that the whole runs need; 1 when every run was whole."
)


def _systems(live: Report) -> str:
    rows = []
    for name in live.policies:
        system = SYSTEMS[name]
        mode = "HAProxy mode" if system.is_haproxy else "default proxy"
        rows.append((name, _KINDS[system.kind].format(policy=system.policy, mode=mode)))
    return table(("system", "what it is"), rows, text_columns=2)


def _goodput(live: Report) -> str:
    loads = sorted({point.share for point in live.points})
    rows = []
    for name in live.policies:
        points = [live.point(name, share) for share in loads]
        rows.append((name, *("" if one is None else f"{100 * one.goodput.value:.1f}" for one in points)))
    return table(("load", *(f"{share:.1%}" for share in loads)), rows)


def _capacities(found: DuelReport) -> str:
    live = {(one.policy, one.level): one for one in found.live.capacities}
    simulated = {(one.policy, one.level): one for one in found.simulated.capacities}
    head = ["system"]
    for level in LEVELS:
        head += [f"{level:.0%} goodput", "simulated"]
    rows = []
    for name in found.live.policies:
        cells = [name]
        for level in LEVELS:
            cells += [_capacity(live[name, level]), _capacity(simulated[name, level])]
        rows.append(cells)
    return table(head, rows)


def _capacity(one: Capacity) -> str:
    mark = "<" if one.below is None else ">" if one.above is None else ""
    between = "" if mark else f" ({one.below:.0%}-{one.above:.0%})"
    return f"{mark}{one.per_s:.2f}{between}"


def _ratios(ratios: Sequence[Ratio]) -> str:
    rows = [
        (
            one.system,
            f"{one.level:.0%}",
            one.peer,
            f"{one.value:.2f}x" + (" (a bound only)" if one.is_bound else ""),
            "" if one.simulated is None else f"{one.simulated:.2f}x",
        )
        for one in ratios
    ]
    return table(("system", "goodput", "over", "ratio", "simulated"), rows, text_columns=3)


def _times(found: DuelReport) -> str:
    latency = {(one.system, one.share): one.latency_mean_s for one in found.against}
    rows = [
        (
            f"{point.share:.1%}",
            point.policy,
            str(point.runs),
            _s(point.ttft_mean_s.value if point.ttft_mean_s is not None else None),
            _s(point.ttft_p50_s.value if point.ttft_p50_s is not None else None),
            _s(point.ttft_p95_s.value if point.ttft_p95_s is not None else None),
            _s(latency[point.policy, point.share]),
            _s(point.e2e_p95_s),
            "" if point.tpot_p95_s is None else f"{1000 * point.tpot_p95_s:.0f} ms",
        )
        for point in _by_load(found.live)
    ]
    head = ("load", "system", "runs", "mean TTFT", "median", "p95", "mean latency", "p95 latency", "p95 TPOT")
    return table(head, rows, text_columns=2)


def _by_load(live: Report) -> list[Point]:
    return sorted(live.points, key=lambda point: (point.share, live.policies.index(point.policy)))


def _shares(live: Report) -> str:
    cards = sorted({share.accelerator for point in live.points for share in point.shares})
    rows = []
    for point in _by_load(live):
        found = {share.accelerator: share.share for share in point.shares}
        cells = (f"{100 * found[card]:.1f}" if card in found else "" for card in cards)
        rows.append((f"{point.share:.1%}", point.policy, *cells))
    return table(("load", "system", *cards), rows, text_columns=2)


def _against(rows: Sequence[Against]) -> str:
    cells = [
        (
            f"{one.share:.1%}",
            one.system,
            f"{100 * one.goodput:.1f}",
            f"{100 * one.simulated_goodput:.1f}",
            f"{100 * one.goodput_off:+.1f}",
            _off(one.mean_off),
            _off(one.p50_off),
            _off(one.p95_off),
            "yes" if one.agrees else "**no**",
            f"{one.plays_that_agree}/{one.plays}" if one.plays > 1 else "",
        )
        for one in sorted(rows, key=lambda one: one.share)
    ]
    head = ("load", "system", "live", "simulated", "off", "mean TTFT", "median", "p95", "agrees", "lots")
    return table(head, cells, text_columns=2)


def _rounds(rounds: Sequence[Round]) -> str:
    rows = [
        (
            one.system,
            str(one.seed),
            f"{one.rate_per_s:.2f}",
            f"{one.time_scale:g}",
            f"{one.busy:.0%}",
            f"{one.own:.0%}",
            f"{1000 * one.late_p99_s:.1f} ms",
            f"{one.work:.4f}",
            str(one.figures.runs),
            str(one.figures.failed + one.figures.rejected),
            "yes" if one.counts else "**no**",
        )
        for one in rounds
    ]
    head = (
        "system",
        "seed",
        "runs/s",
        "time scale",
        "busy",
        "own",
        "late",
        "work",
        "runs",
        "not whole",
        "counts",
    )
    return table(head, rows)


def _busy(rounds: Sequence[Round]) -> str:
    void = sum(not one.counts for one in rounds)
    busiest = max((one.busy for one in rounds), default=0.0)
    said = f"{void} of {len(rounds)} rounds do not count" if void else f"all {len(rounds)} rounds count"
    return f"{said}, the processor was {busiest:.0%} busy at most"


def _s(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _off(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f} %"
