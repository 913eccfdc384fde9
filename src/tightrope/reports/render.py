"""An explanation as text for people: the steps, the decisions, the verdict.

Owns columns and words; decides and computes nothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from tightrope.reports.cause import cause, ms
from tightrope.reports.explain import Candidate, Decision, Explanation, Promise, Row

_HEAD = (
    "node", "replica", "ready", "end", "prep", "queue", "lost", "prefill", "decode", "code", "join", "used", "budget",
    "left over", "",
)  # fmt: skip
_TEXT_COLUMNS = (0, 1, 14)
_PHASE_COLUMNS = range(4, 11)
_WIDTH = 120


def render(explained: Explanation, *, all_decisions: bool = False) -> str:
    """The explanation as text. `all_decisions` shows every placement, not only that of the critical node."""
    parts = [list(_summary(explained))]
    if explained.rows:
        parts.append(list(_steps(explained)))
    parts += [list(_decision(decision)) for decision in _shown(explained, all_decisions)]
    if explained.fleet:
        parts.append(list(_fleet(explained)))
    parts.append(list(_verdict(explained)))
    return "\n\n".join("\n".join(lines) for lines in parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Sequence[int]) -> list[str]:
    """Lines with aligned columns: text to the left, numbers to the right."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if at in text_columns else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


# --- the run ---------------------------------------------------------------------------------------------


def _summary(explained: Explanation) -> Iterator[str]:
    at = datetime.fromtimestamp(explained.arrived_unix_s).astimezone().strftime("%H:%M:%S.%f")[:-3]
    facts = [explained.workflow, f"tenant {explained.tenant}", f"arrived {at}"]
    facts += [f"case {case}" for case in explained.cases]
    facts += [_plural(explained.model_calls, "model call"), explained.outcome]
    yield f"run  {explained.run}  {' · '.join(facts)}"
    if explained.request:
        yield f"     request {explained.request}"
    share = f"{100 * explained.accounted_share:.1f} % of the time accounted for"
    if not explained.promises:
        yield f"SLO  none · {_event_words(explained)} · {share}"
    for number, promise in enumerate(explained.promises):
        yield f"SLO  {_promise(promise)}" + (f" · {share}" if number == 0 else "")


def _promise(promise: Promise) -> str:
    measured = "never came" if promise.measured_ms is None else f"measured {ms(promise.measured_ms)}"
    if promise.late_ms is None:
        verdict = "no verdict"
    elif promise.late_ms > 0:
        verdict = f"MISSED by {ms(promise.late_ms)}"
    else:
        verdict = f"met, {ms(-promise.late_ms)} inside"
    return f"{promise.name} {ms(promise.target_ms)} · {measured} · {verdict}"


def _event_words(explained: Explanation) -> str:
    words = {"ttft": "first content", "e2e": "answer complete", "end": "ended"}
    return f"{words[explained.event]} after {ms(explained.event_ms)}"


# --- steps -----------------------------------------------------------------------------------------------


def _steps(explained: Explanation) -> Iterator[str]:
    rows = [_cells(row, explained) for row in explained.rows]
    unaccounted = [""] * len(_HEAD)
    unaccounted[0], unaccounted[11] = "unaccounted", _figure(explained.unaccounted_ms) or "0"
    rows.append(unaccounted)
    shown = [at for at in range(len(_HEAD)) if at not in _PHASE_COLUMNS or any(row[at] for row in rows)]
    text_columns = [place for place, at in enumerate(shown) if at in _TEXT_COLUMNS]
    yield from table([_HEAD[at] for at in shown], [[row[at] for at in shown] for row in rows], text_columns)
    notes = ["* critical node"] if explained.critical else []
    if any(not row.is_on_path for row in explained.rows):
        notes.append("(node) did not hold up the answer")
    if notes:
        yield f"{' · '.join(notes)} · ms since arrival; up to {_event_words(explained)}"


