"""One model by each of some recipes: a JSON line per recipe. A process of its own, so that a crash costs one row."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from graphpress.errors import GraphpressError
from graphpress.runner import Runner
from graphpress.tools.bench.file_runner import FileRunner
from graphpress.tools.bench.task import Task
from graphpress.tools.bench.zoo import add_options, tasks

THREADS = 2


@dataclass
class BenchRow:
    """What came of one model and one recipe.

    Attributes:
        status: ok; gate (below the accuracy gate, figures are given all the same); refused (by one clear error);
            crash (anything else). ``reason`` says more.
        metric: Name of the headline figure; ``before`` and ``after`` hold all figures of the float and the new model.
        bytes: Size of the file before and after.
        latency: Batch size -> medians in ms ``before`` and ``after``, and their ``ratio``, from interleaved runs.
        seconds: From the float file to the saved model, gate included.
        integer: Share of the multiply-adds that run on integer kernels.
        note: The task's.
    """

    model: str
    recipe: str
    kind: str = ""
    status: str = "ok"
    reason: str = ""
    metric: str = ""
    higher: bool = True
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    bytes: tuple[int, int] | None = None
    latency: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float | None = None
    integer: float | None = None
    note: str = ""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BenchRow:
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(task: Task, recipe: str, folder: Path, seconds: float = 2.0) -> BenchRow:
    """Compile, score, weigh and time. Errors become the row's status; ``folder`` keeps the new model."""
    row = BenchRow(task.name, recipe, task.kind, higher=task.higher, note=task.note)
    try:
        _measure(task, row, folder, seconds)
    except GraphpressError as e:
        row.status, row.reason = "refused", str(e)
    except Exception as e:  # noqa: BLE001 - a row of the table must say what happened, whatever it was
        traceback.print_exc()
        row.status, row.reason = "crash", f"{type(e).__name__}: {e}"
    return row


def _measure(task: Task, row: BenchRow, folder: Path, seconds: float) -> None:
    import graphpress as gp

    source, out, data = task.file(folder), folder / f"{task.name}.{row.recipe}.onnx", task.data()
    start = time.perf_counter()
    model, report = gp.compile(source, row.recipe, data, gate=False, prove=False)
    gp.save(model, out)
    row.seconds = time.perf_counter() - start
    if not report.gate.passed:
        row.status, row.reason = "gate", "; ".join(report.gate.failures)
    row.bytes = (_bytes(source), _bytes(out))
    old, new = FileRunner(source, THREADS), FileRunner(out, THREADS)
    row.before, row.after = task.scores(old, old), task.scores(new, old)
    row.metric = next(iter(row.before))
    row.latency = {str(b): latency(task, b, old, new, seconds) for b in task.batches}
    row.integer = gp.audit(model, feeds=task.feeds(1)).integer_mac_share


def warm() -> None:
    """Import all that compiling needs, which is imported when first used: it is not part of compiling."""
    from graphpress import catalog
    from graphpress.backends import reference  # noqa: F401
    from graphpress.frontends import onnx_file  # noqa: F401
    from graphpress.job import engine
    from graphpress.target import Target

    catalog.passes()
    engine.of(Target.load("ort-cpu"))


def latency(task: Task, batch: int, old: Runner, new: Runner, seconds: float) -> dict[str, float]:
    """Medians in ms of interleaved runs of the float and the new model."""
    from graphpress.job.latency import compare_latency

    return compare_latency(old, new, task.feeds(batch), seconds)


def _bytes(path: Path) -> int:
    """Of the model's file and of the external data that we write beside it."""
    return sum(p.stat().st_size for p in (path, path.with_name(path.name + ".data")) if p.exists())


def main(argv: Sequence[str] | None = None) -> int:
    """Print one JSON line per recipe."""
    parser = argparse.ArgumentParser(prog="graphpress.tools.bench.row", description="Measure one model.")
    add_options(parser)
    parser.add_argument("--recipes", required=True, help="comma-separated")
    parser.add_argument("--keep", type=Path, required=True, help="folder for the compiled models")
    parser.add_argument("--seconds", type=float, default=2.0, help="of latency measurement per batch size")
    args = parser.parse_args(argv)
    warm()
    for task in tasks(args.zoo, args.models):
        for recipe in args.recipes.split(","):
            print(json.dumps(measure(task, recipe, args.keep, args.seconds).to_json()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
