"""The report as one HTML file that needs no network: verdict, before and after, sites, passes, histograms."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jinja2

from graphpress.job.chance import Verdict
from graphpress.report import exhibits, tables
from graphpress.report.report import Report, SiteRow

WORST = 8  # sites whose histograms are drawn


def render(report: Report) -> str:
    """The page as text."""
    source = resources.files("graphpress.report").joinpath("templates/report.html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    return template.render(
        report=report,
        cards=_cards(report),
        head=[tables.before_after(report), tables.gate(report), tables.coverage(report)],
        warnings=tables.warnings(report),
        sites=tables.sites(report),
        tail=[tables.passes(report), tables.skips(report), tables.histogram(report)],
        bars=_bars(report),
        exhibits=exhibits.drawn(report),
        histograms=[_histogram(n, h) for n, h in list(report.histograms.items())[:WORST]],
    )


def _cards(report: Report) -> list[tuple[str, str, str]]:
    """Headline figures: label, value, good | bad | plain."""
    size = report.size.get("file_after", 0) / report.size["file_before"] if report.size.get("file_before") else None
    if size is None and report.size.get("weights_before"):
        size = report.size["weights_after"] / report.size["weights_before"]
    gate = ("passed", "good") if report.gate.passed and report.gate.outputs else ("not checked", "plain")
    if report.gate.verdict is not Verdict.PASSED:
        gate = ("failed", "bad") if report.gate.failures else (str(report.gate.verdict), "plain")
    cards = [("accuracy gate", *gate)]
    if size is not None:
        cards.append(("size", f"{size:.2f}x", "good" if size < 1 else "bad"))
    if report.latency:
        ratio = report.latency["ratio"]
        cards.append(("latency", f"{ratio:.2f}x", "good" if ratio < 1 else "bad"))
    if report.metric:
        gain = report.metric["after"] - report.metric["before"]
        cards.append(("metric", f"{report.metric['after']:.2f} ({gain:+.2f})", "plain"))
    macs = report.coverage().macs
    if macs is not None:
        cards.append(("multiply-adds on low-bit kernels", tables.percent(macs), "good" if macs > 0.9 else "plain"))
    return cards


def _bars(report: Report) -> list[dict[str, Any]]:
    """The sites that take most of the time, as shares of the slowest."""
    timed: list[SiteRow] = sorted((s for s in report.sites if s.microseconds), key=lambda s: -s.microseconds)[:15]
    most = timed[0].microseconds if timed else 1.0
    return [
        {
            "name": s.node,
            "width": 100 * s.microseconds / most,
            "value": f"{s.microseconds:.0f} µs",
            "verdict": s.verdict,
        }
        for s in timed
    ]


def _histogram(name: str, data: dict[str, Any]) -> dict[str, Any]:
    """Bars of one histogram in a 300 x 80 box, and where the chosen range ends."""
    counts = data["counts"]
    top = max(counts, default=0) or 1
    step = 300 / max(len(counts), 1)
    width = len(counts) * data["width"] or 1.0
    marks = [300 * (data[k] - data["start"]) / width for k in ("lo", "hi")]
    bars = [
        {"x": i * step, "h": 80 * (c / top) ** 0.5, "y": 80 - 80 * (c / top) ** 0.5} for i, c in enumerate(counts) if c
    ]
    return {"name": name, "bars": bars, "step": step, "marks": [m for m in marks if 0 <= m <= 300], **data}
