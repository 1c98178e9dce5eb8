"""The front of a search as a drawing: cost across, loss up on a logarithmic scale, one mark a plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graphpress.report import tables

WIDTH, HEIGHT, LEFT, BOTTOM = 720, 320, 74, 40


@dataclass(frozen=True)
class Mark:
    """A point in pixels; ``kind`` is front, compiled or taken; ``text`` is said of it."""

    x: float
    y: float
    kind: str
    text: str


@dataclass(frozen=True)
class Chart:
    """Marks, the line of the front, ticks (position, label) and the name of the cost."""

    marks: Sequence[Mark]
    line: str
    across: Sequence[tuple[float, str]]
    up: Sequence[tuple[float, str]]
    cost: str
    note: str


def chart(front: dict[str, Any]) -> Chart:
    """Draw what ``PassReport.front`` holds."""
    cost, points = str(front["cost"]), [*front["front"], *front["measured"]]
    drops = [p["drop"] for p in points if p["drop"] > 0] or [1.0]
    low, high = math.floor(math.log10(min(drops))), math.ceil(math.log10(max(drops)))
    high = max(high, low + 1)
    least, most = min(p[cost] for p in points), max(p[cost] for p in points)
    span = (most - least) or abs(most) or 1.0

    def x(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - 20) * (value - least) / span, 1)

    def y(drop: float) -> float:
        share = (math.log10(max(drop, 10.0**low)) - low) / (high - low)
        return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 16) * share, 1)

    whole = front["float"] or 1.0
    marks = [Mark(x(p[cost]), y(p["drop"]), "front", _said(p, cost, whole, "predicted")) for p in front["front"]]
    line = " ".join(f"{m.x},{m.y}" for m in marks)
    for p in front["measured"]:
        kind = "taken" if p["taken"] else "compiled"
        marks.append(Mark(x(p[cost]), y(p["drop"]), kind, _said(p, cost, whole, kind)))
    steps = [least + span * i / 4 for i in range(5)]
    return Chart(
        marks, line, [(x(v), f"{v / whole:.2f}x") for v in steps],
        [(y(10.0**e), f"1e{e}") for e in range(low, high + 1)], cost,
        "" if front["exact"] else "The front was thinned out on the way: its points are near the best ones.",
    )  # fmt: skip


def _said(point: dict[str, Any], cost: str, whole: float, kind: str) -> str:
    value = tables.size(point[cost]) if cost == "size" else f"{point[cost]:.3f} ms"
    parts = [f"{kind}: {cost} {value} ({point[cost] / whole:.2f}x), loss {point['drop']:.3g}"]
    if "predicted" in point:
        parts.append(f"predicted {point['predicted'][cost] / whole:.2f}x, loss {point['predicted']['drop']:.3g}")
    if point.get("lost") is not None:
        parts.append(f"metric lost {point['lost']:.2f}")
    parts.append(", ".join(f"{n} {f}" for f, n in point["formats"].items()))
    return "; ".join(filter(None, parts))
