"""The front and the compiled plans as data for the report's plot."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphpress.passes.allocate.front import pareto
from graphpress.passes.allocate.problem import Problem, Totals
from graphpress.passes.allocate.trial import Bench, Trial

MOST = 150  # points of the front in the report


def picture(problem: Problem, bench: Bench, taken: Trial, cost: str) -> dict[str, Any]:
    """``cost`` (latency in ms or size in bytes) against the loss: the predicted front, and what was compiled.

    Returns:
        JSON-able: ``cost``, ``float`` (that of the float model), ``exact``, ``front`` (a list of points) and
        ``measured`` (points with what was predicted, what the metric lost, the formats, and whether it was taken).
    """
    front = pareto(problem, cost)
    step = np.linspace(0, len(front.points) - 1, min(MOST, len(front.points))).astype(int)
    return {
        "cost": cost,
        "float": getattr(problem, cost),
        "exact": front.exact,
        "front": [_point(front.points[i].totals, problem.formats(front.points[i].chosen)) for i in np.unique(step)],
        "measured": [
            _point(t.measured, t.formats) | {"predicted": _point(t.predicted, {}), "lost": t.lost, "taken": t is taken}
            for t in bench.trials.values()
        ],
    }


def _point(totals: Totals, formats: Any) -> dict[str, Any]:
    used = list(formats.values())
    counts = {f: used.count(f) for f in dict.fromkeys(used)}
    return {"drop": totals.drop, "size": totals.size, "latency": totals.latency, "formats": counts}
