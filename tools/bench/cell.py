"""One model by each of some recipes at quick settings: does it apply? A JSON line per recipe."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from graphpress.contracts import Pass
from graphpress.errors import GraphpressError, PassError, VerifyError
from graphpress.passes.recover.inputs.synthesis import Synthesis
from graphpress.recipe import Recipe
from graphpress.report.idle import main_reason, purpose
from graphpress.report.report import Report
from graphpress.tools.bench.row import warm
from graphpress.tools.bench.task import Task
from graphpress.tools.bench.zoo import add_options, tasks

SAMPLES = 16
# Whether a recipe applies does not depend on how long it searches or trains.
QUICK: Mapping[str, int] = {
    "iterations": 10, "steps": 6, "learner_steps": 6, "gate_steps": 6, "escapes": 2, "measure": 1, "seconds": 5,
}  # fmt: skip


@dataclass
class Cell:
    """What came of one model and one recipe.

    Attributes:
        status: applied; skipped (nothing was changed that the recipe is for); refused (by one clear error); crash.
        share: Of the sites, which have a scheme now; None where the recipe gives none.
        changes: What the passes count that the recipe is for and that give no schemes.
        reason: Why it does not apply, or not everywhere: the most frequent reason, or the error.
        gate: Below the recipe's accuracy gate, at settings that are not meant for accuracy.
        seconds: For all of it.
        trace: Of a crash.
    """

    model: str
    recipe: str
    status: str = "applied"
    share: float | None = None
    changes: dict[str, int] = field(default_factory=dict)
    reason: str = ""
    gate: bool = True
    seconds: float = 0.0
    trace: str = ""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def quick(recipe: Recipe) -> Recipe:
    """The recipe with short searches and short trainings."""
    return recipe.set(
        [
            f"{p.name}.{option}={most * (2 if _in_phases(p) else 1)}"
            for p in recipe.passes
            for option, most in QUICK.items()
            if isinstance(getattr(p, option, None), int | float) and getattr(p, option) > most
        ]
    )


def _in_phases(step: Pass) -> bool:
    """Whether it trains by a method that wants a number of steps in each of its phases."""
    return "qvgen" in (getattr(step, "method", None) or "")


def fill(task: Task, name: str) -> Cell:
    """Compile by the recipe at quick settings; errors become the cell's status."""
    cell, start = Cell(task.name, name), time.perf_counter()
    try:
        _compile(task, cell)
    except Exception as e:  # noqa: BLE001 - a cell must say what happened, whatever it was
        if isinstance(e, GraphpressError) and not _our_fault(e):
            cell.status, cell.reason = "refused", ". ".join(part.rstrip(".") for part in (e.what, e.fix) if part)
        else:
            cell.status, cell.reason, cell.trace = "crash", f"{type(e).__name__}: {e}", traceback.format_exc()
    cell.seconds = round(time.perf_counter() - start, 2)
    return cell


def _our_fault(error: GraphpressError) -> bool:
    """Whether a pass broke its promise, or ONNX Runtime refused what we made of a model that it runs."""
    return isinstance(error, PassError | VerifyError) or "refuses the model" in str(error)


def _compile(task: Task, cell: Cell) -> None:
    import graphpress as gp

    recipe = quick(Recipe.load(cell.recipe))
    makes_data = any(isinstance(p, Synthesis) for p in recipe.passes)
    data = None if makes_data else {k: a[:SAMPLES] if a.ndim else a for k, a in task.data().items()}
    with tempfile.TemporaryDirectory(prefix="graphpress-") as folder:
        _, report = gp.compile(task.file(Path(folder)), recipe, data, gate=False, prove=False)
    judge(cell, recipe, report)


def judge(cell: Cell, recipe: Recipe, report: Report) -> None:
    """What the report says, in the cell."""
    own = purpose(recipe)
    mine = [p for p in report.passes if p.name in own]
    cell.changes = {p.name: p.changed for p in mine if p.plan is None}
    cell.share = report.coverage().sites if any(s.scheme for s in report.sites) else None
    cell.gate = report.gate.passed
    reached = any(cell.changes.values()) or cell.share is not None
    cell.status = "applied" if reached else "skipped"
    if not reached:
        cell.reason = main_reason(mine) or "there is nothing of what it changes"
    elif 0 in cell.changes.values() or (cell.share or 1) < 1:
        cell.reason = main_reason(mine) or _left(report)


def _left(report: Report) -> str:
    """What has no format, where some have one and no pass says why."""
    ops = sorted({s.op for s in report.sites if not s.scheme})
    return f"left in float: {', '.join(ops)}" if ops and any(s.scheme for s in report.sites) else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Print one JSON line per recipe."""
    parser = argparse.ArgumentParser(prog="graphpress.tools.bench.cell", description=__doc__)
    add_options(parser)
    parser.add_argument("--recipes", required=True, help="comma-separated")
    args = parser.parse_args(argv)
    warm()
    for task in tasks(args.zoo, args.models):
        for recipe in args.recipes.split(","):
            print(json.dumps(fill(task, recipe).to_json()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
