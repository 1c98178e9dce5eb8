"""Calibration without data: ResNet-20 at W8A8 on distilled inputs against 300 real images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from graphpress.backends import ort
from graphpress.pipeline import Pipeline
from graphpress.recipe import Recipe, make_pass
from graphpress.runner import Progress, quiet
from graphpress.target import Target
from graphpress.tools.bench.figures.base import Figure
from graphpress.tools.bench.task import Task
from graphpress.tools.bench.zoo import tasks

_ALLOWED, _SECONDS = 0.3, 30.0
_STEPS = 200
_PICTURES, _LOOKS = 4, 40


def measure(zoo: Path, progress: Progress) -> Iterator[Figure]:
    """Accuracy and time of ZeroQ (arXiv:2001.00281) on the export that keeps its norms, and traced from torch."""
    for what, model in (("`_bn` export", exported(zoo)), ("traced from torch", trace_resnet(zoo))):
        real, distilled, seconds = measured(zoo, model, progress)
        yield Figure(
            f"ResNet-20 W8A8 without data, {what}", "within 0.3 points of 300 real images",
            f"{distilled:.2f} % against {real:.2f} %", real - distilled <= _ALLOWED + 1e-9, "2,000 test images",
        )  # fmt: skip
        note = "torch on one thread, so that a neighbour on the machine costs nothing"
        yield Figure(f"the same, all in all, {what}", "under 30 s", f"{seconds:.1f} s", seconds < _SECONDS, note)
    yield from detectors(zoo, progress)
    right, loss = painted(zoo, _STEPS, progress)
    yield Figure(
        "ResNet-20 W8A8 on images that genie-d painted, `_bn` export", "", f"{right:.2f} %", None,
        f"{_STEPS} steps of the paper's 4,000; distance from the statistics {loss:.2f}",
    )  # fmt: skip


def detectors(zoo: Path, progress: Progress = quiet) -> Iterator[Figure]:
    """UltraFace on photographs, on inputs of ZeroQ, on pictures of ``dfq-boxes``: as many, after as many steps."""
    import graphpress as gp
    from graphpress.job.job import context

    task = tasks(zoo, "version-slim-320")[0]
    model = gp.load(task.file(zoo))
    found: dict[str, list[str]] = {}
    for name in ("photographs", "zeroq", "dfq-boxes"):
        data = task.data()
        if name != "photographs":
            step = make_pass(name, {"samples": _PICTURES, "iterations": _LOOKS, "range": [-1, 1]})
            steps, where = [*Recipe.load("clean").passes, step], context(Target.load("ort-cpu"), progress=progress)
            data = Pipeline(steps).run(model, where)[1][-1].handed["data"]
        for bits in ("w8a8", "4-bit activations"):
            passes = Recipe.load("w8a8").to_json()["passes"]
            coarse = {"activation": "uint4", "kernels": "preferred"} if bits != "w8a8" else {}
            passes = [{"quantize": p["quantize"] | coarse} if "quantize" in p else p for p in passes]
            recipe = Recipe.load({"name": bits, "passes": passes})
            made, _ = gp.compile(model, recipe, data, gate=False, prove=False, progress=progress)
            scores = task.scores(ort.execute(made), ort.execute(model))
            found.setdefault(bits, []).append(f"{name} {scores['box AP50 vs float %']:.2f}")
    for bits, said in found.items():
        note = f"{_PICTURES} pictures each, {_LOOKS} steps; the float model's boxes are the truth"
        yield Figure(f"UltraFace slim, {bits}, calibrated on", "", "; ".join(said) + " % AP50", None, note)


def painted(zoo: Path, steps: int, progress: Progress = quiet) -> tuple[float, float]:
    """Top-1 in per cent calibrated on 64 images of GENIE-D, and the loss that was left."""
    import graphpress as gp

    passes = [
        {"genie-d": {"samples": 64, "batch": 64, "iterations": steps}} if "zeroq" in p else p
        for p in Recipe.load("zeroq").to_json()["passes"]
    ]
    recipe = Recipe.load({"name": "painted", "passes": passes})
    made, report = gp.compile(exported(zoo), recipe, gate=False, prove=False, progress=progress)
    loss = next(p.metrics["loss"] for p in report.passes if p.name == "genie-d")
    return _score(_task(zoo), made), float(loss)


def measured(zoo: Path, model: ir.Model, progress: Progress = quiet) -> tuple[float, float, float]:
    """Top-1 in per cent calibrated on real images and on distilled ones, and the seconds that the latter took."""
    import graphpress as gp

    task = _task(zoo)
    (name,) = (v.name or "" for v in model.graph.inputs)
    images = {name: next(a for k, a in task.data().items() if k != "labels")}
    real, _ = gp.compile(model, "w8a8", images, prove=False, progress=progress)
    with _one_thread():
        start = time.perf_counter()
        distilled, _ = gp.compile(model, "zeroq", prove=False, progress=progress)
        seconds = time.perf_counter() - start
    return _score(task, real), _score(task, distilled), seconds


@contextmanager
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other take many times as long where another process has one of the cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def exported(zoo: Path) -> ir.Model:
    """The ONNX file whose exporter left the norms alone."""
    import graphpress as gp

    return gp.load(zoo / "cifar10/resnet20_bn.onnx")


def trace_resnet(zoo: Path) -> ir.Model:
    """The same network from torch, with any batch size."""
    import torch

    import graphpress as gp
    from graphpress.tools.bench.torch_models import MODELS

    module = MODELS["ResNet-20"][0](zoo)
    return gp.trace(module, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _task(zoo: Path) -> Task:
    return tasks(zoo, "resnet20_bn")[0]


def _score(task: Task, model: ir.Model) -> float:
    runner = ort.execute(model)
    return next(iter(task.scores(runner, runner).values()))