def _cells(row: Row, explained: Explanation) -> list[str]:
    name = row.node if row.is_on_path else f"({row.node})"
    is_last = row.is_on_path and row.end_ms == explained.event_ms and explained.event == "ttft"
    remark = "; ".join(part for part in (row.remark, "first content of the run" if is_last else "") if part)
    return [
        f"{name} *" if row.is_critical else name,
        ", ".join(row.replicas) or "-",
        f"{row.ready_ms:.0f}",
        f"{row.end_ms:.0f}",
        *map(
            _figure,
            (
                row.prepare_ms,
                row.queue_ms,
                row.lost_ms,
                row.prefill_ms,
                row.decode_ms,
                row.code_ms,
                row.join_ms,
            ),
        ),
        f"{row.used_ms:.0f}",
        "" if row.budget_ms is None else f"{row.budget_ms:.0f}",
        "" if row.left_ms is None else f"{row.left_ms:+.0f}",
        remark,
    ]


def _figure(value: float) -> str:
    return "" if abs(value) < 0.05 else f"{value:.0f}" if abs(value) >= 0.95 else f"{value:.1f}"


# --- decisions -------------------------------------------------------------------------------------------


def _shown(explained: Explanation, all_decisions: bool) -> Iterable[Decision]:
    if all_decisions:
        return explained.decisions
    return explained.decisions_of(explained.critical)[-1:]


def _decision(decision: Decision) -> Iterator[str]:
    item = f" item {decision.item}" if decision.item else ""
    attempt = f" attempt {decision.attempt + 1}" if decision.attempt else ""
    slack = "no deadline" if decision.slack_ms is None else f"slack {ms(decision.slack_ms)}"
    count = _plural(len(decision.candidates), "candidate")
    yield (
        f"route decision for {decision.node}{item}{attempt} at {ms(decision.at_ms)} · policy {decision.policy}"
        f" · {decision.reason} · {slack} · {count}"
    )
    head = ("replica", "on", "lx", "lq", "lr", "l_est", "margin", "verdict")
    yield from table(head, [_candidate(one) for one in decision.candidates], (0, 1, 7))
    yield _prediction(decision)


def _candidate(one: Candidate) -> list[str]:
    return [
        one.replica,
        one.accelerator,
        *(f"{part:.0f}" for part in (one.lx_ms, one.lq_ms, one.lr_ms, one.estimate_ms)),
        "" if one.margin_ms is None else f"{one.margin_ms:+.0f}",
        one.verdict,
    ]


def _prediction(decision: Decision) -> str:
    if decision.measured_ms is None:
        return f"predicted {ms(decision.predicted_ms)} -> not measured: {decision.why or decision.ending}"
    parts = [f"predicted {ms(decision.predicted_ms)} -> measured {ms(decision.measured_ms)}"]
    if decision.measured_ttft_ms is not None:
        parts.append(_against("first token", decision.predicted_ttft_ms, decision.measured_ttft_ms))
    if decision.measured_decode_ms is not None and not decision.counts_first_token:
        parts.append(_against("decode", decision.predicted_decode_ms, decision.measured_decode_ms))
    if decision.prompt_tokens is not None:
        parts.append(
            f"prompt {decision.estimated_prompt_tokens} tokens estimated, {decision.prompt_tokens} real"
        )
    if decision.output_tokens is not None:
        parts.append(f"output {decision.expected_output_tokens:.0f} expected, {decision.output_tokens} real")
    return textwrap.fill(" · ".join(parts), _WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _against(name: str, predicted_ms: float, measured_ms: float) -> str:
    return (
        f"{name} {measured_ms - predicted_ms:+.0f} ({predicted_ms:.0f} predicted, {measured_ms:.0f} measured)"
    )


def _fleet(explained: Explanation) -> Iterator[str]:
    yield "the fleet meanwhile · ms since arrival"
    for one in explained.fleet:
        yield _wrapped(f"{one.at_ms:9.0f}  ", one.text)


def _verdict(explained: Explanation) -> Iterator[str]:
    why = cause(explained)
    yield _wrapped("verdict  ", why.sentence)
    if why.next:
        yield _wrapped("next     ", why.next)


def _wrapped(head: str, text: str) -> str:
    return textwrap.fill(
        text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
    )


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
