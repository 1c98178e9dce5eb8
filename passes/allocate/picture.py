"""The front and the compiled plans as a drawing for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from graphpress.contracts import Exhibit
from graphpress.passes.allocate.front import pareto
from graphpress.passes.allocate.problem import Problem, Totals
from graphpress.passes.allocate.trial import Bench, Trial
from graphpress.report import tables

MOST = 150  # points of the front in the report
_THINNED = "The front was thinned out on the way: its points are near the best ones."

_WHOLE = "The front does not divide the budget between the selections of option 'metrics'."


def picture(problem: Problem, bench: Bench, taken: Trial, cost: str, asked: Mapping[str, float | None]) -> Exhibit:
    """``cost`` (latency in ms or size in bytes) against the loss: the predicted front, and what was compiled.

    Each point also says ``drop``, ``size``, ``latency``, ``formats`` (how many operators have each), and, of those that
    were compiled, what was ``predicted`` and what the metric ``lost``. ``asked`` are the budgets: ``x``, ``y``.
    """
    front = pareto(problem, cost)
    step = np.linspace(0, len(front.points) - 1, min(MOST, len(front.points))).astype(int)
    points = [_point(front.points[i].totals, problem.formats(front.points[i].chosen), "predicted")
              for i in np.unique(step)]  # fmt: skip
    for t in bench.trials.values():
        measured = _point(t.measured, t.formats, "taken" if t is taken else "measured")
        points.append(measured | {"predicted": _costs(t.predicted), "lost": t.lost})
    whole = getattr(problem, cost) or 1.0
    for p in points:
        p |= {"x": p[cost], "y": p["drop"], "text": _said(p, cost, whole)}
    data = {
        "across": cost,
        "whole": whole,
        "points": points,
        "asked": dict(asked),
        "up": "loss: share of the worst, by own metrics" if problem.shares else "loss: divergence of the outputs",
        "note": " ".join(s for s in (_WHOLE if problem.shares else "", "" if front.exact else _THINNED) if s),
    }
    return Exhibit("scatter", f"{cost} against loss", data)


def _costs(totals: Totals) -> dict[str, float]:
    return {"drop": totals.drop, "size": totals.size, "latency": totals.latency}


def _point(totals: Totals, formats: Any, look: str) -> dict[str, Any]:
    used = list(formats.values())
    return {**_costs(totals), "look": look, "formats": {f: used.count(f) for f in dict.fromkeys(used)}}


def _said(point: dict[str, Any], cost: str, whole: float) -> str:
    value = tables.size(point[cost]) if cost == "size" else f"{point[cost]:.3f} ms"
    kind = "compiled" if point["look"] == "measured" else point["look"]
    parts = [f"{kind}: {cost} {value} ({point[cost] / whole:.2f}x), loss {point['drop']:.3g}"]
    if "predicted" in point:
        parts.append(f"predicted {point['predicted'][cost] / whole:.2f}x, loss {point['predicted']['drop']:.3g}")
    if point.get("lost") is not None:
        parts.append(f"metric lost {point['lost']:.2f}")
    parts.append(", ".join(f"{n} {f}" for f, n in point["formats"].items()))
    return "; ".join(filter(None, parts))
