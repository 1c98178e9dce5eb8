"""Results as plain tables: the terminal and the HTML page draw the same ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphpress import keys
from graphpress.errors import BadRequest
from graphpress.report.report import Report
from graphpress.types import AFFINE, PER_TENSOR, Role


@dataclass(frozen=True)
class Table:
    """A title, column names, and rows of ready-made text; ``note`` stands below."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"title": self.title, "rows": [dict(zip(self.columns, r, strict=True)) for r in self.rows]}


def size(count: float) -> str:
    """``3.5 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError


def percent(share: float | None) -> str:
    """``98.2 %``; a dash where there is no figure."""
    return "-" if share is None else f"{100 * share:.1f} %"


def decibel(value: float | None) -> str:
    """``23.4 dB``."""
    if value is None:
        return "-"
    return f"{value:.1f} dB" if math.isfinite(value) else ("exact" if value > 0 else "broken")


def scheme(text: str) -> str:
    """A site's schemes in short: ``weight int8 per_channel:0, activation uint8``. An output like that goes unsaid."""
    try:
        schemes = keys.read_schemes(text)
    except BadRequest:
        return text  # somebody else's
    kinds: dict[Role, dict[str, None]] = {}
    for site, s in schemes.items():
        words = (
            s.dtype, str(s.granularity) if s.granularity != PER_TENSOR else "", "dynamic" if s.dynamic else "",
            s.quantizer if s.quantizer != AFFINE else "",
        )  # fmt: skip
        kinds.setdefault(site.role, {})[" ".join(filter(None, words))] = None
    if kinds.get(Role.OUTPUT) == kinds.get(Role.ACTIVATION):
        kinds.pop(Role.OUTPUT, None)
    return ", ".join(f"{role} {' and '.join(kinds[role])}" for role in sorted(kinds, reverse=True)) or "float"


def before_after(report: Report) -> Table:
    """Size, latency, metric and operators before and after."""
    rows: list[tuple[str, ...]] = []
    for key, label in (("file", "file size"), ("weights", "weights")):
        held = [report.size.get(f"{key}_{when}", 0) for when in ("before", "after")]
        if all(held):
            rows.append((label, *map(size, held), f"{held[1] / held[0]:.2f}x"))
    if report.latency:
        a, b = report.latency["before"], report.latency["after"]
        phase = report.target.partition(":")[2]
        rows.append(
            (f"latency, {phase or 'one sample'}", f"{a:.3f} ms", f"{b:.3f} ms", f"{report.latency['ratio']:.2f}x")
        )
    if report.metric:
        a, b = report.metric["before"], report.metric["after"]
        errors = (report.metric.get("before_error"), report.metric.get("after_error"))
        said = [f"{x:.2f}" + (f" ± {e:.2f}" if e is not None else "") for x, e in zip((a, b), errors, strict=True)]
        name = f"{report.measured_by or 'metric'}{', standard error' * ('samples' in report.metric)}"
        rows.append((name, *said, f"{b - a:+.2f}"))
    if report.ops:
        counts = [sum(report.ops[k].values()) for k in ("before", "after")]
        rows.append(("operators", str(counts[0]), str(counts[1]), f"{counts[1] - counts[0]:+d}"))
    sure = spread(report.latency)
    sure = f"Latency with a chance of 95 %: {sure}" if sure else ""
    back = f"back in float to hold the budget: {', '.join(report.reverted)}" if report.reverted else ""
    wide = f"in 8 bits to hold the budget: {', '.join(report.widened)}" if report.widened else ""
    data = "; ".join(report.data.get("notes", ()))
    note = ". ".join(filter(None, (wide, back, report.half, sure, f"Data: {data}" if data else "")))
    return Table("Before and after", ("", "before", "after", "change"), rows, note)


def spread(latency: Mapping[str, float]) -> str:
    """Where the true ratio lies: ``0.50x to 0.55x of 40 pairs of runs``, and whether the machine was busy."""
    if "ratio_low" not in latency:
        return ""
    said = f"{latency['ratio_low']:.2f}x to {latency['ratio_high']:.2f}x of {latency['runs']:.0f} pairs of runs"
    return said + ("; the machine was busy" if latency.get("busy") else "")


def gate(report: Report) -> Table:
    """The accuracy gate, a row an output."""
    found = report.gate
    rows = [
        (o.name, o.kind, decibel(o.sqnr), f"{o.cosine:.4f}", percent(o.agreement), f"{o.max_abs:.3g}", _worst(o.worst),
         "; ".join(f"{f.what} {f.value:.3g} ({f.low:.3g} to {f.high:.3g})" for f in o.figures))
        for o in found.outputs
    ]  # fmt: skip
    said = found.failures if found.failures else found.unsure
    verdict = str(found.verdict).upper() if found.failures else str(found.verdict)
    note = ": ".join(filter(None, (verdict, "; ".join(said)))) + f" on {found.samples} samples" if rows else "no check"
    if found.left_out:
        note += f" ({found.left_out})"
    heads = ("output", "judged as", "SQNR", "cosine", "same choice", "largest error", "worst sample", "figures")
    return Table("Accuracy gate", heads, rows, note)


def _worst(sample: tuple[int, float] | None) -> str:
    return "" if sample is None else f"{sample[0]}: {decibel(sample[1])}"


def coverage(report: Report) -> Table:
    """Shares on integers, with weights in few bits alone, and in float."""
    c = report.coverage()
    rows = [(kind, *(percent(of.get(what)) for what in ("sites", "weights", "macs"))) for kind, of in c.kinds.items()]
    note = f"{percent(c.sites)} of the sites have a scheme" if rows else ""
    if not any(s.verdict for s in report.sites) and rows:
        note += (
            f"; not audited{': ' + report.audit['left_out'] if 'left_out' in report.audit else ''}: as schemes mean it"
        )
    return Table("Coverage", ("runs as", "sites", "weights", "multiply-adds"), rows, note)


def sites(report: Report) -> Table:
    """A row a site."""
    rows = [
        (
            s.node, s.op, scheme(s.scheme), s.verdict or "-", s.kernel or "-",
            f"{s.microseconds:.0f}" if s.microseconds else "-", percent(s.share) if s.share else "-",
            decibel(s.sqnr) + (f" ({s.unmeasured})" if s.unmeasured else ""), s.reason or s.skip,
        )
        for s in report.sites
    ]  # fmt: skip
    return Table("Sites", ("site", "op", "scheme", "runs as", "kernel", "µs", "time", "SQNR", "why"), rows)


def passes(report: Report) -> Table:
    """A row a pass."""
    rows = [
        (p.name, str(p.changed), str(len(p.skips)), f"{1e3 * p.seconds:.1f}", p.checked or "unchanged")
        for p in report.passes
    ]
    return Table("Passes", ("pass", "changed", "skipped", "ms", "numbers"), rows)


def skips(report: Report) -> Table:
    """Every place left alone and why."""
    rows = [(p.name, s.where, s.why) for p in report.passes for s in p.skips]
    return Table("Left alone", ("pass", "where", "why"), rows)


def warnings(report: Report) -> Table:
    """What did nothing, and degenerate scales by site."""
    return Table("Warnings", ("where", "what is wrong"), [(w.where, w.why) for w in report.warnings])


def histogram(report: Report) -> Table:
    """Operators before and after."""
    before, after = report.ops.get("before", {}), report.ops.get("after", {})
    rows = [(op, str(before.get(op, 0)), str(after.get(op, 0))) for op in dict.fromkeys([*before, *after])]
    return Table("Operators", ("op", "before", "after"), rows)
