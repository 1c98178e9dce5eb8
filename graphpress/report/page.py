"""The report as one HTML file that needs no network: verdict, before and after, sites, passes, histograms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2

from graphpress.job.chance import Verdict
from graphpress.report import charts, exhibits, tables
from graphpress.report.next_step import next_steps
from graphpress.report.report import Report

WORST = 8  # sites whose histograms are drawn


@dataclass(frozen=True)
class Made:
    """Where and when a report was made, ready to be read.

    Attributes:
        lines: Versions, machine, date.
        view: The page of the rewritten graph lies beside it, as ``view.html``.
    """

    lines: Sequence[str] = ()
    view: bool = False


def render(report: Report, made: Made | None = None) -> str:
    """The page as text."""
    source = resources.files("graphpress.report").joinpath("templates/report.html").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    return template.render(
        report=report,
        made=made or Made(),
        cards=_cards(report),
        steps=next_steps(report),
        head=[tables.before_after(report), tables.coverage(report), tables.gate(report)],
        warnings=tables.warnings(report),
        sites=tables.sites(report),
        tail=[tables.passes(report), tables.skips(report), tables.histogram(report)],
        times=charts.times(report),
        sizes=charts.sizes(report),
        noise=charts.noise(report),
        exhibits=exhibits.drawn(report),
        histograms=[charts.histogram(n, h) for n, h in list(report.histograms.items())[:WORST]],
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
        cards.append(_latency(report.latency))
    if report.metric:
        gain = report.metric["after"] - report.metric["before"]
        error = f" ± {report.metric['after_error']:.2f}" if "after_error" in report.metric else ""
        label = report.measured_by or "metric"
        cards.append((f"{label} ({gain:+.2f})", f"{report.metric['after']:.2f}{error}", "plain"))
    coverage = report.coverage()
    if coverage.macs is not None:
        shares = {kind: of.get("macs", 0.0) for kind, of in coverage.kinds.items()}
        most = max(shares, key=lambda kind: shares[kind])
        cards.append((f"multiply-adds: {most}", tables.percent(shares[most]), "plain" if most == "float" else "good"))
    return cards


def _latency(latency: dict[str, float]) -> tuple[str, str, str]:
    """Good and bad only where the runs agree that it is."""
    low, high = latency.get("ratio_low", latency["ratio"]), latency.get("ratio_high", latency["ratio"])
    tone = "good" if high < 1 else "bad" if low > 1 else "plain"
    if latency.get("busy"):
        return "latency: machine was busy", f"{latency['ratio']:.2f}x ?", "plain"
    return f"latency ({low:.2f}x to {high:.2f}x)" if low < high else "latency", f"{latency['ratio']:.2f}x", tone
