"""Points on two axes as a drawing: a cost across, a loss up on a logarithmic scale, one mark a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM = 720, 320, 74, 40


@dataclass(frozen=True)
class Dot:
    """A point in pixels; ``look`` is predicted, measured or taken; ``text`` is said of it."""

    x: float
    y: float
    look: str
    text: str


@dataclass(frozen=True)
class Scatter:
    """Dots, the line through the predicted ones, ticks (position, label), titles of the axes and a note.

    ``asked`` holds (axis, position, label) of each budget: a line across the box.
    """

    dots: Sequence[Dot]
    line: str
    across: Sequence[tuple[float, str]]
    up: Sequence[tuple[float, str]]
    label: str
    note: str
    title: str
    asked: Sequence[tuple[str, float, str]] = ()


def scatter(data: dict[str, Any]) -> Scatter:
    """Draw an exhibit of the kind ``scatter``; its keys stand in ``exhibits``."""
    points, asked = data["points"], data.get("asked") or {}
    heights = [v for v in (*(p["y"] for p in points), asked.get("y") or 0.0) if v > 0] or [1.0]
    low, high = math.floor(math.log10(min(heights))), math.ceil(math.log10(max(heights)))
    high = max(high, low + 1)
    places = [*(p["x"] for p in points), *([asked["x"]] if asked.get("x") is not None else [])]
    least, most = min(places, default=0.0), max(places, default=1.0)
    span = (most - least) or abs(most) or 1.0

    def x(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - 20) * (value - least) / span, 1)

    def y(value: float) -> float:
        share = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 16) * share, 1)

    whole = data.get("whole") or 1.0
    dots = [Dot(x(p["x"]), y(p["y"]), p["look"], p["text"]) for p in points]
    line = " ".join(f"{d.x},{d.y}" for d in dots if d.look == "predicted")
    lines = [("x", x(asked["x"]), f"asked: {asked['x'] / whole:.2f}x")] if asked.get("x") is not None else []
    lines += [("y", y(asked["y"]), f"asked: {asked['y']:.3g}")] if asked.get("y") else []
    steps = [least + span * i / 4 for i in range(5)]
    return Scatter(
        dots, line, [(x(v), f"{v / whole:.2f}x") for v in steps],
        [(y(10.0**e), f"1e{e}") for e in range(low, high + 1)], str(data["across"]), str(data.get("note", "")),
        str(data.get("up", "loss")), lines,
    )  # fmt: skip
