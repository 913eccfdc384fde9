"""A report as Markdown: one page with the setting, every table and the pictures.

Owns words and columns; computes nothing but ratios of capacities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from tightrope.bench.goals import Goal
from tightrope.bench.intervals import CONFIDENCE, Interval
from tightrope.bench.report import Capacity, Moved, Point, Report
from tightrope.bench.search import LEVELS, TOLERANCE

GOODPUT_EXPLAINED = (
    "Goodput: the share of the runs that arrived which kept their promise, in %, ± half of the interval. Rejected, "
    "failed and unfinished runs are missed."
)
FULL_SHARE = 0.8
"""Details are shown at the tested rate nearest to this share of the stability limit."""


def markdown(found: Report, pictures: Sequence[str] = ()) -> str:
    """The page; `pictures` are the files beside it that it shows."""
    parts = [f"# {found.scenario}", found.about, _setting(found)]
    parts += [f"![{_alt(name)}]({name})" for name in pictures]
    parts += _by_rate(found)
    parts += capacity_part(found)
    parts += _details(found)
    return "\n\n".join(parts) + "\n"


def family_markdown(name: str, reports: Mapping[str, Report], found: Sequence[Goal]) -> str:
    """One page for several scenarios: the goals, and goodput and capacities of each, with links to their own pages."""
    parts = [f"# {name}"]
    parts += ["## Goals", goals_table(found)] if found else []
    parts += [GOODPUT_EXPLAINED, *(capacity_part(report)[1] for report in list(reports.values())[:1])]
    for scenario, report in reports.items():
        parts += [f"## {scenario}", f"{report.about} [All of it]({scenario}/report.md)."]
        parts += [_rates(report, lambda point: _percent(point.goodput)), *capacity_part(report)[2:]]
    return "\n\n".join(parts) + "\n"


def goals_table(found: Sequence[Goal]) -> str:
    """Goals, what was reached, and whether that is enough."""
    words = {True: "yes", False: "**no**", None: "not known"}
    rows = [(goal.name, goal.what, goal.reached, goal.wanted, words[goal.is_met]) for goal in found]
    return table(("goal", "figure", "reached", "wanted", "met"), rows, text_columns=2)


def moved_text(rows: Sequence[Moved]) -> str:
    """What moved since an older report, for people."""
    if not rows:
        return "nothing moved beyond its interval"
    head = ("policy", "where", "figure", "before", "now")
    cells = [(row.policy, row.where, row.figure, _plain(row.before), _plain(row.now)) for row in rows]
    return table(head, cells, text_columns=3)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table whose first `text_columns` columns are text and the others numbers."""
    marks = ["---" if at < text_columns else "---:" for at in range(len(head))]
    lines = [head, marks, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# --- parts of the page -----------------------------------------------------------------------------------


def _setting(found: Report) -> str:
    seeds = ", ".join(_ranges(found.seeds))
    own = (
        (
            "stability limit",
            f"{found.limit_per_s:.2f} runs/s; loads are shares of it, and it knows no deadlines",
        ),
        ("seeds", f"{seeds}, the same arrivals, lengths and branches for every policy"),
        ("intervals", f"{CONFIDENCE:.0%}, percentile bootstrap over seeds"),
        ("code", f"`{found.code}`"),
    )
    return table(("setting", "value"), [*found.setting, *own], text_columns=2)


def _by_rate(found: Report) -> list[str]:
    parts = ["## Goodput", *goodput_part(found)]
    parts += [
        "## Time to first token",
        "Mean over runs, in s.",
        _rates(found, lambda one: _s(one.ttft_mean_s)),
    ]
    for name, figure in _QUANTILES:
        parts += [f"{name} of the runs, mean over seeds, in s.", _rates(found, figure)]
    return parts


def goodput_part(found: Report) -> list[str]:
    """An explanation, goodput by rate, and by how much the first policy's is above that of the others."""
    behind = (
        f"Goodput of `{found.policies[0]}` less that of the others, in points, paired by seed; "
        "**bold** where the interval leaves out 0."
    )
    parts = [GOODPUT_EXPLAINED, _rates(found, lambda point: _percent(point.goodput))]
    if len(found.policies) > 1:
        parts += [behind, _rates(found, lambda point: _points(point.behind), found.policies[1:])]
    return parts


_QUANTILES: tuple[tuple[str, Callable[[Point], str]], ...] = (
    ("Median", lambda point: _s(point.ttft_p50_s)),
    ("95th percentile", lambda point: _s(point.ttft_p95_s)),
    ("99th percentile", lambda point: _s(point.ttft_p99_s)),
)


def _rates(found: Report, cell: Callable[[Point], str], policies: Sequence[str] | None = None) -> str:
    rows = []
    for policy in policies if policies is not None else found.policies:
        points = [found.point(policy, share) for share in found.shares]
        rows.append((policy, *(cell(point) if point is not None else "" for point in points)))
    return table(("load", *(f"{share:.0%}" for share in found.shares)), rows)


def capacity_part(found: Report) -> list[str]:
    """A heading, an explanation, the table of capacities, and what the first policy's are over those of the others."""
    how = (
        f"Found by bisection of the rate, to {TOLERANCE:.0%} of the stability limit, then interpolated linearly "
        "between the two last rates."
        if found.is_bisected
        else "Interpolated linearly between the tested rates; `--capacity` finds them by bisection."
    )
    explained = (
        f"Highest load with at least this goodput, in runs/s, and in brackets the interval of its share of the "
        f"stability limit. {how} `<`: not reached at the lowest rate tested; `>`: still reached at the highest one."
    )
    own = {one.level: one for one in found.capacities if one.policy == found.policies[0]}
    rows = []
    for policy in found.policies:
        mine = {one.level: one for one in found.capacities if one.policy == policy}
        rows.append((policy, *(capacity_cell(mine[level]) for level in LEVELS)))
    parts = ["## Capacity", explained, table(("policy", *(f"{level:.0%}" for level in LEVELS)), rows)]
    if len(found.policies) > 1:
        ratios = [
            (policy, *(_ratio(own[one.level], one) for one in found.capacities if one.policy == policy))
            for policy in found.policies[1:]
        ]
        parts += [
            f"Capacity of `{found.policies[0]}` over that of the others.",
            table(("over", *(f"{level:.0%}" for level in LEVELS)), ratios),
        ]
    return parts


def capacity_cell(one: Capacity) -> str:
    """`12.30 (70%-74%)`: runs/s and the interval of its share; `< 3.10` or `> 20.00` beyond what was tested."""
    sign = "<" if one.below is None else ">" if one.above is None else ""
    if sign:
        return f"{sign} {one.per_s:.2f}"
    return f"{one.per_s:.2f} ({one.share.low:.0%}-{one.share.high:.0%})"


def _ratio(own: Capacity, other: Capacity) -> str:
    """own / other; a capacity outside what was tested makes the ratio a bound, two can leave it unknown."""
    is_more = own.above is None or other.below is None
    is_less = own.below is None or other.above is None
    if is_more and is_less:
        return "?"
    sign = "> " if is_more else "< " if is_less else ""
    return f"{sign}{own.per_s / other.per_s:.2f}x"


def _details(found: Report) -> list[str]:
    if not found.shares:
        return []
    share = min(found.shares, key=lambda one: (abs(one - FULL_SHARE), one))
    points = [point for policy in found.policies if (point := found.point(policy, share)) is not None]
    cards = list(dict.fromkeys(card.accelerator for point in points for card in point.shares))
    title = f"## At {share:.0%} load"
    explained = (
        "Share of calls by card; seconds of accelerators (all of the fleet, busy or idle) and cost for a run that kept "
        "its promise; end-to-end times; 95th percentile of the time between tokens; smallest factor on every TTFT "
        "promise (buffer included) with which 95 and 99 % of the runs would have kept it, from the times measured, "
        "decisions unchanged; goodput of the worst tenant; rejected and failed runs."
    )
    head = (
        "policy", *(f"on {card}" for card in cards), "acc. s / good", "USD / 1k good", "e2e p50 s", "e2e p95 s",
        "TPOT p95 ms", "scale 95%", "scale 99%", "worst tenant", "rejected", "failed",
    )  # fmt: skip
    rows = [_detail(point, cards) for point in points]
    return [title, explained, table(head, rows), *_prediction_part(points)]


def _detail(point: Point, cards: Sequence[str]) -> tuple[str, ...]:
    share_by_card = {card.accelerator: card.share for card in point.shares}
    return (
        point.policy,
        *(f"{share_by_card.get(card, 0.0):.0%}" for card in cards),
        _number(point.accelerator_s_per_good),
        _number(point.usd_per_1k_good),
        _number(point.e2e_p50_s),
        _number(point.e2e_p95_s),
        _number(point.tpot_p95_s, 1000, 0),
        _number(point.scale_95),
        _number(point.scale_99),
        f"{point.worst_tenant:.0%}",
        f"{point.rejected:.1%}",
        f"{point.failed:.1%}",
    )


def _prediction_part(points: Sequence[Point]) -> list[str]:
    explained = (
        "Predictions at dispatch against what came. Whole: the time that counts for the SLO (to the first token for "
        "the answer, to the end for calls before it). Own work: lx against the time alone on the card with true "
        "lengths. Load: error of lq + lr against what the load really added, in ms."
    )
    head = (
        "policy", "calls", "whole MAPE", "whole bias", "own work MAPE", "own work bias", "load, mean error ms",
        "load, bias ms",
    )  # fmt: skip
    rows = [
        (
            f"{point.policy}, {'answers' if one.is_terminal else 'calls before'}",
            f"{one.calls:,}",
            f"{one.mape:.0%}",
            f"{one.bias:+.0%}",
            f"{one.own_mape:.0%}",
            f"{one.own_bias:+.0%}",
            f"{one.queue_error_ms:.0f}",
            f"{one.queue_bias_ms:+.0f}",
        )
        for point in points
        for one in point.predictions
    ]
    return ["### Predictions", explained, table(head, rows)]


# --- cells -----------------------------------------------------------------------------------------------


def _percent(one: Interval) -> str:
    return f"{100 * one.value:.1f} ± {50 * (one.high - one.low):.1f}"


def _points(one: Interval) -> str:
    text = f"{100 * one.value:+.1f} ± {50 * (one.high - one.low):.1f}"
    return f"**{text}**" if one.low > 0 or one.high < 0 else text


def _s(one: Interval | None) -> str:
    return "-" if one is None else f"{one.value:.2f}"


def _plain(one: Interval) -> str:
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


def _number(value: float | None, times: float = 1, digits: int = 2) -> str:
    return "-" if value is None else f"{times * value:.{digits}f}"


def _alt(picture: str) -> str:
    return {"goodput": "Goodput by load", "ttft": "Mean time to first token by load"}[
        picture.partition(".")[0]
    ]


def _ranges(seeds: Sequence[int]) -> list[str]:
    """Numbers with their runs drawn together: 100-109, 120."""
    found: list[list[int]] = []
    for seed in sorted(seeds):
        if found and found[-1][-1] == seed - 1:
            found[-1].append(seed)
        else:
            found.append([seed])
    return [str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in found]
