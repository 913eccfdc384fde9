"""The paper's figures beside ours as Markdown: what docs/paper.md shows, and nothing of it typed by hand.

Owns words and columns. What the figures are is `paper_figures.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tightrope.bench.intervals import CONFIDENCE, Interval, mean
from tightrope.bench.paper import READINGS_AT, Paper, Point
from tightrope.bench.paper_bursts import (
    AT_ONCE,
    BASELINE,
    FAST,
    LARGE,
    OVERLOAD,
    SLOW,
    SMALL,
    TIGHT_REQUESTS,
    TIGHT_SHARE,
    Setting,
    Site,
)
from tightrope.bench.paper_crowd import OUTPUT_TOKENS, PROMPT_TOKENS
from tightrope.bench.paper_figures import (
    LATENCY,
    LEVEL,
    MIDDLE,
    SHARE,
    Elsewhere,
    Row,
    change,
    e2e_s,
    elsewhere,
    implied_ratio,
    rows,
    ttft_s,
    unsaturated,
)
from tightrope.bench.report_text import table
from tightrope.policy.fmware import GREEDY, TARGET

RAY_SERVE = "Ray Serve"


def paper_table(found: Paper) -> str:
    """All tables."""
    return "\n\n".join(
        [
            _setting(found),
            *_beside(found),
            *_by_size(found),
            *_sites(found),
            *_crowds(found),
            *_implied(found),
            *_readings(found),
        ]
    )


def _setting(found: Paper) -> str:
    scope = found.scope
    own = (
        (
            "nodes",
            f"one {FAST}, one {SLOW}; {LARGE} and {SMALL} have a replica on each; {AT_ONCE} sequences at once",
        ),
        ("requests of a burst", ", ".join(map(str, scope.sizes))),
        ("arrivals", f"Poisson, at {OVERLOAD:g} times the stability limit of the nodes for that workflow"),
        ("promise", "TTFT without contention plus a buffer"),
        (
            "buffer",
            f"{BASELINE} keeps {TIGHT_SHARE:.0%} at {TIGHT_REQUESTS} requests, seeds {_span(scope.tuning_seeds)}",
        ),
        (
            "seeds",
            f"{_span(scope.seeds)}, a burst each; the same arrivals, lengths and branches for every policy",
        ),
        ("intervals", f"± half of {CONFIDENCE:.0%}, percentile bootstrap over seeds, paired"),
    )
    loads = [
        (
            one.setting.workflow,
            one.setting.lengths,
            _nodes(one.setting.site),
            str(one.setting.site.sequences),
            f"{one.load.rate_per_s:.2f}",
            f"{one.load.buffer_s:.2f}",
        )
        for one in found.loads
    ]
    head = ("workflow", "lengths", "nodes", "calls at once", "arrivals, runs/s", "buffer, s")
    return f"{table(('setting', 'value'), own, text_columns=2)}\n\n{table(head, loads, text_columns=3)}"


def _span(seeds: Sequence[int]) -> str:
    return f"{seeds[0]}-{seeds[-1]}" if len(seeds) > 1 else str(seeds[0])


def _nodes(site: Site) -> str:
    return f"{site.fast} fast + {site.slow} slow"


# --- the figures of the paper ----------------------------------------------------------------------------


def _beside(found: Paper) -> list[str]:
    said = (
        f"Changes are against {RAY_SERVE} in the paper and against `{BASELINE}` here. Its ratios can be compared, its "
        "seconds cannot: we know neither its cards nor its models."
    )
    parts = ["### The paper's figures beside ours", said]
    for workflow in found.scope.workflows:
        head = ("figure", f"paper: {RAY_SERVE}", "paper: greedy", "paper: target", *_policies(found))
        cells = [_row(row, found, workflow) for row in rows(found, workflow)]
        parts += [f"**`{workflow}`**", table(head, cells)]
    return parts


def _policies(found: Paper) -> list[str]:
    return list(dict.fromkeys(point.policy for point in found.points))


def _row(row: Row, found: Paper, workflow: str) -> tuple[str, ...]:
    said = (row.said.baseline, row.said.greedy, row.said.target)
    paper = ["-" if value is None else _value(row, value) for value in said]
    ours = [
        "-" if row.is_change and policy == BASELINE else _spread(row, row.ours[policy], found.scope.sizes[-1])
        for policy in _policies(found)
    ]
    return (_title(row, found, workflow), *paper, *ours)


def _title(row: Row, found: Paper, workflow: str) -> str:
    sizes = found.scope.sizes
    most = unsaturated(found, workflow)[-1]
    titles = {
        "latency": "latency of a request, fixed lengths",
        "ttft": f"mean TTFT over {sizes[0]} to {sizes[-1]} requests, fixed lengths",
        "goodput": f"goodput before saturation (here up to {most} requests), fixed lengths",
        "requests": f"requests at {LEVEL:.0%} goodput, fixed lengths",
        "ttft_median": f"median TTFT, {MIDDLE} requests, varied lengths",
        "goodput_median": f"median goodput of a burst, {MIDDLE} requests, varied lengths",
        "fast_share": f"calls on the fast card, {MIDDLE} requests, varied lengths",
    }
    return titles[row.name]


def _value(row: Row, value: float) -> str:
    if row.is_change:
        return f"{100 * value:+.1f} %"
    return f"{value:.1f}" if value > 1 else f"{value:.0%}".replace("%", " %")


def _spread(row: Row, one: Interval, most: int) -> str:
    half = (one.high - one.low) / 2
    if row.name == "requests" and one.value >= most:
        return f"{most} or more"
    if row.name == "requests":
        return f"{one.value:.1f} ± {half:.1f}"
    sign = "+" if row.is_change else ""
    return f"{100 * one.value:{sign}.1f} ± {100 * half:.1f} %"


# --- by number of requests -------------------------------------------------------------------------------


def _by_size(found: Paper) -> list[str]:
    parts = ["### By number of requests, fixed lengths", "Goodput in %, and mean TTFT in s."]
    for workflow in found.scope.workflows:
        setting = Setting(workflow, "fixed")
        head = (f"`{workflow}`", *(str(size) for size in found.scope.sizes))
        cells: list[tuple[str, ...]] = []
        for policy in _policies(found):
            points = [_point(found, setting, policy, size) for size in found.scope.sizes]
            cells.append((f"goodput, {policy}", *(f"{100 * _mean_goodput(point):.0f}" for point in points)))
        for policy in _policies(found):
            points = [_point(found, setting, policy, size) for size in found.scope.sizes]
            cells.append((f"TTFT, {policy}", *(f"{mean(point.bursts.ttft_mean_s):.2f}" for point in points)))
        parts.append(table(head, cells))
    return parts


def _point(found: Paper, setting: Setting, policy: str, requests: int) -> Point:
    wanted = (setting, policy, requests)
    return next(one for one in found.points if (one.setting, one.policy, one.requests) == wanted)


def _mean_goodput(point: Point) -> float:
    return mean(point.bursts.goodput)


# --- other nodes, other engines --------------------------------------------------------------------------


def _sites(found: Paper) -> list[str]:
    probes = " and ".join(map(str, found.scope.probes))
    said = (
        f"Fixed lengths, bursts of {probes} requests together, against `{BASELINE}` on the same nodes. *At once* is "
        "how many calls an engine runs; under routers that bind early the others queue before it, as in the paper. "
        "*Actual* reads Algorithm 1 with profiles of the lengths that calls really have."
    )
    policies = list(dict.fromkeys(one.policy for one in elsewhere(found)))
    others = [policy for policy in policies if policy != BASELINE]
    return [
        "### Where the paper's gain appears: other nodes, other engines",
        said,
        _site_table("latency of a request", found, others, lambda one: _change(one.e2e)),
        _site_table("mean TTFT", found, others, lambda one: _change(one.ttft)),
        _site_table("goodput", found, others, lambda one: _change(one.goodput)),
        _site_table("calls on fast cards", found, policies, lambda one: f"{100 * one.fast_share:.0f} %"),
    ]


def _site_table(title: str, found: Paper, policies: Sequence[str], cell: Callable[[Elsewhere], str]) -> str:
    by_row: dict[tuple[str, Site], dict[str, Elsewhere]] = {}
    for one in elsewhere(found):
        by_row.setdefault((one.workflow, one.site), {})[one.policy] = one
    head = (title, "nodes", "at once", *map(_short, policies))
    cells = [
        (workflow, _nodes(site), str(site.sequences), *(cell(row[policy]) for policy in policies))
        for (workflow, site), row in by_row.items()
    ]
    return table(head, cells, text_columns=2)


def _change(one: Interval) -> str:
    return f"{100 * one.value:+.0f} ± {50 * (one.high - one.low):.0f} %"


def _short(policy: str) -> str:
    """`fmware-greedy/actual-replica-full` as `greedy, actual`."""
    family, _, reading = policy.partition("/")
    plain = {GREEDY: "greedy", TARGET: "target"}.get(family, family)
    return f"{plain}, {reading.partition('-')[0]}" if reading else plain


def _crowds(found: Paper) -> list[str]:
    said = (
        f"Mean seconds to the end of equal calls ({PROMPT_TOKENS} prompt tokens, {OUTPUT_TOKENS} of answer, {LARGE}) "
        "that come at one moment to an idle replica."
    )
    head = ("card", "calls", "Algorithm 1 believes", "one at a time", "continuous batching")
    cells = [
        (
            one.accelerator,
            str(one.calls),
            f"{one.believed_s:.1f}",
            f"{one.serial_s:.1f}",
            f"{one.batching_s:.1f}",
        )
        for one in found.crowds
    ]
    return ["### What the cost model believes", said, table(head, cells)]


def _implied(found: Paper) -> list[str]:
    said = (
        "If the time of a call depended on its card alone, the ratio of the two cards would say by how much the mean "
        "falls when calls move to the fast one. This is the ratio that the paper's change of latency needs with the "
        f"shares of its test of {MIDDLE} requests, and with an even share before."
    )
    alone = {one.accelerator: one.batching_s for one in found.crowds if one.calls == 1}
    head = ("", "change", "share before", "share after", "slow card slower by")
    cells = [
        (
            name,
            f"{100 * moved:+.1f} %",
            f"{100 * before:.0f} %",
            f"{100 * after:.0f} %",
            _ratio(implied_ratio(moved, before, after)),
        )
        for name, moved, before, after in (
            ("paper: greedy", LATENCY.greedy, SHARE.baseline, SHARE.greedy),
            ("the same from an even share", LATENCY.greedy, 0.5, SHARE.greedy),
            ("paper: target", LATENCY.target, SHARE.baseline, SHARE.target),
        )
        if before is not None
    ]
    cells.append((f"an answer alone, {SLOW} over {FAST}", "", "", "", _ratio(alone[SLOW] / alone[FAST])))
    return ["### What the paper's changes need", said, table(head, cells)]


def _ratio(value: float | None) -> str:
    return "no ratio does" if value is None else f"{value:.1f} x"


# --- readings --------------------------------------------------------------------------------------------


def _readings(found: Paper) -> list[str]:
    said = (
        f"Tuning seeds, bursts of {READINGS_AT} requests, both workflows, fixed and varied lengths together; changes "
        f"are against `{BASELINE}`. The plain names are `default-replica-full` and `default-replica-full-slowest`. By "
        f"goodput the best are `{found.best_greedy}` and `{found.best_target}`; where those are not the plain ones, "
        "the tables above show them beside."
    )
    by_policy: dict[str, list[Point]] = {}
    for point in found.readings:
        by_policy.setdefault(point.policy, []).append(point)
    base = by_policy[BASELINE]
    cells = [_reading(policy, points, base) for policy, points in by_policy.items()]
    head = ("reading", "goodput", "TTFT", "latency", "calls on the fast card")
    return ["### Every reading of Algorithm 1", said, table(head, cells)]


def _reading(policy: str, points: Sequence[Point], base: Sequence[Point]) -> tuple[str, ...]:
    share = mean([mean(point.bursts.fast_share) for point in points])
    changes = (
        ("-", "-")
        if policy == BASELINE
        else tuple(_change(change(points, base, metric)) for metric in (ttft_s, e2e_s))
    )
    return (
        policy,
        f"{100 * mean([_mean_goodput(point) for point in points]):.0f} %",
        *changes,
        f"{100 * share:.0f} %",
    )
