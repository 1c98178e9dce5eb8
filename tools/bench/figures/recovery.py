"""What a few minutes of training win back of what rounding to nearest loses, without labels."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

import graphpress as gp
from graphpress.job import engine
from graphpress.report.report import Report
from graphpress.runner import Progress, Runner
from graphpress.tools.bench.figures.base import Figure
from graphpress.tools.bench.task import Task
from graphpress.tools.bench.zoo import tasks

MOST = 300.0  # seconds that a training may take


@dataclass(frozen=True)
class RecoveryCase:
    """A model, a format, and how it is trained.

    Attributes:
        model: Of the zoo.
        name: Of the format, for people.
        quantize: Options of ``quantize``; rounding to nearest.
        recover: Options of ``recover``.
    """

    model: str
    name: str
    quantize: Mapping[str, Any]
    recover: Mapping[str, Any]


_HEAD = ["node_linear_42"]  # the code model's, left float as in the simulation
_LOGITS = {"losses": {"kl": {}}, "seconds": MOST, "steps": 150, "batch_size": 4}
CASES = (
    RecoveryCase("codelm", "W3A16", {"mode": "weight", "weight": "int3", "ignore": _HEAD}, _LOGITS),
    RecoveryCase(
        "codelm", "W4A4 by token",
        {"mode": "dynamic", "weight": "int4", "activation": "int4", "activation_granularity": "per_token",
         "ignore": _HEAD}, _LOGITS,
    ),
    RecoveryCase("resnet20", "W4A8", {"mode": "static", "weight": "int4", "observer": "mse"},
         {"losses": {"kl": {}}, "seconds": MOST, "steps": 300, "batch_size": 32}),
    RecoveryCase("resnet20", "W4A8, block by block", {"mode": "static", "weight": "int4", "observer": "mse"},
         {"mode": "blocks", "seconds": MOST, "steps": 60, "batch_size": 32}),
)  # fmt: skip


def measure(zoo: Path, progress: Progress) -> Iterator[Figure]:
    """Before and after, case by case."""
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            (task,) = tasks(zoo, case.model)
            yield _figure(case, task, gp.load(task.file(Path(folder))), progress)


def _figure(case: RecoveryCase, task: Task, source: ir.Model, progress: Progress) -> Figure:
    rounded, _ = _made(task, source, [{"quantize": case.quantize}], progress)
    trained, report = _made(task, source, [{"quantize": case.quantize}, {"recover": case.recover}], progress)
    original, before, after = (_score(task, source, m) for m in (source, rounded, trained))
    said = next(p.metrics for p in report.passes if p.name == "recover")
    lost, left = (abs(original - s) if task.higher == (s < original) else -abs(original - s) for s in (before, after))
    seconds = float(said["seconds"])
    return Figure(
        f"{task.name} {case.name}: {_headline(task)} before and after recovery",
        f"better than before, in {MOST / 60:.0f} minutes", f"{before:.4f} -> {after:.4f} in {seconds:.0f} s",
        left < lost and seconds <= 1.1 * MOST,
        f"float {original:.4f}; {left / lost:.0%} of the loss is left; {said['steps']:.0f} steps; held back: "
        f"{float(said['loss before']):.4f} -> {float(said['loss after']):.4f}",
    )  # fmt: skip


def _made(task: Task, source: ir.Model, passes: list[dict[str, Any]], progress: Progress) -> tuple[ir.Model, Report]:
    recipe = {"name": "recovery", "passes": [{"recipe": "clean"}, *passes, {"recipe": "fold"}]}
    data = {k: v for k, v in task.data().items() if k != "labels"}
    return gp.compile(source, recipe, data, gate=False, prove=False, progress=progress)


def _score(task: Task, source: ir.Model, model: ir.Model) -> float:
    return next(iter(task.scores(_runner(model), _runner(source)).values()))


def _headline(task: Task) -> str:
    return "nats/byte" if task.kind == "language" else "top-1 %"


def _runner(model: ir.Model) -> Runner:
    found: Runner = engine.of_runtime("ort").execute(model)
    return found
