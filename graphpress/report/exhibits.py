"""What passes put on show (``contracts.Exhibit``), made ready for the page by kind. Nothing here knows an algorithm.

scatter
    ``across`` (name of the axis), ``up`` (of the other), ``whole`` (ticks are shares of it), ``asked`` (budgets: ``x``,
    ``y``), ``note``, ``points``: each ``x``, ``y`` (on a logarithmic scale), ``look`` (predicted: small, on
    one line; measured: large; taken: filled) and ``text``.
levels
    How many of N each of many takes. ``columns`` (four headings), ``parts``: each ``name`` and, a row a place,
    ``names``, ``counts`` (of 0..N) and ``strips`` (how many each of a sequence took).
table
    ``columns``, ``rows`` of text, ``note``.
"""

from __future__ import annotations

from typing import Any

from graphpress.contracts import Exhibit
from graphpress.report import tables
from graphpress.report.report import Report
from graphpress.report.scatter import scatter


def drawn(report: Report) -> list[dict[str, Any]]:
    """Every exhibit of every pass: ``kind``, ``name``, ``by`` (the pass) and ``drawing``, which the template takes."""
    found = [(p.name, e) for p in report.passes for e in p.exhibits]
    return [{"kind": e.kind, "name": e.name, "by": by, "drawing": _drawing(e)} for by, e in found]


def _drawing(exhibit: Exhibit) -> Any:
    match exhibit.kind:
        case "scatter":
            return scatter(exhibit.data)
        case "levels":
            return {"columns": exhibit.data["columns"], "parts": [_levels(p) for p in exhibit.data["parts"]]}
    data = exhibit.data
    return tables.Table(exhibit.name, tuple(data["columns"]), [tuple(r) for r in data["rows"]], data.get("note", ""))


def _levels(part: dict[str, Any]) -> dict[str, Any]:
    """Bars in a 100 x 24 box and a strip of shaded cells, by place."""
    rows = []
    for name, counts, strip in zip(part["names"], part["counts"], part["strips"], strict=True):
        total, most, levels = sum(counts) or 1, max(counts) or 1, len(counts) - 1
        mean = sum(k * c for k, c in enumerate(counts)) / total
        step = 100 / len(counts)
        bars = [{"x": i * step, "h": 24 * c / most, "share": tables.percent(c / total)} for i, c in enumerate(counts)]
        cells = [{"x": i, "taken": v, "shade": v / max(levels, 1)} for i, v in enumerate(strip)]
        rows.append({"name": name, "bars": bars, "step": step, "mean": mean, "levels": levels, "cells": cells})
    return {"name": part["name"], "rows": rows}
