"""What the page draws of the sites: size by layer, SQNR in the order of the graph, time; ready for the template."""

from __future__ import annotations

import math
from typing import Any

from graphpress import keys
from graphpress.errors import BadRequest
from graphpress.report import tables
from graphpress.report.report import Report, SiteRow
from graphpress.types import Role

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 260, 52, 34, 12
_LAYERS, _TIMED = 16, 15  # rows of a chart: the tables have all
_FLOAT = 32


def times(report: Report) -> list[dict[str, Any]]:
    """The sites that take most of the time, as shares of the slowest."""
    timed = sorted((s for s in report.sites if s.microseconds), key=lambda s: -s.microseconds)[:_TIMED]
    most = timed[0].microseconds if timed else 1.0
    return [
        {"name": s.node, "width": 100 * s.microseconds / most, "value": f"{s.microseconds:.0f} µs", "kind": s.kind}
        for s in timed
    ]


def sizes(report: Report) -> dict[str, Any]:
    """The largest layers: bytes of their weights in float32 and in the bits of their schemes; what the others add."""
    held = sorted((s for s in report.sites if s.weights), key=lambda s: -s.weights)
    pairs = [(s, s.weights * _FLOAT / 8, s.weights * _bits(s) / 8) for s in held]
    most = pairs[0][1] if pairs else 1.0
    rows = [
        {
            "name": s.node, "kind": s.kind, "before": 100 * a / most, "after": 100 * b / most,
            "value": f"{tables.size(a)} → {tables.size(b)}",
        }
        for s, a, b in pairs[:_LAYERS]
    ]  # fmt: skip
    rest = pairs[_LAYERS:]
    note = ""
    if rest:
        a, b = sum(was for _, was, _ in rest), sum(now for _, _, now in rest)
        note = f"The other {len(rest)} layers: {tables.size(a)} → {tables.size(b)}. "
    return {"rows": rows, "note": f"{note}Scales and zero points are not counted here; the file size has them."}


def _bits(site: SiteRow) -> int:
    """Of a site's narrowest weights; those of float32 where it has no scheme for them."""
    try:
        schemes = keys.read_schemes(site.scheme, site.node)
    except BadRequest:
        return _FLOAT  # somebody else's
    return min((s.bits for place, s in schemes.items() if place.role is Role.WEIGHT), default=_FLOAT)


def noise(report: Report) -> dict[str, Any]:
    """A dot a measured site, in the order of the graph: SQNR upwards in dB."""
    known = [s for s in report.sites if s.sqnr is not None and math.isfinite(s.sqnr)]
    if len(known) < 2:
        return {}
    figures = [s.sqnr or 0.0 for s in known]
    low, high = 10 * math.floor(min(figures) / 10), 10 * math.ceil(max(figures) / 10)
    high = max(high, low + 10)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value - low) / (high - low), 1)

    step = (WIDTH - LEFT - 16) / (len(known) - 1)
    dots = [
        {"x": round(LEFT + i * step, 1), "y": y(v), "kind": s.kind, "text": f"{s.node}: {tables.decibel(v)}, {s.kind}"}
        for i, (s, v) in enumerate(zip(known, figures, strict=True))
    ]
    every = 10 if high - low <= 60 else 20
    ticks = [(y(v), str(v)) for v in range(low, high + 1, every)]
    left_out = len(report.sites) - len(known)
    who = "1 site is" if left_out == 1 else f"{left_out} sites are"
    note = f"{who} exact or not measured: the table says why." if left_out else ""
    return {"dots": dots, "ticks": ticks, "note": note}


def histogram(name: str, data: dict[str, Any]) -> dict[str, Any]:
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
