"""Tables as people read them: figures that `reports/` has worked out, laid out for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from tightrope.reports.summary import Line, Summary


def summary_table(summary: Summary) -> str:
    """Per tenant and workflow: runs, met, times to first token, shares; then how good the predictions were."""
    head = ("tenant", "workflow", "runs", "met", "TTFT p50", "p95", "calls", "share per accelerator")
    rows = [_row(line) for line in (*summary.lines, summary.total)]
    parts = [grid(head, rows, right=(2, 3, 4, 5, 6))]
    bad = _troubles(summary.total)
    if bad:
        parts.append(bad)
    if summary.errors:
        titles = ("accelerator", "calls", "prediction off by (median)", "bias")
        errors = [
            (error.accelerator, str(error.calls), f"{error.median:.0%}", f"{error.bias:+.0%}")
            for error in summary.errors
        ]
        parts.append(grid(titles, errors, right=(1, 2, 3)))
    return "\n\n".join(parts)


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns as wide as their widest cell, two spaces between; the columns in `right` end flush."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        placed = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(placed).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *(line(row) for row in rows)])


def _row(line: Line) -> tuple[str, ...]:
    met = "-" if line.attainment is None else f"{line.met}/{line.promised}"
    shares = ", ".join(f"{share.accelerator} {share.share:.0%}" for share in line.shares)
    times = (_ms(line.ttft_p50_ms), _ms(line.ttft_p95_ms))
    return (line.tenant, line.workflow, str(line.runs), met, *times, str(line.model_calls), shares)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _troubles(total: Line) -> str:
    counts = {
        "failed": total.failed,
        "cancelled": total.cancelled,
        "rejected": total.rejected,
        "expired": total.expired,
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
