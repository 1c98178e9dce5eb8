"""A compilation in about twenty lines of text."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator

from graphpress.report import tables
from graphpress.report.next_step import next_steps
from graphpress.report.report import Report

_WIDTH, _LABEL = 118, 12
_MOST = 3  # reasons and warnings; the report has all


def summary(report: Report) -> str:
    """What changed, what runs, whether it holds, what was left alone and what to do now."""
    lines = [f"{report.model}, recipe {report.recipe}, target {report.target}", ""]
    for label, text in _said(report):
        lines += textwrap.wrap(
            text, _WIDTH, initial_indent=f"{label:<{_LABEL}}", subsequent_indent=" " * _LABEL, max_lines=3,
            placeholder=" ...", break_long_words=False,
        )  # fmt: skip
    return "\n".join(lines)


def _said(report: Report) -> Iterator[tuple[str, str]]:
    yield from _changes(report)
    for label, what in (("weights on", "weights"), ("work on", "macs")):
        kinds = {kind: of[what] for kind, of in report.coverage().kinds.items() if of.get(what)}
        if kinds:
            yield label, ", ".join(f"{kind} {tables.percent(share)}" for kind, share in kinds.items())
    yield from (("data", note) for note in report.data.get("notes", ()))
    yield "gate", tables.gate(report).note
    if report.widened:
        yield "widened", f"{len(report.widened)} sites have 8 bits to hold the budget"
    if report.reverted:
        yield "reverted", f"{len(report.reverted)} sites are back in float to hold the budget"
    worst = sorted((s for s in report.sites if s.scheme and s.sqnr is not None), key=lambda s: s.sqnr or 0.0)[:_MOST]
    if worst:
        yield "lowest SQNR", ", ".join(f"{s.node} {tables.decibel(s.sqnr)}" for s in worst)
    reasons = Counter(s.reason or s.skip for s in report.sites if s.kind == "float")
    for why, count in reasons.most_common(_MOST):
        yield "in float", f"{count} site{'s' * (count != 1)}{': ' + why if why else ''}"
    for warning in report.warnings[:_MOST]:
        yield "warning", f"{warning.where}: {warning.why}"
    if len(report.warnings) > _MOST:
        yield "", f"and {len(report.warnings) - _MOST} more warnings in the report"
    for step in next_steps(report):
        yield "next", step


def _changes(report: Report) -> Iterator[tuple[str, str]]:
    """Size, latency, metric and operators, before and after."""
    for row in tables.before_after(report).rows:
        label = row[0].partition(",")[0]
        spread = tables.spread(report.latency) if label == "latency" else ""
        own = f"{label}: " if len(label) >= _LABEL else ""  # the name of a metric of one's own
        yield "metric" if own else label, f"{own}{row[1]} -> {row[2]}   {row[3]}{f' ({spread})' if spread else ''}"
