"""2:4 pruning: the search for an order of channels, one-shot losses, what training wins back, bytes."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

import graphpress as gp
from graphpress.context import Context
from graphpress.graph import edit
from graphpress.job import engine
from graphpress.observe.data import CalibrationData
from graphpress.ops import packing
from graphpress.passes.prune import masks
from graphpress.passes.prune.permute import Permute
from graphpress.passes.prune.prune import Prune
from graphpress.passes.prune.search import OrderSearch
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe
from graphpress.report.report import Report
from graphpress.runner import Progress
from graphpress.tools.bench.figures.base import Figure
from graphpress.tools.bench.task import Task
from graphpress.tools.bench.zoo import tasks

MOST = 600.0  # seconds that a training may take, held against what it took
METHODS: tuple[Literal["sparsegpt", "wanda", "magnitude"], ...] = ("sparsegpt", "wanda", "magnitude")
_PERMUTE = {"permute": {"score": "energy"}}
_INT8 = {"quantize": {"mode": "static", "weight": "int8", "observer": "mse", "fallback": ["dynamic", "weight"]}}
_DISTIL = {"losses": {"kl": {}}, "samples": 4096}  # no time limit: the result would depend on the machine


def measure(zoo: Path, progress: Progress) -> Iterator[Figure]:
    """The search, the code model with and without outliers, the ResNets."""
    yield from _search()
    for name in ("codelm", "codelm_outliers"):
        yield from _Case(zoo, name, progress).one_shot()
    recovered = _Case(zoo, "codelm", progress, {**_DISTIL, "steps": 200, "batch_size": 4})
    yield from recovered.recovered(0.05, "nats", [{"pack-sparse": {}}])
    for name in ("resnet20", "resnet56"):
        steps, rate = (400, 1e-3) if name == "resnet20" else (300, 5e-4)
        case = _Case(zoo, name, progress, {**_DISTIL, "steps": steps, "batch_size": 32, "lr": rate})
        yield from case.recovered(2.5, "points", [_INT8, {"recipe": "fold"}, {"pack-sparse": {}}])


def _search() -> Iterator[Figure]:
    matrix = np.random.RandomState(1).rand(128, 64)  # the published example
    before, best = masks.kept(matrix, 2, 4), float(np.sort(matrix, axis=1)[:, 32:].sum())
    for what, search, asked in (
        ("swaps of two columns", OrderSearch(window=0, escapes=60), 2913.35),
        ("swaps, windows of 12", OrderSearch(window=12, escapes=30), 2921.95),
    ):
        kept = masks.kept(matrix[:, search.order(matrix)], 2, 4)
        note = f"default {before:.1f}; efficacy {(kept - before) / (best - before):.1%}; {search.escapes} disturbances"
        yield Figure(f"128x64 example, {what}: magnitude kept", f"{asked:.1f}", f"{kept:.1f}", kept >= asked, note)


@dataclass
class _Case:
    zoo: Path
    name: str
    progress: Progress
    recover: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.task,) = tasks(self.zoo, self.name)
        with tempfile.TemporaryDirectory() as folder:
            self.source = gp.load(self.task.file(Path(folder)))
        self.float = self.score(self.source)

    def score(self, model: ir.Model) -> float:
        runner, reference = (engine.of_runtime("ort").execute(m) for m in (model, self.source))
        return next(iter(self.task.scores(runner, reference).values()))

    def made(self, passes: Sequence[Mapping[str, Any]]) -> tuple[ir.Model, Report]:
        recipe = {"name": "sparsity", "passes": [{"recipe": "clean"}, *passes]}
        return gp.compile(self.source, recipe, _data(self.task, self.zoo), gate=False, prove=False,
                          progress=self.progress)  # fmt: skip

    def one_shot(self) -> Iterator[Figure]:
        """Loss of each method, with channels as they are and permuted."""
        data = CalibrationData.from_arrays(_data(self.task, self.zoo))
        ctx = Context(data=data, run=partial(engine.of_runtime("ort").execute, threads=1), progress=self.progress)
        clean, _ = Pipeline(Recipe.load("clean").passes).run(self.source)
        permuted, _ = Pipeline([Permute(score="energy")]).run(clean, ctx)
        lost = {}
        for label, model in (("", clean), (", permuted", permuted)):
            for method in METHODS:
                pruned, _ = Pipeline([Prune(method=method)]).run(model, ctx)
                lost[method + label] = self.score(pruned) - self.float
        told = ", ".join(f"{k} +{v:.4f}" for k, v in lost.items())
        plain = [lost[m] for m in METHODS]
        yield Figure(f"{self.name} 2:4 one-shot, nats over float", "sparsegpt < wanda < magnitude", told,
                     plain == sorted(plain), f"float {self.float:.4f}")  # fmt: skip
        lower = [lost[f"{m}, permuted"] < lost[m] for m in METHODS]
        yield Figure(f"{self.name} 2:4 one-shot, permuted", "lowers each", f"lowers {sum(lower)} of 3", all(lower))

    def recovered(self, bar: float, unit: str, after: Sequence[Mapping[str, Any]]) -> Iterator[Figure]:
        """After training without labels: what is lost, and the bytes."""
        steps: list[Mapping[str, Any]] = [
            _PERMUTE,
            {"prune": {"method": "sparsegpt"}},
            {"recover": self.recover},
            *after,
        ]
        model, report = self.made(steps)
        score = self.score(model)
        lost = (self.float - score) * (1 if self.task.higher else -1)
        said = next(p.metrics for p in report.passes if p.name == "recover")
        what = "2:4 + INT8" if _INT8 in after else "2:4"
        yield Figure(f"{self.name} {what}, recovered without labels", f"loses at most {bar} {unit}, in 10 minutes",
                     f"{self.float:.4f} -> {score:.4f}, {float(said['seconds']):.0f} s",
                     lost <= bar and float(said["seconds"]) <= 1.1 * MOST, f"{said['steps']:.0f} steps")  # fmt: skip
        yield from self.bytes(model, what)

    def bytes(self, model: ir.Model, what: str) -> Iterator[Figure]:
        """Of the packed weights against formula and float32; of all constants and of the file."""
        packed = elements = formula = 0.0
        for node in packing.packed_nodes(model):
            values, places = (v.const_value for v in node.inputs[-2:] if v is not None)
            assert values is not None and places is not None
            packed += values.nbytes + places.nbytes
            dense = math.prod(edit.attribute(node, "shape"))
            elements += dense
            formula += dense / 2 * (8 * values.dtype.itemsize + 2) / 8
        constants = sum(
            v.const_value.nbytes for v in self.source.graph.initializers.values() if v.const_value is not None
        )
        left = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
        yield Figure(f"{self.name} {what}, bytes of packed weights", "the formula within 1 %", f"{packed:.0f}",
                     abs(packed / formula - 1) <= 0.01, f"formula {formula:.0f}")  # fmt: skip
        files = [ir.to_proto(m).ByteSize() for m in (self.source, model)]
        asked = 6.4 if what.endswith("INT8") else 4 / (0.5 * 4 + 1 / 8)
        ratio = 4 * elements / packed
        yield Figure(
            f"{self.name} {what}, pruned weights against float32", f"{asked:.2f}x smaller", f"{ratio:.2f}x",
            ratio >= asked - 1e-9, f"all constants {constants / left:.2f}x, whole file {files[0] / files[1]:.2f}x",
        )  # fmt: skip


def _data(task: Task, zoo: Path) -> dict[str, np.ndarray]:
    """Without labels; for the ResNets all calibration images, not only those that ranges need."""
    data = {k: v for k, v in task.data().items() if k != "labels"}
    if not task.name.startswith("resnet"):
        return data
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    with np.load(zoo / "cifar10/calib.npz") as z:
        images = ((z["x"].astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    return {k: np.ascontiguousarray(images) for k in data}
